// Parameters of attention of many rows, as params.cuh has those of the rest: mirrored in
// kernels/src/cuda/params/prefill.rs.
#pragma once

#include "params.cuh"

/// The key blocks that a unit reads: blocks[first..first + n].
struct Picked {
    u32 first, n;
};
KV_SIZE(Picked, 8);

/// K3 and K4. With lists of blocks, a unit's head counts the heads that have lists of their own, and
/// `call.group` the query heads that share one.
struct PrefillParams {
    AttendParams call;
    u64 blocks, picked;   // u32; Picked per unit; K4 only
    u32 key_block;        // tokens of a block, a multiple of 16; K4 only
    u32 lists_per_head;   // lists of a KV head
};
KV_AT(PrefillParams, blocks, sizeof(AttendParams));
KV_SIZE(PrefillParams, sizeof(AttendParams) + 24);

/// K5. The nodes of a tree are listed as slots.
struct TreeParams {
    AttendParams call;
    u64 ancestors; // u64 per query row: a bit for each node of its tree that it sees
};
KV_AT(TreeParams, ancestors, sizeof(AttendParams));
KV_SIZE(TreeParams, sizeof(AttendParams) + 8);
