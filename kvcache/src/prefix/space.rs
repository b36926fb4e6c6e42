//! A space: the blocks of one model, layout, tenant and adapter.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::host::{Body, Held};
use super::keys::Prefix;
use super::lent::Lent;
use super::load::Wave;
use super::options::SpaceOptions;
use super::rows::{BlockRows, BlockRowsMut};
use super::{PrefixStore, Shared, tiles};
use crate::Error;
use crate::arena::{Arena, Cell};
use crate::codec::Plan;
use crate::disk::{Disk, Refused};
use crate::format::{BlockKey, BlockLayout, KeyParts};
use crate::miss::MissReason;
use crate::seal::TenantKey;

/// What all handles of a space share.
#[derive(Debug)]
pub(super) struct Inner {
    /// Tells spaces apart: two with the same id have the same keys.
    id: BlockKey,
    pub(super) parts: KeyParts,
    pub(super) plan: Plan,
    pub(super) arena: Arc<Arena>,
    /// Number of the tenant with model and layout.
    pub(super) owner: u32,
    pub(super) tenant: u32,
    pub(super) tag: [u8; 16],
    pub(super) seal: Option<TenantKey>,
    pub(super) loss_max: u8,
    pub(super) priority: i8,
}

/// The blocks of one model, layout, tenant and adapter. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Space {
    pub(super) shared: Arc<Shared>,
    pub(super) inner: Arc<Inner>,
}

/// How much of what was asked for is there.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Leading blocks whose bytes were checked and written to the caller's rows.
    pub blocks: usize,
    /// Why the next one was not, if there was one.
    pub miss: Option<MissReason>,
    /// How many of the blocks came from the disk tier.
    pub from_disk: usize,
}

/// A block's bytes in canonical order, held in memory as long as this value.
#[derive(Clone, Debug)]
pub struct Lease {
    cell: Arc<Cell>,
}

impl std::ops::Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.cell.bytes()
    }
}

impl PrefixStore {
    /// A space of this store.
    ///
    /// # Errors
    /// [`Error::Setting`] for impossible settings: an empty salt in a store of several tenants, a
    /// layout that makes no sense, a block larger than the host budget.
    pub fn space(&self, options: SpaceOptions) -> Result<Space, Error> {
        let SpaceOptions { model, layout, salt, adapter, extra, codec, loss_max, priority } =
            options;
        let shared = &self.shared;
        shared.check_open()?;
        if shared.multi_tenant && salt.is_empty() {
            return Err(Error::setting("salt", "one for every tenant", "an empty one"));
        }
        let plan = Plan::new(&layout, &codec)?;
        let parts = KeyParts { salt, model, layout: *plan.fingerprint(), adapter, extra };
        parts.validate()?;
        let needed = (layout.bytes() as u64).saturating_add(shared.host.block_overhead());
        let budget = shared.host.budget().limit();
        if needed > budget {
            return Err(Error::OverBudget { needed, free: budget, budget });
        }
        let (tenant, tag) = shared.tenant_of(&parts.salt);
        let seal = shared.master.as_ref().and_then(|m| TenantKey::derive(m, &parts.salt));
        let inner = Inner {
            id: parts.key(&shared.secret, &BlockKey::ROOT, &[], 0),
            arena: shared.host.arena(layout.bytes())?,
            owner: shared.host.owner(tenant, shared.kind(model, parts.layout)),
            tenant,
            tag,
            seal,
            loss_max,
            priority,
            plan,
            parts,
        };
        Ok(Space { shared: shared.clone(), inner: Arc::new(inner) })
    }
}

impl Space {
    /// The blocks' layout.
    #[must_use]
    pub fn layout(&self) -> &BlockLayout {
        self.inner.plan.layout()
    }

    /// Whether the space can be used by this process; as [`PrefixStore::check`]. Where it cannot, what
    /// returns no error finds nothing.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn check(&self) -> Result<(), Error> {
        self.shared.check_open()
    }

    /// Whether a prefix was made by this space, or by one of the same store, model, layout, tenant,
    /// adapter and extra: blocks of another one are not found here, and not stored under its keys.
    ///
    /// # Errors
    /// [`Error::Setting`] if not.
    pub fn owns(&self, prefix: &Prefix) -> Result<(), Error> {
        match prefix.space == self.inner.id {
            true => Ok(()),
            false => Err(Error::setting("prefix", "one of this space", "one of another space")),
        }
    }

    /// The full blocks of a token stream from its start. A last block that is not full is left out.
    ///
    /// # Errors
    /// [`Error::Setting`] for a token id of 2^31 or more.
    pub fn prefix(&self, tokens: &[u32]) -> Result<Prefix, Error> {
        self.prefix_after(&BlockKey::ROOT, tokens)
    }

    /// [`Space::prefix`] of the tokens that follow a block.
    ///
    /// # Errors
    /// As [`Space::prefix`].
    pub fn prefix_after(&self, parent: &BlockKey, tokens: &[u32]) -> Result<Prefix, Error> {
        let block_tokens = self.layout().block_tokens as usize;
        let keys = self.inner.parts.chain(&self.shared.secret, parent, tokens, block_tokens)?;
        let tokens = match self.shared.verify_tokens {
            true => tokens[..keys.len() * block_tokens].to_vec(),
            false => Vec::new(),
        };
        let before = (*parent != BlockKey::ROOT).then_some(*parent);
        Ok(Prefix::new(self.inner.id, before, (keys, tokens), block_tokens))
    }

    /// Blocks by keys that were computed elsewhere, with [`Space::prefix`] of a store with the same
    /// key secret. Their tokens are not compared.
    #[must_use]
    pub fn prefix_of_keys(&self, keys: Vec<BlockKey>) -> Prefix {
        let block_tokens = self.layout().block_tokens as usize;
        Prefix::new(self.inner.id, None, (keys, Vec::new()), block_tokens)
    }

    /// [`Space::prefix_of_keys`] of blocks that follow others of their chain: the one before them, and the
    /// chain's second one, by which an order of replacement that learns tells chains apart. Those before leave memory
    /// after them.
    #[must_use]
    pub fn prefix_of_keys_after(
        &self,
        parent: &BlockKey,
        second: &BlockKey,
        keys: Vec<BlockKey>,
    ) -> Prefix {
        Prefix { before: Some(*parent), chain: *second, ..self.prefix_of_keys(keys) }
    }

    /// Blocks of which only hashes are known that another system computed, such as an engine's chained
    /// block hashes: in full, and of a function without collisions. They are never found by tokens.
    #[must_use]
    pub fn prefix_of_hashes(&self, hashes: &[&[u8]]) -> Prefix {
        let key = |hash: &&[u8]| self.inner.parts.foreign(&self.shared.secret, hash);
        self.prefix_of_keys(hashes.iter().map(key).collect())
    }

    /// Leading blocks that are stored, as far as the indexes know.
    #[must_use]
    pub fn contains(&self, prefix: &Prefix) -> usize {
        if self.check().is_err() || self.owns(prefix).is_err() {
            return 0;
        }
        prefix.keys.iter().take_while(|key| self.has(key)).count()
    }

    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.shared.host.contains(key, self.inner.tenant) || self.is_on_disk(key)
    }

    pub(super) fn is_on_disk(&self, key: &BlockKey) -> bool {
        let on_disk = |disk: &Arc<Disk>| disk.look(key, &self.inner.tag).is_ok();
        self.shared.disk.as_ref().is_some_and(on_disk)
    }

    /// Stores blocks `first..` of a prefix: copied and checksummed now, written to disk behind. The
    /// first writer of a key wins; its bytes never change.
    ///
    /// A result of `Ok` means that the block can be had; [`PrefixStore::flush`] waits until it is
    /// durable.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are more rows than blocks, [`Error::Closed`].
    pub fn put(
        &self,
        prefix: &Prefix,
        first: usize,
        rows: &[BlockRows],
    ) -> Result<Vec<Result<(), Refused>>, Error> {
        self.shared.check_open()?;
        self.owns(prefix)?;
        prefix.check(&(first..first.saturating_add(rows.len())), rows.len())?;
        let one = |(i, rows)| self.put_one(prefix, first + i, rows);
        let results: Vec<Result<(), Refused>> = rows.iter().enumerate().map(one).collect();
        // Those before were there, and were used when they were read.
        let new = results.iter().take_while(|r| **r == Err(Refused::AlreadyPresent)).count();
        let stored = results[new..].iter().take_while(|r| r.is_ok()).count();
        self.note(prefix, first + new..first + new + stored, false);
        self.make_room();
        Ok(results)
    }

    fn put_one(&self, prefix: &Prefix, block: usize, rows: &BlockRows) -> Result<(), Refused> {
        let (shared, inner, key) = (&self.shared, &self.inner, &prefix.keys[block]);
        if self.has(key) {
            return Err(Refused::AlreadyPresent);
        }
        let mut room = shared.host.room(&inner.arena).ok_or(Refused::Throttled)?;
        let tiles = tiles::gather(inner.plan.layout(), rows, room.bytes());
        room.set_checksum(tiles::block_hash(&tiles));
        shared.wait_for_writer(inner.plan.layout().bytes());
        // In sight and on its way to disk in one step: evicting finds both or neither.
        let tokens = prefix.tokens(block);
        let behind = |body| shared.behind(inner, *key, tokens, (body, Some(tiles)), false);
        shared.host.publish(&self.entry(prefix, block), room, None, behind)?;
        shared.counters.put(inner.plan.layout().bytes());
        Ok(())
    }

    /// Restores blocks `range` into the caller's rows: the longest run of leading blocks that are
    /// there and right. Rows of later blocks are undefined.
    ///
    /// # Errors
    /// [`Error::Setting`] for a range outside the prefix, [`Error::Count`] for another number of
    /// rows, [`Error::Closed`].
    pub fn get(
        &self,
        prefix: &Prefix,
        range: Range<usize>,
        rows: &mut [BlockRowsMut],
    ) -> Result<Restored, Error> {
        self.get_layers(prefix, range, 0..self.layout().num_layers(), rows)
    }

    /// [`Space::get`] of some layers only; the rows of others are left alone. From disk, only these
    /// layers' bytes are read.
    ///
    /// # Errors
    /// As [`Space::get`], and [`Error::Setting`] for layers outside the layout.
    pub fn get_layers(
        &self,
        prefix: &Prefix,
        range: Range<usize>,
        layers: Range<usize>,
        rows: &mut [BlockRowsMut],
    ) -> Result<Restored, Error> {
        self.shared.check_open()?;
        self.owns(prefix)?;
        prefix.check(&range, rows.len())?;
        let all = self.layout().num_layers();
        if layers.is_empty() || layers.end > all {
            let expected = format!("a range inside 0..{all}");
            return Err(Error::setting("layers", expected, format!("{layers:?}")));
        }
        let heads = self.layout().num_heads();
        let pages = layers.start * heads..layers.end * heads;
        let mut restored = Restored { blocks: 0, miss: None, from_disk: 0 };
        let started = Instant::now();
        // Who reads layer by layer uses a block once.
        let uses = layers.start == 0;
        if uses {
            self.shared.host.touch(&prefix.keys[range.clone()]);
        }
        let mut wave = Wave::new(self, prefix, pages);
        for block in range.clone() {
            restored.blocks += usize::from(bug!("counted_before_copy"));
            match wave.next(block, range.end) {
                Ok(source) => {
                    let out = &mut rows[block - range.start];
                    source.write(self.layout(), wave.pages(), out);
                    restored.blocks += usize::from(!bug!("counted_before_copy"));
                    restored.from_disk += usize::from(source.from_disk);
                }
                Err(reason) => {
                    self.shared.counters.miss(reason);
                    restored.miss = Some(reason);
                    break;
                }
            }
        }
        let bytes = |blocks| blocks * self.layout().bytes() / all * layers.len();
        self.shared.counters.got(restored.blocks, restored.from_disk, bytes(restored.blocks));
        if restored.from_disk > 0 {
            self.shared.counters.read(bytes(restored.from_disk), started.elapsed());
        }
        if uses {
            let used = range.start..range.start + restored.blocks;
            self.note(prefix, used.clone(), restored.from_disk > 0);
            self.offer(prefix, used, false);
        }
        Ok(restored)
    }

    /// A block's bytes where they are in memory, without a copy; `None` if it is not in memory. A
    /// block that a cache lends (see [`Space::publish`]) is in pieces there, and is copied.
    #[must_use]
    pub fn lease(&self, key: &BlockKey) -> Option<Lease> {
        self.check().ok()?;
        self.shared.host.touch(std::slice::from_ref(key));
        match self.held(key).ok()?.body {
            Body::Own(cell) => Some(Lease { cell }),
            Body::Lent(lent) => self.copy_of(&lent).map(|cell| Lease { cell }),
        }
    }

    /// A lent block in one piece, in memory of the store; `None` if it cannot be had or has no room.
    fn copy_of(&self, lent: &Lent) -> Option<Arc<Cell>> {
        let layout = self.layout();
        let pages = lent.pages(0..layout.pages()).ok()?;
        let mut room = self.shared.host.room(&self.inner.arena)?;
        let to = room.bytes().chunks_exact_mut(layout.page_bytes());
        to.zip(&pages).for_each(|(to, page)| to.copy_from_slice(page.bytes()));
        match room.hold(self.inner.owner).body {
            Body::Own(cell) => Some(cell),
            Body::Lent(_) => None,
        }
    }

    /// A block in memory, checked as far as the store is set to.
    pub(super) fn held(&self, key: &BlockKey) -> Result<Held, MissReason> {
        let held = self.shared.host.get(key).ok_or(MissReason::Absent)?;
        if held.owner != self.inner.owner {
            return Err(match self.shared.host.is_of(held.owner, self.inner.tenant) {
                true => MissReason::LayoutMismatch,
                false => MissReason::Absent,
            });
        }
        if let Body::Own(cell) = &held.body
            && self.shared.verify_leases
            && tiles::hash(self.layout(), cell.bytes()) != cell.checksum()
        {
            self.shared.host.remove(key);
            return Err(MissReason::Checksum);
        }
        Ok(held)
    }

    /// Forgets blocks in every tier. Returns how many were there. Their bytes on disk leave with their
    /// segments; [`PrefixStore::erase_tenant`] makes sure that they leave.
    pub fn evict(&self, keys: &[BlockKey]) -> usize {
        if self.check().is_err() {
            return 0;
        }
        // What is being read from disk meanwhile does not come back to memory.
        let shared = &self.shared;
        let _closed = shared.host.close_landing();
        shared.forget(|key, _| keys.contains(key));
        let below = |key| shared.disk.as_ref().is_some_and(|d| d.remove(key));
        let below: Vec<bool> = keys.iter().map(below).collect();
        // Last from the tier that answers first, so that a block leaves once.
        let near = shared.host.remove_all(keys, || shared.queue.pending());
        below.iter().zip(near).filter(|(below, near)| **below || *near).count()
    }
}
