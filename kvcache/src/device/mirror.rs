//! Cells of an arena of the host tier, and the copies of them that the GPU has.

use std::sync::Arc;

use kvist_kernels::cuda::{Error, StepLists, Stream};

use super::copies::Copies;
use super::frames::{Arrangement, Frames, Move};
use super::wanted::{Pages, Place, Want};
use crate::arena::Arena;

/// Frames for cells of an arena.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) frames: Frames,
    pub(super) named: Pages,
    pub(super) copies: Copies,
    /// What is mapped of it stays mapped.
    pub(super) arena: Arc<Arena>,
    /// Where the frames start, and how many there are.
    pub(super) base: u64,
    pub(super) count: usize,
    /// Rows of a cell: tokens, or units of tokens.
    pub(super) rows: u32,
    layers: usize,
    /// Cells of the arena that may be named.
    pub(super) cells: usize,
}

/// Cells that are to be copied before they are read: their places in a table, and what they hold.
#[derive(Debug, Default)]
pub(super) struct Missing(Vec<(usize, Want)>);

impl Mirror {
    pub(super) fn new(
        arena: &Arc<Arena>,
        cells: usize,
        copies: Copies,
        (base, count): (u64, usize),
        (rows, layers): (usize, usize),
    ) -> Mirror {
        Mirror {
            frames: Frames::new(count, cells, layers),
            named: Pages::new(cells),
            copies,
            arena: arena.clone(),
            base,
            count,
            rows: rows as u32,
            layers,
            cells,
        }
    }

    /// Bytes of host memory that is kept for so many cells.
    pub(super) fn table_bytes(cells: usize) -> u64 {
        Pages::bytes(cells) + Frames::bytes(cells, cells)
    }

    /// Bytes of all frames, and of those in use.
    pub(super) fn bytes(&self) -> [u64; 2] {
        [self.count, self.frames.used()].map(|frames| (frames * self.arena.cell_bytes()) as u64)
    }

    /// Forgets all copies.
    pub(super) fn forget(&mut self) {
        self.frames = Frames::new(self.count, self.cells, self.layers);
    }

    /// Finds a place for each cell that is named, for a call whose copies are number `copies`.
    pub(super) fn arrange(&mut self, copies: u64) -> Arrangement {
        self.frames.arrange(&mut self.named, self.rows, &self.arena, copies)
    }

    /// Queues copies; returns their bytes.
    pub(super) fn queue(&mut self, stream: &Stream, moves: &[Move]) -> Result<u64, Error> {
        self.copies.queue(stream, &self.arena, self.base, moves)
    }

    /// Frames, or mapped cells, whichever are more.
    pub(super) fn places(&self) -> usize {
        self.copies.mapped().map_or(0, |(_, cells)| cells).max(self.count)
    }

    /// Where the GPU reads a cell in place, if it can.
    fn in_place(&self, cell: u32) -> Option<u32> {
        let mapped = self.copies.mapped().map_or(0, |(_, cells)| cells);
        ((cell as usize) < mapped).then_some(cell | StepLists::FAR)
    }

    /// Writes to a table, from `first` on, where the GPU reads cells that hold so many rows: in frames, or in
    /// place. What has to be copied first is left to [`Mirror::bring`].
    pub(super) fn locate(
        &self,
        (cells, rows): (&[u32], usize),
        (first, table): (usize, &mut [u32]),
        missing: &mut Missing,
    ) {
        let cells = &cells[..rows.div_ceil(self.rows as usize)];
        for (i, &cell) in cells.iter().enumerate() {
            let end = (rows - i * self.rows as usize).min(self.rows as usize) as u32;
            let frame = self.frames.of(cell);
            let near = frame.filter(|_| self.arena.kept(cell) >= end);
            let away = || frame.map_or_else(|| self.in_place(cell), |_| None);
            match near.or_else(away) {
                Some(place) => table[first + i] = place,
                None => missing.0.push((first + i, Want { host: cell, end, tokens: end })),
            }
        }
    }

    /// Whether there are frames for all that is missing, other cells than these having left.
    pub(super) fn has_room(
        &mut self,
        missing: &Missing,
        cells: &mut dyn Iterator<Item = &[u32]>,
    ) -> bool {
        let hosts = missing.0.iter().map(|(_, want)| want.host);
        let mut new: Vec<u32> = hosts.filter(|&host| self.frames.of(host).is_none()).collect();
        if new.is_empty() {
            return true;
        }
        new.sort_unstable();
        new.dedup();
        cells.for_each(|cells| self.frames.touch(cells));
        self.frames.room(&self.arena, new.len()) >= new.len()
    }

    /// Gives frames to what is missing, for copies number `copies`; what they are, and whether the table names
    /// all now.
    pub(super) fn bring(
        &mut self,
        missing: &Missing,
        table: &mut [u32],
        copies: u64,
    ) -> (Arrangement, bool) {
        self.named.name(missing.0.iter().map(|(_, want)| *want));
        let plan = self.arrange(copies);
        let mut all = true;
        for &(at, want) in &missing.0 {
            match (self.named.place(want.host), self.in_place(want.host)) {
                (Place::Here(frame) | Place::Coming(frame), _) => table[at] = frame,
                (Place::Away, Some(place)) => table[at] = place,
                (Place::Away, None) => all = false,
            }
        }
        (plan, all)
    }
}

impl Missing {
    /// Whether some cell is none of the first so many.
    pub(super) fn is_beyond(&self, cells: usize) -> bool {
        self.0.iter().any(|(_, want)| want.host as usize >= cells)
    }
}
