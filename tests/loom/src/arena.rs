//! Cells of one byte, which loom watches: whoever reads one that is written meanwhile is told.

use loom::cell::UnsafeCell;

use crate::Error;
use crate::budget::Budget;
use crate::sync::{Arc, Mutex};

/// What a cell is charged beside its byte.
pub(crate) const CELL_OVERHEAD: u64 = 0;

/// What is done with memory beside handing it out; here it makes no difference.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Care {
    pub(crate) wipes: bool,
    pub(crate) stays: bool,
}

/// Memory that is used again and again.
#[derive(Debug)]
pub(crate) struct Arena(Arc<Memory>);

#[derive(Debug)]
struct Memory {
    bytes: [UnsafeCell<[u8; 1]>; 2],
    free: Mutex<Vec<usize>>,
    budget: Arc<Budget>,
}

/// A place in memory; free again when dropped.
#[derive(Debug)]
pub(crate) struct Cell {
    memory: Arc<Memory>,
    at: usize,
}

impl Arena {
    pub(crate) fn new(
        cell_bytes: usize,
        _cells: usize,
        budget: Arc<Budget>,
        _: Care,
    ) -> Result<Arc<Arena>, Error> {
        assert_eq!(cell_bytes, 1, "bytes of a cell");
        let bytes = [UnsafeCell::new([0]), UnsafeCell::new([0])];
        let free = Mutex::new(vec![0, 1]);
        Ok(Arc::new(Arena(Arc::new(Memory { bytes, free, budget }))))
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the real one")]
    pub(crate) fn touch(&self, _: u64) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn cell_bytes(&self) -> usize {
        1
    }

    /// Charges first, as the real one does.
    pub(crate) fn take(&self, n: usize) -> Result<Vec<Arc<Cell>>, Error> {
        assert_eq!(n, 1, "cells at a time");
        self.0.budget.charge(1)?;
        let at = self.0.free.lock().pop();
        let at = at.expect("the budget is for as many cells as there are");
        Ok(vec![Arc::new(Cell { memory: self.0.clone(), at })])
    }
}

impl Cell {
    #[expect(clippy::mut_from_ref, clippy::unnecessary_wraps, reason = "loom watches the byte")]
    pub(crate) fn bytes_mut(&self) -> Option<&mut [u8]> {
        // SAFETY: loom panics if anybody else looks at the byte at that moment.
        Some(self.memory.bytes[self.at].with_mut(|bytes| unsafe { &mut *bytes }))
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the real one")]
    pub(crate) fn set_checksum(&self, _: u64) -> Option<()> {
        Some(())
    }

    #[expect(clippy::unused_self, reason = "as the real one")]
    pub(crate) fn len(&self) -> usize {
        1
    }

    pub(crate) fn read(&self) -> u8 {
        // SAFETY: as above.
        self.memory.bytes[self.at].with(|bytes| unsafe { (*bytes)[0] })
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        // As whoever gets it next would.
        self.memory.bytes[self.at].with_mut(|bytes| {
            // SAFETY: as above.
            unsafe { *bytes = [0] };
        });
        self.memory.free.lock().push(self.at);
        self.memory.budget.release(1);
    }
}
