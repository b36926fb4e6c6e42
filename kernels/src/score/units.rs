//! Scores of unit rows: one dot product per unit and query head.
//!
//! Box rows `[max | min]` meet the query as `[q+ | q-]` (positive and negative parts): the sum is
//! Quest's upper bound `sum max(q_i max_i, q_i min_i)`. Moment rows `[mean | variance]` meet
//! `[q | scale/2 q^2]`: the second-order estimate of the unit's log-mass, divided by the scale.

use super::CellList;
use crate::arch::touch;
use crate::convert::widen;
use crate::rows::QueryRows;
use crate::summary::{UnitKind, UnitSpec};
use crate::{DIM_MAX, Isa};

/// Units per call of the dot products; bounds the list of pointers on the stack.
const BATCH: usize = 1024;

/// The queries of one KV head's group, ready for scoring unit rows.
#[derive(Clone, Debug)]
pub struct UnitQuery {
    spec: UnitSpec,
    heads: usize,
    rows: QueryRows,
    /// `[heads, dim]`, for [`units_upper`].
    q: Vec<f32>,
}

impl UnitQuery {
    /// Prepares `q`, `[heads, dim]`, unscaled. `scale` is the softmax scale (used by
    /// [`UnitKind::Moment2`] only); `precise` keeps queries in f32 (see [`QueryRows::new`]).
    ///
    /// # Panics
    /// If `q` does not hold `heads >= 1` rows.
    #[must_use]
    pub fn new(
        isa: Isa,
        spec: UnitSpec,
        q: &[f32],
        heads: usize,
        scale: f32,
        precise: bool,
    ) -> UnitQuery {
        assert!(
            heads > 0 && q.len() == heads * spec.dim(),
            "{} of {heads} x {}",
            q.len(),
            spec.dim()
        );
        let mut wide = Vec::with_capacity(heads * spec.row_len());
        for q in q.chunks_exact(spec.dim()) {
            match spec.kind() {
                // NaN stays NaN in both parts.
                UnitKind::Box | UnitKind::MeanBox => {
                    wide.extend(q.iter().map(|&x| if x < 0.0 { 0.0 } else { x }));
                    wide.extend(q.iter().map(|&x| if x > 0.0 { 0.0 } else { x }));
                }
                UnitKind::Mean => wide.extend_from_slice(q),
                UnitKind::Moment2 => {
                    wide.extend_from_slice(q);
                    wide.extend(q.iter().map(|x| 0.5 * scale * x * x));
                }
            }
        }
        let rows = QueryRows::new(isa, spec.dtype(), &wide, spec.row_len(), precise);
        UnitQuery { spec, heads, rows, q: q.to_vec() }
    }

    /// Query heads of the group.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Shape of the cells.
    #[must_use]
    pub fn spec(&self) -> &UnitSpec {
        &self.spec
    }

    fn check(&self, cells: &CellList, out: &[f32]) {
        let (n, found) = (cells.len() * self.spec.units(), cells.cell_bytes());
        assert!(
            cells.is_empty() || found == self.spec.cell_bytes(),
            "cell of {found} bytes for {:?}",
            self.spec
        );
        assert_eq!(out.len(), self.heads * n, "scores of {} heads, {n} units", self.heads);
    }

    fn row(&self, cells: &CellList, unit: usize) -> *const u8 {
        let (tile, unit) = (unit / self.spec.units(), unit % self.spec.units());
        cells.cell(tile).wrapping_add(unit * self.spec.row_bytes())
    }
}

/// Scores all units, `out` `[heads][tiles * units]`, in units of q.k (unscaled): the upper bound of
/// q.k (box, up to rounding), the mean of q.k (mean), or the log-mass per token over the scale
/// (moment2: times scale, plus ln of the unit's tokens, it is the estimated log-mass).
///
/// # Panics
/// If a length does not fit.
pub fn units(query: &UnitQuery, cells: &CellList, out: &mut [f32]) {
    query.check(cells, out);
    let n = cells.len() * query.spec.units();
    let mut ptrs = [std::ptr::null(); BATCH];
    for at in (0..n).step_by(BATCH) {
        let ptrs = &mut ptrs[..BATCH.min(n - at)];
        for (i, p) in ptrs.iter_mut().enumerate() {
            *p = query.row(cells, at + i);
        }
        // SAFETY: each pointer is a unit's row in a listed cell.
        unsafe { query.rows.dots(ptrs, &mut out[at..], n) }
    }
}

/// Scores rows wherever they lie, `out` `[heads][rows]`, as [`units`] does: the same bits for the same row.
///
/// # Panics
/// If `out` has another length.
///
/// # Safety
/// Every row must be readable as a row of the query's spec.
pub unsafe fn unit_rows(query: &UnitQuery, rows: &[*const u8], out: &mut [f32]) {
    let (n, heads) = (rows.len(), query.heads);
    assert_eq!(out.len(), heads * n, "scores of {heads} heads, {n} rows");
    // SAFETY: the caller's promise.
    unsafe { query.rows.dots(rows, out, n) }
}

/// Asks the caches for rows that will be scored soon. They need not be readable.
pub fn fetch_unit_rows(spec: &UnitSpec, rows: impl Iterator<Item = *const u8>) {
    for row in rows {
        (0..spec.row_bytes()).step_by(64).for_each(|at| touch(row, at));
    }
}

/// Upper bound of `q . k` for keys in a box, rounded up far enough to be rigorous.
fn upper(q: &[f32], row: &[f32]) -> f32 {
    let (max, min) = row.split_at(q.len());
    let (mut sum, mut size) = (0f64, 0f64);
    for ((&q, &max), &min) in q.iter().zip(max).zip(min) {
        let (a, b) = (f64::from(q) * f64::from(max), f64::from(q) * f64::from(min));
        sum += if a > b || a.is_nan() { a } else { b };
        size += a.abs().max(b.abs());
    }
    // Products of f32 are exact in f64; the sum's error is far below 2^-40 of its terms.
    let bound = (sum + size * 2f64.powi(-40)) as f32;
    if bound.is_nan() { f32::INFINITY } else { bound.next_up() }
}

/// Rigorous upper bounds of q.k over the tokens of each unit, `out` `[heads][tiles * units]`: +inf where
/// keys are not finite. Slower than [`units`]; for certificates.
///
/// # Panics
/// If the rows are not boxes or a length does not fit.
pub fn units_upper(query: &UnitQuery, cells: &CellList, out: &mut [f32]) {
    assert_eq!(query.spec.kind(), UnitKind::Box, "bounds need boxes");
    query.check(cells, out);
    let (n, dim) = (cells.len() * query.spec.units(), query.spec.dim());
    let mut row = [0f32; 2 * DIM_MAX];
    for unit in 0..n {
        // SAFETY: the pointer is a unit's row in a listed cell.
        unsafe { widen(query.spec.dtype(), query.row(cells, unit), &mut row[..2 * dim]) }
        for (head, q) in query.q.chunks_exact(dim).enumerate() {
            out[head * n + unit] = upper(q, &row[..2 * dim]);
        }
    }
}
