//! Memory is short: published blocks make room for live sequences, and for blocks of the store.

use std::time::Duration;

use kvist::format::BlockLayout;
use kvist::vfs::sim::SimVfs;
use kvist::{Error, PrefixStore, SpaceOptions};

use crate::common::*;

/// A cache with room for about so many blocks.
fn small(blocks: u64) -> kvist::Cache {
    cache(blocks * (block() + 4 * 49) + 20_000)
}

#[test]
fn published_blocks_make_room_the_oldest_first() {
    let (cache, store) = (small(12), store());
    let space = space(&store);
    let of = |family: u32| tokens(family, 192, 0, 192);
    for family in 0..4 {
        let _ = space.publish(&filled(&cache, &of(family)), &of(family)).unwrap();
    }
    assert_eq!(store.stats().lent_blocks, 12);
    // Used again: the youngest now.
    drop(space.start(&cache, &of(0)).unwrap());
    let mut live = filled(&cache, &tokens(9, 130, 0, 130));
    let there = |family: u32| space.contains(&space.prefix(&of(family)).unwrap());
    assert_eq!([0, 1, 2, 3].map(there), [3, 0, 3, 3]);
    // The end of a prefix goes before its start.
    append(&mut live, &tokens(9, 300, 0, 300), 64).unwrap();
    assert_eq!([0, 1, 2, 3].map(there), [3, 0, 1, 3]);
    assert_eq!(get(&space, &usual(), &of(2)).blocks, 1);
    let longer = tokens(9, 12 * 64, 0, 12 * 64);
    append(&mut live, &longer, 100).unwrap();
    assert_eq!((store.stats().lent_blocks, store.stats().host_evicted), (0, 12));
    check(&live, &longer);
    let full = append(&mut live, &tokens(9, 13 * 64, 0, 13 * 64), 64).unwrap_err();
    assert!(matches!(full, Error::OverBudget { .. }), "{full}");
}

#[test]
fn what_live_sequences_hold_is_not_given_back() {
    let (cache, store) = (small(12), store());
    let space = space(&store);
    let (old, young) = (tokens(1, 320, 0, 320), tokens(2, 320, 0, 320));
    let live = filled(&cache, &old);
    let _ = space.publish(&live, &old).unwrap();
    let _ = space.publish(&filled(&cache, &young), &young).unwrap();
    let other = filled(&cache, &tokens(3, 256, 0, 256));
    // Of the older blocks none would have made room.
    assert_eq!(space.contains(&space.prefix(&old).unwrap()), 5);
    assert_eq!(space.contains(&space.prefix(&young).unwrap()), 3);
    let mut other = other;
    for n in 257.. {
        if append(&mut other, &tokens(3, n, 0, n), 64).is_err() {
            break;
        }
    }
    assert_eq!(space.contains(&space.prefix(&young).unwrap()), 0);
    assert_eq!(space.contains(&space.prefix(&old).unwrap()), 5);
    assert_eq!(space.start(&cache, &old).unwrap().shared, 5);
    check(&live, &old);
}

#[test]
fn pages_published_several_times_make_room() {
    for len in [320, 350] {
        let (cache, store) = (small(8), store());
        let of = |n: u8| SpaceOptions::new([n; 32], BlockLayout::of(&usual()));
        let spaces = [1, 2, 3].map(|n| store.space(of(n)).unwrap());
        let all = tokens(1, len, 0, len);
        let sequence = filled(&cache, &all);
        for space in &spaces {
            assert_eq!(space.publish(&sequence, &all).unwrap().new, 5);
        }
        assert_eq!(cache.stats().page_bytes, len.div_ceil(64) as u64 * block());
        drop(sequence);
        let live = filled(&cache, &tokens(2, 8 * 64, 0, 8 * 64));
        assert_eq!(store.stats().lent_blocks, 0);
        drop(live);
    }
}

#[test]
fn blocks_that_wait_to_be_written_make_room_too() {
    let (cache, sim) = (small(6), SimVfs::new(1));
    let store = stored(&sim).build().unwrap();
    let space = space(&store);
    let all = tokens(1, 320, 0, 320);
    let _ = space.publish(&filled(&cache, &all), &all).unwrap();
    assert!(store.stats().queued_bytes >= 5 * block());
    let live = filled(&cache, &tokens(2, 384, 0, 384));
    assert_eq!((store.stats().queued_bytes, store.stats().throttled), (0, 5));
    drop(live);
    // No more than has to leave does so, the end before the start.
    let _ = space.publish(&filled(&cache, &all), &all).unwrap();
    let live = filled(&cache, &tokens(2, 192, 0, 192));
    assert_eq!(store.stats().queued_bytes, 3 * block());
    assert_eq!(space.contains(&space.prefix(&all).unwrap()), 3);
    drop(live);
    let _ = space.evict(space.prefix(&all).unwrap().keys());
    // Written in time, they come back from disk.
    let _ = space.publish(&filled(&cache, &all), &all).unwrap();
    store.run_pending();
    let live = filled(&cache, &tokens(3, 384, 0, 384));
    assert_eq!(store.stats().lent_blocks, 0);
    drop(live);
    let started = space.start(&cache, &all).unwrap();
    assert_eq!((started.from_disk, started.sequence.len()), (5, 320));
    check(&started.sequence, &all);
    assert!(store.flush(Duration::from_secs(10)));
}

#[test]
fn the_store_evicts_its_own_memory_before_entries() {
    let (cache, geometry) = (cache(16 << 20), usual());
    let store = PrefixStore::builder().host_bytes(4 * (block() + 600)).build().unwrap();
    let space = space(&store);
    let lent = tokens(1, 320, 0, 320);
    let _ = space.publish(&filled(&cache, &lent), &lent).unwrap();
    for family in 2..8 {
        put(&space, &geometry, &tokens(family, 64, 0, 64), 0..1);
    }
    // Lent blocks would have made no room for those.
    assert_eq!(get(&space, &geometry, &lent).blocks, 5);
    assert_eq!(store.stats().host_evicted, 2);
    // Entries alone evict what is oldest in the end.
    for family in 10..60 {
        let many = tokens(family, 640, 0, 640);
        let published = space.publish(&filled(&cache, &many), &many).unwrap();
        assert_eq!(published.refused, None);
        assert_eq!(store.stats().throttled, 0);
    }
    let stats = store.stats();
    assert!(stats.host_used_bytes <= stats.host_budget_bytes);
}

#[test]
fn starting_in_a_full_cache_gives_what_fits() {
    let store = store();
    let space = space(&store);
    let all = tokens(1, 640, 0, 640);
    put(&space, &usual(), &all, 0..10);
    let cache = small(6);
    let live = filled(&cache, &tokens(2, 128, 0, 128));
    let started = space.start(&cache, &all).unwrap();
    assert_eq!(started.miss, Some(kvist::MissReason::Busy));
    let len = started.sequence.len();
    assert!((3 * 64..=4 * 64).contains(&len), "{len}");
    check(&started.sequence, &all[..len]);
    check(&live, &tokens(2, 128, 0, 128));
}
