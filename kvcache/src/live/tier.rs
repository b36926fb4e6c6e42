//! The lower tier of a cache as its sequences see it.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use kvist_policies::prefetch::Account;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::below::{Below, Stored};
use super::clustered::Clustered;
use super::stripe::Stripe;
use super::table::{Counts, Table};
use crate::arena::{Arena, Cell};
use crate::budget::{Budget, Charge};
use crate::stats::{SequenceStats, Stats};
use crate::{Error, Geometry};

/// How the lower tier is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Reads that take longer end as misses.
    pub(crate) deadline: Duration,
    /// Bring pages near before they are asked for.
    pub(crate) prefetch: bool,
    /// Write sealed pages before their frames are needed, on a thread.
    pub(crate) write_ahead: bool,
    /// Select whole pages even while all of them are in host memory.
    pub(crate) whole_pages: bool,
}

impl Default for Options {
    fn default() -> Options {
        let deadline = Duration::from_secs(10);
        Options { deadline, prefetch: true, write_ahead: true, whole_pages: false }
    }
}

/// What stripes, leases and the demoting thread share.
pub(super) struct Inner {
    pub(super) below: Arc<dyn Below>,
    pub(super) arena: Arc<Arena>,
    pub(super) budget: Arc<Budget>,
    pub(super) options: Options,
    table: Mutex<Table>,
    /// Something in the table changed that somebody may wait for.
    pub(super) changed: Condvar,
    /// There may be something to write.
    pub(super) work: Condvar,
    /// What reading ahead may cost.
    pub(super) account: Mutex<Account>,
    /// The tier with which the budget is shared.
    pub(super) other: OnceLock<Weak<Inner>>,
    heads: usize,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("below", &self.below).finish_non_exhaustive()
    }
}

/// The lower tier. Dropping it ends its thread.
#[derive(Debug)]
pub(crate) struct Tier {
    pub(super) inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
    /// Rows in the order of clusters, for selectors that go by these.
    clustered: Option<Box<Clustered>>,
}

/// Guessed pages in flight at most, as a share of the frames there could be.
const AHEAD_SHARE: usize = 32;

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// Bytes charged for a stripe's handle and its place in the table.
    fn stripe_bytes(&self) -> u64 {
        let handle = size_of::<Stripe>() + 2 * size_of::<usize>() + size_of::<Arc<Stripe>>();
        (handle + Table::STRIPE_BYTES + self.heads * Table::PAGE_BYTES) as u64
    }

    pub(super) fn other(&self) -> Option<Arc<Inner>> {
        self.other.get()?.upgrade()
    }

    /// Guessed pages that may be in flight.
    pub(super) fn ahead_most(&self) -> usize {
        self.arena.cells() / AHEAD_SHARE
    }
}

impl Tier {
    pub(crate) fn new(
        below: Arc<dyn Below>,
        options: Options,
        geometry: &Geometry,
        arena: Arc<Arena>,
        budget: Arc<Budget>,
    ) -> Result<Tier, Error> {
        let heads = geometry.kv_heads;
        let most = if options.prefetch { arena.cells() / AHEAD_SHARE } else { 0 };
        let inner = Arc::new(Inner {
            below,
            arena,
            budget,
            options,
            table: Mutex::new(Table::new(heads)),
            changed: Condvar::new(),
            work: Condvar::new(),
            account: Mutex::new(Account::new(most)),
            other: OnceLock::new(),
            heads,
        });
        let thread = match options.write_ahead {
            true => Some(super::demote::spawn(inner.clone())?),
            false => None,
        };
        Ok(Tier { inner, thread, clustered: None })
    }

    /// With a tier beside it for rows in the order of clusters: each gives way to the other.
    pub(crate) fn with_clustered(mut self, clustered: Clustered) -> Tier {
        for (of, other) in [(&self, clustered.tier()), (clustered.tier(), &self)] {
            of.inner.other.get_or_init(|| Arc::downgrade(&other.inner));
        }
        self.clustered = Some(Box::new(clustered));
        self
    }

    /// Rows in the order of clusters.
    pub(crate) fn clustered(&self) -> Option<&Clustered> {
        self.clustered.as_deref()
    }

    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
    }

    pub(super) fn has_thread(&self) -> bool {
        self.thread.is_some()
    }

    /// Charges `n` stripes to come.
    pub(crate) fn charges(&self, n: usize) -> Result<Vec<Charge>, Error> {
        let bytes = self.inner.stripe_bytes();
        let charge = |_| {
            let mut charge = Charge::none(self.inner.budget.clone());
            charge.grow_to(bytes).map(|()| charge)
        };
        (0..n).map(charge).collect()
    }

    /// Seals the pages of a layer for one run of tokens, one cell per KV head.
    pub(crate) fn seal(
        &self,
        at: (usize, usize),
        cells: Vec<Arc<Cell>>,
        kept: bool,
        charge: Charge,
    ) -> Arc<Stripe> {
        let stripe = Stripe::new(&self.inner, at, cells, kept, charge);
        if self.thread.is_some() {
            self.inner.work.notify_one();
        }
        stripe
    }

    /// A stripe that is below only: it comes when it is read.
    pub(crate) fn below(
        &self,
        at: (usize, usize),
        stored: Arc<dyn Stored>,
        kept: bool,
        charge: Charge,
    ) -> Arc<Stripe> {
        Stripe::of_stored(&self.inner, at, stored, kept, charge)
    }

    /// Fills in what the tier holds and has done.
    pub(crate) fn fill(&self, stats: &mut Stats) {
        self.poll();
        let counts: Counts = self.inner.lock().counts;
        stats.stored_bytes = counts.stored * self.inner.arena.cell_bytes() as u64;
        stats.page_hits = counts.hits;
        stats.page_misses = counts.misses;
        stats.pages_failed = counts.failed;
        stats.below_read_bytes = counts.read;
        stats.below_written_bytes = counts.written;
        stats.prefetched = counts.prefetched;
        stats.prefetch_used = counts.prefetch_used;
        stats.prefetch_wasted = counts.prefetch_wasted;
        if let Some(clustered) = &self.clustered {
            clustered.fill(stats);
        }
    }

    /// Adds a stripe to what a sequence holds.
    pub(crate) fn count(&self, stripe: &Stripe, stats: &mut SequenceStats) {
        let (resident, stored) = stripe.place();
        let page = self.inner.arena.cell_bytes() as u64;
        let heads = self.inner.heads as u64;
        stats.page_bytes += resident as u64 * page;
        stats.demoted_bytes += (heads - resident as u64) * page;
        stats.stored_bytes += if stored { heads * page } else { 0 };
        stats.overhead_bytes +=
            self.inner.stripe_bytes() + resident as u64 * crate::arena::CELL_OVERHEAD;
    }
}

impl Drop for Tier {
    fn drop(&mut self) {
        let mut table = self.inner.lock();
        table.stopped = true;
        let behind = std::mem::take(&mut table.behind);
        drop(table);
        // Wakes those who wait.
        drop(behind);
        self.inner.work.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the demoting thread panicked");
        }
    }
}
