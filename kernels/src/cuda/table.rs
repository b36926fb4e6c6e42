//! The kernels that kvist ships: what warm-up, prebuilt images and the compile tests walk.

use super::Kernel;

/// Every kernel, with the variants of it that are tested.
pub const SHIPPED: &[&Kernel] = &[];
