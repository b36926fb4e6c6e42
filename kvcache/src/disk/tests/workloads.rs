//! What stores are put through, step by step, while their disk is recorded.

use std::ops::Range;

use super::oracle::{Allowed, Oracle};
use super::rig::{Numbers, OF_TENANT, Rig, Setup};
use crate::vfs::sim::{Call, Fault, SimVfs, Trigger};

/// A life of a store.
pub(super) struct Life {
    pub(super) setup: Setup,
    pub(super) sim: SimVfs,
    pub(super) rig: Option<Rig>,
    pub(super) oracle: Oracle,
    /// Points of the log, and what holds from there on.
    pub(super) moments: Vec<(usize, Allowed)>,
}

impl Life {
    /// A store that is made while the disk is recorded.
    pub(super) fn begin(setup: Setup, seed: u64) -> Life {
        let sim = SimVfs::new(seed);
        sim.record();
        let oracle = Oracle::default();
        let mut life = Life { setup, sim, rig: None, oracle, moments: vec![(0, Allowed::new())] };
        life.reopen();
        life
    }

    pub(super) fn rig(&self) -> &Rig {
        self.rig.as_ref().unwrap()
    }

    /// Ends a step.
    fn note(&mut self) {
        let rig = self.rig.take().unwrap();
        self.oracle.observe(&rig);
        self.rig = Some(rig);
        self.moments.push((self.sim.points(), self.oracle.allowed.clone()));
    }

    pub(super) fn reopen(&mut self) {
        self.rig = None;
        self.rig = Some(self.setup.open(self.sim.process()).unwrap());
        self.note();
    }

    pub(super) fn put(&mut self, ids: impl IntoIterator<Item = u32>) {
        let ids: Vec<u32> = ids.into_iter().collect();
        let results = self.rig().put(&ids);
        for (&n, result) in ids.iter().zip(&results) {
            let listed = result == &Err(super::super::Refused::AlreadyPresent);
            if !listed {
                self.oracle.put(n, result.is_ok());
            }
        }
        self.note();
    }

    pub(super) fn hit(&mut self, ids: Range<u32>) {
        let ids: Vec<u32> = ids.collect();
        let _ = self.rig().get_all(&ids);
        self.note();
    }

    fn erase(&mut self, tenant: u32) {
        match self.rig().disk.erase_tenant(super::rig::tag(tenant)) {
            Ok(_) => self.oracle.erased(tenant),
            Err(_) => self.oracle.maybe_erased(tenant),
        }
        self.note();
    }

    fn finish(&mut self) {
        self.rig().disk.finish_segments();
        self.note();
    }

    fn remove(&mut self, n: u32) {
        self.rig().disk.remove(&super::rig::key(n));
        self.note();
    }
}

/// Commits of several sizes.
pub(super) fn commits(life: &mut Life) {
    let mut n = 0;
    for size in [1, 2, 5, 1, 9, 3, 1, 1, 7, 2] {
        life.put(n..n + size);
        n += size;
    }
    life.finish();
    life.put(n..n + 4);
}

/// More than fits in a segment.
pub(super) fn rolls(life: &mut Life) {
    for n in (0..150).step_by(10) {
        life.put(n..n + 10);
    }
}

/// A budget that is full: old segments leave, records that were read move on.
pub(super) fn evictions(life: &mut Life) {
    for n in (0..260).step_by(13) {
        life.put(n..n + 13);
        life.hit(n / 2..n / 2 + 6);
    }
}

/// Tenants that come, are erased, and come back.
pub(super) fn erasures(life: &mut Life) {
    for round in 0..3 {
        for tenant in 0..3 {
            let n = tenant * OF_TENANT + round * 8;
            life.put(n..n + 8);
        }
        life.hit(0..4);
        life.erase(round);
        life.put(OF_TENANT * round..OF_TENANT * round + 2);
    }
    life.reopen();
    life.erase(1);
    life.reopen();
    life.put(OF_TENANT + 500..OF_TENANT + 503);
}

/// Erasing while the budget is full: what says so must move on, too.
pub(super) fn erasures_when_full(life: &mut Life) {
    for n in (0..180).step_by(12) {
        life.put(n..n + 12);
        life.put(OF_TENANT + n..OF_TENANT + n + 4);
        life.hit(OF_TENANT + n..OF_TENANT + n + 4);
        if n == 96 {
            life.erase(1);
        }
    }
    life.erase(0);
    life.put(OF_TENANT * 2..OF_TENANT * 2 + 30);
}

/// Sessions that follow one another, ended well and not.
pub(super) fn sessions(life: &mut Life) {
    for session in 0..6 {
        let n = session * 20;
        life.put(n..n + 12);
        life.put(n + 12..n + 17);
        if session % 2 == 0 {
            life.finish();
        }
        life.remove(n);
        life.reopen();
    }
    life.put([0, 20, 40]);
}

/// Segments of their own for sealed tenants.
pub(super) fn sealed(life: &mut Life) {
    for round in 0..4 {
        for tenant in 0..3 {
            let n = tenant * OF_TENANT + round * 6;
            life.put(n..n + 6);
        }
        life.hit(0..8);
    }
    life.erase(1);
    life.reopen();
    life.put(OF_TENANT + 100..OF_TENANT + 104);
    life.put(100..140);
}

/// Reads that fail, so that segments are put aside; syncs that fail, so that they are poisoned.
pub(super) fn quarantine(life: &mut Life) {
    for n in (0..80).step_by(8) {
        life.put(n..n + 8);
    }
    let read = life.sim.inject(Fault::ReadIo, Trigger::from(1).on(Call::Read));
    life.hit(0..3);
    life.sim.remove(read);
    life.put(200..206);
    let sync = life.sim.inject(Fault::SyncIo, Trigger::nth(1));
    life.put(300..306);
    life.sim.remove(sync);
    life.put(300..304);
    life.reopen();
    life.put(400..430);
}

/// Everything in some order.
pub(super) fn anything(life: &mut Life, seed: u64) {
    let mut numbers = Numbers::new(seed);
    for _ in 0..30 {
        let tenant = numbers.below(3) as u32 * OF_TENANT;
        let n = tenant + numbers.below(120) as u32;
        match numbers.below(12) {
            0 => life.erase(tenant / OF_TENANT),
            1 => life.reopen(),
            2 => life.finish(),
            3 => life.remove(n),
            4 | 5 => life.hit(n..n + 5),
            _ => life.put(n..n + 1 + numbers.below(14) as u32),
        }
    }
}
