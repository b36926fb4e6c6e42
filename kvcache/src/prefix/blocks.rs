//! The table of blocks in memory, and in which order they were used: those of the store's own memory and
//! those that caches lend each in a list, since only the former make room for others.

use super::lent::{Holders, Lent};
use crate::arena::Cell;
use crate::cache;
use crate::format::BlockKey;
use crate::sync::Arc;
use crate::table::KeyTable;

/// No neighbour in a list of recency.
const NONE: u32 = u32::MAX;

/// What a block costs beside its bytes.
pub(super) const BLOCK_OVERHEAD: u64 = KeyTable::<Block>::ENTRY_BYTES;
/// What a lent block costs.
const LENT_OVERHEAD: u64 = BLOCK_OVERHEAD + Lent::BYTES;

/// Where a block's bytes are.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// In the store's memory, in canonical order.
    Own(Arc<Cell>),
    /// In pages of a cache, which pays for them.
    Lent(Arc<Lent>),
}

impl Body {
    /// What it costs beside the bytes.
    pub(super) fn overhead(&self) -> u64 {
        match self {
            Body::Own(_) => BLOCK_OVERHEAD,
            Body::Lent(_) => LENT_OVERHEAD,
        }
    }

    /// Whether only the table holds it.
    fn is_idle(&self) -> bool {
        match self {
            Body::Own(cell) => Arc::strong_count(cell) == 1 || bug!("held_evicted"),
            Body::Lent(lent) => Arc::strong_count(lent) == 1,
        }
    }

    fn kind(&self) -> usize {
        usize::from(matches!(self, Body::Lent(_)))
    }

    /// The pages that a cache lends.
    pub(super) fn lent(&self) -> Option<&Arc<Lent>> {
        match self {
            Body::Own(_) => None,
            Body::Lent(lent) => Some(lent),
        }
    }
}

/// A block in memory, by key.
#[derive(Debug)]
pub(super) struct Block {
    body: Body,
    /// Its checksum (`tiles::hash`); 0 if they are lent, which nobody has read.
    hash: u64,
    /// More and less recently used.
    newer: u32,
    older: u32,
    /// What its bytes mean: number of a space's model and layout.
    kind: u32,
    pub(super) tenant: u32,
}

/// A block held in memory: its bytes stay as long as this value.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) body: Body,
    pub(super) hash: u64,
    pub(super) kind: u32,
    pub(super) tenant: u32,
}

/// What a block is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meaning {
    pub(super) hash: u64,
    pub(super) kind: u32,
    pub(super) tenant: u32,
}

/// The ends of a list of recency.
#[derive(Debug)]
struct Ends {
    newest: u32,
    oldest: u32,
    len: u64,
}

#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) table: KeyTable<Block>,
    /// Own blocks, lent ones.
    lists: [Ends; 2],
    evicted: u64,
    /// How often blocks were evicted or erased on request.
    pub(super) epoch: u64,
    /// Such requests that are under way.
    pub(super) closed: u64,
}

impl Blocks {
    pub(super) fn new() -> Blocks {
        let ends = || Ends { newest: NONE, oldest: NONE, len: 0 };
        let lists = [ends(), ends()];
        Blocks { table: KeyTable::default(), lists, evicted: 0, epoch: 0, closed: 0 }
    }

    /// Blocks, those of them that are lent, and how many left so far.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        (self.table.len() as u64, self.lists[1].len, self.evicted)
    }

    /// Adds a block that is not there yet, as the most recently used.
    pub(super) fn insert(&mut self, key: BlockKey, held: Held) {
        let Held { body, hash, kind, tenant } = held;
        let block = Block { body, hash, newer: NONE, older: NONE, kind, tenant };
        let slot = self.table.insert(key, block);
        self.link(slot);
    }

    fn list(&mut self, slot: u32) -> Option<&mut Ends> {
        let kind = self.table.slot(slot)?.1.body.kind();
        Some(&mut self.lists[kind])
    }

    fn link(&mut self, slot: u32) {
        let Some(ends) = self.list(slot) else { return };
        let newest = std::mem::replace(&mut ends.newest, slot);
        ends.len += 1;
        if newest == NONE {
            ends.oldest = slot;
        }
        if let Some((_, block)) = self.table.slot_mut(slot) {
            (block.newer, block.older) = (NONE, newest);
        }
        if let Some((_, block)) = self.table.slot_mut(newest) {
            block.newer = slot;
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some((_, block)) = self.table.slot(slot) else { return };
        let (newer, older, ends) = (block.newer, block.older, &mut self.lists[block.body.kind()]);
        ends.len -= 1;
        match self.table.slot_mut(newer) {
            Some((_, block)) => block.older = older,
            None => ends.newest = older,
        }
        match self.table.slot_mut(older) {
            Some((_, block)) => block.newer = newer,
            None => ends.oldest = newer,
        }
    }

    /// A block, which becomes the most recently used.
    pub(super) fn touch(&mut self, key: &BlockKey) -> Option<Held> {
        let slot = self.table.find(key)?;
        if self.list(slot)?.newest != slot {
            self.unlink(slot);
            self.link(slot);
        }
        let (_, block) = self.table.slot(slot)?;
        let Block { hash, kind, tenant, .. } = *block;
        Some(Held { body: block.body.clone(), hash, kind, tenant })
    }

    /// A lent block.
    pub(super) fn lent(&self, key: &BlockKey) -> Option<&Arc<Lent>> {
        self.table.get(key)?.body.lent()
    }

    /// Takes a block out.
    pub(super) fn take(&mut self, key: &BlockKey) -> Option<Body> {
        let slot = self.table.find(key)?;
        self.unlink(slot);
        self.table.remove(key).map(|block| block.body)
    }

    /// Takes out the least recently used block that nobody holds; a lent one if there is no other.
    pub(super) fn evict_oldest(&mut self) -> Option<Body> {
        let oldest = |list: usize| self.oldest(list, 1, |_, body| body.is_idle()).pop();
        let key = oldest(0).or_else(|| oldest(1))?;
        self.evicted += 1;
        self.take(&key)
    }

    /// Takes out up to `n` of the least recently used blocks that a cache lends and nobody holds: with
    /// `alone`, those whose pages nobody else holds, else those whose pages only other blocks hold.
    pub(super) fn evict_lent(
        &mut self,
        cache: &Arc<cache::Shared>,
        n: usize,
        alone: bool,
    ) -> Vec<Body> {
        let lent = |body: &'_ Body| body.lent().filter(|lent| lent.is_of(cache)).cloned();
        let all = || self.table.iter().filter_map(|(_, block)| lent(&block.body));
        let holders = if alone { None } else { Some(Holders::of(all())) };
        let frees = |lent: Arc<Lent>| match &holders {
            None => lent.is_alone(),
            Some(holders) => holders.are_all(&lent),
        };
        let keys = self.oldest_lent(n, |_, body| body.is_idle() && lent(body).is_some_and(frees));
        self.evicted += keys.len() as u64;
        keys.iter().filter_map(|key| self.take(key)).collect()
    }

    /// Puts other pages of the same cache under a lent block; those it had. None, and none changed, if
    /// there is no such block.
    pub(super) fn replace(&mut self, key: &BlockKey, by: &Arc<Lent>) -> Option<Arc<Lent>> {
        match &mut self.table.get_mut(key)?.body {
            Body::Lent(lent) if lent.is_of(by.cache()) => Some(std::mem::replace(lent, by.clone())),
            _ => None,
        }
    }

    /// The `n` least recently used of the lent blocks that are wanted.
    pub(super) fn oldest_lent(
        &self,
        n: usize,
        wanted: impl Fn(&BlockKey, &Body) -> bool,
    ) -> Vec<BlockKey> {
        self.oldest(1, n, wanted)
    }

    fn oldest(
        &self,
        list: usize,
        n: usize,
        wanted: impl Fn(&BlockKey, &Body) -> bool,
    ) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        let mut slot = self.lists[list].oldest;
        while let Some((key, block)) = self.table.slot(slot)
            && keys.len() < n
        {
            if wanted(key, &block.body) {
                keys.push(*key);
            }
            slot = block.newer;
        }
        keys
    }
}
