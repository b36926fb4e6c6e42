//! A load that failed was counted as a completion, and the rows that were never written were used.

use kvist::vfs::sim::Call;
use kvist::vfs::sim::{Fault, SimVfs, Trigger};
use kvist::{BlockRows, BlockRowsMut, MissReason, Strides};

use crate::common::{bytes_of, layout, simulated, space};

#[test]
fn a_restore_ends_before_the_block_that_failed() {
    let (sim, layout) = (SimVfs::new(1), layout());
    let store = simulated(sim.process(), 8).build().unwrap();
    let space_of = space(&store, 0);
    let prefix = space_of.prefix(&(0..16 * 6).collect::<Vec<u32>>()).unwrap();
    let blocks: Vec<Vec<u8>> = (0..6).map(|n| bytes_of(0, n)).collect();
    let strides = Strides::canonical(&layout);
    let rows: Vec<BlockRows> =
        blocks.iter().map(|b| BlockRows::new(&layout, b, strides).unwrap()).collect();
    assert!(space_of.put(&prefix, 0, &rows).unwrap().iter().all(Result::is_ok));
    store.run_pending();
    drop((space_of, store));
    let store = simulated(sim.process(), 8).build().unwrap();
    let space = space(&store, 0);
    // The fourth block's bytes are damaged on disk.
    let path = sim.files().into_iter().find(|f| f.path.contains("seg-")).unwrap().path;
    let at = sim.bytes(&path).unwrap().windows(16).position(|w| w == &blocks[3][..16]).unwrap();
    sim.flip(&path, at as u64 * 8);
    let mut outs: Vec<Vec<u8>> = (0..6).map(|_| vec![0xEE; layout.bytes()]).collect();
    let mut rows: Vec<BlockRowsMut> =
        outs.iter_mut().map(|o| BlockRowsMut::new(&layout, o, strides).unwrap()).collect();
    let restored = space.get(&prefix, 0..6, &mut rows).unwrap();
    assert_eq!((restored.blocks, restored.miss), (3, Some(MissReason::Checksum)));
    assert!((0..3).all(|i| outs[i] == blocks[i]));
    assert!(outs[3..].iter().flatten().all(|b| *b == 0xEE), "rows of later blocks are left alone");
    assert!(space.lease(&prefix.keys()[3]).is_none(), "its frame is never leased");
    assert_eq!(space.contains(&prefix), 3);
    // The same where the disk does not answer.
    sim.inject(Fault::Stuck, Trigger::from(1).on(Call::Read));
    let mut out = vec![0xEE; layout.bytes()];
    let mut rows = [BlockRowsMut::new(&layout, &mut out, strides).unwrap()];
    let lost = space.prefix_of_keys(vec![prefix.keys()[5]]);
    let before = store.stats().gets;
    let restored = space.get(&lost, 0..1, &mut rows).unwrap();
    assert!(restored.blocks == 1 || restored.miss == Some(MissReason::Timeout), "{restored:?}");
    assert_eq!(store.stats().gets - before, restored.blocks as u64);
}
