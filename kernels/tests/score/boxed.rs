//! Boxed codes: building, decoding, scoring, refining.

use kvist_kernels::score::{self, BoxedQuery, CellList};
use kvist_kernels::summary::{self, BoxedSpec, TILE};
use kvist_kernels::{DType, Isa};

use crate::common::{Keys, Rng, queries, shapes};

struct Scores {
    est: Vec<f32>,
    bounds: Vec<f32>,
    sigma: Vec<f32>,
}

fn score(
    isa: Isa,
    spec: BoxedSpec,
    q: &[f32],
    cells: &[u8],
    ids: &[u32],
    planes: u32,
    stats: bool,
) -> Scores {
    let heads = q.len() / spec.dim();
    let query = BoxedQuery::new(isa, spec, q, heads);
    let list = CellList::from_slice(cells, spec.cell_bytes(), ids).expect("cells that exist");
    let n = ids.len();
    let (mut est, mut bounds, mut sigma) =
        (vec![7.0; heads * n * TILE], vec![7.0; heads * n], vec![7.0; n]);
    let stats = stats.then_some((&mut bounds[..], &mut sigma[..]));
    let (b, s) = stats.map_or((None, None), |(b, s)| (Some(b), Some(s)));
    score::boxed(&query, &list, planes, &mut est, b, s);
    Scores { est, bounds, sigma }
}

/// Estimates and sigmas of a call that wants no bounds.
fn sigma_alone(
    isa: Isa,
    spec: BoxedSpec,
    q: &[f32],
    cells: &[u8],
    ids: &[u32],
    planes: u32,
) -> (Vec<f32>, Vec<f32>) {
    let heads = q.len() / spec.dim();
    let query = BoxedQuery::new(isa, spec, q, heads);
    let list = CellList::from_slice(cells, spec.cell_bytes(), ids).expect("cells that exist");
    let (mut est, mut sigma) = (vec![7.0; heads * ids.len() * TILE], vec![7.0; ids.len()]);
    score::boxed(&query, &list, planes, &mut est, None, Some(&mut sigma));
    (est, sigma)
}

#[test]
fn decoded_keys_lie_in_their_cells() {
    let mut rng = Rng(1);
    for (dim, _, tiles) in shapes(&mut rng) {
        for dtype in DType::ALL {
            let keys = Keys::random(&mut rng, dtype, dim, tiles);
            let spec = BoxedSpec::new(dim, 4).unwrap();
            let cells = keys.boxed(Isa::Generic, &spec);
            check_decoded(&keys, &spec, &cells);
        }
    }
}

/// |k - k_hat| <= half a cell at every level, widths within reason, zero channels exact.
fn check_decoded(keys: &Keys, spec: &BoxedSpec, cells: &[u8]) {
    let dim = keys.dim;
    let mut out = vec![0f32; dim];
    for (tile, cell) in cells.chunks_exact(spec.cell_bytes()).enumerate() {
        assert!(!summary::is_open(cell));
        let rows = || (0..TILE).map(|t| keys.row(tile * TILE + t));
        for c in 0..dim {
            let (min, max) =
                rows().fold((f32::MAX, f32::MIN), |(a, b), r| (a.min(r[c]), b.max(r[c])));
            let need = (max - min).max(-min / 32.5).max(min / 31.375).max(1e-4);
            for planes in 2..=4 {
                let half = need * 1.5 / (2 << planes) as f32;
                for (t, row) in rows().enumerate().step_by(7) {
                    summary::decode_boxed(spec, cell, planes, t, &mut out);
                    let error = (out[c] - row[c]).abs();
                    assert!(error <= half, "tile {tile} channel {c} token {t}: {error} > {half}");
                    assert!(min != 0.0 || max != 0.0 || out[c] == 0.0);
                }
            }
        }
    }
}

#[test]
fn every_level_builds_the_same_bytes() {
    let mut rng = Rng(2);
    for (dim, _, tiles) in shapes(&mut rng) {
        for dtype in DType::ALL {
            let keys = Keys::random(&mut rng, dtype, dim, tiles);
            for planes in 2..=4 {
                let spec = BoxedSpec::new(dim, planes).unwrap();
                let cells = keys.boxed(Isa::Generic, &spec);
                for isa in Isa::available() {
                    assert!(keys.boxed(isa, &spec) == cells, "{isa:?} {dtype} dim {dim}");
                }
            }
        }
    }
}

#[test]
fn fewer_planes_are_a_prefix() {
    let mut rng = Rng(3);
    let keys = Keys::random(&mut rng, DType::Bf16, 128, 2);
    let [two, three, four] = [2, 3, 4].map(|p| BoxedSpec::new(128, p).unwrap());
    let [a, b, c] = [two, three, four].map(|s| keys.boxed(Isa::level(), &s));
    assert_eq!([two.cell_bytes(), three.cell_bytes(), four.cell_bytes()], [2304, 3328, 4352]);
    assert_eq!(a[..2304], b[..2304]);
    assert_eq!(b[..3328], c[..3328]);
    assert_eq!((three.bytes_read(2), three.plane_bytes(), three.box_bytes()), (2304, 1024, 256));
}

#[test]
fn estimates_equal_decoded_keys_and_stay_within_bounds() {
    let mut rng = Rng(4);
    for (dim, heads, tiles) in shapes(&mut rng) {
        let dtype = DType::ALL[rng.bits() as usize % 3];
        let keys = Keys::random(&mut rng, dtype, dim, tiles);
        let q = queries(&mut rng, heads, dim);
        let spec = BoxedSpec::new(dim, 4).unwrap();
        let cells = keys.boxed(Isa::level(), &spec);
        let ids: Vec<u32> = (0..tiles as u32).rev().collect();
        for isa in Isa::available() {
            for planes in 2..=4 {
                let s = score(isa, spec, &q, &cells, &ids, planes, true);
                check_scores(&keys, &q, &ids, &s, planes);
                let plain = score(isa, spec, &q, &cells, &ids, planes, false);
                assert_eq!(plain.est, s.est, "statistics change nothing");
            }
        }
    }
}

fn check_scores(keys: &Keys, q: &[f32], ids: &[u32], s: &Scores, planes: u32) {
    for (h, q) in q.chunks_exact(keys.dim).enumerate() {
        for (i, &tile) in ids.iter().enumerate() {
            let bound = f64::from(s.bounds[h * ids.len() + i]);
            assert!(bound.is_finite() && f64::from(s.sigma[i]) <= bound);
            let mut square = 0.0;
            for t in 0..TILE {
                let exact = keys.dot(q, tile as usize * TILE + t);
                let est = f64::from(s.est[(h * ids.len() + i) * TILE + t]);
                let error = (est - exact).abs();
                assert!(error <= bound, "head {h} tile {tile} token {t}: {error} > {bound}");
                square += error * error / TILE as f64;
            }
            // Typical errors are far below the bound and near sigma, which assumes uniform keys.
            if keys.dim >= 64 && planes == 4 {
                assert!(
                    square.sqrt() <= 4.0 * f64::from(s.sigma[i]) + 0.02 * bound,
                    "rms {}",
                    square.sqrt()
                );
            }
        }
    }
}

#[test]
fn levels_agree() {
    let mut rng = Rng(5);
    for (dim, heads, tiles) in shapes(&mut rng) {
        let keys = Keys::random(&mut rng, DType::Bf16, dim, tiles);
        let q = queries(&mut rng, heads, dim);
        let spec = BoxedSpec::new(dim, 4).unwrap();
        let cells = keys.boxed(Isa::level(), &spec);
        let ids: Vec<u32> = (0..tiles as u32).collect();
        for planes in 2..=4 {
            let plain = score(Isa::Generic, spec, &q, &cells, &ids, planes, true);
            let size = plain.est.iter().fold(1f32, |m, x| m.max(x.abs()));
            for isa in Isa::available() {
                let s = score(isa, spec, &q, &cells, &ids, planes, true);
                let near = |a: &[f32], b: &[f32]| {
                    a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-5 * size)
                };
                assert!(
                    near(&s.est, &plain.est),
                    "{isa:?} dim {dim} heads {heads} planes {planes}"
                );
                assert!(near(&s.bounds, &plain.bounds) && near(&s.sigma, &plain.sigma));
                assert_eq!(sigma_alone(isa, spec, &q, &cells, &ids, planes), (s.est, s.sigma));
            }
        }
    }
}

#[test]
fn integers_rank_the_same_at_every_level() {
    // I-15: widths are powers of two and queries integers, so levels only differ by a last rounding; they
    // agree on every pair of tokens that is not as good as tied.
    let dim = 64;
    let values = (0..TILE * dim).map(|i| ((i * 7 + i / dim * 3) % 17) as f32 - 8.0).collect();
    let keys = Keys::new(DType::Bf16, dim, values);
    let q: Vec<f32> = (0..2 * dim).map(|i| (i * 29 % 255) as f32 - 127.0).collect();
    let spec = BoxedSpec::new(dim, 3).unwrap();
    let cells = keys.boxed(Isa::Generic, &spec);
    let plain = score(Isa::Generic, spec, &q, &cells, &[0], 3, false).est;
    for isa in Isa::available() {
        let fast = score(isa, spec, &q, &cells, &[0], 3, false).est;
        for (i, (a, b)) in plain.iter().zip(&fast).enumerate() {
            assert!((a - b).abs() <= 1e-6 * a.abs().max(1e3), "{isa:?} {a} {b}");
            for (c, d) in plain[..i].iter().zip(&fast) {
                assert!((a < c) == (b < d) || (a - c).abs() < 1e-2, "{isa:?} {a} {c} {b} {d}");
            }
        }
    }
}

#[test]
fn refining_equals_scoring_with_more_planes() {
    let mut rng = Rng(6);
    for (dim, heads, tiles) in [(128, 4, 5), (80, 3, 3), (33, 6, 4)] {
        let keys = Keys::random(&mut rng, DType::Bf16, dim, tiles);
        let q = queries(&mut rng, heads, dim);
        let spec = BoxedSpec::new(dim, 4).unwrap();
        let cells = keys.boxed(Isa::level(), &spec);
        let ids: Vec<u32> = (0..tiles as u32).collect();
        let list = CellList::from_slice(&cells, spec.cell_bytes(), &ids).unwrap();
        for isa in Isa::available() {
            let query = BoxedQuery::new(isa, spec, &q, heads);
            let mut s = score(isa, spec, &q, &cells, &ids, 2, true);
            let before = score(isa, spec, &q, &cells, &ids, 2, true);
            let tiles: Vec<u32> = ids.iter().copied().filter(|t| t % 2 == 0).collect();
            for plane in 3..=4 {
                score::refine(
                    &query,
                    &list,
                    &tiles,
                    plane,
                    &mut s.est,
                    Some(&mut s.bounds),
                    Some(&mut s.sigma),
                );
                let full = score(isa, spec, &q, &cells, &ids, plane, true);
                check_scores(&keys, &q, &ids, &s, 2);
                for (at, (&a, &b)) in s.est.iter().zip(&full.est).enumerate() {
                    let tile = at / TILE % ids.len();
                    let want = if tile.is_multiple_of(2) { b } else { before.est[at] };
                    assert!((a - want).abs() <= 1e-4 * (1.0 + want.abs()), "{isa:?} {a} {want}");
                }
                for (at, &b) in full.bounds.iter().enumerate() {
                    let refined = (at % ids.len()).is_multiple_of(2);
                    assert_eq!(s.bounds[at], if refined { b } else { before.bounds[at] });
                }
            }
        }
    }
}

#[test]
fn a_tile_scores_the_same_wherever_it_stands() {
    let mut rng = Rng(7);
    let keys = Keys::random(&mut rng, DType::Bf16, 128, 9);
    let q = queries(&mut rng, 4, 128);
    let spec = BoxedSpec::new(128, 3).unwrap();
    let cells = keys.boxed(Isa::level(), &spec);
    let ids: Vec<u32> = (0..9).collect();
    let all = score(Isa::level(), spec, &q, &cells, &ids, 2, false).est;
    let mut split = vec![0f32; all.len()];
    let query = BoxedQuery::new(Isa::level(), spec, &q, 4);
    let list = CellList::from_slice(&cells, spec.cell_bytes(), &ids).unwrap();
    for (from, to) in [(0, 1), (1, 6), (6, 9)] {
        let out = score::RawScores {
            est: split[from * TILE..].as_mut_ptr(),
            est_stride: 9 * TILE,
            bounds: None,
            bounds_stride: 0,
            sigma: None,
        };
        // SAFETY: each part writes its own tiles of `split`.
        unsafe { score::boxed_raw(&query, &list.slice(from, to), 2, out) }
    }
    assert_eq!(split, all);
}

#[test]
fn keys_that_are_not_finite_leave_their_tile_open() {
    let mut rng = Rng(8);
    for (bad, dim) in [(f32::NAN, 128), (f32::INFINITY, 17), (f32::NEG_INFINITY, 64), (3e5, 64)] {
        let mut keys = Keys::random(&mut rng, DType::F32, dim, 3);
        keys.values[(TILE + 5) * dim + dim - 1] = bad;
        let keys = Keys::new(DType::F32, dim, keys.values);
        let q = queries(&mut rng, 2, dim);
        let spec = BoxedSpec::new(dim, 3).unwrap();
        let cells = keys.boxed(Isa::level(), &spec);
        let open: Vec<bool> = cells.chunks_exact(spec.cell_bytes()).map(summary::is_open).collect();
        assert_eq!(open, [false, true, false]);
        for isa in Isa::available() {
            let s = score(isa, spec, &q, &cells, &[0, 1, 2], 3, true);
            for (at, e) in s.est.iter().enumerate() {
                assert_eq!(e.is_nan(), at / TILE % 3 == 1, "{isa:?}");
            }
            assert_eq!(s.bounds.iter().filter(|b| **b == f32::INFINITY).count(), 2);
            assert_eq!(s.sigma[1], f32::INFINITY);
        }
    }
}

#[test]
fn widest_and_narrowest_boxes_hold() {
    let dim = 16;
    for size in [0.0, -0.0, 1e-38, 1e-6, 1.0, 65504.0, 110e3] {
        let values = (0..TILE * dim).map(|i| if i % 3 == 0 { size } else { -size }).collect();
        let keys = Keys::new(DType::F32, dim, values);
        let q = vec![0.5f32; dim];
        let spec = BoxedSpec::new(dim, 4).unwrap();
        let cells = keys.boxed(Isa::level(), &spec);
        assert!(!summary::is_open(&cells), "{size}");
        for isa in Isa::available() {
            let s = score(isa, spec, &q, &cells, &[0], 4, true);
            check_scores(&keys, &q, &[0], &s, 4);
        }
    }
}

#[test]
fn queries_that_are_not_finite_give_unknown_scores() {
    let mut rng = Rng(9);
    let keys = Keys::random(&mut rng, DType::Bf16, 64, 1);
    let spec = BoxedSpec::new(64, 3).unwrap();
    let cells = keys.boxed(Isa::level(), &spec);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut q = queries(&mut rng, 2, 64);
        q[64..].fill(bad);
        for isa in Isa::available() {
            let s = score(isa, spec, &q, &cells, &[0], 3, true);
            assert!(s.est[..TILE].iter().all(|e| e.is_finite()), "the other head is untouched");
            assert!(s.est[TILE..].iter().all(|e| e.is_nan()), "{isa:?} {bad}");
            assert_eq!((s.bounds[0].is_finite(), s.bounds[1]), (true, f32::INFINITY));
        }
    }
}

#[test]
fn shifting_all_keys_shifts_all_estimates() {
    // I-12: a constant added to every key moves every logit by the same amount, up to the coarser box.
    let mut rng = Rng(10);
    let (dim, tiles) = (64, 4);
    let values: Vec<f32> = (0..tiles * TILE * dim).map(|_| rng.normal()).collect();
    let shift: Vec<f32> = (0..dim).map(|_| rng.normal()).collect();
    let moved = values.iter().enumerate().map(|(i, x)| x + shift[i % dim]).collect();
    let (a, b) = (Keys::new(DType::F32, dim, values), Keys::new(DType::F32, dim, moved));
    let q = queries(&mut rng, 1, dim);
    let by: f32 = q.iter().zip(&shift).map(|(q, s)| q * s).sum();
    let spec = BoxedSpec::new(dim, 4).unwrap();
    let ids: Vec<u32> = (0..tiles as u32).collect();
    let [a, b] =
        [a, b].map(|k| score(Isa::level(), spec, &q, &k.boxed(Isa::level(), &spec), &ids, 4, true));
    for (i, (x, y)) in a.est.iter().zip(&b.est).enumerate() {
        assert!((x + by - y).abs() <= a.bounds[i / TILE] + b.bounds[i / TILE]);
    }
}
