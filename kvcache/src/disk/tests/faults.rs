//! Every fault at every call, once and from then on: the answer is the one of the table, nothing
//! panics, hangs or comes back wrong, everything is given back, and afterwards the store works.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use super::super::{MissReason, Refused};
use super::faults_table::{damages, may_open, reasons, refusals};
use super::rig::{OF_TENANT, Rig, Setup, seeds, tag};
use crate::vfs::sim::sweep::each_fault;
use crate::vfs::sim::{Fault, SimVfs, Trigger, When};

/// What is done while the fault is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    OpenNew,
    OpenOld,
    OpenCrashed,
    OpenOver,
    Put,
    PutMany,
    Get,
    GetPart,
    GetAll,
    Evict,
    Erase,
    Finish,
}

const WORKS: [Work; 12] = [
    Work::OpenNew,
    Work::OpenOld,
    Work::OpenCrashed,
    Work::OpenOver,
    Work::Put,
    Work::PutMany,
    Work::Get,
    Work::GetPart,
    Work::GetAll,
    Work::Evict,
    Work::Erase,
    Work::Finish,
];

impl Work {
    fn opens(self) -> bool {
        matches!(self, Work::OpenNew | Work::OpenOld | Work::OpenCrashed | Work::OpenOver)
    }

    fn setup(self) -> Setup {
        match self {
            Work::Evict | Work::Erase | Work::OpenOver => Setup::TIGHT,
            _ => Setup::ROOMY,
        }
    }

    /// A disk to begin with, and the blocks on it.
    fn prepared(self) -> (SimVfs, BTreeSet<u32>) {
        let sim = SimVfs::new(1);
        let mut ids = BTreeSet::new();
        if self == Work::OpenNew {
            return (sim, ids);
        }
        let setup = if self == Work::OpenOver { Setup::ROOMY } else { self.setup() };
        let rig = setup.open(sim.process()).unwrap();
        let blocks = if matches!(self, Work::Evict | Work::OpenOver) { 150 } else { 60 };
        for n in (0..blocks).step_by(10) {
            for first in [n, OF_TENANT + n] {
                ids.extend(first..first + 5);
                let put: Vec<u32> = (first..first + 5).collect();
                assert!(rig.put(&put).iter().all(Result::is_ok));
            }
        }
        if self != Work::OpenCrashed {
            rig.disk.finish_segments();
        }
        ids.retain(|&n| rig.is_listed(n));
        (sim.fork(1), ids)
    }
}

/// One run.
struct Case {
    work: Work,
    fault: Fault,
    /// It strikes a single call.
    once: bool,
    sim: SimVfs,
    /// Blocks that were acknowledged, and tenants that were erased.
    ids: BTreeSet<u32>,
    erased: Option<u32>,
    /// Something may be missing that was acknowledged.
    lossy: bool,
}

impl Case {
    fn put(&mut self, rig: &Rig, ids: std::ops::Range<u32>) {
        let ids: Vec<u32> = ids.collect();
        for (&n, result) in ids.iter().zip(rig.put(&ids)) {
            match result {
                Ok(()) => drop(self.ids.insert(n)),
                Err(refused) => {
                    assert!(
                        refusals(self.fault, self.once).contains(&refused),
                        "put {n}: {refused:?}"
                    );
                    assert!(!rig.is_listed(n), "block {n} was refused, and is listed");
                }
            }
        }
    }

    fn answer(&self, n: u32, result: Result<(), MissReason>) {
        let Err(reason) = result else { return };
        let known = self.ids.contains(&n);
        let gone = reason == MissReason::Absent && (!known || self.lossy);
        assert!(gone || reasons(self.fault, self.once).contains(&reason), "get {n}: {reason:?}");
    }

    fn get(&self, rig: &Rig, n: u32) {
        let result = rig.get(n);
        assert!(
            result.as_ref().is_ok_and(|b| *b == super::rig::block(n)) || result.is_err(),
            "{n}"
        );
        self.answer(n, result.map(drop));
        let again = rig.get(n).map(drop);
        self.answer(n, again);
    }

    fn get_part(&self, rig: &Rig, n: u32) {
        let layout = super::rig::plan(n).layout();
        let pages = 1..layout.pages();
        let result = rig.get_pages(n, pages.clone());
        if let Ok(bytes) = &result {
            let range = layout.page_bytes()..layout.bytes();
            assert!(
                bytes[range.clone()] == super::rig::block(n)[range],
                "block {n} came back wrong"
            );
        }
        self.answer(n, result.map(drop));
    }

    fn get_all(&self, rig: &Rig) {
        let ids: Vec<u32> = self.ids.iter().copied().collect();
        for (n, result) in ids.iter().zip(rig.get_all(&ids)) {
            self.answer(*n, result);
        }
    }

    /// Does the work. The store is handed on if it is open then.
    fn act(&mut self, rig: Option<Rig>) -> Option<Rig> {
        let Some(rig) = rig else {
            return match self.work.setup().open(self.sim.process()) {
                Ok(rig) => {
                    self.lossy = true;
                    Some(rig)
                }
                Err(error) => {
                    assert!(may_open(self.fault, self.once, &error), "{error}");
                    None
                }
            };
        };
        match self.work {
            Work::Put => self.put(&rig, 100..103),
            Work::PutMany => (0..3).for_each(|i| self.put(&rig, 100 + i * 50..150 + i * 50)),
            Work::Get => [0, 1, 3, OF_TENANT + 2].into_iter().for_each(|n| self.get(&rig, n)),
            Work::GetPart => [3, OF_TENANT + 3].into_iter().for_each(|n| self.get_part(&rig, n)),
            Work::GetAll => self.get_all(&rig),
            Work::Evict => {
                self.get_all(&rig);
                self.lossy = true;
                (0..4).for_each(|i| self.put(&rig, 500 + i * 30..530 + i * 30));
            }
            Work::Erase => {
                // The segments are rewritten; what cannot be read then is gone.
                self.lossy = true;
                match rig.disk.erase_tenant(tag(1)) {
                    Ok(_) => self.erased = Some(1),
                    Err(refused) => {
                        assert!(
                            refusals(self.fault, self.once).contains(&refused),
                            "erase: {refused:?}"
                        );
                    }
                }
            }
            Work::Finish => {
                self.put(&rig, 100..103);
                rig.disk.finish_segments();
                self.put(&rig, 103..105);
            }
            _ => {}
        }
        Some(rig)
    }

    /// The fault is gone, and so is any rest: everything that was promised is there.
    fn healed(&mut self, rig: &Rig) {
        self.sim.advance(Duration::from_secs(3600));
        let usage = rig.disk.usage();
        let lossy = self.lossy || usage.quarantined > 0 || damages(self.fault);
        let ids: Vec<u32> = self.ids.iter().copied().collect();
        for (n, result) in ids.iter().zip(rig.get_all(&ids)) {
            let erased = self.erased == Some(super::rig::tenant_of(*n));
            assert!(!(erased && result.is_ok()), "block {n} was erased");
            assert!(result.is_ok() || erased || lossy, "block {n}: {result:?}");
        }
        if !rig.disk.state.lock().unread.is_empty() {
            // What may be ours and could not be read stays, and takes room.
            return;
        }
        let fresh: Vec<u32> = (900..905).collect();
        assert_eq!(rig.put(&fresh), vec![Ok::<(), Refused>(()); 5], "it works again");
        assert!(rig.get_all(&fresh).iter().all(Result::is_ok));
        let usage = rig.disk.usage();
        assert!(usage.used_bytes <= usage.budget_bytes, "{usage:?}");
        assert!(rig.file_bytes() <= usage.used_bytes, "{} bytes of files", rig.file_bytes());
        self.ids.extend(fresh);
    }

    /// A new process finds what was promised.
    fn reopened(&mut self) {
        let rig = match self.work.setup().open(self.sim.process()) {
            Ok(rig) => rig,
            // Only where the description itself was damaged on disk.
            Err(crate::Error::BadMeta { .. }) if damages(self.fault) => return,
            Err(error) => panic!("cannot be opened any more: {error}"),
        };
        // What was put aside stays so; what was evicted before may have come back or not.
        let lossy = self.lossy && !self.work.opens();
        let lossy = lossy || damages(self.fault) || self.fault == Fault::ReadIo;
        let lossy = lossy || rig.disk.usage().evicted > 0 || self.work == Work::OpenOver;
        let ids: Vec<u32> = self.ids.iter().copied().collect();
        for (n, result) in ids.iter().zip(rig.get_all(&ids)) {
            let erased = self.erased == Some(super::rig::tenant_of(*n));
            assert!(!(erased && result.is_ok()), "block {n} was erased, and came back");
            assert!(result.is_ok() || erased || lossy, "block {n} is lost: {result:?}");
        }
    }
}

/// Runs a case; how often the fault struck.
fn run(work: Work, base: &(SimVfs, BTreeSet<u32>), fault: Fault, when: When, seed: u64) -> u64 {
    let sim = base.0.fork(seed);
    let (ids, setup) = (base.1.clone(), work.setup());
    let mut case = Case {
        work,
        fault,
        once: matches!(when, When::Nth(_)),
        sim: sim.clone(),
        ids,
        erased: None,
        lossy: false,
    };
    let rig = (!work.opens()).then(|| setup.open(sim.process()).unwrap());
    let watch = sim.watch_memory();
    let id = sim.inject(fault, Trigger::new(when));
    let rig = case.act(rig);
    let fired = sim.fired(id);
    sim.heal();
    sim.release();
    drop(watch);
    if fired == 0 {
        return 0;
    }
    if let Some(rig) = rig {
        case.healed(&rig);
        let budget = rig.disk.budget.clone();
        let process = rig.sim.clone();
        assert_eq!(rig.disk.usage().parked_bytes, 0);
        drop(rig);
        assert_eq!((budget.used(), process.open_handles()), (0, 0), "bytes and handles held");
    }
    assert_eq!(sim.open_handles(), 0);
    case.reopened();
    fired
}

fn sweep(work: Work) {
    let base = AssertUnwindSafe(work.prepared());
    let of_seed = |seed| {
        let base = &base;
        each_fault(&format!("{work:?}"), Some(seed), |fault, when| {
            run(work, base, fault, when, seed)
        })
    };
    let runs: u64 = seeds(2).map(of_seed).sum();
    println!("faults/{work:?}: {runs} runs");
}

#[test]
fn opening() {
    WORKS.into_iter().filter(|w| w.opens()).for_each(sweep);
}

#[test]
fn reading() {
    [Work::Get, Work::GetPart, Work::GetAll].into_iter().for_each(sweep);
}

#[test]
fn writing() {
    [Work::Put, Work::PutMany, Work::Finish].into_iter().for_each(sweep);
}

#[test]
fn making_room() {
    sweep(Work::Evict);
}

#[test]
fn erasing() {
    sweep(Work::Erase);
}
