//! Every fault at every call of saving, opening and deleting: an answer or an error, never another
//! sequence; what was acknowledged is there afterwards, and everything is given back.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use super::*;
use crate::vfs::sim::sweep::each_fault;
use crate::vfs::sim::{Fault, Trigger, When};

/// What is done while the fault is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Open,
    Save,
    SaveNew,
    OpenSession,
    Delete,
}

const WORKS: [Work; 5] = [Work::Open, Work::Save, Work::SaveNew, Work::OpenSession, Work::Delete];

fn setup() -> Setup {
    Setup { segment: 64 << 10, host_bytes: 1 << 20, ..Setup::default() }
}

/// Whether the fault changes what is on the disk, or what was put aside for it stays so.
fn damages(fault: Fault) -> bool {
    matches!(fault, Fault::Truncated | Fault::LostWrite | Fault::Misdirected | Fault::ReadIo)
}

/// Whether what was read wrong once is not served again by that process.
fn misleads(fault: Fault) -> bool {
    damages(fault)
        || matches!(fault, Fault::BitFlip | Fault::StaleRead | Fault::Gone | Fault::ShortRead)
}

/// A directory with a session of 200 tokens.
fn prepared() -> SimVfs {
    let sim = SimVfs::new(1);
    let cache = setup().open(&sim);
    filled(&cache, 1, 200).save("a").unwrap();
    drop(cache);
    sim.fork(1)
}

/// Lengths that the session may have now; 0 is none.
fn act(work: Work, sim: &SimVfs, cache: Option<Cache>) -> Vec<usize> {
    let Some(cache) = cache else {
        let Ok(cache) = setup().builder(sim).build() else { return vec![200] };
        if let Ok(s) = cache.open_session("a") {
            assert!(holds(&s, 1, 200).unwrap_or(true));
        }
        return vec![200];
    };
    match work {
        Work::Open => unreachable!("there is no cache yet"),
        Work::Save => {
            let Ok(mut s) = cache.open_session("a") else { return vec![200] };
            append(&mut s, 1, 150).unwrap();
            if s.save("a").is_ok() { vec![350] } else { vec![200, 350] }
        }
        Work::SaveNew => {
            let s = filled(&cache, 1, 350);
            if s.save("a").is_ok() { vec![350] } else { vec![200, 350] }
        }
        Work::OpenSession => {
            if let Ok(s) = cache.open_session("a") {
                assert!(holds(&s, 1, 200).unwrap_or(true), "opened, and is another");
            }
            vec![200]
        }
        Work::Delete => match cache.delete_session("a") {
            Ok(_) => vec![0],
            Err(_) => vec![0, 200],
        },
    }
}

/// One of these is there, and the store works.
fn healed(sim: &SimVfs, cache: &Cache, lens: &[usize], lossy: bool) {
    sim.advance(Duration::from_secs(3600));
    match cache.open_session("a") {
        Ok(s) => {
            let same = holds(&s, 1, s.len());
            assert!(lens.contains(&s.len()) && same.unwrap_or(lossy), "{} of {lens:?}", s.len());
        }
        Err(e) => assert!(lens.contains(&0) || lossy, "{e}, not {lens:?}"),
    }
}

/// Runs a case; how often the fault struck.
fn run(work: Work, base: &SimVfs, fault: Fault, when: When) -> u64 {
    let sim = base.fork(1);
    let process = sim.process();
    let cache = (work != Work::Open).then(|| setup().open(&process));
    let handle = cache.clone();
    let watch = sim.watch_memory();
    let id = sim.inject(fault, Trigger::new(when));
    let lens = act(work, &process, cache);
    let fired = sim.fired(id);
    sim.heal();
    sim.release();
    drop(watch);
    if fired == 0 {
        return 0;
    }
    if let Some(cache) = handle {
        healed(&sim, &cache, &lens, misleads(fault));
        assert_eq!(cache.stats().used_bytes, 0, "memory is held");
        assert_eq!(cache.disk().unwrap().parked_bytes, 0);
        drop(cache);
    }
    assert_eq!(sim.open_handles(), 0);
    // A directory whose secret cannot be read gets a new one, and everything in it is a miss.
    let secret = |sim: &SimVfs| sim.bytes("store/cache.key");
    let lossy = damages(fault) || secret(&sim) != secret(base);
    let cache = match setup().builder(&sim).build() {
        Ok(cache) => cache,
        Err(Error::BadMeta { .. }) if damages(fault) => return fired,
        Err(e) => panic!("cannot be opened any more: {e}"),
    };
    healed(&sim, &cache, &lens, lossy);
    filled(&cache, 2, 100).save("b").unwrap();
    assert!(holds(&cache.open_session("b").unwrap(), 2, 100).unwrap());
    fired
}

fn sweep(work: Work) {
    let base = AssertUnwindSafe(prepared());
    let runs = each_fault(&format!("{work:?}"), None, |fault, when| run(work, &base, fault, when));
    println!("sessions/faults/{work:?}: {runs} runs");
}

#[test]
fn opening() {
    WORKS.into_iter().filter(|w| matches!(w, Work::Open | Work::OpenSession)).for_each(sweep);
}

#[test]
fn saving() {
    WORKS.into_iter().filter(|w| matches!(w, Work::Save | Work::SaveNew)).for_each(sweep);
}

#[test]
fn deleting() {
    sweep(Work::Delete);
}
