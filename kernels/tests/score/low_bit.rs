//! Keys of a few bits against arithmetic in f64.

use kvist_kernels::score::{self, CellList};
use kvist_kernels::summary::{self, LowBitSpec, TILE};
use kvist_kernels::{DType, Isa};

use crate::common::{Keys, Rng, queries, shapes};

fn cells(keys: &Keys, spec: &LowBitSpec, front: usize) -> Vec<u8> {
    let stride = front + spec.cell_bytes();
    let mut cells = vec![0x5au8; keys.tiles() * stride];
    for (tile, cell) in cells.chunks_exact_mut(stride).enumerate() {
        let rows = keys.ptrs(tile);
        // In two steps, as tokens come.
        for (first, rows) in [(0, &rows[..40]), (40, &rows[40..])] {
            // SAFETY: the pointers are rows of `bytes`.
            unsafe { summary::build_low_bit(spec, keys.dtype, first, rows, &mut cell[front..]) }
        }
    }
    cells
}

/// The estimate of one token, from its key.
fn want(q: &[f32], key: &[f32], bits: u32) -> f64 {
    let (low, high) = key.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
    let (low, high) = (f64::from(low), f64::from(high));
    let step = (high - low) / f64::from((1u32 << bits) - 1);
    let on_grid = |x: f32| match step > 0.0 {
        true => low + step * ((f64::from(x) - low) / step).round(),
        false => low,
    };
    q.iter().zip(key).map(|(&q, &k)| f64::from(q) * on_grid(k)).sum()
}

#[test]
fn estimates_are_those_of_the_grid() {
    let mut rng = Rng(31);
    for (dim, heads, tiles) in shapes(&mut rng) {
        for (dtype, bits, front) in [(DType::F32, 4, 0), (DType::Bf16, 4, 192), (DType::F16, 8, 64)]
        {
            let keys = Keys::random(&mut rng, dtype, dim, tiles);
            let q = queries(&mut rng, heads, dim);
            let spec = LowBitSpec::new(dim, bits).unwrap();
            let cells = cells(&keys, &spec, front);
            let ids: Vec<u32> = (0..tiles as u32).collect();
            let list = CellList::from_slice(&cells, front + spec.cell_bytes(), &ids).unwrap();
            let list = list.part(front, spec.cell_bytes());
            let tokens: Vec<u32> = (0..(tiles * TILE) as u32).filter(|t| t % 3 != 1).collect();
            for isa in Isa::available() {
                let mut out = vec![0f32; heads * tokens.len()];
                score::low_bit_at(isa, &spec, &q, heads, &list, &tokens, &mut out);
                for (i, &got) in out.iter().enumerate() {
                    let (q, t) = (&q[i / tokens.len() * dim..][..dim], tokens[i % tokens.len()]);
                    let key = keys.row(t as usize);
                    let want = want(q, key, bits);
                    let size: f64 = q.iter().map(|x| f64::from(x.abs())).sum::<f64>();
                    let range = key.iter().fold(0f32, |m, x| m.max(x.abs()));
                    // A value in the middle between two codes may fall to either side.
                    let step = f64::from(range) * 2.0 / f64::from((1u32 << bits) - 1);
                    let halves = key.iter().zip(q).map(|(&k, &q)| {
                        let low = key.iter().copied().fold(f32::MAX, f32::min);
                        let high = key.iter().copied().fold(f32::MIN, f32::max);
                        let at = f64::from(k - low)
                            / (f64::from(high - low) / f64::from((1u32 << bits) - 1));
                        let near = (at.fract() - 0.5).abs() < 1e-3;
                        if near { f64::from(q.abs()) * step } else { 0.0 }
                    });
                    let slack = 1e-5 * size * f64::from(range) + 1e-6 + halves.sum::<f64>();
                    assert!((f64::from(got) - want).abs() <= slack, "{isa:?} {got} {want}");
                }
            }
        }
    }
}

#[test]
fn keys_that_are_not_finite_are_unknown() {
    let mut rng = Rng(32);
    let mut values = Keys::random(&mut rng, DType::F32, 20, 1).values;
    (values[3 * 20 + 5], values[7 * 20]) = (f32::NAN, f32::INFINITY);
    values[9 * 20..10 * 20].fill(2.5);
    (values[11 * 20], values[11 * 20 + 1]) = (f32::MAX, f32::MIN);
    let keys = Keys::new(DType::F32, 20, values);
    let spec = LowBitSpec::new(20, 4).unwrap();
    let cells = cells(&keys, &spec, 0);
    let list = CellList::from_slice(&cells, spec.cell_bytes(), &[0]).unwrap();
    let (q, mut out) = (vec![1.0; 20], [0f32; 5]);
    score::low_bit(&spec, &q, 1, &list, &[3, 7, 9, 11, 12], &mut out);
    assert!(out[0].is_nan() && out[1].is_nan(), "{out:?}");
    assert!((out[2] - 50.0).abs() < 1e-4 && out[4].is_finite(), "{out:?}");
    assert!(LowBitSpec::new(0, 4).is_err() && LowBitSpec::new(8, 3).is_err());
}
