//! Selectors over what is derived from keys, against their definitions computed plainly in f64.

use half::bf16;
use kvist::kernels::cluster::pq::{Codebook, PqSpec};
use kvist::kernels::cluster::{self, Clusters, Count, Head, KMeans, Rows};
use kvist::kernels::{Executor, Isa};
use kvist::policies::{ClusterKv, InfLlm, InfiniGen, PqCache, RetroInfer, ShadowKv};
use kvist::{AttendInfo, AttendOptions, Select, Sequence, Tensor3, Tensor3Mut};
use proptest::prelude::*;

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, masses, rows};

const Q_HEADS: usize = HEADS * GROUP;
const QUERY: usize = Q_HEADS * DIM;

fn sequence(select: impl Into<Select>, k: &[bf16], v: &[bf16]) -> Sequence {
    let mut s = cache(select.into(), 64 << 20).sequence();
    append(&mut s, k, v);
    s
}

fn append(s: &mut Sequence, k: &[bf16], v: &[bf16]) {
    (0..2).for_each(|layer| s.append(layer, &rows(k), &rows(v)).unwrap());
}

fn query(random: &mut Random, of: usize) -> Vec<f32> {
    (0..of * QUERY).map(|_| 2.0 * random.normal()).collect()
}

fn ask(s: &Sequence, q: &[f32]) -> (Vec<f32>, AttendInfo) {
    let options = AttendOptions { selected: true, bound: true, ..AttendOptions::default() };
    attend(s, 0, q, &options)
}

fn picks(s: &Sequence, q: &[f32]) -> Vec<Vec<u32>> {
    ask(s, q).1.selected.unwrap()
}

/// Keys of one head, `[tokens][DIM]`.
fn of_head(k: &[bf16], head: usize) -> Vec<bf16> {
    k.chunks(ROW).flat_map(|row| row[head * DIM..][..DIM].to_vec()).collect()
}

fn floats(k: &[bf16]) -> Vec<f64> {
    k.iter().map(|x| f64::from(x.to_f32())).collect()
}

fn dot(q: &[f32], key: &[f64]) -> f64 {
    q.iter().zip(key).map(|(&a, b)| f64::from(a) * b).sum()
}

/// The queries of a KV head's group.
fn group(q: &[f32], head: usize) -> impl Iterator<Item = &[f32]> {
    q[head * GROUP * DIM..][..GROUP * DIM].chunks(DIM)
}

fn softmax(raw: &[f64]) -> Vec<f64> {
    let scale = 1.0 / (DIM as f64).sqrt();
    let top = raw.iter().copied().fold(f64::MIN, f64::max);
    let exp: Vec<f64> = raw.iter().map(|x| ((x - top) * scale).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

/// Sum over the group of the softmax of the scores of each.
fn votes(q: &[f32], head: usize, rows: &[Vec<f64>]) -> Vec<f64> {
    let mut sum = vec![0f64; rows.len()];
    for q in group(q, head) {
        let raw: Vec<f64> = rows.iter().map(|row| dot(q, row)).collect();
        sum.iter_mut().zip(softmax(&raw)).for_each(|(s, m)| *s += m);
    }
    sum
}

/// Whether what was picked of the candidates weighs at least what was not, but for near ties.
fn heaviest(chosen: &[u32], from: usize, unit: usize, weights: &[f64]) {
    let is_in = |u: usize| chosen.binary_search(&((from + u * unit) as u32)).is_ok();
    let of = |taken: bool| (0..weights.len()).filter(move |&u| is_in(u) == taken);
    let least = of(true).map(|u| weights[u]).fold(f64::MAX, f64::min);
    let most = of(false).map(|u| weights[u]).fold(f64::MIN, f64::max);
    let size = weights.iter().fold(1e-9f64, |m, w| m.max(w.abs()));
    assert!(most <= least + 0.03 * size, "{least} {most} of {size}");
}

fn clusters(settings: &KMeans, k: &[bf16], v: &[bf16]) -> Clusters {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let keys = Rows::contiguous(k, DIM, &mut a).unwrap();
    let values = Some(Rows::contiguous(v, DIM, &mut b).unwrap());
    let head = [Head { keys, values }];
    cluster::build(settings, &head, Isa::level(), &Executor::inline()).unwrap().remove(0)
}

fn centroids(clusters: &Clusters) -> Vec<Vec<f64>> {
    let row = |c: &[f32]| c.iter().map(|&x| f64::from(x)).collect();
    clusters.centroids().chunks(DIM).map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn clusterkv_reads_whole_clusters_until_the_budget_is_full(
        seed in any::<u64>(), tokens in 200usize..500, budget in 60usize..120, steps in 0usize..25,
    ) {
        let mut random = Random(seed);
        let (k, v) = (random.rows((tokens + steps) * ROW, 1.5), random.rows((tokens + steps) * ROW, 1.0));
        let (sinks, window) = (5, 12);
        let select = ClusterKv {
            budget, sinks, cluster_tokens: 20, window, later_tokens: 6, iterations: 7,
        };
        let mut s = sequence(select, &k[..tokens * ROW], &v[..tokens * ROW]);
        let q = query(&mut random, 1);
        picks(&s, &q);
        for step in 0..steps {
            let at = (tokens + step) * ROW;
            append(&mut s, &k[at..at + ROW], &v[at..at + ROW]);
            picks(&s, &q);
        }
        let len = tokens + steps;
        let later = steps / window * window;
        for (head, chosen) in picks(&s, &q).iter().enumerate() {
            let (k, v) = (of_head(&k, head), of_head(&v, head));
            let part = |from: usize, to: usize, size: usize| {
                let settings = KMeans { count: Count::PerTokens(size), iterations: 7, ..KMeans::cluster_kv() };
                (from, clusters(&settings, &k[from * DIM..to * DIM], &v[from * DIM..to * DIM]))
            };
            let mut parts = vec![part(sinks, tokens - 1, 20)];
            for from in (0..later).step_by(window) {
                parts.push(part(tokens - 1 + from, tokens - 1 + from + window, 6));
            }
            let all: Vec<(u32, &[u32])> = parts.iter().flat_map(|(from, c)| {
                (0..c.len()).map(move |i| (*from as u32, c.members(i)))
            }).collect();
            let rows: Vec<Vec<f64>> = parts.iter().flat_map(|(_, c)| centroids(c)).collect();
            let weights = votes(&q, head, &rows);
            let waiting = tokens - 1 + later;
            let is_in = |t: u32| chosen.binary_search(&t).is_ok();
            prop_assert!((0..sinks as u32).chain(waiting as u32..len as u32).all(is_in));
            prop_assert_eq!(chosen.len(), budget);
            let read: Vec<usize> =
                all.iter().map(|(from, m)| m.iter().filter(|&&t| is_in(from + t)).count()).collect();
            let cut: Vec<usize> = (0..all.len()).filter(|&c| read[c] > 0 && read[c] < all[c].1.len()).collect();
            prop_assert!(cut.len() <= 1, "one cluster at most is cut");
            for &c in &cut {
                let first = &all[c].1[..read[c]];
                prop_assert!(first.iter().all(|&t| is_in(all[c].0 + t)), "to its first tokens");
            }
            let heavy = (0..all.len()).filter(|&c| read[c] > 0).map(|c| weights[c]).fold(f64::MAX, f64::min);
            let light = (0..all.len()).filter(|&c| read[c] == 0).map(|c| weights[c]).fold(f64::MIN, f64::max);
            prop_assert!(light <= heavy * 1.02 + 1e-9, "{} {}", light, heavy);
        }
    }

    #[test]
    fn retroinfer_estimates_what_comes_next(seed in any::<u64>(), tokens in 200usize..500) {
        let mut random = Random(seed);
        let (k, v) = (random.rows(tokens * ROW, 1.5), random.rows(tokens * ROW, 1.0));
        let (sinks, recent) = (3, 10);
        let select = RetroInfer {
            budget: None, retrieved: 0.2, estimated: 0.3, sinks, recent, cluster_tokens: 8, window: 64,
            iterations: 4,
        };
        let s = sequence(select, &k, &v);
        let q = query(&mut random, 1);
        let (out, info) = ask(&s, &q);
        for (head, chosen) in info.selected.unwrap().iter().enumerate() {
            let (k, v) = (of_head(&k, head), of_head(&v, head));
            let settings = KMeans { count: Count::PerTokens(8), iterations: 4, ..KMeans::retro_infer() };
            let range = sinks * DIM..(tokens - recent) * DIM;
            let found = clusters(&settings, &k[range.clone()], &v[range]);
            let weights = votes(&q, head, &centroids(&found));
            let mut order: Vec<usize> = (0..found.len()).collect();
            order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
            let n = (found.len() as f32 * 0.2) as usize;
            let next = &order[n..n + (found.len() as f32 * 0.3) as usize];
            let mut want: Vec<u32> = order[..n].iter().flat_map(|&c| found.members(c)).map(|t| t + sinks as u32).collect();
            want.extend((0..sinks as u32).chain((tokens - recent) as u32..tokens as u32));
            want.sort_unstable();
            // Near ties in f32 may fall the other way.
            if &want != chosen {
                continue;
            }
            for (h, q) in group(&q, head).enumerate() {
                let scale = 1.0 / (DIM as f64).sqrt();
                let (mut sum, mut mass) = (vec![0f64; DIM], 0f64);
                for &t in chosen {
                    let w = (dot(q, &floats(&k[t as usize * DIM..][..DIM])) * scale).exp();
                    mass += w;
                    sum.iter_mut().zip(floats(&v[t as usize * DIM..][..DIM])).for_each(|(s, x)| *s += w * x);
                }
                for &c in next {
                    let w = (dot(q, &centroids(&found)[c]) * scale).exp();
                    mass += w * found.members(c).len() as f64;
                    sum.iter_mut().zip(&found.value_sums()[c * DIM..][..DIM]).for_each(|(s, &x)| *s += w * f64::from(x));
                }
                let got = &out[(head * GROUP + h) * DIM..][..DIM];
                for (a, b) in got.iter().zip(&sum) {
                    prop_assert!((f64::from(*a) - b / mass).abs() < 0.03, "{} {}", a, b / mass);
                }
            }
        }
    }

    #[test]
    fn pqcache_reads_the_best_by_codes(seed in any::<u64>(), tokens in 200usize..500, bits in 2u32..6) {
        let mut random = Random(seed);
        let k = random.rows(tokens * ROW, 1.0);
        let (sinks, budget) = (6, 106);
        let select = PqCache { budget: Some(budget), sinks, parts: 4, bits, iterations: 5, ..PqCache::default() };
        let (s, q, recent) = (sequence(select, &k, &k), query(&mut random, 1), 50);
        for (head, chosen) in picks(&s, &q).iter().enumerate() {
            let k = of_head(&k, head);
            let spec = PqSpec::new(DIM, 4, bits).unwrap();
            let mut ptrs = Vec::new();
            let keys = Rows::contiguous(&k[sinks * DIM..(tokens - recent) * DIM], DIM, &mut ptrs).unwrap();
            let book = Codebook::train(spec, &keys, 5, Isa::level(), &Executor::inline()).unwrap();
            // The nearest centroid of each part, by definition.
            let nearest = |key: &[f64]| -> Vec<f64> {
                (0..4).flat_map(|part| {
                    let (count, dim) = (1 << bits, DIM / 4);
                    let rows = &book.centroids()[part * count * dim..][..count * dim];
                    let far = |row: &[f32]| -> f64 {
                        row.iter().zip(&key[part * dim..]).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum()
                    };
                    let best = rows.chunks(dim).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap();
                    best.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>()
                }).collect()
            };
            let coded: Vec<Vec<f64>> =
                floats(&k)[sinks * DIM..(tokens - recent) * DIM].chunks(DIM).map(nearest).collect();
            prop_assert_eq!(chosen.len(), budget);
            heaviest(chosen, sinks, 1, &votes(&q, head, &coded));
        }
    }

    #[test]
    fn infinigen_scores_the_loudest_channels(seed in any::<u64>(), tokens in 150usize..400, near in any::<bool>()) {
        let mut random = Random(seed);
        let k = random.rows(tokens * ROW, 1.0);
        let budget = (!near).then_some(64);
        let select = InfiniGen { budget, alpha: 3.0, share: 0.5, channels: 0.25, sinks: 2, recent: 8 };
        let mut s = sequence(select, &k[..(tokens - 1) * ROW], &k[..(tokens - 1) * ROW]);
        let prompt = query(&mut random, 30);
        ask(&s, &prompt);
        append(&mut s, &k[(tokens - 1) * ROW..], &k[(tokens - 1) * ROW..]);
        let q = query(&mut random, 1);
        for (head, chosen) in picks(&s, &q).iter().enumerate() {
            let k = floats(&of_head(&k, head));
            let loud = |c: usize| -> f32 {
                prompt.chunks(QUERY).flat_map(|q| group(q, head).map(|q| q[c].abs()).collect::<Vec<_>>()).sum()
            };
            let mut channels: Vec<usize> = (0..DIM).collect();
            channels.sort_by(|&a, &b| loud(b).total_cmp(&loud(a)));
            channels.truncate(8);
            let part = |key: &[f64]| -> Vec<f64> {
                (0..DIM).map(|c| if channels.contains(&c) { key[c] } else { 0.0 }).collect()
            };
            let rows: Vec<Vec<f64>> = k.chunks(DIM).map(part).collect();
            let rows = &rows[2..tokens - 8];
            heaviest(chosen, 2, 1, &votes(&q, head, rows));
            let counts = group(&q, head).map(|q| {
                let raw: Vec<f64> = rows.iter().map(|row| dot(q, row) / (DIM as f64).sqrt()).collect();
                let top = raw.iter().copied().fold(f64::MIN, f64::max);
                raw.iter().filter(|&&x| x > top - 3.0).count()
            });
            let count = (counts.sum::<usize>() / GROUP).min(tokens / 2).max(1);
            let want = 10 + if near { count } else { 54 };
            prop_assert!(chosen.len().abs_diff(want) <= 1, "{} {}", chosen.len(), want);
        }
    }

    #[test]
    fn shadowkv_reads_outliers_and_the_largest_masses(seed in any::<u64>(), tokens in 200usize..500) {
        let mut random = Random(seed);
        let k = random.rows(tokens * ROW, 1.0);
        let (budget, outliers, recent) = (96, 3, 9);
        let s = sequence(ShadowKv { budget, unit_tokens: 8, outliers, recent }, &k, &k);
        let (q, units) = (query(&mut random, 1), (tokens - recent) / 8);
        for (head, chosen) in picks(&s, &q).iter().enumerate() {
            let k = floats(&of_head(&k, head));
            let means: Vec<Vec<f64>> = k.chunks(8 * DIM).take(units).map(|unit| {
                (0..DIM).map(|c| unit.chunks(DIM).map(|key| key[c]).sum::<f64>() / 8.0).collect()
            }).collect();
            let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let unlike = |u: usize| {
                let mean = &means[u];
                let cosine = |key: &[f64]| {
                    key.iter().zip(mean).map(|(a, b)| a * b).sum::<f64>() / norm(key) / norm(mean)
                };
                k[u * 8 * DIM..(u + 1) * 8 * DIM].chunks(DIM).map(cosine).fold(f64::MAX, f64::min)
            };
            let mut weights = vec![0f64; units];
            for q in group(&q, head) {
                let raw: Vec<f64> = means.iter().map(|m| dot(q, m)).collect();
                weights.iter_mut().zip(softmax(&raw)).for_each(|(w, m)| *w = w.max(m));
            }
            let mut order: Vec<usize> = (0..units).collect();
            order.sort_by(|&a, &b| unlike(a).total_cmp(&unlike(b)));
            order[..outliers].iter().for_each(|&u| weights[u] = 2.0);
            let read = (budget - (tokens - units * 8)) / 8;
            prop_assert_eq!(chosen.len(), read * 8 + tokens - units * 8);
            let of = |u: usize| chosen.binary_search(&((u * 8) as u32)).is_ok();
            prop_assert!(order[..outliers].iter().all(|&u| of(u)));
            order[..outliers].iter().for_each(|&u| weights[u] = 0.0);
            let least = (0..units).filter(|&u| of(u) && weights[u] > 0.0).map(|u| weights[u]).fold(f64::MAX, f64::min);
            let most = (0..units).filter(|&u| !of(u)).map(|u| weights[u]).fold(f64::MIN, f64::max);
            prop_assert!(most <= least * 1.05, "{} {}", most, least);
        }
    }

    #[test]
    fn infllm_knows_blocks_by_the_keys_that_were_looked_for(seed in any::<u64>(), blocks in 20usize..30) {
        let mut random = Random(seed);
        let (unit, recent, tokens) = (16, 32, blocks * 16 + 5);
        let (k, q) = (random.rows(tokens * ROW, 1.0), query(&mut random, tokens));
        let select = InfLlm { budget: 128, unit_tokens: unit, representatives: 3, sinks: 8, recent };
        let mut s = cache(select.into(), 64 << 20).sequence();
        for from in (0..tokens - 1).step_by(37) {
            let to = (from + 37).min(tokens - 1);
            append(&mut s, &k[from * ROW..to * ROW], &k[from * ROW..to * ROW]);
            ask(&s, &q[from * QUERY..to * QUERY]);
        }
        append(&mut s, &k[(tokens - 1) * ROW..], &k[(tokens - 1) * ROW..]);
        let last = &q[(tokens - 1) * QUERY..];
        let found = picks(&s, last);
        prop_assert!(found.iter().all(|f| f == &found[0]), "one list for the layer");
        let candidates = 1..(tokens - recent) / unit;
        let mut weights = vec![0f64; candidates.len()];
        for head in 0..HEADS {
            let k = floats(&of_head(&k, head));
            for block in candidates.clone() {
                let behind = (block + 1) * unit..((block + 1) * unit + recent).min(tokens - 1);
                let sought = |t: usize| -> f64 {
                    behind.clone().flat_map(|p| group(&q[p * QUERY..], head).map(|q| dot(q, &k[t * DIM..][..DIM])).collect::<Vec<_>>()).sum()
                };
                let mut order: Vec<usize> = (block * unit..(block + 1) * unit).collect();
                order.sort_by(|&a, &b| sought(b).total_cmp(&sought(a)));
                let mean: Vec<f64> = (0..DIM).map(|c| order[..3].iter().map(|&t| k[t * DIM + c]).sum::<f64>() / 3.0).collect();
                weights[block - 1] += group(last, head).map(|q| dot(q, &mean)).sum::<f64>();
            }
        }
        heaviest(&found[0], unit, unit, &weights);
        prop_assert_eq!(found[0].len(), 16 + (tokens - candidates.end * unit) + (128 - 16 - (tokens - candidates.end * unit)) / unit * unit);
    }

    #[test]
    fn radii_bound_what_clusters_leave_out(seed in any::<u64>(), tokens in 200usize..400, cap in any::<bool>()) {
        let mut random = Random(seed);
        let k = random.rows(tokens * ROW, 0.4);
        let select = ClusterKv { budget: 150, sinks: 4, cluster_tokens: 4, window: 16, ..ClusterKv::default() };
        let (s, q) = (sequence(select, &k, &k), query(&mut random, 1));
        let soft_cap = if cap { 1e6 } else { 0.0 };
        let options = AttendOptions { selected: true, bound: true, soft_cap, ..AttendOptions::default() };
        let info = attend(&s, 0, &q, &options).1;
        let (selected, bound) = (info.selected.unwrap(), info.missed_mass_bound.unwrap());
        for h in 0..Q_HEADS {
            let mass = masses(&k, tokens, h, &q);
            let read: f64 = selected[h / GROUP].iter().map(|&t| mass[t as usize]).sum();
            prop_assert!(1.0 - read <= f64::from(bound[h]) + 1e-6, "{} {}", 1.0 - read, bound[h]);
            prop_assert!(bound[h] < 1.0, "says something");
        }
    }
}

/// All of them, small.
fn all() -> Vec<Select> {
    vec![
        ClusterKv { budget: 96, sinks: 4, cluster_tokens: 8, window: 16, ..ClusterKv::default() }
            .into(),
        RetroInfer { budget: Some(96), recent: 16, window: 32, ..RetroInfer::default() }.into(),
        PqCache { budget: Some(160), sinks: 4, parts: 4, bits: 4, ..PqCache::default() }.into(),
        ShadowKv { budget: 96, outliers: 2, ..ShadowKv::default() }.into(),
        InfLlm { budget: 128, unit_tokens: 16, sinks: 4, recent: 32, ..InfLlm::default() }.into(),
        InfiniGen { budget: Some(96), recent: 8, ..InfiniGen::default() }.into(),
    ]
}

#[test]
fn forks_and_cuts_leave_what_a_fresh_sequence_reads() {
    let mut random = Random(3);
    let k = random.rows(400 * ROW, 1.0);
    for select in all() {
        let name = select.name();
        let mut s = sequence(select.clone(), &k[..300 * ROW], &k[..300 * ROW]);
        let q = query(&mut random, 1);
        let before = ask(&s, &q);
        let mut fork = s.fork();
        append(&mut fork, &k[300 * ROW..], &k[300 * ROW..]);
        let longer = picks(&fork, &q);
        assert_eq!(ask(&s, &q), before, "{name}: a fork changes nothing");
        fork.truncate(300).unwrap();
        assert_eq!(ask(&fork, &q), before, "{name}: cut to what it was");
        append(&mut fork, &k[300 * ROW..], &k[300 * ROW..]);
        assert_eq!(picks(&fork, &q), longer, "{name}: and grown again");
        s.truncate(200).unwrap();
        let fresh = sequence(select, &k[..200 * ROW], &k[..200 * ROW]);
        let found = picks(&s, &q);
        assert!(found.iter().flatten().all(|&t| t < 200), "{name}");
        if name != "infinigen" {
            // Its channels stay those that were chosen.
            assert_eq!(found, picks(&fresh, &q), "{name}");
        }
    }
}

#[test]
fn no_token_is_read_twice_after_a_cut() {
    let mut random = Random(8);
    let k = random.rows(400 * ROW, 1.0);
    for select in all() {
        let name = select.name();
        let mut s = sequence(select, &k[..300 * ROW], &k[..300 * ROW]);
        let q = query(&mut random, 1);
        picks(&s, &q);
        append(&mut s, &k[300 * ROW..], &k[300 * ROW..]);
        picks(&s, &q);
        // Into what was derived last, so that recent tokens are among it.
        for len in [395, 350, 301, 290, 250] {
            s.truncate(len).unwrap();
            for chosen in picks(&s, &q) {
                assert!(chosen.windows(2).all(|w| w[0] < w[1]), "{name} at {len}");
                assert!(chosen.contains(&(len as u32 - 1)), "{name} at {len}");
            }
        }
    }
}

#[test]
fn keys_that_are_not_finite_are_read() {
    let mut random = Random(4);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut k = random.rows(300 * ROW, 1.0);
        for head in 0..HEADS {
            k[100 * ROW + head * DIM + 7] = bf16::from_f32(bad);
        }
        for select in all() {
            let name = select.name();
            let s = sequence(select, &k, &random.rows(300 * ROW, 1.0));
            let q = query(&mut random, 1);
            assert!(picks(&s, &q).iter().all(|c| c.contains(&100)), "{name} {bad}");
        }
    }
}

#[test]
fn what_is_derived_is_charged_and_given_back() {
    let mut random = Random(5);
    let k = random.rows(300 * ROW, 1.0);
    for select in all() {
        let cache = cache(select.clone(), 64 << 20);
        let mut s = cache.sequence();
        append(&mut s, &k, &k);
        let before = cache.stats().used_bytes;
        picks(&s, &query(&mut random, 1));
        let held = cache.stats().used_bytes;
        assert!(held > before, "{}", select.name());
        s.truncate(4).unwrap();
        drop(s);
        assert!(cache.stats().used_bytes < before, "{}", select.name());
    }
}

#[test]
fn a_budget_too_small_for_what_is_derived_is_an_error() {
    let mut random = Random(6);
    let k = random.rows(1200 * ROW, 1.0);
    let select = InfiniGen { budget: Some(96), channels: 1.0, ..InfiniGen::default() };
    // Pages of two layers fit, copies of all channels do not.
    let cache = cache(select.into(), 2 * 1216 * (ROW as u64) * 4 + (60 << 10));
    let mut s = cache.sequence();
    append(&mut s, &k, &k);
    let q = query(&mut random, 1);
    let mut out = vec![0f32; QUERY];
    let shape = [1, Q_HEADS, DIM];
    let mut out = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    let q = Tensor3::contiguous(&q, shape).unwrap();
    let error = s.attend(0, &q, &AttendOptions::default(), &mut out).unwrap_err();
    assert!(matches!(error, kvist::Error::OverBudget { .. }), "{error}");
}

#[test]
fn codes_must_fit_the_keys() {
    let build = |parts: usize| {
        let select = PqCache { parts, ..PqCache::default() };
        kvist::Cache::builder(kvist::Geometry::new(1, 2, 1, DIM, kvist::DType::Bf16))
            .select(select.into())
            .build()
    };
    assert!(build(4).is_ok());
    assert!(build(5).unwrap_err().to_string().contains("a divisor of 32"));
}
