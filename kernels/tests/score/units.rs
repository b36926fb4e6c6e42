//! Unit rows: Quest's box, mean, mean and variance.

use kvist_kernels::score::{self, CellList, UnitQuery};
use kvist_kernels::summary::{self, UnitKind, UnitSpec};
use kvist_kernels::{DType, Isa};

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
