//! What the host tells the kernels of scoring and selection: `cuda/params_select.cuh`, field by field.

use bytemuck::{Pod, Zeroable};

use super::{AttendParams, TopKParams};

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

/// The fewest of the largest scores that reach a mass (`top_p` of `select.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct TopPParams {
    /// As for the largest scores; `k` is how many at most, forced ones included, unless more are forced.
    pub of: TopKParams,
    /// What the chosen scores, which are masses, sum to.
    pub target: f64,
    /// f32: what each row's chosen scores sum to, or 0.
    pub out_mass: u64,
    /// How many at least, forced ones included.
    pub least: u32,
    /// 0.
    pub zero: u32,
}

/// How the scores of query heads become one (`vote.cu`).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    /// The maximum of the scores.
    Max = 1,
    /// Their sum.
    Sum = 2,
    /// Their mean.
    Mean = 3,
    /// The sum of the softmax masses.
    Mass = 4,
    /// The largest softmax mass.
    MassMax = 5,
}

/// Scores of query heads to one of their KV head (`vote.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct VoteParams {
    /// f32 `[rows][KV heads * group][scores_row]`.
    pub scores: u64,
    /// u32 `[rows][KV heads]`: how many scores each row has.
    pub counts: u64,
    /// Base-2 log-sum-exp of what else is in each softmax, f32 `[rows][KV heads * group]`, or 0.
    pub lse2: u64,
    /// f32 `[rows][KV heads][out_row]`.
    pub out: u64,
    /// The same as `lse2` with the scores in it, or 0; for masses.
    pub out_lse2: u64,
    /// u32 `[rows][KV heads]`: the first score that is in its softmax, no more than there are; 0: all are.
    pub from: u64,
    /// Between rows of scores.
    pub scores_row: i64,
    /// Between rows of votes.
    pub out_row: i64,
    /// Multiplies scores, for masses: the softmax scale times log2 e.
    pub scale: f32,
    /// Query heads that become one.
    pub group: u32,
    /// [`Vote`].
    pub fold: u32,
    /// 0.
    pub zero: u32,
}

/// The plan of a call from the lengths of its lists (`plan.cu`): what `Work::cut` does. Fewer than 2^32 tiles in
/// all.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PlanParams {
    /// `Unit`s, as `Work::units` makes them; their `reduce` and `partial` are written.
    pub units: u64,
    /// Room for `Segment`s.
    pub segments: u64,
    /// u32, `workers_n + 1`: segments of each worker; those without work come last.
    pub workers: u64,
    /// u32: tokens of each list, or 0 where its offsets say so.
    pub lens: u64,
    /// u32: offsets of the lists; not read if there are lengths.
    pub indptr: u64,
    /// Units.
    pub units_n: u32,
    /// Workers.
    pub workers_n: u32,
    /// Tokens of a tile: 64, or 1 where a list has what `boxed.cu` calls cells.
    pub tile: u32,
    /// Tiles of a worker at least, 1 or more: [`TILES_MIN`](crate::cuda::work::TILES_MIN).
    pub tiles_min: u32,
}

/// The numbers of `cuda/params_select.cuh`.
const _: () = {
    use std::mem::{offset_of, size_of};
    let (call, top) = (size_of::<AttendParams>(), size_of::<TopKParams>());
    assert!(offset_of!(TokensParams, logits) == call);
    assert!(offset_of!(TokensParams, kv_heads) == call + 40);
    assert!(size_of::<TokensParams>() == call + 48);
    assert!(offset_of!(BoxedParams, q_row) == 80 && offset_of!(BoxedParams, group) == 128);
    assert!(size_of::<BoxedParams>() == 144);
    assert!(offset_of!(TopPParams, target) == top && size_of::<TopPParams>() == top + 24);
    assert!(offset_of!(PlanParams, units_n) == 40 && size_of::<PlanParams>() == 56);
    assert!(offset_of!(VoteParams, scale) == 64 && size_of::<VoteParams>() == 80);
};
