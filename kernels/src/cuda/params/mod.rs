//! What the host tells a kernel: `cuda/params.cuh`, field by field.
//!
//! Addresses are `u64`, 0 where there is nothing. Strides count elements. Plain old data without padding.

mod codec;
mod prefill;
mod select;

use bytemuck::{Pod, Zeroable};

use crate::DType;

pub use codec::{
    AttendCodesParams, ColumnsParams, ColumnsTile, ExpwParams, ExpwTile, KMeansParams, KMeansTask,
    QuantParams, RopeParams,
};
pub use prefill::{Picked, PrefillParams, TreeParams};
pub use select::{BoxedParams, PlanParams, TokensParams, TopPParams, Vote, VoteParams};

/// Element types as kernels number them.
#[must_use]
pub const fn type_code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Bf16 => 2,
    }
}

/// Query rows that walk a list together.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Unit {
    /// The list.
    pub list: u32,
    /// The KV head.
    pub head: u32,
    /// The sequence's first row of the query tensor.
    pub first_row: u32,
    /// First of the sequence's `[token][group]` rows.
    pub packed: u32,
    /// How many of them.
    pub rows: u32,
    /// Number of partial results, 0 if the output is written directly.
    pub reduce: u32,
    /// The first partial result.
    pub partial: u32,
    /// 0.
    pub zero: u32,
}

/// A run of 64-token tiles of a unit's list, done by one worker.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Segment {
    /// The unit.
    pub unit: u32,
    /// First tile.
    pub begin: u32,
    /// One behind the last tile.
    pub end: u32,
    /// Number of the partial result; -1 if the segment is the whole unit.
    pub partial: i32,
}

/// Attention over pages or slots (`attend_pages.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct AttendParams {
    /// Queries `[rows][q_heads][dim]`.
    pub q: u64,
    /// Keys.
    pub k: u64,
    /// Values.
    pub v: u64,
    /// Output `[rows][q_heads][dim]`.
    pub o: u64,
    /// Base-2 log-sum-exp, f32 `[rows][q_heads]`, or 0.
    pub lse2: u64,
    /// Partial outputs, f32 `[partial][rows of a unit][dim]`.
    pub part_o: u64,
    /// Their log-sum-exp, f32 `[partial][rows of a unit]`.
    pub part_lse2: u64,
    /// [`Unit`]s.
    pub units: u64,
    /// [`Segment`]s.
    pub segments: u64,
    /// u32: worker `w` does segments `workers[w]..workers[w + 1]`.
    pub workers: u64,
    /// u32: offsets of the lists.
    pub indptr: u64,
    /// u32: frames or slots.
    pub items: u64,
    /// u32: tokens of each list; 0 for slots whose offsets say how many there are.
    pub lens: u64,
    /// u32: position of the first token of each page list, or 0.
    pub first_pos: u64,
    /// u32: position of each slot; with a mask only.
    pub slot_pos: u64,
    /// u32: position of each query row; with a mask only.
    pub q_pos: u64,
    /// f32: a logit per query head, or 0.
    pub sinks: u64,
    /// Stride of query rows.
    pub q_row: i64,
    /// Stride of query heads.
    pub q_head: i64,
    /// Stride of output rows.
    pub o_row: i64,
    /// Stride of output heads.
    pub o_head: i64,
    /// Stride of frames in K.
    pub k_frame: i64,
    /// Stride of heads in K.
    pub k_head: i64,
    /// Stride of tokens in K.
    pub k_token: i64,
    /// Stride of frames in V.
    pub v_frame: i64,
    /// Stride of heads in V.
    pub v_head: i64,
    /// Stride of tokens in V.
    pub v_token: i64,
    /// Bytes from K, and from V, to those of frames or slots whose highest bit is set; 0: it is a bit of the
    /// number.
    pub far: i64,
    /// Multiplies q.k.
    pub scale: f32,
    /// 0 is off.
    pub soft_cap: f32,
    /// 0 is off.
    pub window: u32,
    /// 0 or 1.
    pub causal: u32,
    /// Tokens of a frame, a multiple of 16.
    pub page_tokens: u32,
    /// Query heads of a KV head.
    pub group: u32,
    /// Query heads.
    pub q_heads: u32,
    /// [`type_code`] of the queries, and of the output shifted left by 8.
    pub types: u32,
}

/// The merge of units that were cut (`merge_units` of `merge.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct MergeUnitsParams {
    /// As in [`AttendParams`].
    pub part_o: u64,
    /// As in [`AttendParams`].
    pub part_lse2: u64,
    /// As in [`AttendParams`].
    pub units: u64,
    /// As in [`AttendParams`].
    pub sinks: u64,
    /// As in [`AttendParams`].
    pub o: u64,
    /// As in [`AttendParams`].
    pub lse2: u64,
    /// Stride of output rows.
    pub o_row: i64,
    /// Stride of output heads.
    pub o_head: i64,
    /// Number of units.
    pub units_n: u32,
    /// Rows of a unit at most.
    pub unit_rows: u32,
    /// Elements of an output row, a multiple of 4.
    pub dim: u32,
    /// Query heads of a KV head.
    pub group: u32,
    /// Query heads.
    pub q_heads: u32,
    /// [`type_code`] of the output.
    pub o_type: u32,
}

/// A partial result of all rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Part {
    /// Output `[rows][heads][dim]`.
    pub o: u64,
    /// f32 `[rows][heads]`.
    pub lse2: u64,
    /// Stride of rows of `o`.
    pub row: i64,
    /// Stride of heads of `o`.
    pub head: i64,
}

/// The merge of parts over disjoint tokens (`merge_parts` of `merge.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct MergePartsParams {
    /// [`Part`]s.
    pub parts: u64,
    /// Output `[rows][heads][dim]`.
    pub o: u64,
    /// f32 `[rows][heads]`, or 0.
    pub lse2: u64,
    /// Stride of output rows.
    pub o_row: i64,
    /// Stride of output heads.
    pub o_head: i64,
    /// Number of parts.
    pub parts_n: u32,
    /// Rows.
    pub rows: u32,
    /// Heads.
    pub heads: u32,
    /// Elements of a row, a multiple of 4.
    pub dim: u32,
    /// [`type_code`] of the parts.
    pub part_type: u32,
    /// [`type_code`] of the output.
    pub o_type: u32,
}

/// How the scores of a KV head's query heads become one.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// They stay apart.
    None = 0,
    /// Their maximum.
    Max = 1,
    /// Their sum.
    Sum = 2,
    /// Their mean.
    Mean = 3,
}

/// Scores of box rows (`score.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ScoreParams {
    /// Queries `[rows][q_heads][dim]`.
    pub q: u64,
    /// Rows of maxima.
    pub k: u64,
    /// Rows of minima.
    pub v: u64,
    /// Scores, f32.
    pub out: u64,
    /// [`Unit`]s of whole groups.
    pub units: u64,
    /// [`Segment`]s.
    pub segments: u64,
    /// u32: segments of each worker.
    pub workers: u64,
    /// u32: offsets of the lists.
    pub indptr: u64,
    /// u32: frames of summaries.
    pub items: u64,
    /// u32: units of each list.
    pub lens: u64,
    /// Stride of query rows.
    pub q_row: i64,
    /// Stride of query heads.
    pub q_head: i64,
    /// Stride of frames of maxima.
    pub k_frame: i64,
    /// Stride of heads of maxima.
    pub k_head: i64,
    /// Stride of units of maxima.
    pub k_token: i64,
    /// Stride of frames of minima.
    pub v_frame: i64,
    /// Stride of heads of minima.
    pub v_head: i64,
    /// Stride of units of minima.
    pub v_token: i64,
    /// Between rows of the output: `[q rows][q heads]` without a fold, else `[q rows][KV heads]`.
    pub out_row: i64,
    /// Units of a frame.
    pub page_tokens: u32,
    /// Query heads of a KV head, 16 at most.
    pub group: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// [`Fold`].
    pub fold: u32,
    /// [`type_code`] of the queries.
    pub types: u32,
    /// 0.
    pub zero: u32,
}

/// The largest scores (`top_k` of `select.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TopKParams {
    /// f32 `[rows][scores_row]`.
    pub scores: u64,
    /// u32: scores of each row.
    pub counts: u64,
    /// u32: forced ranges of each row, `rows + 1` offsets, or 0.
    pub forced_ptr: u64,
    /// Ranges `[begin, end)` of two u32, ascending and disjoint in a row.
    pub forced: u64,
    /// u32 `[rows][out_row]`: ids, ascending.
    pub out: u64,
    /// u32: ids of each row.
    pub out_n: u64,
    /// u32: how many of each row, forced ones included, or 0: `k`. Not for the fewest that reach a mass.
    pub wanted: u64,
    /// u32: offsets of the page lists in whose pages the units are, or 0.
    pub indptr: u64,
    /// u32: their frames.
    pub frames: u64,
    /// u32: their tokens.
    pub lens: u64,
    /// u32 `[rows][out_row]`: items of the chosen units, or 0.
    pub out_items: u64,
    /// u32: tokens of the chosen units of each row, or 0.
    pub out_lens: u64,
    /// Between rows of scores.
    pub scores_row: i64,
    /// Between rows of ids.
    pub out_row: i64,
    /// How many, forced ones included.
    pub k: u32,
    /// Tokens of a unit.
    pub unit_tokens: u32,
    /// Units of a page.
    pub page_units: u32,
    /// Items of a frame: unit `i` of frame `f` is item `f * page_items + i`. Where that is more than 1, a frame's
    /// highest bit is no part of its number, and becomes its items'.
    pub page_items: u32,
}

/// A slot or item that names nothing.
pub const SKIP: u32 = u32::MAX;

/// New rows into pages, and into the boxes of their units (`append` of `write.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AppendParams {
    /// New keys `[tokens][heads][dim_k]`.
    pub k: u64,
    /// New values `[tokens][heads][dim_v]`.
    pub v: u64,
    /// u32: slot of each token, or [`SKIP`].
    pub slots: u64,
    /// Pages of keys.
    pub k_pool: u64,
    /// Pages of values.
    pub v_pool: u64,
    /// Box rows `[max | min]` of units, or 0.
    pub boxes: u64,
    /// Stride of new keys' rows.
    pub k_row: i64,
    /// Stride of new keys' heads.
    pub k_head: i64,
    /// Stride of new values' rows.
    pub v_row: i64,
    /// Stride of new values' heads.
    pub v_head: i64,
    /// Stride of frames in K.
    pub k_frame: i64,
    /// Stride of heads in K.
    pub k_pool_head: i64,
    /// Stride of tokens in K.
    pub k_token: i64,
    /// Stride of frames in V.
    pub v_frame: i64,
    /// Stride of heads in V.
    pub v_pool_head: i64,
    /// Stride of tokens in V.
    pub v_token: i64,
    /// Stride of frames' boxes.
    pub box_frame: i64,
    /// Stride of heads' boxes.
    pub box_head: i64,
    /// Stride of units' boxes.
    pub box_unit: i64,
    /// New tokens.
    pub tokens: u32,
    /// KV heads.
    pub heads: u32,
    /// Elements of a key.
    pub dim_k: u32,
    /// Elements of a value.
    pub dim_v: u32,
    /// Tokens of a frame, whole units.
    pub page_tokens: u32,
    /// Tokens of a unit.
    pub unit_tokens: u32,
    /// [`type_code`] of all of them.
    pub dtype: u32,
    /// 0.
    pub zero: u32,
}

/// Pieces of memory from listed places to listed places (`copy_items` of `transfer.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CopyParams {
    /// First byte of the sources.
    pub from: u64,
    /// First byte of the targets.
    pub to: u64,
    /// u32: number of each source, or [`SKIP`]; 0 for 0, 1, 2, ...
    pub from_items: u64,
    /// u32: number of each target, or [`SKIP`]; 0 for 0, 1, 2, ...
    pub to_items: u64,
    /// Bytes from one source to the next.
    pub from_item: i64,
    /// Bytes from one piece of a source to the next.
    pub from_piece: i64,
    /// Bytes from one target to the next.
    pub to_item: i64,
    /// Bytes from one piece of a target to the next.
    pub to_piece: i64,
    /// Items.
    pub items: u32,
    /// Pieces of an item.
    pub pieces: u32,
    /// Bytes of a piece, a multiple of 16.
    pub piece_bytes: u32,
    /// 0.
    pub zero: u32,
}

/// The numbers of `cuda/params.cuh`: sizes, and offsets where kinds of fields meet.
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(offset_of!(Unit, first_row) == 8 && offset_of!(Unit, partial) == 24);
    assert!(size_of::<Unit>() == 32);
    assert!(offset_of!(Segment, partial) == 12 && size_of::<Segment>() == 16);
    assert!(offset_of!(AttendParams, part_o) == 40 && offset_of!(AttendParams, units) == 56);
    assert!(offset_of!(AttendParams, indptr) == 80 && offset_of!(AttendParams, slot_pos) == 112);
    assert!(offset_of!(AttendParams, q_row) == 136 && offset_of!(AttendParams, k_frame) == 168);
    assert!(offset_of!(AttendParams, scale) == 224 && offset_of!(AttendParams, types) == 252);
    assert!(size_of::<AttendParams>() == 256);
    assert!(offset_of!(MergeUnitsParams, o_row) == 48);
    assert!(offset_of!(MergeUnitsParams, o_type) == 84 && size_of::<MergeUnitsParams>() == 88);
    assert!(size_of::<Part>() == 32);
    assert!(offset_of!(ScoreParams, q_row) == 80 && offset_of!(ScoreParams, page_tokens) == 152);
    assert!(size_of::<ScoreParams>() == 176);
    assert!(offset_of!(TopKParams, scores_row) == 96 && size_of::<TopKParams>() == 128);
    assert!(offset_of!(AppendParams, k_row) == 48 && offset_of!(AppendParams, box_frame) == 128);
    assert!(offset_of!(AppendParams, tokens) == 152 && size_of::<AppendParams>() == 184);
    assert!(offset_of!(CopyParams, from_item) == 32 && size_of::<CopyParams>() == 80);
    assert!(offset_of!(MergePartsParams, parts_n) == 40 && size_of::<MergePartsParams>() == 64);
};
