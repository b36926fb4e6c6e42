//! The systems of the literature against what their papers say, computed plainly in f64 from all keys.

use half::bf16;
use kvist::policies::{
    ArkVale, Dsa, MagicDec, Nsa, SnapKv, Streaming, TidalDecode, TokenSelect, Twilight,
};
use kvist::{AttendInfo, AttendOptions, Error, Quest, Scores, Select, Sequence};
use proptest::prelude::*;

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, masses, rows};

const Q_HEADS: usize = HEADS * GROUP;
const QUERY: usize = Q_HEADS * DIM;

fn sequence(select: impl Into<Select>, k: &[bf16]) -> Sequence {
    let mut s = cache(select.into(), 64 << 20).sequence();
    append(&mut s, k);
    s
}

fn append(s: &mut Sequence, k: &[bf16]) {
    (0..2).for_each(|layer| s.append(layer, &rows(k), &rows(k)).unwrap());
}

fn query(random: &mut Random, of: usize) -> Vec<f32> {
    (0..of * QUERY).map(|_| 2.0 * random.normal()).collect()
}

fn ask(s: &Sequence, layer: usize, q: &[f32]) -> AttendInfo {
    attend(s, layer, q, &AttendOptions { selected: true, ..AttendOptions::default() }).1
}

fn picks(s: &Sequence, q: &[f32]) -> Vec<Vec<u32>> {
    ask(s, 0, q).selected.unwrap()
}

fn dot(q: &[f32], k: &[bf16], token: usize, q_head: usize) -> f64 {
    let key = &k[token * ROW + q_head / GROUP * DIM..][..DIM];
    let q = &q[q_head * DIM..][..DIM];
    q.iter().zip(key).map(|(&a, b)| f64::from(a) * f64::from(b.to_f32())).sum()
}

/// Softmax of raw logits with the usual scale.
fn softmax(raw: &[f64]) -> Vec<f64> {
    let scale = 1.0 / (DIM as f64).sqrt();
    let top = raw.iter().copied().fold(f64::MIN, f64::max);
    let exp: Vec<f64> = raw.iter().map(|x| ((x - top) * scale).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

fn group(head: usize) -> std::ops::Range<usize> {
    head * GROUP..(head + 1) * GROUP
}

/// Whether `chosen` are the tokens of the `n` heaviest of the candidate units, but for near ties, and the
/// tokens outside the candidates.
fn check(chosen: &[u32], len: usize, unit: usize, from: usize, weights: &[f64], n: usize) {
    let to = from + weights.len() * unit;
    let is_in = |t: usize| chosen.binary_search(&(t as u32)).is_ok();
    assert!((0..from.min(len)).chain(to..len).all(is_in), "what is kept is read");
    let of = |u: usize| (from + u * unit..from + (u + 1) * unit).filter(|&t| is_in(t)).count();
    let (mut lightest, mut heaviest, mut count) = (f64::MAX, f64::MIN, 0);
    for (u, &w) in weights.iter().enumerate() {
        match of(u) {
            0 => heaviest = heaviest.max(w),
            all => {
                assert_eq!(all, unit, "units are read whole");
                (lightest, count) = (lightest.min(w), count + 1);
            }
        }
    }
    assert_eq!(count, n.min(weights.len()));
    let size = weights.iter().fold(1e-9f64, |m, w| m.max(w.abs()));
    assert!(count == 0 || heaviest <= lightest + 0.03 * size, "{lightest} {heaviest} of {size}");
}

/// `(max, min)` of a channel over some tokens.
fn range(k: &[bf16], tokens: std::ops::Range<usize>, head: usize, channel: usize) -> (f64, f64) {
    let value = |t: usize| f64::from(k[t * ROW + head * DIM + channel].to_f32());
    tokens.map(value).fold((f64::MIN, f64::MAX), |(a, b), x| (a.max(x), b.min(x)))
}

fn box_score(
    q: &[f32],
    k: &[bf16],
    tokens: std::ops::Range<usize>,
    q_head: usize,
    mean: bool,
) -> f64 {
    let of_channel = |c: usize| {
        let head = q_head / GROUP;
        let (mut max, mut min) = range(k, tokens.clone(), head, c);
        if mean {
            let centre = 0.5 * (max + min);
            let away = |t: usize| (f64::from(k[t * ROW + head * DIM + c].to_f32()) - centre).abs();
            let away = tokens.clone().map(away).sum::<f64>() / tokens.len() as f64;
            (max, min) = (centre + away, centre - away);
        }
        let q = f64::from(q[q_head * DIM + c]);
        (q * max).max(q * min)
    };
    (0..DIM).map(of_channel).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    #[test]
    fn quest(seed in any::<u64>(), tokens in 120usize..500, unit in prop::sample::select(vec![8usize, 16])) {
        let mut random = Random(seed);
        let (k, q) = (random.rows(tokens * ROW, 2.0), query(&mut random, 1));
        let s = sequence(Quest { budget: 96, unit_tokens: unit }, &k);
        let units = (tokens - 1) / unit;
        for (head, chosen) in picks(&s, &q).iter().enumerate() {
            let weight = |u: usize| {
                group(head).map(|h| box_score(&q, &k, u * unit..(u + 1) * unit, h, false)).fold(f64::MIN, f64::max)
            };
            let weights: Vec<f64> = (0..units).map(weight).collect();
            check(chosen, tokens, unit, 0, &weights, (96 - (tokens - units * unit)) / unit);
        }
    }

    #[test]
    fn arkvale(seed in any::<u64>(), tokens in 300usize..600, layer_wide in any::<bool>()) {
        let mut random = Random(seed);
        let (k, q) = (random.rows(tokens * ROW, 2.0), query(&mut random, 1));
        let (budget, sinks, recent) = (200, 20, 40);
        let s = sequence(ArkVale { budget, unit_tokens: 32, sinks, recent, layer_wide }, &k);
        let last = (tokens - recent) / 32;
        for (head, chosen) in picks(&s, &q).iter().enumerate() {
            let heads = if layer_wide { 0..Q_HEADS } else { group(head) };
            let weight = |u: usize| {
                let of_head = |h| box_score(&q, &k, u * 32..(u + 1) * 32, h, true);
                heads.clone().map(of_head).sum::<f64>() / heads.len() as f64
            };
            let weights: Vec<f64> = (1..last).map(weight).collect();
            let n = (budget - 32 - (tokens - last * 32)) / 32;
            check(chosen, tokens, 32, 32, &weights, n);
        }
    }

    #[test]
    fn tokenselect_and_tidaldecode(seed in any::<u64>(), tokens in 150usize..500) {
        let mut random = Random(seed);
        let (k, q) = (random.rows(tokens * ROW, 1.0), query(&mut random, 1));
        let (budget, sinks, recent) = (120, 10, 30);
        let votes = TokenSelect { budget, sinks, recent, theta: Some(0.9) };
        let anchored = TidalDecode { budget, sinks, recent, anchors: vec![0] };
        for (select, all) in [(Select::from(votes), true), (anchored.into(), false)] {
            let s = sequence(select, &k);
            let info = ask(&s, 0, &q);
            for (head, chosen) in info.selected.unwrap().iter().enumerate() {
                let heads = if all { 0..Q_HEADS } else { group(head) };
                let mut weights = vec![0f64; tokens - sinks - recent];
                for h in heads {
                    let raw: Vec<f64> = (sinks..tokens - recent).map(|t| dot(&q, &k, t, h)).collect();
                    weights.iter_mut().zip(softmax(&raw)).for_each(|(w, m)| *w += m);
                }
                check(chosen, tokens, 1, sinks, &weights, budget - sinks - recent);
            }
            prop_assert!(info.bytes.keys > 0 && info.bytes.summary == 0);
        }
    }

    #[test]
    fn nsa_and_dsa(seed in any::<u64>(), tokens in 200usize..500, of_all in any::<bool>()) {
        let mut random = Random(seed);
        let (k, q) = (random.rows(tokens * ROW, 1.0), query(&mut random, 1));
        let nsa = Nsa { budget: 160, unit_tokens: 32, sinks: 1, recent: 40 };
        let dsa = Dsa { budget: 90, sinks: 3, recent: 5 };
        for (select, unit, sinks, recent, budget) in
            [(Select::from(nsa), 32, 32, 40, 160), (dsa.into(), 1, 3, 5, 90)]
        {
            let s = sequence(select.clone(), &k);
            let heads = if of_all { 1 } else { HEADS };
            let units = tokens.div_ceil(unit) + 3;
            let values: Vec<f32> = (0..heads * units).map(|_| random.normal()).collect();
            let scores = Scores { values: &values, heads, units };
            let options = AttendOptions { selected: true, scores: Some(scores), ..AttendOptions::default() };
            let last = (tokens - recent) / unit * unit;
            let layer_wide = matches!(select, Select::Dsa(_));
            for (head, chosen) in attend(&s, 0, &q, &options).1.selected.unwrap().iter().enumerate() {
                let weight = |u: usize| -> f64 {
                    let of = |h: usize| f64::from(values[(if of_all { 0 } else { h }) * units + u]);
                    if layer_wide { (0..HEADS).map(of).sum() } else { of(head) }
                };
                let weights: Vec<f64> = (sinks / unit..last / unit).map(weight).collect();
                check(chosen, tokens, unit, sinks, &weights, (budget - sinks - (tokens - last)) / unit);
            }
        }
    }

    #[test]
    fn snapkv(seed in any::<u64>(), prompt in 150usize..400, chunk in 2usize..60) {
        let mut random = Random(seed);
        let (window, pool, budget) = (8, 5, 64);
        let k = random.rows((prompt + 3) * ROW, 1.0);
        let q = query(&mut random, prompt);
        let mut s = cache(Select::SnapKv(SnapKv { budget, window, pool }), 64 << 20).sequence();
        // The prompt comes in chunks, whose queries are attended to as they come.
        for from in (0..prompt).step_by(chunk) {
            let to = (from + chunk).min(prompt);
            // A chunk of one token would be a step; the prompt's end is where the last chunk ends.
            let to = if to + 1 == prompt { prompt } else { to };
            if s.layer_len(0).unwrap() == prompt { break; }
            append(&mut s, &k[from * ROW..to * ROW]);
            (0..2).for_each(|layer| { ask(&s, layer, &q[from * QUERY..to * QUERY]); });
            if to == prompt { break; }
        }
        let mut want = None;
        for step in 0..3 {
            let len = prompt + step + 1;
            append(&mut s, &k[(len - 1) * ROW..len * ROW]);
            let found = picks(&s, &query(&mut random, 1));
            for (head, chosen) in found.iter().enumerate() {
                let mut mass = vec![0f64; prompt];
                for at in prompt - window..prompt {
                    for h in group(head) {
                        let of = masses(&k, at + 1, h, &q[at * QUERY..(at + 1) * QUERY]);
                        mass.iter_mut().zip(of).for_each(|(m, o)| *m += o);
                    }
                }
                mass.truncate(prompt - window);
                let near = |t: usize| &mass[t.saturating_sub(pool / 2)..(t + pool / 2 + 1).min(mass.len())];
                let weights: Vec<f64> = (0..mass.len()).map(|t| near(t).iter().sum::<f64>()).collect();
                // One token came after the prompt when the choice was made.
                check(chosen, len, 1, 0, &weights, budget - window - 1);
            }
            let of_prompt: Vec<Vec<u32>> =
                found.iter().map(|c| c.iter().copied().filter(|&t| (t as usize) < prompt).collect()).collect();
            prop_assert_eq!(want.get_or_insert(of_prompt.clone()), &of_prompt, "fixed from then on");
        }
    }

    #[test]
    fn twilight_reads_enough_of_what_quest_picks(seed in any::<u64>(), tokens in 300usize..700, p in 0.5f32..0.95) {
        let mut random = Random(seed);
        let (k, q) = (random.rows(tokens * ROW, 1.5), query(&mut random, 1));
        let (budget, unit_tokens) = (256, 16);
        let pruned = picks(&sequence(Twilight { budget, unit_tokens, top_p: p }, &k), &q);
        let whole = picks(&sequence(Quest { budget, unit_tokens }, &k), &q);
        for (head, (pruned, whole)) in pruned.iter().zip(&whole).enumerate() {
            prop_assert!(pruned.iter().all(|t| whole.binary_search(t).is_ok()));
            prop_assert!(pruned.len() < whole.len());
            let share: f64 = group(head)
                .map(|h| {
                    let raw: Vec<f64> = whole.iter().map(|&t| dot(&q, &k, t as usize, h)).collect();
                    let mass = softmax(&raw);
                    whole.iter().zip(mass).filter(|(t, _)| pruned.binary_search(t).is_ok()).map(|(_, m)| m).sum::<f64>()
                })
                .sum::<f64>() / GROUP as f64;
            prop_assert!((share - f64::from(p)).abs() < 0.12 || pruned.len() < 20, "{} for {}", share, p);
        }
    }

    #[test]
    fn bounds_hold_where_there_are_some(seed in any::<u64>(), tokens in 200usize..500) {
        let mut random = Random(seed);
        let (k, q) = (random.rows(tokens * ROW, 1.5), query(&mut random, 1));
        let twilight = Twilight { budget: 128, unit_tokens: 16, top_p: 0.8 };
        let votes = TokenSelect { budget: 100, sinks: 4, recent: 16, theta: None };
        let quest = Quest { budget: 96, unit_tokens: 16 };
        for select in [Select::from(twilight), votes.into(), quest.into()] {
            let exact = matches!(select, Select::TokenSelect(_));
            let s = sequence(select, &k);
            let options = AttendOptions { selected: true, bound: true, ..AttendOptions::default() };
            let info = attend(&s, 0, &q, &options).1;
            let (selected, bound) = (info.selected.unwrap(), info.missed_mass_bound.unwrap());
            for h in 0..Q_HEADS {
                let mass = masses(&k, tokens, h, &q);
                let read: f64 = selected[h / GROUP].iter().map(|&t| mass[t as usize]).sum();
                let (missed, bound) = (1.0 - read, f64::from(bound[h]));
                prop_assert!(missed <= bound + 1e-9, "{} {}", missed, bound);
                prop_assert!(!exact || bound <= missed + 1e-3, "{} {}", missed, bound);
            }
        }
    }
}

#[test]
fn streaming_reads_its_ends() {
    let mut random = Random(5);
    let k = random.rows(300 * ROW, 1.0);
    let s = sequence(Streaming { sinks: 4, recent: 60 }, &k);
    let want: Vec<u32> = (0..4).chain(240..300).collect();
    assert_eq!(picks(&s, &query(&mut random, 1)), vec![want; HEADS]);
    let short = sequence(Streaming { sinks: 4, recent: 60 }, &k[..60 * ROW]);
    assert_eq!(ask(&short, 0, &query(&mut random, 1)).tokens_read, [60; HEADS]);
}

#[test]
fn a_selection_is_used_again_while_queries_agree_and_loses_no_token() {
    let mut random = Random(6);
    let k = random.rows(420 * ROW, 1.0);
    let (sinks, recent, budget) = (4, 20, 80);
    let votes = TokenSelect { budget, sinks, recent, theta: Some(0.95) };
    let mut s = sequence(votes, &k[..400 * ROW]);
    let q = query(&mut random, 1);
    let first = picks(&s, &q);
    for step in 1..12 {
        append(&mut s, &k[(399 + step) * ROW..(400 + step) * ROW]);
        let near: Vec<f32> = q.iter().map(|x| x + 0.1 * random.normal()).collect();
        let want: Vec<u32> = first[0].iter().copied().chain(400..400 + step as u32).collect();
        assert_eq!(picks(&s, &near), vec![want; HEADS], "the window only grows");
    }
    // Another query selects anew, and its window is where it should be.
    let other = picks(&s, &query(&mut random, 1));
    assert_eq!(other[0].len(), budget);
    assert_ne!(other[0][..60], first[0][..60]);
    // Forks go on as their parent would; what was cut off is no longer referred to.
    let again = s.fork();
    assert_eq!(picks(&again, &q), picks(&s, &q));
    s.truncate(300).unwrap();
    assert!(picks(&s, &q)[0].iter().all(|&t| t < 300));
    assert_eq!(picks(&s, &q), picks(&sequence(s.select().clone(), &k[..300 * ROW]), &q));
}

#[test]
fn later_layers_read_what_an_anchor_selected() {
    let mut random = Random(7);
    let k = random.rows(300 * ROW, 1.0);
    let select = TidalDecode { budget: 64, anchors: vec![0], ..TidalDecode::default() };
    let mut s = sequence(select, &k);
    let (a, b) = (query(&mut random, 1), query(&mut random, 1));
    let alone = ask(&s, 1, &b).selected.unwrap();
    let first = ask(&s, 0, &a).selected.unwrap();
    assert_ne!(alone, first, "no anchor has selected yet");
    assert_eq!(ask(&s, 1, &b).selected.unwrap(), first);
    // A selection of an earlier step is not that of this one.
    append(&mut s, &random.rows(ROW, 1.0));
    let late = ask(&s, 1, &b).selected.unwrap();
    assert!(late.iter().all(|c| c.len() == 64 && c.contains(&300)));
    assert_ne!(late[0][..60], first[0][..60]);
}

#[test]
fn without_a_prompt_observers_read_everything() {
    let mut random = Random(8);
    let k = random.rows(300 * ROW, 1.0);
    let s = sequence(MagicDec { budget: 64, window: 8, pool: 3 }, &k);
    assert_eq!(ask(&s, 0, &query(&mut random, 1)).tokens_read, [300; HEADS]);
    // Queries of a dense pass of another selector are not looked at, but those of a fork's parent are.
    let prompt = query(&mut random, 40);
    ask(&s, 0, &prompt);
    assert_eq!(ask(&s, 0, &query(&mut random, 1)).tokens_read, [64; HEADS]);
    let wider = SnapKv { budget: 100, window: 8, pool: 3 };
    let fork = s.fork_with(&wider.into()).unwrap();
    assert_eq!(ask(&fork, 0, &query(&mut random, 1)).tokens_read, [100; HEADS]);
}

#[test]
fn scores_that_do_not_fit_are_refused() {
    let mut random = Random(9);
    let k = random.rows(300 * ROW, 1.0);
    let s = sequence(Dsa { budget: 64, ..Dsa::default() }, &k);
    let q = query(&mut random, 1);
    let shape = [1, Q_HEADS, DIM];
    let try_with = |scores: Option<Scores>| -> Error {
        let mut out = vec![0f32; QUERY];
        let options = AttendOptions { scores, ..AttendOptions::default() };
        let q = kvist::Tensor3::contiguous(&q, shape).unwrap();
        let mut out = kvist::Tensor3Mut::contiguous(&mut out, shape).unwrap();
        s.attend(0, &q, &options, &mut out).unwrap_err()
    };
    let text = |scores: Option<Scores>| try_with(scores).to_string();
    let none = "scores must be one for every 1 tokens, as select \"dsa\" needs, found none";
    assert_eq!(text(None), none);
    let values = vec![0f32; 600];
    assert!(text(Some(Scores { values: &values, heads: 3, units: 200 })).contains("2 KV heads"));
    assert!(text(Some(Scores { values: &values, heads: 1, units: 700 })).contains("700"));
    let few = text(Some(Scores { values: &values[..299], heads: 1, units: 299 }));
    assert!(few.contains("300") && few.contains("299"), "{few}");
}
