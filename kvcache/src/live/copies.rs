//! Rows in the order of clusters a second time, in pages of a cache that lies in host memory as a whole: copies,
//! made while there is room for them, and the first to go.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kvist_kernels::cluster::Clusters;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::extent::{Ordered, TokenRows};
use crate::MissReason;
use crate::arena::{Arena, Cell};
use crate::budget::{Budget, Charge, arc_bytes};

/// How long those who need memory wait for attention over copies that go: longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(1);

/// The rows of a part's tokens, cluster after cluster, in pages.
#[derive(Debug)]
pub(crate) struct Copied {
    pages: Vec<Arc<Cell>>,
    page_tokens: usize,
    _charge: Charge,
}

impl Copied {
    /// Copies the rows of tokens, the first of which is the clusters' token 0. `None` if there is no room.
    fn new(
        arena: &Arc<Arena>,
        budget: &Arc<Budget>,
        page_tokens: usize,
        clusters: &Clusters,
        rows: &TokenRows,
    ) -> Option<Copied> {
        let tokens = clusters.order();
        let n = tokens.len().div_ceil(page_tokens);
        let mut charge = Charge::none(budget.clone());
        let tables = n as u64 * size_of::<Arc<Cell>>() as u64 + TABLE_BYTES;
        charge.grow_to(tables).ok()?;
        let mut pages = arena.take(n).ok()?;
        for (page, tokens) in pages.iter_mut().zip(tokens.chunks(page_tokens)) {
            let Some(bytes) = page.bytes_mut() else { unreachable!("a fresh cell has one holder") };
            rows.write(tokens, page_tokens, bytes);
        }
        Some(Copied { pages, page_tokens, _charge: charge })
    }

    /// Where the rows of these tokens lie, counted cluster after cluster: as numbers of tokens in the pages of
    /// the cache.
    pub(crate) fn slots(&self, tokens: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        let page = self.page_tokens as u32;
        let of_page = move |i: u32| {
            let first = self.pages[i as usize].id() * page;
            let (from, to) = (tokens.start.max(i * page), tokens.end.min((i + 1) * page));
            first + (from - i * page)..first + (to - i * page)
        };
        (tokens.start / page..tokens.end.div_ceil(page)).flat_map(of_page)
    }

    fn bytes(&self) -> u64 {
        self.pages.iter().map(|page| page.len() as u64).sum()
    }
}

/// Bytes of a copy's handles: its own, its state and its place in the list.
const TABLE_BYTES: u64 = arc_bytes::<Copied>()
    + arc_bytes::<Ordered<Copied>>()
    + size_of::<Weak<Ordered<Copied>>>() as u64;

/// The copies of a cache.
#[derive(Debug)]
pub(crate) struct Copies {
    arena: Arc<Arena>,
    budget: Arc<Budget>,
    page_tokens: usize,
    /// In the order in which they go.
    made: Mutex<VecDeque<Weak<Ordered<Copied>>>>,
    /// Held while copies are made or read.
    busy: RwLock<()>,
}

impl Copies {
    /// Copies in the pages of this arena.
    pub(crate) fn new(arena: Arc<Arena>, budget: Arc<Budget>, page_tokens: usize) -> Copies {
        Copies { arena, budget, page_tokens, made: Mutex::default(), busy: RwLock::new(()) }
    }

    /// For as long as copies are made or read. Room is not to be made meanwhile.
    pub(crate) fn busy(&self) -> RwLockReadGuard<'_, ()> {
        // Whoever waits for memory may do so on a thread that reads, beneath.
        self.busy.read_recursive()
    }

    /// Copies the rows of clusters if there is room for them; from then on they can go.
    pub(crate) fn add(&self, to: &Arc<Ordered<Copied>>, clusters: &Clusters, rows: &TokenRows) {
        let _busy = self.busy();
        let copied = Copied::new(&self.arena, &self.budget, self.page_tokens, clusters, rows);
        let is_there = copied.is_some();
        to.set(copied.ok_or(MissReason::Busy));
        if is_there {
            let mut made = self.made.lock();
            made.retain(|there| there.strong_count() > 0);
            made.push_back(Arc::downgrade(to));
        }
    }

    /// Bytes of their pages.
    pub(crate) fn bytes(&self) -> u64 {
        let made = self.made.lock();
        made.iter().filter_map(|copy| Some(copy.upgrade()?.get()?.bytes())).sum()
    }

    /// Gives up copies, the oldest first, until `bytes` more of the budget are free, or as many as there
    /// are; whether any were.
    pub(crate) fn give_way(&self, bytes: u64) -> bool {
        let before = self.budget.used();
        let freed = || before.saturating_sub(self.budget.used());
        let mut patient = true;
        loop {
            let next = self.made.lock().pop_front();
            let last = next.is_none();
            if let Some(copy) = next.and_then(|copy| copy.upgrade()) {
                copy.set(Err(MissReason::Busy));
            }
            if freed() < bytes && patient {
                // Those that are being read go once that is done, those being made can go then.
                patient = self.busy.try_write_for(PATIENCE).is_some();
            }
            if freed() >= bytes {
                return true;
            }
            if last && self.made.lock().is_empty() {
                return freed() > 0;
            }
        }
    }
}
