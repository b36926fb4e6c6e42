//! Evicting, erasing and closing, while sequences that were started live on; tenants.

use kvist::format::BlockLayout;
use kvist::{PrefixStore, SpaceOptions};

use crate::common::*;

#[test]
fn erasing_a_tenant_leaves_started_sequences_alone() {
    let (cache, store) = (cache(16 << 20), store());
    let space = space(&store);
    let all = tokens(1, 300, 0, 300);
    let _ = space.publish(&filled(&cache, &all), &all).unwrap();
    let mut started = space.start(&cache, &all).unwrap().sequence;
    assert_eq!(store.erase_tenant(b"one").unwrap().records, 4);
    assert_eq!(get(&space, &usual(), &all).miss, ABSENT);
    assert!(space.start(&cache, &all).unwrap().sequence.is_empty());
    append(&mut started, &all, 10).unwrap();
    check(&started, &all);
    // It may be published again: that is the caller's word.
    assert_eq!(space.publish(&started, &all).unwrap().new, 4);
    let prefix = space.prefix(&all).unwrap();
    assert_eq!(space.evict(prefix.keys()), 4);
    assert_eq!((space.contains(&prefix), store.stats().host_blocks), (0, 0));
    drop(started);
    assert_eq!(cache.stats().used_bytes, 0);
}

#[test]
fn tenants_models_and_adapters_find_only_their_own() {
    let cache = cache(16 << 20);
    let store = PrefixStore::builder().host_bytes(8 << 20).multi_tenant(true).build().unwrap();
    let of = |model: u8, salt: &[u8]| {
        SpaceOptions::new([model; 32], BlockLayout::of(&usual())).salt(salt)
    };
    let spaces = [of(1, b"a"), of(1, b"b"), of(2, b"a"), of(1, b"a").adapter([3; 32])];
    let spaces = spaces.map(|options| store.space(options).unwrap());
    let all = tokens(1, 200, 0, 200);
    let sequence = filled(&cache, &all);
    for (n, space) in spaces.iter().enumerate() {
        assert!(space.start(&cache, &all).unwrap().sequence.is_empty(), "space {n}");
        assert_eq!(space.publish(&sequence, &all).unwrap().new, 3);
    }
    // The same pages, four times.
    assert_eq!((store.stats().lent_blocks, cache.stats().page_bytes), (12, 4 * block()));
    assert_eq!(store.erase_tenant(b"a").unwrap().records, 9);
    let there = spaces.map(|space| space.start(&cache, &all).unwrap().sequence.len());
    assert_eq!(there, [0, 192, 0, 0]);
}

#[test]
fn closing_and_dropping_in_any_order() {
    let all = tokens(1, 200, 0, 200);
    for order in 0..6 {
        let (cache, store) = (cache(16 << 20), store());
        let space = space(&store);
        let sequence = filled(&cache, &all);
        let _ = space.publish(&sequence, &all).unwrap();
        let started = space.start(&cache, &all).unwrap().sequence;
        let lease = space.lease(&space.prefix(&all).unwrap().keys()[0]).unwrap();
        let mut parts: Vec<Box<dyn FnOnce()>> = vec![
            Box::new(move || drop(cache)),
            Box::new(move || drop((store, space))),
            Box::new(move || drop(sequence)),
        ];
        parts.rotate_left(order % 3);
        if order > 2 {
            parts.reverse();
        }
        for part in parts {
            part();
            check(&started, &all[..192]);
        }
        assert!(lease[..] == block_of(&usual(), &all, 0)[..]);
    }
}

#[test]
fn a_closed_store_keeps_nothing() {
    let (cache, store) = (cache(16 << 20), store());
    let space = space(&store);
    let all = tokens(1, 200, 0, 200);
    let _ = space.publish(&filled(&cache, &all), &all).unwrap();
    store.close();
    assert_eq!(cache.stats().used_bytes, 0);
    // Nor does a cache ask it for anything.
    let mut more = cache.sequence();
    assert!(append(&mut more, &tokens(2, 60_000, 0, 60_000), 4096).is_err());
}
