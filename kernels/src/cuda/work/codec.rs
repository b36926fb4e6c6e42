//! Specialisations of the codecs' kernels.

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
