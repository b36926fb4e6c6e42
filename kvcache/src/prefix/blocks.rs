//! The table of blocks in memory, and in which order they leave: those of the store's own memory by an order of
//! replacement, those that caches lend by recency, since only the former make room for others.

use std::collections::HashMap;

use kvist_policies::replace::{Arrival, Order, Replace, Share, Uses};

use super::lent::{Holders, Lent};
use crate::arena::{CELL_OVERHEAD, Cell};
use crate::format::BlockKey;
use crate::journal::{Journal, Tier};
use crate::sync::Arc;
use crate::table::KeyTable;
use crate::{Error, cache};

/// No neighbour in a list of recency.
const NONE: u32 = u32::MAX;

/// What the entry of a block takes.
const ENTRY: u64 = KeyTable::<Block>::ENTRY_BYTES;
/// The tenants that have no share of their own.
const OTHERS: u16 = u16::MAX;

/// What a block of the store's own memory costs beside its bytes and its cell, which is charged by its arena.
pub(super) fn block_overhead(replace: Replace) -> u64 {
    ENTRY + replace.block_bytes()
}

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
    pub(super) fn overhead(&self, replace: Replace) -> u64 {
        match self {
            Body::Own(_) => block_overhead(replace),
            Body::Lent(_) => ENTRY + Lent::BYTES,
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

/// A block in memory, by key: a [`Body`] and whose it is, see [`Owners`]. Were it a struct of the two, the tag would
/// take a word of its own.
#[derive(Debug)]
pub(super) enum Block {
    Own(u32, Arc<Cell>),
    Lent(u32, Place, Arc<Lent>),
}

/// Where a lent block stands among the others: more and less recently used ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    newer: u32,
    older: u32,
}

impl Block {
    fn new(Held { body, owner }: Held) -> Block {
        match body {
            Body::Own(cell) => Block::Own(owner, cell),
            Body::Lent(lent) => Block::Lent(owner, Place { newer: NONE, older: NONE }, lent),
        }
    }

    fn into_body(self) -> Body {
        match self {
            Block::Own(_, cell) => Body::Own(cell),
            Block::Lent(_, _, lent) => Body::Lent(lent),
        }
    }

    fn held(&self) -> Held {
        match self {
            Block::Own(owner, cell) => Held { body: Body::Own(cell.clone()), owner: *owner },
            Block::Lent(owner, _, lent) => Held { body: Body::Lent(lent.clone()), owner: *owner },
        }
    }

    fn owner(&self) -> u32 {
        match self {
            Block::Own(owner, _) | Block::Lent(owner, ..) => *owner,
        }
    }

    fn place(&self) -> Option<Place> {
        match self {
            Block::Own(..) => None,
            Block::Lent(_, place, _) => Some(*place),
        }
    }

    /// The pages that a cache lends.
    pub(super) fn lent(&self) -> Option<&Arc<Lent>> {
        match self {
            Block::Own(..) => None,
            Block::Lent(.., lent) => Some(lent),
        }
    }

    /// Whether only the table holds it.
    fn is_idle(&self) -> bool {
        match self {
            Block::Own(_, cell) => Arc::strong_count(cell) == 1 || bug!("held_evicted"),
            Block::Lent(.., lent) => Arc::strong_count(lent) == 1,
        }
    }
}

/// What a block is added as.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) key: BlockKey,
    /// The block that it continues.
    pub(super) parent: Option<BlockKey>,
    /// See [`Owners`].
    pub(super) owner: u32,
    /// Blocks of a lower one leave before all others.
    pub(super) priority: i8,
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

    /// The tenant of an owner.
    fn tenant(&self, owner: u32) -> Option<u32> {
        self.tenants.get(owner as usize).copied()
    }

    /// Whether an owner is this tenant, with whatever kind.
    pub(super) fn is_of(&self, owner: u32, tenant: u32) -> bool {
        self.tenant(owner) == Some(tenant)
    }
}

/// The ends of the list of recency.
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
    /// Own blocks, by slot.
    order: Order,
    /// What they cost, all together, and what they may.
    own_bytes: u64,
    limit: u64,
    replace: Replace,
    /// Tenants with a share, and their numbers in the order.
    shares: HashMap<u32, u16>,
    lent: Ends,
    evicted: u64,
    /// How often blocks were evicted or erased on request.
    pub(super) epoch: u64,
    /// Such requests that are under way.
    pub(super) closed: u64,
    /// Told what comes and goes.
    journal: Arc<Journal>,
}

impl Blocks {
    /// Blocks that have `limit` bytes.
    pub(super) fn new(limit: u64, replace: Replace, journal: Arc<Journal>) -> Blocks {
        Blocks {
            table: KeyTable::default(),
            owners: Owners::default(),
            order: Order::new(replace, 0),
            own_bytes: 0,
            limit,
            replace,
            shares: HashMap::new(),
            lent: Ends { newest: NONE, oldest: NONE, len: 0 },
            evicted: 0,
            epoch: 0,
            closed: 0,
            journal,
        }
    }

    /// Blocks, those of them that are lent, and how many left so far.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        (self.table.len() as u64, self.lent.len, self.evicted)
    }

    /// Gives a tenant a share of the room; blocks that it has already count as those of the others.
    pub(super) fn set_share(&mut self, tenant: u32, share: Share) -> Result<(), Error> {
        let next = self.shares.len().min(usize::from(OTHERS) - 1) as u16;
        let number = self.shares.get(&tenant).copied().unwrap_or(next);
        self.order.set_share(number, share)?;
        self.shares.insert(tenant, number);
        Ok(())
    }

    fn share_of(&self, owner: u32) -> u16 {
        let tenant = self.owners.tenant(owner);
        tenant.and_then(|tenant| self.shares.get(&tenant)).copied().unwrap_or(OTHERS)
    }

    /// Adds a block that is not there yet.
    pub(super) fn insert(&mut self, entry: &Entry, body: Body) {
        let own = match &body {
            Body::Own(cell) => Some(self.cost(cell)),
            Body::Lent(_) => None,
        };
        let slot = self.table.insert(entry.key, Block::new(Held { body, owner: entry.owner }));
        self.journal.note(&entry.key, Tier::Host, true);
        let Some(cost) = own else { return self.link(slot) };
        self.own_bytes += cost;
        let each = self.own_bytes / (self.order.len() as u64 + 1);
        self.order.set_capacity((self.limit / each.max(1)) as usize);
        let arrival = Arrival {
            key: entry.key.seed(),
            parent: entry.parent.and_then(|parent| self.table.find(&parent)),
            tenant: self.share_of(entry.owner),
            priority: entry.priority,
        };
        self.order.insert(slot, &arrival);
    }

    fn cost(&self, cell: &Cell) -> u64 {
        cell.len() as u64 + CELL_OVERHEAD + block_overhead(self.replace)
    }

    fn place_mut(&mut self, slot: u32) -> Option<&mut Place> {
        match self.table.slot_mut(slot)?.1 {
            Block::Own(..) => None,
            Block::Lent(_, place, _) => Some(place),
        }
    }

    fn link(&mut self, slot: u32) {
        let newest = std::mem::replace(&mut self.lent.newest, slot);
        self.lent.len += 1;
        if newest == NONE {
            self.lent.oldest = slot;
        }
        if let Some(place) = self.place_mut(slot) {
            *place = Place { newer: NONE, older: newest };
        }
        if let Some(place) = self.place_mut(newest) {
            place.newer = slot;
        }
    }

    fn unlink(&mut self, Place { newer, older }: Place) {
        self.lent.len -= 1;
        match self.place_mut(newer) {
            Some(place) => place.older = older,
            None => self.lent.newest = older,
        }
        match self.place_mut(older) {
            Some(place) => place.newer = newer,
            None => self.lent.oldest = newer,
        }
    }

    /// Notes a use of a block.
    pub(super) fn touch(&mut self, key: &BlockKey) {
        let Some(slot) = self.table.find(key) else { return };
        match self.table.slot(slot).and_then(|(_, block)| block.place()) {
            None => self.order.touch(slot),
            Some(_) if self.lent.newest == slot => {}
            Some(place) => {
                self.unlink(place);
                self.link(slot);
            }
        }
    }

    /// Notes what a request uses: for an order that learns.
    pub(super) fn request(&mut self, uses: &Uses) {
        self.order.request(uses);
    }

    /// Says that each of these blocks continues the one before it.
    pub(super) fn chain<'a>(&mut self, keys: impl Iterator<Item = &'a BlockKey>) {
        let mut parent = None;
        for key in keys {
            let slot = self.table.find(key);
            if let (Some(slot), Some(parent)) = (slot, parent) {
                self.order.link(slot, parent);
            }
            parent = slot;
        }
    }

    /// The order of the store's own blocks, and the numbers there of some that are in memory.
    pub(super) fn ordered(&mut self, keys: &[BlockKey]) -> (&mut Order, Vec<u32>) {
        let slots = keys.iter().filter_map(|key| self.table.find(key)).collect();
        (&mut self.order, slots)
    }

    /// A block.
    pub(super) fn get(&self, key: &BlockKey) -> Option<Held> {
        self.table.get(key).map(Block::held)
    }

    /// Whether a block is a tenant's.
    pub(super) fn is_of(&self, block: &Block, tenant: u32) -> bool {
        self.owners.is_of(block.owner(), tenant)
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
        let block = self.table.remove(key)?;
        self.journal.note(key, Tier::Host, false);
        match &block {
            Block::Lent(_, place, _) => self.unlink(*place),
            Block::Own(_, cell) => {
                self.own_bytes -= self.cost(cell);
                self.order.remove(slot);
            }
        }
        Some(block.into_body())
    }

    /// Takes out the block that leaves next at tick `now`, of those that nobody holds; a lent one if there is no other.
    pub(super) fn evict(&mut self, now: u32) -> Option<Body> {
        self.evict_own(now, None).or_else(|| {
            let key = self.oldest_lent(1, |_, block| block.is_idle()).pop()?;
            self.evicted += 1;
            self.take(&key)
        })
    }

    /// Takes out a block of an owner whose tenant has more than its share's ceiling.
    pub(super) fn evict_above(&mut self, owner: u32, now: u32) -> Option<Body> {
        let share = self.share_of(owner);
        if self.order.above_ceiling(share) == 0 {
            return None;
        }
        self.evict_own(now, self.owners.tenant(owner))
    }

    /// Takes out the own block that leaves next, of one tenant or of any.
    fn evict_own(&mut self, now: u32, tenant: Option<u32>) -> Option<Body> {
        let Blocks { order, table, owners, .. } = self;
        let of = |block: &Block| tenant.is_none_or(|tenant| owners.is_of(block.owner(), tenant));
        let may = |(_, block): (&BlockKey, &Block)| block.is_idle() && of(block);
        let slot = order.evict(now, |slot| table.slot(slot).is_some_and(may))?;
        let key = *self.table.slot(slot)?.0;
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
            Block::Lent(.., lent) if lent.is_of(by.cache()) => {
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
        let mut keys = Vec::new();
        let mut slot = self.lent.oldest;
        while let Some((key, block)) = self.table.slot(slot)
            && keys.len() < n
        {
            if wanted(key, block) {
                keys.push(*key);
            }
            slot = block.place().map_or(NONE, |place| place.newer);
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_costs_at_most_128_bytes_beside_its_own_and_its_place_in_the_order() {
        assert_eq!(size_of::<Block>(), 24);
        assert_eq!((ENTRY, CELL_OVERHEAD, Lent::BYTES), (76, 49, 49));
        const { assert!(ENTRY + CELL_OVERHEAD <= 128 && ENTRY + Lent::BYTES <= 128) }
    }

    #[test]
    fn an_owner_is_a_tenant_with_a_kind() {
        let mut owners = Owners::default();
        let numbers = [(7, 0), (7, 1), (8, 0), (7, 0)].map(|(t, kind)| owners.number(t, kind));
        assert_eq!(numbers, [0, 1, 2, 0]);
        assert_eq!([0, 1, 2, 3].map(|owner| owners.is_of(owner, 7)), [true, true, false, false]);
    }
}
