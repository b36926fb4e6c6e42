//! Bringing pages back behind the scenes: into frames that are free, a small part at a time, so that
//! whoever needs a page now waits for one such part at most.

use std::sync::Arc;

use super::stripe::Stripe;
use super::table::{Ahead, PageKey, Place, Table};
use super::tier::{Inner, Tier};

/// Bytes of pages that are read at a time.
const PART: usize = 4 << 20;
/// This share of the budget stays free for what is appended.
const SPARE_SHARE: u64 = 8;

impl Table {
    /// Takes the next pages to be brought back, about `most`.
    fn next_behind(&mut self, most: usize) -> Vec<PageKey> {
        let mut keys = Vec::new();
        while keys.len() < most
            && let Some(id) = self.behind.pop_front()
        {
            // Nobody wants those that are gone.
            if self.is_live(id) {
                let of_stripe = (0..self.heads as u32).map(|head| PageKey { slot: id.slot, head });
                let below = |key: &PageKey| matches!(self.pages[self.at(*key)].place, Place::Below);
                keys.extend(of_stripe.filter(below));
            }
        }
        keys
    }
}

impl Inner {
    /// Starts to bring the next pages back; the flight, if there is one. Without free frames none is,
    /// and the rest is given up.
    pub(super) fn start_behind(&self) -> Option<u64> {
        let limit = self.budget.limit();
        let free = limit.saturating_sub(self.budget.used()).saturating_sub(limit / SPARE_SHARE);
        let frames = (free as usize / self.arena.cell_bytes()).min(PART / self.arena.cell_bytes());
        let mut table = self.lock();
        let keys = table.next_behind(frames.max(1));
        let mut cells = self.arena.take_some(if frames == 0 { 0 } else { keys.len() });
        if cells.len() < keys.len() {
            table.behind.clear();
        }
        let reads = table.fill(&keys, &mut cells, Ahead::Not);
        drop(table);
        drop(cells);
        let id = (!reads.1.is_empty()).then_some(reads.0);
        self.launch(reads);
        id
    }

    /// Waits until a flight is over, as far as nobody else does.
    pub(super) fn land(&self, id: u64) {
        let deadline = self.below.now() + self.options.deadline;
        let driver = self.driver(&mut self.lock(), id);
        if let Some(mut driver) = driver {
            while driver.step(deadline, true) {}
        }
    }
}

impl Tier {
    /// Brings stripes back in their order, behind the scenes; how many pages that may be.
    pub(crate) fn restore_behind(&self, stripes: &[Arc<Stripe>]) -> usize {
        let mut table = self.inner.lock();
        let far = |s: &&Arc<Stripe>| table.place(s.id().slot).0 < table.heads;
        let ids: Vec<_> = stripes.iter().filter(far).map(|s| s.id()).collect();
        let near: usize = ids.iter().map(|id| table.place(id.slot).0).sum();
        let pages = ids.len() * table.heads - near;
        table.behind.extend(ids);
        drop(table);
        self.inner.work.notify_one();
        pages
    }

    /// Starts the next part if the last one is there: what the thread does, for caches without one.
    pub(super) fn catch_up_behind(&self) {
        let mut table = self.inner.lock();
        let busy = table.behind_flight.is_some_and(|id| table.flights.iter().any(|f| f.id == id));
        if table.behind.is_empty() || busy {
            return;
        }
        table.behind_flight = None;
        drop(table);
        let flight = self.inner.start_behind();
        self.inner.lock().behind_flight = flight;
    }
}
