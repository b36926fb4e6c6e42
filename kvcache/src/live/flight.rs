//! Reads in flight: who starts them, who drives them, and what becomes of their pages.
//!
//! Whoever needs a page in flight takes the reads it is part of and drives them; others wait for the
//! table to change. No lock is held meanwhile, nothing is read twice, and a read that fails is marked
//! in the same step that ends it.

use std::sync::Arc;
use std::time::Duration;

use super::below::{PageIn, PageNext, PageReads};
use super::table::{Ahead, Flight, PageKey, Place, StripeId, Table};
use super::tier::Inner;
use crate::MissReason;
use crate::arena::Cell;
use crate::vfs::Buf;

/// A flight, and what to read for it.
pub(super) type Reads = (u64, Vec<PageIn>);

impl Table {
    /// Turns pages that are only below into pages in flight, as far as `cells` go; the reads to start.
    pub(super) fn fill(
        &mut self,
        keys: &[PageKey],
        cells: &mut Vec<Arc<Cell>>,
        ahead: Ahead,
    ) -> Reads {
        let id = self.flights_made;
        let (mut pages, mut reads) = (Vec::new(), Vec::new());
        for &key in keys {
            let at = self.at(key);
            if !matches!(self.pages[at].place, Place::Below) {
                continue;
            }
            let state = &self.stripes[key.slot as usize];
            let Some(stripe) = state.stored.clone() else { continue };
            let owner = StripeId { slot: key.slot, generation: state.generation };
            let Some(cell) = cells.pop() else { break };
            cell.writes_from(0);
            // SAFETY: the whole cell, kept by the owner. It is defined memory, and nobody else looks
            // at it while its page is `Filling`: until the read is over and its buffer is gone.
            let into = unsafe { Buf::from_raw(cell.ptr(), cell.len(), Box::new(cell.clone())) };
            reads.push(PageIn { stripe, head: key.head as usize, into });
            pages.push(Some((owner, key.head)));
            let page = &mut self.pages[at];
            (page.place, page.flight, page.ahead) = (Place::Filling(cell), id, ahead);
        }
        if !reads.is_empty() {
            self.flights_made += 1;
            let left = reads.len();
            let (flying, sent) = match ahead {
                Ahead::Guess | Ahead::Hint => (left, &mut self.counts.prefetched),
                Ahead::Not => (0, &mut self.counts.asked),
            };
            *sent += left as u64;
            self.counts.ahead += flying;
            self.flights.push(Flight { id, reads: None, pages, left, ahead: flying > 0 });
        }
        (id, reads)
    }

    fn flight(&mut self, id: u64) -> Option<&mut Flight> {
        self.flights.iter_mut().find(|f| f.id == id)
    }

    /// A read of a flight is over.
    fn landed(&mut self, id: u64, index: usize, result: Result<(), MissReason>) {
        let Some(flight) = self.flight(id) else { return };
        let Some((stripe, head)) = flight.pages.get_mut(index).and_then(Option::take) else {
            return;
        };
        flight.left -= 1;
        let ahead = flight.ahead;
        self.counts.ahead -= usize::from(ahead);
        let key = PageKey { slot: stripe.slot, head };
        let page = self.page(key);
        let Place::Filling(cell) = std::mem::replace(&mut page.place, Place::Below) else {
            unreachable!("a page in flight stays so until its read is over")
        };
        match result {
            Ok(()) => {
                self.counts.read += cell.len() as u64;
                self.reside(key, cell);
            }
            Err(reason) => {
                page.ahead = Ahead::Not;
                // A page that was late may be in time when asked for again; all else is for good.
                if reason != MissReason::Timeout {
                    page.place = Place::Lost(reason);
                }
                self.counts.failed += 1;
            }
        }
    }

    /// The pages of a flight that are still out.
    fn give_up(&mut self, id: u64, reason: MissReason) {
        let count = self.flight(id).map_or(0, |f| f.pages.len());
        (0..count).for_each(|index| self.landed(id, index, Err(reason)));
    }
}

/// Reads of a flight, taken to be driven. Dropping it puts them back, or ends the flight.
pub(super) struct Driver<'a> {
    inner: &'a Inner,
    id: u64,
    reads: Option<Box<dyn PageReads>>,
}

impl Driver<'_> {
    /// Waits for one read, or looks for one; false if there is nothing more to wait for now.
    pub(super) fn step(&mut self, deadline: Duration, give_up: bool) -> bool {
        let Some(reads) = &mut self.reads else { return false };
        let next = reads.next(Some(deadline));
        let failed = match &next {
            PageNext::Done { result, .. } => result.err(),
            PageNext::TimedOut => give_up.then_some(MissReason::Timeout),
            PageNext::Empty => None,
        };
        if let Some(reason) = failed {
            metrics::counter!("kvist_pages_failed", "reason" => reason.name()).increment(1);
        }
        let mut table = self.inner.lock();
        let more = match next {
            PageNext::Done { index, result, buf } => {
                // The frame is the table's alone from here on.
                drop(buf);
                table.landed(self.id, index, result);
                true
            }
            PageNext::TimedOut => {
                if give_up {
                    table.give_up(self.id, MissReason::Timeout);
                }
                false
            }
            PageNext::Empty => {
                table.give_up(self.id, MissReason::Gone);
                false
            }
        };
        let left = table.flight(self.id).map_or(0, |f| f.left);
        drop(table);
        self.inner.changed.notify_all();
        more && left > 0
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        let mut table = self.inner.lock();
        if std::thread::panicking() {
            table.give_up(self.id, MissReason::Gone);
        }
        match table.flights.iter().position(|f| f.id == self.id) {
            Some(at) if table.flights[at].left == 0 => {
                table.flights.swap_remove(at);
            }
            Some(at) => table.flights[at].reads = self.reads.take(),
            None => {}
        }
        drop(table);
        self.inner.changed.notify_all();
    }
}

impl Inner {
    pub(super) fn driver(&self, table: &mut Table, id: u64) -> Option<Driver<'_>> {
        let reads = table.flight(id)?.reads.take()?;
        Some(Driver { inner: self, id, reads: Some(reads) })
    }

    /// Waits for one read of a flight, if nobody else does.
    pub(super) fn drive(&self, id: u64, deadline: Duration) {
        let driver = self.driver(&mut self.lock(), id);
        if let Some(mut driver) = driver {
            driver.step(deadline, true);
        }
    }

    /// Hands reads to the tier below; the flight is in the table already.
    pub(super) fn launch(&self, (id, reads): Reads) {
        if reads.is_empty() {
            return;
        }
        let bytes: u64 = reads.iter().map(|r| r.into.len() as u64).sum();
        // A driver puts them into the table, or away if nobody wants them any more.
        let mut driver = Driver { inner: self, id, reads: None };
        driver.reads = Some(self.below.read(reads));
        drop(driver);
        metrics::counter!("kvist_below_read_bytes").increment(bytes);
    }
}
