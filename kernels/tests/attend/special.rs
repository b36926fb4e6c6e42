//! Numbers that are not finite, and numbers that are very large: they reach the rows that see them,
//! and no other.

use half::bf16;
use kvist_kernels::attend::{self, Out};
use kvist_kernels::{Element, Executor, Isa, Tensor3Mut};
use proptest::prelude::*;

use crate::common::{Built, Case, base, build, check_built, kernel, oracle, run_with};

/// Where token `t` of the first list has its key (and its value, if both are equally long).
fn row<T>(case: &Case, built: &Built<T>, t: usize) -> usize {
    let frame = match case.slots {
        true => return built.list[t] as usize * case.dim_k,
        false => built.list[t / case.page] as usize,
    };
    (frame * case.page + t % case.page) * case.dim_k
}

/// One head per frame, rows side by side: what [`row`] expects.
fn plain() -> Case {
    Case { kv_heads: 1, group: 3, per_head: true, hnd: true, ..base() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn special_numbers_reach_the_rows_that_see_them(
        seed in 0u64..1_000_000,
        dim in prop_oneof![Just(64usize), 1usize..70],
        group in 1usize..6,
        (len, queries) in prop_oneof![
            (1usize..20, Just(1usize)), (60usize..140, Just(1usize)), (1usize..140, 1usize..30),
        ],
        poison in prop::collection::vec((any::<u32>(), any::<u32>(), 0usize..3), 1..4),
        values in any::<bool>(),
        (causal, sinks, slots) in (any::<bool>(), any::<bool>(), any::<bool>()),
        window in prop_oneof![Just(0u32), 1u32..60],
        soft_cap in prop_oneof![Just(0.0f32), Just(20.0f32)],
    ) {
        let case = Case {
            seed, dim_k: dim, dim_v: dim, group, lens: vec![len], queries: vec![queries.min(len)],
            causal, sinks, slots, window, soft_cap, ..plain()
        };
        match seed % 3 {
            0 => poisoned::<f32>(&case, &poison, values),
            1 => poisoned::<half::f16>(&case, &poison, values),
            _ => poisoned::<bf16>(&case, &poison, values),
        }
    }
}

/// One channel of some keys, or of some values, becomes NaN or infinite. Not of both: what a value
/// does that an infinite key gives no weight is nobody's business.
fn poisoned<T: Element>(case: &Case, poison: &[(u32, u32, usize)], values: bool) {
    let mut built = build::<T>(case);
    let tokens = if case.slots { built.list.len() } else { case.lens[0] };
    for &(token, channel, what) in poison {
        if tokens == 0 {
            break;
        }
        let at = row(case, &built, token as usize % tokens) + channel as usize % case.dim_k;
        let side = if values { &mut built.v } else { &mut built.k };
        side[at] = T::from_f32([f32::NAN, f32::INFINITY, f32::NEG_INFINITY][what]);
    }
    check_built(case, &built);
}

/// Fills the keys of one list so that token `t` scores `score(t)` for every query row.
fn with_scores<T: Element>(case: &Case, score: impl Fn(usize) -> f32) -> Built<T> {
    let mut built = build::<T>(case);
    built.q.fill(T::from_f32(0.0));
    let one = T::from_f32(1.0);
    built.q.iter_mut().step_by(case.dim_k).for_each(|q| *q = one);
    for t in 0..case.lens[0] {
        let at = row(case, &built, t);
        built.k[at] = T::from_f32(score(t));
    }
    built
}

/// All dtypes, with as many queries as given.
fn check_scores(case: &Case, score: impl Fn(usize) -> f32 + Copy) {
    check_built(case, &with_scores::<f32>(case, score));
    check_built(case, &with_scores::<bf16>(case, score));
}

#[test]
fn the_maximum_may_rise_or_fall_in_every_round() {
    for queries in [1, 2, 3] {
        for (soft_cap, window) in [(0.0, 0), (30.0, 0), (0.0, 40), (30.0, 40)] {
            let (lens, queries) = (vec![147], vec![queries]);
            let case =
                Case { lens, queries, soft_cap, window, causal: true, sinks: true, ..plain() };
            check_scores(&case, |t| t as f32 * 0.25);
            check_scores(&case, |t| t as f32 * -0.25);
            check_scores(&case, |t| if t % 16 == 15 { t as f32 } else { -40.0 });
            // One step at each border of a round or tile, so large that the rest counts nothing.
            for edge in [15, 16, 17, 31, 32, 48, 63, 64, 65, 80, 128, 144, 146] {
                check_scores(&case, |t| if t < edge { 0.0 } else { 800.0 });
                check_scores(&case, |t| if t == edge { 800.0 } else { t as f32 / 64.0 });
            }
        }
    }
}

#[test]
fn scores_of_minus_infinity_weigh_nothing() {
    for queries in [1, 3] {
        for sinks in [false, true] {
            let case =
                Case { lens: vec![100], queries: vec![queries], causal: true, sinks, ..plain() };
            // Rounds, tiles, or all of it.
            for edge in [1, 15, 16, 17, 64, 100] {
                check_scores(&case, |t| if t < edge { f32::NEG_INFINITY } else { t as f32 / 64.0 });
                check_scores(&case, |t| if t < edge { t as f32 / 64.0 } else { f32::NEG_INFINITY });
            }
        }
    }
}

#[test]
fn huge_scores_stay_finite() {
    for (soft_cap, window) in [(0.0, 0), (50.0, 0), (0.0, 30), (50.0, 30)] {
        let (lens, queries) = (vec![100], vec![4]);
        let case = Case { lens, queries, soft_cap, window, causal: true, sinks: true, ..plain() };
        check_scores(&case, |t| if t % 7 == 3 { -1e30 } else { t as f32 * 1e28 });
        check_scores(&case, |t| -1e30 - t as f32 * 1e28);
        check_scores(&case, |t| if t == 96 { 1e30 } else { -1e30 });
    }
}

#[test]
fn infinite_sinks_take_all_or_nothing() {
    for (sink, len) in [(1e30, 50), (-1e30, 50), (f32::NEG_INFINITY, 50), (f32::NEG_INFINITY, 0)] {
        let case = Case { lens: vec![len], queries: vec![1], sinks: true, ..plain() };
        let mut built = build::<f32>(&case);
        built.sinks.fill(sink);
        check_built(&case, &built);
    }
}

#[test]
fn rows_of_a_block_that_see_nothing_are_empty() {
    // The list begins at position 500: the first queries stand before it, and see none of it.
    let case = Case {
        lens: vec![90],
        queries: vec![90],
        first_pos: 500,
        causal: true,
        window: 20,
        ..plain()
    };
    for sinks in [false, true] {
        let case = Case { sinks, ..case.clone() };
        let mut built = build::<bf16>(&case);
        built.positions.iter_mut().for_each(|p| *p -= 30);
        check_built(&case, &built);
        let want = oracle(&case, &built);
        assert!(want.o[..30 * 3 * 64].iter().all(|&x| x == 0.0));
        assert!(want.lse2[..90].iter().all(|x| x.is_finite() == sinks));
        // And the last ones beyond everything that the window reaches.
        built.positions.iter_mut().for_each(|p| *p += 100);
        check_built(&case, &built);
        assert!(oracle(&case, &built).o[89 * 3 * 64..].iter().all(|&x| x == 0.0));
    }
}

#[test]
fn a_first_tile_may_be_masked_for_later_rows_only() {
    // One block of 4 query rows begins its tiles where its oldest row looks.
    for (group, queries) in [(1, 60), (2, 20), (3, 33), (4, 16)] {
        for window in [1, 2, 15, 16, 17, 60, 64] {
            let case = Case {
                group,
                lens: vec![190],
                queries: vec![queries],
                causal: true,
                window,
                ..plain()
            };
            check_built(&case, &build::<bf16>(&case));
            check_built(&case, &build::<f32>(&case));
        }
    }
}

#[test]
fn what_lies_beyond_a_list_is_never_multiplied() {
    // The builder leaves NaN in every row that no list names: here the rest of the last page.
    for len in [1, 15, 17, 33, 49, 63] {
        let case = Case { lens: vec![len], queries: vec![1], ..plain() };
        let built = build::<bf16>(&case);
        let past = row(&case, &built, len - 1) + case.dim_k;
        assert!(built.k[past].is_nan() && built.v[past].is_nan());
        for isa in Isa::available() {
            let (o, lse) = kernel(&case, &built, isa, &Executor::inline());
            assert!(o.iter().chain(&lse).all(|x| x.is_finite()), "{isa:?} {len}");
        }
    }
}

#[test]
fn an_infinite_key_leaves_other_heads_alone() {
    let case = Case { kv_heads: 2, lens: vec![70], queries: vec![1], ..plain() };
    let mut built = build::<bf16>(&case);
    let at = row(&case, &built, 20);
    built.k[at..at + 64].fill(bf16::INFINITY);
    for isa in Isa::available() {
        let mut o = vec![0f32; 6 * 64];
        run_with(&case, &built, |queries, pool, pages, _, params| {
            let view = Tensor3Mut::contiguous(&mut o, [1, 6, 64]).unwrap();
            let mut out = Out { o: view, lse2: None };
            let exec = Executor::inline();
            attend::pages_at(isa, queries, pool, pages, params, &exec, &mut out).unwrap();
        });
        let (poisoned, other) = o.split_at(3 * 64);
        assert!(poisoned.iter().all(|x| x.is_nan()) && other.iter().all(|x| x.is_finite()));
    }
}
