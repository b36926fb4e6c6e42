// What the host tells the kernels of codecs, clusters and statistics; as params.cuh, mirrored in
// kernels/src/cuda/params/codec.rs.
#pragma once

#include "params.cuh"

/// A tile on its way to its place.
struct ExpwTile {
    u64 from, to;          // first byte in the coded span; first byte of its first row in the output's
    u32 bytes;             // coded
    u32 tokens, dim;
    u32 raw;               // 1: as it is
};
KV_AT(ExpwTile, bytes, 16);
KV_SIZE(ExpwTile, 32);

/// EXPW.
struct ExpwParams {
    u64 coded, coded_bytes; // the span that may be read
    u64 out, out_bytes;     // the span that may be written
    u64 tiles, status;      // ExpwTile; u32 per tile: KV_EXPW_ below
    i64 out_row;            // bytes from one row to the next
    u32 tiles_n, zero;
};
KV_AT(ExpwParams, tiles, 32);
KV_SIZE(ExpwParams, 64);

/// What became of a tile: the reasons of the CPU's decoder, in its order.
#define KV_EXPW_DONE 0
#define KV_EXPW_LENGTH 1
#define KV_EXPW_BASES 2
#define KV_EXPW_PADDING 3
#define KV_EXPW_COUNTS 4
#define KV_EXPW_ESCAPES 5
#define KV_EXPW_OUTSIDE 6 // it does not lie in the spans, or has no such shape

/// Keys of a KV head that are clustered by themselves: tokens first..first + points of a page list.
struct KMeansTask {
    u32 list, head;    // the list's first item
    u32 first, points;
    u32 label;         // of the first point
    u32 centroid, clusters;
    u32 zero;
};
KV_SIZE(KMeansTask, 32);

/// k-means. A piece is a task, and the first of the points or clusters of it that a block does.
struct KMeansParams {
    u64 k, items;       // pages of K; u32: their frames
    u64 tasks, pieces;  // KMeansTask; two u32 per block
    u64 middle;         // f32 [tasks][KV_D]: what is taken off the keys before they are compared, or 0
    u64 centroids;      // f32 [centroids][KV_D]
    u64 targets, bias;  // [centroids][1 or 2][KV_D] of the type of K; f32 [centroids]
    u64 labels, counts; // u32 per point, KV_SKIP: not finite; u32 per centroid, or 0
    i64 k_frame, k_head, k_token;
    u32 page_tokens, metric; // metric: KV_COSINE, KV_EUCLIDEAN
};
KV_AT(KMeansParams, centroids, 40);
KV_AT(KMeansParams, k_frame, 80);
KV_SIZE(KMeansParams, 112);
#define KV_COSINE 0
#define KV_EUCLIDEAN 1

/// Tokens base..base + 256 of a list, and the query rows that look at them.
struct ColumnsTile {
    u32 list, head;      // KV head
    u32 first_row, rows; // of the query tensor
    u32 base, out;       // out: row of sums, of the first query head or of the KV head
    u32 lo, hi;          // the list's tokens that any of the rows sees
};
KV_SIZE(ColumnsTile, 32);

/// Column sums of attention probabilities.
struct ColumnsParams {
    AttendParams a; // its lse2 is read; o, v, sinks and work are not looked at
    u64 tiles, out; // ColumnsTile per block; f32 [rows of sums][out_row]
    i64 out_row;
    u32 fold, zero; // KV_FOLD_NONE: a row per query head; KV_FOLD_SUM: per KV head
};
KV_AT(ColumnsParams, tiles, sizeof(AttendParams));
KV_SIZE(ColumnsParams, sizeof(AttendParams) + 32);

/// Rows of pages, and their codes and scales. Items are numbered by the lists, or 0, 1, 2, ... without.
struct QuantParams {
    u64 rows, codes, scales;            // scales: f16; with four bits pairs of scale and low end
    u64 row_items, code_items, lens;    // u32 per item, the first two or 0; tokens of each, or 0: all full
    i64 row_item, row_head, row_token;  // elements
    i64 code_item, code_head, code_token; // bytes, multiples of 4
    i64 scale_item, scale_head, scale_token; // numbers
    u32 items, heads, page_tokens, dim; // dim: a multiple of 4
    u32 group, bits, type, zero;        // group: 16, 32, 64, 128; bits: 8, 4
};
KV_AT(QuantParams, row_item, 48);
KV_AT(QuantParams, items, 120);
KV_SIZE(QuantParams, 152);

/// Keys of pages, moved to other positions.
struct RopeParams {
    u64 k, frames, lens;        // u32 frame of each item, or 0; u32 tokens of each, or 0: all full
    u64 differences, frequencies; // i32; f32 per pair
    i64 k_item, k_head, k_token; // elements
    i64 difference_item, difference_token; // between differences; 0: shared
    u32 items, heads, page_tokens, pairs;
    u32 neighbours, type;       // neighbours: pairs are 2i and 2i + 1, not i and i + pairs
};
KV_AT(RopeParams, k_item, 40);
KV_AT(RopeParams, items, 80);
KV_SIZE(RopeParams, 104);

/// K1 over K and V in eight bits: `a` with codes for k and v, strides in bytes, multiples of 16.
struct AttendCodesParams {
    AttendParams a;
    u64 k_scales, v_scales;   // f16 [frame][head][token][groups]; the last two without gaps, 16-byte aligned
    i64 k_scale_frame, k_scale_head, v_scale_frame, v_scale_head; // numbers
    u32 group, zero;          // group: 16, 32, 64, 128
};
KV_AT(AttendCodesParams, k_scales, sizeof(AttendParams));
KV_AT(AttendCodesParams, group, sizeof(AttendParams) + 48);
KV_SIZE(AttendCodesParams, sizeof(AttendParams) + 56);
