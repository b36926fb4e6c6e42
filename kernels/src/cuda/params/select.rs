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

/// The numbers of `cuda/params_select.cuh`.
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(offset_of!(TokensParams, logits) == 248 && offset_of!(TokensParams, kv_heads) == 288);
    assert!(size_of::<TokensParams>() == 296);
};
