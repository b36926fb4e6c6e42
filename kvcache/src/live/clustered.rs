//! A tier beside that of pages, for rows in the order of clusters: small pages, each of one cluster, so
//! that a cluster is read, and stays in host memory, by itself.

use std::sync::Arc;

use kvist_kernels::{KvLayout, KvPool};

use super::below::{Below, Held, StripeOut};
use super::stripe::Stripe;
use super::tier::{Options, Tier};
use crate::arena::{Arena, Care, Cell};
use crate::budget::{Budget, Charge};
use crate::stats::Stats;
use crate::{Error, Geometry, MissReason};

/// Pages of a stripe: what is stored, and forgotten, at once.
pub(crate) const STRIPE_PAGES: usize = 16;
/// Bytes of a page, where its tokens are not too many or too few for that: the least that a disk reads.
const PAGE_BYTES: usize = 4096;
/// Bytes that wait to be stored, and the share of the budget they may take.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_SHARE: u64 = 16;

/// Pages of clusters.
#[derive(Debug)]
pub(crate) struct Clustered {
    tier: Tier,
    arena: Arc<Arena>,
    /// Of a stripe: its pages stand for KV heads.
    geometry: Geometry,
}

/// Stripes to be stored.
#[derive(Default)]
pub(crate) struct Batch {
    cells: Vec<Arc<Cell>>,
    charges: Vec<Charge>,
}

/// The geometry of stripes of pages of clusters, in a cache of this geometry.
pub(crate) fn geometry(of: &Geometry) -> Geometry {
    let fills = |&tokens: &usize| tokens * of.token_bytes() >= PAGE_BYTES;
    let page_tokens = [4, 8].into_iter().find(fills).unwrap_or(16);
    let (layers, q_heads, kv_heads) = (1, STRIPE_PAGES, STRIPE_PAGES);
    Geometry { layers, q_heads, kv_heads, page_tokens, ..of.clone() }
}

impl Clustered {
    /// `geometry` is what [`geometry`] gives; `options` are those of the tier of pages.
    pub(crate) fn new(
        below: Arc<dyn Below>,
        options: Options,
        geometry: Geometry,
        budget: Arc<Budget>,
    ) -> Result<Clustered, Error> {
        let most = u32::MAX as usize / geometry.page_tokens;
        let arena = Arena::new(geometry.page_bytes(), most, budget.clone(), Care::default())?;
        let options = Options { prefetch: false, write_ahead: false, ..options };
        let tier = Tier::new(below, options, &geometry, arena.clone(), budget)?;
        Ok(Clustered { tier, arena, geometry })
    }

    pub(crate) fn tier(&self) -> &Tier {
        &self.tier
    }

    /// Tokens of a page.
    pub(crate) fn page_tokens(&self) -> usize {
        self.geometry.page_tokens
    }

    /// Pages in host memory, and their bytes.
    pub(crate) fn used(&self) -> (u64, u64) {
        let pages = self.arena.used() as u64;
        (pages, pages * self.arena.cell_bytes() as u64)
    }

    /// Where a page in host memory starts.
    pub(crate) fn at(&self, frame: u32) -> *const u8 {
        self.arena.at(frame)
    }

    /// All pages, as kernels see them.
    pub(crate) fn pool(&self) -> Result<KvPool<'_>, Error> {
        let g = &self.geometry;
        let layout = KvLayout::page(g.page_tokens, g.dim_k, g.dim_v);
        let k = self.arena.base();
        let v = k.wrapping_add(g.page_tokens * g.dim_k * g.dtype.size());
        // SAFETY: lists only name leased pages, which are not written to.
        Ok(unsafe { KvPool::from_raw(k, v, g.dtype, layout, self.arena.cells()) }?)
    }

    pub(super) fn charge(&self) -> Charge {
        Charge::none(self.tier.inner.budget.clone())
    }

    /// Stripes that should be stored at a time.
    pub(super) fn batch_stripes(&self) -> usize {
        let bytes = BATCH_BYTES.min(self.tier.inner.budget.limit() / BATCH_SHARE);
        (bytes / self.tier.bytes_of(STRIPE_PAGES)).max(1) as usize
    }

    /// Memory for so many stripes.
    pub(super) fn batch(&self, stripes: usize) -> Result<Batch, Error> {
        let charges = self.tier.charges(stripes)?;
        Ok(Batch { cells: self.arena.take(stripes * STRIPE_PAGES)?, charges })
    }

    /// Stores a batch; it is below then, and nowhere else. All of it or nothing.
    pub(super) fn store(
        &self,
        at: (usize, usize),
        batch: Batch,
    ) -> Result<Vec<Arc<Stripe>>, MissReason> {
        let (layer, page) = at;
        let stripes = batch.cells.chunks(STRIPE_PAGES);
        let held = |cells: &[Arc<Cell>]| cells.iter().cloned().map(Held::new).collect();
        let out: Vec<StripeOut> =
            stripes.map(|cells| StripeOut { layer, page, pages: held(cells) }).collect();
        let stored: Vec<_> =
            self.tier.inner.below.write(&out).into_iter().collect::<Result<_, _>>()?;
        let bytes = self.tier.bytes_of(batch.cells.len());
        self.tier.inner.lock().counts.written += bytes;
        metrics::counter!("kvist_below_written_bytes").increment(bytes);
        let stripes = stored.into_iter().zip(batch.charges);
        Ok(stripes.map(|(stored, charge)| self.tier.below(at, stored, false, charge)).collect())
    }

    /// Adds what it holds and has done.
    pub(super) fn fill(&self, stats: &mut Stats) {
        let mut own = Stats::default();
        self.tier.fill(&mut own);
        stats.stored_bytes += own.stored_bytes;
        stats.cluster_hits = own.page_hits;
        stats.cluster_misses = own.page_misses;
        stats.pages_failed += own.pages_failed;
        stats.below_read_bytes += own.below_read_bytes;
        stats.below_written_bytes += own.below_written_bytes;
        stats.prefetched += own.prefetched;
        stats.prefetch_used += own.prefetch_used;
        stats.prefetch_wasted += own.prefetch_wasted;
    }
}

impl Batch {
    /// The bytes of a page, to be written.
    pub(super) fn page(&mut self, page: usize) -> &mut [u8] {
        let Some(bytes) = self.cells.get_mut(page).and_then(Cell::bytes_mut) else {
            unreachable!("a fresh cell has one holder")
        };
        bytes
    }
}
