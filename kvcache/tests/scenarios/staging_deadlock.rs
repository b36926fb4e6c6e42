//! Stores held staging memory that loads waited for, and the other way round.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvist::vfs::sim::{Call, Fault, SimVfs, Trigger};
use kvist::{DiskOptions, PrefixStore};

use crate::common::{SEGMENT, get, prefix, put, space};

#[test]
fn with_hardly_any_memory_everything_goes_on() {
    let sim = SimVfs::new(1);
    let options = DiskOptions::new("/store", 30 * SEGMENT).segment_bytes(SEGMENT);
    let builder = PrefixStore::builder().host_bytes(9_000).queue_bytes(4_000).disk(options);
    let store = builder.vfs(Arc::new(sim.process())).build().unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let store = &store;
            scope.spawn(move || {
                let space = space(store, thread % 3);
                for i in 0..200 {
                    let n = (i * 7 + thread) % 40;
                    let _ = put(&space, thread % 3, n);
                    let _ = get(&space, thread % 3, (n + 13) % 40);
                    if i % 10 == 0 {
                        drop(space.prefetch(&prefix(&space, n), 0..1));
                    }
                }
            });
        }
    });
    assert!(store.flush(Duration::from_secs(60)));
    assert!(started.elapsed() < Duration::from_secs(60), "somebody waited for somebody");
    let stats = store.stats();
    assert!(stats.host_used_bytes <= stats.host_budget_bytes && stats.queued_bytes == 0);
}

#[test]
fn a_disk_that_hangs_while_it_writes_does_not_stop_reads() {
    let sim = SimVfs::new(1);
    let options = DiskOptions::new("/store", 30 * SEGMENT).segment_bytes(SEGMENT);
    let store = PrefixStore::builder().host_bytes(1 << 20).disk(options);
    let store = store.vfs(Arc::new(sim.process())).build().unwrap();
    let space = space(&store, 0);
    put(&space, 0, 1).unwrap();
    assert!(store.flush(Duration::from_secs(60)));
    sim.block_when_stuck(true);
    sim.inject(Fault::Stuck, Trigger::nth(1).on(Call::SyncData));
    put(&space, 0, 2).unwrap();
    // The writer hangs in the kernel; readers and other writers go on.
    assert!(!store.flush(Duration::from_millis(50)));
    assert_eq!((get(&space, 0, 1), get(&space, 0, 2)), (Ok(()), Ok(())));
    assert!((3..30).all(|n| put(&space, 0, n).is_ok()));
    sim.release();
    assert!(store.flush(Duration::from_secs(60)));
}
