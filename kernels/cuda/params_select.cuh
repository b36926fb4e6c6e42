// What the host tells the kernels of scoring and selection: as params.cuh, mirrored in
// kernels/src/cuda/params/select.rs.
#pragma once

#include "params.cuh"

/// K9: votes of listed tokens. Of `of`, what concerns V, the output and its partial results is not used; there
/// are no masks.
struct TokensParams {
    AttendParams of;
    u64 logits, parts;       // f32 [q rows][q heads][logits_row]; f32x2 [segments][16 rows]: highest, sum
    u64 out;                 // f32 [q rows][KV heads][out_row]
    i64 logits_row, out_row; // logits_row: even
    u32 kv_heads, zero;
};
KV_AT(TokensParams, logits, 248);
KV_AT(TokensParams, kv_heads, 288);
KV_SIZE(TokensParams, 296);
