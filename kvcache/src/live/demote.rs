//! Demotion: writing sealed pages below, and taking frames from those that are written. Its thread also
//! brings pages back behind the scenes while there is nothing to write.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kvist_policies::place;

use super::below::{Held, StripeOut};
use super::stripe::Stripe;
use super::table::{PageKey, Place, StripeId, Table};
use super::tier::{Inner, Tier};
use crate::arena::CELL_OVERHEAD;
use crate::{Error, MissReason};

/// Bytes written in one go: enough to stream, few enough to be waited for.
const BATCH_BYTES: usize = 8 << 20;
/// How long the demoting thread rests after a write that failed.
const REST: Duration = Duration::from_millis(200);
/// A tier whose frames hold less than this share of the budget may take others from its neighbour.
const CLAIM_SHARE: u64 = 2;
/// Waiting for what other threads do is checked against the deadline this often.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// What a round of writing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrote {
    /// That many stripes are stored now.
    Stripes(usize),
    /// There was nothing to write.
    Nothing,
    /// Nothing could be written.
    Failed(MissReason),
}

/// Starts the thread that writes ahead.
pub(super) fn spawn(inner: Arc<Inner>) -> Result<JoinHandle<()>, Error> {
    let refused = |e: std::io::Error| Error::System {
        what: "starting the demoting thread",
        reason: e.to_string(),
    };
    let run = move || {
        // What is on its way while the part before it lands.
        let mut ahead = None;
        loop {
            let mut table = inner.lock();
            let busy = |t: &Table| inner.lags(t) || !t.behind.is_empty() || ahead.is_some();
            while !table.stopped && !busy(&table) {
                inner.work.wait(&mut table);
            }
            if table.stopped {
                return;
            }
            let lags = inner.lags(&table);
            drop(table);
            if !lags {
                let next = inner.start_behind();
                if let Some(part) = std::mem::replace(&mut ahead, next) {
                    inner.land(part);
                }
                continue;
            }
            if let Wrote::Failed(reason) = inner.write_some() {
                tracing::warn!("pages could not be stored below: {reason}");
                let mut table = inner.lock();
                if !table.stopped {
                    inner.work.wait_for(&mut table, REST);
                }
            }
        }
    };
    std::thread::Builder::new().name("kvist-demote".into()).spawn(run).map_err(refused)
}

impl Inner {
    /// Whether pages should be written now.
    fn lags(&self, table: &Table) -> bool {
        let limit = self.budget.limit();
        let free = limit.saturating_sub(self.budget.used());
        !table.unstored.is_empty() && place::write_ahead(free, limit)
    }

    /// Writes the stripes that wait longest.
    pub(super) fn write_some(&self) -> Wrote {
        let mut table = self.lock();
        let mut ids = Vec::new();
        let most = (BATCH_BYTES / (self.arena.cell_bytes() * table.heads)).max(1);
        while ids.len() < most
            && let Some(id) = table.unstored.pop_front()
        {
            // A stripe that was dropped leaves its id behind.
            if table.unqueue(id) {
                ids.push(id);
            }
        }
        self.write(table, &ids)
    }

    /// Writes these stripes, which were queued.
    pub(super) fn write(
        &self,
        mut table: parking_lot::MutexGuard<'_, Table>,
        ids: &[StripeId],
    ) -> Wrote {
        if ids.is_empty() {
            return Wrote::Nothing;
        }
        let stripes: Vec<StripeOut> = ids.iter().map(|&id| table.write_out(id)).collect();
        table.counts.writing += 1;
        drop(table);
        // A panic below must not leave anybody waiting for these stripes.
        let write = std::panic::AssertUnwindSafe(|| self.below.write(&stripes));
        let results = std::panic::catch_unwind(write).unwrap_or_default();
        let results = results.into_iter().chain(std::iter::repeat_with(|| Err(MissReason::Io)));
        drop(stripes);
        let mut table = self.lock();
        table.counts.writing -= 1;
        let (mut done, mut failed) = (0, MissReason::Io);
        let mut unwanted = Vec::new();
        for (&id, result) in ids.iter().zip(results) {
            match result {
                Ok(stored) if table.is_live(id) => {
                    table.stored(id, stored);
                    done += 1;
                }
                // Forgotten without the lock.
                Ok(stored) => unwanted.push(stored),
                Err(reason) => {
                    failed = reason;
                    table.write_failed(id);
                }
            }
        }
        let bytes = (done * table.heads * self.arena.cell_bytes()) as u64;
        table.counts.written += bytes;
        drop(table);
        self.changed.notify_all();
        metrics::counter!("kvist_below_written_bytes").increment(bytes);
        match done + unwanted.len() {
            0 => Wrote::Failed(failed),
            n => Wrote::Stripes(n),
        }
    }
}

impl Inner {
    /// Frees at least `bytes` of frames where that is possible without waiting for anybody; whether any
    /// were.
    fn give(&self, bytes: u64) -> bool {
        let frames = (bytes.div_ceil(self.arena.cell_bytes() as u64) as usize).max(1);
        let mut freed = 0;
        loop {
            let cells = self.lock().evict(frames - freed);
            freed += cells.len();
            drop(cells);
            if freed >= frames {
                return true;
            }
            let Wrote::Stripes(_) = self.write_some() else { return freed > 0 };
        }
    }
}

impl Table {
    /// Takes a stripe out of the queue; false if it is not in it. Its id may be there several times.
    fn unqueue(&mut self, id: StripeId) -> bool {
        self.is_live(id) && std::mem::take(&mut self.stripes[id.slot as usize].queued)
    }

    fn write_out(&mut self, id: StripeId) -> StripeOut {
        let state = &mut self.stripes[id.slot as usize];
        state.writing = true;
        let (layer, page) = (state.layer as usize, state.page as usize);
        let held = |head: usize| match &self.pages[id.slot as usize * self.heads + head].place {
            Place::Frame(cell) => Held::new(cell.clone()),
            other => unreachable!("a page leaves only once it is stored, found {other:?}"),
        };
        StripeOut { layer, page, pages: (0..self.heads).map(held).collect() }
    }

    fn stored(&mut self, id: StripeId, stored: Arc<dyn super::below::Stored>) {
        let state = &mut self.stripes[id.slot as usize];
        state.writing = false;
        state.stored = Some(stored);
        self.counts.clean += state.resident as usize;
        self.counts.stored += self.heads as u64;
    }

    fn write_failed(&mut self, id: StripeId) {
        if self.is_live(id) {
            let state = &mut self.stripes[id.slot as usize];
            (state.queued, state.writing) = (true, false);
            self.queue(id);
        }
    }
}

impl Tier {
    /// Frees at least `bytes` of frames where that is possible, of the other tier's pages where this one
    /// has none to give; whether any were. With `wait`, also waits for what other calls hold. The caller
    /// must hold no lease then.
    pub(crate) fn make_room(&self, bytes: u64, wait: bool) -> bool {
        let inner = &self.inner;
        let deadline = inner.below.now() + inner.options.deadline;
        loop {
            if inner.give(bytes) || inner.other().is_some_and(|other| other.give(bytes)) {
                return true;
            }
            if !wait || !self.wait_for_others(deadline) {
                return false;
            }
        }
    }

    /// Makes room for so many pages, as far as it is missing, at the cost of the other tier's while this
    /// one holds less than its share of the budget.
    pub(crate) fn claim(&self, pages: usize) {
        let inner = &self.inner;
        let limit = inner.budget.limit();
        let bytes = |frames: usize| self.bytes_of(frames) + frames as u64 * CELL_OVERHEAD;
        let missing = bytes(pages).saturating_sub(limit.saturating_sub(inner.budget.used()));
        let held = bytes(inner.arena.used());
        let most = (limit / CLAIM_SHARE).saturating_sub(held);
        if let Some(other) = inner.other().filter(|_| missing.min(most) > 0) {
            other.give(missing.min(most));
        }
    }

    /// Waits until another call, write or read may have left something; false if none is under way.
    fn wait_for_others(&self, deadline: Duration) -> bool {
        let inner = &self.inner;
        let mut table = inner.lock();
        let busy = table.counts.writing + table.counts.leases > 0;
        if let Some(id) = table.flights.iter().find(|f| f.reads.is_some()).map(|f| f.id) {
            drop(table);
            inner.drive(id, deadline);
            return inner.below.now() < deadline;
        }
        if !busy && table.flights.is_empty() {
            // Only pins of users are left, and what cannot be written.
            return false;
        }
        inner.changed.wait_for(&mut table, LOOK);
        inner.below.now() < deadline
    }

    /// Writes one batch if it is time to: what the demoting thread does, for caches without one.
    pub(crate) fn catch_up(&self) -> bool {
        if self.has_thread() {
            return false;
        }
        let lags = self.inner.lags(&self.inner.lock());
        if !lags {
            self.catch_up_behind();
        }
        lags && matches!(self.inner.write_some(), Wrote::Stripes(_))
    }

    /// Stores these stripes and drops their frames; returns how many pages left.
    pub(crate) fn demote(&self, stripes: &[Arc<Stripe>]) -> Result<usize, Error> {
        let inner = &self.inner;
        let batch = (BATCH_BYTES / (inner.arena.cell_bytes() * inner.lock().heads)).max(1);
        let (mut pages, mut failed) = (0, None);
        for stripes in stripes.chunks(batch) {
            let mut table = inner.lock();
            let ids =
                stripes.iter().map(|s| s.id()).filter(|&id| table.unqueue(id)).collect::<Vec<_>>();
            if let Wrote::Failed(reason) = inner.write(table, &ids) {
                failed = Some(reason);
            }
            self.await_writes(stripes);
            let mut table = inner.lock();
            let cells: Vec<_> =
                stripes.iter().flat_map(|s| table.drop_stripe(s.id().slot)).collect();
            drop(table);
            pages += cells.len();
        }
        inner.changed.notify_all();
        failed.map_or(Ok(pages), |reason| Err(Error::Demote { pages, reason }))
    }

    /// Stores those of these stripes that are not; they stay in memory.
    pub(crate) fn store(&self, stripes: &[Arc<Stripe>]) -> Result<(), MissReason> {
        let inner = &self.inner;
        let batch = (BATCH_BYTES / (inner.arena.cell_bytes() * inner.lock().heads)).max(1);
        let missing: Vec<_> = stripes.iter().filter(|s| s.stored().is_none()).cloned().collect();
        for stripes in missing.chunks(batch) {
            let mut table = inner.lock();
            let ids =
                stripes.iter().map(|s| s.id()).filter(|&id| table.unqueue(id)).collect::<Vec<_>>();
            let wrote = inner.write(table, &ids);
            self.await_writes(stripes);
            if stripes.iter().any(|s| s.stored().is_none()) {
                return Err(if let Wrote::Failed(reason) = wrote {
                    reason
                } else {
                    MissReason::Io
                });
            }
        }
        Ok(())
    }

    /// Waits for writes of these stripes that another thread started.
    fn await_writes(&self, stripes: &[Arc<Stripe>]) {
        let mut table = self.inner.lock();
        while stripes.iter().any(|s| table.stripes[s.id().slot as usize].writing) {
            self.inner.changed.wait(&mut table);
        }
    }

    /// Keeps the pages of stripes near from now on, until they are unpinned.
    pub(super) fn pin_stripe(&self, stripe: &Stripe) {
        self.inner.lock().stripes[stripe.id().slot as usize].pins += 1;
    }

    /// All pages of a stripe.
    pub(crate) fn keys(&self, stripe: &Stripe) -> Vec<PageKey> {
        let heads = self.inner.lock().heads;
        (0..heads).map(|head| stripe.page(head)).collect()
    }
}
