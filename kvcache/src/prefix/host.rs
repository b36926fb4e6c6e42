//! The Host tier of the prefix store: whole blocks in memory, the least recently used leave first.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::Error;
use crate::arena::{Arena, Cell};
use crate::budget::Budget;
use crate::disk::Refused;
use crate::format::BlockKey;
use crate::table::KeyTable;

/// No neighbour in the list of recency.
const NONE: u32 = u32::MAX;
/// Block sizes of a store: each reserves address space for the whole budget.
const SIZES_MAX: usize = 64;

/// A block in memory, by key.
#[derive(Debug)]
struct Block {
    cell: Arc<Cell>,
    /// xxh3-64 of its bytes.
    hash: u64,
    /// More and less recently used.
    newer: u32,
    older: u32,
    /// What its bytes mean: number of a space's model and layout.
    kind: u32,
    tenant: u32,
}

#[derive(Debug)]
struct Blocks {
    table: KeyTable<Block>,
    newest: u32,
    oldest: u32,
    evicted: u64,
    /// How often blocks were evicted or erased on request.
    epoch: u64,
    /// Such requests that are under way.
    closed: u64,
}

/// Room for a block, charged. What is not used goes back.
#[derive(Debug)]
pub(super) struct Vacant<'a> {
    host: &'a Host,
    cell: Option<Arc<Cell>>,
}

impl Vacant<'_> {
    /// The cell's bytes, to be written.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let bytes = self.cell.as_mut().and_then(|cell| cell.bytes_mut());
        bytes.expect("a fresh cell has one holder")
    }

    /// Held by the caller only, who pays for the cell and no entry.
    fn hold(mut self, block: Meaning) -> Held {
        let cell = self.cell.take().expect("room is used once");
        self.host.budget.release(BLOCK_OVERHEAD);
        let Meaning { hash, kind, tenant } = block;
        Held { cell, hash, kind, tenant }
    }
}

impl Drop for Vacant<'_> {
    fn drop(&mut self) {
        if self.cell.take().is_some() {
            self.host.budget.release(BLOCK_OVERHEAD);
        }
    }
}

/// A block held in memory: its bytes stay as long as this value.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) cell: Arc<Cell>,
    pub(super) hash: u64,
    pub(super) kind: u32,
    pub(super) tenant: u32,
}

/// A moment in the life of a store, to tell whether anything was evicted or erased since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment(u64);

/// While it lives, blocks that come from disk are not added.
#[derive(Debug)]
pub(super) struct LandingClosed<'a>(&'a Host);

impl Drop for LandingClosed<'_> {
    fn drop(&mut self) {
        let mut blocks = self.0.blocks.lock();
        (blocks.epoch, blocks.closed) = (blocks.epoch + 1, blocks.closed - 1);
    }
}

/// What a block is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meaning {
    pub(super) hash: u64,
    pub(super) kind: u32,
    pub(super) tenant: u32,
}

/// Blocks in memory under one budget.
#[derive(Debug)]
pub(super) struct Host {
    budget: Arc<Budget>,
    arenas: Mutex<Vec<Arc<Arena>>>,
    blocks: Mutex<Blocks>,
    zero_on_free: bool,
}

/// What a block costs beside its cell.
pub(super) const BLOCK_OVERHEAD: u64 = KeyTable::<Block>::ENTRY_BYTES;

impl Host {
    pub(super) fn new(bytes: u64, zero_on_free: bool) -> Host {
        let blocks = Blocks {
            table: KeyTable::default(),
            newest: NONE,
            oldest: NONE,
            evicted: 0,
            epoch: 0,
            closed: 0,
        };
        Host {
            budget: Arc::new(Budget::new(bytes)),
            arenas: Mutex::default(),
            blocks: Mutex::new(blocks),
            zero_on_free,
        }
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Memory for blocks of one size.
    pub(super) fn arena(&self, block_bytes: usize) -> Result<Arc<Arena>, Error> {
        let mut arenas = self.arenas.lock();
        if let Some(arena) = arenas.iter().find(|a| a.cell_bytes() == block_bytes) {
            return Ok(arena.clone());
        }
        if arenas.len() == SIZES_MAX {
            let expected = format!("one of the {SIZES_MAX} block sizes that the store has");
            return Err(Error::setting("block size", expected, block_bytes));
        }
        let make = if self.zero_on_free { Arena::wiping } else { Arena::new };
        let arena = make(block_bytes, u32::MAX as usize, self.budget.clone())?;
        arenas.push(arena.clone());
        Ok(arena)
    }

    /// Room for a new block, after evicting what has to leave; `None` if everything is in use.
    pub(super) fn room(&self, arena: &Arc<Arena>) -> Option<Vacant<'_>> {
        // The entry is charged with the cell, so that adding the block cannot fail.
        loop {
            if self.budget.charge(BLOCK_OVERHEAD).is_ok() {
                match arena.take(1) {
                    Ok(mut cells) => return Some(Vacant { host: self, cell: cells.pop() }),
                    Err(_) => self.budget.release(BLOCK_OVERHEAD),
                }
            }
            let freed = self.blocks.lock().evict_oldest();
            match freed {
                // Dropped here, outside the lock.
                Some(cell) => {
                    drop(cell);
                    self.budget.release(BLOCK_OVERHEAD);
                }
                None => return None,
            }
        }
    }

    pub(super) fn moment(&self) -> Moment {
        Moment(self.blocks.lock().epoch)
    }

    /// Keeps blocks that are on their way from disk out of memory, those that set off before and
    /// those that do so meanwhile: what is evicted or erased now must not come back with them.
    pub(super) fn close_landing(&self) -> LandingClosed<'_> {
        let mut blocks = self.blocks.lock();
        (blocks.epoch, blocks.closed) = (blocks.epoch + 1, blocks.closed + 1);
        LandingClosed(self)
    }

    /// [`Host::add`] of a block that was sent for at `since`; only held for the caller if something
    /// was evicted or erased meanwhile.
    pub(super) fn land(&self, key: BlockKey, room: Vacant, block: Meaning, since: Moment) -> Held {
        let blocks = self.blocks.lock();
        let open = blocks.closed == 0 && Moment(blocks.epoch) == since;
        if open || cfg!(kvist_bug = "landed_after_erase") {
            return self.add_to(blocks, key, room, block);
        }
        drop(blocks);
        room.hold(block)
    }

    /// Adds a new block, if `also` agrees to what else is to be done in the same step.
    pub(super) fn publish(
        &self,
        key: BlockKey,
        room: Vacant,
        block: Meaning,
        also: impl FnOnce(Arc<Cell>) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let blocks = self.blocks.lock();
        if blocks.table.get(&key).is_some() {
            return Err(Refused::AlreadyPresent);
        }
        also(room.cell.clone().expect("room is used once"))?;
        self.add_to(blocks, key, room, block);
        Ok(())
    }

    /// Adds a block that was written to its room. One that is there already stays.
    #[cfg(test)]
    fn add(&self, key: BlockKey, room: Vacant, block: Meaning) -> Held {
        self.add_to(self.blocks.lock(), key, room, block)
    }

    fn add_to(
        &self,
        mut blocks: MutexGuard<'_, Blocks>,
        key: BlockKey,
        mut room: Vacant,
        block: Meaning,
    ) -> Held {
        // The room goes back outside the lock.
        if let Some(there) = blocks.touch(&key) {
            drop(blocks);
            return there;
        }
        let cell = room.cell.take().expect("room is used once");
        let Meaning { hash, kind, tenant } = block;
        let held = Held { cell: cell.clone(), hash, kind, tenant };
        let block = Block { cell, hash, newer: NONE, older: NONE, kind, tenant };
        let slot = blocks.table.insert(key, block);
        blocks.link(slot);
        held
    }

    /// A block, which becomes the most recently used.
    pub(super) fn get(&self, key: &BlockKey) -> Option<Held> {
        self.blocks.lock().touch(key)
    }

    pub(super) fn contains(&self, key: &BlockKey, tenant: u32) -> bool {
        self.blocks.lock().table.get(key).is_some_and(|block| block.tenant == tenant)
    }

    /// Forgets a block. Its bytes go when nobody holds it.
    pub(super) fn remove(&self, key: &BlockKey) -> bool {
        let removed = self.blocks.lock().take(key);
        if removed.is_some() {
            self.budget.release(BLOCK_OVERHEAD);
        }
        removed.is_some()
    }

    /// Forgets all blocks.
    pub(super) fn clear(&self) {
        let mut blocks = self.blocks.lock();
        let gone: Vec<BlockKey> = blocks.table.iter().map(|(key, _)| *key).collect();
        let cells: Vec<_> = gone.iter().filter_map(|key| blocks.take(key)).collect();
        drop(blocks);
        self.budget.release(BLOCK_OVERHEAD * cells.len() as u64);
    }

    /// Forgets blocks, save those that are on their way to disk: they were put meanwhile.
    pub(super) fn remove_all(
        &self,
        keys: &[BlockKey],
        pending: impl FnOnce() -> HashSet<BlockKey>,
    ) -> Vec<bool> {
        let mut blocks = self.blocks.lock();
        let pending = pending();
        let mut take = |key| if pending.contains(key) { None } else { blocks.take(key) };
        let cells: Vec<Option<Arc<Cell>>> = keys.iter().map(&mut take).collect();
        drop(blocks);
        let removed: Vec<bool> = cells.iter().map(Option::is_some).collect();
        self.budget.release(BLOCK_OVERHEAD * removed.iter().filter(|there| **there).count() as u64);
        removed
    }

    /// Forgets all blocks of a tenant, save those that were put meanwhile.
    pub(super) fn erase(&self, tenant: u32, pending: impl FnOnce() -> HashSet<BlockKey>) -> u64 {
        let mut blocks = self.blocks.lock();
        let pending = pending();
        let of_tenant =
            |(key, b): &(&BlockKey, &Block)| b.tenant == tenant && !pending.contains(key);
        let gone: Vec<BlockKey> = blocks.table.iter().filter(of_tenant).map(|(k, _)| *k).collect();
        let cells: Vec<_> = gone.iter().filter_map(|key| blocks.take(key)).collect();
        drop(blocks);
        self.budget.release(BLOCK_OVERHEAD * cells.len() as u64);
        cells.len() as u64
    }

    /// Blocks in memory, and how many left so far.
    pub(super) fn counts(&self) -> (u64, u64) {
        let blocks = self.blocks.lock();
        (blocks.table.len() as u64, blocks.evicted)
    }
}

impl Blocks {
    fn link(&mut self, slot: u32) {
        let newest = std::mem::replace(&mut self.newest, slot);
        if let Some((_, block)) = self.table.slot_mut(slot) {
            (block.newer, block.older) = (NONE, newest);
        }
        match self.table.slot_mut(newest) {
            Some((_, block)) => block.newer = slot,
            None => self.oldest = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some((_, block)) = self.table.slot(slot) else { return };
        let (newer, older) = (block.newer, block.older);
        match self.table.slot_mut(newer) {
            Some((_, block)) => block.older = older,
            None => self.newest = older,
        }
        match self.table.slot_mut(older) {
            Some((_, block)) => block.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn touch(&mut self, key: &BlockKey) -> Option<Held> {
        let slot = self.table.find(key)?;
        if self.newest != slot {
            self.unlink(slot);
            self.link(slot);
        }
        let (_, block) = self.table.slot(slot)?;
        let (cell, tenant) = (block.cell.clone(), block.tenant);
        Some(Held { cell, hash: block.hash, kind: block.kind, tenant })
    }

    fn take(&mut self, key: &BlockKey) -> Option<Arc<Cell>> {
        let slot = self.table.find(key)?;
        self.unlink(slot);
        self.table.remove(key).map(|block| block.cell)
    }

    /// Takes out the least recently used block that nobody holds.
    fn evict_oldest(&mut self) -> Option<Arc<Cell>> {
        let mut slot = self.oldest;
        while let Some((key, block)) = self.table.slot(slot) {
            if Arc::strong_count(&block.cell) == 1 || cfg!(kvist_bug = "held_evicted") {
                let key = *key;
                self.evicted += 1;
                return self.take(&key);
            }
            slot = block.newer;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> BlockKey {
        BlockKey(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn put(host: &Host, arena: &Arc<Arena>, n: u32) -> Option<Held> {
        let room = host.room(arena)?;
        Some(host.add(key(n), room, Meaning { hash: u64::from(n), kind: 0, tenant: n % 2 }))
    }

    #[test]
    fn the_least_recently_used_leave_and_held_ones_stay() {
        let each = 4096 + crate::arena::CELL_OVERHEAD + BLOCK_OVERHEAD;
        let host = Host::new(4 * each, true);
        let arena = host.arena(4096).unwrap();
        for n in 0..4 {
            put(&host, &arena, n);
        }
        assert_eq!(host.budget().used(), 4 * each);
        let held = host.get(&key(0)).unwrap();
        put(&host, &arena, 4);
        assert!(host.contains(&key(0), 0) && !host.contains(&key(1), 1));
        put(&host, &arena, 5);
        put(&host, &arena, 6);
        put(&host, &arena, 7);
        // The oldest is held, so the one after it left.
        assert!(host.contains(&key(0), 0) && !host.contains(&key(4), 0));
        let all: Vec<Held> = [5, 6, 7].iter().map(|&n| host.get(&key(n)).unwrap()).collect();
        assert!(put(&host, &arena, 8).is_none());
        assert_eq!(host.counts(), (4, 4));
        drop((held, all));
        assert_eq!(host.erase(1, HashSet::new), 2);
        assert!(host.remove(&key(0)) && !host.remove(&key(0)));
        assert_eq!(host.budget().used(), each);
        let twice = put(&host, &arena, 6).unwrap();
        assert_eq!((twice.hash, host.budget().used()), (6, each));
    }
}
