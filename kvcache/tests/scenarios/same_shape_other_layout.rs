//! Two layouts with the same number of bytes were taken for one.

use kvist::format::{AttentionKind, BlockDType, BlockLayout};
use kvist::vfs::sim::SimVfs;
use kvist::{BlockRows, BlockRowsMut, MissReason, SpaceOptions, Strides};

use crate::common::{MODEL, simulated};

#[test]
fn blocks_of_one_layout_are_not_those_of_another() {
    let sim = SimVfs::new(1);
    let base = BlockLayout::new(BlockDType::Bf16, 16, 2, 2, 32);
    let others = [
        BlockLayout { kv_heads: 2..4, ..base.clone() },
        BlockLayout { layers: 2..4, ..base.clone() },
        BlockLayout { layers: 0..4, kv_heads: 0..1, ..base.clone() },
        BlockLayout { dtype: BlockDType::F16, ..base.clone() },
        BlockLayout { dim_k: 48, dim_v: 16, ..base.clone() },
        BlockLayout { attention: AttentionKind::Window(64), ..base.clone() },
        BlockLayout { dtype: BlockDType::U8, dim_k: 64, dim_v: 64, ..base.clone() },
    ];
    let tokens: Vec<u32> = (0..16).collect();
    let store = simulated(sim.process(), 8).build().unwrap();
    let space = store.space(SpaceOptions::new(MODEL, base.clone())).unwrap();
    let prefix = space.prefix(&tokens).unwrap();
    let block = vec![7u8; base.bytes()];
    let rows = BlockRows::new(&base, &block, Strides::canonical(&base)).unwrap();
    assert_eq!(space.put(&prefix, 0, &[rows]).unwrap(), [Ok(())]);
    store.run_pending();
    for restart in [false, true] {
        let store = if restart { None } else { Some(store.clone()) };
        let store = store.unwrap_or_else(|| simulated(sim.fork(2), 8).build().unwrap());
        for other in &others {
            assert_eq!(other.bytes(), base.bytes());
            let space = store.space(SpaceOptions::new(MODEL, other.clone())).unwrap();
            let theirs = space.prefix(&tokens).unwrap();
            assert_ne!(theirs.keys(), prefix.keys(), "{other:?}");
            assert_eq!(space.contains(&theirs), 0);
            // And where somebody hands them the key.
            let stolen = space.prefix_of_keys(prefix.keys().to_vec());
            let mut out = vec![0; other.bytes()];
            let mut rows = [BlockRowsMut::new(other, &mut out, Strides::canonical(other)).unwrap()];
            let restored = space.get(&stolen, 0..1, &mut rows).unwrap();
            assert_eq!(restored.miss, Some(MissReason::LayoutMismatch), "{other:?}");
        }
    }
}
