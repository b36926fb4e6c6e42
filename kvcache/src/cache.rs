//! The cache: memory, budget, selector and threads that sequences share.

use std::sync::Arc;

use kvist_kernels::{Executor, KvLayout, KvPool};
use kvist_policies::Select;

use crate::arena::{Arena, CELL_OVERHEAD};
use crate::budget::Budget;
use crate::stats::{Counters, Stats};
use crate::summaries::{Selector, Stores};
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
}

/// Settings of a [`Cache`], each with a default.
#[derive(Clone, Debug)]
pub struct Builder {
    geometry: Geometry,
    host_bytes: u64,
    select: Select,
    dense_layers: Vec<usize>,
    threads: Option<usize>,
    exec: Option<Executor>,
}

/// Host tier where nothing is said.
const HOST_BYTES_DEFAULT: u64 = 1 << 30;

impl Builder {
    /// Bytes of host memory for pages, summaries and tables: a hard limit. Default 1 GiB.
    #[must_use]
    pub fn host_bytes(mut self, bytes: u64) -> Builder {
        self.host_bytes = bytes;
        self
    }

    /// The selector of new sequences. Default [`Select::Full`].
    #[must_use]
    pub fn select(mut self, select: Select) -> Builder {
        self.select = select;
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

    /// Makes the cache. Memory is reserved now and touched when used.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Layer`] or [`Error::Select`] for impossible settings,
    /// [`Error::OverBudget`] if not even a page fits, [`Error::System`] if the system refuses.
    pub fn build(self) -> Result<Cache, Error> {
        self.geometry.validate()?;
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
        let selector = stores.selector(&self.select, &self.geometry, &budget)?;
        let exec = match (self.exec, self.threads) {
            (Some(exec), _) => exec,
            (None, threads) => {
                let all = || std::thread::available_parallelism().map_or(1, |n| n.get());
                Executor::with_threads(threads.unwrap_or_else(all))?
            }
        };
        let shared = Shared {
            pages: Arena::new(page, u32::MAX as usize / self.geometry.page_tokens, budget.clone())?,
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

impl Cache {
    /// Settings for a cache of this geometry.
    #[must_use]
    pub fn builder(geometry: Geometry) -> Builder {
        Builder {
            geometry,
            host_bytes: HOST_BYTES_DEFAULT,
            select: Select::Full,
            dense_layers: Vec::new(),
            threads: None,
            exec: None,
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

    /// A new, empty sequence.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence::new(self.clone(), self.shared.selector.clone())
    }

    /// Bytes held and work done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let (pages, page_bytes) = (shared.pages.used() as u64, shared.pages.cell_bytes() as u64);
        let cells = pages + shared.stores.cells();
        let mut stats = Stats {
            budget_bytes: shared.budget.limit(),
            used_bytes: shared.budget.used(),
            page_bytes: pages * page_bytes,
            summary_bytes: shared.stores.bytes(),
            overhead_bytes: cells * CELL_OVERHEAD + shared.budget.tables(),
            ..Stats::default()
        };
        shared.counters.fill(&mut stats);
        stats
    }

    pub(crate) fn check_layer(&self, layer: usize) -> Result<(), Error> {
        let layers = self.shared.geometry.layers;
        if layer < layers { Ok(()) } else { Err(Error::Layer { layer, layers }) }
    }

    /// All pages, as kernels see them.
    pub(crate) fn pool(&self) -> Result<KvPool<'_>, Error> {
        let shared = &self.shared;
        let g = &shared.geometry;
        let layout = KvLayout::page(g.page_tokens, g.dim_k, g.dim_v);
        let k = shared.pages.base();
        let v = k.wrapping_add(g.page_tokens * g.dim_k * g.dtype.size());
        // SAFETY: lists only name pages that a borrowed sequence holds, up to its length; written
        // pages have one holder, who is borrowed mutably meanwhile.
        Ok(unsafe { KvPool::from_raw(k, v, g.dtype, layout, shared.pages.cells()) }?)
    }
}
