//! Mean keys of a head's tiles, made from its boxed cells when they are first needed: what a long sequence is
//! searched by before any tile is scored.

use std::sync::Arc;

use kvist_kernels::DType;
use kvist_kernels::score::{self, CellList};
use kvist_kernels::summary::{self, BoxedSpec, LowBitSpec};

use crate::Error;
use crate::arena::{Arena, Cell};
use crate::summaries::TILE;

/// Bits of a mean's channel.
const BITS: u32 = 8;

/// Shape of a cell: the means of 64 tiles.
pub(crate) fn spec(dim: usize) -> Result<LowBitSpec, Error> {
    Ok(LowBitSpec::new(dim, BITS)?)
}

/// Means of one head's first tiles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Means {
    cells: Vec<Arc<Cell>>,
    pub(crate) ids: Vec<u32>,
    pub(crate) tiles: usize,
}

impl Means {
    /// Adds the tiles that `boxes`, the cells of all finished tiles, has more. What was added stays if the
    /// memory for others cannot be had.
    pub(crate) fn extend(
        &mut self,
        arena: &Arc<Arena>,
        boxed: &BoxedSpec,
        boxes: &CellList,
    ) -> Result<(), Error> {
        let spec = spec(boxed.dim())?;
        while self.tiles < boxes.len() {
            let first = self.tiles % TILE;
            let end = (self.tiles - first + TILE).min(boxes.len());
            let new = boxes.slice(self.tiles, end);
            let mut means = vec![0f32; new.len() * boxed.dim()];
            score::tile_means(boxed, &new, &mut means);
            let rows: Vec<*const u8> =
                means.chunks(boxed.dim()).map(|m| m.as_ptr().cast()).collect();
            let bytes = self.last(arena, first > 0)?;
            // SAFETY: the rows are those of `means`.
            unsafe { summary::build_low_bit(&spec, DType::F32, first, &rows, bytes) }
            self.tiles = end;
        }
        Ok(())
    }

    /// The last cell, to write to: the one there is, or a new one. Nobody else sees what is written.
    fn last(&mut self, arena: &Arc<Arena>, begun: bool) -> Result<&mut [u8], Error> {
        let shared = self.cells.last().is_some_and(|c| Arc::strong_count(c) > 1);
        if !begun || shared {
            let mut fresh = arena.take(1)?;
            if begun && let (Some(old), Some(new)) = (self.cells.pop(), fresh.first_mut()) {
                self.ids.pop();
                let Some(bytes) = new.bytes_mut() else { unreachable!("a fresh cell") };
                bytes.copy_from_slice(old.bytes());
            }
            self.ids.extend(fresh.iter().map(|c| c.id()));
            self.cells.append(&mut fresh);
        }
        match self.cells.last_mut().and_then(Cell::bytes_mut) {
            Some(bytes) => Ok(bytes),
            None => unreachable!("a shared cell was just replaced"),
        }
    }

    /// Forgets the tiles from the `tiles`-th on.
    pub(crate) fn truncate(&mut self, tiles: usize) {
        self.tiles = self.tiles.min(tiles);
        self.cells.truncate(tiles.div_ceil(TILE));
        self.ids.truncate(tiles.div_ceil(TILE));
    }
}
