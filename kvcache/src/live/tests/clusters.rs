//! Clusters of sequences whose pages are not all near: what is read is what one in memory reads, and
//! comes from where the rows of a cluster lie together.

use proptest::prelude::*;

use super::*;
use crate::vfs::sim::SimVfs;
use crate::{DiskOptions, MissReason};

/// The selectors that pick clusters.
pub(super) fn by_clusters() -> [Select; 2] {
    let all = selects();
    [all[7].clone(), all[8].clone()]
}

pub(super) fn all_of_it() -> AttendOptions<'static> {
    AttendOptions { selected: true, bound: true, ..AttendOptions::default() }
}

/// The same tokens, and the same result but for rounding.
pub(super) fn agree(s: &Sequence, twin: &Sequence, layer: usize, q: &[f32]) {
    let (want, reference) = attend(twin, layer, q, &all_of_it()).unwrap();
    let (out, info) = attend(s, layer, q, &all_of_it()).unwrap();
    same((out, info), (want, reference));
}

pub(super) fn same((out, info): (Vec<f32>, AttendInfo), (want, reference): (Vec<f32>, AttendInfo)) {
    assert_eq!(info.selected, reference.selected);
    assert_eq!((info.tokens_read, info.bytes), (reference.tokens_read, reference.bytes));
    assert!(near(&out, &want) && near(&info.lse2, &reference.lse2));
    let (bounds, of_twin) = (info.missed_mass_bound.unwrap(), reference.missed_mass_bound.unwrap());
    assert_eq!(bounds.len(), of_twin.len());
    assert!(
        bounds.iter().zip(&of_twin).all(|(a, b)| (a - b).abs() < 1e-4),
        "{bounds:?} {of_twin:?}"
    );
}

/// A cache that holds it all and has no tier below: tokens are picked one by one there.
pub(super) fn plain(select: &Select) -> Cache {
    builder(select, 64 << 20, 64).whole_pages(false).build().unwrap()
}

#[test]
fn what_is_read_is_what_is_read_in_memory() {
    for select in by_clusters() {
        let (cache, memory) = tiered(&select, 400 << 10, Faults { delay: 3, ..Faults::default() });
        let mut random = Random(41);
        let [mut s, mut twin] = filled([&cache, &plain(&select)], 1500, &mut random);
        s.offload().unwrap();
        let mut q = query(&mut random, 1);
        for _ in 0..30 {
            q.iter_mut().for_each(|x| *x += 0.3 * random.normal());
            (0..LAYERS).for_each(|layer| agree(&s, &twin, layer, &q));
            let (k, v) = data(&mut random, 3);
            [&mut s, &mut twin].into_iter().for_each(|s| append(s, &k, &v).unwrap());
            let stats = cache.stats();
            let parts = stats.page_bytes + stats.summary_bytes + stats.overhead_bytes;
            assert_eq!(stats.used_bytes, parts);
            assert!(stats.used_bytes <= stats.budget_bytes);
        }
        let stats = cache.stats();
        assert!(stats.cluster_hits > 0 && stats.cluster_misses > 0, "{stats:?}");
        drop((s, twin));
        nothing_left(&cache, &memory);
    }
}

/// Clusters that are alike lie far apart in the sequence: by pages, all of it would be read.
#[test]
fn few_bytes_are_read_for_tokens_that_lie_far_apart() {
    let settings =
        ClusterKv { budget: 200, sinks: 4, cluster_tokens: 40, window: 32, ..ClusterKv::default() };
    let (cache, memory) = tiered(&settings.into(), 1 << 20, Faults::default());
    let mut random = Random(42);
    let mut s = cache.sequence();
    // Token t is near direction t % 50.
    let directions: Vec<Vec<f32>> =
        (0..50).map(|_| (0..ROW).map(|_| 3.0 * random.normal()).collect()).collect();
    let tokens = 2000;
    let key = |t: usize| directions[t % 50].iter().copied();
    let k: Vec<bf16> =
        (0..tokens).flat_map(key).map(|x| bf16::from_f32(x + 0.1 * random.normal())).collect();
    let v = random.rows(tokens * ROW, 1.0);
    append(&mut s, &k, &v).unwrap();
    s.offload().unwrap();
    // The first call makes clusters and stores their rows.
    attend(&s, 0, &query(&mut random, 1), &AttendOptions::default()).unwrap();
    s.offload().unwrap();
    let before = cache.stats();
    let (mut pages, mut chosen) = (0, 0);
    for _ in 0..10 {
        let q = query(&mut random, 1);
        let (_, info) = attend(&s, 0, &q, &all_of_it()).unwrap();
        for selected in info.selected.unwrap() {
            chosen += selected.len();
            pages += selected.chunk_by(|a, b| a / 64 == b / 64).count();
        }
    }
    let read = cache.stats().below_read_bytes - before.below_read_bytes;
    let (chosen, pages) =
        (chosen * cache.geometry().token_bytes(), pages * cache.geometry().page_bytes());
    assert!(read > 0 && read <= 2 * chosen as u64, "{read} of {chosen}");
    assert!(4 * read <= pages as u64, "{read} of {pages}");
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn clusters_whose_bytes_are_bad_are_read_from_pages_from_then_on() {
    for select in by_clusters() {
        let (cache, memory) = tiered(&select, 1 << 20, Faults::default());
        let mut random = Random(43);
        let [s, twin] = filled([&cache, &plain(&select)], 900, &mut random);
        s.offload().unwrap();
        let q = query(&mut random, 1);
        memory.set(Faults { small_fails: 1000, ..Faults::default() });
        agree(&s, &twin, 0, &q);
        let failed = cache.stats().pages_failed;
        assert!(failed > 0, "some were read");
        s.offload().unwrap();
        agree(&s, &twin, 0, &query(&mut random, 1));
        assert_eq!(cache.stats().pages_failed, failed, "nobody asks for them again");
        // Another layer is not affected.
        memory.set(Faults::default());
        agree(&s, &twin, 1, &q);
        assert!(cache.stats().cluster_misses > 0);
        drop((s, twin));
        nothing_left(&cache, &memory);
    }
}

#[test]
fn clusters_that_cannot_be_stored_are_read_from_pages() {
    for select in by_clusters() {
        let (cache, memory) = tiered(&select, 1 << 20, Faults::default());
        let mut random = Random(44);
        let [s, twin] = filled([&cache, &plain(&select)], 900, &mut random);
        s.offload().unwrap();
        let stored = memory.live.load(Ordering::Relaxed);
        memory.set(Faults { write_fails: 1000, ..Faults::default() });
        for _ in 0..3 {
            agree(&s, &twin, 0, &query(&mut random, 1));
            s.offload().unwrap();
        }
        assert_eq!(memory.live.load(Ordering::Relaxed), stored);
        assert_eq!(cache.stats().cluster_misses, 0);
        drop((s, twin));
        nothing_left(&cache, &memory);
    }
}

#[test]
fn what_cannot_be_had_at_all_is_an_error_and_what_is_late_comes_later() {
    for select in by_clusters() {
        let (cache, memory) = tiered(&select, 1 << 20, Faults::default());
        let mut random = Random(45);
        let [s, twin] = filled([&cache, &plain(&select)], 900, &mut random);
        s.offload().unwrap();
        let q = query(&mut random, 1);
        agree(&s, &twin, 0, &q);
        s.offload().unwrap();
        let other = query(&mut random, 1);
        memory.set(Faults { read_hangs: 1000, ..Faults::default() });
        let error = attend(&s, 0, &other, &AttendOptions::default()).unwrap_err();
        assert!(
            matches!(error, Error::Missing { layer: 0, reason: MissReason::Timeout, .. }),
            "{error}"
        );
        memory.settle();
        memory.set(Faults::default());
        agree(&s, &twin, 0, &other);
        s.offload().unwrap();
        memory.set(Faults { read_fails: 1000, ..Faults::default() });
        let failed = (0..20)
            .find_map(|_| attend(&s, 0, &query(&mut random, 1), &AttendOptions::default()).err());
        assert!(matches!(failed, Some(Error::Missing { reason: MissReason::Checksum, .. })));
        drop((s, twin));
        nothing_left(&cache, &memory);
    }
}

#[test]
fn forks_share_what_is_stored_and_the_last_forgets_it() {
    let [select, _] = by_clusters();
    let (cache, memory) = tiered(&select, 1 << 20, Faults::default());
    let mut random = Random(46);
    let [mut s, mut twin] = filled([&cache, &plain(&select)], 900, &mut random);
    s.offload().unwrap();
    let stored = || memory.live.load(Ordering::Relaxed);
    let pages = stored();
    let q = query(&mut random, 1);
    agree(&s, &twin, 0, &q);
    let with_clusters = stored();
    assert!(with_clusters > pages);
    let (fork, of_twin) = (s.fork(), twin.fork());
    s.offload().unwrap();
    agree(&fork, &of_twin, 0, &query(&mut random, 1));
    assert_eq!(stored(), with_clusters, "nothing is stored twice");
    // The cut forgets clusters of tokens that are gone; the fork has them still.
    s.truncate(500).unwrap();
    twin.truncate(500).unwrap();
    agree(&fork, &of_twin, 0, &query(&mut random, 1));
    s.offload().unwrap();
    agree(&s, &twin, 0, &q);
    drop((fork, of_twin));
    assert!(stored() < with_clusters);
    // Recent tokens that a cut puts into the middle of a cluster are read once.
    let end = 500 - 1;
    s.truncate(end).unwrap();
    twin.truncate(end).unwrap();
    agree(&s, &twin, 0, &q);
    drop((s, twin));
    nothing_left(&cache, &memory);
}

#[test]
fn threads_share_clusters_and_agree() {
    for select in by_clusters() {
        let (cache, memory) = tiered(&select, 600 << 10, Faults { delay: 3, ..Faults::default() });
        let mut random = Random(47);
        let [s, twin] = filled([&cache, &plain(&select)], 1500, &mut random);
        s.offload().unwrap();
        let queries: Vec<Vec<f32>> = (0..5).map(|_| query(&mut random, 1)).collect();
        let want: Vec<_> =
            queries.iter().map(|q| attend(&twin, 0, q, &all_of_it()).unwrap()).collect();
        std::thread::scope(|scope| {
            for t in 0..3 {
                let (s, queries, want) = (&s, &queries, &want);
                scope.spawn(move || {
                    for round in 0..20 {
                        let i = (t + round) % queries.len();
                        same(attend(s, 0, &queries[i], &all_of_it()).unwrap(), want[i].clone());
                    }
                });
            }
        });
        drop((s, twin));
        nothing_left(&cache, &memory);
    }
}

/// On a disk, where the two kinds of pages have records of their own.
#[test]
fn clusters_come_from_a_disk_and_go_with_the_sequence() {
    for select in by_clusters() {
        let sim = SimVfs::new(5);
        let disk = DiskOptions::new("/store", 64 << 20).segment_bytes(1 << 20);
        let cache = builder(&select, 400 << 10, 64).disk(disk).vfs(Arc::new(sim.process()));
        let cache = cache.build().unwrap();
        let mut random = Random(49);
        let [s, twin] = filled([&cache, &plain(&select)], 1200, &mut random);
        s.offload().unwrap();
        for _ in 0..5 {
            (0..LAYERS).for_each(|layer| agree(&s, &twin, layer, &query(&mut random, 1)));
        }
        let stats = cache.stats();
        assert!(stats.cluster_misses > 0 && stats.pages_failed == 0, "{stats:?}");
        assert!(cache.disk().unwrap().read_bytes > 0);
        drop((s, twin));
        assert_eq!((cache.stats().used_bytes, cache.stats().stored_bytes), (0, 0));
        assert_eq!(cache.disk().unwrap().live_bytes, 0);
    }
}

/// Pages of other sequences and clusters share the budget, and each gives way.
#[test]
fn clusters_and_pages_give_way_to_each_other() {
    let [select, _] = by_clusters();
    let (cache, memory) = tiered(&select, 500 << 10, Faults::default());
    let mut random = Random(48);
    let [s, twin] = filled([&cache, &plain(&select)], 1200, &mut random);
    s.offload().unwrap();
    for _ in 0..10 {
        agree(&s, &twin, 0, &query(&mut random, 1));
    }
    // Another sequence takes all there is.
    let [other, of_other] = filled([&cache, &plain(&select)], 1200, &mut random);
    let q = query(&mut random, 40);
    let (out, _) = attend(&other, 0, &q, &AttendOptions::default()).unwrap();
    assert!(near(&out, &attend(&of_other, 0, &q, &AttendOptions::default()).unwrap().0));
    for _ in 0..5 {
        agree(&s, &twin, 0, &query(&mut random, 1));
        agree(&other, &of_other, 0, &query(&mut random, 1));
        assert!(cache.stats().used_bytes <= cache.stats().budget_bytes);
    }
    drop((s, twin, other, of_other));
    nothing_left(&cache, &memory);
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Append(usize),
    Attend(usize),
    Fork,
    Truncate(usize),
    Offload,
    Restore,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![1usize..4, 1usize..150].prop_map(Step::Append),
        6 => (0..LAYERS).prop_map(Step::Attend),
        1 => Just(Step::Fork),
        1 => (0usize..100).prop_map(Step::Truncate),
        2 => Just(Step::Offload),
        1 => Just(Step::Restore),
    ]
}

/// Every answer of the small cache is that of the large one, or an error that faults and the budget
/// explain; a sequence with an error goes, as clusters depend on when they are made.
fn run(steps: Vec<Step>, seed: u64, select: &Select, bytes: u64, faults: Faults) {
    let (cache, memory) = tiered(select, bytes, Faults::default());
    let all = plain(select);
    let mut random = Random(seed);
    let mut pairs = vec![filled([&cache, &all], 700, &mut random)];
    memory.set(faults);
    for step in steps {
        let Some([s, twin]) = pairs.last_mut() else { break };
        let ok = match step {
            Step::Append(n) => {
                let (k, v) = data(&mut random, n);
                append(twin, &k, &v).unwrap();
                append(s, &k, &v).map(drop)
            }
            Step::Attend(layer) => {
                let q = query(&mut random, 1);
                let want = attend(twin, layer, &q, &all_of_it()).unwrap();
                attend(s, layer, &q, &all_of_it()).map(|found| same(found, want))
            }
            Step::Fork => {
                let pair = [s.fork(), twin.fork()];
                pairs.push(pair);
                Ok(())
            }
            Step::Truncate(share) => {
                let len = (s.len() * share / 100).max(1);
                twin.truncate(len).unwrap();
                s.truncate(len)
            }
            Step::Offload => s.offload().map(drop),
            Step::Restore => s.restore().map(drop),
        };
        let stats = cache.stats();
        assert!(stats.used_bytes <= stats.budget_bytes);
        match ok {
            Ok(()) => {}
            Err(Error::OverBudget { .. } | Error::Missing { .. } | Error::Demote { .. }) => {
                drop(pairs.pop())
            }
            Err(e) => panic!("{e}"),
        }
    }
    drop(pairs);
    nothing_left(&cache, &memory);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn few_frames_give_the_clusters_that_many_give(
        steps in prop::collection::vec(step(), 1..30), seed in any::<u64>(), select in 0usize..2,
        kib in 250u64..600, delay in 0u64..50,
    ) {
        run(steps, seed, &by_clusters()[select], kib << 10, Faults { delay, ..Faults::default() });
    }

    #[test]
    fn faults_give_errors_and_never_wrong_clusters(
        steps in prop::collection::vec(step(), 1..30), seed in any::<u64>(), select in 0usize..2,
        kib in 250u64..600, read_fails in 0u64..10, small_fails in 0u64..100, write_fails in 0u64..300,
        read_hangs in 0u64..5,
    ) {
        let faults = Faults { read_fails, small_fails, write_fails, read_hangs, delay: 20, quick: 0 };
        run(steps, seed, &by_clusters()[select], kib << 10, faults);
    }
}
