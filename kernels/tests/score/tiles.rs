//! Boxes and bounds of whole tiles.

use half::bf16;
use kvist_kernels::score::{self, BoxedQuery, CellList};
use kvist_kernels::summary::{BoxedSpec, TILE};
use kvist_kernels::{DType, Isa};

use crate::common::{Keys, Rng, queries, shapes};

#[test]
fn boxes_hold_the_keys_and_bounds_hold() {
    let mut rng = Rng(41);
    for (dim, heads, tiles) in shapes(&mut rng) {
        for planes in 2..=4 {
            let keys = Keys::random(&mut rng, DType::Bf16, dim, tiles);
            let spec = BoxedSpec::new(dim, planes).unwrap();
            let cells = keys.boxed(Isa::level(), &spec);
            let ids: Vec<u32> = (0..tiles as u32).rev().collect();
            let list = CellList::from_slice(&cells, spec.cell_bytes(), &ids).unwrap();
            let [mut middles, mut squares] = [vec![0f32; tiles * dim], vec![0f32; tiles * dim]];
            score::tile_boxes(&spec, &list, &mut middles, &mut squares);
            for (at, (&middle, &square)) in middles.iter().zip(&squares).enumerate() {
                // All keys lie in the box, and it is not much wider than they need.
                let (tile, channel) = (ids[at / dim] as usize, at % dim);
                let of = |t: usize| keys.values[(tile * TILE + t) * dim + channel];
                let of = (0..TILE).map(|t| bf16::from_f32(of(t)).to_f32());
                let low = of.clone().fold(f32::INFINITY, f32::min);
                let high = of.fold(f32::NEG_INFINITY, f32::max);
                let width = 4.0 * square.sqrt();
                let slack = 1e-5 * (1.0 + low.abs().max(high.abs()));
                assert!(
                    middle - width / 2.0 <= low + slack && high <= middle + width / 2.0 + slack
                );
                let most = 2.0 * (high - low).max(low.abs().max(high.abs()) / 16.0);
                assert!(width <= most + slack, "{width} for {low}..{high}");
            }
            let q = queries(&mut rng, heads, dim);
            for isa in Isa::available() {
                let query = BoxedQuery::new(isa, spec, &q, heads);
                let mut upper = vec![0f32; heads * tiles];
                score::tile_uppers(&query, &list, &mut upper);
                for (at, &upper) in upper.iter().enumerate() {
                    let (q, tile) = (&q[at / tiles * dim..][..dim], ids[at % tiles] as usize);
                    let dots = (0..TILE).map(|t| keys.dot(q, tile * TILE + t));
                    let top = dots.fold(f64::MIN, f64::max);
                    let size: f64 = q.iter().map(|x| f64::from(x.abs())).sum::<f64>() * 60.0;
                    assert!(
                        top <= f64::from(upper) && f64::from(upper) <= top + size,
                        "{top} {upper}"
                    );
                }
            }
        }
    }
}

#[test]
fn nothing_is_known_of_open_tiles() {
    let mut rng = Rng(42);
    let mut values = Keys::random(&mut rng, DType::F32, 24, 2).values;
    values[70 * 24 + 3] = f32::INFINITY;
    let keys = Keys::new(DType::F32, 24, values);
    let spec = BoxedSpec::new(24, 3).unwrap();
    let cells = keys.boxed(Isa::level(), &spec);
    let list = CellList::from_slice(&cells, spec.cell_bytes(), &[0, 1]).unwrap();
    let [mut middles, mut squares] = [[0f32; 48]; 2];
    score::tile_boxes(&spec, &list, &mut middles, &mut squares);
    for boxes in [middles, squares] {
        assert!(
            boxes[..24].iter().all(|x| x.is_finite()) && boxes[24..].iter().all(|x| x.is_nan())
        );
    }
    for (q, bounded) in [(1.0, true), (f32::NAN, false), (f32::INFINITY, false)] {
        let query = BoxedQuery::new(Isa::level(), spec, &[q; 24], 1);
        let mut upper = vec![0f32; 2];
        score::tile_uppers(&query, &list, &mut upper);
        assert_eq!(upper[0].is_finite(), bounded);
        assert_eq!(upper[1], f32::INFINITY);
    }
}
