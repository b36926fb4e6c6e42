//! Which blocks leave memory, by their order of replacement and by what a server says of them, and which are
//! written to disk.

use std::time::Duration;

use kvist::policies::replace::{Admit, Replace, SOURCES, Share, Watermarks};
use kvist::vfs::sim::SimVfs;
use kvist::{BlockRows, Error, Prefix, PrefixBuilder, PrefixStore, Space, SpaceOptions, Strides};

use crate::common::{MODEL, TOKENS, get, layout, prefix, put, salt, simulated, space};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);
const SOURCE: u8 = 3;

/// A store with room for so many blocks.
fn roomy(builder: PrefixBuilder, replace: Replace, blocks: u64) -> PrefixBuilder {
    let each = layout().bytes() as u64 + 128 + replace.block_bytes();
    builder.replace(replace).host_bytes(blocks * each)
}

fn small(replace: Replace, blocks: u64) -> PrefixStore {
    roomy(PrefixStore::builder().threads(false), replace, blocks).build().unwrap()
}

/// A chain of blocks.
fn chain(space: &Space, first: u32, blocks: usize) -> Prefix {
    let tokens: Vec<u32> = (0..(blocks * TOKENS) as u32).map(|i| first + i / 3).collect();
    space.prefix(&tokens).unwrap()
}

fn put_chain(space: &Space, prefix: &Prefix) {
    let (layout, bytes) = (layout(), vec![7; layout().bytes()]);
    let rows = BlockRows::new(&layout, &bytes, Strides::canonical(&layout)).unwrap();
    for block in 0..prefix.len() {
        assert_eq!(space.put(prefix, block, &[rows]).unwrap(), [Ok(())]);
    }
}

/// Of these single blocks, those that are there.
fn there(space: &Space, blocks: impl IntoIterator<Item = u32>) -> Vec<u32> {
    blocks.into_iter().filter(|&n| space.contains(&prefix(space, n)) == 1).collect()
}

#[test]
fn the_end_of_a_chain_leaves_before_its_start() {
    for replace in Replace::ALL {
        let store = small(replace, 8);
        let space = space(&store, 0);
        let long = chain(&space, 1000, 6);
        put_chain(&space, &long);
        for n in 0..5 {
            put(&space, 0, n).unwrap();
            // All of it that is there can be used.
            let leading = space.contains(&long) as u64;
            let singles = there(&space, 0..5).len() as u64;
            assert_eq!(leading + singles, store.stats().host_blocks, "{replace:?} {n}");
        }
        assert_eq!(store.stats().host_blocks, 8);
    }
}

#[test]
fn a_chain_may_be_put_in_pieces() {
    let store = small(Replace::Lru, 8);
    let space = space(&store, 0);
    let long = chain(&space, 1000, 8);
    let (first, rest) = long.keys().split_at(4);
    put_chain(&space, &space.prefix_of_keys(first.to_vec()));
    put_chain(&space, &space.prefix_of_keys_after(&first[3], &first[1], rest.to_vec()));
    for n in 0..4 {
        put(&space, 0, n).unwrap();
        assert_eq!(space.contains(&long), 7 - n as usize);
    }
}

#[test]
fn what_is_used_again_outlives_a_scan() {
    let survivors = |replace| {
        let store = small(replace, 20);
        let space = space(&store, 0);
        for n in 0..10 {
            put(&space, 0, n).unwrap();
        }
        for n in 0..10 {
            get(&space, 0, n).unwrap();
        }
        for n in 100..160 {
            put(&space, 0, n).unwrap();
        }
        there(&space, 0..10).len()
    };
    assert_eq!(survivors(Replace::Lru), 0);
    let kept = [Replace::S3Fifo, Replace::Adaptive].map(survivors);
    assert!(kept.iter().all(|kept| *kept >= 8), "{kept:?}");
}

#[test]
fn closed_sessions_leave_first_and_wanted_ones_stay() {
    for replace in Replace::ALL {
        let store = small(replace, 12);
        let space = space(&store, 0);
        let chains: Vec<Prefix> = (1..4).map(|n| chain(&space, 1000 * n, 4)).collect();
        chains.iter().for_each(|chain| put_chain(&space, chain));
        space.wanted(&chains[0], LONG, SOURCE).unwrap();
        space.session_closed(&chains[2], SOURCE).unwrap();
        for n in 0..4 {
            put(&space, 0, n).unwrap();
        }
        let left: Vec<usize> = chains.iter().map(|chain| space.contains(chain)).collect();
        assert_eq!(left, [4, 4, 0], "{replace:?}");
        // The second chain and what came later make room now.
        for n in 4..30 {
            put(&space, 0, n).unwrap();
        }
        assert_eq!(space.contains(&chains[0]), 4, "{replace:?}");
        let [closed, wanted] = store.hint_precision(SOURCE).unwrap();
        assert!(closed > 0.9 && wanted > 0.9);
    }
}

#[test]
fn a_next_use_brings_blocks_back_in_time() {
    let store = roomy(simulated(SimVfs::new(1), 16), Replace::Lru, 4).build().unwrap();
    let space = space(&store, 0);
    for n in 0..8 {
        put(&space, 0, n).unwrap();
        store.run_pending();
    }
    let first = prefix(&space, 0);
    let in_memory = || space.lease(&first.keys()[0]).is_some();
    assert!(!in_memory());
    space.next_use(&first, LONG, SOURCE).unwrap();
    store.run_pending();
    assert!(!in_memory());
    space.next_use(&first, Duration::ZERO, SOURCE).unwrap();
    store.run_pending();
    assert!(in_memory());
    // No end of time is too far.
    space.next_use(&first, Duration::MAX, SOURCE).unwrap();

    // By the store's own threads, too.
    let store =
        roomy(simulated(SimVfs::new(2), 16), Replace::Lru, 4).threads(true).build().unwrap();
    let space = crate::common::space(&store, 0);
    for n in 0..8 {
        put(&space, 0, n).unwrap();
    }
    assert!(store.flush(Duration::from_secs(60)));
    let first = prefix(&space, 0);
    space.next_use(&first, LONG, SOURCE).unwrap();
    space.next_use(&first, Duration::from_millis(300), SOURCE).unwrap();
    let soon = std::time::Instant::now() + Duration::from_secs(60);
    while space.lease(&first.keys()[0]).is_none() {
        assert!(std::time::Instant::now() < soon, "it was not brought");
        std::thread::yield_now();
    }
}

#[test]
fn pinned_blocks_stay_until_they_are_let_go() {
    for replace in Replace::ALL {
        let store = small(replace, 8);
        let space = space(&store, 0);
        let long = chain(&space, 1000, 4);
        put_chain(&space, &long);
        let pinned = space.pin(&long).unwrap();
        assert_eq!((pinned.len(), pinned.is_empty()), (4, false));
        for n in 0..40 {
            put(&space, 0, n).unwrap();
        }
        assert_eq!(space.contains(&long), 4, "{replace:?}");
        drop(pinned);
        for n in 40..200 {
            put(&space, 0, n).unwrap();
        }
        // Others keep what was there for long from what is used once.
        if replace == Replace::Lru {
            assert_eq!(space.contains(&long), 0);
        }
    }
}

#[test]
fn tenants_have_their_shares_and_priorities_count() {
    for replace in Replace::ALL {
        let store = small(replace, 20);
        store.set_share(&salt(0), Share { floor: 0.5, ceiling: 1.0 }).unwrap();
        store.set_share(&salt(1), Share { floor: 0.0, ceiling: 0.25 }).unwrap();
        let error = store.set_share(&salt(2), Share { floor: 0.6, ceiling: 1.0 }).unwrap_err();
        assert!(matches!(error, Error::Select(_)), "{error}");
        let spaces = [0, 1, 2].map(|tenant| space(&store, tenant));
        let held = |tenant: u32| there(&spaces[tenant as usize], 0..60).len();
        for n in 0..8 {
            put(&spaces[0], 0, n).unwrap();
        }
        // Above its ceiling it makes room for itself, though there is room.
        for n in 0..12 {
            put(&spaces[1], 1, n).unwrap();
        }
        assert_eq!((held(0), held(1)), (8, 5), "{replace:?}");
        for n in 0..60 {
            put(&spaces[2], 2, n).unwrap();
        }
        assert_eq!(held(0), 8, "{replace:?}: below its floor nobody takes from it");

        let store = small(replace, 8);
        let of = |priority| {
            store.space(SpaceOptions::new(MODEL, layout()).salt(&salt(0)).priority(priority))
        };
        let (low, high) = (of(0).unwrap(), of(1).unwrap());
        (0..4).for_each(|n| put(&high, 0, n).unwrap());
        (10..40).for_each(|n| put(&low, 0, n).unwrap());
        assert_eq!(there(&high, 0..4), [0, 1, 2, 3], "{replace:?}");
    }
}

#[test]
fn what_comes_again_is_written() {
    let vfs = SimVfs::new(1);
    let open = || {
        let builder = roomy(simulated(vfs.clone(), 16), Replace::Lru, 4);
        builder.queue_bytes(1 << 20).admit(Admit::default()).build().unwrap()
    };
    let store = open();
    let space_ = space(&store, 0);
    (0..6).for_each(|n| put(&space_, 0, n).unwrap());
    store.run_pending();
    let written = |store: &PrefixStore| store.stats().disk.unwrap().records;
    assert_eq!((written(&store), store.stats().not_admitted), (0, 6));
    // Read from memory; computed and put again; foretold.
    get(&space_, 0, 4).unwrap();
    get(&space_, 0, 4).unwrap();
    put(&space_, 0, 0).unwrap();
    space_.wanted(&prefix(&space_, 5), LONG, SOURCE).unwrap();
    store.run_pending();
    assert_eq!(written(&store), 3);
    assert!(store.flush(Duration::from_secs(60)));
    drop((space_, store));
    let store = open();
    assert_eq!(there(&space(&store, 0), 0..6), [0, 4, 5]);
    // No faster than said.
    let rule = Admit { sightings: 1, bytes_per_tick: Some(1e-6), burst: 3000, ..Admit::default() };
    let store = simulated(SimVfs::new(2), 16).admit(rule).build().unwrap();
    (0..6).for_each(|n| put(&space(&store, 0), 0, n).unwrap());
    store.run_pending();
    assert_eq!((written(&store), store.stats().not_admitted), (1, 5));
    let error = simulated(SimVfs::new(3), 16).admit(Admit { sightings: 0, ..rule }).build();
    assert!(error.unwrap_err().to_string().contains("sightings must be at least 1, found 0"));
}

#[test]
fn room_is_made_before_it_is_needed() {
    let build = |marks| {
        let builder = PrefixStore::builder().threads(false).watermarks(marks);
        roomy(builder, Replace::Lru, 100).build()
    };
    let store = build(Watermarks::default()).unwrap();
    let space = space(&store, 0);
    (0..90).for_each(|n| put(&space, 0, n).unwrap());
    store.run_pending();
    assert_eq!(store.stats().host_blocks, 90);
    (90..95).for_each(|n| put(&space, 0, n).unwrap());
    assert_eq!(store.stats().host_blocks, 95);
    store.run_pending();
    assert_eq!(store.stats().host_blocks, 85);
    assert_eq!(there(&space, 0..95), (10..95).collect::<Vec<_>>());
    let error = build(Watermarks { low: 0.95, ..Watermarks::default() }).unwrap_err().to_string();
    assert!(error.contains("0.95, 0.9 and 0.01"), "{error}");
}

#[test]
fn wrong_hints_are_errors() {
    let store = small(Replace::default(), 4);
    let (mine, other) = (space(&store, 0), space(&store, 1));
    let (good, foreign) = (prefix(&mine, 0), prefix(&other, 0));
    let sources = SOURCES as u8;
    let error = mine.session_closed(&good, sources).unwrap_err().to_string();
    assert!(error.contains("source of a hint") && error.contains("below 8"), "{error}");
    assert!(mine.wanted(&good, LONG, sources).is_err());
    assert!(mine.next_use(&foreign, LONG, 0).is_err());
    assert!(mine.pin(&foreign).is_err());
    assert!(store.hint_precision(sources).is_err());
    // Of blocks that are nowhere nothing is to be said.
    mine.session_closed(&good, 0).unwrap();
    assert!(mine.pin(&good).unwrap().is_empty());
    store.close();
    assert_eq!(mine.wanted(&good, LONG, 0), Err(Error::Closed));
    assert!(matches!(mine.pin(&good), Err(Error::Closed)));
}
