// K13: copies listed items from one arrangement to another: gather from and scatter to mapped host memory,
// layer-first to page-first and back. An item is some pieces (say, one per layer) of the same length.
//
//   entry        parameters   blocks    threads   shared memory
//   copy_items   CopyParams   a quota   128       0
//
// No macros. A warp does a piece at a time, eight loads of 16 bytes a lane in flight, because the link's
// latency is long. A few blocks fill the link; the quota leaves the other SMs to the model. Whoever launches
// this orders it behind the last attention that reads a target, by events.
#include "numbers.cuh"

constexpr u32 FLYING = 8, STEP = 32 * 16;

KV_FN u32 number(u64 items, u32 i) { return items ? load<u32>(items, i) : i; }

KV_FN void copy_piece(const u8* from, u8* to, u32 bytes) {
    for (u32 base = kv::lane() * 16; base < bytes; base += FLYING * STEP) {
        u32x4 x[FLYING];
#pragma unroll
        for (u32 i = 0; i < FLYING; i++) {
            if (base + i * STEP < bytes) {
                x[i] = kv::ldg_once(reinterpret_cast<const u32x4*>(from + base + i * STEP));
            }
        }
#pragma unroll
        for (u32 i = 0; i < FLYING; i++) {
            if (base + i * STEP < bytes) {
                kv::stg(reinterpret_cast<u32x4*>(to + base + i * STEP), x[i]);
            }
        }
    }
}

KV_KERNEL(copy_items, CopyParams, 128, 8) {
    u64 tasks = static_cast<u64>(p.items) * p.pieces;
    for (u64 task = kv::block() * 4 + kv::warp(); task < tasks; task += kv::blocks() * 4) {
        u32 item = static_cast<u32>(task / p.pieces), piece = static_cast<u32>(task % p.pieces);
        u32 from = number(p.from_items, item), to = number(p.to_items, item);
        if (from != KV_SKIP && to != KV_SKIP) {
            copy_piece(reinterpret_cast<const u8*>(p.from) + from * p.from_item + piece * p.from_piece,
                       reinterpret_cast<u8*>(p.to) + to * p.to_item + piece * p.to_piece, p.piece_bytes);
        }
    }
}
