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
KV_AT(TokensParams, logits, sizeof(AttendParams));
KV_AT(TokensParams, kv_heads, sizeof(AttendParams) + 40);
KV_SIZE(TokensParams, sizeof(AttendParams) + 48);

/// Estimates from boxed codes.
struct BoxedParams {
    u64 q, cells;
    u64 est, bounds, sigma;    // f32 [q rows][q heads][est_row], [q rows][q heads][bounds_row] or 0,
                               // [q rows][KV heads][bounds_row] or 0
    u64 units, segments, workers;
    u64 indptr, items;         // u32: lists of cells
    i64 q_row, q_head;         // elements
    i64 cell, cell_head;       // bytes, multiples of 16: between the cells of items, and of KV heads
    i64 est_row, bounds_row;   // est_row: even
    u32 group, kv_heads;
    u32 types, zero;           // types: of q
};
KV_AT(BoxedParams, q_row, 80);
KV_AT(BoxedParams, group, 128);
KV_SIZE(BoxedParams, 144);

/// K11: as K10, but as few as reach a mass.
struct TopPParams {
    TopKParams of; // k: no more than these, unless more are forced
    double target; // sum of the chosen scores, which are masses
    u64 out_mass;  // f32 per row: what is reached; or 0
    u32 least, zero;
};
KV_AT(TopPParams, target, sizeof(TopKParams));
KV_SIZE(TopPParams, sizeof(TopKParams) + 24);

/// Folds of softmax masses, beside KV_FOLD_MAX, _SUM and _MEAN of scores.
#define KV_FOLD_MASS 4
#define KV_FOLD_MASS_MAX 5

/// K11: the scores of a group's query heads become one of their KV head.
struct VoteParams {
    u64 scores, counts;        // f32 [rows][KV heads * group][scores_row]; u32 [rows][KV heads]: how many
    u64 lse2;                  // f32 [rows][KV heads * group]: what else is in each softmax, or 0
    u64 out, out_lse2;         // f32 [rows][KV heads][out_row]; as lse2 with the scores in it, or 0
    u64 from;                  // u32 [rows][KV heads]: the first score that is in its softmax; 0: all are
    i64 scores_row, out_row;
    float scale;               // of the scores, to units of log2; masses only
    u32 group, fold, zero;
};
KV_AT(VoteParams, scale, 64);
KV_SIZE(VoteParams, 80);

/// K15: units' segments by worker, from the lengths of their lists.
struct PlanParams {
    u64 units;             // Unit; their `reduce` and `partial` are written
    u64 segments, workers; // as PlanRoom has them
    u64 lens, indptr;      // u32 per list, or 0: what lies between its offsets
    u32 units_n, workers_n;
    u32 tile, tiles_min;   // tokens of a tile; tiles that are worth a worker: both at least 1
};
KV_AT(PlanParams, units_n, 40);
KV_SIZE(PlanParams, 56);
