//! What is published reads as what was put, and what was started answers as what was appended.

use kvist::format::{AttentionKind, BlockLayout};
use kvist::vfs::sim::SimVfs;
use kvist::{BlockRowsMut, DType, Error, Geometry, MissReason, Select, SpaceOptions, Strides};
use proptest::prelude::*;

use crate::common::*;

/// One life of a prefix: published, read in every way, started from, gone on.
fn life(
    geometry: &Geometry,
    select: &Select,
    tier: bool,
    lens: (usize, usize, usize),
    step: usize,
) -> Result<(), TestCaseError> {
    let (len, common, other) = lens;
    let sim = SimVfs::new(1);
    let bytes = 64 << 20;
    let builder = if tier { tiered(geometry, bytes, &sim) } else { builder(geometry, bytes) };
    let cache = builder.select(select.clone()).build().unwrap();
    let (store, put_store) = (store(), store());
    let (space, put_space) = (space_of(&store, geometry), space_of(&put_store, geometry));
    let first = tokens(1, common, 0, len);
    let mut sequence = filled(&cache, &first);
    let blocks = len / geometry.page_tokens;
    let published = space.publish(&sequence, &first).unwrap();
    prop_assert_eq!((published.new, published.present, published.refused), (blocks, 0, None));
    put(&put_space, geometry, &first, 0..blocks);
    // Both compare with what the tokens say.
    prop_assert_eq!(get(&space, geometry, &first), get(&put_space, geometry, &first));

    let second = tokens(1, common, 1, other);
    let started = space.start(&cache, &second).unwrap();
    let known = common.min(len).min(other) / geometry.page_tokens;
    prop_assert_eq!(started.sequence.len(), known * geometry.page_tokens);
    prop_assert_eq!((started.shared, started.from_disk), (known, 0));
    let all = known == other / geometry.page_tokens;
    prop_assert_eq!(started.miss, if all { None } else { ABSENT });
    let mut started = started.sequence;
    append(&mut started, &second, step).unwrap();
    check(&started, &second);
    let mut alone = cache.sequence();
    append(&mut alone, &second, step.max(7)).unwrap();
    alike(&started, &alone);

    // Both go on without seeing each other.
    let longer = tokens(1, common, 0, len + 70);
    append(&mut sequence, &longer, step).unwrap();
    check(&sequence, &longer);
    check(&started, &second);
    prop_assert_eq!(get(&space, geometry, &first), get(&put_space, geometry, &first));
    let again = space.publish(&started, &second).unwrap();
    prop_assert_eq!((again.present, again.new), (known, other / geometry.page_tokens - known));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_started_sequence_is_an_appended_one(
        dtype in 0usize..3, select in 0usize..3, tier in any::<bool>(),
        page in prop::sample::select(vec![16usize, 48, 64, 128]),
        len in 1usize..400, common in 0usize..400, other in 1usize..400,
        step in prop::sample::select(vec![1usize, 33, 100]),
    ) {
        let geometry = geometry(DTYPES[dtype], page);
        life(&geometry, &selects()[select], tier, (len, common, other), step)?;
    }
}

#[test]
fn every_type_and_selector_token_by_token() {
    for dtype in DTYPES {
        for select in selects() {
            for tier in [false, true] {
                life(&geometry(dtype, 64), &select, tier, (300, 200, 290), 1).unwrap();
            }
        }
    }
}

#[test]
fn lent_and_own_blocks_make_one_run() {
    let geometry = usual();
    let (cache, store) = (cache(64 << 20), store());
    let space = space(&store);
    let all = tokens(1, 640, 0, 640);
    // Own, lent, own, then nothing.
    put(&space, &geometry, &all, 0..3);
    let published = space.publish(&filled(&cache, &all[..5 * 64]), &all).unwrap();
    assert_eq!((published.blocks, published.new, published.present), (5, 2, 3));
    put(&space, &geometry, &all, 5..7);
    assert_eq!((store.stats().host_blocks, store.stats().lent_blocks), (7, 2));
    let restored = get(&space, &geometry, &all);
    assert_eq!((restored.blocks, restored.miss), (7, ABSENT));
    let started = space.start(&cache, &all).unwrap();
    assert_eq!((started.sequence.len(), started.shared, started.miss), (7 * 64, 5, ABSENT));
    check(&started.sequence, &all[..7 * 64]);
    // A block that is missing ends it, whatever follows.
    let prefix = space.prefix(&all).unwrap();
    assert_eq!(space.evict(&prefix.keys()[1..2]), 1);
    let started = space.start(&cache, &all).unwrap();
    assert_eq!((started.sequence.len(), started.miss), (64, ABSENT));
    check(&started.sequence, &all[..64]);
}

#[test]
fn blocks_of_another_cache_are_copied() {
    let geometry = usual();
    let (one, other, store) = (cache(8 << 20), cache(8 << 20), store());
    let space = space(&store);
    let all = tokens(1, 200, 0, 200);
    let _ = space.publish(&filled(&one, &all), &all).unwrap();
    let started = space.start(&other, &all).unwrap();
    assert_eq!((started.sequence.len(), started.shared), (192, 0));
    check(&started.sequence, &all[..192]);
    drop(one);
    // The donor keeps its cache.
    assert_eq!(get(&space, &geometry, &all).blocks, 3);
    drop(store);
    check(&started.sequence, &all[..192]);
}

#[test]
fn another_selector_has_summaries_of_its_own() {
    let select = selects()[2].clone();
    let cache = builder(&usual(), 16 << 20).select(select.clone()).build().unwrap();
    let store = store();
    let space = space(&store);
    let all = tokens(1, 330, 0, 330);
    let full = filled(&cache, &all).fork_with(&Select::Full).unwrap();
    let _ = space.publish(&full, &all).unwrap();
    let mut started = space.start(&cache, &all).unwrap().sequence;
    assert_eq!(started.select(), &select);
    append(&mut started, &all, 100).unwrap();
    alike(&started, &filled(&cache, &all));
}

#[test]
fn parts_and_leases_of_lent_blocks() {
    let geometry = usual();
    let (cache, store) = (cache(8 << 20), store());
    let space = space(&store);
    let all = tokens(1, 128, 0, 128);
    let _ = space.publish(&filled(&cache, &all), &all).unwrap();
    let prefix = space.prefix(&all).unwrap();
    let want = block_of(&geometry, &all, 1);
    let used = store.stats().host_used_bytes;
    let lease = space.lease(&prefix.keys()[1]).unwrap();
    assert!(lease[..] == want[..]);
    drop(lease);
    assert_eq!(store.stats().host_used_bytes, used);
    let layout = space.layout();
    let mut out = vec![0xEE; layout.bytes()];
    let mut rows = [BlockRowsMut::new(layout, &mut out, Strides::canonical(layout)).unwrap()];
    assert_eq!(space.get_layers(&prefix, 1..2, 1..2, &mut rows).unwrap().blocks, 1);
    let half = out.len() / 2;
    assert!(out[half..] == want[half..] && out[..half].iter().all(|b| *b == 0xEE));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let geometry = usual();
    let (cache, store) = (cache(8 << 20), store());
    let all = tokens(1, 128, 0, 128);
    let sequence = filled(&cache, &all);
    let of = BlockLayout::of(&geometry);
    let others = [
        BlockLayout { block_tokens: 16, ..of.clone() },
        BlockLayout { layers: 0..1, ..of.clone() },
        BlockLayout { attention: AttentionKind::Window(64), ..of.clone() },
        BlockLayout::of(&Geometry { dtype: DType::F16, ..geometry }),
    ];
    for other in others {
        let space = store.space(SpaceOptions::new([7; 32], other.clone())).unwrap();
        let text = space.publish(&sequence, &all).unwrap_err().to_string();
        assert!(
            text.contains(&format!("{of:?}")) && text.contains(&format!("{other:?}")),
            "{text}"
        );
        assert!(matches!(space.start(&cache, &all), Err(Error::Setting { .. })));
    }
    let space = space(&store);
    assert!(space.publish(&sequence, &[u32::MAX; 128]).is_err());
    // Less than a block, more tokens than the sequence has, fewer.
    assert_eq!(space.publish(&sequence, &all[..63]).unwrap().blocks, 0);
    let more = [&all[..], &[1, 2, 3]].concat();
    assert_eq!(space.publish(&sequence, &more).unwrap().new, 2);
    assert_eq!(space.publish(&sequence, &all[..100]).unwrap().present, 1);
    store.close();
    assert_eq!(space.publish(&sequence, &all).unwrap_err(), Error::Closed);
    assert_eq!(space.start(&cache, &all).unwrap_err(), Error::Closed);
    let empty = cache.sequence();
    assert!(empty.is_empty());
}

#[test]
fn an_unknown_prefix_is_an_empty_sequence() {
    let (cache, store) = (cache(8 << 20), store());
    let started = space(&store).start(&cache, &tokens(1, 200, 0, 200)).unwrap();
    assert_eq!((started.sequence.len(), started.miss), (0, Some(MissReason::Absent)));
    assert_eq!(space(&store).start(&cache, &[1, 2, 3]).unwrap().miss, None);
}
