//! Prompts that read blocks of keys by a pattern.

use half::bf16;
use kvist::kernels::attend::{Listed, Params, Queries};
use kvist::kernels::{Executor, KvPool, PageLists};
use kvist::policies::prefill::{
    AShape, BlockSparse, MInference, Nsa, PATTERNS, ProxyAttn, VerticalSlash,
};
use kvist::prefill::{self, Prefill};
use kvist::{AttendInfo, AttendOptions, Select, Sequence, Tensor3, Tensor3Mut};

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, rows};

const Q_HEADS: usize = HEADS * GROUP;
const QUERY: usize = Q_HEADS * DIM;

fn sequence(k: &[bf16], v: &[bf16]) -> Sequence {
    let mut s = cache(Select::Full, 64 << 20).sequence();
    s.append(0, &rows(k), &rows(v)).unwrap();
    s
}

fn ask(s: &Sequence, q: &[f32], prefill: Option<&Prefill>) -> (Vec<f32>, AttendInfo) {
    attend(s, 0, q, &AttendOptions { selected: true, prefill, ..AttendOptions::default() })
}

fn small() -> Vec<Prefill> {
    vec![
        Prefill::AShape(AShape { sinks: 64, local: 128 }),
        Prefill::VerticalSlash(VerticalSlash {
            vertical: 60,
            slash: 120,
            ..VerticalSlash::default()
        }),
        Prefill::BlockSparse(BlockSparse { blocks: 4 }),
        Prefill::MInference(MInference { share: Some(0.3), ..MInference::default() }),
        Prefill::ProxyAttn(ProxyAttn { proxies: 1, mass: 0.5, blocks_min: 2 }),
        Prefill::ProxyAttn(ProxyAttn { proxies: 2, mass: 0.5, blocks_min: 2 }),
        Prefill::Nsa(Nsa { blocks: 4, ..Nsa::default() }),
    ]
}

/// Attention of one query head at one position over given tokens, in f64.
fn plain(q: &[f32], k: &[bf16], v: &[bf16], head: usize, tokens: &[usize]) -> Vec<f64> {
    let kv = head / GROUP * DIM;
    let row = |x: &[bf16], t: usize, c: usize| f64::from(x[t * ROW + kv + c].to_f32());
    let logit = |t: usize| -> f64 {
        (0..DIM).map(|c| f64::from(q[head * DIM + c]) * row(k, t, c)).sum::<f64>()
            / (DIM as f64).sqrt()
    };
    let logits: Vec<f64> = tokens.iter().map(|&t| logit(t)).collect();
    let top = logits.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = logits.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..DIM)
        .map(|c| tokens.iter().zip(&weights).map(|(&t, w)| w * row(v, t, c)).sum::<f64>() / sum)
        .collect()
}

#[test]
fn each_query_attends_to_what_its_lists_name() {
    let mut random = Random(1);
    let tokens = 700;
    let (k, v) = (random.rows(tokens * ROW, 1.0), random.rows(tokens * ROW, 1.0));
    for queries in [700, 333] {
        let q: Vec<f32> = (0..queries * QUERY).map(|_| 2.0 * random.normal()).collect();
        let s = sequence(&k, &v);
        for pattern in small() {
            let (out, info) = ask(&s, &q, Some(&pattern));
            // The same lists from the caller's own tensors.
            let positions: Vec<u32> = ((tokens - queries) as u32..tokens as u32).collect();
            let indptr = [0, queries as u32];
            let rows_of = Tensor3::contiguous(&q, [queries, Q_HEADS, DIM]).unwrap();
            let asked = Queries { q: rows_of, indptr: &indptr, positions: Some(&positions) };
            let pool = KvPool::from_rows(&rows(&k), &rows(&v)).unwrap();
            let lens = [tokens as u32];
            let pages = PageLists {
                indptr: &[0, 1],
                frames: &[0],
                lens: &lens,
                first_pos: None,
                per_head: false,
            };
            let params = Params { causal: true, ..Params::new(1.0 / (DIM as f32).sqrt()) };
            let keys = Listed::Pages(&pool, &pages);
            let exec = Executor::inline();
            let found =
                prefill::lists(&pattern, &asked, &keys, tokens, &params, &exec).unwrap().unwrap();
            let blocks = found.grid.query_blocks();
            for (i, head) in [(0, 0), (queries / 2, 3), (queries - 1, 5), (70, 1)] {
                let list = if found.per_query_head { head } else { head / GROUP };
                let mut seen = vec![false; tokens];
                let at = positions[i] as usize;
                for &b in found.lists.list(list * blocks + i / 64) {
                    (b as usize * 64..((b as usize + 1) * 64).min(tokens))
                        .for_each(|t| seen[t] = true);
                }
                found.lists.columns(list).iter().for_each(|&t| seen[t as usize] = true);
                let read: Vec<usize> = (0..=at).filter(|&t| seen[t]).collect();
                let want = plain(&q[i * QUERY..], &k, &v, head, &read);
                let got = &out[i * QUERY + head * DIM..][..DIM];
                for (a, b) in got.iter().zip(&want) {
                    assert!(
                        (f64::from(*a) - b).abs() < 0.02,
                        "{pattern:?} query {i} head {head}: {a} {b}"
                    );
                }
            }
            let dense = ask(&s, &q, None).1;
            assert!(info.bytes.kv <= dense.bytes.kv && info.missed_mass_bound.is_none());
            assert!(
                info.tokens_read.iter().all(|&n| n > 64 && n <= 700),
                "{pattern:?} {:?}",
                info.tokens_read
            );
            let fixed = matches!(pattern, Prefill::AShape(_) | Prefill::Nsa(_));
            assert!(!fixed || info.tokens_read.iter().all(|&n| n < 400), "{pattern:?}");
            let selected = info.selected.unwrap();
            assert_eq!(selected[0].len(), info.tokens_read[0] as usize);
            assert!(selected.iter().all(|s| s.contains(&699)), "its own token");
        }
    }
}

#[test]
fn few_queries_windows_and_the_dense_pattern_are_dense() {
    let mut random = Random(2);
    let k = random.rows(400 * ROW, 1.0);
    let s = sequence(&k, &k);
    let q: Vec<f32> = (0..200 * QUERY).map(|_| random.normal()).collect();
    let pattern = &small()[0];
    assert_eq!(ask(&s, &q, Some(&Prefill::Dense)), ask(&s, &q, None));
    assert_eq!(ask(&s, &q[..63 * QUERY], Some(pattern)), ask(&s, &q[..63 * QUERY], None));
    assert_ne!(ask(&s, &q[..64 * QUERY], Some(pattern)).0, ask(&s, &q[..64 * QUERY], None).0);
    let window = AttendOptions { window: 300, ..AttendOptions::default() };
    let both = AttendOptions { prefill: Some(pattern), ..window };
    assert_eq!(attend(&s, 0, &q, &both), attend(&s, 0, &q, &window));
    for p in PATTERNS {
        // Defaults are for prompts far longer than this: all of it is read.
        let default = Prefill::parse(p.name).unwrap();
        let (sparse, dense) = (ask(&s, &q, Some(&default)).0, ask(&s, &q, None).0);
        let near = sparse.iter().zip(&dense).filter(|(a, b)| (*a - *b).abs() < 0.02).count();
        assert!(near == dense.len() || p.name == "proxyattn", "{}", p.name);
    }
}

#[test]
fn batches_equal_separate_calls() {
    let mut random = Random(3);
    let k = random.rows(600 * ROW, 1.0);
    let cache = cache(Select::Full, 64 << 20);
    let mut sequences: Vec<Sequence> = Vec::new();
    for n in [600, 300, 450] {
        let mut s = cache.sequence();
        s.append(0, &rows(&k[..n * ROW]), &rows(&k[..n * ROW])).unwrap();
        sequences.push(s);
    }
    let counts = [300, 20, 100];
    let all: usize = counts.iter().sum();
    let q: Vec<f32> = (0..all * QUERY).map(|_| random.normal()).collect();
    for pattern in small() {
        let options = AttendOptions { prefill: Some(&pattern), ..AttendOptions::default() };
        let mut out = vec![0f32; all * QUERY];
        let refs: Vec<&Sequence> = sequences.iter().collect();
        let shape = [all, Q_HEADS, DIM];
        let infos = cache
            .attend_batch(
                0,
                &Tensor3::contiguous(&q, shape).unwrap(),
                &refs,
                &counts,
                &options,
                &mut Tensor3Mut::contiguous(&mut out, shape).unwrap(),
            )
            .unwrap();
        let mut row = 0;
        for ((s, &n), info) in sequences.iter().zip(&counts).zip(infos) {
            let (want, alone) = attend(s, 0, &q[row * QUERY..(row + n) * QUERY], &options);
            assert_eq!(
                (&out[row * QUERY..(row + n) * QUERY], &info),
                (&want[..], &alone),
                "{pattern:?}"
            );
            row += n;
        }
    }
}

#[test]
fn proxies_must_fit_the_model() {
    let mut random = Random(4);
    let k = random.rows(200 * ROW, 1.0);
    let s = sequence(&k, &k);
    let pattern = Prefill::ProxyAttn(ProxyAttn { proxies: 4, ..ProxyAttn::default() });
    let options = AttendOptions { prefill: Some(&pattern), ..AttendOptions::default() };
    let q = vec![1f32; 100 * QUERY];
    let mut out = vec![0f32; 100 * QUERY];
    let shape = [100, Q_HEADS, DIM];
    let mut out = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    let error =
        s.attend(0, &Tensor3::contiguous(&q, shape).unwrap(), &options, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "proxies must be a divisor of 2 KV heads, found 4");
}
