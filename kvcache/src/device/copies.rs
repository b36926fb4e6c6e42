//! Copies of pages and rows to the GPU: many small pieces by a kernel, large ones by the copy engine.

use std::sync::Arc;

use kvist_kernels::cuda::params::CopyParams;
use kvist_kernels::cuda::{
    Device, Error, Event, Function, Grid, Macros, Pinned, Registered, Stream, TRANSFER,
};

use super::frames::Move;
use crate::arena::Arena;

/// Blocks of a copying kernel: enough for a link, few enough to leave the GPU to the model.
const QUOTA: u32 = 32;
const THREADS: u32 = 128;

/// Numbers of a piece at its source and at its target.
type Piece = (u32, u32);

/// Where pieces are, and where they go: pieces of equal length, by number.
struct Pieces {
    /// First byte of the sources, as the GPU knows it, and as the host does.
    from: (u64, *const u8),
    bytes: usize,
    list: Vec<Piece>,
}

/// How a cell is cut into rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CellShape {
    /// Parts that hold a row of each token, or unit of tokens: keys and values, or boxes alone.
    pub(super) planes: usize,
    /// Rows of a part.
    pub(super) rows: usize,
    pub(super) row_bytes: usize,
}

impl CellShape {
    pub(super) fn bytes(&self) -> usize {
        self.planes * self.rows * self.row_bytes
    }
}

/// Where small pieces end and large ones begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ways {
    /// Bytes of cells that pass through pinned memory at a time: whole rows, one cell at least.
    stage_bytes: usize,
    /// Bytes of a run that goes by the copy engine.
    engine_bytes: usize,
}

impl Ways {
    pub(super) fn new(cell: &CellShape, stage_bytes: usize, engine_bytes: usize) -> Ways {
        let stage_bytes = stage_bytes.max(cell.bytes()) / cell.row_bytes * cell.row_bytes;
        Ways { stage_bytes, engine_bytes }
    }

    /// Bytes of pinned memory that it takes: pieces, and two numbers for each row.
    pub(super) fn pinned_bytes(&self, cell: &CellShape) -> u64 {
        let rows = self.stage_bytes / cell.row_bytes;
        2 * (self.stage_bytes + rows * 2 * size_of::<u32>()) as u64
    }
}

/// Pinned memory that pages pass through.
#[derive(Debug)]
struct Stage {
    /// Pieces, then their numbers.
    host: Pinned,
    /// Behind the copies that use it.
    done: Event,
}

/// The way from the host tier to the GPU.
#[derive(Debug)]
pub(super) struct Copies {
    function: Function,
    stages: [Stage; 2],
    next: usize,
    /// The first cells of the host tier, if the GPU reads them itself.
    mapped: Option<(Registered, usize)>,
    cell: CellShape,
    ways: Ways,
}

impl Copies {
    pub(super) fn new(
        device: &Arc<Device>,
        stream: &Stream,
        cell: CellShape,
        mapped: Option<(Registered, usize)>,
        ways: Ways,
    ) -> Result<Copies, Error> {
        let stage = || {
            let bytes = ways.pinned_bytes(&cell) as usize / 2;
            Ok(Stage { host: device.pinned(bytes)?, done: device.event()? })
        };
        let transfer = TRANSFER.with(Macros::new());
        Ok(Copies {
            function: device.function(&transfer, "copy_items", stream)?,
            stages: [stage()?, stage()?],
            next: 0,
            mapped,
            cell,
            ways,
        })
    }

    /// Where the GPU reads pages in place, and how many of the first there.
    pub(super) fn mapped(&self) -> Option<(u64, usize)> {
        self.mapped.as_ref().map(|(of, cells)| (of.address(), *cells))
    }

    /// Queues copies to frames that start at `base`; returns their bytes. What is not mapped is read before
    /// this returns. What is mapped may be written meanwhile: the arena's account says so then, and it is
    /// copied again.
    pub(super) fn queue(
        &mut self,
        stream: &Stream,
        arena: &Arena,
        base: u64,
        moves: &[Move],
    ) -> Result<u64, Error> {
        let (cell_bytes, row_bytes) = (self.cell.bytes(), self.cell.row_bytes);
        let whole = |m: &&Move| m.from == 0 && m.to as usize == self.cell.rows;
        let cells = self.mapped.as_ref().map_or(0, |(_, cells)| *cells);
        let pages = moves.iter().filter(whole).map(|m| (m.host, m.frame));
        let (near, far): (Vec<_>, Vec<_>) = pages.partition(|&(host, _)| (host as usize) < cells);
        let rows: Vec<Piece> =
            moves.iter().filter(|m| !whole(m)).flat_map(|m| self.rows(m)).collect();
        let bytes = (near.len() + far.len()) * cell_bytes + rows.len() * row_bytes;
        if let Some((mapped, _)) = &self.mapped {
            let from = (mapped.address(), arena.at(0));
            self.pieces(stream, base, Pieces { from, bytes: cell_bytes, list: near })?;
        }
        self.staged(stream, arena, base, cell_bytes, &far)?;
        self.staged(stream, arena, base, row_bytes, &rows)?;
        Ok(bytes as u64)
    }

    /// Rows of all parts, numbered from the first of all cells.
    fn rows(&self, m: &Move) -> impl Iterator<Item = Piece> + use<> {
        let (rows, planes, m) = (self.cell.rows as u32, self.cell.planes as u32, *m);
        let first = move |cell: u32, plane: u32| (cell * planes + plane) * rows;
        let row = move |plane: u32, t: u32| (first(m.host, plane) + t, first(m.frame, plane) + t);
        (0..planes).flat_map(move |plane| (m.from..m.to).map(move |t| row(plane, t)))
    }

    /// Copies pieces of the host tier through pinned memory.
    fn staged(
        &mut self,
        stream: &Stream,
        arena: &Arena,
        base: u64,
        bytes: usize,
        list: &[Piece],
    ) -> Result<(), Error> {
        for part in list.chunks(self.ways.stage_bytes / bytes) {
            let stage = &mut self.stages[self.next];
            stage.done.synchronize()?;
            for (to, &(from, _)) in stage.host.bytes_mut().chunks_exact_mut(bytes).zip(part) {
                let from = arena.at(0).wrapping_add(from as usize * bytes);
                // SAFETY: a piece of a page that the caller's sequences hold, so that nobody writes it now.
                // Memory of the arena is defined, whatever was written.
                unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), bytes) }
            }
            let numbered = part.iter().zip(0..).map(|(&(_, to), i)| (i, to)).collect();
            let from = (stage.host.address(), stage.host.bytes().as_ptr());
            self.pieces(stream, base, Pieces { from, bytes, list: numbered })?;
        }
        Ok(())
    }

    /// Queues copies of pieces that the GPU can read: long runs by the copy engine, others by the kernel.
    fn pieces(&mut self, stream: &Stream, base: u64, all: Pieces) -> Result<(), Error> {
        if all.list.is_empty() {
            return Ok(());
        }
        let (runs, single) = runs(all.list, self.ways.engine_bytes.div_ceil(all.bytes).max(1));
        for ((from, to), n) in runs {
            let at = all.from.1.wrapping_add(from as usize * all.bytes);
            let target = base + u64::from(to) * all.bytes as u64;
            // SAFETY: neighbouring pieces in pinned memory, which stays until `done`, or in the arena, which is
            // mapped as long as this is there. What is written there meanwhile is copied again, as the arena's
            // account has it. Frames are the GPU's.
            unsafe { stream.send(target, at, n * all.bytes)? }
        }
        let (stage_bytes, most) =
            (self.ways.stage_bytes, self.ways.stage_bytes / self.cell.row_bytes);
        let staged = all.from.0 == self.stages[self.next].host.address();
        for part in single.chunks(most) {
            let stage = &mut self.stages[self.next];
            if !staged {
                stage.done.synchronize()?;
            }
            let numbers: &mut [u32] =
                bytemuck::cast_slice_mut(&mut stage.host.bytes_mut()[stage_bytes..]);
            let (from, to) = numbers.split_at_mut(most);
            for (i, &(f, t)) in part.iter().enumerate() {
                (from[i], to[i]) = (f, t);
            }
            let at = stage.host.address() + stage_bytes as u64;
            let p = CopyParams {
                from: all.from.0,
                to: base,
                from_items: at,
                to_items: at + (most * size_of::<u32>()) as u64,
                from_item: all.bytes as i64,
                to_item: all.bytes as i64,
                items: part.len() as u32,
                pieces: 1,
                piece_bytes: all.bytes as u32,
                ..bytemuck::Zeroable::zeroed()
            };
            let blocks = QUOTA.min((part.len() as u32).div_ceil(4));
            let grid = Grid { blocks: [blocks, 1, 1], threads: THREADS, shared_bytes: 0 };
            // SAFETY: as above; the numbers stay until `done`.
            unsafe { self.function.launch(stream, grid, &p)? }
            if !staged {
                self.turn(stream)?;
            }
        }
        // Pieces that passed through pinned memory fit once.
        if staged { self.turn(stream) } else { Ok(()) }
    }

    /// Whoever uses this pinned memory next waits for what is queued now.
    fn turn(&mut self, stream: &Stream) -> Result<(), Error> {
        let done = self.stages[self.next].done.record(stream);
        self.next = (self.next + 1) % self.stages.len();
        done
    }
}

/// Runs of at least so many pieces that are neighbours on both sides (the first, and how many), and all other
/// pieces.
fn runs(mut list: Vec<Piece>, least: usize) -> (Vec<(Piece, usize)>, Vec<Piece>) {
    list.sort_unstable();
    let (mut runs, mut single) = (Vec::new(), Vec::new());
    for run in list.chunk_by(|a, b| a.0 + 1 == b.0 && a.1 + 1 == b.1) {
        match run.len() >= least {
            true => runs.push((run[0], run.len())),
            false => single.extend_from_slice(run),
        }
    }
    (runs, single)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_go_together() {
        let list = vec![(5, 9), (1, 2), (2, 3), (3, 4), (4, 6), (6, 10)];
        let (found, single) = runs(list.clone(), 3);
        assert_eq!((found, single), (vec![((1, 2), 3)], vec![(4, 6), (5, 9), (6, 10)]));
        let (found, single) = runs(list, 2);
        assert_eq!((found, single), (vec![((1, 2), 3), ((5, 9), 2)], vec![(4, 6)]));
        assert_eq!(runs(Vec::new(), 1), (Vec::new(), Vec::new()));
    }
}
