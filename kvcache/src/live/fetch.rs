//! Bringing pages back: leases on what is near, reads of what is not, and waiting for them.

use std::sync::Arc;
use std::time::Duration;

use super::demote::LOOK;
use super::table::{Ahead, PageKey, Place, Table};
use super::tier::{Inner, Tier};
use crate::MissReason;
use crate::arena::Cell;

/// Frames are short when less than this share of the budget is free.
const FREE_SHARE: u64 = 16;

/// Pages in flight on hints at most, as a share of the frames there could be.
const HINTS_SHARE: usize = 4;

/// A page that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) layer: usize,
    pub(crate) page: usize,
    pub(crate) reason: MissReason,
}

impl From<Lost> for crate::Error {
    fn from(lost: Lost) -> crate::Error {
        let Lost { layer, page, reason } = lost;
        crate::Error::Missing { layer, page, reason }
    }
}

/// Pages pinned for a call. Dropping it lets them go. The stripes must outlive it.
pub(crate) struct Lease<'a> {
    inner: &'a Inner,
    keys: Vec<PageKey>,
}

impl Lease<'_> {
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut table = self.inner.lock();
        self.keys.iter().for_each(|&key| table.page(key).pins -= 1);
        table.counts.leases -= 1;
        drop(table);
        self.inner.changed.notify_all();
    }
}

impl Table {
    fn lost(&self, key: PageKey, reason: MissReason) -> Lost {
        let state = &self.stripes[key.slot as usize];
        Lost { layer: state.layer as usize, page: state.page as usize, reason }
    }

    fn find_lost(&self, keys: &[PageKey]) -> Result<(), Lost> {
        let lost = |&key: &PageKey| match self.pages[self.at(key)].place {
            Place::Lost(reason) => Some(self.lost(key, reason)),
            _ => None,
        };
        keys.iter().find_map(lost).map_or(Ok(()), Err)
    }

    fn pin(&mut self, key: PageKey) {
        let frame = {
            let page = self.page(key);
            page.pins += 1;
            matches!(page.place, Place::Frame(_)).then_some(page.frame)
        };
        if let Some(frame) = frame {
            self.clock.used(frame as usize);
        }
        let page = self.page(key);
        let ahead = std::mem::take(&mut page.ahead);
        self.counts.prefetch_used += u64::from(ahead != Ahead::Not);
        self.counts.hints_used += u64::from(ahead == Ahead::Hint);
    }
}

impl Tier {
    /// Takes in what arrived since nobody looked.
    pub(crate) fn poll(&self) {
        let ids: Vec<u64> = self.inner.lock().flights.iter().map(|f| f.id).collect();
        for id in ids {
            let driver = self.inner.driver(&mut self.inner.lock(), id);
            if let Some(mut driver) = driver {
                while driver.step(Duration::ZERO, false) {}
            }
        }
    }

    /// Pins those pages that are near; frame numbers by page, none for the others.
    pub(crate) fn lease(&self, keys: &[PageKey]) -> Result<(Lease<'_>, Vec<Option<u32>>), Lost> {
        let mut table = self.inner.lock();
        table.find_lost(keys)?;
        let mut pinned = Vec::with_capacity(keys.len());
        let mut look = |&key: &PageKey| {
            let page = &table.pages[table.at(key)];
            let frame = matches!(page.place, Place::Frame(_)).then_some(page.frame)?;
            table.pin(key);
            pinned.push(key);
            Some(frame)
        };
        let frames: Vec<Option<u32>> = keys.iter().map(&mut look).collect();
        let (hits, misses) = (pinned.len() as u64, (keys.len() - pinned.len()) as u64);
        table.counts.leases += 1;
        table.counts.hits += hits;
        table.counts.misses += misses;
        drop(table);
        metrics::counter!("kvist_page_hits").increment(hits);
        metrics::counter!("kvist_page_misses").increment(misses);
        Ok((Lease { inner: &self.inner, keys: pinned }, frames))
    }

    /// Starts bringing the first of these pages near, as many as frames can be had for without
    /// waiting (with `all`: every one or none), and pins them; the lease says how many.
    pub(crate) fn start(&self, keys: &[PageKey], all: bool) -> Result<Lease<'_>, Lost> {
        let inner = &*self.inner;
        let mut table = inner.lock();
        table.find_lost(keys)?;
        // Pinned before frames are sought, so that none of these must leave for another.
        keys.iter().for_each(|&key| table.page(key).pins += 1);
        let below = |key: &&PageKey| matches!(table.pages[table.at(**key)].place, Place::Below);
        let wanted = keys.iter().filter(below).count();
        let mut cells = self.frames(&mut table, wanted);
        let enough = !all || cells.len() == wanted;
        let reads = table.fill(if enough { keys } else { &[] }, &mut cells, Ahead::Not);
        let below = |key: &PageKey| matches!(table.pages[table.at(*key)].place, Place::Below);
        let first = keys.iter().position(below).unwrap_or(keys.len());
        let n = if enough { first } else { 0 };
        keys.iter().for_each(|&key| table.page(key).pins -= 1);
        keys[..n].iter().for_each(|&key| table.pin(key));
        table.counts.leases += 1;
        drop(table);
        drop(cells);
        let lease = Lease { inner, keys: keys[..n].to_vec() };
        self.inner.launch(reads);
        Ok(lease)
    }

    /// Up to `n` frames, free ones first.
    fn frames(&self, table: &mut Table, n: usize) -> Vec<Arc<Cell>> {
        let mut cells = self.inner.arena.take_some(n);
        let more = n - cells.len();
        cells.extend(table.evict(more));
        cells
    }

    /// When a call that starts now must have ended.
    pub(crate) fn deadline(&self) -> Duration {
        self.inner.below.now() + self.inner.options.deadline
    }

    /// Waits until these pages, which the caller has pinned and started, are there; their frames.
    pub(crate) fn wait(&self, keys: &[PageKey], deadline: Duration) -> Result<Vec<u32>, Lost> {
        let mut table = self.inner.lock();
        loop {
            let filling =
                |key: &&PageKey| matches!(table.pages[table.at(**key)].place, Place::Filling(_));
            let Some(&key) = keys.iter().find(filling) else { break };
            let id = table.pages[table.at(key)].flight;
            match self.inner.driver(&mut table, id) {
                Some(mut driver) => {
                    drop(table);
                    let mut seen = 0;
                    while driver.step(deadline, true) && !self.arrived(keys, &mut seen) {}
                    drop(driver);
                    table = self.inner.lock();
                }
                None if self.inner.below.now() >= deadline => {
                    return Err(table.lost(key, MissReason::Timeout));
                }
                None => {
                    self.inner.changed.wait_for(&mut table, LOOK);
                }
            }
        }
        table.find_lost(keys)?;
        let frame = |&key: &PageKey| match &table.pages[table.at(key)] {
            page if matches!(page.place, Place::Frame(_)) => Ok(page.frame),
            _ => Err(table.lost(key, MissReason::Timeout)),
        };
        keys.iter().map(frame).collect()
    }

    /// Whether none of the pages is in flight; `seen` of them were not before.
    fn arrived(&self, keys: &[PageKey], seen: &mut usize) -> bool {
        let table = self.inner.lock();
        let filling =
            |&key: &PageKey| matches!(table.pages[table.at(key)].place, Place::Filling(_));
        *seen += keys[*seen..].iter().take_while(|key| !filling(key)).count();
        *seen == keys.len()
    }

    /// Whether some of these pages can never be had again.
    pub(super) fn any_lost(&self, keys: &[PageKey]) -> bool {
        self.inner.lock().find_lost(keys).is_err()
    }

    /// Whether pages are near or on their way (or gone for good), by key.
    pub(crate) fn near(&self, keys: &[PageKey]) -> Vec<bool> {
        let table = self.inner.lock();
        keys.iter().map(|&key| !matches!(table.pages[table.at(key)].place, Place::Below)).collect()
    }

    /// Plans with the table at hand: `plan` gets whether a page is near, or on its way, or lost.
    pub(crate) fn with_near<R>(
        &self,
        plan: impl FnOnce(&mut dyn FnMut(PageKey) -> bool) -> R,
    ) -> R {
        let table = self.inner.lock();
        plan(&mut |key| !matches!(table.pages[table.at(key)].place, Place::Below))
    }

    /// How many pages may be sent for ahead now, and how many of them may be mere guesses.
    pub(crate) fn ahead(&self) -> (usize, usize) {
        let counts = self.inner.lock().counts;
        let mut account = self.inner.account.lock();
        account.learn(counts.asked, counts.prefetch_used - counts.hints_used);
        let room = self.inner.ahead_most().saturating_sub(counts.ahead);
        (room.min(account.pages()), account.guesses())
    }

    /// Pages of a pass over a whole sequence were used: where frames are short, they make room for the
    /// next instead of driving out others that stay longer.
    pub(crate) fn pass(&self, keys: &[PageKey]) {
        let inner = &self.inner;
        let free = inner.budget.limit().saturating_sub(inner.budget.used());
        if free > inner.budget.limit() / FREE_SHARE {
            return;
        }
        let mut table = inner.lock();
        let cells: Vec<_> = keys.iter().filter_map(|&key| table.drop_unused(key)).collect();
        drop(table);
        drop(cells);
    }

    /// Sends for pages that will probably be wanted, as [`Tier::ahead`] allows.
    pub(crate) fn prefetch(&self, keys: &[PageKey]) {
        let sent = self.send(keys, Ahead::Guess);
        self.inner.account.lock().send(sent);
    }

    /// How many pages may be sent for on hints now.
    pub(crate) fn hints(&self) -> usize {
        let most = (self.inner.arena.cells() / HINTS_SHARE).max(1);
        most.saturating_sub(self.inner.lock().counts.ahead)
    }

    /// Sends for pages that the caller says will be wanted; how many. They cost and earn nothing of what
    /// guesses may cost.
    pub(crate) fn hint(&self, keys: &[PageKey]) -> usize {
        self.send(keys, Ahead::Hint)
    }

    /// Sends for pages that nobody waits for.
    fn send(&self, keys: &[PageKey], why: Ahead) -> usize {
        let mut table = self.inner.lock();
        let mut cells = self.frames(&mut table, keys.len());
        let reads = table.fill(keys, &mut cells, why);
        drop(table);
        drop(cells);
        let sent = reads.1.len();
        metrics::counter!("kvist_prefetched").increment(sent as u64);
        self.inner.launch(reads);
        sent
    }
}
