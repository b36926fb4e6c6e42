//! Where blocks come from and go to in tests: the heap, or cells as the host tier has them. What is
//! written from a cell or read into one makes no detour where blocks are stored as they are.

use std::ops::Range;
use std::sync::Arc;

use crate::arena::{Arena, Care, Cell};
use crate::budget::Budget;
use crate::codec::{Canonical, PageSink};
use crate::format::BlockLayout;
use crate::sync::Mutex;
use crate::vfs::Buf;

fn cell(layout: &BlockLayout) -> Arc<Cell> {
    static ARENAS: Mutex<Vec<Arc<Arena>>> = Mutex::new(Vec::new());
    let mut arenas = ARENAS.lock();
    let found = arenas.iter().find(|a| a.cell_bytes() == layout.bytes()).cloned();
    let arena = found.unwrap_or_else(|| {
        let budget = Arc::new(Budget::new(256 << 20));
        let made = Arena::new(layout.bytes(), usize::MAX, budget, Care::default()).unwrap();
        arenas.push(made.clone());
        made
    });
    arena.take(1).unwrap().pop().unwrap()
}

/// A block of these bytes, in the memory that is its own.
pub(super) enum Lies {
    Cell(Arc<Cell>),
    Heap(Vec<u8>),
}

impl Lies {
    pub(super) fn new(layout: &BlockLayout, bytes: Vec<u8>, in_cell: bool) -> Lies {
        if !in_cell {
            return Lies::Heap(bytes);
        }
        let mut cell = cell(layout);
        cell.bytes_mut().unwrap().copy_from_slice(&bytes);
        Lies::Cell(cell)
    }

    pub(super) fn source(&self, layout: &BlockLayout) -> Canonical<'_> {
        match self {
            Lies::Cell(cell) => Canonical::of_cell(layout, cell, None),
            Lies::Heap(bytes) => Canonical::new(layout, bytes),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Lies::Cell(cell) => cell.bytes(),
            Lies::Heap(bytes) => bytes,
        }
    }
}

/// Where a block is read to.
pub(super) struct Sink {
    pub(super) lies: Lies,
    k: usize,
    page: usize,
}

impl Sink {
    pub(super) fn new(layout: &BlockLayout, in_cell: bool) -> Sink {
        let lies = Lies::new(layout, vec![0; layout.bytes()], in_cell);
        Sink { lies, k: layout.k_bytes(), page: layout.page_bytes() }
    }
}

impl PageSink for Sink {
    fn page(&mut self, index: usize) -> (&mut [u8], &mut [u8]) {
        let bytes = match &mut self.lies {
            Lies::Cell(cell) => cell.bytes_mut().unwrap(),
            Lies::Heap(bytes) => bytes,
        };
        bytes[index * self.page..][..self.page].split_at_mut(self.k)
    }

    fn lend(&mut self, bytes: Range<usize>) -> Option<Buf> {
        let Lies::Cell(cell) = &self.lies else { return None };
        let start = cell.ptr().wrapping_add(bytes.start);
        // SAFETY: inside the cell, which the buffer keeps; `page` wants the only handle.
        Some(unsafe { Buf::from_raw(start, bytes.len(), Box::new(cell.clone())) })
    }
}
