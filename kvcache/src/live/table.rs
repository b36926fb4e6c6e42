//! Where each sealed page is: one table under one lock, the only place where residency changes.

use std::collections::VecDeque;
use std::sync::Arc;

use kvist_policies::place::Clock;

use super::behind::Behind;
use super::below::{PageReads, Stored};
use crate::MissReason;
use crate::arena::Cell;

/// A stripe's place in the table; the generation tells it from earlier ones in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StripeId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// A page of a stripe that the holder of this key keeps alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PageKey {
    pub(super) slot: u32,
    pub(super) head: u32,
}

/// Where a page is.
#[derive(Debug)]
pub(super) enum Place {
    /// In host memory.
    Frame(Arc<Cell>),
    /// On its way into this frame, which nobody may look at yet.
    Filling(Arc<Cell>),
    /// Only below.
    Below,
    /// Nowhere: reading it back failed.
    Lost(MissReason),
}

/// Why a page comes back before it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ahead {
    /// It does not: somebody waits for it.
    #[default]
    Not,
    /// What was read before makes it likely.
    Guess,
    /// The caller said so.
    Hint,
}

#[derive(Debug)]
pub(super) struct Page {
    pub(super) place: Place,
    /// The number of its frame, so that a list for a kernel does not follow pointers.
    pub(super) frame: u32,
    /// Calls that read it now.
    pub(super) pins: u32,
    /// Why it came back, and was not used yet.
    pub(super) ahead: Ahead,
    pub(super) flight: u64,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) generation: u32,
    pub(super) live: bool,
    pub(super) layer: u32,
    pub(super) page: u32,
    pub(super) stored: Option<Arc<dyn Stored>>,
    /// Pages in host memory.
    pub(super) resident: u32,
    /// Users that keep all of its pages near.
    pub(super) pins: u32,
    pub(super) writing: bool,
    pub(super) queued: bool,
    pub(super) kept: bool,
}

/// Reads in flight. Whoever waits for one of its pages takes the reads and drives them.
pub(super) struct Flight {
    pub(super) id: u64,
    /// Absent while somebody drives them.
    pub(super) reads: Option<Box<dyn PageReads>>,
    /// What it fills, by the index of the read; none once that is over.
    pub(super) pages: Vec<Option<(StripeId, u32)>>,
    pub(super) left: usize,
    /// Whether nobody waits for them.
    pub(super) ahead: bool,
}

/// Totals and what is under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Resident pages of stored stripes: their frames can be had without writing.
    pub(super) clean: usize,
    pub(super) stored: u64,
    pub(super) writing: usize,
    pub(super) leases: usize,
    /// Pages in flight that nobody waits for.
    pub(super) ahead: usize,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) read: u64,
    pub(super) written: u64,
    pub(super) failed: u64,
    /// Pages sent for because somebody asked for them.
    pub(super) asked: u64,
    pub(super) prefetched: u64,
    pub(super) prefetch_used: u64,
    /// Those of them that the caller had hinted at.
    pub(super) hints_used: u64,
    pub(super) prefetch_wasted: u64,
}

pub(super) struct Table {
    pub(super) heads: usize,
    pub(super) stripes: Vec<State>,
    /// `[stripe][head]`.
    pub(super) pages: Vec<Page>,
    free: Vec<u32>,
    pub(super) clock: Clock,
    /// The page in each frame, if a sealed one is.
    owners: Vec<PageKey>,
    /// Stripes in the order in which they should be written.
    pub(super) unstored: VecDeque<StripeId>,
    pub(super) flights: Vec<Flight>,
    pub(super) flights_made: u64,
    /// Stripes to be brought back behind the scenes, in that order.
    pub(super) behind: Behind,
    /// The cache is gone; the demoting thread ends.
    pub(super) stopped: bool,
    pub(super) counts: Counts,
}

/// What a stripe leaves behind, to be dropped without the lock.
pub(super) struct Removed {
    cells: Vec<Arc<Cell>>,
    stored: Option<Arc<dyn Stored>>,
    flights: Vec<Flight>,
}

impl Table {
    /// Bytes of a stripe in the table, per head and besides.
    pub(super) const PAGE_BYTES: usize = size_of::<Page>() + size_of::<PageKey>() + 1;
    pub(super) const STRIPE_BYTES: usize = size_of::<State>() + size_of::<StripeId>();

    pub(super) fn new(heads: usize) -> Table {
        Table {
            heads,
            stripes: Vec::new(),
            pages: Vec::new(),
            free: Vec::new(),
            clock: Clock::default(),
            owners: Vec::new(),
            unstored: VecDeque::new(),
            flights: Vec::new(),
            flights_made: 0,
            behind: Behind::default(),
            stopped: false,
            counts: Counts::default(),
        }
    }

    pub(super) fn at(&self, key: PageKey) -> usize {
        key.slot as usize * self.heads + key.head as usize
    }

    pub(super) fn page(&mut self, key: PageKey) -> &mut Page {
        let at = self.at(key);
        &mut self.pages[at]
    }

    fn of(&self, slot: u32) -> std::ops::Range<usize> {
        slot as usize * self.heads..(slot as usize + 1) * self.heads
    }

    pub(super) fn insert(
        &mut self,
        (layer, page): (usize, usize),
        cells: Vec<Arc<Cell>>,
        kept: bool,
    ) -> StripeId {
        let id = self.place_stripe((layer, page), None, kept);
        for (head, cell) in cells.into_iter().enumerate() {
            self.reside(PageKey { slot: id.slot, head: head as u32 }, cell);
        }
        self.queue(id);
        id
    }

    /// A stripe that is below only.
    pub(super) fn insert_stored(
        &mut self,
        at: (usize, usize),
        stored: Arc<dyn Stored>,
        kept: bool,
    ) -> StripeId {
        self.counts.stored += self.heads as u64;
        self.place_stripe(at, Some(stored), kept)
    }

    fn place_stripe(
        &mut self,
        (layer, page): (usize, usize),
        stored: Option<Arc<dyn Stored>>,
        kept: bool,
    ) -> StripeId {
        let slot = self.free.pop().unwrap_or_else(|| self.new_slot());
        let state = &mut self.stripes[slot as usize];
        *state = State {
            live: true,
            layer: layer as u32,
            page: page as u32,
            queued: stored.is_none(),
            stored,
            resident: 0,
            pins: 0,
            writing: false,
            kept,
            ..*state
        };
        StripeId { slot, generation: state.generation }
    }

    /// Puts a stripe behind those that wait to be written.
    pub(super) fn queue(&mut self, id: StripeId) {
        // Stripes that were dropped unwritten leave their ids behind.
        if self.unstored.len() == self.unstored.capacity() {
            let mut queue = std::mem::take(&mut self.unstored);
            queue.retain(|&id| self.is_live(id) && self.stripes[id.slot as usize].queued);
            self.unstored = queue;
        }
        self.unstored.push_back(id);
    }

    fn new_slot(&mut self) -> u32 {
        let page = || Page { place: Place::Below, frame: 0, pins: 0, ahead: Ahead::Not, flight: 0 };
        self.pages.extend(std::iter::repeat_with(page).take(self.heads));
        self.stripes.push(State {
            generation: 0,
            live: false,
            layer: 0,
            page: 0,
            stored: None,
            resident: 0,
            pins: 0,
            writing: false,
            queued: false,
            kept: false,
        });
        self.stripes.len() as u32 - 1
    }

    /// A page is in host memory from now on.
    pub(super) fn reside(&mut self, key: PageKey, cell: Arc<Cell>) {
        let frame = cell.id();
        if self.owners.len() <= frame as usize {
            self.owners.resize(frame as usize + 1, key);
        }
        self.owners[frame as usize] = key;
        self.clock.fresh(frame as usize);
        let page = self.page(key);
        page.frame = frame;
        page.place = Place::Frame(cell);
        let state = &mut self.stripes[key.slot as usize];
        state.resident += 1;
        self.counts.clean += usize::from(state.stored.is_some());
    }

    /// Whether the stripe is still the one meant.
    pub(super) fn is_live(&self, id: StripeId) -> bool {
        let state = &self.stripes[id.slot as usize];
        state.live && state.generation == id.generation
    }

    pub(super) fn remove(&mut self, id: StripeId) -> Removed {
        let mut removed = Removed { cells: Vec::new(), stored: None, flights: Vec::new() };
        for at in self.of(id.slot) {
            let page = &mut self.pages[at];
            debug_assert_eq!(page.pins, 0, "a page is read while its sequence lives");
            match std::mem::replace(&mut page.place, Place::Below) {
                Place::Frame(cell) => removed.cells.push(cell),
                Place::Filling(cell) => {
                    removed.cells.push(cell);
                    let (flight, head) = (page.flight, (at % self.heads) as u32);
                    removed.flights.extend(self.abandon(flight, (id, head)));
                }
                Place::Below | Place::Lost(_) => {}
            }
            let page = &mut self.pages[at];
            let ahead = std::mem::take(&mut page.ahead);
            self.counts.prefetch_wasted += u64::from(ahead != Ahead::Not);
        }
        let state = &mut self.stripes[id.slot as usize];
        if state.stored.is_some() {
            self.counts.clean -= state.resident as usize;
            self.counts.stored -= self.heads as u64;
        }
        removed.stored = state.stored.take();
        state.live = false;
        state.generation = state.generation.wrapping_add(1);
        self.free.push(id.slot);
        removed
    }

    /// Nobody wants this read any more; the flight goes when that holds for all of it.
    fn abandon(&mut self, flight: u64, page: (StripeId, u32)) -> Option<Flight> {
        let at = self.flights.iter().position(|f| f.id == flight)?;
        let f = &mut self.flights[at];
        let index = f.pages.iter().position(|p| *p == Some(page))?;
        f.pages[index] = None;
        f.left -= 1;
        self.counts.ahead -= usize::from(f.ahead);
        // Somebody drives it: they will see that nothing is left.
        (f.left == 0 && f.reads.is_some()).then(|| self.flights.swap_remove(at))
    }

    pub(super) fn keep(&mut self, slot: u32, kept: bool) {
        self.stripes[slot as usize].kept = kept;
    }

    pub(super) fn unpin_stripe(&mut self, slot: u32) {
        self.stripes[slot as usize].pins -= 1;
    }

    /// Pages of a stripe in host memory, and whether it is stored.
    pub(super) fn place(&self, slot: u32) -> (usize, bool) {
        let state = &self.stripes[slot as usize];
        (state.resident as usize, state.stored.is_some())
    }

    /// Takes up to `n` frames from pages that can be had again from below and that nobody reads.
    pub(super) fn evict(&mut self, n: usize) -> Vec<Arc<Cell>> {
        let mut cells = Vec::new();
        // What is always read goes only when nothing else is left.
        for kept in [false, true] {
            let n = n - cells.len();
            if n == 0 || self.counts.clean == 0 {
                break;
            }
            let mut clock = std::mem::take(&mut self.clock);
            let victims = clock.victims(n, |frame| self.may_leave(frame, kept));
            self.clock = clock;
            cells.extend(
                victims.into_iter().filter_map(|frame| self.drop_frame(self.owners[frame])),
            );
        }
        cells
    }

    fn may_leave(&self, frame: usize, kept: bool) -> bool {
        let Some(&key) = self.owners.get(frame) else { return false };
        self.pages[self.at(key)].frame as usize == frame && self.leaves(key, kept)
    }

    fn leaves(&self, key: PageKey, kept: bool) -> bool {
        let (state, page) = (&self.stripes[key.slot as usize], &self.pages[self.at(key)]);
        let free = state.live && state.stored.is_some() && state.pins == 0 && page.pins == 0;
        // Another holder (an open page of a fork, a write) keeps the memory anyway.
        let alone = || matches!(&page.place, Place::Frame(cell) if Arc::strong_count(cell) == 1);
        free && (kept || !state.kept) && alone()
    }

    /// Takes the frame of a stored page that may leave.
    pub(super) fn drop_frame(&mut self, key: PageKey) -> Option<Arc<Cell>> {
        let page = self.page(key);
        let wasted = u64::from(std::mem::take(&mut page.ahead) != Ahead::Not);
        let Place::Frame(cell) = std::mem::replace(&mut page.place, Place::Below) else {
            return None;
        };
        self.counts.prefetch_wasted += wasted;
        self.counts.clean -= 1;
        self.stripes[key.slot as usize].resident -= 1;
        Some(cell)
    }

    /// Takes the frame of a page if it may leave.
    pub(super) fn drop_unused(&mut self, key: PageKey) -> Option<Arc<Cell>> {
        if self.leaves(key, false) { self.drop_frame(key) } else { None }
    }

    /// Drops the frames of a stripe's pages that may leave; the cells are for the caller to drop.
    pub(super) fn drop_stripe(&mut self, slot: u32) -> Vec<Arc<Cell>> {
        let keys = (0..self.heads as u32).map(|head| PageKey { slot, head });
        let keys: Vec<PageKey> = keys.filter(|&k| self.leaves(k, true)).collect();
        keys.into_iter().filter_map(|k| self.drop_frame(k)).collect()
    }
}
