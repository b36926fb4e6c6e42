//! Unit rows: one row of numbers per unit of 16 or so tokens, in the dtype of the keys.
//!
//! [`UnitKind::Box`] is the summary of Quest (ICML 2024): the largest, then the smallest key of each
//! channel. [`UnitKind::MeanBox`] is that of ArkVale (NeurIPS 2024): the box's centre plus and minus the
//! mean deviation from it. [`UnitKind::Mean`] is the mean key, [`UnitKind::Moment2`] the mean and the
//! variance per channel. All are scored by one dot product per unit and query head.

use crate::convert::{narrow, widen};
use crate::{DIM_MAX, DType, Error};

use super::TILE;

/// What a unit's row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitKind {
    /// `[max | min]` per channel; gives an upper bound of q.k.
    Box,
    /// `[centre + deviation | centre - deviation]` per channel, of the box's centre and the mean distance
    /// of the keys from it (ArkVale's cuboid-mean). Smaller than the box: its score is no bound of q.k.
    MeanBox,
    /// Mean key.
    Mean,
    /// `[mean | variance]` per channel.
    Moment2,
}

/// Shape of the cells of unit rows: `[units][row_len]` elements of `dtype`, padded to 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitSpec {
    kind: UnitKind,
    dim: usize,
    dtype: DType,
    unit_tokens: usize,
}

impl UnitSpec {
    /// Cells for keys of `dim` channels and units of `unit_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Range`] if `dim` is outside 1..=576 or `unit_tokens` does not divide 64.
    pub fn new(
        kind: UnitKind,
        dim: usize,
        dtype: DType,
        unit_tokens: usize,
    ) -> Result<UnitSpec, Error> {
        if dim == 0 || dim > DIM_MAX {
            return Err(Error::range("dim", format!("1..={DIM_MAX}"), dim));
        }
        if unit_tokens == 0 || !TILE.is_multiple_of(unit_tokens) {
            return Err(Error::range("unit_tokens", format!("a divisor of {TILE}"), unit_tokens));
        }
        Ok(UnitSpec { kind, dim, dtype, unit_tokens })
    }

    /// What the rows hold.
    #[must_use]
    pub const fn kind(&self) -> UnitKind {
        self.kind
    }

    /// Channels of a key.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// Element type of keys and rows.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Tokens of a unit.
    #[must_use]
    pub const fn unit_tokens(&self) -> usize {
        self.unit_tokens
    }

    /// Units of a tile.
    #[must_use]
    pub const fn units(&self) -> usize {
        TILE / self.unit_tokens
    }

    /// Elements of a unit's row.
    #[must_use]
    pub const fn row_len(&self) -> usize {
        match self.kind {
            UnitKind::Mean => self.dim,
            UnitKind::Box | UnitKind::MeanBox | UnitKind::Moment2 => 2 * self.dim,
        }
    }

    /// Bytes of a unit's row.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.row_len() * self.dtype.size()
    }

    /// Bytes of a cell, a multiple of 64.
    #[must_use]
    pub const fn cell_bytes(&self) -> usize {
        (self.units() * self.row_bytes()).next_multiple_of(64)
    }

    fn row<'a>(&self, cell: &'a mut [u8], unit: usize) -> &'a mut [u8] {
        &mut cell[unit * self.row_bytes()..][..self.row_bytes()]
    }
}

/// Merges a box, or a key as both of its ends, into a box row; a NaN stays.
fn merge_box(row: &mut [f32], most: &[f32], least: &[f32]) {
    let (max, min) = row.split_at_mut(most.len());
    for ((max, min), (&most, &least)) in max.iter_mut().zip(min).zip(most.iter().zip(least)) {
        *max = if most > *max || most.is_nan() { most } else { *max };
        *min = if least < *min || least.is_nan() { least } else { *min };
    }
}

/// Merges the `n`-th key (from 1) into a row of mean and, if it is there, the sum of squared
/// deviations (Welford).
fn merge_moments(row: &mut [f32], key: &[f32], n: usize) {
    let (mean, spread) = row.split_at_mut(key.len());
    let mut spread = spread.iter_mut();
    for (mean, &k) in mean.iter_mut().zip(key) {
        let before = k - *mean;
        *mean += before / n as f32;
        if let Some(s) = spread.next() {
            *s += before * (k - *mean);
        }
    }
}

/// Scales the second half of a moment row by `by` (variance to sum of squares or back).
fn scale_spread(spec: &UnitSpec, row: &mut [f32], by: f32) {
    if spec.kind == UnitKind::Moment2 {
        row[spec.dim..].iter_mut().for_each(|s| *s *= by);
    }
}

/// Shrinks a box around these keys to the mean distance from its centre.
///
/// # Safety
/// Every row must be readable for a key of `spec`.
unsafe fn shrink(spec: &UnitSpec, row: &mut [f32], rows: &[*const u8]) {
    let mut key = [0f32; DIM_MAX];
    let (max, min) = row.split_at_mut(spec.dim);
    let mut away = [0f32; DIM_MAX];
    for &src in rows {
        // SAFETY: passed on from the caller.
        unsafe { widen(spec.dtype, src, &mut key[..spec.dim]) }
        for i in 0..spec.dim {
            away[i] += (key[i] - 0.5 * (max[i] + min[i])).abs();
        }
    }
    for i in 0..spec.dim {
        let (centre, away) = (0.5 * (max[i] + min[i]), away[i] / rows.len() as f32);
        (max[i], min[i]) = (centre + away, centre - away);
    }
}

/// # Safety
/// Every row must be readable for a key of `spec`.
unsafe fn extend(spec: &UnitSpec, row: &mut [f32], have: usize, rows: &[*const u8]) {
    let mut key = [0f32; DIM_MAX];
    let key = &mut key[..spec.dim];
    scale_spread(spec, row, have as f32);
    for (i, &src) in rows.iter().enumerate() {
        // SAFETY: passed on from the caller.
        unsafe { widen(spec.dtype, src, key) }
        match spec.kind {
            UnitKind::Box | UnitKind::MeanBox if have + i == 0 => {
                row[..spec.dim].copy_from_slice(key);
                row[spec.dim..].copy_from_slice(key);
            }
            UnitKind::Box | UnitKind::MeanBox => merge_box(row, key, key),
            UnitKind::Mean | UnitKind::Moment2 => merge_moments(row, key, have + i + 1),
        }
    }
    scale_spread(spec, row, 1.0 / (have + rows.len()).max(1) as f32);
    if spec.kind == UnitKind::MeanBox && !rows.is_empty() {
        // SAFETY: passed on from the caller.
        unsafe { shrink(spec, row, rows) }
    }
}

/// Extends unit `unit`, which summarises `have` keys so far (0 starts it), by `rows`. Boxes come out
/// bit-equal to a fresh build; means and variances are rounded to the dtype at each update. A mean box
/// cannot be extended: `have` must be 0.
///
/// # Panics
/// If the cell has the wrong length, the unit is none of its units or would get too many tokens, or a
/// mean box is extended.
///
/// # Safety
/// Every row must be readable for `spec.dim()` elements of the spec's dtype.
pub unsafe fn update_unit(
    spec: &UnitSpec,
    cell: &mut [u8],
    unit: usize,
    have: usize,
    rows: &[*const u8],
) {
    assert_eq!(cell.len(), spec.cell_bytes(), "cell of {spec:?}");
    assert!(unit < spec.units(), "unit {unit} of {}", spec.units());
    assert!(have + rows.len() <= spec.unit_tokens, "{have} + {} tokens of a unit", rows.len());
    assert!(have == 0 || spec.kind != UnitKind::MeanBox, "a mean box is built at once");
    let mut row = [0f32; 2 * DIM_MAX];
    let row = &mut row[..spec.row_len()];
    let bytes = spec.row(cell, unit);
    // SAFETY: `bytes` is one row of the dtype; the keys are passed on from the caller.
    unsafe {
        if have > 0 {
            widen(spec.dtype, bytes.as_ptr(), row);
        }
        extend(spec, row, have, rows);
        narrow(spec.dtype, row, bytes.as_mut_ptr());
    }
}

/// Writes the box row of all tokens that some box rows speak of, bit-equal to one built from their keys.
///
/// # Panics
/// If the spec's rows are not boxes, `into` is not a row long, or there is no row.
///
/// # Safety
/// Every row must be readable as a row of `spec`.
pub unsafe fn merge_boxes(spec: &UnitSpec, rows: &[*const u8], into: &mut [u8]) {
    assert_eq!(spec.kind, UnitKind::Box, "only boxes are merged");
    assert_eq!(into.len(), spec.row_bytes(), "a row of {spec:?}");
    assert!(!rows.is_empty(), "a box of nothing");
    let (mut all, mut one) = ([0f32; 2 * DIM_MAX], [0f32; 2 * DIM_MAX]);
    let (all, one) = (&mut all[..spec.row_len()], &mut one[..spec.row_len()]);
    for (i, &row) in rows.iter().enumerate() {
        // SAFETY: passed on from the caller.
        unsafe { widen(spec.dtype, row, one) }
        match i {
            0 => all.copy_from_slice(one),
            _ => merge_box(all, &one[..spec.dim], &one[spec.dim..]),
        }
    }
    // SAFETY: `into` is one row of the dtype, checked above.
    unsafe { narrow(spec.dtype, all, into.as_mut_ptr()) }
}

/// Writes the cell of a tile of 64 keys.
///
/// # Panics
/// If there are not 64 rows or the cell has the wrong length.
///
/// # Safety
/// Every row must be readable for `spec.dim()` elements of the spec's dtype.
pub unsafe fn build_units(spec: &UnitSpec, rows: &[*const u8], cell: &mut [u8]) {
    assert_eq!(rows.len(), TILE, "a tile has 64 rows");
    for (unit, rows) in rows.chunks_exact(spec.unit_tokens).enumerate() {
        // SAFETY: passed on from the caller.
        unsafe { update_unit(spec, cell, unit, 0, rows) }
    }
    let used = spec.units() * spec.row_bytes();
    cell[used..].fill(0);
}
