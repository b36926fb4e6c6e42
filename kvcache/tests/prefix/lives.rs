//! Random lives of a whole store on one thread: a virtual clock, crashes, faults, a host tier that is
//! always full; against the set of answers that each block may have.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use kvist::vfs::sim::{Fault, SimVfs, Trigger};
use kvist::{Lease, MissReason, PrefixStore, Refused, Space};

use crate::common::{Numbers, bytes_of, get, get_layer, prefix, put, seeds, simulated, space};

const TENANTS: u32 = 2;
const BLOCKS: u64 = 24;
const HARMLESS: [Fault; 10] = [
    Fault::WriteNoSpace,
    Fault::WriteIo,
    Fault::ReadIo,
    Fault::SyncIo,
    Fault::DirSyncIo,
    Fault::ShortRead,
    Fault::ShortWrite,
    Fault::TooManyFiles,
    Fault::BitFlip,
    Fault::Stuck,
];

/// What a block may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct May {
    present: bool,
    /// Durable, and nothing has happened since that may have cost it.
    durable: bool,
}

struct Run {
    sim: SimVfs,
    store: Option<(PrefixStore, Vec<Space>)>,
    numbers: Numbers,
    may: BTreeMap<(u32, u32), May>,
    leases: Vec<(Lease, u32, u32)>,
    faulty: bool,
}

fn open(sim: &SimVfs) -> (PrefixStore, Vec<Space>) {
    // Room for a few blocks in memory only, so that most are read from disk.
    let store = simulated(sim.process(), 30).host_bytes(20_000).queue_bytes(9_000).build().unwrap();
    let spaces = (0..TENANTS).map(|t| space(&store, t)).collect();
    (store, spaces)
}

impl Run {
    fn some(&mut self) -> (u32, u32) {
        (self.numbers.below(u64::from(TENANTS)) as u32, self.numbers.below(BLOCKS) as u32)
    }

    fn space(&self, tenant: u32) -> &Space {
        &self.store.as_ref().unwrap().1[tenant as usize]
    }

    fn put(&mut self) {
        let (t, n) = self.some();
        match put(self.space(t), t, n) {
            Ok(()) => self.may.entry((t, n)).or_default().present = true,
            Err(Refused::AlreadyPresent) => {
                let may = self.may.get(&(t, n)).copied().unwrap_or_default();
                assert!(may.present, "block {n} of {t} is there, and was never put");
            }
            Err(Refused::Throttled) => {}
            Err(refused) => panic!("put: {refused:?}"),
        }
    }

    fn get(&mut self) {
        let (t, n) = self.some();
        let result = match self.numbers.below(3) {
            0 => get_layer(self.space(t), t, n, (n % 2) as usize),
            _ => get(self.space(t), t, n),
        };
        let may = self.may.get(&(t, n)).copied().unwrap_or_default();
        match result {
            Ok(()) => assert!(may.present, "block {n} of {t} came from nowhere"),
            Err(reason) => {
                assert!(!may.durable || self.faulty, "block {n} of {t} is lost: {reason:?}");
                let plain = reason == MissReason::Absent;
                assert!(plain || self.faulty, "block {n} of {t}: {reason:?}");
            }
        }
    }

    fn write(&mut self) {
        let (store, _) = self.store.as_ref().unwrap();
        store.run_pending();
        let usage = store.stats().disk.unwrap();
        assert!(usage.used_bytes <= usage.budget_bytes);
    }

    fn evict(&mut self) {
        let (t, n) = self.some();
        let key = prefix(self.space(t), n).keys()[0];
        self.space(t).evict(&[key]);
        assert!(get(self.space(t), t, n).is_err(), "block {n} of {t} was evicted");
        // It may come back after a restart: nobody promised otherwise.
        if let Some(may) = self.may.get_mut(&(t, n)) {
            may.durable = false;
        }
    }

    fn erase(&mut self) {
        let t = self.numbers.below(u64::from(TENANTS)) as u32;
        let erased = self.store.as_ref().unwrap().0.erase_tenant(&crate::common::salt(t));
        assert!(erased.is_ok() || self.faulty, "{erased:?}");
        for (_, may) in self.may.iter_mut().filter(|((of, _), _)| *of == t) {
            may.durable = false;
            may.present &= erased.is_err();
        }
    }

    fn lease(&mut self) {
        let (t, n) = self.some();
        let key = prefix(self.space(t), n).keys()[0];
        if let Some(lease) = self.space(t).lease(&key) {
            assert!(*lease == bytes_of(t, n), "a lease on other bytes");
            self.leases.push((lease, t, n));
        }
        if self.leases.len() > 2 {
            self.leases.remove(0);
        }
        let right = |(lease, t, n): &(Lease, u32, u32)| **lease == bytes_of(*t, *n);
        assert!(self.leases.iter().all(right), "leased bytes changed");
    }

    fn restart(&mut self, crash: bool) {
        self.sim.heal();
        self.sim.release();
        if crash {
            let images = self.sim.images();
            let index = self.numbers.below(images.count());
            self.sim = images.get(index);
        }
        self.leases.clear();
        self.store = None;
        self.store = Some(open(&self.sim));
        self.faulty = false;
        for t in 0..TENANTS {
            for n in 0..BLOCKS as u32 {
                let may = self.may.get(&(t, n)).copied().unwrap_or_default();
                let there = get(self.space(t), t, n);
                assert!(there.is_err() || may.present, "block {n} of {t} came back");
                assert!(there.is_ok() || !may.durable, "block {n} of {t} is lost: {there:?}");
                // What a new process has read from disk has been durable since.
                let durable = there.is_ok();
                self.may.entry((t, n)).or_default().durable = durable;
            }
        }
    }

    fn fault(&mut self) {
        let fault = HARMLESS[self.numbers.below(HARMLESS.len() as u64) as usize];
        self.sim.inject(fault, Trigger::nth(1 + self.numbers.below(12)));
        self.faulty = true;
        // A read that fails may put a record or a segment aside.
        self.may.values_mut().for_each(|may| may.durable = false);
    }

    fn step(&mut self) {
        match self.numbers.below(40) {
            0 => self.restart(false),
            1 => self.restart(true),
            2 => self.erase(),
            3 => self.evict(),
            4 => self.fault(),
            5 => {
                self.sim.heal();
                self.sim.release();
                self.sim.advance(Duration::from_secs(3600));
            }
            6 | 7 => self.lease(),
            8..14 => self.write(),
            14..24 => self.put(),
            _ => self.get(),
        }
        let stats = self.store.as_ref().unwrap().0.stats();
        assert!(stats.host_used_bytes <= stats.host_budget_bytes, "{stats:?}");
    }
}

/// A life of so many steps, or as long as there are numbers.
pub(crate) fn live(seed: u64, numbers: Numbers, steps: usize) {
    let sim = SimVfs::new(seed);
    let store = Some(open(&sim));
    let (may, leases) = (BTreeMap::new(), Vec::new());
    let mut run = Run { sim, store, numbers, may, leases, faulty: false };
    for _ in 0..steps {
        if run.numbers.are_over() {
            break;
        }
        run.step();
    }
    run.restart(true);
    let (store, spaces) = run.store.take().unwrap();
    drop(spaces);
    drop(store);
    run.sim.release();
    assert_eq!(run.sim.open_handles(), 0, "handles held");
}

#[test]
fn lives() {
    let mut lives = 0;
    for seed in seeds(4000) {
        catch_unwind(AssertUnwindSafe(|| live(seed, Numbers::new(seed), 60))).unwrap_or_else(|e| {
            panic!("KVIST_SEED={seed}: {}", e.downcast_ref::<String>().cloned().unwrap_or_default())
        });
        lives += 1;
    }
    println!("lives: {lives} of 60 steps");
}

/// The seeds of the fuzz target `operations`, and what it found.
#[test]
fn given_lives() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/operations");
    for file in std::fs::read_dir(seeds).unwrap().map(Result::unwrap) {
        println!("{:?}", file.file_name());
        live(1, Numbers::given(std::fs::read(file.path()).unwrap()), 300);
    }
}
