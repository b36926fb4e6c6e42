//! Paged K and V of several layers in one arena, as the kernels see them.

use kvist_kernels::{DType, KvLayout, KvPool, PageLists};

use crate::{Arena, Error, Frames, Params, Rng};

/// Tokens of a page.
pub(crate) const PAGE_TOKENS: usize = 64;

/// Every measurement walks over at least this much memory before it comes back to the same bytes:
/// several times the last-level cache of the machines in mind.
const BYTES_MIN: usize = 256 << 20;

/// Attention shape of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Query heads.
    pub q_heads: usize,
    /// KV heads; they divide the query heads.
    pub kv_heads: usize,
    /// Dimension of K and V rows.
    pub head_dim: usize,
}

impl Shape {
    /// Query heads per KV head.
    #[must_use]
    pub fn group(self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// Adds the shape to a row's parameters.
    #[must_use]
    pub fn params(self) -> Params {
        let params = Params::new().with("q_heads", self.q_heads).with("kv_heads", self.kv_heads);
        params.with("head_dim", self.head_dim)
    }
}

/// The two shapes of the default tables: a large model's and a small model's layer.
pub(crate) const SHAPES: [Shape; 2] = [
    Shape { q_heads: 32, kv_heads: 8, head_dim: 128 },
    Shape { q_heads: 9, kv_heads: 3, head_dim: 64 },
];

/// Random K and V of `layers` layers, `context` tokens each.
pub struct KvData {
    arena: Arena,
    shape: Shape,
    dtype: DType,
    context: usize,
    layers: usize,
}

/// Page lists that own their numbers: one list per KV head.
pub struct Lists {
    indptr: Vec<u32>,
    frames: Vec<u32>,
    lens: Vec<u32>,
}

impl KvData {
    /// Enough layers of random data to be larger than any cache.
    ///
    /// # Errors
    /// [`Error::Io`] if there is not enough memory.
    pub fn random(shape: Shape, context: usize, dtype: DType) -> Result<KvData, Error> {
        let layer = layer_pages(shape, context) * page_bytes(shape, dtype);
        let layers = BYTES_MIN.div_ceil(layer);
        let arena = Arena::random(layers * layer, dtype, 7)?;
        Ok(KvData { arena, shape, dtype, context, layers })
    }

    /// Number of layers in the arena.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Bytes of K and V of one layer that attention must read.
    #[must_use]
    pub fn layer_bytes(&self) -> usize {
        2 * self.shape.kv_heads * self.context * self.shape.head_dim * self.dtype.size()
    }

    /// All bytes, in memory order.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.arena.bytes()
    }

    /// The arena as a pool of pages.
    ///
    /// # Errors
    /// If the shape is none the kernels know.
    pub fn pool(&self) -> Result<KvPool<'_>, Error> {
        let dim = self.shape.head_dim;
        let layout = KvLayout::page(PAGE_TOKENS, dim, dim);
        let frames = self.layers * layer_pages(self.shape, self.context);
        let k = self.arena.bytes().as_ptr();
        let v = k.wrapping_add(PAGE_TOKENS * dim * self.dtype.size());
        // SAFETY: the arena holds `frames` whole pages (see `random`) and outlives the pool.
        Ok(unsafe { KvPool::from_raw(k, v, self.dtype, layout, frames) }?)
    }

    /// The page lists of every layer, one list per KV head.
    #[must_use]
    pub fn lists(&self, order: Frames) -> Vec<Lists> {
        let per_layer = layer_pages(self.shape, self.context);
        let frames: Vec<u32> = match order {
            Frames::Contiguous => (0..(self.layers * per_layer) as u32).collect(),
            Frames::Shuffled => Rng::new(11).permutation(self.layers * per_layer),
        };
        let pages = per_layer / self.shape.kv_heads;
        let indptr: Vec<u32> = (0..=self.shape.kv_heads).map(|h| (h * pages) as u32).collect();
        let lens = vec![self.context as u32; self.shape.kv_heads];
        let list = |layer: &[u32]| Lists {
            indptr: indptr.clone(),
            frames: layer.to_vec(),
            lens: lens.clone(),
        };
        frames.chunks(per_layer).map(list).collect()
    }
}

impl Lists {
    /// The borrowed form kernels take.
    #[must_use]
    pub fn view(&self) -> PageLists<'_> {
        let Lists { indptr, frames, lens } = self;
        PageLists { indptr, frames, lens, first_pos: None, per_head: true }
    }
}

fn layer_pages(shape: Shape, context: usize) -> usize {
    shape.kv_heads * context.div_ceil(PAGE_TOKENS)
}

fn page_bytes(shape: Shape, dtype: DType) -> usize {
    2 * PAGE_TOKENS * shape.head_dim * dtype.size()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffled_lists_name_every_frame_once_and_pass_the_kernels_check() {
        let shape = Shape { q_heads: 8, kv_heads: 2, head_dim: 64 };
        let data = KvData::random(shape, 100_000, DType::Bf16).unwrap();
        let (pool, lists) = (data.pool().unwrap(), data.lists(Frames::Shuffled));
        assert_eq!(lists.len(), data.layers());
        let mut all: Vec<u32> = lists.iter().flat_map(|l| l.frames.clone()).collect();
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..pool.frames() as u32));
        lists.iter().for_each(|l| l.view().check(&pool, 1, 2).unwrap());
    }
}
