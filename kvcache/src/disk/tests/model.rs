//! Long random lives with crashes and faults, against the books of what was promised.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::super::{MissReason, Refused};
use super::crash_check::answers;
use super::oracle::{ABSENT, Oracle, PRESENT};
use super::rig::{Numbers, OF_TENANT, Rig, Setup, block, key, seeds, tag};
use crate::vfs::sim::{Fault, SimVfs, Trigger};

/// Faults that leave the disk as it is.
const HARMLESS: [Fault; 12] = [
    Fault::WriteNoSpace,
    Fault::CreateQuota,
    Fault::WriteIo,
    Fault::ReadIo,
    Fault::SyncIo,
    Fault::DirSyncIo,
    Fault::ShortRead,
    Fault::ShortWrite,
    Fault::TooManyFiles,
    Fault::BitFlip,
    Fault::StaleRead,
    Fault::Slow,
];

struct Run {
    setup: Setup,
    sim: SimVfs,
    rig: Option<Rig>,
    oracle: Oracle,
    /// Removed in this process.
    removed: BTreeSet<u32>,
    numbers: Numbers,
    /// A fault is there, or was in this process.
    faulty: bool,
}

impl Run {
    fn rig(&self) -> &Rig {
        self.rig.as_ref().unwrap()
    }

    fn some(&mut self) -> Vec<u32> {
        let n = self.numbers.below(3) as u32 * OF_TENANT + self.numbers.below(60) as u32;
        (n..n + 1 + self.numbers.below(9) as u32).collect()
    }

    fn put(&mut self) {
        let ids = self.some();
        let results = self.rig().put(&ids);
        if std::env::var_os("KVIST_TRACE").is_some() {
            println!("put {ids:?}: {results:?}");
        }
        for (n, result) in ids.into_iter().zip(results) {
            match result {
                Ok(()) => drop(self.removed.remove(&n)),
                Err(Refused::AlreadyPresent) => continue,
                Err(_) => assert!(self.faulty, "put {n}: {result:?}"),
            }
            // Refused now, it may still be there from before, after a crash.
            let known = self.oracle.allowed.get(&n).is_some_and(|set| set & PRESENT != 0);
            if result.is_ok() || !known {
                self.oracle.put(n, result.is_ok());
            } else {
                self.oracle.lost(n);
            }
        }
    }

    fn get(&mut self) {
        let ids = self.some();
        for (n, result) in ids.iter().zip(self.rig().get_all(&ids)) {
            let set = self.oracle.allowed.get(n).copied().unwrap_or(ABSENT);
            assert!(result.is_err() || set & PRESENT != 0, "block {n} came from nowhere");
            assert!(result.is_err() || !self.removed.contains(n), "block {n} was removed");
            let plain = matches!(result, Ok(()) | Err(MissReason::Absent));
            assert!(plain || self.faulty, "get {n}: {result:?}");
        }
        let n = ids[0];
        if let Ok(bytes) = self.rig().get_pages(n, 0..1) {
            let page = super::rig::plan(n).layout().page_bytes();
            assert!(bytes[..page] == block(n)[..page], "block {n} came back wrong");
        }
    }

    fn remove(&mut self) {
        let n = self.some()[0];
        self.rig().disk.remove(&key(n));
        self.removed.insert(n);
        self.oracle.lost(n);
    }

    fn erase(&mut self) {
        let tenant = self.numbers.below(3) as u32;
        match self.rig().disk.erase_tenant(tag(tenant)) {
            Ok(_) => self.oracle.erased(tenant),
            Err(refused) => {
                assert!(self.faulty, "erase: {refused:?}");
                self.oracle.maybe_erased(tenant);
            }
        }
    }

    /// Another process on what is there, or on what a crash left.
    fn restart(&mut self, crash: bool) {
        self.sim.heal();
        self.sim.release();
        if std::env::var_os("KVIST_TRACE").is_some() {
            self.oracle.ids().into_iter().for_each(|n| {
                let entry = self.rig().disk.state.lock().index.get(&key(n)).copied();
                println!(
                    "{n}: {:?}",
                    entry.map(|e| (e.segment, e.position, e.sectors, e.sequence))
                );
            });
            println!("{:?}", self.rig().disk.state.lock().tenants);
            for f in self.sim.files() {
                println!("{f:?}");
            }
        }
        self.rig = None;
        assert_eq!(self.sim.open_handles(), 0, "handles held");
        if crash {
            let images = self.sim.images();
            let index = self.numbers.below(images.count());
            self.sim = images.get(index);
            if std::env::var_os("KVIST_TRACE").is_some() {
                println!("{}", images.describe(index));
                for f in self.sim.files() {
                    println!("{f:?}");
                }
            }
        }
        let rig = self.setup.open(self.sim.process()).unwrap();
        answers(&rig, self.setup, &self.oracle.allowed);
        self.rig = Some(rig);
        self.removed.clear();
        self.faulty = false;
    }

    fn fault(&mut self) {
        let fault = HARMLESS[self.numbers.below(HARMLESS.len() as u64) as usize];
        let trigger = match self.numbers.below(3) {
            0 => Trigger::nth(1 + self.numbers.below(20)),
            1 => Trigger::from(1 + self.numbers.below(20)),
            _ => Trigger::chance(0.1),
        };
        if std::env::var_os("KVIST_TRACE").is_some() {
            println!("{fault:?}: {trigger:?}");
        }
        self.sim.inject(fault, trigger);
        self.faulty = true;
    }

    fn step(&mut self) {
        let what = self.numbers.below(32);
        if std::env::var_os("KVIST_TRACE").is_some() {
            println!("step {what}");
        }
        match what {
            0 => self.restart(false),
            1 | 2 => self.restart(true),
            3 => self.erase(),
            4 => self.remove(),
            5 => self.rig().disk.finish_segments(),
            6 => self.fault(),
            7 | 8 => {
                self.sim.heal();
                self.sim.advance(Duration::from_secs(3600));
            }
            9..16 => self.get(),
            _ => self.put(),
        }
        let rig = self.rig.take().unwrap();
        self.oracle.observe(&rig);
        let usage = rig.disk.usage();
        assert!(usage.used_bytes <= usage.budget_bytes, "{usage:?}");
        assert!(
            rig.file_bytes() <= usage.used_bytes,
            "{} bytes of files, {usage:?}",
            rig.file_bytes()
        );
        self.rig = Some(rig);
    }
}

fn live(seed: u64) {
    let sim = SimVfs::new(seed);
    let mut numbers = Numbers::new(seed);
    let setup = [Setup::TIGHT, Setup::ROOMY, Setup::SEALED][numbers.below(3) as usize];
    if numbers.below(4) == 0 {
        sim.alignment(4096);
    }
    let rig = Some(setup.open(sim.process()).unwrap());
    let (oracle, removed) = (Oracle::default(), BTreeSet::new());
    let mut run = Run { setup, sim, rig, oracle, removed, numbers, faulty: false };
    (0..40).for_each(|_| run.step());
    run.restart(true);
}

#[test]
fn lives() {
    let mut lives = 0;
    for seed in seeds(5000) {
        catch_unwind(AssertUnwindSafe(|| live(seed))).unwrap_or_else(|e| {
            panic!("KVIST_SEED={seed}: {}", e.downcast_ref::<String>().cloned().unwrap_or_default())
        });
        lives += 1;
    }
    println!("model: {lives} lives of 40 steps");
}
