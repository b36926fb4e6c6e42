//! What kernels of codecs, clusters and statistics are told: `cuda/params_codec.cuh`, field by field.

use bytemuck::{Pod, Zeroable};

/// A tile that `expw.cu` brings to its place.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ExpwTile {
    /// Its first byte in the coded span.
    pub from: u64,
    /// First byte of its first row in the output's span, a multiple of the element.
    pub to: u64,
    /// Coded bytes.
    pub bytes: u32,
    /// Rows, 1 to 4096.
    pub tokens: u32,
    /// Elements of a row, 1 to 576.
    pub dim: u32,
    /// 1: the bytes are the tile as it is.
    pub raw: u32,
}

/// Lossless tiles to their places (`expw_decode` of `expw.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ExpwParams {
    /// First byte of the span that may be read.
    pub coded: u64,
    /// Its length.
    pub coded_bytes: u64,
    /// First byte of the span that may be written.
    pub out: u64,
    /// Its length.
    pub out_bytes: u64,
    /// [`ExpwTile`]s.
    pub tiles: u64,
    /// u32 per tile: [`expw_status`](crate::cuda::work::expw_status).
    pub status: u64,
    /// Bytes from one row to the next.
    pub out_row: i64,
    /// Number of tiles.
    pub tiles_n: u32,
    /// 0.
    pub zero: u32,
}

/// The numbers of `cuda/params_codec.cuh`.
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(offset_of!(ExpwTile, bytes) == 16 && size_of::<ExpwTile>() == 32);
    assert!(offset_of!(ExpwParams, tiles) == 32 && size_of::<ExpwParams>() == 64);
};
