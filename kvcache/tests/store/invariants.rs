//! What holds for every selector, whatever the keys. The numbers are those of `docs/kernels.md`.

use half::bf16;
use kvist::{AttendInfo, AttendOptions, Boxed, Quest, Select, Sequence};
use proptest::prelude::*;
use serde_json::json;

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, masses, rows};

const BYTES: u64 = 64 << 20;
const QUERY: usize = HEADS * GROUP * DIM;

fn boxed(change: Boxed) -> Select {
    Select::Boxed(Boxed { sinks: 4, recent: 16, ..change })
}

/// Every way to choose, none of which reads more than about 120 tokens of keys that concentrate.
fn selectors() -> Vec<Select> {
    let top_p = Boxed { top_p: Some(0.7), min_tokens: Some(90), ..Boxed::default() };
    vec![
        Select::Quest(Quest { budget: 96, unit_tokens: 16 }),
        Select::Quest(Quest { budget: 96, unit_tokens: 8 }),
        boxed(Boxed { planes: 2, ..Boxed::with_budget(96) }),
        boxed(Boxed::with_budget(96)),
        boxed(Boxed { planes: 4, ..Boxed::with_budget(96) }),
        boxed(top_p),
        changed("clusterkv", json!({ "budget": 96, "sinks": 4, "cluster_tokens": 8 })),
        changed("retroinfer", json!({ "budget": 96, "recent": 16 })),
        changed("pqcache", json!({ "budget": 96, "sinks": 4, "parts": 4, "bits": 4 })),
        changed("shadowkv", json!({ "budget": 96, "outliers": 2, "recent": 16 })),
        changed("infllm", json!({ "budget": 96, "unit_tokens": 16, "sinks": 4, "recent": 16 })),
        changed("infinigen", json!({ "budget": 96, "sinks": 4, "recent": 16 })),
        changed("leoam", json!({ "budget": 96, "sinks": 4, "recent": 16 })),
        boxed(Boxed::with_max_missed_mass(0.1)),
        changed("arkvale", json!({ "budget": 192, "sinks": 4, "recent": 16, "layer_wide": false })),
        changed("tokenselect", json!({ "budget": 96, "sinks": 4, "recent": 16 })),
        changed("tidaldecode", json!({ "budget": 96, "anchors": [0] })),
        changed("twilight", json!({ "budget": 120, "top_p": 0.7 })),
    ]
}

fn changed(name: &str, settings: serde_json::Value) -> Select {
    Select::configured(name, settings.as_object().cloned().unwrap()).unwrap()
}

fn sequence(select: &Select, k: &[bf16], v: &[bf16]) -> Sequence {
    let mut s = cache(select.clone(), BYTES).sequence();
    append(&mut s, k, v);
    s
}

fn append(s: &mut Sequence, k: &[bf16], v: &[bf16]) {
    for layer in 0..2 {
        s.append(layer, &rows(k), &rows(v)).unwrap();
    }
}

fn query(random: &mut Random) -> Vec<f32> {
    (0..QUERY).map(|_| 2.0 * random.normal()).collect()
}

fn ask(s: &Sequence, q: &[f32]) -> (Vec<f32>, AttendInfo) {
    attend(s, 0, q, &AttendOptions { selected: true, ..AttendOptions::default() })
}

fn picks(s: &Sequence, q: &[f32]) -> Vec<Vec<u32>> {
    ask(s, q).1.selected.unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The same rows with the channel blocks of its KV heads in another order.
fn heads_in_order<T: Copy>(x: &[T], order: [usize; HEADS], per_head: usize) -> Vec<T> {
    let row = |row: &[T]| -> Vec<T> {
        order.iter().flat_map(|&h| row[h * per_head..(h + 1) * per_head].to_vec()).collect()
    };
    x.chunks(HEADS * per_head).flat_map(row).collect()
}

/// The same keys, that of one token in the direction of a head's query.
fn with_needle(k: &[bf16], at: usize, head: usize, q: &[f32], length: f32) -> Vec<bf16> {
    let mut k = k.to_vec();
    let of_head = &q[head * DIM..(head + 1) * DIM];
    let norm = of_head.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (c, x) in of_head.iter().enumerate() {
        k[at * ROW + head / GROUP * DIM + c] = bf16::from_f32(length * x / norm);
    }
    k
}

/// Appends everything in parts, with tokens in between that are forgotten again, and forks.
fn by_detours(select: &Select, k: &[bf16], v: &[bf16], random: &mut Random) -> Sequence {
    let mut s = cache(select.clone(), BYTES).sequence();
    let tokens = k.len() / ROW;
    let mut done = 0;
    while done < tokens {
        let n = (1 + random.below(150)).min(tokens - done);
        append(&mut s, &k[done * ROW..(done + n) * ROW], &v[done * ROW..(done + n) * ROW]);
        done += n;
        if random.below(2) == 0 {
            let n = 1 + random.below(140);
            let junk = random.rows(n * ROW, 3.0);
            append(&mut s, &junk, &junk);
            s.truncate(done).unwrap();
        }
        if random.below(3) == 0 {
            s = s.fork();
        }
        if random.below(4) == 0 {
            done = random.below(done + 1);
            s.truncate(done).unwrap();
        }
    }
    s
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn detours_end_at_the_same_bits(seed in any::<u64>(), tokens in 100usize..500) {
        // I-3, I-16
        let mut random = Random(seed);
        let (k, v) = (random.rows(tokens * ROW, 2.0), random.rows(tokens * ROW, 1.0));
        let q = query(&mut random);
        for select in selectors() {
            let (want, info) = ask(&sequence(&select, &k, &v), &q);
            let (out, by_detours) = ask(&by_detours(&select, &k, &v, &mut random), &q);
            prop_assert_eq!(&info, &by_detours, "{:?}", select);
            prop_assert_eq!(bits(&out), bits(&want), "{:?}", select);
        }
    }

    #[test]
    fn a_needle_is_found_wherever_it_lies(
        seed in any::<u64>(), tokens in 130usize..500, at in any::<prop::sample::Index>(),
        head in 0usize..HEADS * GROUP,
    ) {
        // I-9, I-17: 30 standard deviations above the rest, for one query head.
        let mut random = Random(seed);
        let at = at.index(tokens);
        let (k, v) = (random.rows(tokens * ROW, 1.0), random.rows(tokens * ROW, 1.0));
        let q = query(&mut random);
        for select in selectors() {
            // The mean over all query heads of a layer takes its share of what one of them looks for.
            let over = if matches!(select, Select::InfLlm(_)) { HEADS * GROUP } else { 1 };
            let k = with_needle(&k, at, head, &q, 30.0 * over as f32);
            let s = by_detours(&select, &k, &v, &mut random);
            let found = picks(&s, &q)[head / GROUP].binary_search(&(at as u32)).is_ok();
            prop_assert!(found, "{} of {}, {:?}", at, tokens, select);
        }
    }

    #[test]
    fn choices_hold_the_keeps_and_the_budget(
        seed in any::<u64>(), tokens in 200usize..700, sinks in 0usize..40, recent in 0usize..100,
        more in 1usize..100, strange in prop::collection::vec((any::<u32>(), 0usize..3), 0..12),
    ) {
        // I-8, with keys that no box can hold.
        let mut random = Random(seed);
        let (mut k, v) = (random.rows(tokens * ROW, 2.0), random.rows(tokens * ROW, 1.0));
        for (at, what) in strange {
            k[at as usize % (tokens * ROW)] = [bf16::NAN, bf16::INFINITY, bf16::MAX][what];
        }
        let q = query(&mut random);
        let budget = sinks + recent.max(63) + more;
        let most = budget + 50;
        let base = Boxed { sinks, recent, max_tokens: Some(most), ..Boxed::default() };
        let fixed = Boxed { budget: Some(budget), max_tokens: None, ..base.clone() };
        let top_p = Boxed { top_p: Some(0.9), min_tokens: Some(budget), ..base.clone() };
        let proven = Boxed { max_missed_mass: Some(0.05), planes: 4, ..base };
        for (boxed, least, most) in [(fixed, budget, budget), (top_p, budget, most), (proven, 0, most)] {
            let s = sequence(&Select::Boxed(boxed.clone()), &k, &v);
            for chosen in picks(&s, &q) {
                check_list(&chosen, tokens);
                let held = |p: usize| chosen.binary_search(&(p as u32)).is_ok();
                prop_assert!((0..sinks.min(tokens)).all(held), "sinks");
                prop_assert!((tokens.saturating_sub(recent)..tokens).all(held), "recent");
                prop_assert!((tokens / 64 * 64..tokens).all(held), "tokens without a summary");
                let n = chosen.len();
                prop_assert!(n >= least.min(tokens) && n <= most.min(tokens), "{} {:?}", n, boxed);
            }
            prop_assert_eq!(picks(&s, &q), picks(&s, &q));
        }
        for unit_tokens in [4, 16, 64] {
            let budget = 2 * unit_tokens + more;
            let s = sequence(&Select::Quest(Quest { budget, unit_tokens }), &k, &v);
            for chosen in picks(&s, &q) {
                check_list(&chosen, tokens);
                prop_assert!(chosen.len() <= budget && chosen.len() + 2 * unit_tokens > budget);
                prop_assert_eq!(chosen.last(), Some(&(tokens as u32 - 1)));
            }
        }
    }

    #[test]
    fn query_heads_and_groups_may_change_places(seed in any::<u64>(), tokens in 150usize..600) {
        // I-7
        let mut random = Random(seed);
        let (k, v) = (random.rows(tokens * ROW, 2.0), random.rows(tokens * ROW, 1.0));
        let q = query(&mut random);
        let swapped = |x: &[bf16]| heads_in_order(x, [1, 0], DIM);
        let (k_swapped, v_swapped) = (swapped(&k), swapped(&v));
        let q_swapped = heads_in_order(&q, [1, 0], GROUP * DIM);
        // The last head of each group comes first.
        let turn = |group: &[f32]| [&group[(GROUP - 1) * DIM..], &group[..(GROUP - 1) * DIM]].concat();
        let q_turned: Vec<f32> = q.chunks(GROUP * DIM).flat_map(turn).collect();
        for select in selectors() {
            let s = sequence(&select, &k, &v);
            let want = picks(&s, &q);
            let other = picks(&sequence(&select, &k_swapped, &v_swapped), &q_swapped);
            prop_assert_eq!(&want, &other.into_iter().rev().collect::<Vec<_>>());
            // Sums over the group are rounded in another order: near ties may fall the other way.
            for (a, b) in want.iter().zip(picks(&s, &q_turned)) {
                let lost = a.iter().filter(|p| b.binary_search(p).is_err()).count();
                prop_assert!(lost <= 1 && a.len().abs_diff(b.len()) <= 1, "{} {:?}", lost, select);
            }
        }
    }

    #[test]
    fn larger_budgets_hold_smaller_ones(seed in any::<u64>(), tokens in 300usize..900, a in 100usize..200) {
        // I-10. What boxed reads near its cut depends on the cut: its mass grows, its set nearly so.
        let mut random = Random(seed);
        let (k, v) = (random.rows(tokens * ROW, 1.5), random.rows(tokens * ROW, 1.0));
        let q = query(&mut random);
        let choose = |select: Select| picks(&sequence(&select, &k, &v), &q);
        let quest = |budget| choose(Select::Quest(Quest { budget, unit_tokens: 16 }));
        for (small, large) in quest(a).iter().zip(quest(a + 64)) {
            prop_assert!(small.iter().all(|p| large.binary_search(p).is_ok()));
        }
        let boxes = |budget| choose(boxed(Boxed::with_budget(budget)));
        for (head, (small, large)) in boxes(a).iter().zip(boxes(a + 64)).enumerate() {
            for of_group in 0..GROUP {
                let p = masses(&k, tokens, head * GROUP + of_group, &q);
                let sum = |of: &[u32]| of.iter().map(|&t| p[t as usize]).sum::<f64>();
                prop_assert!(sum(small) <= sum(&large) + 2e-3, "{} {}", sum(small), sum(&large));
            }
        }
    }

    #[test]
    fn only_the_product_of_scale_and_query_counts(
        seed in any::<u64>(), tokens in 150usize..600, power in -3i32..4,
        soft_cap in prop_oneof![Just(0.0f32), Just(15.0f32)],
    ) {
        // I-12: powers of two change no bit.
        let mut random = Random(seed);
        let (k, v) = (random.rows(tokens * ROW, 2.0), random.rows(tokens * ROW, 1.0));
        let q = query(&mut random);
        let larger: Vec<f32> = q.iter().map(|x| x * 2f32.powi(power)).collect();
        let scale = 1.0 / (DIM as f32).sqrt();
        let at = |scale| AttendOptions {
            scale: Some(scale), soft_cap, selected: true, ..AttendOptions::default()
        };
        for select in selectors() {
            let s = sequence(&select, &k, &v);
            let (want, info) = attend(&s, 0, &q, &at(scale));
            let (out, other) = attend(&s, 0, &larger, &at(scale * 2f32.powi(-power)));
            prop_assert_eq!(info.selected, other.selected, "{:?}", select);
            prop_assert_eq!(bits(&out), bits(&want), "{:?}", select);
        }
    }

    #[test]
    fn equal_keys_give_the_lowest_positions(
        seed in any::<u64>(), tokens in 130usize..600, silent in any::<bool>(),
    ) {
        // I-13, I-17: equal pages or equal tokens, or a query that tells nothing.
        let mut random = Random(seed);
        let one = random.rows(ROW, 1.0);
        let k = match silent {
            true => random.rows(tokens * ROW, 1.0),
            false => one.repeat(tokens),
        };
        let v = random.rows(tokens * ROW, 1.0);
        let q = if silent { vec![0.0; QUERY] } else { query(&mut random) };
        let (budget, last) = (96, (tokens as u32 - 1) / 16 * 16);
        for chosen in picks(&sequence(&Select::Quest(Quest { budget, unit_tokens: 16 }), &k, &v), &q) {
            let want: Vec<u32> = (0..80).chain(last..tokens as u32).collect();
            prop_assert_eq!(chosen, want);
        }
        for planes in 2..=4 {
            let s = sequence(&boxed(Boxed { planes, ..Boxed::with_budget(96) }), &k, &v);
            for chosen in picks(&s, &q) {
                let recent = (tokens - 16).min(tokens / 64 * 64) as u32;
                let first = 96 - (tokens as u32 - recent);
                let want: Vec<u32> = (0..first).chain(recent..tokens as u32).collect();
                prop_assert_eq!(chosen, want);
            }
        }
    }
}

/// Ascending, unique, in range.
fn check_list(chosen: &[u32], tokens: usize) {
    assert!(chosen.windows(2).all(|w| w[0] < w[1]));
    assert!(chosen.iter().all(|&p| (p as usize) < tokens));
}

#[test]
fn a_budget_of_everything_is_dense_to_the_bit() {
    // I-8
    let mut random = Random(11);
    for tokens in [100, 128, 300, 640] {
        let (k, v) = (random.rows(tokens * ROW, 1.0), random.rows(tokens * ROW, 1.0));
        let q = query(&mut random);
        let (want, _) = ask(&sequence(&Select::Full, &k, &v), &q);
        let all = [
            Select::Quest(Quest { budget: tokens, unit_tokens: 16 }),
            boxed(Boxed::with_budget(tokens)),
            // Through the selector, which finds that nothing may be left out.
            boxed(Boxed::with_max_missed_mass(1e-9)),
        ];
        for select in all {
            let (out, info) = ask(&sequence(&select, &k, &v), &q);
            assert_eq!(info.tokens_read, [tokens as u32; HEADS]);
            assert_eq!(bits(&out), bits(&want), "{select:?}");
        }
    }
}

#[test]
fn certificates_hold_where_nothing_is_known_of_a_tile() {
    let (tokens, infinite, needle) = (1500, 200, 205);
    let mut random = Random(12);
    let (mut k, v) = (random.rows(tokens * ROW, 2.0), random.rows(tokens * ROW, 1.0));
    let mut q = query(&mut random);
    for head in 0..HEADS {
        // A key of weight 0 that no box can hold, in the tile of what the group's first query head
        // looks for.
        k[infinite * ROW + head * DIM + 5] = bf16::NEG_INFINITY;
        let of_group = &mut q[head * GROUP * DIM..][..GROUP * DIM];
        of_group.iter_mut().skip(5).step_by(DIM).for_each(|x| *x = x.abs());
        for (c, x) in of_group[..DIM].iter().enumerate() {
            k[needle * ROW + head * DIM + c] = bf16::from_f32(3.0 * x);
        }
    }
    let select = boxed(Boxed::with_max_missed_mass(0.1));
    let (_, info) = ask(&sequence(&select, &k, &v), &q);
    let (selected, bound) = (info.selected.unwrap(), info.missed_mass_bound.unwrap());
    for head in 0..HEADS * GROUP {
        let read = &selected[head / GROUP];
        assert!(read.len() < tokens / 2 && read.binary_search(&(needle as u32)).is_ok());
        let p = masses(&k, tokens, head, &q);
        let read: f64 = read.iter().map(|&t| p[t as usize]).sum();
        assert!(1.0 - read <= f64::from(bound[head]) + 1e-12 && bound[head] <= 0.1);
    }
}
