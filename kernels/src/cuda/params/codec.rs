//! What kernels of codecs, clusters and statistics are told: `cuda/params_codec.cuh`, field by field.

use bytemuck::{Pod, Zeroable};

use super::AttendParams;

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

/// Keys of a KV head that are clustered by themselves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct KMeansTask {
    /// First item of the page list.
    pub list: u32,
    /// KV head.
    pub head: u32,
    /// First token of the list that is a point.
    pub first: u32,
    /// Number of points.
    pub points: u32,
    /// Label of the first point.
    pub label: u32,
    /// First centroid.
    pub centroid: u32,
    /// Number of centroids.
    pub clusters: u32,
    /// 0.
    pub zero: u32,
}

/// Centroids, labels and means of keys in pages (`kmeans.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct KMeansParams {
    /// Pages of keys.
    pub k: u64,
    /// u32: frames of the lists.
    pub items: u64,
    /// [`KMeansTask`]s.
    pub tasks: u64,
    /// Two u32 per block: task, and the first point or cluster of it.
    pub pieces: u64,
    /// f32 `[tasks][dim]`: taken off keys and centroids before they are compared by cosine, or 0.
    pub middle: u64,
    /// f32 `[centroids][dim]`.
    pub centroids: u64,
    /// Targets, `[centroids][numbers][dim]` of the type of the keys.
    pub targets: u64,
    /// f32: what is added to a target's scores.
    pub bias: u64,
    /// u32: cluster of each point, [`SKIP`](super::SKIP) where the key is not finite.
    pub labels: u64,
    /// u32: members of each cluster, or 0.
    pub counts: u64,
    /// Stride of frames.
    pub k_frame: i64,
    /// Stride of heads.
    pub k_head: i64,
    /// Stride of tokens.
    pub k_token: i64,
    /// Tokens of a frame.
    pub page_tokens: u32,
    /// 0 cosine, 1 Euclidean.
    pub metric: u32,
}

/// 256 tokens of a list, and the query rows that look at them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ColumnsTile {
    /// The list.
    pub list: u32,
    /// The KV head.
    pub head: u32,
    /// First row of the query tensor.
    pub first_row: u32,
    /// Number of rows.
    pub rows: u32,
    /// First token.
    pub base: u32,
    /// Row of sums: of the KV head, or of its first query head.
    pub out: u32,
    /// First token of the list that any of the rows sees.
    pub lo: u32,
    /// Behind the last one.
    pub hi: u32,
}

/// Column sums of attention probabilities (`columns.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct ColumnsParams {
    /// Queries, keys and rules. `lse2` is read; output, values, sinks and work are not looked at.
    pub attend: AttendParams,
    /// [`ColumnsTile`] per block.
    pub tiles: u64,
    /// Sums, f32.
    pub out: u64,
    /// Between rows of sums.
    pub out_row: i64,
    /// [`Fold`](super::Fold): `None`, a row per query head; `Sum`, a row per KV head.
    pub fold: u32,
    /// 0.
    pub zero: u32,
}

/// Attention over K and V in eight bits (`attend_codes` of `attend_pages.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct AttendCodesParams {
    /// As for `attend_pages`, with codes for K and V; their strides in bytes, multiples of 16.
    pub attend: AttendParams,
    /// f16: scales of K, `[frame][head][token][groups]`, the last two without gaps, from a multiple of 16 bytes.
    pub k_scales: u64,
    /// Those of V.
    pub v_scales: u64,
    /// Scales from one frame to the next.
    pub k_scale_frame: i64,
    /// Scales from one head to the next.
    pub k_scale_head: i64,
    /// Those of V from one frame to the next.
    pub v_scale_frame: i64,
    /// Those of V from one head to the next.
    pub v_scale_head: i64,
    /// Elements that share a scale: 16, 32, 64 or 128.
    pub group: u32,
    /// 0.
    pub zero: u32,
}

/// Rows of pages, and their codes and scales (`quant.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct QuantParams {
    /// Rows.
    pub rows: u64,
    /// Codes.
    pub codes: u64,
    /// f16: scales; with four bits pairs of scale and low end.
    pub scales: u64,
    /// u32: number of each item's page of rows, or [`SKIP`](super::SKIP); 0 for 0, 1, 2, ...
    pub row_items: u64,
    /// u32: number of each item's page of codes, or [`SKIP`](super::SKIP); 0 for 0, 1, 2, ...
    pub code_items: u64,
    /// u32: tokens of each item; 0: all are full.
    pub lens: u64,
    /// Elements from one page of rows to the next.
    pub row_item: i64,
    /// Elements from one head to the next.
    pub row_head: i64,
    /// Elements from one token to the next.
    pub row_token: i64,
    /// Bytes from one page of codes to the next, like all of codes a multiple of 4.
    pub code_item: i64,
    /// Bytes from one head to the next.
    pub code_head: i64,
    /// Bytes from one token to the next.
    pub code_token: i64,
    /// Numbers from one page of scales to the next.
    pub scale_item: i64,
    /// Numbers from one head to the next.
    pub scale_head: i64,
    /// Numbers from one token to the next.
    pub scale_token: i64,
    /// Items.
    pub items: u32,
    /// Heads.
    pub heads: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Elements of a row, a multiple of 4.
    pub dim: u32,
    /// Elements that share a scale: 16, 32, 64 or 128.
    pub group: u32,
    /// 8 or 4.
    pub bits: u32,
    /// [`type_code`](super::type_code) of the rows.
    pub dtype: u32,
    /// 0.
    pub zero: u32,
}

/// Keys of pages, moved to other positions (`rope_shift` of `rope.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RopeParams {
    /// Keys.
    pub k: u64,
    /// u32: frame of each item, or [`SKIP`](super::SKIP); 0 for 0, 1, 2, ...
    pub frames: u64,
    /// u32: tokens of each item; 0: all are full.
    pub lens: u64,
    /// i32: by how many positions.
    pub differences: u64,
    /// f32: radians per position of each pair.
    pub frequencies: u64,
    /// Elements from one frame to the next.
    pub k_item: i64,
    /// Elements from one head to the next.
    pub k_head: i64,
    /// Elements from one token to the next.
    pub k_token: i64,
    /// Differences from one item to the next; 0: they share theirs.
    pub difference_item: i64,
    /// Differences from one token to the next; 0: they share theirs.
    pub difference_token: i64,
    /// Items.
    pub items: u32,
    /// Heads.
    pub heads: u32,
    /// Tokens of a frame.
    pub page_tokens: u32,
    /// Pairs that are turned.
    pub pairs: u32,
    /// 1: pairs are elements 2i and 2i + 1; 0: i and i + `pairs`.
    pub neighbours: u32,
    /// [`type_code`](super::type_code) of the keys.
    pub dtype: u32,
}

/// The numbers of `cuda/params_codec.cuh`.
const _: () = {
    use std::mem::{offset_of, size_of};
    let call = size_of::<AttendParams>();
    assert!(size_of::<KMeansTask>() == 32);
    assert!(offset_of!(KMeansParams, centroids) == 40 && offset_of!(KMeansParams, k_frame) == 80);
    assert!(size_of::<KMeansParams>() == 112);
    assert!(size_of::<ColumnsTile>() == 32 && offset_of!(ColumnsParams, tiles) == call);
    assert!(size_of::<ColumnsParams>() == call + 32);
    assert!(offset_of!(AttendCodesParams, k_scales) == call);
    assert!(offset_of!(AttendCodesParams, group) == call + 48);
    assert!(size_of::<AttendCodesParams>() == call + 56);
    assert!(offset_of!(QuantParams, row_item) == 48 && offset_of!(QuantParams, items) == 120);
    assert!(size_of::<QuantParams>() == 152);
    assert!(offset_of!(RopeParams, k_item) == 40 && offset_of!(RopeParams, items) == 80);
    assert!(size_of::<RopeParams>() == 104);
    assert!(offset_of!(ExpwTile, bytes) == 16 && size_of::<ExpwTile>() == 32);
    assert!(offset_of!(ExpwParams, tiles) == 32 && size_of::<ExpwParams>() == 64);
};
