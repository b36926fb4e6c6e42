//! Nothing is copied by publishing and starting, and nothing published changes.

use crate::common::*;

#[test]
fn nothing_is_copied() {
    let geometry = usual();
    let select = selects()[2].clone();
    let cache = builder(&geometry, 16 << 20).select(select).build().unwrap();
    let store = store();
    let space = space(&store);
    let all = tokens(1, 330, 0, 330);
    let mut sequence = filled(&cache, &all);
    let before = cache.stats();
    let _ = space.publish(&sequence, &all).unwrap();
    let started = space.start(&cache, &all).unwrap();
    assert_eq!((started.shared, started.sequence.len()), (5, 320));
    let after = cache.stats();
    let held = |s: kvist::Stats| (s.page_bytes, s.summary_bytes, s.tokens_appended);
    assert_eq!(held(after), held(before));
    assert!(store.stats().host_used_bytes < 5 * 400, "{:?}", store.stats());
    assert_eq!(store.stats().shared, 5);

    // The sequence goes on in its own open page; a started one takes a page of its own.
    let longer = tokens(1, 330, 0, 340);
    append(&mut sequence, &longer, 100).unwrap();
    assert_eq!(cache.stats().page_bytes, before.page_bytes);
    let mut started = started.sequence;
    append(&mut started, &longer, 100).unwrap();
    let open = (LAYERS * HEADS * geometry.page_bytes()) as u64;
    assert_eq!(cache.stats().page_bytes, before.page_bytes + open);
    check(&sequence, &longer);
    check(&started, &longer);
}

#[test]
fn what_happens_to_a_sequence_later_is_not_seen() {
    for page in [16, 64] {
        let geometry = geometry(kvist::DType::F32, page);
        let cache = builder(&geometry, 16 << 20).select(selects()[1].clone()).build().unwrap();
        let store = store();
        let space = space_of(&store, &geometry);
        let all = tokens(1, 200, 0, 300);
        let _ = space.publish(&filled(&cache, &all), &all).unwrap();
        for len in [290, 250, 130, 40, 0] {
            // Cut inside what is published, and written on differently.
            let mut sequence = filled(&cache, &all);
            assert_eq!(space.publish(&sequence, &all).unwrap().present, 300 / page);
            sequence.truncate(len).unwrap();
            let other = branch(&all, len, 90);
            append(&mut sequence, &other, 100).unwrap();
            check(&sequence, &other);
            assert_eq!(get(&space, &geometry, &all).blocks, 300 / page);
            check(&space.start(&cache, &all).unwrap().sequence, &all[..300 / page * page]);
        }
    }
}

#[test]
fn everything_goes_back() {
    let all = tokens(1, 300, 0, 300);
    for select in selects() {
        let cache = builder(&usual(), 16 << 20).select(select).build().unwrap();
        let store = store();
        let space = space(&store);
        let sequence = filled(&cache, &all);
        let _ = space.publish(&sequence, &all).unwrap();
        drop(sequence);
        assert!(cache.stats().page_bytes >= 4 * block());
        let started = space.start(&cache, &all).unwrap();
        let prefix = space.prefix(&all).unwrap();
        // The last block alone, with its pages, once nobody else has them.
        drop(started);
        assert_eq!(space.evict(&prefix.keys()[3..]), 1);
        assert_eq!(cache.stats().page_bytes, 3 * block());
        // Those before another one stay with it.
        assert_eq!(space.evict(&prefix.keys()[..2]), 2);
        assert_eq!(cache.stats().page_bytes, 3 * block());
        drop(store);
        assert_eq!(cache.stats().used_bytes, 0);
        assert!(space.start(&cache, &all).is_err());
    }
}

#[test]
fn a_conversation_keeps_each_turn_once() {
    let (cache, store) = (cache(16 << 20), store());
    let space = space(&store);
    let mut sequence = cache.sequence();
    for turn in 1..=6 {
        let so_far = tokens(1, 900, 0, turn * 150);
        append(&mut sequence, &so_far, 100).unwrap();
        let published = space.publish(&sequence, &so_far).unwrap();
        assert_eq!(published.present, (turn - 1) * 150 / 64);
        assert_eq!(published.blocks, turn * 150 / 64);
    }
    assert_eq!(cache.stats().page_bytes, 15 * block());
    // One donor for all turns: besides the sequence's tables there are its own.
    let (all, each) = (cache.stats().overhead_bytes, sequence.stats().overhead_bytes);
    assert!(all <= 2 * each, "{all} bytes of tables, {each} of the sequence's own");
    let all = tokens(1, 900, 0, 900);
    drop(sequence);
    check(&space.start(&cache, &all).unwrap().sequence, &all[..14 * 64]);
    assert_eq!(cache.stats().page_bytes, 14 * block());
}
