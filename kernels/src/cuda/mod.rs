//! Kernels for NVIDIA GPUs: what they are told, and how their work is cut. Their sources are in `cuda/`.

pub mod params;
pub mod work;
