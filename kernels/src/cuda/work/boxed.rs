//! Which specialisation scores boxed codes, and with how much shared memory.

use super::{AttendSpec, WARPS};
use crate::cuda::Macros;

/// A specialisation of `boxed.cu`. Its units of work hold whole groups (`ScoreSpec::rows`), and a tile of its
/// plan is a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BoxedScoreSpec {
    /// Dimensions of K, as [`AttendSpec::DIMS`] has them.
    pub dim: usize,
    /// Planes that are read, 2 to 4; a cell may have more.
    pub planes: usize,
}

impl BoxedScoreSpec {
    /// Rows of a unit.
    const ROWS: usize = 16;
    /// Cells of a warp in shared memory.
    const STAGES: usize = 2;

    /// All that there are kernels for.
    pub fn all() -> impl Iterator<Item = BoxedScoreSpec> {
        let of = |dim| [2, 3, 4].map(|planes| BoxedScoreSpec { dim, planes });
        AttendSpec::DIMS.into_iter().flat_map(of)
    }

    /// Macros to compile `boxed.cu` with.
    #[must_use]
    pub fn macros(&self) -> Macros {
        vec![("KV_D", self.dim as u32), ("KV_PLANES", self.planes as u32)]
    }

    /// Dynamic shared memory of a block, in bytes: queries and the size of each, then for each warp rounded
    /// queries, three numbers a row, and cells.
    #[must_use]
    pub const fn shared_bytes(&self) -> usize {
        let pitch = if self.dim % 32 == 16 { self.dim } else { self.dim + 16 };
        let cell = (2 * self.dim).next_multiple_of(64) + self.planes * 8 * self.dim;
        let warp = Self::ROWS * (pitch + 12) + Self::STAGES * cell;
        Self::ROWS * (self.dim * 4 + 4) + WARPS * warp
    }
}
