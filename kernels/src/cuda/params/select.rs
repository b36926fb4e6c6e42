//! What the host tells the kernels of scoring and selection: `cuda/params_select.cuh`, field by field.

use bytemuck::{Pod, Zeroable};

use super::AttendParams;

/// Votes of listed tokens (`tokens.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct TokensParams {
    /// Queries, keys, lists and work; without masks. What concerns V and the output is not used. `lse2` is
    /// written where it is given, by `vote_tokens`.
    pub of: AttendParams,
    /// f32 `[q rows][q_heads][logits_row]`: scores times log2 e.
    pub logits: u64,
    /// Two f32 each, `[segments][16]`: highest score and sum of weights.
    pub parts: u64,
    /// Votes, f32 `[q rows][KV heads][out_row]`.
    pub out: u64,
    /// Between rows of logits, even; what a list has beyond an even number of tokens is written, too.
    pub logits_row: i64,
    /// Between rows of votes.
    pub out_row: i64,
    /// KV heads.
    pub kv_heads: u32,
    /// 0.
    pub zero: u32,
}

/// Estimates from boxed codes (`boxed.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BoxedParams {
    /// Queries `[rows][q_heads][dim]`.
    pub q: u64,
    /// Cells, as `summary::build_boxed` writes them; at 16 bytes.
    pub cells: u64,
    /// Estimates of q.k, f32 `[q rows][q_heads][est_row]`; NaN for open tiles.
    pub est: u64,
    /// Largest possible errors of a cell's estimates, f32 `[q rows][q_heads][bounds_row]`, or 0.
    pub bounds: u64,
    /// Typical errors, the largest of a KV head's query heads, f32 `[q rows][KV heads][bounds_row]`, or 0.
    pub sigma: u64,
    /// `Unit`s of whole groups.
    pub units: u64,
    /// `Segment`s, in cells.
    pub segments: u64,
    /// u32: segments of each worker.
    pub workers: u64,
    /// u32: offsets of the lists.
    pub indptr: u64,
    /// u32: numbers of cells.
    pub items: u64,
    /// Stride of query rows.
    pub q_row: i64,
    /// Stride of query heads.
    pub q_head: i64,
    /// Bytes from a cell to the next, a multiple of 16.
    pub cell: i64,
    /// Bytes from a KV head's cells to the next's, a multiple of 16.
    pub cell_head: i64,
    /// Between rows of estimates, even.
    pub est_row: i64,
    /// Between rows of errors.
    pub bounds_row: i64,
    /// Query heads of a KV head, 16 at most.
    pub group: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// `type_code` of the queries.
    pub types: u32,
    /// 0.
    pub zero: u32,
}

/// The numbers of `cuda/params_select.cuh`.
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(offset_of!(TokensParams, logits) == 248 && offset_of!(TokensParams, kv_heads) == 288);
    assert!(size_of::<TokensParams>() == 296);
    assert!(offset_of!(BoxedParams, q_row) == 80 && offset_of!(BoxedParams, group) == 128);
    assert!(size_of::<BoxedParams>() == 144);
};
