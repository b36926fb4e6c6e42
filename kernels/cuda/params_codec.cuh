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
