//! The cache: memory, budget, selector and threads that sequences share.

use std::sync::Arc;

use kvist_kernels::{Executor, KvLayout, KvPool, Tensor3};
use kvist_policies::{Profile, Select};

use crate::arena::{Arena, CELL_OVERHEAD};
use crate::budget::Budget;
use crate::disk::DiskUse;
use crate::lend::Lenders;
use crate::live::{Clustered, Copies, Shelf, Tier};
use crate::selector::{For, Selector};
use crate::stats::{Counters, Stats};
use crate::summaries::{Stores, TILE};
use crate::{Error, Geometry, Sequence};

mod builder;

pub use builder::Builder;

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
    /// A GPU that keeps copies of pages.
    #[cfg(feature = "cuda")]
    pub(crate) device: Option<crate::device::DeviceTier>,
    /// Rows in the order of clusters, where all pages lie in host memory and it was asked for.
    pub(crate) copies: Option<Copies>,
    /// Who keeps pages of sequences that are gone.
    pub(crate) lenders: Lenders,
    /// The tier's directory, where sessions are saved.
    pub(crate) shelf: Option<Arc<Shelf>>,
    /// Identity of the weights; empty if it was not given.
    pub(crate) model: Vec<u8>,
}

/// How often room is made for one call.
const ATTEMPTS: u32 = 20;
/// The share of the frames that one append fills at a time.
const PORTION: usize = 8;

impl Cache {
    /// Settings for a cache of this geometry.
    #[must_use]
    pub fn builder(geometry: Geometry) -> Builder {
        Builder::new(geometry)
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
        let copied = shared.copies.as_ref().map_or(0, Copies::bytes);
        let cells = pages + small + shared.stores.cells();
        let mut stats = Stats {
            budget_bytes: shared.budget.limit(),
            used_bytes: shared.budget.used(),
            page_bytes: pages * page_bytes + small_bytes,
            cluster_bytes: small_bytes + copied,
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

    /// What its GPU holds and has done; `None` without a device tier.
    #[cfg(feature = "cuda")]
    #[must_use]
    pub fn device(&self) -> Option<crate::DeviceUse> {
        self.shared.device.as_ref().map(crate::device::DeviceTier::usage)
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
        self.drop_copies(bytes)
            || tier.is_some_and(|tier| tier.make_room(bytes, true))
            || self.shared.lenders.give_back(&self.shared, bytes)
    }

    /// Gives up rows in the order of clusters that pages have, too, until `bytes` more are free; whether any
    /// were.
    pub(crate) fn drop_copies(&self, bytes: u64) -> bool {
        self.shared.copies.as_ref().is_some_and(|copies| copies.give_way(bytes))
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
