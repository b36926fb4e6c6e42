//! The logical content of a block: what its bytes mean, wherever and however they are stored.

use std::ops::Range;

use kvist_kernels::{DIM_MAX, DType};

use super::key::frame;
use crate::{Error, Geometry};

/// Element type of stored keys and values. Attention computes over the floating ones that kernels
/// know; the others are stored and returned bit-exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockDType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit float, 4 exponent bits.
    Fp8E4m3,
    /// 8-bit float, 5 exponent bits.
    Fp8E5m2,
    /// Signed bytes.
    I8,
    /// Bytes.
    U8,
}

impl BlockDType {
    /// All of them.
    pub const ALL: [BlockDType; 7] = [
        BlockDType::F32,
        BlockDType::F16,
        BlockDType::Bf16,
        BlockDType::Fp8E4m3,
        BlockDType::Fp8E5m2,
        BlockDType::I8,
        BlockDType::U8,
    ];

    /// Bytes of an element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            BlockDType::F32 => 4,
            BlockDType::F16 | BlockDType::Bf16 => 2,
            _ => 1,
        }
    }

    /// Name as Python and the command line spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            BlockDType::F32 => "f32",
            BlockDType::F16 => "f16",
            BlockDType::Bf16 => "bf16",
            BlockDType::Fp8E4m3 => "fp8-e4m3",
            BlockDType::Fp8E5m2 => "fp8-e5m2",
            BlockDType::I8 => "i8",
            BlockDType::U8 => "u8",
        }
    }

    /// The number that stands for it in files.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8 + 1
    }

    /// The kernels' type, if they compute over it.
    #[must_use]
    pub const fn kernel(self) -> Option<DType> {
        match self {
            BlockDType::F32 => Some(DType::F32),
            BlockDType::F16 => Some(DType::F16),
            BlockDType::Bf16 => Some(DType::Bf16),
            _ => None,
        }
    }
}

impl From<DType> for BlockDType {
    fn from(dtype: DType) -> BlockDType {
        match dtype {
            DType::F32 => BlockDType::F32,
            DType::F16 => BlockDType::F16,
            DType::Bf16 => BlockDType::Bf16,
        }
    }
}

/// Which tokens a layer's attention can see: blocks of different kinds are not interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionKind {
    /// Every earlier token.
    Full,
    /// The last so many tokens.
    Window(u32),
    /// One latent row serves as key and value (MLA); `dim_v` is 0.
    Latent,
}

/// Shape and meaning of a block: `block_tokens` tokens of a range of layers and KV heads.
///
/// The canonical order is `[layer][kv head]` pages, each the K tile `[token][dim_k]`, then the V tile
/// `[token][dim_v]`, packed. Strides of an engine's tensors, codec and tier are not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlockLayout {
    /// Element type.
    pub dtype: BlockDType,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Layers of the model that the block covers.
    pub layers: Range<u32>,
    /// KV heads of the model that the block covers.
    pub kv_heads: Range<u32>,
    /// Elements of a key row.
    pub dim_k: u32,
    /// Elements of a value row; 0 if values are part of the keys.
    pub dim_v: u32,
    /// What the layers' attention sees.
    pub attention: AttentionKind,
}

/// Sizes above this are typing errors, and their products might overflow.
const COUNT_MAX: u32 = 1 << 20;
/// A block is read and checked as a whole.
const BLOCK_BYTES_MAX: u64 = 256 << 20;

impl BlockLayout {
    /// Keys and values of the same dimension, all layers and KV heads.
    #[must_use]
    pub fn new(
        dtype: BlockDType,
        block_tokens: u32,
        layers: u32,
        kv_heads: u32,
        head_dim: u32,
    ) -> BlockLayout {
        BlockLayout {
            dtype,
            block_tokens,
            layers: 0..layers,
            kv_heads: 0..kv_heads,
            dim_k: head_dim,
            dim_v: head_dim,
            attention: AttentionKind::Full,
        }
    }

    /// All layers and KV heads of one page's tokens: what sequences of such a cache can publish and
    /// start from (see [`Space::publish`](crate::Space::publish)).
    #[must_use]
    pub fn of(geometry: &Geometry) -> BlockLayout {
        // Sizes that do not fit are refused with the layout.
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        BlockLayout {
            dtype: geometry.dtype.into(),
            block_tokens: small(geometry.page_tokens),
            layers: 0..small(geometry.layers),
            kv_heads: 0..small(geometry.kv_heads),
            dim_k: small(geometry.dim_k),
            dim_v: small(geometry.dim_v),
            attention: AttentionKind::Full,
        }
    }

    /// Number of layers.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of KV heads.
    #[must_use]
    pub fn num_heads(&self) -> usize {
        self.kv_heads.len()
    }

    /// Pages of a block: layers times KV heads.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.num_layers() * self.num_heads()
    }

    /// Bytes of a page's K tile.
    #[must_use]
    pub fn k_bytes(&self) -> usize {
        self.block_tokens as usize * self.dim_k as usize * self.dtype.size()
    }

    /// Bytes of a page's V tile.
    #[must_use]
    pub fn v_bytes(&self) -> usize {
        self.block_tokens as usize * self.dim_v as usize * self.dtype.size()
    }

    /// Bytes of a page: K tile and V tile.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.k_bytes() + self.v_bytes()
    }

    /// Bytes of a decoded block.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pages() * self.page_bytes()
    }

    /// Place of a page in canonical order; `layer` and `head` count from the ranges' starts.
    #[must_use]
    pub fn page(&self, layer: usize, head: usize) -> usize {
        layer * self.num_heads() + head
    }

    /// Checks that the shape is possible.
    ///
    /// # Errors
    /// [`Error::Setting`] naming what is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        let ranges = [("layers", &self.layers), ("kv_heads", &self.kv_heads)];
        for (setting, range) in ranges {
            if range.is_empty() || range.end > COUNT_MAX {
                let expected = format!("a range that is not empty, up to {COUNT_MAX}");
                return Err(Error::setting(setting, expected, format!("{range:?}")));
            }
        }
        if self.block_tokens == 0 || self.block_tokens > 4096 {
            return Err(Error::setting("block_tokens", "1..=4096", self.block_tokens));
        }
        let least = if self.attention == AttentionKind::Latent { 0 } else { 1 };
        for (setting, dim, least) in [("dim_k", self.dim_k, 1), ("dim_v", self.dim_v, least)] {
            if dim < least || dim as usize > DIM_MAX {
                return Err(Error::setting(setting, format!("{least}..={DIM_MAX}"), dim));
            }
        }
        let row = u64::from(self.dim_k + self.dim_v) * self.dtype.size() as u64;
        let pages = self.layers.len() as u64 * self.kv_heads.len() as u64;
        let bytes = pages.saturating_mul(row * u64::from(self.block_tokens));
        if bytes > BLOCK_BYTES_MAX {
            let expected = format!("at most {BLOCK_BYTES_MAX} bytes a block");
            return Err(Error::setting("block layout", expected, bytes));
        }
        Ok(())
    }

    /// What the key binds: blake3 of the framed fields. Two layouts with the same number of bytes
    /// and another meaning differ.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        let mut put = |tag: u8, bytes: &[u8]| frame(&mut hash, tag, bytes);
        let pair = |r: &Range<u32>| [r.start.to_le_bytes(), r.end.to_le_bytes()].concat();
        put(1, &[self.dtype.code()]);
        put(2, b"layer,head,kind,token,dim");
        put(3, &self.block_tokens.to_le_bytes());
        if !bug!("layout_without_heads") {
            put(4, &pair(&self.kv_heads));
        }
        put(5, &self.dim_k.to_le_bytes());
        put(6, &self.dim_v.to_le_bytes());
        put(7, &pair(&self.layers));
        let (kind, window) = match self.attention {
            AttentionKind::Full => (0u8, 0u32),
            AttentionKind::Window(tokens) => (1, tokens),
            AttentionKind::Latent => (2, 0),
        };
        put(8, &[&[kind][..], &window.to_le_bytes()].concat());
        *hash.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_of_equal_size_and_other_meaning_differ() {
        let a = BlockLayout::new(BlockDType::Bf16, 16, 2, 2, 64);
        let mut seen = vec![a.fingerprint()];
        let others = [
            BlockLayout { dtype: BlockDType::F16, ..a.clone() },
            BlockLayout { kv_heads: 2..4, ..a.clone() },
            BlockLayout { layers: 2..4, ..a.clone() },
            BlockLayout { block_tokens: 32, layers: 0..1, ..a.clone() },
            BlockLayout { dim_k: 32, dim_v: 96, ..a.clone() },
            BlockLayout { attention: AttentionKind::Window(128), ..a.clone() },
        ];
        for other in others {
            assert_eq!(other.bytes(), a.bytes());
            other.validate().unwrap();
            seen.push(other.fingerprint());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 7);
    }

    #[test]
    fn impossible_layouts_are_named() {
        let good = BlockLayout::new(BlockDType::F32, 16, 2, 2, 64);
        let text = |l: BlockLayout| l.validate().unwrap_err().to_string();
        assert!(text(BlockLayout { layers: 3..3, ..good.clone() }).contains("layers"));
        assert!(text(BlockLayout { dim_v: 0, ..good.clone() }).contains("dim_v"));
        assert!(text(BlockLayout { block_tokens: 0, ..good.clone() }).contains("block_tokens"));
        let huge = BlockLayout { layers: 0..COUNT_MAX, kv_heads: 0..COUNT_MAX, ..good };
        assert!(text(huge).contains("bytes a block"));
    }
}
