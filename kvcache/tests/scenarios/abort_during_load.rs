//! Loads that were given up half way kept frames, permits and leases.

use std::time::Duration;

use kvist::vfs::sim::{Call, Fault, SimVfs, Trigger};

use crate::common::{prefix, put, simulated, soak, space};

#[test]
fn loads_given_up_at_any_moment_leave_nothing_behind() {
    let sim = SimVfs::new(1);
    let store = simulated(sim.process(), 30).host_bytes(40_000).build().unwrap();
    let space_of = space(&store, 0);
    for n in 0..64 {
        put(&space_of, 0, n).unwrap();
        store.run_pending();
    }
    drop((space_of, store));
    let store = simulated(sim.process(), 30).host_bytes(40_000).build().unwrap();
    let space = space(&store, 0);
    let handles = sim.open_handles();
    for round in 0..10_000 * soak() {
        let n = (round % 64) as u32;
        let fault = match round % 7 {
            0 => Some(sim.inject(Fault::Stuck, Trigger::nth(1).on(Call::Read))),
            1 => Some(sim.inject(Fault::Slow, Trigger::nth(1).on(Call::Read))),
            _ => None,
        };
        let ticket = space.prefetch(&prefix(&space, n), 0..1);
        match round % 4 {
            // Before it began, while nobody looks, after it is done.
            0 => drop(ticket),
            1 => {
                ticket.cancel();
                store.run_pending();
                assert!(ticket.is_done());
            }
            2 => {
                store.run_pending();
                drop(ticket);
            }
            _ => {
                store.run_pending();
                let _ = ticket.wait(Duration::ZERO);
            }
        }
        if let Some(fault) = fault {
            sim.remove(fault);
            sim.release();
            sim.advance(Duration::from_secs(3600));
        }
        if round % 16 == 0 {
            let key = prefix(&space, n).keys()[0];
            drop(space.lease(&key));
        }
    }
    store.run_pending();
    sim.release();
    let stats = store.stats();
    let disk = stats.disk.unwrap();
    assert_eq!((disk.parked_bytes, disk.records), (0, 64));
    assert_eq!(sim.open_handles(), handles, "handles held");
    // Nothing is pinned: every frame can be had again.
    let keys: Vec<_> = (0..64).map(|n| prefix(&space, n).keys()[0]).collect();
    space.evict(&keys);
    assert_eq!(store.stats().host_used_bytes, 0, "frames or permits are held");
}
