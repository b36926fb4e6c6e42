//! What the heap holds for the blocks of a prefix store, in a process that does nothing else. Their
//! bytes lie in mappings, which are not counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use kvist::format::{BlockDType, BlockLayout};
use kvist::policies::replace::Replace;
use kvist::{BlockRows, PrefixStore, SpaceOptions, Strides};

/// What a block may cost beside its bytes and its place in the order of replacement.
const METADATA: u64 = 128;

/// The system's allocator, counted.
struct Counting;

/// Bytes that it has given out.
static HELD: AtomicU64 = AtomicU64::new(0);

/// What an allocation takes in glibc: a word more, in multiples of 16.
fn cost(layout: Layout) -> u64 {
    (layout.size() as u64 + 8).next_multiple_of(16).max(32)
}

// SAFETY: everything is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(cost(layout), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HELD.fetch_sub(cost(layout), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_block_costs_no_more_beside_its_own_bytes_than_is_said() {
    let layout = BlockLayout::new(BlockDType::U8, 16, 1, 1, 16);
    let bytes = layout.bytes() as u64;
    // Just too few for the next doubling of a hash table, and just enough.
    for (replace, most) in
        [Replace::Lru, Replace::Adaptive].into_iter().flat_map(|r| [(r, 14_300), (r, 14_400)])
    {
        let metadata = METADATA + replace.block_bytes();
        let builder = PrefixStore::builder().host_bytes(most * (bytes + metadata));
        let store = builder.replace(replace).threads(false).build().unwrap();
        let space = store.space(SpaceOptions::new([1; 32], layout.clone())).unwrap();
        let block = vec![7; layout.bytes()];
        let rows = [BlockRows::new(&layout, &block, Strides::canonical(&layout)).unwrap()];
        let before = HELD.load(Ordering::Relaxed);
        // Many more than there is room for: blocks leave, too.
        for n in 0..6 * most as u32 {
            let prefix = space.prefix(&[n; 16]).unwrap();
            assert_eq!(space.put(&prefix, 0, &rows).unwrap(), [Ok(())]);
            drop(prefix);
            let held = HELD.load(Ordering::Relaxed) - before;
            let blocks = store.stats().host_blocks;
            // The smallest tables are for some dozens of entries.
            assert!(held <= metadata * blocks + 16_384, "{held} bytes for {blocks} blocks");
        }
        let stats = store.stats();
        assert!(stats.host_blocks >= most && stats.host_evicted > 4 * most);
        let charged = stats.host_used_bytes - stats.host_blocks * bytes;
        let held = HELD.load(Ordering::Relaxed) - before;
        println!(
            "{}, {} blocks: {:.1} bytes a block held, {:.1} charged",
            replace.name(),
            stats.host_blocks,
            held as f64 / stats.host_blocks as f64,
            charged as f64 / stats.host_blocks as f64,
        );
        assert!(charged <= metadata * stats.host_blocks);
        assert!(held <= charged + 16_384, "{held} bytes held, {charged} charged");
    }
}
