//! Cells of equal size in huge-page memory, under one hard byte budget.
//!
//! An arena reserves address space for the whole budget but touches only cells in use. Memory that
//! nobody uses any more goes back to the system, save a reserve for the next sequence.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

use crate::Error;
use crate::budget::{Budget, arc_bytes};
use crate::free::{FreeList, Regions};

/// Huge pages are this large, and arenas start at such a border.
const HUGE: usize = 2 << 20;

/// No system's pages are smaller.
const PAGE: usize = 4096;

/// Free huge pages that an arena keeps (64 MiB): taking them again costs a page fault each.
const SPARE_REGIONS: usize = 32;

/// Bytes charged per cell for its handle and its bit in the free list. Its entries in page tables are
/// charged with the tables.
pub(crate) const CELL_OVERHEAD: u64 = arc_bytes::<Cell>() + 1;

#[derive(Debug)]
struct State {
    free: FreeList,
    regions: Regions,
}

/// Memory in cells of one size.
#[derive(Debug)]
pub(crate) struct Arena {
    map: MmapRaw,
    offset: usize,
    cell_bytes: usize,
    cells: usize,
    budget: Arc<Budget>,
    care: Care,
    state: Mutex<State>,
    /// By cell, the first tokens that nobody wrote since a GPU copied them; only where one does.
    copied: OnceLock<Box<[AtomicU32]>>,
}

/// What is done with an arena's memory beside handing it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Care {
    /// Cells are wiped when nobody uses them any more.
    pub(crate) wipes: bool,
    /// Memory that was touched once is never given back to the system.
    pub(crate) stays: bool,
}

/// A cell in use. Dropping it gives the cell and its bytes back.
#[derive(Debug)]
pub(crate) struct Cell {
    arena: Arc<Arena>,
    id: u32,
    /// Of its bytes, if its user keeps one; else 0.
    checksum: u64,
}

impl Arena {
    /// Reserves room for as many cells as the budget could ever hold, at most `most`.
    pub(crate) fn new(
        cell_bytes: usize,
        most: usize,
        budget: Arc<Budget>,
        care: Care,
    ) -> Result<Arc<Arena>, Error> {
        let cells = (budget.limit() / (cell_bytes as u64 + CELL_OVERHEAD)).min(most as u64);
        let cells = cells as usize;
        let len = (cells * cell_bytes).next_multiple_of(HUGE) + HUGE;
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
        let state = State { free: FreeList::default(), regions: Regions::new(cell_bytes, HUGE) };
        let state = Mutex::new(state);
        let copied = OnceLock::new();
        Ok(Arc::new(Arena { map, offset, cell_bytes, cells, budget, care, state, copied }))
    }

    /// Makes the system hand out the memory of the first cells now, up to so many bytes. For an arena
    /// that is not used yet.
    pub(crate) fn touch(&self, bytes: u64) -> Result<(), Error> {
        let len = (bytes as usize).min(self.cells * self.cell_bytes);
        self.populate(len).map_err(|e| Error::System {
            what: "touching the memory of the host tier",
            reason: e.to_string(),
        })
    }

    fn populate(&self, len: usize) -> std::io::Result<()> {
        let touched = self.map.advise_range(Advice::PopulateWrite, self.offset, len);
        if touched.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::InvalidInput) {
            // A system without that call.
            for at in (0..len).step_by(PAGE) {
                // SAFETY: inside the map, and no cell of it is in use.
                unsafe { self.base().add(at).write_volatile(0) }
            }
            return Ok(());
        }
        touched
    }

    /// Start of cell 0.
    pub(crate) fn base(&self) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(self.offset)
    }

    /// Where a cell starts.
    pub(crate) fn at(&self, id: u32) -> *const u8 {
        self.base().wrapping_add(id as usize * self.cell_bytes)
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
        self.lock().free.used()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is changed in single steps: a panic elsewhere cannot leave it torn.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `n` cells, neighbours where there are such. All or none.
    pub(crate) fn take(self: &Arc<Arena>, n: usize) -> Result<Vec<Arc<Cell>>, Error> {
        if n == 0 {
            return Ok(Vec::new());
        }
        let bytes = n as u64 * (self.cell_bytes as u64 + CELL_OVERHEAD);
        self.budget.charge(bytes)?;
        let mut state = self.lock();
        let Some(ids) = state.free.take(n, self.cells) else {
            let free = (self.cells - state.free.used()) as u64 * self.cell_bytes as u64;
            drop(state);
            self.budget.release(bytes);
            return Err(Error::OverBudget { needed: bytes, free, budget: self.budget.limit() });
        };
        ids.iter().for_each(|&id| state.regions.take(id));
        drop(state);
        let cell = |id| Arc::new(Cell { arena: self.clone(), id: id as u32, checksum: 0 });
        let cells: Vec<Arc<Cell>> = ids.into_iter().map(cell).collect();
        #[cfg(debug_assertions)]
        cells.iter().for_each(|c| c.poison());
        Ok(cells)
    }

    /// From now on it keeps account of what was copied of its first cells: [`Arena::copied`], [`Arena::kept`].
    #[cfg(feature = "cuda")]
    pub(crate) fn watch(&self, cells: usize) {
        let none = || std::iter::repeat_with(AtomicU32::default).take(cells).collect();
        self.copied.get_or_init(none);
    }

    /// Bytes that this account takes for so many cells.
    #[cfg(feature = "cuda")]
    pub(crate) fn watch_bytes(cells: usize) -> u64 {
        (cells * size_of::<AtomicU32>()) as u64
    }

    /// The account of a cell, if there is one.
    fn account(&self, id: u32) -> Option<&AtomicU32> {
        self.copied.get()?.get(id as usize)
    }

    /// A cell's first `tokens` tokens were copied elsewhere.
    pub(crate) fn copied(&self, id: u32, tokens: u32) {
        if let Some(copied) = self.account(id) {
            copied.store(tokens, Ordering::Relaxed);
        }
    }

    /// How many of them nobody wrote since then.
    #[cfg(feature = "cuda")]
    pub(crate) fn kept(&self, id: u32) -> u32 {
        self.account(id).map_or(0, |copied| copied.load(Ordering::Relaxed))
    }

    /// Takes up to `n` cells: as many as are free.
    pub(crate) fn take_some(self: &Arc<Arena>, n: usize) -> Vec<Arc<Cell>> {
        let free = self.budget.limit().saturating_sub(self.budget.used());
        let fit = free / (self.cell_bytes as u64 + CELL_OVERHEAD);
        let fit = fit.min((self.cells - self.used()) as u64) as usize;
        // Somebody may have been quicker; then there are none.
        self.take(n.min(fit)).unwrap_or_default()
    }

    fn give(&self, id: u32) {
        self.copied(id, 0);
        let mut state = self.lock();
        state.free.give(id as usize);
        if state.regions.give(id as usize) <= SPARE_REGIONS || self.care.stays {
            return;
        }
        // Under the lock, so that nobody takes a cell of these regions meanwhile.
        for run in state.regions.drain() {
            let (from, len) = (self.offset + run.start * HUGE, run.len() * HUGE);
            // SAFETY: inside the map, which ends a whole region after the last cell; no cell of
            // these regions is in use, and what is taken next is written before it is read.
            let given =
                unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, len) };
            if let Err(e) = given {
                tracing::debug!("memory stays with the process: {e}");
            }
        }
    }
}

impl Cell {
    /// The cell's number in its arena.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.arena.cell_bytes
    }

    /// The cell's memory.
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.arena.base().wrapping_add(self.id as usize * self.arena.cell_bytes)
    }

    /// The cell's bytes, for the only holder of the cell.
    pub(crate) fn bytes_mut(self: &mut Arc<Cell>) -> Option<&mut [u8]> {
        self.bytes_from(0)
    }

    /// The same for who writes tokens from this one on, and leaves those before it as they are.
    pub(crate) fn bytes_from(self: &mut Arc<Cell>, token: usize) -> Option<&mut [u8]> {
        self.writes_from(token);
        let len = self.arena.cell_bytes;
        let cell = Arc::get_mut(self)?;
        // SAFETY: the cell lies inside the map (ids are below `cells`); no other handle exists, so
        // nobody else reads or writes it while `self` is borrowed.
        Some(unsafe { std::slice::from_raw_parts_mut(cell.ptr(), len) })
    }

    /// Tokens from this one on are written: who copied them has to copy them again.
    pub(crate) fn writes_from(&self, token: usize) {
        if let Some(copied) = self.arena.account(self.id) {
            copied.fetch_min(token as u32, Ordering::Relaxed);
        }
    }

    /// The checksum of the cell's bytes that was set last; 0 if none was.
    pub(crate) fn checksum(&self) -> u64 {
        self.checksum
    }

    /// Keeps a checksum of the cell's bytes with them, for the only holder of the cell; `None` if there
    /// are others.
    pub(crate) fn set_checksum(self: &mut Arc<Cell>, checksum: u64) -> Option<()> {
        Arc::get_mut(self)?.checksum = checksum;
        Some(())
    }

    /// The cell's bytes, for a holder who knows that nobody writes any more.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: inside the map; `bytes_mut` needs the sole handle, and so ends before others exist.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.arena.cell_bytes) }
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
        if self.arena.care.wipes && !bug!("not_wiped") {
            // SAFETY: inside the map, and this is the last handle.
            unsafe { std::ptr::write_bytes(self.ptr(), 0, self.arena.cell_bytes) }
        }
        self.arena.give(self.id);
        self.arena.budget.release(self.arena.cell_bytes as u64 + CELL_OVERHEAD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_come_in_runs_and_go_back() {
        let budget = Arc::new(Budget::new(100 * (4096 + CELL_OVERHEAD)));
        let arena = Arena::new(4096, usize::MAX, budget.clone(), Care::default()).unwrap();
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
        assert!(arena.take(10).unwrap().iter().map(|c| c.id()).eq(0..10));
        drop(b);
        assert_eq!((arena.used(), budget.used()), (0, 0));
    }

    #[test]
    fn a_handle_has_a_checksum_and_room_for_it() {
        assert_eq!(CELL_OVERHEAD, 49);
        let budget = Arc::new(Budget::new(4096 + CELL_OVERHEAD));
        let arena = Arena::new(4096, 1, budget, Care::default()).unwrap();
        let mut cell = arena.take(1).unwrap().pop().unwrap();
        assert_eq!((cell.checksum(), cell.set_checksum(7), cell.checksum()), (0, Some(()), 7));
        let held = cell.clone();
        assert_eq!((cell.set_checksum(8), held.checksum()), (None, 7));
        drop((cell, held));
        assert_eq!(arena.take(1).unwrap()[0].checksum(), 0);
    }

    #[test]
    fn memory_given_back_can_be_taken_again() {
        let cell = 3 * HUGE / 2;
        let budget = Arc::new(Budget::new(200 << 20));
        let arena = Arena::new(cell, 60, budget.clone(), Care::default()).unwrap();
        assert_eq!(arena.cells(), 60);
        let mut cells = arena.take(60).unwrap();
        for c in &mut cells {
            c.bytes_mut().unwrap().fill(7);
        }
        let kept = cells.pop().unwrap();
        drop(cells);
        // SAFETY: `kept` is in use, and was filled above.
        let bytes = unsafe { std::slice::from_raw_parts(kept.ptr(), cell) };
        assert!(bytes.iter().all(|&b| b == 7));
        let mut again = arena.take(59).unwrap();
        again.iter_mut().for_each(|c| c.bytes_mut().unwrap().fill(9));
        assert!(bytes.iter().all(|&b| b == 7));
        assert_eq!(budget.used(), 60 * (cell as u64 + CELL_OVERHEAD));
    }
}
