//! A request that could never fit waited for ever for room.

use std::time::{Duration, Instant};

use kvist::format::{BlockDType, BlockLayout};
use kvist::vfs::sim::SimVfs;
use kvist::{BlockRows, Error, Refused, SpaceOptions, Strides};

use crate::common::{MODEL, simulated};

#[test]
fn what_cannot_fit_is_refused_at_once() {
    let started = Instant::now();
    let patient = simulated(SimVfs::new(1), 8).backpressure(Duration::from_secs(3600));
    let store = patient.host_bytes(1 << 20).build().unwrap();
    let huge = BlockLayout::new(BlockDType::F32, 64, 32, 8, 128);
    let refused = store.space(SpaceOptions::new(MODEL, huge)).unwrap_err();
    assert!(matches!(refused, Error::OverBudget { .. }), "{refused}");
    // Larger than a segment: it stays in memory, and the disk tier says so.
    let large = BlockLayout::new(BlockDType::U8, 16, 8, 8, 64);
    let space = store.space(SpaceOptions::new(MODEL, large.clone())).unwrap();
    let block = vec![1; large.bytes()];
    let rows = BlockRows::new(&large, &block, Strides::canonical(&large)).unwrap();
    let prefix = space.prefix(&(0..16).collect::<Vec<u32>>()).unwrap();
    assert_eq!(space.put(&prefix, 0, &[rows]).unwrap(), [Ok::<(), Refused>(())]);
    store.run_pending();
    assert_eq!(store.stats().write_errors, 1);
    assert_eq!(space.contains(&prefix), 1);
    assert!(started.elapsed() < Duration::from_secs(60));
}
