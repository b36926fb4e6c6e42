//! Eight threads at once: what each saw of a block can be put in an order that one thread could have
//! done it in.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;

use super::super::{MissReason, Refused};
use super::rig::{Numbers, OF_TENANT, Rig, Setup, key, seeds, tag};
use crate::vfs::sim::SimVfs;

/// What somebody did to a block, and saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    /// It is there afterwards.
    Put,
    /// It was there: put said so, or get found it.
    Found,
    Missed,
    /// Removed or erased; whether it was there is not told.
    Removed,
}

#[derive(Clone, Copy, Debug)]
struct Event {
    n: u32,
    did: Did,
    from: u64,
    to: u64,
}

/// Whether the events of one block have an order: Wing and Gong's search, with memory.
fn has_order(events: &[Event]) -> bool {
    assert!(events.len() <= 64);
    let all = (1u128 << events.len()) as u64;
    let all = all.wrapping_sub(1);
    let mut seen = HashSet::new();
    let mut stack = vec![(0u64, false)];
    while let Some((done, present)) = stack.pop() {
        if done == all {
            return true;
        }
        if !seen.insert((done, present)) {
            continue;
        }
        let left = |i: &usize| done & (1 << i) == 0;
        let first_end = (0..events.len()).filter(left).map(|i| events[i].to).min().unwrap();
        for i in (0..events.len()).filter(left).filter(|&i| events[i].from <= first_end) {
            let next = match (events[i].did, present) {
                (Did::Put, _) => Some(true),
                (Did::Found, true) => Some(true),
                (Did::Missed, false) => Some(false),
                (Did::Removed, _) => Some(false),
                _ => None,
            };
            stack.extend(next.map(|present| (done | (1 << i), present)));
        }
    }
    false
}

#[test]
fn the_search_finds_what_is_wrong() {
    let event = |did, from, to| Event { n: 0, did, from, to };
    assert!(has_order(&[event(Did::Put, 0, 5), event(Did::Missed, 1, 2), event(Did::Found, 3, 4)]));
    assert!(!has_order(&[event(Did::Put, 0, 1), event(Did::Missed, 2, 3)]));
    let back = [event(Did::Put, 0, 1), event(Did::Removed, 2, 3), event(Did::Found, 4, 5)];
    assert!(!has_order(&back));
}

const KEYS: u64 = 4;

fn act(rig: &Rig, numbers: &mut Numbers, clock: &AtomicU64, events: &Mutex<Vec<Event>>) {
    let n = numbers.below(KEYS) as u32 + if numbers.below(2) == 0 { 0 } else { OF_TENANT };
    let from = clock.fetch_add(1, SeqCst);
    let did = match numbers.below(8) {
        0..3 => match rig.put(&[n])[0] {
            Ok(()) => Did::Put,
            Err(Refused::AlreadyPresent) => Did::Found,
            Err(refused) => panic!("put {n}: {refused:?}"),
        },
        3..6 => match rig.get_all(&[n])[0] {
            Ok(()) => Did::Found,
            Err(MissReason::Absent) => Did::Missed,
            Err(reason) => panic!("get {n}: {reason:?}"),
        },
        6 => {
            rig.disk.remove(&key(n));
            Did::Removed
        }
        _ => {
            rig.disk.erase_tenant(tag(n / OF_TENANT)).unwrap();
            let to = clock.fetch_add(1, SeqCst);
            let first = n / OF_TENANT * OF_TENANT;
            let each = |n| Event { n, did: Did::Removed, from, to };
            events.lock().extend((first..first + KEYS as u32).map(each));
            return;
        }
    };
    let to = clock.fetch_add(1, SeqCst);
    events.lock().push(Event { n, did, from, to });
}

#[test]
fn histories_over_a_simulated_disk() {
    let mut histories = 0;
    for seed in seeds(150) {
        let rig = Setup::ROOMY.open(SimVfs::new(seed)).unwrap();
        let (clock, events) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (rig, clock, events) = (&rig, &clock, &events);
                scope.spawn(move || {
                    let mut numbers = Numbers::new(seed * 8 + thread);
                    (0..14).for_each(|_| act(rig, &mut numbers, clock, events));
                });
            }
        });
        let events = events.into_inner();
        for first in [0, OF_TENANT] {
            for n in first..first + KEYS as u32 {
                let of: Vec<Event> = events.iter().copied().filter(|e| e.n == n).collect();
                assert!(of.len() > 64 || has_order(&of), "KVIST_SEED={seed} block {n}: {of:?}");
                histories += u64::from(of.len() <= 64);
            }
        }
    }
    println!("threads/sim: {histories} histories");
}
