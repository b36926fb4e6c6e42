//! Lossless coding of K and V tiles.
//!
//! Sign and mantissa of keys and values are noise, their exponents are not: inside one channel of one
//! tile they take a handful of values. [`Expw`] keeps one *base* per channel, close to its largest common
//! exponent, and codes each exponent by its distance from the base in up to three levels of two bits: the
//! three commonest distances take one level, the next three two, the next three all, and what is left is a
//! byte of its own, an *escape*. Sign and mantissa are stored as they are.
//!
//! All of it is bit planes, one 64-bit word per 64 codes, and each level is a dense array of its own: the
//! values that the level before settled are not in it. So a level is decoded by one masked expansion of
//! the level below, without tables or branches on data, and the lower levels are short.
//!
//! Each tile is independent. The layout is in `docs/formats.md`. There is no checksum: that is the
//! envelope's, and a damaged tile may decode to wrong values.
//!
//! Source: the split of exponents from the rest as in ZipNN (arXiv 2411.05239) and DFloat11 (arXiv
//! 2504.11651), which code the exponents of weights by Huffman; windows and levels are kvist's.

pub(crate) mod layout;
pub(crate) mod plain;
pub(crate) mod planes;
pub(crate) mod symbols;

use crate::view::DIM_MAX;
use crate::{DType, Error, Isa};

/// Most tokens of a tile.
pub const TOKENS_MAX: usize = 4096;

/// EXPW for tiles of one shape: `[tokens][dim]` elements, contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Expw {
    dtype: DType,
    tokens: u32,
    dim: u32,
}

impl Expw {
    /// A plan for tiles of `tokens` rows of `dim` elements.
    ///
    /// # Errors
    /// [`Error::Range`] unless `tokens` is in `1..=4096` and `dim` in `1..=576`.
    pub fn new(dtype: DType, tokens: usize, dim: usize) -> Result<Expw, Error> {
        if !(1..=TOKENS_MAX).contains(&tokens) {
            return Err(Error::range("tokens", format!("1..={TOKENS_MAX}"), tokens));
        }
        if !(1..=DIM_MAX).contains(&dim) {
            return Err(Error::range("dim", format!("1..={DIM_MAX}"), dim));
        }
        Ok(Expw { dtype, tokens: tokens as u32, dim: dim as u32 })
    }

    /// Element type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows of a tile.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.tokens as usize
    }

    /// Elements of a row.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.dim as usize
    }

    /// Elements of a tile.
    #[must_use]
    pub const fn values(&self) -> usize {
        self.tokens() * self.dim()
    }

    const fn row_bytes(&self) -> usize {
        self.dim() * self.dtype.size()
    }

    /// Bytes of a tile before encoding and after decoding.
    #[must_use]
    pub const fn decoded_len(&self) -> usize {
        self.values() * self.dtype.size()
    }

    /// Bytes that the buffer of [`encode`](Expw::encode) must have: as many as the tile, for the
    /// encoded tile is always shorter.
    #[must_use]
    pub const fn max_encoded(&self) -> usize {
        self.decoded_len()
    }

    /// Encodes a tile and returns the length of the encoded one, or `None` if that would not be
    /// shorter than `tile`, which should then be stored as it is. All levels write the same bytes; one
    /// above the CPU's is lowered to it. `out` may be overwritten behind the encoded tile, too.
    ///
    /// Rows that hold nothing (a page that is not full) are better left out of the plan than filled with
    /// zeros, whose exponents are far from all others.
    ///
    /// # Panics
    /// If `tile` is not `decoded_len` or `out` shorter than `max_encoded` bytes long.
    #[must_use]
    pub fn encode(&self, isa: Isa, tile: &[u8], out: &mut [u8]) -> Option<usize> {
        assert_eq!(tile.len(), self.decoded_len(), "tile of {self:?}");
        assert!(out.len() >= self.max_encoded(), "{} bytes for {self:?}", out.len());
        let out = &mut out[..self.max_encoded()];
        match crate::arch::expw::loops(isa, self.dtype) {
            // SAFETY: the CPU has what the loops were compiled for; the lengths were just checked.
            Some(loops) => unsafe { (loops.encode)(self, tile, out) },
            None => plain::encode(self, tile, out),
        }
    }

    /// Decodes what [`encode`](Expw::encode) wrote, bit for bit. `coded` is not trusted: whatever it
    /// holds, nothing outside it is read, and it either decodes to some tile or is an error, the same at
    /// all levels. After an error the contents of `tile` are unspecified.
    ///
    /// # Errors
    /// [`Error::Shape`] if `tile` is not `decoded_len` bytes long; [`Error::Corrupt`] if `coded` has the
    /// wrong length or contradicts itself.
    pub fn decode(&self, isa: Isa, coded: &[u8], tile: &mut [u8]) -> Result<(), Error> {
        if tile.len() != self.decoded_len() {
            return Err(Error::shape("tile", self.decoded_len(), tile.len()));
        }
        match crate::arch::expw::loops(isa, self.dtype) {
            // SAFETY: as above.
            Some(loops) => unsafe { (loops.decode)(self, coded, tile) },
            None => plain::decode(self, coded, tile),
        }
    }
}
