//! Byte strides of a block's rows.

use crate::format::BlockLayout;

/// Where the rows of one kind are: byte strides from one layer, token or KV head to the next. A row is
/// the contiguous elements of one token and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// First row's first byte.
    pub offset: usize,
    /// From a layer to the next.
    pub layer: usize,
    /// From a token to the next.
    pub token: usize,
    /// From a KV head to the next.
    pub head: usize,
}

impl Strides {
    /// The canonical order, `[layer][head]` pages of K tile and V tile; `(K, V)`.
    #[must_use]
    pub fn canonical(layout: &BlockLayout) -> (Strides, Strides) {
        let (page, size) = (layout.page_bytes(), layout.dtype.size());
        let of = |offset: usize, dim: u32| Strides {
            offset,
            layer: page * layout.num_heads(),
            token: dim as usize * size,
            head: page,
        };
        (of(0, layout.dim_k), of(layout.k_bytes(), layout.dim_v))
    }

    /// `[layer][2][token][head][dim]` (NHD), K and V of a layer one after the other; `(K, V)`.
    #[must_use]
    pub fn nhd(layout: &BlockLayout) -> (Strides, Strides) {
        let (heads, size) = (layout.num_heads(), layout.dtype.size());
        let (k, v) = (layout.k_bytes() * heads, layout.v_bytes() * heads);
        let of = |offset: usize, dim: u32| Strides {
            offset,
            layer: k + v,
            token: dim as usize * size * heads,
            head: dim as usize * size,
        };
        (of(0, layout.dim_k), of(k, layout.dim_v))
    }

    /// `[layer][2][head][token][dim]` (HND), K and V of a layer one after the other; `(K, V)`.
    #[must_use]
    pub fn hnd(layout: &BlockLayout) -> (Strides, Strides) {
        let (heads, size) = (layout.num_heads(), layout.dtype.size());
        let (k, v) = (layout.k_bytes() * heads, layout.v_bytes() * heads);
        let of = |offset: usize, tile: usize, dim: u32| Strides {
            offset,
            layer: k + v,
            token: dim as usize * size,
            head: tile,
        };
        (of(0, layout.k_bytes(), layout.dim_k), of(k, layout.v_bytes(), layout.dim_v))
    }

    /// Offset of the first row of a layer and head.
    pub(super) fn at(&self, layer: usize, head: usize) -> usize {
        let layer = layer.wrapping_mul(self.layer);
        self.offset.wrapping_add(layer).wrapping_add(head.wrapping_mul(self.head))
    }

    /// One past the last byte that is touched; `None` on overflow.
    pub(super) fn end(&self, layout: &BlockLayout, row: usize) -> Option<usize> {
        let reach = |count: usize, stride: usize| (count - 1).checked_mul(stride);
        let layers = reach(layout.num_layers(), self.layer)?;
        let tokens = reach(layout.block_tokens as usize, self.token)?;
        let heads = reach(layout.num_heads(), self.head)?;
        [layers, tokens, heads, row].into_iter().try_fold(self.offset, usize::checked_add)
    }

    /// Whether no byte is reached twice: sorted by size, each stride spans all that is below it.
    pub(super) fn is_injective(&self, layout: &BlockLayout, row: usize) -> bool {
        let mut dims = [
            (self.layer, layout.num_layers()),
            (self.token, layout.block_tokens as usize),
            (self.head, layout.num_heads()),
        ];
        dims.sort_unstable();
        let mut span = row;
        for (stride, count) in dims {
            if count > 1 {
                if stride < span {
                    return false;
                }
                span += stride * (count - 1);
            }
        }
        true
    }
}
