//! What a whole tile says, from the box of its cell: where its keys lie, and a rigorous bound of every score.

use super::CellList;
use super::boxed::{BoxedQuery, TINY, slack};
use super::plain::{self, Cell};
use crate::summary::{BoxedSpec, OPEN, unpack};
use crate::{DIM_MAX, Isa};

/// The box of each tile: its middle, and the square of a quarter of its width, both `[tiles][dim]`; NaN for open
/// tiles.
///
/// # Panics
/// If a length does not fit.
pub fn tile_boxes(spec: &BoxedSpec, cells: &CellList, middles: &mut [f32], squares: &mut [f32]) {
    check(spec, cells);
    let len = cells.len() * spec.dim();
    assert_eq!([middles.len(), squares.len()], [len; 2], "boxes of {} tiles", cells.len());
    let rows = middles.chunks_exact_mut(spec.dim()).zip(squares.chunks_exact_mut(spec.dim()));
    for (tile, (middles, squares)) in rows.enumerate() {
        // SAFETY: the list vouches for its cells, whose size was checked.
        let cell = unsafe { Cell::new(spec, cells.cell(tile)) };
        if cell.word(0) == OPEN {
            middles.fill(f32::NAN);
            squares.fill(f32::NAN);
            continue;
        }
        for (i, (middle, square)) in middles.iter_mut().zip(squares).enumerate() {
            let (low, width) = unpack(cell.word(i));
            (*middle, *square) = (low + 0.5 * width, width * width / 16.0);
        }
    }
}

/// Largest possible q.k of any token of each tile, unscaled, by its box alone: `out` `[heads][tiles]`.
/// Rigorous; infinite for open tiles and for queries that are not finite.
///
/// # Panics
/// If a length does not fit.
pub fn tile_uppers(query: &BoxedQuery, cells: &CellList, out: &mut [f32]) {
    check(query.spec(), cells);
    assert_eq!(out.len(), query.heads() * cells.len(), "bounds of {} tiles", cells.len());
    match query.isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a query's level is one that the CPU has, with AVX2 and FMA from there on.
        Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => unsafe { wide_uppers(query, cells, out) },
        _ => uppers(query, cells, out),
    }
}

fn check(spec: &BoxedSpec, cells: &CellList) {
    let found = cells.cell_bytes();
    assert!(cells.is_empty() || found == spec.cell_bytes(), "cell of {found} bytes for {spec:?}");
}

/// # Safety
/// The CPU must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn wide_uppers(query: &BoxedQuery, cells: &CellList, out: &mut [f32]) {
    uppers(query, cells, out);
}

#[inline(always)]
fn uppers(query: &BoxedQuery, cells: &CellList, out: &mut [f32]) {
    let (spec, n) = (query.spec(), cells.len());
    let (mut middle, mut half) = ([0f32; DIM_MAX], [0f32; DIM_MAX]);
    let padded = spec.padded();
    for tile in 0..n {
        // SAFETY: the list vouches for its cells, whose size was checked.
        let cell = unsafe { Cell::new(spec, cells.cell(tile)) };
        let open = cell.word(0) == OPEN;
        plain::boxes(spec, &cell, &mut half, &mut middle);
        half[..padded].iter_mut().for_each(|w| *w *= 0.5);
        for (head, q) in query.rows().enumerate() {
            let upper = upper(spec, &q[..padded], &middle[..padded], &half[..padded]);
            out[head * n + tile] = if open || upper.is_nan() { f32::INFINITY } else { upper };
        }
    }
}

/// `sum q_i middle_i + |q_i| half_i`, rounded up far enough.
#[inline(always)]
fn upper(spec: &BoxedSpec, q: &[f32], middle: &[f32], half: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (mut sum, mut size) = ([0f32; LANES], [0f32; LANES]);
    let blocks = q.as_chunks::<LANES>().0.iter().zip(middle.as_chunks::<LANES>().0);
    for ((q, m), h) in blocks.zip(half.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let (a, b) = (q[i] * m[i], q[i].abs() * h[i]);
            sum[i] += a + b;
            size[i] += a.abs() + b;
        }
    }
    let (sum, size): (f32, f32) = (sum.iter().sum(), size.iter().sum());
    sum + slack(spec) * size + TINY
}
