//! A block whose writing failed was listed for ever, and restored as garbage.

use kvist::MissReason;
use kvist::vfs::sim::{Fault, SimVfs, Trigger};

use crate::common::{get, prefix, put, simulated, space};

#[test]
fn a_block_that_could_not_be_written_is_missing_for_ever_after() {
    for fault in [Fault::WriteIo, Fault::SyncIo, Fault::WriteNoSpace, Fault::DirSyncIo] {
        let sim = SimVfs::new(1);
        let store = simulated(sim.process(), 8).host_bytes(8_000).build().unwrap();
        let space = space(&store, 0);
        sim.inject(fault, Trigger::from(1));
        put(&space, 0, 1).unwrap();
        store.run_pending();
        // Others take its place in memory.
        for n in 2..8 {
            put(&space, 0, n).unwrap();
            store.run_pending();
        }
        assert_eq!(space.contains(&prefix(&space, 1)), 0, "{fault:?}");
        assert_eq!(get(&space, 0, 1), Err(MissReason::Absent), "{fault:?}");
        let stats = store.stats();
        assert!(stats.write_errors + stats.throttled >= 6, "{fault:?}: {stats:?}");
        sim.heal();
        drop((store, space));
        let store = simulated(sim.process(), 8).build().unwrap();
        let space = crate::common::space(&store, 0);
        assert_eq!(get(&space, 0, 1), Err(MissReason::Absent), "{fault:?} after a restart");
    }
}
