//! Mean keys of a head's tiles, made from its boxed cells when they are first needed: what a long sequence is
//! searched by before any tile is scored. The means of 64 tiles are coded like the keys of 64 tokens.

use std::sync::Arc;

use kvist_kernels::score::{self, CellList};
use kvist_kernels::summary::{self, BoxedSpec};
use kvist_kernels::{DType, Isa};

use crate::Error;
use crate::arena::{Arena, Cell};
use crate::summaries::TILE;

/// Bits of a mean's channel.
const PLANES: u32 = 4;

/// Shape of a cell: the means of 64 tiles.
pub(crate) fn spec(dim: usize) -> Result<BoxedSpec, Error> {
    Ok(BoxedSpec::new(dim, PLANES)?)
}

/// Means of one head's first tiles, 64 tiles a cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Means {
    cells: Vec<Arc<Cell>>,
    pub(crate) ids: Vec<u32>,
    /// Tiles with keys that are not finite, ascending: nothing is known of them.
    pub(crate) open: Vec<u32>,
}

impl Means {
    /// Tiles whose means are there.
    pub(crate) fn tiles(&self) -> usize {
        self.ids.len() * TILE
    }

    /// Whether there are more of 64 tiles than have their means here.
    pub(crate) fn lack(&self, tiles: usize) -> bool {
        self.tiles() + TILE <= tiles
    }

    /// Adds what `boxes`, the cells of all finished tiles, have more. What was added stays if the memory
    /// for the rest cannot be had.
    pub(crate) fn extend(
        &mut self,
        arena: &Arc<Arena>,
        boxed: &BoxedSpec,
        boxes: &CellList,
    ) -> Result<(), Error> {
        let spec = spec(boxed.dim())?;
        let mut means = vec![0f32; TILE * boxed.dim()];
        while self.lack(boxes.len()) {
            let tiles = self.tiles();
            score::tile_means(boxed, &boxes.slice(tiles, tiles + TILE), &mut means);
            for (i, mean) in means.chunks_mut(boxed.dim()).enumerate() {
                if !mean.iter().all(|x| x.is_finite()) {
                    // So that the others of the cell can be told apart.
                    mean.fill(0.0);
                    self.open.push((tiles + i) as u32);
                }
            }
            let rows: Vec<*const u8> =
                means.chunks(boxed.dim()).map(|m| m.as_ptr().cast()).collect();
            let mut fresh = arena.take(1)?;
            let Some(bytes) = fresh.first_mut().and_then(Cell::bytes_mut) else {
                unreachable!("a fresh cell has one holder")
            };
            // SAFETY: the rows are those of `means`.
            unsafe { summary::build_boxed_at(Isa::level(), &spec, DType::F32, &rows, bytes) }
            self.ids.extend(fresh.iter().map(|c| c.id()));
            self.cells.append(&mut fresh);
        }
        Ok(())
    }

    /// Forgets what speaks of tiles from the `tiles`-th on.
    pub(crate) fn truncate(&mut self, tiles: usize) {
        self.cells.truncate(tiles / TILE);
        self.ids.truncate(tiles / TILE);
        let left = self.tiles();
        self.open.retain(|&tile| (tile as usize) < left);
    }
}
