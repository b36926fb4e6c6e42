//! Which specialisation scores units, and with how much shared memory.

use super::{WARPS, side_bytes};
use crate::DType;
use crate::cuda::Macros;
use crate::cuda::params::type_code;

/// A specialisation of `score.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScoreSpec {
    /// Dimensions of K: up to 128 with boxes, else up to 256.
    pub dim: usize,
    /// Element type of the rows, 16 bits.
    pub dtype: DType,
    /// Two rows a unit, maxima and minima, in place of one: mean or centroid.
    pub boxes: bool,
}

impl ScoreSpec {
    const STAGES: usize = 2;

    /// All that there are kernels for.
    pub fn all() -> impl Iterator<Item = ScoreSpec> {
        let boxes = [64, 80, 96, 128].map(|dim| (dim, true));
        let rows = [64, 80, 96, 128, 256].map(|dim| (dim, false));
        let shapes = boxes.into_iter().chain(rows);
        shapes.flat_map(|(dim, boxes)| {
            [DType::F16, DType::Bf16].map(|dtype| ScoreSpec { dim, dtype, boxes })
        })
    }

    /// Rows of a unit of work at most: whole groups.
    #[must_use]
    pub const fn rows(group: usize) -> usize {
        16 / group * group
    }

    /// Macros to compile `score.cu` with.
    #[must_use]
    pub fn macros(&self) -> Macros {
        vec![
            ("KV_BOXES", u32::from(self.boxes)),
            ("KV_D", self.dim as u32),
            ("KV_TY", type_code(self.dtype)),
            ("KV_SLOTS", 1),
            ("KV_WIDE", 0),
            ("KV_STAGES", Self::STAGES as u32),
        ]
    }

    /// Dynamic shared memory of a block, in bytes: the rings, scores on their way to the fold, and queries that
    /// registers have no room for.
    #[must_use]
    pub const fn shared_bytes(&self) -> usize {
        let side = side_bytes(self.dim * self.dtype.size());
        let ring = Self::STAGES * if self.boxes { 2 } else { 1 } * side;
        WARPS * (ring + 16 * 16 * 4 + if self.dim > 128 { side } else { 0 })
    }
}
