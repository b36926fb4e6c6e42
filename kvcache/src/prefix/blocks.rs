//! The table of blocks in memory, and in which order they were used: those of the store's own memory and
//! those that caches lend each in a list, since only the former make room for others.

use std::collections::HashMap;

use super::lent::{Holders, Lent};
use crate::arena::Cell;
use crate::cache;
use crate::format::BlockKey;
use crate::journal::{Journal, Tier};
use crate::sync::Arc;
use crate::table::KeyTable;

/// No neighbour in a list of recency.
const NONE: u32 = u32::MAX;

/// What a block costs beside its bytes and its cell, which is charged by its arena.
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

    /// The pages that a cache lends.
    pub(super) fn lent(&self) -> Option<&Arc<Lent>> {
        match self {
            Body::Own(_) => None,
            Body::Lent(lent) => Some(lent),
        }
    }
}

/// A block in memory, by key. It is a [`Body`] with a place; were it a struct of the two, the tag would
/// take a word of its own.
#[derive(Debug)]
pub(super) enum Block {
    Own(Place, Arc<Cell>),
    Lent(Place, Arc<Lent>),
}

/// Where a block stands among the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// More and less recently used.
    newer: u32,
    older: u32,
    /// See [`Owners`].
    owner: u32,
}

impl Block {
    fn new(Held { body, owner }: Held) -> Block {
        let place = Place { newer: NONE, older: NONE, owner };
        match body {
            Body::Own(cell) => Block::Own(place, cell),
            Body::Lent(lent) => Block::Lent(place, lent),
        }
    }

    fn into_body(self) -> Body {
        match self {
            Block::Own(_, cell) => Body::Own(cell),
            Block::Lent(_, lent) => Body::Lent(lent),
        }
    }

    fn held(&self) -> Held {
        let body = match self {
            Block::Own(_, cell) => Body::Own(cell.clone()),
            Block::Lent(_, lent) => Body::Lent(lent.clone()),
        };
        Held { body, owner: self.place().owner }
    }

    fn place(&self) -> &Place {
        match self {
            Block::Own(place, _) | Block::Lent(place, _) => place,
        }
    }

    fn place_mut(&mut self) -> &mut Place {
        match self {
            Block::Own(place, _) | Block::Lent(place, _) => place,
        }
    }

    /// The pages that a cache lends.
    pub(super) fn lent(&self) -> Option<&Arc<Lent>> {
        match self {
            Block::Own(..) => None,
            Block::Lent(_, lent) => Some(lent),
        }
    }

    /// Whether only the table holds it.
    fn is_idle(&self) -> bool {
        match self {
            Block::Own(_, cell) => Arc::strong_count(cell) == 1 || bug!("held_evicted"),
            Block::Lent(_, lent) => Arc::strong_count(lent) == 1,
        }
    }

    /// Number of its list of recency.
    fn list(&self) -> usize {
        usize::from(matches!(self, Block::Lent(..)))
    }
}

/// A block held in memory: its bytes stay as long as this value.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) body: Body,
    /// See [`Owners`].
    pub(super) owner: u32,
}

/// Whose blocks are, and what their bytes mean: a number for each tenant with a kind, which is a model
/// with a layout. A block has this one number in place of the two.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// By tenant and kind.
    numbers: HashMap<(u32, u32), u32>,
    /// The tenant of each.
    tenants: Vec<u32>,
}

impl Owners {
    /// The number of a tenant with a kind, which has one from now on.
    pub(super) fn number(&mut self, tenant: u32, kind: u32) -> u32 {
        *self.numbers.entry((tenant, kind)).or_insert_with(|| {
            self.tenants.push(tenant);
            (self.tenants.len() - 1) as u32
        })
    }

    /// Whether an owner is this tenant, with whatever kind.
    pub(super) fn is_of(&self, owner: u32, tenant: u32) -> bool {
        self.tenants.get(owner as usize) == Some(&tenant)
    }
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
    pub(super) owners: Owners,
    /// Own blocks, lent ones.
    lists: [Ends; 2],
    evicted: u64,
    /// How often blocks were evicted or erased on request.
    pub(super) epoch: u64,
    /// Such requests that are under way.
    pub(super) closed: u64,
    /// Told what comes and goes.
    journal: Arc<Journal>,
}

impl Blocks {
    pub(super) fn new(journal: Arc<Journal>) -> Blocks {
        let ends = || Ends { newest: NONE, oldest: NONE, len: 0 };
        let lists = [ends(), ends()];
        let (table, owners) = (KeyTable::default(), Owners::default());
        Blocks { table, owners, lists, evicted: 0, epoch: 0, closed: 0, journal }
    }

    /// Blocks, those of them that are lent, and how many left so far.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        (self.table.len() as u64, self.lists[1].len, self.evicted)
    }

    /// Adds a block that is not there yet, as the most recently used.
    pub(super) fn insert(&mut self, key: BlockKey, held: Held) {
        let slot = self.table.insert(key, Block::new(held));
        self.journal.note(&key, Tier::Host, true);
        self.link(slot);
    }

    fn list(&mut self, slot: u32) -> Option<&mut Ends> {
        let list = self.table.slot(slot)?.1.list();
        Some(&mut self.lists[list])
    }

    fn link(&mut self, slot: u32) {
        let Some(ends) = self.list(slot) else { return };
        let newest = std::mem::replace(&mut ends.newest, slot);
        ends.len += 1;
        if newest == NONE {
            ends.oldest = slot;
        }
        if let Some((_, block)) = self.table.slot_mut(slot) {
            let place = block.place_mut();
            (place.newer, place.older) = (NONE, newest);
        }
        if let Some((_, block)) = self.table.slot_mut(newest) {
            block.place_mut().newer = slot;
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some((_, block)) = self.table.slot(slot) else { return };
        let (Place { newer, older, .. }, ends) = (*block.place(), &mut self.lists[block.list()]);
        ends.len -= 1;
        match self.table.slot_mut(newer) {
            Some((_, block)) => block.place_mut().older = older,
            None => ends.newest = older,
        }
        match self.table.slot_mut(older) {
            Some((_, block)) => block.place_mut().newer = newer,
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
        self.table.slot(slot).map(|(_, block)| block.held())
    }

    /// Whether a block is a tenant's.
    pub(super) fn is_of(&self, block: &Block, tenant: u32) -> bool {
        self.owners.is_of(block.place().owner, tenant)
    }

    /// A tenant's block.
    pub(super) fn get_of(&self, key: &BlockKey, tenant: u32) -> Option<&Block> {
        self.table.get(key).filter(|block| self.is_of(block, tenant))
    }

    /// A lent block.
    pub(super) fn lent(&self, key: &BlockKey) -> Option<&Arc<Lent>> {
        self.table.get(key)?.lent()
    }

    /// Takes a block out.
    pub(super) fn take(&mut self, key: &BlockKey) -> Option<Body> {
        let slot = self.table.find(key)?;
        self.unlink(slot);
        self.journal.note(key, Tier::Host, false);
        self.table.remove(key).map(Block::into_body)
    }

    /// Takes out the least recently used block that nobody holds; a lent one if there is no other.
    pub(super) fn evict_oldest(&mut self) -> Option<Body> {
        let oldest = |list: usize| self.oldest(list, 1, |_, block| block.is_idle()).pop();
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
        let lent = |block: &'_ Block| block.lent().filter(|lent| lent.is_of(cache)).cloned();
        let all = || self.table.iter().filter_map(|(_, block)| lent(block));
        let holders = if alone { None } else { Some(Holders::of(all())) };
        let frees = |lent: Arc<Lent>| match &holders {
            None => lent.is_alone(),
            Some(holders) => holders.are_all(&lent),
        };
        let keys =
            self.oldest_lent(n, |_, block| block.is_idle() && lent(block).is_some_and(frees));
        self.evicted += keys.len() as u64;
        keys.iter().filter_map(|key| self.take(key)).collect()
    }

    /// Puts other pages of the same cache under a lent block; those it had. None, and none changed, if
    /// there is no such block.
    pub(super) fn replace(&mut self, key: &BlockKey, by: &Arc<Lent>) -> Option<Arc<Lent>> {
        match self.table.get_mut(key)? {
            Block::Lent(_, lent) if lent.is_of(by.cache()) => {
                Some(std::mem::replace(lent, by.clone()))
            }
            _ => None,
        }
    }

    /// The `n` least recently used of the lent blocks that are wanted.
    pub(super) fn oldest_lent(
        &self,
        n: usize,
        wanted: impl Fn(&BlockKey, &Block) -> bool,
    ) -> Vec<BlockKey> {
        self.oldest(1, n, wanted)
    }

    fn oldest(
        &self,
        list: usize,
        n: usize,
        wanted: impl Fn(&BlockKey, &Block) -> bool,
    ) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        let mut slot = self.lists[list].oldest;
        while let Some((key, block)) = self.table.slot(slot)
            && keys.len() < n
        {
            if wanted(key, block) {
                keys.push(*key);
            }
            slot = block.place().newer;
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::CELL_OVERHEAD;

    #[test]
    fn a_block_costs_at_most_128_bytes_beside_its_own() {
        assert_eq!(size_of::<Block>(), 24);
        assert_eq!((BLOCK_OVERHEAD, CELL_OVERHEAD, Lent::BYTES), (76, 49, 49));
        const { assert!(BLOCK_OVERHEAD + CELL_OVERHEAD <= 128 && LENT_OVERHEAD <= 128) }
    }

    #[test]
    fn an_owner_is_a_tenant_with_a_kind() {
        let mut owners = Owners::default();
        let numbers = [(7, 0), (7, 1), (8, 0), (7, 0)].map(|(t, kind)| owners.number(t, kind));
        assert_eq!(numbers, [0, 1, 2, 0]);
        assert_eq!([0, 1, 2, 3].map(|owner| owners.is_of(owner, 7)), [true, true, false, false]);
    }
}
