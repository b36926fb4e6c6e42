//! `cuda/params_prefill.cuh`: attention of many rows, and of draft trees.

use bytemuck::{Pod, Zeroable};

use super::AttendParams;

/// The key blocks that a unit reads: `blocks[first..first + n]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Picked {
    /// The first of them.
    pub first: u32,
    /// How many.
    pub n: u32,
}

/// Attention of many rows (`attend_prefill.cu`). With lists of blocks, a unit's head counts the heads that have
/// lists of their own, and the group the query heads that share one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct PrefillParams {
    /// The call.
    pub call: AttendParams,
    /// u32: key blocks, or 0.
    pub blocks: u64,
    /// [`Picked`] of each unit, or 0.
    pub picked: u64,
    /// Tokens of a key block, a multiple of 16.
    pub key_block: u32,
    /// Lists of a KV head, 1 without block lists.
    pub lists_per_head: u32,
}

/// Attention of draft trees among themselves (`attend_tree.cu`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct TreeParams {
    /// The call; nodes are listed as slots.
    pub call: AttendParams,
    /// u64 of each query row: a bit for each node of its tree that it sees.
    pub ancestors: u64,
}

/// The numbers of `cuda/params_prefill.cuh`.
const _: () = {
    use std::mem::{offset_of, size_of};
    let call = size_of::<AttendParams>();
    assert!(size_of::<Picked>() == 8);
    assert!(offset_of!(PrefillParams, blocks) == call);
    assert!(size_of::<PrefillParams>() == call + 24);
    assert!(offset_of!(TreeParams, ancestors) == call);
    assert!(size_of::<TreeParams>() == call + 8);
};
