//! Blocks that lie in the pages of a cache: who published them keeps a fork of the sequence, cut to its
//! full blocks, and lends its pages. Nothing is copied; what the sequence does later it does to copies.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Shared;
use crate::arena::Cell;
use crate::budget::arc_bytes;
use crate::codec::PageSource;
use crate::layer::Layer;
use crate::lend::Lender;
use crate::miss::MissReason;
use crate::pages::New;
use crate::{Cache, Error, Sequence, cache};

/// A fork that lends its pages. It is cut behind the last block that is still lent.
pub(super) struct Donor {
    cache: Cache,
    state: Mutex<State>,
}

struct State {
    sequence: Sequence,
    /// Which of its blocks are lent.
    lent: Vec<bool>,
}

/// A block of a donor. The last handle gives it back.
pub(super) struct Lent {
    donor: Arc<Donor>,
    block: usize,
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("block", &self.block).finish_non_exhaustive()
    }
}

impl Donor {
    /// Lends blocks of a fork of a sequence, which has them all.
    pub(super) fn lend(fork: Sequence, blocks: &[usize]) -> Vec<Arc<Lent>> {
        let mut lent = vec![false; blocks.iter().max().map_or(0, |last| last + 1)];
        blocks.iter().for_each(|&block| lent[block] = true);
        let (cache, state) = (fork.cache().clone(), State { sequence: fork, lent });
        let donor = Arc::new(Donor { cache, state: Mutex::new(state) });
        blocks.iter().map(|&block| Arc::new(Lent { donor: donor.clone(), block })).collect()
    }

    fn returned(&self, block: usize) {
        let state = &mut *self.state.lock();
        state.lent[block] = false;
        let had = state.lent.len();
        let needed = state.lent.iter().rposition(|lent| *lent).map_or(0, |last| last + 1);
        state.lent.truncate(needed);
        // Without any the donor goes as a whole.
        if (1..had).contains(&needed) {
            state.sequence.shrink(needed);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.donor.returned(self.block);
    }
}

impl Lent {
    /// Bytes of a handle, and of what its donor notes of it.
    pub(super) const BYTES: u64 = arc_bytes::<Lent>() + 1;

    /// Whether it lies in this cache.
    pub(super) fn is_of(&self, cache: &Arc<cache::Shared>) -> bool {
        Arc::ptr_eq(&self.donor.cache.shared, cache) || bug!("any_cache_lends")
    }

    /// The cache that it lies in.
    pub(super) fn cache(&self) -> &Arc<cache::Shared> {
        &self.donor.cache.shared
    }

    /// The first layer of its donor, which stands for all; none if somebody is busy with it.
    fn layer(&self) -> Option<Arc<Layer>> {
        self.donor.state.try_lock()?.sequence.layers.first().cloned()
    }

    /// Whether nobody but its donor holds its pages, as far as that is known without waiting.
    pub(super) fn is_alone(&self) -> bool {
        // Less the one just made.
        let alone = |l: Arc<Layer>| Arc::strong_count(&l) == 2 && l.holders(self.block).1 == 1;
        self.layer().is_some_and(alone)
    }

    /// A sequence of everything up to and with this block, on the same pages.
    pub(super) fn fork(&self) -> Result<Sequence, Error> {
        let mut fork = self.donor.state.lock().sequence.fork();
        if !bug!("fork_not_cut") {
            fork.truncate((self.block + 1) * self.donor.cache.geometry().page_tokens)?;
        }
        fork.fork_as(self.donor.cache.shared.selector.clone())
    }

    /// The cells of some of its pages, in canonical order; they stay as they are while they are held.
    pub(super) fn pages(&self, pages: Range<usize>) -> Result<Vec<Arc<Cell>>, MissReason> {
        let heads = self.donor.cache.geometry().kv_heads;
        let mut cells = Vec::with_capacity(pages.len());
        for layer in pages.start / heads..pages.end.div_ceil(heads) {
            let layer = self.donor.state.lock().sequence.layers[layer].clone();
            cells.extend(layer.hold(self.cache(), self.block).map_err(reason)?);
        }
        Ok(cells)
    }
}

/// Which pages donors hold, and no live sequence: those of several donors are free once the last of
/// them has given them back.
pub(super) struct Holders {
    /// How many donors hold a run's pages, by its number.
    pages: HashMap<usize, usize>,
}

impl Holders {
    /// Of all that is lent.
    pub(super) fn of(lent: impl Iterator<Item = Arc<Lent>>) -> Holders {
        let mut seen = HashSet::new();
        let mut layers: HashMap<*const Layer, (Arc<Layer>, usize)> = HashMap::new();
        for lent in lent.filter(|lent| seen.insert(Arc::as_ptr(&lent.donor))) {
            if let Some(layer) = lent.layer() {
                layers.entry(Arc::as_ptr(&layer)).or_insert((layer, 0)).1 += 1;
            }
        }
        let mut pages = HashMap::new();
        // A layer that a live sequence holds too is one holder that is not counted.
        let donated = layers.values().filter(|(layer, n)| Arc::strong_count(layer) == n + 1);
        for (layer, _) in donated {
            for page in 0..layer.pages() {
                *pages.entry(layer.holders(page).0).or_default() += 1;
            }
        }
        Holders { pages }
    }

    /// Whether only donors hold a block's pages.
    pub(super) fn are_all(&self, lent: &Lent) -> bool {
        let all = |(number, holders)| self.pages.get(&number) == Some(&holders);
        lent.layer().is_some_and(|layer| all(layer.holders(lent.block)))
    }
}

/// Why pages of a cache cannot be had.
pub(super) fn reason(error: Error) -> MissReason {
    match error {
        Error::Missing { reason, .. } => reason,
        Error::OverBudget { .. } => MissReason::Busy,
        _ => MissReason::Io,
    }
}

/// The pages of a lent block, held.
pub(super) struct Pages {
    pub(super) cells: Vec<Arc<Cell>>,
    /// Bytes of a K tile.
    pub(super) k: usize,
}

impl PageSource for Pages {
    fn page(&self, index: usize) -> (&[u8], &[u8]) {
        self.cells[index].bytes().split_at(self.k)
    }

    fn cell(&self, index: usize) -> Option<&Arc<Cell>> {
        self.cells.get(index)
    }
}

impl Sequence {
    /// Appends a page of every layer and KV head, `[layer][head]`, that was written in full already. The
    /// sequence must end where a page does.
    pub(super) fn adopt(&mut self, pages: &[Arc<Cell>]) -> Result<(), Error> {
        let shared = &self.cache.shared;
        let of_layer = pages.chunks_exact(shared.geometry.kv_heads);
        for (layer, pages) in self.layers.iter_mut().zip(of_layer) {
            let new = New::Page(pages);
            self.cache.with_room(|| Layer::append(layer, shared, &self.selector, new))?;
        }
        Ok(())
    }

    /// Lets go of what lies behind the first pages, as far as that takes no memory.
    fn shrink(&mut self, pages: usize) {
        let shared = &self.cache.shared;
        for layer in &mut self.layers {
            Layer::shrink(layer, shared, &self.selector, pages);
        }
    }
}

impl Lender for Shared {
    fn give_back(&self, cache: &Arc<cache::Shared>, bytes: u64) -> bool {
        if self.check_open().is_err() {
            return false;
        }
        let block = cache.geometry.layers * cache.geometry.kv_heads * cache.geometry.page_bytes();
        let blocks = bytes.div_ceil(block as u64) as usize;
        let patience = self.disk.as_ref().map(|disk| disk.patience()).unwrap_or_default();
        let (mut any, mut freed, mut more) = (false, 0, blocks);
        while freed < blocks {
            let alone = self.host.give_back(cache, blocks - freed, true);
            freed += alone;
            // What several donors hold may be alone then.
            if alone > 0 || self.host.give_back(cache, more, false) > 0 {
                (any, more) = (true, if alone > 0 { more } else { 2 * more });
                continue;
            }
            // What waits to be written is held: it leaves unwritten; what is being written soon does.
            let waiting = self.host.oldest_of(&self.queue.waiting(cache), blocks - freed);
            let dropped = self.queue.give_up(&waiting);
            (0..dropped).for_each(|_| self.counters.throttled());
            if dropped == 0 && !self.queue.await_write(cache, patience) {
                return any;
            }
        }
        any
    }
}
