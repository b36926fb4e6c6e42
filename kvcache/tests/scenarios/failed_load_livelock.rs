//! The index said "there", the load failed, the index said "there" again, for ever.

use kvist::vfs::sim::{Call, Fault, SimVfs, Trigger};
use kvist::{DiskOptions, MissReason, PrefixStore};

use crate::common::{SEGMENT, get, prefix, put, simulated, space};

#[test]
fn after_a_failed_load_the_block_is_not_promised_again() {
    let faults = [Fault::ReadIo, Fault::BitFlip, Fault::Gone, Fault::Truncated, Fault::Stuck];
    for fault in faults {
        for sealed in [false, true] {
            let sim = SimVfs::new(3);
            let open = || {
                let options = DiskOptions::new("/store", 8 * SEGMENT).segment_bytes(SEGMENT);
                let options = if sealed { options.seal([4; 32]) } else { options };
                simulated(sim.process(), 8).disk(options).build().unwrap()
            };
            let store: PrefixStore = open();
            put(&space(&store, 0), 0, 1).unwrap();
            store.run_pending();
            drop(store);
            let store = open();
            let space = space(&store, 0);
            sim.inject(fault, Trigger::from(1).on(Call::Read));
            assert_eq!(space.contains(&prefix(&space, 1)), 1);
            let reason = match get(&space, 0, 1) {
                // The bit was in padding.
                Ok(()) if fault == Fault::BitFlip => continue,
                result => result.unwrap_err(),
            };
            assert_ne!(reason, MissReason::Absent, "{fault:?}: every miss has a reason");
            assert_eq!(
                space.contains(&prefix(&space, 1)),
                0,
                "{fault:?} sealed {sealed}: {reason:?}"
            );
            assert!(get(&space, 0, 1).is_err());
            let misses = store.stats().misses;
            assert!(misses.iter().any(|(name, n)| *name == reason.name() && *n > 0), "{misses:?}");
        }
    }
}
