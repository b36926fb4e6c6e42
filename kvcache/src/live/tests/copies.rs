//! Clusters of sequences in host memory whose rows lie together a second time: what is read is the same, and
//! nothing is refused for it.

use proptest::prelude::*;

use super::clusters::{Step, agree, all_of_it, by_clusters, plain, same, step};
use super::*;

fn ordered(select: &Select, bytes: u64) -> Cache {
    builder(select, bytes, 64).whole_pages(false).cluster_order(true).build().unwrap()
}

fn tight(select: &Select, bytes: u64) -> Cache {
    builder(select, bytes, 64).whole_pages(false).build().unwrap()
}

fn copied(cache: &Cache) -> u64 {
    cache.stats().cluster_bytes
}

fn nothing_held(cache: &Cache) {
    assert_eq!((cache.stats().used_bytes, copied(cache)), (0, 0), "{:?}", cache.stats());
}

/// The same result, or both have no room for clusters.
fn alike(s: &Sequence, twin: &Sequence, layer: usize, q: &[f32]) -> [Result<(), Error>; 2] {
    let both = [s, twin].map(|s| attend(s, layer, q, &all_of_it()));
    if let [Ok(found), Ok(want)] = &both {
        same(found.clone(), want.clone());
    }
    assert_eq!(both[0].is_ok(), both[1].is_ok(), "{both:?}");
    both.map(|attended| attended.map(drop))
}

#[test]
fn what_is_read_is_what_is_read_without() {
    for select in by_clusters() {
        let cache = ordered(&select, 64 << 20);
        let mut random = Random(61);
        let [mut s, mut twin] = filled([&cache, &plain(&select)], 1500, &mut random);
        assert_eq!(copied(&cache), 0, "made when they are needed");
        let mut q = query(&mut random, 1);
        for round in 0..40 {
            q.iter_mut().for_each(|x| *x += 0.3 * random.normal());
            (0..LAYERS).for_each(|layer| agree(&s, &twin, layer, &q));
            let (k, v) = data(&mut random, 3);
            [&mut s, &mut twin].into_iter().for_each(|s| append(s, &k, &v).unwrap());
            let stats = cache.stats();
            let parts = stats.page_bytes + stats.summary_bytes + stats.overhead_bytes;
            assert_eq!(stats.used_bytes, parts);
            // All clustered tokens in whole pages: about as much as the pages themselves.
            let share =
                stats.cluster_bytes as f64 / (stats.page_bytes - stats.cluster_bytes) as f64;
            assert!((0.9..1.3).contains(&share), "{share} in round {round}");
        }
        drop((s, twin));
        nothing_held(&cache);
    }
}

#[test]
fn without_the_option_nothing_is_copied() {
    for select in by_clusters() {
        let cache = plain(&select);
        let mut random = Random(62);
        let [s, twin] = filled([&cache, &cache], 900, &mut random);
        agree(&s, &twin, 0, &query(&mut random, 1));
        assert_eq!(copied(&cache), 0);
    }
}

/// With a lower tier clusters are below, and near sequences are read as ever.
#[test]
fn a_lower_tier_goes_first() {
    let [select, _] = by_clusters();
    let memory = Memory::new(Faults::default(), 7);
    let below = Arc::new(Handle(memory.clone()));
    let cache = builder(&select, 64 << 20, 64).whole_pages(false).cluster_order(true);
    let cache = cache.below(below).build().unwrap();
    let mut random = Random(63);
    let [s, twin] = filled([&cache, &plain(&select)], 900, &mut random);
    agree(&s, &twin, 0, &query(&mut random, 1));
    assert_eq!(copied(&cache), 0);
    s.offload().unwrap();
    agree(&s, &twin, 0, &query(&mut random, 1));
    assert!(cache.stats().cluster_misses > 0 && copied(&cache) > 0);
    drop((s, twin));
    nothing_left(&cache, &memory);
}

/// As many tokens fit as without, whatever was copied before.
#[test]
fn copies_give_way_and_nothing_is_refused_for_them() {
    for select in by_clusters() {
        let caches = [ordered(&select, 3 << 20), tight(&select, 3 << 20)];
        let mut random = Random(64);
        let [mut s, mut twin] = filled([&caches[0], &caches[1]], 1500, &mut random);
        agree(&s, &twin, 0, &query(&mut random, 1));
        let most = copied(&caches[0]);
        assert!(most > 0);
        let mut fitted = 0;
        loop {
            let (k, v) = data(&mut random, 50);
            let [here, there] = [&mut s, &mut twin].map(|s| append(s, &k, &v));
            assert_eq!(here.is_ok(), there.is_ok(), "{here:?} {there:?} after {fitted}");
            if here.is_err() {
                break;
            }
            fitted += 50;
            let stats = caches[0].stats();
            assert!(stats.used_bytes <= stats.budget_bytes);
            let _ = alike(&s, &twin, 0, &query(&mut random, 1));
        }
        assert!(fitted > 1000 && copied(&caches[0]) < most / 4, "{fitted}, {most}");
        let _ = alike(&s, &twin, 0, &query(&mut random, 1));
        drop((s, twin));
        nothing_held(&caches[0]);
    }
}

#[test]
fn where_there_is_no_room_none_are_made() {
    for select in by_clusters() {
        // Room for pages and clusters.
        let mut random = Random(65);
        let roomy = plain(&select);
        let [probe, _] = filled([&roomy, &roomy], 900, &mut random);
        attend(&probe, 0, &query(&mut random, 1), &all_of_it()).unwrap();
        let needed = roomy.stats().used_bytes;
        let cache = ordered(&select, needed);
        let [s, twin] = filled([&cache, &roomy], 900, &mut random);
        agree(&s, &twin, 0, &query(&mut random, 1));
        assert!(copied(&cache) < needed / 8, "{} of {needed}", copied(&cache));
        assert!(cache.stats().used_bytes <= needed);
    }
}

#[test]
fn forks_share_copies_and_cuts_forget_them() {
    let [select, _] = by_clusters();
    let cache = ordered(&select, 64 << 20);
    let mut random = Random(66);
    let [mut s, mut twin] = filled([&cache, &plain(&select)], 900, &mut random);
    let q = query(&mut random, 1);
    agree(&s, &twin, 0, &q);
    let all = copied(&cache);
    assert!(all > 0);
    let (fork, of_twin) = (s.fork(), twin.fork());
    agree(&fork, &of_twin, 0, &query(&mut random, 1));
    assert_eq!(copied(&cache), all, "nothing is copied twice");
    // The cut forgets clusters of tokens that are gone; the fork has them still.
    for sequence in [&mut s, &mut twin] {
        sequence.truncate(500).unwrap();
    }
    agree(&fork, &of_twin, 0, &query(&mut random, 1));
    agree(&s, &twin, 0, &q);
    assert!(copied(&cache) > all, "another set for the shorter one");
    drop((fork, of_twin));
    assert!((1..all).contains(&copied(&cache)));
    // Recent tokens that a cut puts into the middle of a cluster are read once.
    for sequence in [&mut s, &mut twin] {
        sequence.truncate(499).unwrap();
    }
    agree(&s, &twin, 0, &q);
    let (k, v) = data(&mut random, 200);
    [&mut s, &mut twin].into_iter().for_each(|s| append(s, &k, &v).unwrap());
    agree(&s, &twin, 0, &q);
    s.truncate(0).unwrap();
    assert_eq!(copied(&cache), 0);
    drop((s, twin));
    nothing_held(&cache);
}

/// Keys that are no numbers are in no cluster, and are read from where they are.
#[test]
fn keys_that_are_no_numbers_are_read() {
    for select in by_clusters() {
        let cache = ordered(&select, 64 << 20);
        let mut random = Random(67);
        let mut pair = [&cache, &plain(&select)].map(Cache::sequence);
        let (mut k, v) = data(&mut random, 900);
        for token in [100, 333, 860] {
            k[token * ROW + 3] = bf16::NAN;
        }
        pair.iter_mut().for_each(|s| append(s, &k, &v).unwrap());
        let q = query(&mut random, 1);
        let [(out, info), (want, reference)] =
            [&pair[0], &pair[1]].map(|s| attend(s, 0, &q, &all_of_it()).unwrap());
        assert!(copied(&cache) > 0);
        assert_eq!(info.selected, reference.selected);
        let selected = info.selected.unwrap();
        assert!([100, 333, 860].iter().all(|t| selected[0].contains(t)), "{selected:?}");
        let alike = |a: f32, b: f32| a.is_nan() == b.is_nan() && (a.is_nan() || near(&[a], &[b]));
        assert!(out.iter().zip(&want).all(|(&a, &b)| alike(a, b)));
        assert!(out.iter().any(|x| x.is_nan()) && out.iter().any(|x| !x.is_nan()));
    }
}

/// Heads of one channel, of very many, and values of another width than keys; pages of 16 tokens.
#[test]
fn narrow_and_wide_heads() {
    for (dim_k, dim_v) in [(1, 1), (8, 24), (512, 3), (576, 512)] {
        for select in by_clusters() {
            let geometry = Geometry::new(1, 4, 2, dim_k, DType::F32);
            let geometry = Geometry { dim_v, page_tokens: 16, ..geometry };
            let cache = |order: bool| {
                let builder = Cache::builder(geometry.clone()).host_bytes(64 << 20).threads(2);
                builder.select(select.clone()).cluster_order(order).build().unwrap()
            };
            let mut random = Random(68);
            let caches = [cache(true), cache(false)];
            let mut pair = [&caches[0], &caches[1]].map(Cache::sequence);
            let mut floats = |n: usize| (0..n).map(|_| random.normal()).collect::<Vec<f32>>();
            let tokens = 600;
            let (k, v) = (floats(tokens * 2 * dim_k), floats(tokens * 2 * dim_v));
            let view = |x, dim| Tensor3::contiguous(x, [tokens, 2, dim]).unwrap();
            for s in &mut pair {
                s.append(0, &view(&k[..], dim_k), &view(&v[..], dim_v)).unwrap();
            }
            for _ in 0..3 {
                let q = floats(4 * dim_k);
                let q = Tensor3::contiguous(&q[..], [1, 4, dim_k]).unwrap();
                let [(out, info), (want, reference)] = [&pair[0], &pair[1]].map(|s| {
                    let mut out = vec![f32::NAN; 4 * dim_v];
                    let mut view = Tensor3Mut::contiguous(&mut out, [1, 4, dim_v]).unwrap();
                    let info = s.attend(0, &q, &all_of_it(), &mut view).unwrap();
                    (out, info)
                });
                assert!(copied(&caches[0]) > 0 && copied(&caches[1]) == 0);
                assert_eq!(info.selected, reference.selected, "{dim_k} {dim_v}");
                assert!(near(&out, &want) && near(&info.lse2, &reference.lse2));
            }
        }
    }
}

/// Copies that go while others read them stay until they are read, and their room is waited for.
#[test]
fn copies_go_while_they_are_read() {
    for select in by_clusters() {
        let caches = [ordered(&select, 3 << 20), tight(&select, 3 << 20)];
        let mut random = Random(69);
        let [s, twin] = filled([&caches[0], &caches[1]], 1500, &mut random);
        let queries: Vec<Vec<f32>> = (0..5).map(|_| query(&mut random, 1)).collect();
        let want: Vec<_> =
            queries.iter().map(|q| attend(&twin, 0, q, &all_of_it()).unwrap()).collect();
        for q in &queries {
            same(
                attend(&s, 0, q, &all_of_it()).unwrap(),
                attend(&twin, 0, q, &all_of_it()).unwrap(),
            );
        }
        assert!(copied(&caches[0]) > 0);
        let mut others = [&caches[0], &caches[1]].map(Cache::sequence);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                for round in 0..200 {
                    let i = round % queries.len();
                    same(attend(&s, 0, &queries[i], &all_of_it()).unwrap(), want[i].clone());
                }
            });
            for _ in 0..40 {
                let (k, v) = data(&mut random, 50);
                let [here, there] = others.each_mut().map(|s| append(s, &k, &v));
                assert_eq!(here.is_ok(), there.is_ok(), "{here:?} {there:?}");
            }
            reader.join().unwrap();
        });
        drop((s, twin, others));
        nothing_held(&caches[0]);
    }
}

/// A cache with copies does what one without does with the same budget.
fn run(steps: Vec<Step>, seed: u64, select: &Select, bytes: u64) {
    let caches = [ordered(select, bytes), tight(select, bytes)];
    let mut random = Random(seed);
    let mut pairs = vec![filled([&caches[0], &caches[1]], 300, &mut random)];
    for step in steps {
        let Some([s, twin]) = pairs.last_mut() else { break };
        let ok = match step {
            Step::Append(n) => {
                let (k, v) = data(&mut random, n);
                [append(s, &k, &v), append(twin, &k, &v)]
            }
            Step::Attend(layer) => alike(s, twin, layer, &query(&mut random, 1)),
            Step::Fork => {
                let pair = [s.fork(), twin.fork()];
                pairs.push(pair);
                [Ok(()), Ok(())]
            }
            Step::Truncate(share) => {
                let len = (s.len() * share / 100).max(1);
                [s.truncate(len), twin.truncate(len)]
            }
            // There is nothing below: instead the eldest goes, as sequences do.
            Step::Offload | Step::Restore => {
                drop(pairs.remove(0));
                [Ok(()), Ok(())]
            }
        };
        let stats = caches[0].stats();
        assert!(stats.used_bytes <= stats.budget_bytes);
        match ok {
            [Ok(()), Ok(())] => {}
            [Err(Error::OverBudget { .. }), Err(Error::OverBudget { .. })] => drop(pairs.pop()),
            other => panic!("{other:?}"),
        }
    }
    drop(pairs);
    nothing_held(&caches[0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn copies_change_no_answer_and_refuse_nothing(
        steps in prop::collection::vec(step(), 1..40), seed in any::<u64>(), select in 0usize..2,
        kib in 400u64..4000,
    ) {
        run(steps, seed, &by_clusters()[select], kib << 10);
    }
}
