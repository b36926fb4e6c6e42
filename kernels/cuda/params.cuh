// What the host tells a kernel: plain structs, mirrored field by field in kernels/src/cuda/params/.
// Addresses are u64; 0 is "absent". Strides count elements. No padding.
#pragma once

#include "kvdev.cuh"

/// Element types, as kv::Type below.
#define KV_F32 0
#define KV_F16 1
#define KV_BF16 2

#ifdef KV_EMU
#define KV_AT(type, field, at) static_assert(__builtin_offsetof(type, field) == (at), #type "." #field)
#else // NVRTC has no offsetof
#define KV_AT(type, field, at) static_assert(sizeof(type::field) >= 4, #type "." #field)
#endif
#define KV_SIZE(type, bytes) static_assert(sizeof(type) == (bytes), #type)

/// Query rows that walk a list together: rows packed..packed + rows of a sequence's [token][group] rows.
struct Unit {
    u32 list;
    u32 head;      // KV head
    u32 first_row; // the sequence's first row of the query tensor
    u32 packed;
    u32 rows;
    u32 reduce;    // number of its partial results, 0 if written directly
    u32 partial;   // the first of them
    u32 zero;
};
KV_AT(Unit, first_row, 8);
KV_AT(Unit, partial, 24);
KV_SIZE(Unit, 32);

/// Tiles begin..end (64 tokens each) of a unit's list, done by one worker.
struct Segment {
    u32 unit;
    u32 begin, end;
    i32 partial; // where its partial result goes; -1: it is the whole unit
};
KV_AT(Segment, partial, 12);
KV_SIZE(Segment, 16);

/// K1 and K2. Rows of q, k, v and o start at 16 bytes.
struct AttendParams {
    u64 q, k, v, o, lse2;       // lse2: f32 [rows][q_heads], or 0
    u64 part_o, part_lse2;      // f32 [partial][KV_ROWS][KV_D], f32 [partial][KV_ROWS]
    u64 units, segments, workers;
    u64 indptr, items;          // u32; items: frames (pages) or frame * page_tokens + offset (slots)
    u64 lens, first_pos;        // u32 per list; slots: lens may be 0; pages only: first_pos, which may be 0
    u64 slot_pos;               // u32 per slot; slots with a mask only
    u64 q_pos;                  // u32 per query row; with a mask only
    u64 sinks;                  // f32 per q head, or 0
    i64 q_row, q_head, o_row, o_head;
    i64 k_frame, k_head, k_token, v_frame, v_head, v_token;
    i64 far;                    // bytes to K and V of items with the highest bit, or 0: that bit is of the number
    float scale, soft_cap;      // soft_cap 0: off
    u32 window, causal;         // window 0: off
    u32 page_tokens, group, q_heads, types; // types: q | o << 8
};
KV_AT(AttendParams, part_o, 40);
KV_AT(AttendParams, units, 56);
KV_AT(AttendParams, indptr, 80);
KV_AT(AttendParams, slot_pos, 112);
KV_AT(AttendParams, q_row, 136);
KV_AT(AttendParams, k_frame, 168);
KV_AT(AttendParams, scale, 224);
KV_AT(AttendParams, types, 252);
KV_SIZE(AttendParams, 256);

/// K6 behind K1: joins the partial results of units that were cut.
struct MergeUnitsParams {
    u64 part_o, part_lse2, units, sinks, o, lse2;
    i64 o_row, o_head;
    u32 units_n, unit_rows; // unit_rows: KV_ROWS of the attention
    u32 dim, group, q_heads, o_type;
};
KV_AT(MergeUnitsParams, o_row, 48);
KV_AT(MergeUnitsParams, o_type, 84);
KV_SIZE(MergeUnitsParams, 88);

/// A partial result of all rows.
struct Part {
    u64 o;         // [rows][heads][dim]
    u64 lse2;      // f32 [rows][heads]
    i64 row, head; // strides of o
};
KV_SIZE(Part, 32);

/// K6: joins parts over disjoint tokens.
struct MergePartsParams {
    u64 parts;
    u64 o, lse2;
    i64 o_row, o_head;
    u32 parts_n, rows, heads, dim;
    u32 part_type, o_type;
};
KV_AT(MergePartsParams, parts_n, 40);
KV_SIZE(MergePartsParams, 64);

/// How the scores of a KV head's query heads become one.
#define KV_FOLD_NONE 0
#define KV_FOLD_MAX 1
#define KV_FOLD_SUM 2
#define KV_FOLD_MEAN 3

/// K7. Box rows lie in pages like keys: `page_tokens` units a page.
struct ScoreParams {
    u64 q, k, v, out;      // k: rows of maxima; v: rows of minima; out: f32
    u64 units, segments, workers;
    u64 indptr, items, lens; // page lists; lens: units of each
    i64 q_row, q_head;
    i64 k_frame, k_head, k_token, v_frame, v_head, v_token;
    i64 out_row;           // between rows of out: [q rows][q heads] without a fold, else [q rows][KV heads]
    u32 page_tokens, group, kv_heads, fold;
    u32 types, zero;       // types: of q
};
KV_AT(ScoreParams, q_row, 80);
KV_AT(ScoreParams, page_tokens, 152);
KV_SIZE(ScoreParams, 176);

/// K10.
struct TopKParams {
    u64 scores, counts;       // f32 [rows][scores_row]; u32 per row: how many
    u64 forced_ptr, forced;   // u32 [rows + 1] into ranges (u32 begin, end), ascending, disjoint; or 0
    u64 out, out_n;           // u32 [rows][out_row] ids; u32 per row: how many
    u64 wanted;               // u32 per row: how many, in place of k; or 0
    u64 indptr, frames, lens; // page lists of the rows, and their tokens; or 0
    u64 out_items, out_lens;  // u32 [rows][out_row], u32 per row: the chosen units as lists
    i64 scores_row, out_row;
    u32 k, unit_tokens;
    u32 page_units, page_items; // unit i of frame f is item f * page_items + i; a frame's highest bit stays
};
KV_AT(TopKParams, scores_row, 96);
KV_SIZE(TopKParams, 128);

/// K12. Strides of sources, pools and boxes in elements; rows start at 16 bytes.
struct AppendParams {
    u64 k, v, slots;           // sources; u32 per token: frame * page_tokens + offset, or KV_SKIP
    u64 k_pool, v_pool, boxes; // boxes: rows [max | min] of units, or 0
    i64 k_row, k_head, v_row, v_head;
    i64 k_frame, k_pool_head, k_token, v_frame, v_pool_head, v_token;
    i64 box_frame, box_head, box_unit;
    u32 tokens, heads, dim_k, dim_v;
    u32 page_tokens, unit_tokens, type, zero;
};
KV_AT(AppendParams, k_row, 48);
KV_AT(AppendParams, box_frame, 128);
KV_AT(AppendParams, tokens, 152);
KV_SIZE(AppendParams, 184);

/// K13. Strides in bytes, multiples of 16, as are the bases.
struct CopyParams {
    u64 from, to;
    u64 from_items, to_items; // u32 per item, KV_SKIP: leave out; 0: item i is the i-th
    i64 from_item, from_piece, to_item, to_piece;
    u32 items, pieces, piece_bytes, zero;
};
KV_AT(CopyParams, from_item, 32);
KV_SIZE(CopyParams, 80);

/// An index that names nothing.
#define KV_SKIP 0xffffffffu
