//! The cache: memory, budget, selector and threads that sequences share.

use std::sync::Arc;
use std::time::Duration;

use kvist_kernels::{Executor, KvLayout, KvPool, Tensor3};
use kvist_policies::{Profile, Select};

use crate::arena::{Arena, CELL_OVERHEAD, Care};
use crate::budget::Budget;
use crate::codec::Codec;
use crate::disk::{Disk, DiskOptions, DiskUse};
use crate::format::MODEL_MAX;
use crate::lend::Lenders;
use crate::live::{self, Below, Clustered, Shelf, Tier};
use crate::selector::{For, Selector};
use crate::stats::{Counters, Stats};
use crate::summaries::{Store, Stores, TILE};
use crate::vfs::{self, Vfs};
use crate::{Error, Geometry, Sequence};

/// The KV cache of one model: pages of all its sequences under one byte budget.
///
/// Cheap to clone; clones are the same cache. Memory stays reserved until the last clone and the
/// last sequence are gone.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) geometry: Geometry,
    pub(crate) dense_layers: Vec<bool>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) pages: Arc<Arena>,
    pub(crate) stores: Stores,
    pub(crate) selector: Selector,
    pub(crate) exec: Executor,
    pub(crate) counters: Counters,
    pub(crate) tier: Option<Tier>,
    /// Who keeps pages of sequences that are gone.
    pub(crate) lenders: Lenders,
    /// The tier's directory, where sessions are saved.
    pub(crate) shelf: Option<Arc<Shelf>>,
    /// Identity of the weights; empty if it was not given.
    pub(crate) model: Vec<u8>,
}

/// Settings of a [`Cache`], each with a default.
#[derive(Clone, Debug)]
pub struct Builder {
    geometry: Geometry,
    host_bytes: u64,
    prefault: bool,
    select: Select,
    profile: Option<Arc<Profile>>,
    dense_layers: Vec<usize>,
    threads: Option<usize>,
    exec: Option<Executor>,
    below: Option<Arc<dyn Below>>,
    live: live::Options,
    disk: Option<DiskOptions>,
    disk_codec: Codec,
    vfs: Option<Arc<dyn Vfs>>,
    model: Vec<u8>,
}

/// How often room is made for one call.
const ATTEMPTS: u32 = 20;
/// The share of the frames that one append fills at a time.
const PORTION: usize = 8;

/// Host tier where nothing is said.
const HOST_BYTES_DEFAULT: u64 = 1 << 30;

impl Builder {
    /// Bytes of host memory for pages, summaries and tables: a hard limit. Default 1 GiB.
    #[must_use]
    pub fn host_bytes(mut self, bytes: u64) -> Builder {
        self.host_bytes = bytes;
        self
    }

    /// Touches the memory of the whole host budget when the cache is made, and keeps it: no append
    /// waits for the system to hand out a page. Default no: memory is touched when it is first used,
    /// and goes back when nobody uses it.
    #[must_use]
    pub fn prefault(mut self, on: bool) -> Builder {
        self.prefault = on;
        self
    }

    /// The selector of new sequences. Default [`Select::Full`].
    #[must_use]
    pub fn select(mut self, select: Select) -> Builder {
        self.select = select;
        self
    }

    /// How each KV head of new sequences is read: densely, as a stream, or by the selector with its own share
    /// of the budget. Default: all alike.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Builder {
        self.profile = Some(Arc::new(profile));
        self
    }

    /// Layers that always attend densely and keep no summaries. Default none.
    #[must_use]
    pub fn dense_layers(mut self, layers: &[usize]) -> Builder {
        self.dense_layers = layers.to_vec();
        self
    }

    /// Threads that kernels may use. Default: all cores.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Builder {
        self.threads = Some(threads);
        self
    }

    /// Runs kernels on the caller's own pool instead.
    #[must_use]
    pub fn executor(mut self, exec: Executor) -> Builder {
        self.exec = Some(exec);
        self
    }

    /// Whether pages that a layer will probably select are read before they are asked for. Default
    /// yes. Only with a lower tier.
    #[must_use]
    pub fn prefetch(mut self, on: bool) -> Builder {
        self.live.prefetch = on;
        self
    }

    /// Whether finished pages are written below before their frames are needed, on a thread named
    /// `kvist-demote`. Default yes; without, who needs a frame writes. Only with a lower tier.
    #[must_use]
    pub fn write_ahead(mut self, on: bool) -> Builder {
        self.live.write_ahead = on;
        self
    }

    /// Whether selectors pick whole pages even from sequences that are all in host memory, so that
    /// what is selected never depends on what is there. Default no: such sequences are selected from
    /// token by token. Only with a lower tier. Selectors over clusters pick none in any case.
    #[must_use]
    pub fn whole_pages(mut self, on: bool) -> Builder {
        self.live.whole_pages = on;
        self
    }

    /// Reads from below that take longer are [`MissReason::Timeout`](crate::MissReason). Default 10 s.
    #[must_use]
    pub fn read_deadline(mut self, deadline: Duration) -> Builder {
        self.live.deadline = deadline;
        self
    }

    /// Keeps on disk what the host budget does not hold. Nothing of a sequence is lost when the disk
    /// is full: appending is refused then.
    #[must_use]
    pub fn disk(mut self, options: DiskOptions) -> Builder {
        self.disk = Some(options);
        self
    }

    /// How pages are stored on disk. Default [`Codec::lossless`].
    #[must_use]
    pub fn disk_codec(mut self, codec: Codec) -> Builder {
        self.disk_codec = codec;
        self
    }

    /// What tells this model's weights from all others, 1 to 256 bytes: a hash of them, or a name and
    /// revision that the caller vouches for. Sessions are saved for it, and opened only for it.
    #[must_use]
    pub fn model(mut self, identity: impl AsRef<[u8]>) -> Builder {
        self.model = identity.as_ref().to_vec();
        self
    }

    /// The file system that the disk tier uses. Default: the operating system's.
    #[must_use]
    pub fn vfs(mut self, vfs: Arc<dyn Vfs>) -> Builder {
        self.vfs = Some(vfs);
        self
    }

    /// Keeps what the host budget does not hold in this tier.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn below(mut self, below: Arc<dyn Below>) -> Builder {
        self.below = Some(below);
        self
    }

    /// Makes the cache. Memory is reserved now and touched when used.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Layer`] or [`Error::Select`] for impossible settings, or a profile of
    /// another model or geometry,
    /// [`Error::OverBudget`] if not even a page fits, [`Error::System`] if the system refuses.
    pub fn build(self) -> Result<Cache, Error> {
        self.geometry.validate()?;
        if self.model.len() > MODEL_MAX {
            let expected = format!("at most {MODEL_MAX} bytes");
            return Err(Error::setting("model", expected, self.model.len()));
        }
        let layers = self.geometry.layers;
        let mut dense_layers = vec![false; layers];
        for layer in self.dense_layers {
            *dense_layers.get_mut(layer).ok_or(Error::Layer { layer, layers })? = true;
        }
        let page = self.geometry.page_bytes();
        let needed = page as u64 + CELL_OVERHEAD;
        if self.host_bytes < needed {
            let (free, budget) = (self.host_bytes, self.host_bytes);
            return Err(Error::OverBudget { needed, free, budget });
        }
        let budget = Arc::new(Budget::new(self.host_bytes));
        let stores = Stores::default();
        let to = For {
            geometry: &self.geometry,
            dense_layers: &dense_layers,
            model: &self.model,
            budget: &budget,
            tiered: self.disk.is_some() || self.below.is_some(),
        };
        let selector = Selector::new(&self.select, self.profile.as_ref(), &stores, &to)?;
        let exec = match (self.exec, self.threads) {
            (Some(exec), _) => exec,
            (None, threads) => {
                let all = || std::thread::available_parallelism().map_or(1, |n| n.get());
                Executor::with_threads(threads.unwrap_or_else(all))?
            }
        };
        let most = u32::MAX as usize / self.geometry.page_tokens;
        let care = Care { stays: self.prefault, ..Care::default() };
        let pages = Arena::new(page, most, budget.clone(), care)?;
        if self.prefault {
            touch(&pages, selector.store.as_ref(), &self.geometry, budget.limit())?;
        }
        let tier =
            |below| Tier::new(below, self.live, &self.geometry, pages.clone(), budget.clone());
        let open =
            |options| open_shelf(self.vfs, options, &self.geometry, &self.disk_codec, &self.model);
        let shelf = match self.below {
            None => self.disk.map(open).transpose()?,
            Some(_) => None,
        };
        shelf.iter().filter(|_| self.prefault).for_each(|shelf| shelf.disk().prefault());
        let of_clusters = live::clustered_geometry(&self.geometry);
        let clusters_below: Option<Arc<dyn Below>> = match (&self.below, &shelf) {
            (Some(below), _) => Some(below.clone()),
            (None, Some(shelf)) => Some(Arc::new(shelf.of_clusters(&of_clusters)?)),
            (None, None) => None,
        };
        let clustered = |below| Clustered::new(below, self.live, of_clusters, budget.clone());
        let clustered = clusters_below.map(clustered).transpose()?;
        let below = self.below.or(shelf.clone().map(|shelf| shelf as Arc<dyn Below>));
        let tier = below.map(tier).transpose()?;
        let tier = tier.zip(clustered).map(|(tier, clustered)| tier.with_clustered(clustered));
        let shared = Shared {
            pages,
            tier,
            lenders: Lenders::default(),
            shelf,
            model: self.model,
            geometry: self.geometry,
            dense_layers,
            budget,
            stores,
            selector,
            exec,
            counters: Counters::default(),
        };
        Ok(Cache { shared: Arc::new(shared) })
    }
}

/// Touches the memory of a budget: for pages and their summaries in the proportion in which tokens
/// need them.
fn touch(
    pages: &Arena,
    store: Option<&Store>,
    geometry: &Geometry,
    budget: u64,
) -> Result<(), Error> {
    let Some(store) = store else { return pages.touch(budget) };
    let page = pages.cell_bytes() as f64 / geometry.page_tokens as f64;
    let summary = store.arena.cell_bytes() as f64 / TILE as f64;
    let of_pages = (budget as f64 * page / (page + summary)) as u64;
    pages.touch(of_pages)?;
    store.arena.touch(budget - of_pages)
}

/// The disk tier for the pages of sequences.
fn open_shelf(
    vfs: Option<Arc<dyn Vfs>>,
    options: DiskOptions,
    geometry: &Geometry,
    codec: &Codec,
    model: &[u8],
) -> Result<Arc<Shelf>, Error> {
    if options.is_sealed() {
        let expected = "a prefix store; pages of sequences are not sealed";
        return Err(Error::setting("seal", expected, "a cache"));
    }
    let disk = Arc::new(Disk::open(vfs::or_default(vfs)?, options)?);
    Ok(Arc::new(Shelf::new(disk, geometry, codec, model)?))
}

impl Cache {
    /// Settings for a cache of this geometry.
    #[must_use]
    pub fn builder(geometry: Geometry) -> Builder {
        Builder {
            geometry,
            host_bytes: HOST_BYTES_DEFAULT,
            prefault: false,
            select: Select::Full,
            profile: None,
            dense_layers: Vec::new(),
            threads: None,
            exec: None,
            below: None,
            disk: None,
            disk_codec: Codec::lossless(),
            vfs: None,
            model: Vec::new(),
            live: live::Options::default(),
        }
    }

    /// The model's shape.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    /// The selector of new sequences.
    #[must_use]
    pub fn select(&self) -> &Select {
        &self.shared.selector.select
    }

    /// How each KV head of new sequences is read, if not all alike.
    #[must_use]
    pub fn profile(&self) -> Option<&Profile> {
        self.shared.selector.profile.as_deref()
    }

    /// A new, empty sequence.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence::new(self.clone(), self.shared.selector.clone())
    }

    /// Bytes held and work done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let mut stats = Stats::default();
        if let Some(tier) = &shared.tier {
            tier.fill(&mut stats);
        }
        let (pages, page_bytes) = (shared.pages.used() as u64, shared.pages.cell_bytes() as u64);
        let clustered = shared.tier.as_ref().and_then(Tier::clustered);
        let (small, small_bytes) = clustered.map_or((0, 0), Clustered::used);
        let cells = pages + small + shared.stores.cells();
        let mut stats = Stats {
            budget_bytes: shared.budget.limit(),
            used_bytes: shared.budget.used(),
            page_bytes: pages * page_bytes + small_bytes,
            summary_bytes: shared.stores.bytes(),
            overhead_bytes: cells * CELL_OVERHEAD + shared.budget.tables(),
            ..stats
        };
        shared.counters.fill(&mut stats);
        stats
    }

    /// What its directory holds, and how the disk is; `None` without a disk tier.
    #[must_use]
    pub fn disk(&self) -> Option<DiskUse> {
        self.shared.shelf.as_ref().map(|shelf| shelf.disk().usage())
    }

    /// A selector for sequences of this cache.
    pub(crate) fn selector(
        &self,
        select: &Select,
        profile: Option<&Arc<Profile>>,
    ) -> Result<Selector, Error> {
        let shared = &self.shared;
        let to = For {
            geometry: &shared.geometry,
            dense_layers: &shared.dense_layers,
            model: &shared.model,
            budget: &shared.budget,
            tiered: shared.tier.is_some(),
        };
        Selector::new(select, profile, &shared.stores, &to)
    }

    pub(crate) fn check_layer(&self, layer: usize) -> Result<(), Error> {
        let layers = self.shared.geometry.layers;
        if layer < layers { Ok(()) } else { Err(Error::Layer { layer, layers }) }
    }

    /// Checks keys and values of some tokens.
    pub(crate) fn check_rows(&self, k: &Tensor3, v: &Tensor3) -> Result<(), Error> {
        let g = &self.shared.geometry;
        for (what, t, dim) in [("keys", k, g.dim_k), ("values", v, g.dim_v)] {
            let found = t.shape();
            if found[1..] != [g.kv_heads, dim] {
                let expected = format!("[tokens, {} KV heads, {dim}]", g.kv_heads);
                return Err(Error::Shape { what, expected, found });
            }
            if t.dtype() != g.dtype {
                return Err(Error::DType { what, expected: g.dtype, found: t.dtype() });
            }
        }
        if k.shape()[0] != v.shape()[0] {
            let expected = format!("as many tokens as the keys, {}", k.shape()[0]);
            return Err(Error::Shape { what: "values", expected, found: v.shape() });
        }
        Ok(())
    }

    /// Tokens that are appended to a layer at a time. With a lower tier their pages take a small part of the
    /// frames: the others can leave.
    pub(crate) fn portion(&self) -> usize {
        let (shared, g) = (&self.shared, &self.shared.geometry);
        match shared.tier {
            Some(_) => {
                let pages = shared.pages.cells() / PORTION / g.kv_heads;
                (pages * g.page_tokens / TILE * TILE).max(TILE)
            }
            None => usize::MAX,
        }
    }

    /// Does something that takes memory, demoting pages while there is not enough, and giving back
    /// published blocks where that does not help. It must take all it needs or nothing.
    pub(crate) fn with_room<T>(
        &self,
        mut take: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        // What it takes before it fails is given back, and others may be quicker: so more room every
        // time, and not for ever.
        for attempt in 0..ATTEMPTS {
            match take() {
                Err(Error::OverBudget { needed, free, budget }) if needed <= budget => {
                    let room = needed.saturating_sub(free).max(1) << attempt;
                    if !self.make_room(room.min(budget)) {
                        break;
                    }
                }
                done => return done,
            }
        }
        take()
    }

    /// Does something that makes room for itself by demoting pages; once more if that was not enough and
    /// published blocks can be given back.
    pub(crate) fn with_frames<T>(
        &self,
        mut take: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        match take() {
            Err(Error::OverBudget { needed, .. })
                if self.shared.lenders.give_back(&self.shared, needed) =>
            {
                take()
            }
            done => done,
        }
    }

    fn make_room(&self, bytes: u64) -> bool {
        let tier = self.shared.tier.as_ref();
        tier.is_some_and(|tier| tier.make_room(bytes, true))
            || self.shared.lenders.give_back(&self.shared, bytes)
    }

    /// All pages, as kernels see them.
    pub(crate) fn pool(&self) -> Result<KvPool<'_>, Error> {
        let shared = &self.shared;
        let g = &shared.geometry;
        let layout = KvLayout::page(g.page_tokens, g.dim_k, g.dim_v);
        let k = shared.pages.base();
        let v = k.wrapping_add(g.page_tokens * g.dim_k * g.dtype.size());
        // SAFETY: lists only name pages that a borrowed sequence holds, up to its length, and that are
        // leased where they could leave; written pages have one holder, who is borrowed mutably
        // meanwhile.
        Ok(unsafe { KvPool::from_raw(k, v, g.dtype, layout, shared.pages.cells()) }?)
    }
}
