//! Draft trees through the store: each node against f64 over its path, and against appending that path.

use half::bf16;
use kvist::policies::{MagicDec, Streaming};
use kvist::{
    AttendInfo, AttendOptions, Cache, DType, Drafts, Error, Geometry, ROOT, Select, Sequence,
    Tensor3, Tensor3Mut, Trees,
};
use proptest::prelude::*;

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, rows};

const Q_HEADS: usize = HEADS * GROUP;
const WIDTH: usize = Q_HEADS * DIM;

/// Nodes of one sequence: parents, keys, values.
#[derive(Clone)]
struct Tree {
    parents: Vec<u32>,
    k: Vec<bf16>,
    v: Vec<bf16>,
}

/// A sequence of the store, and what it holds.
struct Held {
    s: Sequence,
    k: Vec<bf16>,
    v: Vec<bf16>,
}

impl Held {
    fn new(cache: &Cache, tokens: usize, random: &mut Random) -> Held {
        let (k, v) = (random.rows(tokens * ROW, 1.0), random.rows(tokens * ROW, 1.0));
        let mut s = cache.sequence();
        s.append(0, &rows(&k), &rows(&v)).unwrap();
        Held { s, k, v }
    }

    fn fork(&self, tokens: usize, random: &mut Random) -> Held {
        let mut fork = Held { s: self.s.fork(), k: self.k.clone(), v: self.v.clone() };
        let (k, v) = (random.rows(tokens * ROW, 1.0), random.rows(tokens * ROW, 1.0));
        fork.s.append(0, &rows(&k), &rows(&v)).unwrap();
        fork.k.extend(k);
        fork.v.extend(v);
        fork
    }

    fn len(&self) -> usize {
        self.k.len() / ROW
    }
}

fn tree(nodes: usize, random: &mut Random) -> Tree {
    let parent = |i: usize, random: &mut Random| match random.below(i + 1) {
        0 => ROOT,
        n => n as u32 - 1,
    };
    let parents = (0..nodes).map(|i| parent(i, random)).collect();
    Tree { parents, k: random.rows(nodes * ROW, 1.0), v: random.rows(nodes * ROW, 1.0) }
}

fn queries(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n * WIDTH).map(|_| 2.0 * random.normal()).collect()
}

/// The trees of several sequences as one call takes them.
fn joined(trees: &[Tree]) -> (Trees, Vec<bf16>, Vec<bf16>) {
    let mut indptr = vec![0];
    trees.iter().for_each(|t| indptr.push(indptr[indptr.len() - 1] + t.parents.len() as u32));
    let all = |of: fn(&Tree) -> &Vec<bf16>| trees.iter().flat_map(of).copied().collect();
    let parents: Vec<u32> = trees.iter().flat_map(|t| &t.parents).copied().collect();
    (Trees::new(&indptr, &parents).unwrap(), all(|t| &t.k), all(|t| &t.v))
}

/// Verifies trees in one call.
fn verify(
    cache: &Cache,
    sequences: &[&Sequence],
    trees: &[Tree],
    q: &[f32],
    options: &AttendOptions,
) -> Result<(Vec<f32>, Vec<AttendInfo>), Error> {
    let (trees, k, v) = joined(trees);
    let shape = [q.len() / WIDTH, Q_HEADS, DIM];
    let mut out = vec![f32::NAN; q.len()];
    let infos = cache.attend_trees(
        0,
        &Tensor3::contiguous(q, shape).unwrap(),
        sequences,
        &Drafts { trees: &trees, k: rows(&k), v: rows(&v) },
        options,
        &mut Tensor3Mut::contiguous(&mut out, shape).unwrap(),
    )?;
    Ok((out, infos))
}

/// Attention of one query head over `k` and `v` rows, and the natural log-sum-exp, in f64.
fn exact(
    k: &[bf16],
    v: &[bf16],
    q: &[f32],
    head: usize,
    options: &AttendOptions,
) -> (Vec<f64>, f64) {
    let (scale, cap) = (1.0 / (DIM as f64).sqrt(), f64::from(options.soft_cap));
    let row = |x: &[bf16], t: usize| -> Vec<f64> {
        x[t * ROW + head / GROUP * DIM..][..DIM].iter().map(|x| f64::from(x.to_f32())).collect()
    };
    let q = &q[head * DIM..][..DIM];
    let logit = |t: usize| {
        let dot: f64 = row(k, t).iter().zip(q).map(|(a, &b)| a * f64::from(b)).sum();
        if cap > 0.0 { cap * (dot * scale / cap).tanh() } else { dot * scale }
    };
    let n = k.len() / ROW;
    let first = if options.window > 0 { n.saturating_sub(options.window) } else { 0 };
    let weights: Vec<f64> = (first..n).map(|t| logit(t).exp()).collect();
    let sink = options.sinks.map_or(0.0, |sinks| f64::from(sinks[head]).exp());
    let sum: f64 = weights.iter().sum::<f64>() + sink;
    let mut o = vec![0.0; DIM];
    for (w, t) in weights.iter().zip(first..n) {
        o.iter_mut().zip(row(v, t)).for_each(|(o, v)| *o += w / sum * v);
    }
    (o, sum.ln())
}

/// Every node of every tree against f64 and against a fork that has its path.
fn check(held: &[Held], trees: &[Tree], q: &[f32], options: &AttendOptions) {
    let sequences: Vec<&Sequence> = held.iter().map(|h| &h.s).collect();
    let cache = sequences[0].cache();
    let (out, infos) = verify(cache, &sequences, trees, q, options).unwrap();
    let mut first = 0;
    for (i, (h, t)) in held.iter().zip(trees).enumerate() {
        let n = t.parents.len();
        let own = Trees::new(&[0, n as u32], &t.parents).unwrap();
        assert_eq!(infos[i].lse2.len(), n * Q_HEADS);
        for node in 0..n {
            let path = own.path(0, node as u32).unwrap();
            let of = |x: &[bf16]| -> Vec<bf16> {
                path.iter().flat_map(|&p| &x[p as usize * ROW..][..ROW]).copied().collect()
            };
            let (k, v) = (of(&t.k), of(&t.v));
            let q = &q[(first + node) * WIDTH..][..WIDTH];
            let got = &out[(first + node) * WIDTH..][..WIDTH];
            let (all_k, all_v) = ([&h.k[..], &k].concat(), [&h.v[..], &v].concat());
            for head in 0..Q_HEADS {
                let (want, lse) = exact(&all_k, &all_v, q, head, options);
                for (a, b) in got[head * DIM..].iter().zip(&want) {
                    assert!((f64::from(*a) - b).abs() < 0.02, "sequence {i} node {node}: {a} {b}");
                }
                let found = f64::from(infos[i].lse2[node * Q_HEADS + head]) * 2f64.ln();
                assert!((found - lse).abs() < 0.03, "{found} {lse}");
            }
            let mut fork = h.s.fork_with(&Select::Full).unwrap();
            fork.append(0, &rows(&k), &rows(&v)).unwrap();
            let (want, info) = attend(&fork, 0, q, options);
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 0.01));
            let lse = &infos[i].lse2[node * Q_HEADS..][..Q_HEADS];
            assert!(lse.iter().zip(&info.lse2).all(|(a, b)| (a - b).abs() < 0.03));
        }
        first += n;
    }
}

fn sinks() -> Vec<f32> {
    (0..Q_HEADS).map(|h| h as f32 - 2.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_node_is_its_path_appended(
        seed in any::<u64>(), lens in prop::collection::vec(0usize..300, 1..4),
        shared in prop::option::of(0usize..200), nodes in prop::collection::vec(0usize..12, 3),
        window in prop_oneof![3 => Just(0usize), 1 => 1usize..200],
        cap in prop_oneof![2 => Just(0f32), 1 => Just(3f32)], sunk in any::<bool>(),
    ) {
        let mut random = Random(seed);
        let cache = cache(Streaming { sinks: 4, recent: 20 }.into(), 64 << 20);
        // With a shared beginning, whose pages are read once for all.
        let base = shared.map(|n| Held::new(&cache, n, &mut random));
        let make = |&n: &usize| match &base {
            Some(base) => base.fork(n, &mut random),
            None => Held::new(&cache, n, &mut random),
        };
        let held: Vec<Held> = lens.iter().map(make).collect();
        let trees: Vec<Tree> = held.iter().zip(&nodes).map(|(_, &n)| tree(n, &mut random)).collect();
        let q = queries(&mut random, trees.iter().map(|t| t.parents.len()).sum());
        let sinks = sinks();
        let options = AttendOptions {
            soft_cap: cap, window, sinks: sunk.then_some(&sinks[..]), ..AttendOptions::default()
        };
        check(&held, &trees, &q, &options);
    }
}

#[test]
fn a_call_says_what_it_read_and_changes_nothing() {
    let mut random = Random(1);
    let cache = cache(MagicDec { budget: 64, window: 8, pool: 3 }.into(), 64 << 20);
    let base = Held::new(&cache, 256, &mut random);
    let held = [base.fork(70, &mut random), base.fork(3, &mut random)];
    // The choice of drafts comes from the prompt, not from drafts that are verified.
    let prompt = queries(&mut random, 20);
    held.iter().for_each(|h| drop(attend(&h.s, 0, &prompt, &AttendOptions::default())));
    let q = queries(&mut random, 1);
    let before = attend(&held[0].s.fork(), 0, &q, &AttendOptions::default());
    assert_eq!(before.1.tokens_read, [64; HEADS]);

    let trees = [tree(5, &mut random), tree(1, &mut random)];
    let nodes = queries(&mut random, 6);
    let options = AttendOptions { selected: true, ..AttendOptions::default() };
    let stats = cache.stats();
    let sequences = [&held[0].s, &held[1].s];
    let (_, infos) = verify(&cache, &sequences, &trees, &nodes, &options).unwrap();
    for (info, h) in infos.iter().zip(&held) {
        assert_eq!(info.tokens_read, [h.len() as u32; HEADS], "dense, whatever the selector");
        let all: Vec<u32> = (0..h.len() as u32).collect();
        assert_eq!(info.selected.as_deref(), Some(&[all.clone(), all][..]));
        assert_eq!(info.missed_mass_bound, Some(vec![0.0; Q_HEADS]));
    }
    let token = (HEADS * 2 * DIM * 2) as u64;
    assert_eq!(infos[0].bytes.total(), 326 * token);
    assert_eq!(infos[1].bytes.total(), 3 * token, "shared pages are read once");
    let after = cache.stats();
    assert_eq!(after.queries - stats.queries, 6);
    assert_eq!(after.used_bytes, stats.used_bytes);
    assert_eq!((held[0].s.layer_len(0), held[1].s.layer_len(0)), (Ok(326), Ok(259)));
    assert_eq!(attend(&held[0].s.fork(), 0, &q, &AttendOptions::default()), before);
}

#[test]
fn results_do_not_depend_on_threads() {
    let run = |threads: usize| {
        let mut random = Random(2);
        let geometry = Geometry::new(1, Q_HEADS, HEADS, DIM, DType::Bf16);
        let cache = Cache::builder(geometry).threads(threads).build().unwrap();
        let base = Held::new(&cache, 900, &mut random);
        let held = [base.fork(5, &mut random), base.fork(400, &mut random)];
        let trees = [tree(40, &mut random), tree(70, &mut random)];
        let q = queries(&mut random, 110);
        let sequences = [&held[0].s, &held[1].s];
        let (out, infos) =
            verify(&cache, &sequences, &trees, &q, &AttendOptions::default()).unwrap();
        (out.iter().map(|x| x.to_bits()).collect::<Vec<u32>>(), infos)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn what_does_not_fit_is_named_and_nothing_is_written() {
    let mut random = Random(3);
    let caches = [(); 2].map(|()| cache(Select::Full, 16 << 20));
    let (own, other) =
        (Held::new(&caches[0], 40, &mut random), Held::new(&caches[1], 40, &mut random));
    let t = tree(3, &mut random);
    let q = queries(&mut random, 3);
    let text = |sequences: &[&Sequence], trees: &[Tree], rows: usize| {
        let q = &q[..rows * WIDTH];
        let options = AttendOptions::default();
        verify(&caches[0], sequences, trees, q, &options).unwrap_err().to_string()
    };
    let one = std::slice::from_ref(&t);
    assert_eq!(text(&[&other.s], one, 3), "sequence 0 of the batch belongs to another cache");
    assert_eq!(text(&[&own.s, &own.s], one, 3), "trees of the sequences: expected 2, found 1");
    let wrong = text(&[&own.s], one, 2);
    assert_eq!(wrong, "queries must have shape [3 queries, 6 query heads, 32], found [2, 6, 32]");

    let (trees, keys, _) = joined(one);
    let mut out = vec![7f32; 3 * WIDTH];
    let mut go = |layer: usize, k: Tensor3, v: Tensor3, options: AttendOptions| {
        let shape = [3, Q_HEADS, DIM];
        let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
        let q = Tensor3::contiguous(&q, shape).unwrap();
        let drafts = Drafts { trees: &trees, k, v };
        own.s.attend_tree(layer, &q, &drafts, &options, &mut view).unwrap_err().to_string()
    };
    let plain = AttendOptions::default;
    let all = rows(&keys);
    assert_eq!(go(2, all, all, plain()), "layer 2 is outside 0..2");
    let two = all.rows(0, 2);
    let found = go(0, two, two, plain());
    assert_eq!(found, "keys must have shape [3 nodes, 2 KV heads, 32], found [2, 2, 32]");
    assert!(go(0, all, two, plain()).contains("as many tokens as the keys, 3"));
    let floats = vec![0f32; 3 * ROW];
    let floats = Tensor3::contiguous(&floats, [3, HEADS, DIM]).unwrap();
    assert_eq!(go(0, floats, floats, plain()), "keys must be bf16 as the cache is, found f32");
    let narrow = Tensor3::contiguous(&keys, [3, 1, ROW]).unwrap();
    assert!(go(0, narrow, narrow, plain()).contains("2 KV heads, 32]"));
    let options = AttendOptions { soft_cap: -1.0, ..plain() };
    assert!(go(0, all, all, options).contains("soft_cap must be"));
    let few = AttendOptions { sinks: Some(&[0.0]), ..plain() };
    assert_eq!(go(0, all, all, few), "sink logits: expected 6, found 1");
    assert!(out.iter().all(|&x| x == 7.0));
}
