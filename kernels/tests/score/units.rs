//! Unit rows: Quest's box, mean, mean and variance.

use kvist_kernels::score::{self, CellList, UnitQuery};
use kvist_kernels::summary::{self, UnitKind, UnitSpec};
use kvist_kernels::{DType, Isa};
use proptest::prelude::*;

use crate::common::{Keys, Rng, queries, shapes};

/// Scores of all units of a spec, `[heads][tiles * units]`.
fn unit_scores(
    isa: Isa,
    spec: UnitSpec,
    q: &[f32],
    cells: &[u8],
    scale: f32,
    upper: bool,
) -> Vec<f32> {
    let heads = q.len() / spec.dim();
    let tiles = cells.len() / spec.cell_bytes();
    let ids: Vec<u32> = (0..tiles as u32).collect();
    let list = CellList::from_slice(cells, spec.cell_bytes(), &ids).expect("cells that exist");
    let query = UnitQuery::new(isa, spec, q, heads, scale, true);
    let mut out = vec![0f32; heads * tiles * spec.units()];
    if upper {
        score::units_upper(&query, &list, &mut out);
    } else {
        score::units(&query, &list, &mut out);
    }
    out
}

#[test]
fn box_scores_bound_every_key() {
    let mut rng = Rng(11);
    for (dim, heads, tiles) in shapes(&mut rng) {
        for dtype in DType::ALL {
            let keys = Keys::random(&mut rng, dtype, dim, tiles);
            let q = queries(&mut rng, heads, dim);
            let tokens = [1, 4, 16, 64][rng.bits() as usize % 4];
            let spec = UnitSpec::new(UnitKind::Box, dim, dtype, tokens).unwrap();
            let cells = keys.units(&spec);
            let upper = unit_scores(Isa::level(), spec, &q, &cells, 1.0, true);
            let n = tiles * spec.units();
            for isa in Isa::available() {
                let fast = unit_scores(isa, spec, &q, &cells, 1.0, false);
                for (at, (&u, f)) in upper.iter().zip(fast).enumerate() {
                    let (h, unit) = (at / n, at % n);
                    let q = &q[h * dim..][..dim];
                    let top = (0..tokens)
                        .map(|t| keys.dot(q, unit * tokens + t))
                        .fold(f64::MIN, f64::max);
                    assert!(f64::from(u) >= top);
                    let size: f64 = q.iter().map(|x| f64::from(x.abs())).sum::<f64>() * 30.0;
                    assert!(
                        (f64::from(u) - f64::from(f)).abs() <= 2f64.powi(-20) * size,
                        "{u} {f}"
                    );
                }
            }
        }
    }
}

#[test]
fn incremental_boxes_are_bit_equal() {
    let mut rng = Rng(12);
    for dtype in DType::ALL {
        let keys = Keys::random(&mut rng, dtype, 33, 1);
        for kind in [UnitKind::Box, UnitKind::Mean, UnitKind::Moment2] {
            let spec = UnitSpec::new(kind, 33, dtype, 16).unwrap();
            let fresh = keys.units(&spec);
            let mut cell = fresh.clone();
            let ptrs = keys.ptrs(0);
            let (a, b) = (1 + rng.bits() as usize % 15, 16);
            // SAFETY: the pointers are rows of `bytes`.
            unsafe {
                summary::update_unit(&spec, &mut cell, 2, 0, &ptrs[32..32 + a]);
                summary::update_unit(&spec, &mut cell, 2, a, &ptrs[32 + a..32 + b]);
            }
            if kind == UnitKind::Box {
                assert_eq!(cell, fresh);
            } else if dtype == DType::F32 {
                let near = |a: &[f32], b: &[f32]| {
                    a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()))
                };
                let used = 4 * spec.row_bytes();
                assert!(near(
                    bytemuck::cast_slice(&cell[..used]),
                    bytemuck::cast_slice(&fresh[..used])
                ));
            }
        }
    }
}

#[test]
fn boxes_of_boxes_are_boxes_of_their_keys() {
    let mut rng = Rng(14);
    for dtype in DType::ALL {
        for dim in [1, 5, 33, 64] {
            let keys = Keys::random(&mut rng, dtype, dim, 1);
            let mut bytes = keys.bytes.clone();
            if rng.bits().is_multiple_of(2) {
                // All ones is a NaN in every dtype.
                let at = rng.bits() as usize % (bytes.len() / dtype.size()) * dtype.size();
                bytes[at..at + dtype.size()].fill(0xff);
            }
            let row = dim * dtype.size();
            let ptrs: Vec<*const u8> = bytes.chunks(row).map(<[u8]>::as_ptr).collect();
            let cell = |tokens: usize| {
                let spec = UnitSpec::new(UnitKind::Box, dim, dtype, tokens).unwrap();
                let mut cell = vec![0u8; spec.cell_bytes()];
                // SAFETY: the pointers are rows of `bytes`.
                unsafe { summary::build_units(&spec, &ptrs, &mut cell) }
                (spec, cell)
            };
            let ((fine, small), (whole, large)) = (cell(8), cell(64));
            let rows: Vec<*const u8> =
                small.chunks(fine.row_bytes()).take(8).map(<[u8]>::as_ptr).collect();
            let mut merged = vec![0xa5u8; fine.row_bytes()];
            // SAFETY: rows of `small`.
            unsafe { summary::merge_boxes(&fine, &rows, &mut merged) }
            assert_eq!(merged, large[..whole.row_bytes()]);
        }
    }
}

#[test]
fn listed_rows_score_like_all() {
    let mut rng = Rng(15);
    for (dim, heads, tiles) in shapes(&mut rng).into_iter().filter(|s| s.2 > 0) {
        let keys = Keys::random(&mut rng, DType::Bf16, dim, tiles);
        let q = queries(&mut rng, heads, dim);
        let spec = UnitSpec::new(UnitKind::Box, dim, DType::Bf16, 16).unwrap();
        let cells = keys.units(&spec);
        let n = tiles * spec.units();
        let row = |u: usize| {
            let at = u / spec.units() * spec.cell_bytes() + u % spec.units() * spec.row_bytes();
            cells[at..].as_ptr()
        };
        for isa in Isa::available() {
            let all = unit_scores(isa, spec, &q, &cells, 1.0, false);
            let query = UnitQuery::new(isa, spec, &q, heads, 1.0, true);
            for count in [1, 3, 4, 7] {
                let units: Vec<usize> = (0..count).map(|_| rng.bits() as usize % n).collect();
                let rows: Vec<*const u8> = units.iter().map(|&u| row(u)).collect();
                let mut out = vec![0f32; heads * count];
                // SAFETY: rows of `cells`.
                unsafe { score::unit_rows(&query, &rows, &mut out) }
                for (i, &unit) in units.iter().enumerate() {
                    (0..heads).for_each(|h| assert_eq!(out[h * count + i], all[h * n + unit]));
                }
            }
        }
    }
}

#[test]
fn log_mass_estimates_keep_their_order() {
    // I-5: ln n + s q.mean <= ln sum exp(s q.k) <= ln n + s UB, and the second moment adds to the mean.
    let mut rng = Rng(13);
    let (dim, scale) = (64, 0.125f32);
    let keys = Keys::random(&mut rng, DType::F32, dim, 3);
    let q = queries(&mut rng, 3, dim);
    let [mean, moment, upper] =
        [(UnitKind::Mean, false), (UnitKind::Moment2, false), (UnitKind::Box, true)].map(
            |(kind, up)| {
                let spec = UnitSpec::new(kind, dim, DType::F32, 16).unwrap();
                unit_scores(Isa::level(), spec, &q, &keys.units(&spec), scale, up)
            },
        );
    let n = 12;
    for at in 0..mean.len() {
        let (h, unit) = (at / n, at % n);
        let logits =
            (0..16).map(|t| f64::from(scale) * keys.dot(&q[h * dim..][..dim], unit * 16 + t));
        let mass = logits.clone().map(f64::exp).sum::<f64>().ln() - 16f64.ln();
        let slack = 1e-4 * (1.0 + mass.abs());
        let [lower, upper] = [mean[at], upper[at]].map(|s| f64::from(scale * s));
        assert!(lower <= mass + slack && mass <= upper + slack, "{lower} {mass} {upper}");
        assert!(moment[at] >= mean[at] - 1e-4);
        let logits: Vec<f64> = logits.collect();
        let center = logits.iter().sum::<f64>() / 16.0;
        assert!((f64::from(scale * mean[at]) - center).abs() < slack);
    }
}

#[test]
fn order_of_tokens_in_a_unit_does_not_matter() {
    // I-13, and NaN keys make their unit unknown instead of vanishing.
    let mut rng = Rng(14);
    let dim = 32;
    let mut keys = Keys::random(&mut rng, DType::Bf16, dim, 1);
    let q = queries(&mut rng, 1, dim);
    let spec = UnitSpec::new(UnitKind::Box, dim, DType::Bf16, 16).unwrap();
    let before = unit_scores(Isa::level(), spec, &q, &keys.units(&spec), 1.0, false);
    let row = dim * 2;
    let (first, last) = keys.bytes.split_at_mut(15 * row);
    first[..row].swap_with_slice(&mut last[..row]);
    let after = unit_scores(Isa::level(), spec, &q, &keys.units(&spec), 1.0, false);
    assert_eq!(before, after);
    keys.values[3 * dim] = f32::NAN;
    let keys = Keys::new(DType::Bf16, dim, keys.values);
    let cells = keys.units(&spec);
    let scores = unit_scores(Isa::level(), spec, &q, &cells, 1.0, false);
    assert!(scores[0].is_nan() && scores[1..].iter().all(|s| s.is_finite()));
    assert_eq!(unit_scores(Isa::level(), spec, &q, &cells, 1.0, true)[0], f32::INFINITY);
}

proptest! {
    #[test]
    fn bounds_hold_at_the_extremes_of_each_dtype(
        dim in 1usize..40, dtype in prop::sample::select(DType::ALL.to_vec()),
        tokens in prop::sample::select(vec![1usize, 2, 16, 64]),
        picks in prop::collection::vec(0usize..12, 64 * 40),
        numbers in prop::collection::vec(-2f32..2.0, 40),
    ) {
        // I-1, from above and, for the negated query, from below.
        let size = |x: f32| match dtype {
            DType::F32 => x,
            DType::Bf16 => x.min(3.3e38),
            DType::F16 => x.min(65504.0),
        };
        let some = [
            0.0, -0.0, size(f32::MAX), -size(f32::MAX), f32::MIN_POSITIVE, -1e-7, 6e-8, 1.0, -1.0, 1e4, -3e3,
            0.1,
        ];
        let keys = Keys::new(dtype, dim, (0..64 * dim).map(|i| some[picks[i]]).collect());
        let spec = UnitSpec::new(UnitKind::Box, dim, dtype, tokens).unwrap();
        let cells = keys.units(&spec);
        let q = &numbers[..dim];
        let negated: Vec<f32> = q.iter().map(|x| -x).collect();
        for (q, sign) in [(q, 1.0), (&negated[..], -1.0)] {
            let upper = unit_scores(Isa::level(), spec, q, &cells, 1.0, true);
            for (unit, &u) in upper.iter().enumerate() {
                for t in unit * tokens..(unit + 1) * tokens {
                    let exact = keys.dot(q, t);
                    prop_assert!(f64::from(u) >= exact, "{} {} {}", sign, u, exact);
                }
            }
        }
    }

    #[test]
    fn boxes_grow_in_any_steps(
        dim in 1usize..70, dtype in prop::sample::select(DType::ALL.to_vec()), seed in any::<u64>(),
        cuts in prop::collection::vec(1usize..64, 0..6),
    ) {
        // I-3
        let keys = Keys::random(&mut Rng(seed), dtype, dim, 1);
        let spec = UnitSpec::new(UnitKind::Box, dim, dtype, 64).unwrap();
        let (fresh, ptrs) = (keys.units(&spec), keys.ptrs(0));
        let mut cuts = [vec![0, 64], cuts].concat();
        cuts.sort_unstable();
        let mut cell = vec![0xa5u8; spec.cell_bytes()];
        for step in cuts.windows(2) {
            // SAFETY: the pointers are rows of `bytes`.
            unsafe { summary::update_unit(&spec, &mut cell, 0, step[0], &ptrs[step[0]..step[1]]) }
        }
        prop_assert_eq!(&cell[..spec.row_bytes()], &fresh[..spec.row_bytes()]);
    }
}

#[test]
fn integers_score_the_same_at_every_level() {
    // I-15: every product and sum is exact.
    let mut rng = Rng(15);
    for dim in [1, 15, 16, 33, 64, 100] {
        let values = (0..3 * 64 * dim).map(|_| (rng.bits() % 17) as f32 - 8.0).collect();
        let q: Vec<f32> = (0..5 * dim).map(|_| (rng.bits() % 17) as f32 - 8.0).collect();
        for dtype in DType::ALL {
            let keys = Keys::new(dtype, dim, Vec::clone(&values));
            for kind in [UnitKind::Box, UnitKind::Mean] {
                // Means of one token: whole numbers too.
                let tokens = if kind == UnitKind::Box { 16 } else { 1 };
                let spec = UnitSpec::new(kind, dim, dtype, tokens).unwrap();
                let cells = keys.units(&spec);
                let plain = unit_scores(Isa::Generic, spec, &q, &cells, 1.0, false);
                for isa in Isa::available() {
                    assert_eq!(unit_scores(isa, spec, &q, &cells, 1.0, false), plain, "{isa:?}");
                }
            }
        }
    }
}

#[test]
fn equal_units_score_the_same() {
    // I-13
    let mut rng = Rng(16);
    for dim in [1, 17, 64] {
        let one = Keys::random(&mut rng, DType::Bf16, dim, 1);
        let keys = Keys::new(DType::Bf16, dim, one.values.repeat(5));
        let q = queries(&mut rng, 3, dim);
        for kind in [UnitKind::Box, UnitKind::MeanBox, UnitKind::Mean, UnitKind::Moment2] {
            let spec = UnitSpec::new(kind, dim, DType::Bf16, 64).unwrap();
            for isa in Isa::available() {
                let scores = unit_scores(isa, spec, &q, &keys.units(&spec), 0.2, false);
                for of_head in scores.chunks(5) {
                    assert!(of_head.iter().all(|s| s.to_bits() == of_head[0].to_bits()), "{isa:?}");
                }
            }
        }
    }
}

#[test]
fn a_mean_box_is_the_centre_plus_and_minus_the_mean_deviation() {
    // I-6: it is no bound; some keys lie above it.
    let mut rng = Rng(17);
    let mut above = 0;
    for (dim, heads, tiles) in shapes(&mut rng) {
        let keys = Keys::random(&mut rng, DType::F32, dim, tiles);
        let q = queries(&mut rng, heads, dim);
        let spec = UnitSpec::new(UnitKind::MeanBox, dim, DType::F32, 32).unwrap();
        let scores = unit_scores(Isa::level(), spec, &q, &keys.units(&spec), 1.0, false);
        let units = tiles * spec.units();
        for (at, &score) in scores.iter().enumerate() {
            let (q, first) = (&q[at / units * dim..][..dim], at % units * 32);
            let (mut want, mut size) = (0f64, 0f64);
            for (i, &q) in q.iter().enumerate() {
                let column = || (first..first + 32).map(|t| f64::from(keys.values[t * dim + i]));
                let (max, min) =
                    (column().fold(f64::MIN, f64::max), column().fold(f64::MAX, f64::min));
                let centre = 0.5 * (max + min);
                let away = column().map(|k| (k - centre).abs()).sum::<f64>() / 32.0;
                let q = f64::from(q);
                want += (q * (centre + away)).max(q * (centre - away));
                size += q.abs() * (max.abs() + min.abs());
            }
            assert!((f64::from(score) - want).abs() <= 1e-5 * size + 1e-6, "{score} {want}");
            let top = (first..first + 32).map(|t| keys.dot(q, t)).fold(f64::MIN, f64::max);
            above += usize::from(top > want + 1e-5 * size);
        }
    }
    assert!(above > 0, "a counterexample: nobody may prune with this score");
}
