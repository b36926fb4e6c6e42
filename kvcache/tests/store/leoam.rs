//! The tree of boxes against a scan of all 16-token chunks in f64, and what it saves.

use half::bf16;
use kvist::policies::LeoAm;
use kvist::{AttendInfo, AttendOptions, Quest, Select, Sequence};
use proptest::prelude::*;

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, chunk_weights, masses, rows};

const QUERY: usize = HEADS * GROUP * DIM;

fn settings() -> LeoAm {
    LeoAm { budget: 400, sinks: 20, recent: 40, flat: 1.0, queries: 8 }
}

fn sequence(select: impl Into<Select>, k: &[bf16]) -> Sequence {
    let mut s = cache(select.into(), 64 << 20).sequence();
    append(&mut s, k);
    s
}

fn append(s: &mut Sequence, k: &[bf16]) {
    (0..2).for_each(|layer| s.append(layer, &rows(k), &rows(k)).unwrap());
}

fn ask(s: &Sequence, q: &[f32]) -> AttendInfo {
    attend(s, 0, q, &AttendOptions { selected: true, ..AttendOptions::default() }).1
}

fn queries(random: &mut Random, n: usize, size: f32) -> Vec<f32> {
    (0..n * QUERY).map(|_| size * random.normal()).collect()
}

/// Keys that wander, as those of a text do: neighbours are alike.
fn wandering(random: &mut Random, tokens: usize) -> Vec<bf16> {
    let mut at = vec![0f32; ROW];
    let step = |_| {
        at.iter_mut().for_each(|x| *x = 0.98 * *x + 0.2 * random.normal());
        at.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()
    };
    (0..tokens).flat_map(step).collect()
}

/// The chunks that are read though they need not be, and that they are the best, but for near ties.
fn check(chosen: &[u32], len: usize, weights: &[f64], first: usize, n: usize) {
    let is_read = |c: usize| chosen.binary_search(&((c * 16) as u32)).is_ok();
    let (mut lightest, mut heaviest, mut count) = (f64::MAX, f64::MIN, 0);
    for (i, &w) in weights.iter().enumerate() {
        match is_read(first + i) {
            true => (lightest, count) = (lightest.min(w), count + 1),
            false => heaviest = heaviest.max(w),
        }
    }
    assert_eq!(count, n.min(weights.len()));
    assert!(heaviest <= lightest + 0.02, "{heaviest} {lightest}");
    let kept = (0..first * 16).chain((first + weights.len()) * 16..len);
    assert_eq!(chosen.len(), kept.clone().count() + count * 16);
    assert!(kept.into_iter().all(|t| chosen.binary_search(&(t as u32)).is_ok()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn the_best_chunks_are_found(seed in any::<u64>(), tokens in 500usize..3500, wander in any::<bool>()) {
        let mut random = Random(seed);
        let k = if wander { wandering(&mut random, tokens) } else { random.rows(tokens * ROW, 1.0) };
        let s = sequence(settings(), &k);
        let q = queries(&mut random, 1, 1.5);
        let last = (tokens - 40) / 16;
        let info = ask(&s, &q);
        for (head, chosen) in info.selected.unwrap().iter().enumerate() {
            let weights = chunk_weights(&k, &q, tokens, head, 2..last);
            check(chosen, tokens, &weights, 2, (400 - 32 - (tokens - last * 16)) / 16);
        }
        // Every chunk is read once at most, and every larger one.
        let all = tokens / 16 + tokens / 1024 * (16 + 4 + 1);
        prop_assert!(info.bytes.summary <= (HEADS * all * 2 * DIM * 2) as u64);
    }

    #[test]
    fn detours_end_at_the_same_choice(
        seed in any::<u64>(), tokens in 900usize..3000, more in 0usize..1500, cut in 700usize..2600,
    ) {
        let mut random = Random(seed);
        let cut = cut.min(tokens);
        let k = wandering(&mut random, tokens + more);
        let q = queries(&mut random, 1, 1.5);
        let mut s = sequence(settings(), &k[..tokens * ROW]);
        let before = ask(&s, &q);
        let mut fork = s.fork();
        append(&mut s, &k[tokens * ROW..]);
        ask(&s, &q);
        s.truncate(cut).unwrap();
        let straight = sequence(settings(), &k[..cut * ROW]);
        prop_assert!(ask(&s, &q) == ask(&straight, &q), "cut");
        append(&mut s, &k[cut * ROW..]);
        let straight = sequence(settings(), &k);
        prop_assert!(ask(&s, &q) == ask(&straight, &q), "grown again");
        prop_assert!(ask(&fork, &q) == before, "forks keep what they have");
        append(&mut fork, &k[tokens * ROW..]);
        prop_assert!(ask(&fork, &q) == ask(&straight, &q));
    }
}

#[test]
fn keys_that_are_no_numbers_are_read() {
    let mut random = Random(31);
    let mut k = wandering(&mut random, 2500);
    k[700 * ROW + 3] = bf16::NAN;
    k[2300 * ROW + 5] = bf16::INFINITY;
    let s = sequence(settings(), &k);
    let mut q = queries(&mut random, 1, 1.5);
    let chosen = &ask(&s, &q).selected.unwrap()[0];
    assert!(chosen.contains(&700) && chosen.contains(&2300));
    q[7] = f32::NAN;
    // The sinks' chunks, the window's, and as many as the rest of the budget pays for.
    let (window, sinks) = (2500 - 2460 / 16 * 16, 32);
    let picked = (400 - window - sinks) / 16 * 16;
    assert_eq!(ask(&s, &q).selected.unwrap()[0].len(), window + sinks + picked);
}

#[test]
fn what_is_not_opened_is_not_read_and_boxes_are_given_back() {
    let mut random = Random(32);
    // Every 512 tokens speak of something else, and a query asks for one of these things.
    let mut topic = Vec::new();
    let token = |t: usize| -> Vec<bf16> {
        if t.is_multiple_of(512) {
            topic = (0..ROW).map(|_| 2.0 * random.normal()).collect();
        }
        topic.iter().map(|x: &f32| bf16::from_f32(x + 0.3 * random.normal())).collect()
    };
    let k: Vec<bf16> = (0..8192).flat_map(token).collect();
    let ask_for = |t: usize| -> Vec<f32> {
        let heads = (0..HEADS * GROUP).map(|h| &k[t * ROW + h / GROUP * DIM..][..DIM]);
        heads.flatten().map(|x| x.to_f32()).collect()
    };
    let (small, flat) =
        (LeoAm { budget: 160, ..settings() }, Quest { budget: 160, unit_tokens: 16 });
    let cache = cache(small.into(), 64 << 20);
    let mut s = cache.sequence();
    append(&mut s, &k);
    let before = cache.stats().summary_bytes;
    let scan = sequence(flat, &k);
    let (mut tree, mut all) = (0, 0);
    for step in 0..8 {
        let q = ask_for(step * 1000 + 100);
        tree += ask(&s, &q).bytes.summary;
        all += ask(&scan, &q).bytes.summary;
    }
    assert!(tree < all / 2, "{tree} of {all}");
    let grown = cache.stats().summary_bytes;
    assert_eq!(
        grown - before,
        (HEADS * 8 * 21 * 2 * DIM * 2) as u64,
        "of the layer that was asked"
    );
    let fork = s.fork();
    s.truncate(3000).unwrap();
    assert!(cache.stats().summary_bytes > grown / 2, "the fork holds them");
    drop(fork);
    assert_eq!(cache.stats().summary_bytes, {
        let boxes = HEADS * 2 * 21 * 2 * DIM * 2;
        let cells = 2 * HEADS * 3000usize.div_ceil(64) * 4 * 2 * DIM * 2;
        (boxes + cells) as u64
    });
    drop(s);
    assert_eq!(cache.stats().used_bytes, 0);
}

/// Chunks of 256 tokens that are read whole, and chunks of 16 that are read alone.
fn sizes(info: &AttendInfo) -> (usize, usize) {
    let chosen = &info.selected.as_ref().unwrap()[0];
    let read = |c: usize| chosen.binary_search(&((c * 16) as u32)).is_ok();
    let whole = |g: &usize| (g * 16..(g + 1) * 16).all(read);
    let coarse = (1..2048 / 256).filter(whole).count();
    let fine = (32..2048 / 16).filter(|&c| read(c) && !whole(&(c / 16))).count();
    (coarse, fine)
}

#[test]
fn layers_whose_attention_is_flat_are_read_in_larger_chunks() {
    let mut random = Random(33);
    let k = random.rows(3600 * ROW, 1.0);
    let flat = LeoAm { budget: 1100, flat: 0.125, queries: 8, ..settings() };
    let mut s = sequence(flat, &k[..2100 * ROW]);
    let peaked = |random: &mut Random| queries(random, 1, 6.0);
    // Without queries of a prompt nothing is known: fine chunks.
    let (coarse, fine) = sizes(&ask(&s, &peaked(&mut random)));
    assert!(coarse == 0 && fine > 20, "{coarse} {fine}");
    // The prompt's last queries attend to all tokens alike.
    ask(&s, &queries(&mut random, 20, 0.01));
    let info = ask(&s, &peaked(&mut random));
    let (coarse, fine) = sizes(&info);
    assert!(coarse >= 3 && fine < 16, "{coarse} {fine}");
    let key = DIM * 2;
    assert_eq!(info.bytes.keys, (HEADS * 2100 * key) as u64, "the keys it was measured with");
    assert_eq!(ask(&s, &peaked(&mut random)).bytes.keys, 0);
    assert!(sizes(&ask(&s.fork(), &peaked(&mut random))).0 >= 3);
    // After 1024 tokens the last steps' queries say otherwise.
    for len in 2100..3130 {
        append(&mut s, &k[len * ROW..(len + 1) * ROW]);
        if len > 3100 {
            ask(&s, &peaked(&mut random));
        }
    }
    let (coarse, fine) = sizes(&ask(&s, &peaked(&mut random)));
    assert!(coarse == 0 && fine > 20, "{coarse} {fine}");
    // What was measured later is cut off, and so are its queries.
    s.truncate(3000).unwrap();
    let (coarse, _) = sizes(&ask(&s, &peaked(&mut random)));
    assert_eq!(coarse, 0);
}

#[test]
fn bounds_hold() {
    let mut random = Random(34);
    let k = wandering(&mut random, 1500);
    let q = queries(&mut random, 1, 1.5);
    let s = sequence(settings(), &k);
    let options = AttendOptions { selected: true, bound: true, ..AttendOptions::default() };
    let info = attend(&s, 0, &q, &options).1;
    let (chosen, bound) = (info.selected.unwrap(), info.missed_mass_bound.unwrap());
    for h in 0..HEADS * GROUP {
        let mass = masses(&k, 1500, h, &q);
        let read: f64 = chosen[h / GROUP].iter().map(|&t| mass[t as usize]).sum();
        assert!(1.0 - read <= f64::from(bound[h]) + 1e-9);
    }
}
