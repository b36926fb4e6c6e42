//! Eight threads at once: what each saw of a block can be put in an order that one thread could have
//! done it in.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;

use super::super::{MissReason, Refused};
use super::history::{self, Did};
use super::rig::{Numbers, OF_TENANT, Rig, Setup, key, seeds, tag};
use crate::vfs::sim::SimVfs;

type Event = history::Event<u32>;

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
            let each = |block| Event { block, did: Did::Removed, from, to };
            events.lock().extend((first..first + KEYS as u32).map(each));
            return;
        }
    };
    let to = clock.fetch_add(1, SeqCst);
    events.lock().push(Event { block: n, did, from, to });
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
        let blocks: Vec<u32> =
            [0, OF_TENANT].into_iter().flat_map(|first| first..first + KEYS as u32).collect();
        histories += history::check(seed, &blocks, &events.into_inner());
    }
    println!("threads/sim: {histories} histories");
}
