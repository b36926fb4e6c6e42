//! Keys of a few bits: each token's channels on a grid of equal steps between its smallest and largest.
//!
//! Source: the estimator of Twilight (NeurIPS 2025, arXiv 2502.02770, section 4), 4 bits per channel.

use crate::convert::widen;
use crate::{DIM_MAX, DType, Error};

use super::TILE;

/// Shape of a cell: 64 tokens' `(low, step)` as f32, then their codes. At 4 bits byte `i` of a token holds
/// channel `i` in its low half and channel `i + ceil(dim / 2)` in its high half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowBitSpec {
    dim: usize,
    bits: u32,
}

impl LowBitSpec {
    /// Cells for keys of `dim` channels with `bits` bits each.
    ///
    /// # Errors
    /// [`Error::Range`] if `dim` is outside 1..=576 or `bits` is not 4 or 8.
    pub fn new(dim: usize, bits: u32) -> Result<LowBitSpec, Error> {
        if dim == 0 || dim > DIM_MAX {
            return Err(Error::range("dim", format!("1..={DIM_MAX}"), dim));
        }
        if !matches!(bits, 4 | 8) {
            return Err(Error::range("bits", "4 or 8", bits));
        }
        Ok(LowBitSpec { dim, bits })
    }

    /// Channels of a key.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// Bits of a channel.
    #[must_use]
    pub const fn bits(&self) -> u32 {
        self.bits
    }

    /// Bytes of one token's codes.
    #[must_use]
    pub const fn code_bytes(&self) -> usize {
        if self.bits == 4 { self.dim.div_ceil(2) } else { self.dim }
    }

    /// Bytes that stand for one token.
    #[must_use]
    pub const fn token_bytes(&self) -> usize {
        2 * size_of::<f32>() + self.code_bytes()
    }

    /// Bytes of a cell, a multiple of 64.
    #[must_use]
    pub const fn cell_bytes(&self) -> usize {
        (TILE * self.token_bytes()).next_multiple_of(64)
    }

    /// Where a token's range and its codes lie in a cell.
    pub(crate) const fn places(&self, token: usize) -> (usize, usize) {
        (token * 8, TILE * 8 + token * self.code_bytes())
    }
}

/// Writes the codes of the tile's tokens from `first` on, one per row.
///
/// A key that is not finite gets a NaN range: its score is NaN, and it is always taken.
///
/// # Panics
/// If the cell has the wrong length or the tile does not have these tokens.
///
/// # Safety
/// Every row must be readable for `spec.dim()` elements of `dtype`.
pub unsafe fn build_low_bit(
    spec: &LowBitSpec,
    dtype: DType,
    first: usize,
    rows: &[*const u8],
    cell: &mut [u8],
) {
    assert_eq!(cell.len(), spec.cell_bytes(), "cell of {spec:?}");
    assert!(first + rows.len() <= TILE, "{first} + {} tokens of a tile", rows.len());
    let mut key = [0f32; DIM_MAX];
    let key = &mut key[..spec.dim];
    for (i, &row) in rows.iter().enumerate() {
        // SAFETY: passed on from the caller.
        unsafe { widen(dtype, row, key) }
        let (range, codes) = spec.places(first + i);
        let (low, step) = grid(key, spec.bits);
        cell[range..range + 4].copy_from_slice(&low.to_le_bytes());
        cell[range + 4..range + 8].copy_from_slice(&step.to_le_bytes());
        encode(spec, key, (low, step), &mut cell[codes..codes + spec.code_bytes()]);
    }
}

/// Lowest value and step of a key's grid.
fn grid(key: &[f32], bits: u32) -> (f32, f32) {
    if key.iter().any(|x| !x.is_finite()) {
        return (f32::NAN, f32::NAN);
    }
    let (low, high) =
        key.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)));
    let most = ((1u32 << bits) - 1) as f32;
    // Halves, as the range itself may not be finite.
    let step = 2.0 * ((0.5 * high - 0.5 * low) / most);
    (low, if step.is_finite() { step } else { f32::NAN })
}

fn encode(spec: &LowBitSpec, key: &[f32], (low, step): (f32, f32), out: &mut [u8]) {
    let most = ((1u32 << spec.bits) - 1) as f32;
    let code = |x: f32| match step > 0.0 {
        // NaN becomes 0 as well.
        true => ((x - low) / step).round().clamp(0.0, most) as u8,
        false => 0,
    };
    if spec.bits == 8 {
        out.iter_mut().zip(key).for_each(|(o, &x)| *o = code(x));
        return;
    }
    let (front, back) = key.split_at(out.len());
    for (i, o) in out.iter_mut().enumerate() {
        *o = code(front[i]) | back.get(i).map_or(0, |&x| code(x) << 4);
    }
}
