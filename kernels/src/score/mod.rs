//! Scores of tokens and units from summaries, one KV head at a time.
//!
//! [`boxed`] estimates q.k of every token from boxed codes, with rigorous bounds on request, and
//! [`refine`] adds planes where it matters, [`tile_boxes`] and [`tile_uppers`] sum up whole tiles; [`units`] scores unit rows (Quest's bound, means, mean and
//! variance), [`low_bit`] listed tokens by keys of a few bits. All work on a [`CellList`], the summaries of one KV head in tile order. The result for a
//! tile depends on nothing but that tile and the query, so lists may be split anywhere.
//!
//! [`prefill`] scores keys and blocks of keys for the many queries of a prompt.

mod boxed;
mod low_bit;
pub(crate) mod plain;
pub mod prefill;
mod tiles;
mod units;

use std::marker::PhantomData;

use crate::Error;

pub use boxed::{BoxedQuery, RawScores, boxed, boxed_raw, refine, refine_raw};
pub(crate) use boxed::{CODE_SLACK, Job, QUERY_SHIFT, STEP_CODES, TINY, half_cell, slack};
pub use low_bit::{low_bit, low_bit_at};
pub use tiles::{tile_boxes, tile_uppers};
pub use units::{UnitQuery, fetch_unit_rows, unit_rows, units, units_upper};

/// The cells of one KV head's tiles, in tile order.
#[derive(Clone, Copy, Debug)]
pub struct CellList<'a> {
    base: *const u8,
    /// Bytes from one cell to the next.
    stride: usize,
    cell_bytes: usize,
    ids: &'a [u32],
    _life: PhantomData<&'a [u8]>,
}

// SAFETY: a list is a shared borrow of plain numbers.
unsafe impl Send for CellList<'_> {}
// SAFETY: as above; nothing is written through it.
unsafe impl Sync for CellList<'_> {}

impl<'a> CellList<'a> {
    /// Cells `base + id * cell_bytes`. Aligned to 64 bytes they are read fastest.
    ///
    /// # Safety
    /// Every listed cell must be readable and unchanged for `'a`.
    #[must_use]
    pub unsafe fn new(base: *const u8, cell_bytes: usize, ids: &'a [u32]) -> CellList<'a> {
        CellList { base, stride: cell_bytes, cell_bytes, ids, _life: PhantomData }
    }

    /// Cells of a slice.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if a listed cell does not lie inside `cells`.
    pub fn from_slice(
        cells: &'a [u8],
        cell_bytes: usize,
        ids: &'a [u32],
    ) -> Result<CellList<'a>, Error> {
        for &id in ids {
            let end = (i128::from(id) + 1) * cell_bytes as i128;
            if end > cells.len() as i128 {
                return Err(Error::OutOfBounds { what: "cells", last: end - 1, len: cells.len() });
            }
        }
        // SAFETY: every cell was just checked against the slice.
        Ok(unsafe { CellList::new(cells.as_ptr(), cell_bytes, ids) })
    }

    /// Other cells of the same memory.
    ///
    /// # Safety
    /// Every listed cell must be readable and unchanged for `'b`.
    #[must_use]
    pub unsafe fn listed<'b>(&self, ids: &'b [u32]) -> CellList<'b>
    where
        'a: 'b,
    {
        CellList { ids, ..*self }
    }

    /// Number of tiles.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no tile.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tiles `from..to` of this list.
    ///
    /// # Panics
    /// If the range is not inside the list.
    #[must_use]
    pub fn slice(&self, from: usize, to: usize) -> CellList<'a> {
        CellList { ids: &self.ids[from..to], ..*self }
    }

    /// The `bytes` from byte `from` of each cell, for cells that hold several digests.
    ///
    /// # Panics
    /// If a cell does not have them.
    #[must_use]
    pub fn part(&self, from: usize, bytes: usize) -> CellList<'a> {
        assert!(from + bytes <= self.cell_bytes, "{from} + {bytes} of {}", self.cell_bytes);
        CellList { base: self.base.wrapping_add(from), cell_bytes: bytes, ..*self }
    }

    /// Bytes of a cell.
    #[must_use]
    pub fn cell_bytes(&self) -> usize {
        self.cell_bytes
    }

    /// Address of a tile's cell.
    pub(crate) fn cell(&self, tile: usize) -> *const u8 {
        self.base.wrapping_add(self.ids[tile] as usize * self.stride)
    }
}
