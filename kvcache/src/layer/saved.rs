//! What a saved session keeps of a layer, and a layer made of it.

use std::ops::Range;
use std::sync::Arc;

use super::{Layer, sealable};
use crate::Error;
use crate::cache::Shared;
use crate::live::{Kept, Stored};
use crate::selector::Selector;
use crate::summaries::TILE;

/// Summaries of a run of finished tiles, all heads, as a record.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) tiles: Range<usize>,
    pub(crate) record: Arc<Kept>,
}

impl Layer {
    /// Records that hold summaries of this layer, from its first tile on.
    pub(crate) fn chunks(&self) -> Vec<Chunk> {
        self.chunks.lock().clone()
    }

    /// Notes which records hold them now.
    pub(crate) fn set_chunks(&self, chunks: Vec<Chunk>) {
        *self.chunks.lock() = chunks;
    }

    /// Tiles whose summaries do not change any more.
    pub(crate) fn finished_tiles(&self) -> usize {
        if self.summarised_heads().next().is_some() { self.len / TILE } else { 0 }
    }

    /// Bytes of the rows that are in no sealed page, all heads.
    pub(crate) fn open_bytes(shared: &Shared, len: usize) -> usize {
        let g = &shared.geometry;
        let open = len - sealable(len, g.page_tokens) * g.page_tokens;
        open * g.kv_heads * g.token_bytes()
    }

    /// Pages that are sealed of a layer with `len` tokens.
    pub(crate) fn sealed_of(shared: &Shared, len: usize) -> usize {
        sealable(len, shared.geometry.page_tokens)
    }

    /// A layer of `len` tokens whose sealed pages are below. Its open pages and summaries are there,
    /// to be filled.
    pub(crate) fn opened(
        shared: &Shared,
        (number, len): (usize, usize),
        stored: &[Arc<dyn Stored>],
        selector: &Selector,
        summarised: &[bool],
    ) -> Result<Layer, Error> {
        let mut layer = Layer::new(shared, number, summarised);
        let store = layer.store(selector);
        let (page, sealed) = (shared.geometry.page_tokens, stored.len());
        let (pages, cells) = (len.div_ceil(page), store.map_or(0, |s| s.spec.cells(len)));
        layer.reserve(pages, cells)?;
        layer.len = len;
        for head in &mut layer.heads {
            let cells = head.store(store).map_or(Ok(Vec::new()), |s| s.arena.take(cells))?;
            head.fill(sealed, shared.pages.take(pages - sealed)?, cells);
        }
        let Some(tier) = &shared.tier else { return Ok(layer) };
        let keep = selector.keep(number);
        let (sinks, recent) = (keep.sinks.div_ceil(page), keep.recent.div_ceil(page));
        for (i, (charge, stored)) in tier.charges(sealed)?.into_iter().zip(stored).enumerate() {
            let kept = i < sinks || i + recent >= sealed;
            layer.sealed.push(tier.below((number, i), stored.clone(), kept, charge));
        }
        Ok(layer)
    }
}
