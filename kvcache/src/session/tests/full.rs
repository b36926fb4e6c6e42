//! A disk that is too small: nothing that was saved leaves, and what does not fit is refused.

use super::*;

fn small(segments: u64) -> Setup {
    Setup { segment: 64 << 10, segments, host_bytes: 1 << 20, ..Setup::default() }
}

#[test]
fn what_was_saved_stays_whatever_else_comes_and_goes() {
    let (sim, setup) = (SimVfs::new(1), small(12));
    let cache = setup.open(&sim);
    filled(&cache, 1, 300).save("a").unwrap();
    for round in 0..20 {
        let other = filled(&cache, 10 + round, 600);
        other.offload().unwrap();
        if round % 3 == 0 {
            other.save("b").unwrap();
        }
        let usage = cache.disk().unwrap();
        assert!(usage.used_bytes <= usage.budget_bytes);
        drop(other);
        assert!(holds(&cache.open_session("a").unwrap(), 1, 300).unwrap(), "round {round}");
    }
    assert!(holds(&cache.open_session("b").unwrap(), 28, 600).unwrap());
    drop(cache);
    // Blocks of a prefix store in the same directory do not drive it out either.
    crowd(&sim, &setup);
    let cache = setup.open(&sim);
    assert!(holds(&cache.open_session("a").unwrap(), 1, 300).unwrap());
    assert!(holds(&cache.open_session("b").unwrap(), 28, 600).unwrap());
}

/// A prefix store that writes several times what the directory holds.
fn crowd(sim: &SimVfs, setup: &Setup) {
    use crate::format::{BlockDType, BlockLayout};
    use crate::{BlockRows, PrefixStore, SpaceOptions, Strides};
    let disk = DiskOptions::new("/store", setup.segments * setup.segment);
    let store = PrefixStore::builder()
        .disk(disk.segment_bytes(setup.segment))
        .vfs(std::sync::Arc::new(sim.process()))
        .threads(false)
        .build()
        .unwrap();
    let layout = BlockLayout::new(BlockDType::Bf16, 16, 2, 2, 32);
    let space = store.space(SpaceOptions::new([1; 32], layout.clone())).unwrap();
    let block = vec![7u8; layout.bytes()];
    let rows = BlockRows::new(&layout, &block, Strides::nhd(&layout)).unwrap();
    for n in 0..400 {
        let tokens: Vec<u32> = (n * 16..(n + 1) * 16).collect();
        let prefix = space.prefix(&tokens).unwrap();
        space.put(&prefix, 0, &[rows]).unwrap();
        store.run_pending();
    }
    assert!(store.stats().disk.is_some_and(|disk| disk.evicted > 0));
}

#[test]
fn a_session_that_does_not_fit_is_refused_and_the_one_before_stays() {
    let (sim, setup) = (SimVfs::new(1), small(8));
    let cache = setup.open(&sim);
    let mut s = filled(&cache, 1, 300);
    s.save("a").unwrap();
    // More than the disk holds, though the host does.
    let roomy = Setup { host_bytes: 16 << 20, ..setup.clone() };
    drop((s, cache));
    let cache = roomy.open(&sim);
    s = cache.open_session("a").unwrap();
    append(&mut s, 1, 4000).unwrap();
    let error = s.save("a").unwrap_err();
    assert!(matches!(error, Error::Demote { .. } | Error::Save { .. }), "{error}");
    assert!(holds(&s, 1, 4300).unwrap());
    assert!(holds(&cache.open_session("a").unwrap(), 1, 300).unwrap());
    drop((s, cache));
    let cache = setup.open(&sim);
    assert!(holds(&cache.open_session("a").unwrap(), 1, 300).unwrap());
    // What was written in vain makes room again.
    filled(&cache, 2, 600).save("b").unwrap();
    assert!(holds(&cache.open_session("b").unwrap(), 2, 600).unwrap());
    assert!(holds(&cache.open_session("a").unwrap(), 1, 300).unwrap());
}

#[test]
fn sequences_that_fill_the_disk_are_told_so() {
    let (sim, setup) = (SimVfs::new(1), small(8));
    let cache = setup.open(&sim);
    let mut sequences = Vec::new();
    let refused = loop {
        let mut s = cache.sequence();
        let result = (0..8).try_for_each(|_| append(&mut s, sequences.len() as u64, 100));
        if let Err(e) = result {
            break e;
        }
        sequences.push(s);
        assert!(sequences.len() < 100, "the disk never fills");
    };
    assert!(matches!(refused, Error::OverBudget { .. }), "{refused}");
    for (seed, s) in sequences.iter().enumerate() {
        assert!(holds(s, seed as u64, 800).unwrap(), "sequence {seed}");
    }
}

#[test]
fn a_session_whose_summaries_do_not_fit_into_memory_is_refused() {
    let sim = SimVfs::new(1);
    let setup = Setup { host_bytes: 16 << 20, ..Setup::default() };
    let cache = setup.open(&sim);
    filled(&cache, 1, 20_000).save("a").unwrap();
    drop(cache);
    let cache = Setup { host_bytes: 200 << 10, ..setup.clone() }.open(&sim);
    let error = cache.open_session("a").unwrap_err();
    assert!(matches!(error, Error::OverBudget { .. }), "{error}");
    assert_eq!(cache.stats().used_bytes, 0);
    drop(cache);
    assert!(setup.open(&sim).open_session("a").is_ok());
}
