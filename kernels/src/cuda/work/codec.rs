//! Specialisations of the codecs' kernels.

use super::{AttendSpec, WARPS, side_bytes};
use crate::cuda::Macros;
use crate::cuda::params::type_code;
use crate::{DType, Error};

/// A specialisation of `expw.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExpwSpec {
    /// Element type of the tiles.
    pub dtype: DType,
}

impl ExpwSpec {
    /// All that there are kernels for.
    pub fn all() -> impl Iterator<Item = ExpwSpec> {
        DType::ALL.into_iter().map(|dtype| ExpwSpec { dtype })
    }

    /// Macros to compile `expw.cu` with.
    #[must_use]
    pub fn macros(&self) -> Macros {
        vec![("KV_TY", type_code(self.dtype))]
    }

    /// Dynamic shared memory of a block, in bytes: the ring of coded bytes, bases, a table of three levels
    /// and four warps' sums.
    #[must_use]
    pub const fn shared_bytes(&self) -> usize {
        let ring = if matches!(self.dtype, DType::F32) { 32 << 10 } else { 16 << 10 };
        ring + crate::DIM_MAX + 3 * 128 * 16 + 4 * 16
    }
}

/// What the status of a tile that `expw.cu` was given means: the errors of
/// [`Expw::decode`](crate::entropy::Expw::decode).
///
/// # Errors
/// [`Error::Corrupt`] if the tile was refused; its rows hold anything then. [`Error::Range`] if it does not lie in
/// the spans of the launch, has no possible shape, or the kernel never came to it.
pub fn expw_status(status: u32) -> Result<(), Error> {
    let what = match status {
        0 => return Ok(()),
        1 => "length",
        2 => "bases",
        3 => "padding",
        4 => "counts",
        5 => "escapes",
        _ => return Err(Error::range("tile", "a shape and a place inside both spans", status)),
    };
    Err(Error::Corrupt { what })
}

/// A specialisation of `attend_pages.cu` for K and V in eight bits, over pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttendCodesSpec {
    /// Dimensions of K and V.
    pub dim: usize,
    /// Type of 16 bits that queries are rounded to.
    pub dtype: DType,
    /// Units of up to 64 rows instead of 16.
    pub wide: bool,
}

impl AttendCodesSpec {
    /// All that there are kernels for.
    pub fn all() -> impl Iterator<Item = AttendCodesSpec> {
        let codes = |s: &AttendSpec| !s.slots && s.dtype != DType::F32 && s.dim <= 128;
        AttendSpec::all().filter(codes).map(|AttendSpec { dim, dtype, wide, .. }| AttendCodesSpec {
            dim,
            dtype,
            wide,
        })
    }

    /// Rows of a unit at most.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.attend().rows()
    }

    /// The specialisation for the same call over 16 bits.
    #[must_use]
    pub const fn attend(&self) -> AttendSpec {
        AttendSpec { dim: self.dim, dtype: self.dtype, slots: false, wide: self.wide }
    }

    /// Macros to compile `attend_pages.cu` with.
    #[must_use]
    pub fn macros(&self) -> Macros {
        let mut macros = self.attend().macros();
        macros.push(("KV_BITS", 8));
        macros
    }

    /// Dynamic shared memory of a block, in bytes: rings of codes and scales, and a widened tile for each warp.
    #[must_use]
    pub const fn shared_bytes(&self) -> usize {
        let stage = 2 * 16 * (self.dim + self.dim / 8);
        WARPS * (self.attend().stages() * stage + 2 * side_bytes(self.dim * 2))
    }
}
