//! Scores of tokens from keys of a few bits.

use super::CellList;
use crate::DIM_MAX;
use crate::Isa;
use crate::summary::{LowBitSpec, TILE};

/// Estimates q.k of listed tokens, unscaled: `out` `[heads][tokens]`, `q` `[heads, dim]`. NaN for keys that
/// are not finite. With `low`, `step` and codes c of a token it is `low sum q_i + step sum q_i c_i`.
///
/// # Panics
/// If a length does not fit or a token is outside the list's tiles.
pub fn low_bit(
    spec: &LowBitSpec,
    q: &[f32],
    heads: usize,
    cells: &CellList,
    tokens: &[u32],
    out: &mut [f32],
) {
    low_bit_at(Isa::level(), spec, q, heads, cells, tokens, out);
}

/// [`low_bit`] at a given level (lowered to what the CPU has).
///
/// # Panics
/// As [`low_bit`].
pub fn low_bit_at(
    isa: Isa,
    spec: &LowBitSpec,
    q: &[f32],
    heads: usize,
    cells: &CellList,
    tokens: &[u32],
    out: &mut [f32],
) {
    assert!(heads > 0 && q.len() == heads * spec.dim(), "{} of {heads} heads", q.len());
    assert_eq!(out.len(), heads * tokens.len(), "scores of {heads} heads, {} tokens", tokens.len());
    let found = cells.cell_bytes();
    assert!(cells.is_empty() || found == spec.cell_bytes(), "cell of {found} bytes for {spec:?}");
    assert!(tokens.iter().all(|&t| (t as usize) < cells.len() * TILE), "a token without a cell");
    match isa.min(Isa::detected()) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was limited to the CPU's, which has AVX2 and FMA from there on.
        Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => unsafe {
            wide(spec, q, cells, tokens, out);
        },
        _ => each::<false>(spec, q, cells, tokens, out),
    }
}

/// The plain loops compiled for AVX2 and FMA.
///
/// # Safety
/// The CPU must have both.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn wide(spec: &LowBitSpec, q: &[f32], cells: &CellList, tokens: &[u32], out: &mut [f32]) {
    each::<true>(spec, q, cells, tokens, out);
}

#[inline(always)]
fn each<const FUSED: bool>(
    spec: &LowBitSpec,
    q: &[f32],
    cells: &CellList,
    tokens: &[u32],
    out: &mut [f32],
) {
    let dim = spec.dim();
    let sums: Vec<f32> = q.chunks_exact(dim).map(|q| q.iter().sum()).collect();
    let mut codes = [0f32; DIM_MAX + 1];
    for (i, &token) in tokens.iter().enumerate() {
        let (tile, token) = (token as usize / TILE, token as usize % TILE);
        // SAFETY: the list vouches for its cells; size and tile were checked.
        let cell = unsafe { std::slice::from_raw_parts(cells.cell(tile), spec.cell_bytes()) };
        let (range, at) = spec.places(token);
        let number = |at: usize| f32::from_le_bytes([0, 1, 2, 3].map(|i| cell[at + i]));
        let (low, step) = (number(range), number(range + 4));
        unpack(spec, &cell[at..at + spec.code_bytes()], &mut codes);
        for (h, (q, sum)) in q.chunks_exact(dim).zip(&sums).enumerate() {
            out[h * tokens.len() + i] = low * sum + step * dot::<FUSED>(q, &codes[..dim]);
        }
    }
}

#[inline(always)]
fn unpack(spec: &LowBitSpec, bytes: &[u8], codes: &mut [f32; DIM_MAX + 1]) {
    if spec.bits() == 8 {
        codes.iter_mut().zip(bytes).for_each(|(c, &b)| *c = f32::from(b));
        return;
    }
    let (front, back) = codes.split_at_mut(bytes.len());
    for ((f, b), &byte) in front.iter_mut().zip(back).zip(bytes) {
        (*f, *b) = (f32::from(byte & 15), f32::from(byte >> 4));
    }
}

/// Dot product of a query with codes.
#[inline(always)]
fn dot<const FUSED: bool>(q: &[f32], codes: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut dot = [0f32; LANES];
    let (body, tail) = q.as_chunks::<LANES>();
    let (code_body, code_tail) = codes.as_chunks::<LANES>();
    for (q, c) in body.iter().zip(code_body) {
        for i in 0..LANES {
            dot[i] = if FUSED { q[i].mul_add(c[i], dot[i]) } else { q[i] * c[i] + dot[i] };
        }
    }
    tail.iter().zip(code_tail).enumerate().for_each(|(i, (q, c))| dot[i] += q * c);
    dot.iter().sum()
}
