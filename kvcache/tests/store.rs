//! The store against a plain model: a vector of keys and values per sequence, attended in f64.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use half::bf16;
use kvist::{
    AttendOptions, Boxed, Cache, DType, Error, Geometry, Quest, Select, Sequence, Tensor3,
    Tensor3Mut,
};
use proptest::prelude::*;

const HEADS: usize = 2;
const GROUP: usize = 3;
const DIM: usize = 32;
const ROW: usize = HEADS * DIM;

/// Deterministic numbers, roughly normal.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn normal(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum();
        (sum - 2.0) * 1.7
    }

    fn rows(&mut self, n: usize, scale: f32) -> Vec<bf16> {
        (0..n).map(|_| bf16::from_f32(scale * self.normal())).collect()
    }
}

fn cache(select: Select, bytes: u64) -> Cache {
    Cache::builder(Geometry::new(2, HEADS * GROUP, HEADS, DIM, DType::Bf16))
        .host_bytes(bytes)
        .select(select)
        .threads(2)
        .build()
        .unwrap()
}

fn rows(data: &[bf16]) -> Tensor3<'_> {
    Tensor3::contiguous(data, [data.len() / ROW, HEADS, DIM]).unwrap()
}

/// Attends with one query and returns (out, info).
fn attend(
    s: &Sequence,
    layer: usize,
    q: &[f32],
    options: &AttendOptions,
) -> (Vec<f32>, kvist::AttendInfo) {
    let n = q.len() / (HEADS * GROUP * DIM);
    let mut out = vec![f32::NAN; q.len()];
    let shape = [n, HEADS * GROUP, DIM];
    let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    let info =
        s.attend(layer, &Tensor3::contiguous(q, shape).unwrap(), options, &mut view).unwrap();
    (out, info)
}

/// Softmax masses of one query head over the first `len` tokens, in f64.
fn masses(k: &[bf16], len: usize, head: usize, q: &[f32]) -> Vec<f64> {
    let scale = 1.0 / (DIM as f32).sqrt();
    let logit = |t: usize| -> f64 {
        let row = &k[t * ROW + head / GROUP * DIM..][..DIM];
        let dot: f64 = row
            .iter()
            .zip(&q[head * DIM..])
            .map(|(a, &b)| f64::from(a.to_f32()) * f64::from(b))
            .sum();
        dot * f64::from(scale)
    };
    let logits: Vec<f64> = (0..len).map(logit).collect();
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|x| x / sum).collect()
}

fn dense(k: &[bf16], v: &[bf16], len: usize, q: &[f32]) -> Vec<f64> {
    let mut out = Vec::new();
    for head in 0..HEADS * GROUP {
        let p = masses(k, len, head, q);
        for c in 0..DIM {
            let value = |t: usize| f64::from(v[t * ROW + head / GROUP * DIM + c].to_f32());
            out.push((0..len).map(|t| p[t] * value(t)).sum());
        }
    }
    out
}

fn close(got: &[f32], want: &[f64]) -> bool {
    got.iter().zip(want).all(|(&a, &b)| (f64::from(a) - b).abs() < 0.02)
}

#[derive(Clone, Debug)]
enum Step {
    Append { sequence: usize, tokens: usize },
    Fork { sequence: usize },
    ForkWith { sequence: usize, select: usize },
    Truncate { sequence: usize, keep: usize },
    Drop { sequence: usize },
    Attend { sequence: usize, queries: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let s = 0usize..5;
    prop_oneof![
        4 => (s.clone(), prop_oneof![1usize..4, 1usize..150]).prop_map(|(sequence, tokens)| Step::Append { sequence, tokens }),
        2 => s.clone().prop_map(|sequence| Step::Fork { sequence }),
        1 => (s.clone(), 0usize..3).prop_map(|(sequence, select)| Step::ForkWith { sequence, select }),
        1 => (s.clone(), 0usize..100).prop_map(|(sequence, keep)| Step::Truncate { sequence, keep }),
        1 => s.clone().prop_map(|sequence| Step::Drop { sequence }),
        3 => (s, 1usize..5).prop_map(|(sequence, queries)| Step::Attend { sequence, queries }),
    ]
}

fn selects() -> [Select; 3] {
    [
        Select::Full,
        Select::Quest(Quest { budget: 96, unit_tokens: 16 }),
        Select::Boxed(Boxed { sinks: 4, recent: 16, ..Boxed::with_budget(96) }),
    ]
}

#[derive(Default)]
struct Model {
    k: Vec<bf16>,
    v: Vec<bf16>,
}

impl Model {
    fn len(&self) -> usize {
        self.k.len() / ROW
    }
}

fn check_attend(s: &Sequence, m: &Model, queries: usize, random: &mut Random) {
    let n = queries.min(m.len());
    if n == 0 {
        return;
    }
    let q: Vec<f32> = (0..n * HEADS * GROUP * DIM).map(|_| 2.0 * random.normal()).collect();
    let options = AttendOptions { selected: true, bound: true, ..AttendOptions::default() };
    let (out, info) = attend(s, 1, &q, &options);
    let width = HEADS * GROUP * DIM;
    let read_all = info.tokens_read.iter().all(|&t| t as usize == m.len());
    for i in 0..n {
        let len = m.len() - n + 1 + i;
        if n > 1 || read_all {
            let want = dense(&m.k, &m.v, len, &q[i * width..(i + 1) * width]);
            assert!(
                close(&out[i * width..(i + 1) * width], &want),
                "query {i} of {n}, {len} tokens"
            );
        }
    }
    let selected = info.selected.unwrap();
    let bound = info.missed_mass_bound.unwrap();
    for (head, positions) in selected.iter().enumerate() {
        assert!(positions.windows(2).all(|w| w[0] < w[1]), "ascending and unique");
        assert!(positions.iter().all(|&p| (p as usize) < m.len()), "in range");
        assert_eq!(positions.len(), info.tokens_read[head] as usize);
        assert_eq!(
            positions.last(),
            Some(&(m.len() as u32 - 1)),
            "the newest token is always read"
        );
        if n == 1 {
            for (h, &bound) in bound.iter().enumerate().skip(head * GROUP).take(GROUP) {
                let p = masses(&m.k, m.len(), h, &q);
                let missed = 1.0 - positions.iter().map(|&t| p[t as usize]).sum::<f64>();
                assert!(missed <= f64::from(bound) + 1e-12, "missed {missed}, bound {}", bound);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn random_scripts_agree_with_the_model(steps in prop::collection::vec(step(), 1..40), seed in any::<u64>(), select in 0usize..3) {
        let cache = cache(selects()[select].clone(), 64 << 20);
        let mut random = Random(seed);
        let mut live = vec![(cache.sequence(), Model::default())];
        for step in steps {
            let n = live.len();
            match step {
                Step::Append { sequence, tokens } => {
                    let (s, m) = &mut live[sequence % n];
                    let (k, v) = (random.rows(tokens * ROW, 1.0), random.rows(tokens * ROW, 1.0));
                    for layer in 0..2 {
                        s.append(layer, &rows(&k), &rows(&v)).unwrap();
                    }
                    m.k.extend(&k);
                    m.v.extend(&v);
                }
                Step::Fork { sequence } if n < 6 => {
                    let (s, m) = &live[sequence % n];
                    let fork = (s.fork(), Model { k: m.k.clone(), v: m.v.clone() });
                    live.push(fork);
                }
                Step::ForkWith { sequence, select } if n < 6 => {
                    let (s, m) = &live[sequence % n];
                    let fork = s.fork_with(&selects()[select]).unwrap();
                    let model = Model { k: m.k.clone(), v: m.v.clone() };
                    live.push((fork, model));
                }
                Step::Truncate { sequence, keep } => {
                    let (s, m) = &mut live[sequence % n];
                    let len = m.len() * keep / 100;
                    s.truncate(len).unwrap();
                    m.k.truncate(len * ROW);
                    m.v.truncate(len * ROW);
                }
                Step::Drop { sequence } if n > 1 => drop(live.swap_remove(sequence % n)),
                Step::Attend { sequence, queries } => {
                    let (s, m) = &live[sequence % n];
                    prop_assert_eq!(s.len(), m.len());
                    check_attend(s, m, queries, &mut random);
                }
                _ => {}
            }
            let stats = cache.stats();
            prop_assert_eq!(stats.used_bytes, stats.page_bytes + stats.summary_bytes + stats.overhead_bytes);
            prop_assert!(stats.used_bytes <= stats.budget_bytes);
        }
        for (s, m) in &live {
            check_attend(s, m, 1, &mut random);
            let (mut k, mut v) = (vec![0f32; m.k.len()], vec![0f32; m.v.len()]);
            s.read(1, 0, &mut k, &mut v).unwrap();
            prop_assert!(k.iter().zip(&m.k).all(|(a, b)| *a == b.to_f32()));
            prop_assert!(v.iter().zip(&m.v).all(|(a, b)| *a == b.to_f32()));
        }
        drop(live);
        prop_assert_eq!(cache.stats().used_bytes, 0);
    }

    #[test]
    fn certificates_hold_and_a_fork_selects_as_a_fresh_sequence(
        seed in any::<u64>(), tokens in 100usize..900, eps in 0.02f32..0.5, sharp in 0.2f32..4.0,
    ) {
        let select = Select::Boxed(Boxed { sinks: 4, recent: 16, ..Boxed::with_max_missed_mass(eps) });
        let cache = cache(select.clone(), 64 << 20);
        let mut random = Random(seed);
        let (k, v) = (random.rows(tokens * ROW, sharp), random.rows(tokens * ROW, 1.0));
        let mut s = cache.sequence();
        let mut plain = cache.sequence().fork_with(&Select::Full).unwrap();
        for layer in 0..2 {
            s.append(layer, &rows(&k), &rows(&v)).unwrap();
            plain.append(layer, &rows(&k), &rows(&v)).unwrap();
        }
        let q: Vec<f32> = (0..HEADS * GROUP * DIM).map(|_| 2.0 * random.normal()).collect();
        let options = AttendOptions { selected: true, ..AttendOptions::default() };
        let (out, info) = attend(&s, 0, &q, &options);
        for head in 0..HEADS * GROUP {
            let p = masses(&k, tokens, head, &q);
            let read = &info.selected.as_ref().unwrap()[head / GROUP];
            let missed = 1.0 - read.iter().map(|&t| p[t as usize]).sum::<f64>();
            let bound = f64::from(info.missed_mass_bound.as_ref().unwrap()[head]);
            prop_assert!(missed <= bound + 1e-12, "true {} proven {}", missed, bound);
            prop_assert!(bound <= f64::from(eps) + 1e-6, "proven {} wanted {}", bound, eps);
        }
        let fork = plain.fork_with(&select).unwrap();
        prop_assert_eq!(attend(&fork, 0, &q, &options), (out, info));
    }
}

#[test]
fn batches_read_shared_pages_once_and_equal_separate_calls() {
    let cache = cache(Select::Full, 64 << 20);
    let mut random = Random(7);
    let mut stem = cache.sequence();
    let (k, v) = (random.rows(300 * ROW, 1.0), random.rows(300 * ROW, 1.0));
    stem.append(0, &rows(&k), &rows(&v)).unwrap();
    let mut forks: Vec<Sequence> = (0..4).map(|_| stem.fork()).collect();
    for (i, f) in forks.iter_mut().enumerate() {
        let n = (10 + i) * ROW;
        f.append(0, &rows(&random.rows(n, 1.0)), &rows(&random.rows(n, 1.0))).unwrap();
    }
    let mut lone = cache.sequence();
    lone.append(0, &rows(&k), &rows(&v)).unwrap();
    let batch: Vec<&Sequence> = forks.iter().chain([&lone]).collect();
    let width = HEADS * GROUP * DIM;
    let counts = [1, 3, 1, 2, 1];
    let q: Vec<f32> = (0..8 * width).map(|_| random.normal()).collect();
    let mut out = vec![0f32; 8 * width];
    let shape = [8, HEADS * GROUP, DIM];
    let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    let all = Tensor3::contiguous(&q, shape).unwrap();
    let infos =
        cache.attend_batch(0, &all, &batch, &counts, &AttendOptions::default(), &mut view).unwrap();
    let mut row = 0;
    for ((s, n), info) in batch.iter().zip(counts).zip(&infos) {
        let (want, alone) =
            attend(s, 0, &q[row * width..(row + n) * width], &AttendOptions::default());
        let got = &out[row * width..(row + n) * width];
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 5e-3));
        assert!(info.lse2.iter().zip(&alone.lse2).all(|(a, b)| (a - b).abs() < 1e-3));
        row += n;
    }
    let token = (HEADS * cache.geometry().token_bytes()) as u64;
    let kv: Vec<u64> = infos.iter().map(|i| i.bytes.kv / token).collect();
    assert_eq!(kv, [310, 311 - 256, 312 - 256, 313 - 256, 300]);
}

#[test]
fn an_append_over_budget_changes_nothing() {
    let geometry = Geometry::new(2, HEADS * GROUP, HEADS, DIM, DType::Bf16);
    let page = geometry.page_bytes() as u64;
    let cache = cache(Select::Boxed(Boxed::default()), 9 * page);
    let mut random = Random(3);
    let mut s = cache.sequence();
    let (k, v) = (random.rows(100 * ROW, 1.0), random.rows(100 * ROW, 1.0));
    s.append(0, &rows(&k), &rows(&v)).unwrap();
    let before = cache.stats();
    let big = random.rows(300 * ROW, 1.0);
    let error = s.append(1, &rows(&big), &rows(&big)).unwrap_err();
    assert!(matches!(error, Error::OverBudget { .. }), "{error}");
    assert!(error.to_string().starts_with("over budget: "), "{error}");
    assert_eq!(cache.stats(), before);
    assert_eq!((s.layer_len(0).unwrap(), s.layer_len(1).unwrap()), (100, 0));
    let q = vec![0.5f32; HEADS * GROUP * DIM];
    assert!(close(&attend(&s, 0, &q, &AttendOptions::default()).0, &dense(&k, &v, 100, &q)));
}

#[test]
fn misuse_is_named() {
    let cache = cache(Select::Full, 16 << 20);
    let other = self::cache(Select::Full, 16 << 20);
    let mut s = cache.sequence();
    let good = Random(1).rows(10 * ROW, 1.0);
    let text = |r: Result<(), Error>| r.unwrap_err().to_string();
    assert_eq!(text(s.append(2, &rows(&good), &rows(&good))), "layer 2 is outside 0..2");
    let wide = Tensor3::contiguous(&good, [5, 2 * HEADS, DIM]).unwrap();
    assert_eq!(
        text(s.append(0, &wide, &wide)),
        "keys must have shape [tokens, 2 KV heads, 32], found [5, 4, 32]"
    );
    let floats = vec![0f32; 10 * ROW];
    let f32s = Tensor3::contiguous(&floats, [10, HEADS, DIM]).unwrap();
    assert_eq!(text(s.append(0, &f32s, &f32s)), "keys must be bf16 as the cache is, found f32");
    assert!(
        text(s.append(0, &rows(&good), &rows(&good[..5 * ROW])))
            .contains("as many tokens as the keys, 10")
    );
    assert_eq!(
        text(s.append_at(0, 7, &rows(&good), &rows(&good))),
        "layer 0: the next token has position 0, found 7"
    );
    s.append(0, &rows(&good), &rows(&good)).unwrap();
    assert!(text(s.truncate(1)).contains("the sequence has 0 tokens in layer 1, found 1"));
    let q = vec![0f32; 11 * HEADS * GROUP * DIM];
    let mut out = q.clone();
    let shape = [11, HEADS * GROUP, DIM];
    let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    let query = Tensor3::contiguous(&q, shape).unwrap();
    let options = AttendOptions::default();
    assert!(
        text(s.attend(0, &query, &options, &mut view).map(|_| ()))
            .contains("10 tokens in layer 0, found 11")
    );
    let foreign = other.attend_batch(0, &query, &[&s], &[11], &options, &mut view).unwrap_err();
    assert_eq!(foreign, Error::ForeignSequence { index: 0 });
    for scale in [f32::NAN, 0.0, -1.0] {
        let options = AttendOptions { scale: Some(scale), ..options };
        let one = query.rows(0, 1);
        let e = s.attend(0, &one, &options, &mut view.rows_mut(0, 1)).unwrap_err();
        assert!(e.to_string().starts_with("scale must be finite and above 0"), "{e}");
    }
    let none = Cache::builder(Geometry::new(1, 1, 1, 64, DType::F32)).host_bytes(10).build();
    assert!(none.unwrap_err().to_string().starts_with("over budget"));
}

#[test]
fn threads_share_a_cache() {
    let cache = cache(Select::Boxed(Boxed::with_budget(128)), 64 << 20);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let cache = cache.clone();
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut s = cache.sequence();
                let mut m = Model::default();
                for _ in 0..20 {
                    let (k, v) = (random.rows(37 * ROW, 1.0), random.rows(37 * ROW, 1.0));
                    for layer in 0..2 {
                        s.append(layer, &rows(&k), &rows(&v)).unwrap();
                    }
                    m.k.extend(&k);
                    m.v.extend(&v);
                    check_attend(&s, &m, 1, &mut random);
                }
            });
        }
    });
    assert_eq!(cache.stats().used_bytes, 0);
}

#[test]
fn results_do_not_depend_on_threads() {
    let build = |threads| {
        let cache = Cache::builder(Geometry::new(1, HEADS * GROUP, HEADS, DIM, DType::Bf16))
            .select(Select::Boxed(Boxed::with_budget(300)))
            .threads(threads)
            .build()
            .unwrap();
        let mut random = Random(5);
        let mut s = cache.sequence();
        s.append(0, &rows(&random.rows(3000 * ROW, 1.0)), &rows(&random.rows(3000 * ROW, 1.0)))
            .unwrap();
        let q: Vec<f32> = (0..HEADS * GROUP * DIM).map(|_| random.normal()).collect();
        attend(&s, 0, &q, &AttendOptions { selected: true, ..AttendOptions::default() })
    };
    let want = build(1);
    assert!(build(2) == want && build(5) == want);
}
