//! After a restart new blocks were written over blocks that the index still had.

use kvist::vfs::sim::SimVfs;

use crate::common::{get, put, simulated, space};

#[test]
fn new_blocks_never_share_bytes_with_old_ones() {
    let mut sim = SimVfs::new(1);
    for round in 0..12u32 {
        let store = simulated(sim.process(), 60).build().unwrap();
        let mine = space(&store, 0);
        for n in 0..round * 10 {
            assert_eq!(get(&mine, 0, n), Ok(()), "block {n} in round {round}");
        }
        let old: Vec<(String, Vec<u8>)> = sim
            .files()
            .into_iter()
            .filter(|f| f.path.contains("seg-"))
            .map(|f| (f.path.clone(), sim.bytes(&f.path).unwrap()))
            .collect();
        for n in round * 10..round * 10 + 10 {
            put(&mine, 0, n).unwrap();
            store.run_pending();
        }
        for (path, bytes) in old {
            assert_eq!(sim.bytes(&path), Some(bytes), "{path} is of a former run");
        }
        // Killed, or the power fails: what was pending is lost.
        if round % 2 == 0 {
            sim = sim.images().get(0);
        } else {
            sim = sim.fork(u64::from(round));
        }
    }
}
