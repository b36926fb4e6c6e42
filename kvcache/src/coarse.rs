//! The boxes of a head's tiles, taken from its boxed cells when they are first needed: what a long sequence is
//! searched by before any tile is scored. Those of 64 tiles are coded like the keys of 64 tokens: the middles, and the
//! squares of a quarter of the widths.

use std::sync::Arc;

use kvist_kernels::score::{self, CellList};
use kvist_kernels::summary::{self, BoxedSpec};
use kvist_kernels::{DType, Isa};

use crate::Error;
use crate::arena::{Arena, Cell};
use crate::summaries::TILE;

/// Bits of a channel of a middle, and of a square: 2 of these cost a hundredth of the mass found, and spare a
/// quarter of the bytes.
const PLANES: [u32; 2] = [4, 2];
/// Squares are cut here, so that a few wide boxes leave something to tell the others apart.
const SQUARE_MOST: f32 = 65_536.0;

/// Shapes of the two parts of a cell: middles, squares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoarseSpec(pub(crate) [BoxedSpec; 2]);

impl CoarseSpec {
    pub(crate) fn new(dim: usize) -> Result<CoarseSpec, Error> {
        let [middles, squares] = PLANES.map(|planes| BoxedSpec::new(dim, planes));
        Ok(CoarseSpec([middles?, squares?]))
    }

    /// Bytes of a cell.
    pub(crate) fn cell_bytes(&self) -> usize {
        self.0.iter().map(BoxedSpec::cell_bytes).sum()
    }

    /// The parts of cells.
    pub(crate) fn parts<'a>(&self, cells: &CellList<'a>) -> [CellList<'a>; 2] {
        let [middles, squares] = self.0.map(|spec| spec.cell_bytes());
        [cells.part(0, middles), cells.part(middles, squares)]
    }
}

/// Boxes of one head's first tiles, 64 tiles a cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coarse {
    cells: Vec<Arc<Cell>>,
    pub(crate) ids: Vec<u32>,
    /// Tiles with keys that are not finite, ascending: nothing is known of them.
    pub(crate) open: Vec<u32>,
}

impl Coarse {
    /// Tiles whose boxes are there.
    pub(crate) fn tiles(&self) -> usize {
        self.ids.len() * TILE
    }

    /// Whether there are more of 64 tiles than have their boxes here.
    pub(crate) fn lack(&self, tiles: usize) -> bool {
        self.tiles() + TILE <= tiles
    }

    /// Adds what `boxed`, the cells of all finished tiles, have more. What was added stays if the memory
    /// for the rest cannot be had.
    pub(crate) fn extend(
        &mut self,
        arena: &Arc<Arena>,
        spec: &BoxedSpec,
        boxed: &CellList,
    ) -> Result<(), Error> {
        let coarse = CoarseSpec::new(spec.dim())?;
        let mut rows = [vec![0f32; TILE * spec.dim()], vec![0f32; TILE * spec.dim()]];
        while self.lack(boxed.len()) {
            let tiles = self.tiles();
            let [middles, squares] = &mut rows;
            score::tile_boxes(spec, &boxed.slice(tiles, tiles + TILE), middles, squares);
            squares.iter_mut().for_each(|x| *x = x.min(SQUARE_MOST));
            for i in 0..TILE {
                let of_tile = i * spec.dim()..(i + 1) * spec.dim();
                if !middles[of_tile.clone()].iter().all(|x| x.is_finite()) {
                    // So that the others of the cell can be told apart.
                    middles[of_tile.clone()].fill(0.0);
                    squares[of_tile].fill(0.0);
                    self.open.push((tiles + i) as u32);
                }
            }
            let mut fresh = arena.take(1)?;
            let Some(bytes) = fresh.first_mut().and_then(Cell::bytes_mut) else {
                unreachable!("a fresh cell has one holder")
            };
            let (first, second) = bytes.split_at_mut(coarse.0[0].cell_bytes());
            for ((part, rows), bytes) in coarse.0.iter().zip(&rows).zip([first, second]) {
                let rows: Vec<*const u8> =
                    rows.chunks(spec.dim()).map(|row| row.as_ptr().cast()).collect();
                let bytes = &mut bytes[..part.cell_bytes()];
                // SAFETY: the rows are whole.
                unsafe { summary::build_boxed_at(Isa::level(), part, DType::F32, &rows, bytes) }
            }
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
