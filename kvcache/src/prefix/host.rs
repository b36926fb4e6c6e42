//! The Host tier of the prefix store: whole blocks in memory.

use std::collections::HashSet;
use std::time::Instant;

use kvist_policies::replace::{Replace, Share};

use super::blocks::{Block, Blocks};
pub(super) use super::blocks::{Body, Entry, Held, block_overhead};
use super::lent::Lent;
use crate::arena::{Arena, Care, Cell};
use crate::budget::Budget;
use crate::disk::Refused;
use crate::format::BlockKey;
use crate::journal::Journal;
use crate::sync::{Arc, Mutex, MutexGuard};
use crate::{Error, cache};

/// Block sizes of a store: each reserves address space for the whole budget.
const SIZES_MAX: usize = 64;

/// Blocks that are touched while others wait.
const AT_ONCE: usize = 256;

/// Room for a block, charged. What is not used goes back.
#[derive(Debug)]
pub(super) struct Vacant<'a> {
    host: &'a Host,
    body: Option<Body>,
}

impl Vacant<'_> {
    /// The own cell; [`Vacant::bytes`] is not to be used while others hold it.
    pub(super) fn own(&mut self) -> Option<&mut Arc<Cell>> {
        match &mut self.body {
            Some(Body::Own(cell)) => Some(cell),
            _ => None,
        }
    }

    /// The own cell's bytes, to be written.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let bytes = self.own().and_then(|cell| cell.bytes_mut());
        bytes.expect("a fresh cell has one holder")
    }

    /// Keeps the checksum (`tiles::hash`) of what was written to the own cell with it.
    pub(super) fn set_checksum(&mut self, checksum: u64) {
        let set = self.own().and_then(|cell| cell.set_checksum(checksum));
        set.expect("a fresh cell has one holder");
    }

    fn take(&mut self) -> Body {
        self.body.take().expect("room is used once")
    }

    /// Held by the caller only, who pays for the bytes and no entry.
    pub(super) fn hold(mut self, owner: u32) -> Held {
        let body = self.take();
        self.host.budget.release(body.overhead(self.host.replace));
        Held { body, owner }
    }
}

impl Drop for Vacant<'_> {
    fn drop(&mut self) {
        self.host.let_go(self.body.take());
    }
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

/// Blocks in memory under one budget.
#[derive(Debug)]
pub(super) struct Host {
    budget: Arc<Budget>,
    arenas: Mutex<Vec<Arc<Arena>>>,
    pub(super) blocks: Mutex<Blocks>,
    replace: Replace,
    care: Care,
    /// When time began.
    started: Instant,
}

/// Ticks of an order's time in a second.
const TICKS: f64 = 10.0;

impl Host {
    pub(super) fn new(bytes: u64, replace: Replace, care: Care, journal: Arc<Journal>) -> Host {
        Host {
            budget: Arc::new(Budget::new(bytes)),
            arenas: Mutex::default(),
            blocks: Mutex::new(Blocks::new(bytes, replace, journal)),
            replace,
            care,
            started: Instant::now(),
        }
    }

    /// The tick of the order's time that so many seconds from now belong to.
    pub(super) fn tick(&self, seconds: f64) -> u32 {
        ((self.started.elapsed().as_secs_f64() + seconds) * TICKS) as u32
    }

    /// What a block of the store's own memory costs beside its bytes and its cell.
    pub(super) fn block_overhead(&self) -> u64 {
        block_overhead(self.replace)
    }

    /// See [`Blocks::set_share`].
    pub(super) fn set_share(&self, tenant: u32, share: Share) -> Result<(), Error> {
        self.blocks.lock().set_share(tenant, share)
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
        // Only one size can have all of the memory.
        let care = Care { stays: self.care.stays && arenas.is_empty(), ..self.care };
        let arena = Arena::new(block_bytes, u32::MAX as usize, self.budget.clone(), care)?;
        if care.stays {
            arena.touch(self.budget.limit())?;
        }
        arenas.push(arena.clone());
        Ok(arena)
    }

    /// Room for a new block, after evicting what has to leave; `None` if everything is in use.
    pub(super) fn room(&self, arena: &Arc<Arena>) -> Option<Vacant<'_>> {
        // The entry is charged with the cell, so that adding the block cannot fail.
        let body = self.vacate(|| {
            self.budget.charge(self.block_overhead()).ok()?;
            let cell = arena.take(1).ok().and_then(|mut cells| cells.pop());
            if cell.is_none() {
                self.budget.release(self.block_overhead());
            }
            cell.map(Body::Own)
        })?;
        Some(Vacant { host: self, body: Some(body) })
    }

    /// [`Host::room`] for the entry of a lent block.
    pub(super) fn room_for(&self, lent: Arc<Lent>) -> Option<Vacant<'_>> {
        let body = Body::Lent(lent);
        self.vacate(|| self.budget.charge(body.overhead(self.replace)).ok())?;
        Some(Vacant { host: self, body: Some(body) })
    }

    /// Evicts until something can be taken.
    fn vacate<T>(&self, mut take: impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            if let Some(taken) = take() {
                return Some(taken);
            }
            let now = self.tick(0.0);
            let gone = self.blocks.lock().evict(now);
            self.let_go([gone?]);
        }
    }

    /// Evicts until so many bytes are free that were not, or nothing can leave.
    pub(super) fn shed(&self, bytes: u64) {
        let most = self.budget.used().saturating_sub(bytes);
        while self.budget.used() > most {
            let now = self.tick(0.0);
            let Some(gone) = self.blocks.lock().evict(now) else { return };
            self.let_go([gone]);
        }
    }

    /// Drops blocks that left the table, which must not be locked; how many there were.
    fn let_go(&self, gone: impl IntoIterator<Item = Body>) -> usize {
        let free = |body: Body| self.budget.release(body.overhead(self.replace));
        gone.into_iter().map(free).count()
    }

    /// Gives back up to `n` blocks that a cache lends, see [`Blocks::evict_lent`]; how many there were.
    pub(super) fn give_back(&self, cache: &Arc<cache::Shared>, n: usize, alone: bool) -> usize {
        let gone = self.blocks.lock().evict_lent(cache, n, alone);
        // The last of a sequence leave first, and are dropped last: its donor is cut once.
        self.let_go(gone.into_iter().rev())
    }

    /// The number under which blocks of a tenant with a kind (a model and a layout) are added.
    pub(super) fn owner(&self, tenant: u32, kind: u32) -> u32 {
        self.blocks.lock().owners.number(tenant, kind)
    }

    /// Whether blocks of an owner are a tenant's.
    pub(super) fn is_of(&self, owner: u32, tenant: u32) -> bool {
        self.blocks.lock().owners.is_of(owner, tenant)
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
    pub(super) fn land(&self, entry: &Entry, room: Vacant, since: Moment) -> Held {
        let blocks = self.blocks.lock();
        let open = blocks.closed == 0 && Moment(blocks.epoch) == since;
        if open || bug!("landed_after_erase") {
            return self.add_to(blocks, entry, room);
        }
        drop(blocks);
        room.hold(entry.owner)
    }

    /// Adds a new block, if `also` agrees to what else is to be done in the same step. With `since`,
    /// only if nothing was evicted or erased since then.
    pub(super) fn publish(
        &self,
        entry: &Entry,
        room: Vacant,
        since: Option<Moment>,
        also: impl FnOnce(Body) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let blocks = self.blocks.lock();
        if blocks.table.get(&entry.key).is_some() {
            return Err(Refused::AlreadyPresent);
        }
        let late = since.is_some_and(|since| blocks.closed > 0 || Moment(blocks.epoch) != since);
        if late && !bug!("lent_after_erase") {
            return Err(Refused::Throttled);
        }
        also(room.body.clone().expect("room is used once"))?;
        self.add_to(blocks, entry, room);
        Ok(())
    }

    /// Adds a block that was written to its room. One that is there already stays.
    #[cfg(test)]
    fn add(&self, entry: &Entry, room: Vacant) -> Held {
        self.add_to(self.blocks.lock(), entry, room)
    }

    fn add_to(&self, mut blocks: MutexGuard<'_, Blocks>, entry: &Entry, mut room: Vacant) -> Held {
        // The room goes back outside the lock.
        if let Some(there) = blocks.get(&entry.key) {
            drop(blocks);
            return there;
        }
        let body = room.take();
        blocks.insert(entry, body.clone());
        let now = self.tick(0.0);
        let above: Vec<Body> =
            std::iter::from_fn(|| blocks.evict_above(entry.owner, now)).collect();
        drop(blocks);
        self.let_go(above);
        Held { body, owner: entry.owner }
    }

    /// Forgets a block if it is this lent one.
    pub(super) fn give_up(&self, key: &BlockKey, lent: &Arc<Lent>) {
        let mut blocks = self.blocks.lock();
        let same = blocks.lent(key).is_some_and(|there| Arc::ptr_eq(there, lent));
        let gone = if same { blocks.take(key) } else { None };
        drop(blocks);
        self.let_go(gone);
    }

    /// The `n` least recently used of some lent blocks.
    pub(super) fn oldest_of(&self, keys: &HashSet<BlockKey>, n: usize) -> Vec<BlockKey> {
        self.blocks.lock().oldest_lent(n, |key, _| keys.contains(key))
    }

    /// Which of these blocks of a tenant a cache lends; none for those that are not in memory.
    pub(super) fn survey(
        &self,
        keys: &[BlockKey],
        tenant: u32,
        cache: &Arc<cache::Shared>,
    ) -> Vec<Option<bool>> {
        let blocks = self.blocks.lock();
        let lent = |block: &Block| block.lent().is_some_and(|lent| lent.is_of(cache));
        keys.iter().map(|key| blocks.get_of(key, tenant).map(lent)).collect()
    }

    /// Puts other pages of the same cache under a lent block; whether there is one.
    pub(super) fn replace(&self, key: &BlockKey, by: &Arc<Lent>) -> bool {
        let replaced = self.blocks.lock().replace(key, by);
        replaced.is_some()
    }

    /// Notes a use of those of these blocks that are in memory, the first of them last: none leaves before those that
    /// follow it.
    pub(super) fn touch(&self, keys: &[BlockKey]) {
        for keys in keys.rchunks(AT_ONCE) {
            let mut blocks = self.blocks.lock();
            keys.iter().rev().for_each(|key| blocks.touch(key));
        }
    }

    /// The last of these blocks that a cache lends, and its place.
    pub(super) fn last_lent(
        &self,
        keys: &[BlockKey],
        cache: &Arc<cache::Shared>,
    ) -> Option<(usize, Arc<Lent>)> {
        let blocks = self.blocks.lock();
        let lent = |(i, key)| Some((i, blocks.lent(key).filter(|l| l.is_of(cache))?.clone()));
        keys.iter().enumerate().rev().find_map(lent)
    }

    pub(super) fn get(&self, key: &BlockKey) -> Option<Held> {
        self.blocks.lock().get(key)
    }

    pub(super) fn contains(&self, key: &BlockKey, tenant: u32) -> bool {
        self.blocks.lock().get_of(key, tenant).is_some()
    }

    /// Forgets a block. Its bytes go when nobody holds it.
    pub(super) fn remove(&self, key: &BlockKey) -> bool {
        let removed = self.blocks.lock().take(key);
        self.let_go(removed) > 0
    }

    /// Forgets all blocks.
    pub(super) fn clear(&self) {
        self.forget(|_, _, _| true);
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
        let bodies: Vec<Option<Body>> = keys.iter().map(&mut take).collect();
        drop(blocks);
        let removed = bodies.iter().map(Option::is_some).collect();
        self.let_go(bodies.into_iter().flatten());
        removed
    }

    /// Forgets all blocks of a tenant, save those that were put meanwhile.
    pub(super) fn erase(&self, tenant: u32, pending: impl FnOnce() -> HashSet<BlockKey>) -> u64 {
        // Asked under the lock, once.
        let (mut pending, mut keys) = (Some(pending), HashSet::new());
        self.forget(|blocks, key, block| {
            if let Some(pending) = pending.take() {
                keys = pending();
            }
            blocks.is_of(block, tenant) && !keys.contains(key)
        })
    }

    fn forget(&self, mut unwanted: impl FnMut(&Blocks, &BlockKey, &Block) -> bool) -> u64 {
        let mut blocks = self.blocks.lock();
        let gone = blocks.table.iter().filter(|(key, block)| unwanted(&blocks, key, block));
        let gone: Vec<BlockKey> = gone.map(|(key, _)| *key).collect();
        let bodies: Vec<Body> = gone.iter().filter_map(|key| blocks.take(key)).collect();
        drop(blocks);
        self.let_go(bodies) as u64
    }

    /// Every block in memory.
    pub(super) fn keys(&self) -> Vec<BlockKey> {
        self.blocks.lock().table.iter().map(|(key, _)| *key).collect()
    }

    /// Blocks in memory, those of them that are lent, and how many left so far.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        self.blocks.lock().counts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> BlockKey {
        BlockKey(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn put(host: &Host, arena: &Arc<Arena>, n: u32) -> Option<Held> {
        let mut room = host.room(arena)?;
        room.set_checksum(u64::from(n));
        // Two kinds of each tenant.
        Some(host.add(&entry(n, host.owner(n % 2, n / 2 % 2)), room))
    }

    fn entry(n: u32, owner: u32) -> Entry {
        Entry { key: key(n), parent: None, owner, priority: 0 }
    }

    fn host(replace: Replace, blocks: u64) -> (Host, u64) {
        let each = 4096 + crate::arena::CELL_OVERHEAD + block_overhead(replace);
        let care = Care { wipes: true, stays: false };
        (Host::new(blocks * each, replace, care, Arc::default()), each)
    }

    #[test]
    fn the_least_recently_used_leave_and_held_ones_stay() {
        let (host, each) = host(Replace::Lru, 4);
        let arena = host.arena(4096).unwrap();
        for n in 0..4 {
            put(&host, &arena, n);
        }
        assert_eq!(host.budget().used(), 4 * each);
        host.touch(&[key(0)]);
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
        assert_eq!(host.counts(), (4, 0, 4));
        drop((held, all));
        assert_eq!(host.erase(1, HashSet::new), 2);
        assert!(host.remove(&key(0)) && !host.remove(&key(0)));
        assert_eq!(host.budget().used(), each);
        let since = host.moment();
        let owner = host.owner(0, 0);
        let publish = |n, since| {
            host.publish(&entry(n, owner), host.room(&arena).unwrap(), Some(since), |_| Ok(()))
        };
        assert_eq!(publish(9, since), Ok(()));
        let closed = host.close_landing();
        let meanwhile = publish(10, host.moment());
        drop(closed);
        assert_eq!(
            (meanwhile, publish(10, since)),
            (Err(Refused::Throttled), Err(Refused::Throttled))
        );
        assert!(host.remove(&key(9)));
        let twice = put(&host, &arena, 6).unwrap();
        let Body::Own(cell) = twice.body else { panic!("nothing is lent") };
        assert_eq!((cell.checksum(), host.budget().used()), (6, each));
        // A number says whose a block is, whatever its kind.
        assert!(host.is_of(host.owner(0, 1), 0) && !host.is_of(host.owner(0, 1), 1));
    }
}
