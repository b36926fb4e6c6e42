//! Cells of equal size in huge-page memory, under one hard byte budget.
//!
//! An arena reserves address space for the whole budget but touches only cells in use. Free cells
//! are handed out lowest first, so that pages taken together lie side by side.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::Error;

/// Huge pages are this large, and arenas start at such a border.
const HUGE: usize = 2 << 20;

/// Bytes charged per cell for its bookkeeping: the shared handle (reference counts, arena pointer,
/// number), the handle's and the number's place in a page list with room to grow, and the free bit.
pub(crate) const CELL_OVERHEAD: u64 = 88;

/// Bytes that all arenas of a cache share.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Budget {
        Budget { limit, used: AtomicU64::new(0) }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn charge(&self, bytes: u64) -> Result<(), Error> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(used) => Err(Error::OverBudget {
                needed: bytes,
                free: self.limit - used,
                budget: self.limit,
            }),
        }
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Which cells are free.
#[derive(Debug)]
struct Free {
    /// One bit per cell that was ever handed out; set when free.
    bits: Vec<u64>,
    /// No cell below this is free.
    low: usize,
    /// Cells ever handed out.
    touched: usize,
    /// Set bits.
    count: usize,
}

/// Memory in cells of one size.
#[derive(Debug)]
pub(crate) struct Arena {
    map: MmapRaw,
    offset: usize,
    cell_bytes: usize,
    cells: usize,
    budget: Arc<Budget>,
    free: Mutex<Free>,
}

/// A cell in use. Dropping it gives the cell and its bytes back.
#[derive(Debug)]
pub(crate) struct Cell {
    arena: Arc<Arena>,
    id: u32,
}

impl Arena {
    /// Reserves room for as many cells as the budget could ever hold.
    pub(crate) fn new(cell_bytes: usize, budget: Arc<Budget>) -> Result<Arc<Arena>, Error> {
        let cells = (budget.limit() / (cell_bytes as u64 + CELL_OVERHEAD)).min(u32::MAX.into());
        let cells = cells as usize;
        let len = cells * cell_bytes + HUGE;
        let refused = |e: std::io::Error| Error::System {
            what: "reserving memory for the host tier",
            reason: e.to_string(),
        };
        let map = MmapOptions::new().len(len).no_reserve_swap().map_anon().map_err(refused)?;
        // Without huge pages everything works, only slower.
        if let Err(e) = map.advise(Advice::HugePage) {
            tracing::debug!("no huge pages for the host tier: {e}");
        }
        let map = MmapRaw::from(map);
        let start = map.as_ptr() as usize;
        let offset = start.next_multiple_of(HUGE) - start;
        let free = Mutex::new(Free { bits: Vec::new(), low: 0, touched: 0, count: 0 });
        Ok(Arc::new(Arena { map, offset, cell_bytes, cells, budget, free }))
    }

    /// Start of cell 0.
    pub(crate) fn base(&self) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(self.offset)
    }

    /// Bytes of a cell.
    pub(crate) fn cell_bytes(&self) -> usize {
        self.cell_bytes
    }

    /// Cells there could ever be; numbers lie below this.
    pub(crate) fn cells(&self) -> usize {
        self.cells
    }

    /// Cells in use.
    pub(crate) fn used(&self) -> usize {
        let free = self.lock();
        free.touched - free.count
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        // The free list is changed in single steps: a panic elsewhere cannot leave it torn.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `n` cells, neighbours where there are such. All or none.
    pub(crate) fn take(self: &Arc<Arena>, n: usize) -> Result<Vec<Arc<Cell>>, Error> {
        let bytes = n as u64 * (self.cell_bytes as u64 + CELL_OVERHEAD);
        self.budget.charge(bytes)?;
        let mut free = self.lock();
        let left = self.cells - free.touched + free.count;
        if left < n {
            drop(free);
            self.budget.release(bytes);
            return Err(Error::OverBudget {
                needed: bytes,
                free: left as u64 * self.cell_bytes as u64,
                budget: self.budget.limit(),
            });
        }
        let take = |_| Arc::new(Cell { arena: self.clone(), id: free.take() as u32 });
        let cells: Vec<Arc<Cell>> = (0..n).map(take).collect();
        drop(free);
        #[cfg(debug_assertions)]
        cells.iter().for_each(|c| c.poison());
        Ok(cells)
    }
}

impl Free {
    /// The lowest free cell.
    fn take(&mut self) -> usize {
        if self.count > 0 {
            let words = &mut self.bits[self.low / 64..];
            if let Some(at) = words.iter().position(|&w| w != 0) {
                let bit = words[at].trailing_zeros() as usize;
                words[at] &= words[at] - 1;
                self.low = (self.low / 64 + at) * 64 + bit;
                self.count -= 1;
                return self.low;
            }
        }
        self.touched += 1;
        self.bits.resize(self.touched.div_ceil(64), 0);
        self.touched - 1
    }

    fn give(&mut self, id: usize) {
        self.bits[id / 64] |= 1 << (id % 64);
        self.low = self.low.min(id);
        self.count += 1;
    }
}

impl Cell {
    /// The cell's number in its arena.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The cell's memory.
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.arena.base().wrapping_add(self.id as usize * self.arena.cell_bytes)
    }

    /// The cell's bytes, for the only holder of the cell.
    pub(crate) fn bytes_mut(self: &mut Arc<Cell>) -> Option<&mut [u8]> {
        let len = self.arena.cell_bytes;
        let cell = Arc::get_mut(self)?;
        // SAFETY: the cell lies inside the map (ids are below `cells`); no other handle exists, so
        // nobody else reads or writes it while `self` is borrowed.
        Some(unsafe { std::slice::from_raw_parts_mut(cell.ptr(), len) })
    }

    /// Fresh cells read as NaN, so that a test notices a row that was never written.
    #[cfg(debug_assertions)]
    fn poison(&self) {
        // SAFETY: inside the map, and not handed out to anybody yet.
        unsafe { std::ptr::write_bytes(self.ptr(), 0xFF, self.arena.cell_bytes) }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.arena.lock().give(self.id as usize);
        self.arena.budget.release(self.arena.cell_bytes as u64 + CELL_OVERHEAD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_come_in_runs_and_go_back() {
        let budget = Arc::new(Budget::new(100 * (4096 + CELL_OVERHEAD)));
        let arena = Arena::new(4096, budget.clone()).unwrap();
        assert!((arena.base() as usize).is_multiple_of(HUGE));
        let a = arena.take(10).unwrap();
        let b = arena.take(80).unwrap();
        assert!(a.iter().chain(&b).map(|c| c.id()).eq(0..90));
        let error = arena.take(11).unwrap_err();
        let needed = 11 * (4096 + CELL_OVERHEAD);
        let limit = budget.limit();
        assert_eq!(error, Error::OverBudget { needed, free: 10 * needed / 11, budget: limit });
        drop(a);
        assert_eq!(arena.used(), 80);
        assert!(arena.take(12).unwrap().iter().map(|c| c.id()).eq((0..10).chain([90, 91])));
        drop(b);
        assert_eq!((arena.used(), budget.used()), (0, 0));
    }
}
