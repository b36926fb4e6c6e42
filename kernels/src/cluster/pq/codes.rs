//! Codes and where they lie.

use crate::summary::TILE;
use crate::{DIM_MAX, Error};

/// Shape of the codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PqSpec {
    dim: usize,
    parts: usize,
    bits: u32,
}

impl PqSpec {
    /// Keys of `dim` elements in `parts` parts, `2^bits` centroids each.
    ///
    /// # Errors
    /// [`Error::Range`] if `dim` is outside 1..=576, `parts` does not divide it or `bits` is outside 1..=8.
    pub fn new(dim: usize, parts: usize, bits: u32) -> Result<PqSpec, Error> {
        if dim == 0 || dim > DIM_MAX {
            return Err(Error::range("dim", format!("1..={DIM_MAX}"), dim));
        }
        if parts == 0 || !dim.is_multiple_of(parts) {
            return Err(Error::range("parts", format!("a divisor of {dim}"), parts));
        }
        if !(1..=8).contains(&bits) {
            return Err(Error::range("bits", "1..=8", bits));
        }
        Ok(PqSpec { dim, parts, bits })
    }

    /// PQCache's: 2 parts, 6 bits.
    ///
    /// # Errors
    /// As [`PqSpec::new`]; the dimension must be even.
    pub fn pq_cache(dim: usize) -> Result<PqSpec, Error> {
        PqSpec::new(dim, 2, 6)
    }

    /// Elements of a key.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// Parts of a key.
    #[must_use]
    pub const fn parts(&self) -> usize {
        self.parts
    }

    /// Elements of a part.
    #[must_use]
    pub const fn part_dim(&self) -> usize {
        self.dim / self.parts
    }

    /// Centroids of a part.
    #[must_use]
    pub const fn centroids(&self) -> usize {
        1 << self.bits
    }

    /// Bits that a code takes: 4, 6 or 8.
    #[must_use]
    pub const fn code_bits(&self) -> usize {
        match self.bits {
            ..=4 => 4,
            5 | 6 => 6,
            _ => 8,
        }
    }

    /// Bytes of one part's codes of a tile.
    pub(crate) const fn part_bytes(&self) -> usize {
        TILE / 8 * self.code_bits()
    }

    /// Bytes of a tile's cell.
    #[must_use]
    pub const fn cell_bytes(&self) -> usize {
        self.parts * self.part_bytes()
    }

    /// Writes one part's code of a token of a tile.
    pub(super) fn put(&self, cell: &mut [u8], part: usize, token: usize, code: u8) {
        let bytes = &mut cell[part * self.part_bytes()..][..self.part_bytes()];
        let mut set = |byte: usize, shift: usize, mask: u8, value: u8| {
            bytes[byte] = bytes[byte] & !(mask << shift) | (value & mask) << shift;
        };
        if self.code_bits() == 8 {
            return set(token, 0, 0xff, code);
        }
        set(token % 32, token / 32 * 4, 0xf, code);
        if self.code_bits() == 6 {
            set(32 + token % 16, token / 16 * 2, 3, code >> 4);
        }
    }

    /// Codes of one part of a tile.
    pub(super) fn codes(&self, cell: &[u8], part: usize) -> [u8; TILE] {
        let bytes = &cell[part * self.part_bytes()..][..self.part_bytes()];
        let low = |t: usize| bytes[t % 32] >> (t / 32 * 4) & 0xf;
        std::array::from_fn(|t| match self.code_bits() {
            8 => bytes[t],
            6 => low(t) | (bytes[32 + t % 16] >> (t / 16 * 2) & 3) << 4,
            _ => low(t),
        })
    }
}
