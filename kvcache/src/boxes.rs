//! Boxes of 64, 256 and 1024 tokens over a head's 16-token boxes, made when they are first needed: what a tree
//! of chunks is searched by. Only whole runs of 1024 tokens have them, one cell a run, so that none changes.

use std::sync::Arc;

use kvist_kernels::summary::{UnitSpec, merge_boxes};

use crate::Error;
use crate::arena::{Arena, Cell};

/// Children of a box.
pub(crate) const FAN: usize = 4;
/// Level of the largest boxes; the 16-token boxes are level 0.
pub(crate) const TOP: u32 = 3;
/// 16-token boxes of a run.
pub(crate) const RUN: usize = FAN.pow(TOP);
/// Boxes of a cell: 16, 4 and 1.
const ROWS: usize = 16 + 4 + 1;

/// Bytes of a cell.
pub(crate) fn cell_bytes(spec: &UnitSpec) -> usize {
    (ROWS * spec.row_bytes()).next_multiple_of(64)
}

/// Boxes of one level in a run, and the first of them in its cell.
fn rows(level: u32) -> (usize, usize) {
    match level {
        1 => (16, 0),
        2 => (4, 16),
        _ => (1, 20),
    }
}

/// Boxes over one head's first whole runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Boxes {
    cells: Vec<Arc<Cell>>,
}

impl Boxes {
    /// Runs that have their boxes.
    pub(crate) fn runs(&self) -> usize {
        self.cells.len()
    }

    /// The run and the row in its cell of a box above level 0.
    pub(crate) fn row(&self, spec: &UnitSpec, level: u32, index: usize) -> *const u8 {
        let (n, first) = rows(level);
        let row = first + index % n;
        self.cells[index / n].ptr().wrapping_add(row * spec.row_bytes()).cast_const()
    }

    /// Adds the boxes of all whole runs of the first `leaves` 16-token boxes. What was added stays if the
    /// memory for the rest cannot be had.
    ///
    /// # Safety
    /// `leaf(i)` must be readable as a row of `spec` for every `i` below `leaves`.
    pub(crate) unsafe fn extend(
        &mut self,
        arena: &Arc<Arena>,
        spec: &UnitSpec,
        leaves: usize,
        leaf: impl Fn(usize) -> *const u8,
    ) -> Result<(), Error> {
        while (self.runs() + 1) * RUN <= leaves {
            let run = self.runs();
            let mut fresh = arena.take(1)?;
            let Some(bytes) = fresh.first_mut().and_then(Cell::bytes_mut) else {
                unreachable!("a fresh cell has one holder")
            };
            for level in 1..=TOP {
                let (n, first) = rows(level);
                for i in 0..n {
                    let below = |child: usize| match level {
                        1 => leaf(run * RUN + child),
                        _ => bytes[(rows(level - 1).1 + child) * spec.row_bytes()..].as_ptr(),
                    };
                    let children: [*const u8; FAN] = std::array::from_fn(|c| below(i * FAN + c));
                    let mut row = vec![0u8; spec.row_bytes()];
                    // SAFETY: rows of the level below, just written, or the caller's.
                    unsafe { merge_boxes(spec, &children, &mut row) }
                    bytes[(first + i) * spec.row_bytes()..][..row.len()].copy_from_slice(&row);
                }
            }
            self.cells.append(&mut fresh);
        }
        Ok(())
    }

    /// Forgets the boxes of all runs that are not whole in the first `leaves` 16-token boxes.
    pub(crate) fn truncate(&mut self, leaves: usize) {
        self.cells.truncate(leaves / RUN);
    }
}
