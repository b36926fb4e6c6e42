//! k-means: its specialisations, and its cut into blocks.

use super::{AttendSpec, side_bytes};
use crate::cluster::Metric;
use crate::cuda::Macros;
use crate::cuda::params::type_code;
use crate::{DType, Error};

/// A specialisation of `kmeans.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KMeansSpec {
    /// Dimensions of K.
    pub dim: usize,
    /// Element type of K.
    pub dtype: DType,
}

impl KMeansSpec {
    /// Points of a block of `kmeans_assign`.
    pub const POINTS: u32 = 128;
    /// Clusters of a block of `kmeans_targets` and `kmeans_update`.
    pub const CLUSTERS: u32 = 4;
    const STAGES: usize = 2;

    const fn attend(self) -> AttendSpec {
        AttendSpec { dim: self.dim, dtype: self.dtype, slots: false, wide: false }
    }

    /// Checks that the kernel can be built.
    ///
    /// # Errors
    /// [`Error::Range`] if there is no kernel of this dimension and type.
    pub fn check(&self) -> Result<(), Error> {
        self.attend().check()
    }

    /// All that there are kernels for.
    pub fn all() -> impl Iterator<Item = KMeansSpec> {
        let of = |dtype| AttendSpec::DIMS.map(|dim| KMeansSpec { dim, dtype });
        DType::ALL.into_iter().flat_map(of).filter(|spec| spec.check().is_ok())
    }

    /// Numbers that stand for one of a target: its rounding to 16 bits, and what that lost.
    #[must_use]
    pub const fn numbers(&self) -> usize {
        if matches!(self.dtype, DType::F32) { 1 } else { 2 }
    }

    /// Macros to compile `kmeans.cu` with.
    #[must_use]
    pub fn macros(&self) -> Macros {
        vec![
            ("KV_D", self.dim as u32),
            ("KV_TY", type_code(self.dtype)),
            ("KV_SLOTS", 0),
            ("KV_WIDE", 0),
            ("KV_STAGES", Self::STAGES as u32),
        ]
    }

    /// Dynamic shared memory of a block of `kmeans_assign`, in bytes: its points, and two stages of 32 targets.
    #[must_use]
    pub const fn shared_bytes(&self) -> usize {
        let sixteen = side_bytes(self.dim * self.dtype.size());
        (Self::POINTS as usize / 16 + Self::STAGES * 2 * self.numbers()) * sixteen
    }
}

/// A metric as `kmeans.cu` numbers it.
#[must_use]
pub const fn metric_code(metric: Metric) -> u32 {
    match metric {
        Metric::Cosine => 0,
        Metric::Euclidean => 1,
    }
}

/// One piece per block: task, and the first of its points or clusters; `counts` are how many each task has, `step`
/// is how many a block does.
#[must_use]
pub fn pieces(counts: &[u32], step: u32) -> Vec<[u32; 2]> {
    let of = |(task, &n): (usize, &u32)| {
        (0..n).step_by(step as usize).map(move |first| [task as u32, first])
    };
    counts.iter().enumerate().flat_map(of).collect()
}
