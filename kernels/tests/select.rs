//! Folds, top-k and top-p against plain sorting and f64.

use std::ops::Range;

use kvist_kernels::select;
use proptest::prelude::*;

/// Order of choice: larger first (NaN as infinity), then the lower id.
fn ranking(weights: &[f32]) -> Vec<u32> {
    let value = |id: u32| {
        let x = weights[id as usize];
        if x.is_nan() { f32::INFINITY } else { x }
    };
    let mut ids: Vec<u32> = (0..weights.len() as u32).collect();
    ids.sort_by(|&a, &b| value(b).partial_cmp(&value(a)).expect("no NaN").then(a.cmp(&b)));
    ids
}

fn sorted(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids
}

fn top_k(weights: &[f32], k: usize) -> Vec<u32> {
    let mut out = vec![99; 3];
    select::top_k(weights, k, &mut out);
    out
}

fn check_top_k(weights: &[f32], k: usize) {
    let want = sorted(ranking(weights).into_iter().take(k).collect());
    assert_eq!(top_k(weights, k), want, "{k} of {}", weights.len());
    if (1..=weights.len()).contains(&k) {
        let least = weights[ranking(weights)[k - 1] as usize];
        let least = if least.is_nan() { f32::INFINITY } else { least };
        assert_eq!(select::threshold(weights, k), least);
        let mut ids = vec![99; 3];
        select::at_least(weights, least, &mut ids);
        let want = |w: &f32| w.is_nan() || *w >= least;
        let want: Vec<u32> =
            (0..weights.len() as u32).filter(|&i| want(&weights[i as usize])).collect();
        assert_eq!(ids, want, "not below {least}");
    }
}

fn top_p(weights: &[f32], target: f64, min: usize, max: usize) -> (Vec<u32>, f64) {
    let mut out = vec![99; 3];
    let mass = select::top_p(weights, target, min, max, &mut out);
    (out, mass)
}

/// The choice by definition. Sums are compared with slack: their order differs.
fn check_top_p(weights: &[f32], target: f64, min: usize, max: usize) {
    let (got, mass) = top_p(weights, target, min, max);
    let order = ranking(weights);
    assert_eq!(got, sorted(order[..got.len()].to_vec()), "a prefix of the ranking");
    let part =
        |id: &u32| Some(f64::from(weights[*id as usize])).filter(|x| x.is_finite()).unwrap_or(0.0);
    let sum: f64 = got.iter().map(part).sum();
    let slack = 1e-9 * (1.0 + sum.abs());
    assert!((sum - mass).abs() <= slack, "{sum} {mass}");
    let max = max.min(weights.len());
    let min = min.min(max);
    assert!(got.len() >= min && got.len() <= max);
    assert!(got.len() == max || mass >= target - slack, "reached");
    // I-11: without its last unit the target is missed.
    if got.len() > min {
        let last = order[got.len() - 1];
        assert!(
            sum - part(&last) < target + slack,
            "fewest: {} units, {sum} for {target}",
            got.len()
        );
    }
}

fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -1e3f32..1e3,
        2 => (0..4i32).prop_map(|x| x as f32),
        1 => prop::sample::select(vec![
            0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MIN_POSITIVE, 1e-40, f32::MAX, f32::MIN,
        ]),
    ]
}

proptest! {
    #[test]
    fn top_k_is_the_head_of_the_ranking(w in prop::collection::vec(weight(), 0..300), k in 0usize..310) {
        check_top_k(&w, k);
    }

    #[test]
    fn top_p_is_the_shortest_head_that_reaches(
        w in prop::collection::vec(prop_oneof![0f32..1.0, Just(0.25), Just(0.0), Just(f32::NAN)], 0..200),
        p in 0f64..1.2, min in 0usize..20, more in 0usize..220,
    ) {
        let total: f64 = w.iter().filter(|x| x.is_finite()).map(|&x| f64::from(x)).sum();
        check_top_p(&w, p * total, min, min + more);
    }

    #[test]
    fn budgets_and_masses_nest(w in prop::collection::vec(0f32..1.0, 1..200), a in 0usize..200, b in 0usize..200, p in 0f64..1.0, q in 0f64..1.0) {
        // I-10
        let subset = |small: &[u32], large: &[u32]| small.iter().all(|x| large.binary_search(x).is_ok());
        prop_assert!(subset(&top_k(&w, a.min(b)), &top_k(&w, a.max(b))));
        let total: f64 = w.iter().map(|&x| f64::from(x)).sum();
        let ((small, x), (large, y)) = (top_p(&w, p.min(q) * total, 0, 200), top_p(&w, p.max(q) * total, 0, 200));
        prop_assert!(subset(&small, &large) && x <= y);
    }

    #[test]
    fn a_constant_added_to_a_head_changes_no_mass(
        quarters in prop::collection::vec(-160i32..160, 3 * 40), by in prop::collection::vec(-1000i32..1000, 3),
    ) {
        // I-12: such logits are exact in f32 before and after.
        let est: Vec<f32> = quarters.iter().map(|&x| x as f32 / 4.0).collect();
        let moved: Vec<f32> = est.iter().enumerate().map(|(i, x)| x + by[i / 40] as f32).collect();
        let masses = |est: &[f32]| {
            let (mut lse, mut out) = ([f32::NEG_INFINITY; 3], vec![0f32; 40]);
            select::lse2(est, 40, 0.5, &mut lse);
            select::fold_mass(est, 40, 0.5, &lse, &mut out);
            out
        };
        for (a, b) in masses(&est).iter().zip(masses(&moved)) {
            prop_assert!((a - b).abs() <= 1e-3 * a.abs() + 1e-30, "{} {}", a, b);
        }
    }

    #[test]
    fn a_choice_is_not_changed_by_choosing_again(w in prop::collection::vec(weight(), 1..300), k in 1usize..300) {
        // I-8: no state between calls, and the same choice from a longer buffer.
        let first = top_k(&w, k);
        let mut used = (0..1000).collect();
        select::top_k(&w, k, &mut used);
        prop_assert_eq!(first, used);
    }

    #[test]
    fn forced_ids_are_part_of_the_budget(
        w in prop::collection::vec(weight(), 1..120), k in 0usize..130,
        cuts in prop::collection::vec(0u32..120, 0..6),
    ) {
        let n = w.len() as u32;
        let mut cuts: Vec<u32> = cuts.into_iter().map(|c| c.min(n)).collect();
        cuts.sort_unstable();
        let forced: Vec<Range<u32>> = cuts.chunks_exact(2).map(|c| c[0]..c[1]).collect();
        let kept: Vec<u32> = forced.iter().cloned().flatten().collect();
        let rest = ranking(&w).into_iter().filter(|id| !kept.contains(id));
        let mut want = kept.clone();
        want.extend(rest.take(k.saturating_sub(kept.len())));
        let mut out = Vec::new();
        select::top_k_forced(&w, &forced, k, &mut out);
        prop_assert_eq!(&out, &sorted(want));
        // I-8: ascending, unique, in range, within the budget.
        prop_assert!(out.windows(2).all(|p| p[0] < p[1]) && out.iter().all(|&id| id < n));
        prop_assert!(out.len() <= k.max(kept.len()));
    }
}

struct Rng(u64);

impl Rng {
    fn uniform(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }
}

/// Weights of long lists, of the kinds that a sample could misjudge.
fn long_lists() -> Vec<Vec<f32>> {
    let mut rng = Rng(1);
    let n = 40_003;
    let mass: Vec<f32> = (0..n).map(|_| (rng.uniform() * 20.0 - 20.0).exp2()).collect();
    let signed: Vec<f32> = (0..n).map(|_| rng.uniform() - 0.5).collect();
    let equal = vec![0.5f32; n];
    let mut rare = vec![0f32; n];
    (0..n).step_by(1009).for_each(|i| rare[i] = i as f32);
    let mut nans = signed.clone();
    (0..n).step_by(77).for_each(|i| nans[i] = f32::NAN);
    // Everything large lies where the sample does not look.
    let mut hidden = vec![0.001f32; n];
    (0..n).filter(|i| i % 39 > 3).for_each(|i| hidden[i] = 1.0 + rng.uniform());
    let sorted: Vec<f32> = (0..n).map(|i| i as f32).collect();
    vec![mass, signed, equal, rare, nans, hidden, sorted]
}

#[test]
fn long_lists_are_exact_too() {
    for w in long_lists() {
        for k in [1, 7, 100, 2048, 4096, 20_000, 39_999, 40_003] {
            check_top_k(&w, k);
        }
    }
}

#[test]
fn long_lists_reach_their_mass() {
    for w in long_lists().into_iter().filter(|w| w.iter().all(|x| x.is_nan() || *x >= 0.0)) {
        let total: f64 = w.iter().filter(|x| x.is_finite()).map(|&x| f64::from(x)).sum();
        for p in [0.0, 0.1, 0.5, 0.9, 0.999, 1.0, 1.1] {
            for (min, max) in [(0, 50_000), (64, 1000), (5000, 5000), (0, 1), (0, 0)] {
                check_top_p(&w, p * total, min, max);
            }
        }
    }
}

#[test]
fn equal_weights_give_the_lowest_ids() {
    // I-17
    assert_eq!(top_k(&[1.0; 100], 3), [0, 1, 2]);
    assert_eq!(top_p(&[0.25; 100], 1.0, 0, 100).0, [0, 1, 2, 3]);
    assert_eq!(top_k(&[0.0, -0.0, 0.0], 2), [0, 1]);
}

#[test]
fn unknown_weights_come_first() {
    let w = [0.5, f32::NAN, 0.1, 9.0];
    assert_eq!(top_k(&w, 1), [1]);
    assert_eq!(top_p(&w, 9.0, 0, 4), (vec![1, 3], 9.0));
}

fn exact_lse2(row: &[f32], scale: f32) -> f64 {
    let t = || row.iter().filter(|x| !x.is_nan()).map(|&x| f64::from(x) * f64::from(scale));
    let top = t().fold(f64::NEG_INFINITY, f64::max);
    if top.is_infinite() { top } else { top + t().map(|t| (t - top).exp2()).sum::<f64>().log2() }
}

#[test]
fn masses_match_f64() {
    let mut rng = Rng(2);
    for (heads, n) in [(1, 1), (1, 15), (2, 16), (3, 17), (4, 1024), (7, 1025), (5, 5000), (16, 33)]
    {
        let est: Vec<f32> = (0..heads * n).map(|_| (rng.uniform() - 0.5) * 300.0).collect();
        let scale = 0.18;
        let mut lse = vec![f32::NEG_INFINITY; heads];
        select::lse2(&est, n, scale, &mut lse);
        for (h, &lse) in lse.iter().enumerate() {
            let want = exact_lse2(&est[h * n..][..n], scale);
            assert!((f64::from(lse) - want).abs() <= 1e-5 * (1.0 + want.abs()), "{lse} {want}");
        }
        let mut out = vec![7.0; n];
        select::fold_mass(&est, n, scale, &lse, &mut out);
        for (i, &o) in out.iter().enumerate() {
            let mass = |h: usize| {
                (f64::from(est[h * n + i]) * f64::from(scale) - f64::from(lse[h])).exp2()
            };
            let want: f64 = (0..heads).map(mass).sum();
            assert!((f64::from(o) - want).abs() <= 1e-5 * want + 1e-36, "{o} {want}");
        }
        let total: f64 = out.iter().map(|&x| f64::from(x)).sum();
        assert!((total - heads as f64).abs() < 1e-3 * heads as f64, "masses of a head sum to 1");
        select::fold_mass_max(&est, n, scale, &lse, &mut out);
        for (i, &o) in out.iter().enumerate() {
            let mass = |h: usize| {
                (f64::from(est[h * n + i]) * f64::from(scale) - f64::from(lse[h])).exp2()
            };
            let want = (0..heads).map(mass).fold(0.0, f64::max);
            assert!((f64::from(o) - want).abs() <= 1e-5 * want + 1e-36, "{o} {want}");
        }
    }
}

#[test]
fn parts_join_to_the_whole() {
    // I-18
    let mut rng = Rng(3);
    let est: Vec<f32> = (0..3000).map(|_| (rng.uniform() - 0.5) * 100.0).collect();
    let (mut whole, mut parts) = ([f32::NEG_INFINITY], [f32::NEG_INFINITY]);
    select::lse2(&est, 3000, 1.0, &mut whole);
    for part in est.chunks(700) {
        select::lse2(part, part.len(), 1.0, &mut parts);
    }
    assert!((whole[0] - parts[0]).abs() < 1e-5 * whole[0].abs());
    let (a, b) = (select::log2_add(3.0, 3.0), select::log2_add(f32::NEG_INFINITY, 5.0));
    assert_eq!((a, b, select::log2_add(1.0, f32::INFINITY)), (4.0, 5.0, f32::INFINITY));
}

#[test]
fn rows_may_be_strided() {
    let mut rng = Rng(4);
    let est: Vec<f32> = (0..4 * 50).map(|_| rng.uniform() * 8.0).collect();
    let tight: Vec<f32> = est.chunks(50).flat_map(|row| &row[..37]).copied().collect();
    let (mut a, mut b) = ([f32::NEG_INFINITY; 4], [f32::NEG_INFINITY; 4]);
    select::lse2_strided(&est[..187], 50, 37, 1.5, &mut a);
    select::lse2(&tight, 37, 1.5, &mut b);
    assert_eq!(a, b);
    let (mut x, mut y) = ([0f32; 37], [0f32; 37]);
    select::fold_mass_strided(&est[..187], 50, 37, 1.5, &a, &mut x);
    select::fold_mass(&tight, 37, 1.5, &b, &mut y);
    assert_eq!(x, y);
}

#[test]
fn special_scores_stay_special() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let mut est = vec![1.0f32; 40];
    est[3] = nan;
    est[7] = -inf;
    let mut lse = [-inf];
    select::lse2(&est, 40, 2.0, &mut lse);
    assert!((f64::from(lse[0]) - exact_lse2(&est, 2.0)).abs() < 1e-5, "NaN is skipped");
    let mut out = vec![0f32; 40];
    select::fold_mass(&est, 40, 2.0, &lse, &mut out);
    assert!(out[3].is_nan() && out[7] == 0.0 && (out[0] - 1.0 / 38.0).abs() < 1e-6);
    // Nothing but masked scores: no mass, no NaN.
    let mut lse = [-inf];
    select::lse2(&[-inf; 20], 20, 1.0, &mut lse);
    select::fold_mass(&[-inf; 20], 20, 1.0, &lse, &mut out[..20]);
    assert!(lse[0] == -inf && out[..20] == [0.0; 20]);
    // An infinite score takes all.
    let mut lse = [-inf];
    select::lse2(&[1.0, inf, 2.0], 3, 1.0, &mut lse);
    assert_eq!(lse[0], inf);
    select::fold_mass(&[1.0, inf, 2.0], 3, 1.0, &lse, &mut out[..3]);
    assert!(out[0] == 0.0 && out[1].is_nan() && out[2] == 0.0);
}

#[test]
fn raw_folds() {
    let est = [1.0, 5.0, -1.0, 3.0, 2.0, f32::NAN];
    let mut out = [0f32; 3];
    select::fold_max(&est, 3, 2, &mut out);
    assert!(out[..2] == [3.0, 5.0] && out[2].is_nan());
    select::fold_mean(&est, 3, 2, &mut out);
    assert!(out[..2] == [2.0, 3.5] && out[2].is_nan());
    select::fold_max(&est, 3, 2, &mut out[..1]);
    select::fold_mean(&est[1..], 3, 2, &mut out[1..2]);
    assert_eq!(out[..2], [3.0, 3.5], "rows may be strided");
    for est in [&est[..], &[1.0, 5.0, f32::NAN, 3.0, 2.0, -1.0]] {
        select::fold_mass_max(est, 3, 1.0, &[3.0, 4.0], &mut out);
        let near = |a: f32, b: f32| (a - b).abs() < 1e-4 * b;
        assert!(near(out[0], 0.5) && near(out[1], 4.0) && out[2].is_nan(), "{out:?}");
    }
}

#[test]
fn the_order_of_heads_in_a_group_does_not_matter() {
    // I-7, up to the order of f32 additions.
    let mut rng = Rng(5);
    let n = 100;
    let est: Vec<f32> = (0..4 * n).map(|_| rng.uniform() * 20.0).collect();
    let turned: Vec<f32> = [2, 0, 3, 1].iter().flat_map(|&h| &est[h * n..][..n]).copied().collect();
    let choose = |est: &[f32]| {
        let (mut lse, mut out) = ([f32::NEG_INFINITY; 4], vec![0f32; n]);
        select::lse2(est, n, 0.5, &mut lse);
        select::fold_mass(est, n, 0.5, &lse, &mut out);
        top_k(&out, 10)
    };
    assert_eq!(choose(&est), choose(&turned));
}
