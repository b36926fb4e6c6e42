// Rows of K and V on their way to a warp: a ring of KV_STAGES stages of 16 tokens in shared memory.
//
// Each warp fetches 16 of a tile's 64 tokens by itself, 16 bytes a lane and copy: at d = 128 in 16 bits
// that is 8 KiB a stage, 96 KiB for four warps and three stages, so two blocks share an H200's SM with
// 128 KiB in flight. That is several times what the latency of its memory asks for, without one register.
//
// A stage is a K side and a V side of 16 rows, or a K side alone where a source defines KV_SIDES 1.
// Reading 8 rows at the same chunk (16 bytes) must hit different banks: rows of 128 bytes or a multiple
// swap their chunks by row, others get a chunk of padding.
#pragma once

#include "numbers.cuh"

/// Sides of a stage: keys and values, unless a source says less.
#ifndef KV_SIDES
#define KV_SIDES 2
#endif

/// Bits of a code, or 0: K and V have KV_TY.
#ifndef KV_BITS
#define KV_BITS 0
#endif

/// Times 16 query rows of a warp: one, unless a source says more.
#ifndef KV_ROW_TILES
#define KV_ROW_TILES 1
#endif

/// 1: tiles lie as Hopper's wgmma reads them, 64 dimensions of all tokens behind each other.
#ifndef KV_WGMMA
#define KV_WGMMA 0
#endif

constexpr u32 GROUP = 16, WARPS = 4, TILE = GROUP * WARPS;
constexpr u32 ELEMENT = KV_TY == KV_F32 ? 4 : 2;
constexpr u32 CHUNKS = KV_D * ELEMENT / 16;
constexpr bool SWAPPED = CHUNKS % 8 == 0;
#if KV_WGMMA
constexpr u32 PITCH = 128, PANEL = TILE * PITCH;
/// From keys to values.
constexpr u32 SIDE = CHUNKS / 8 * PANEL;
constexpr u32 RING = KV_STAGES * 2 * SIDE / WARPS;

/// Byte of a chunk, from the first row of a group.
KV_FN u32 chunk_at(u32 row, u32 chunk) { return chunk / 8 * PANEL + row * PITCH + (chunk % 8 ^ (row & 7)) * 16; }

/// Where a group of 16 tokens begins in shared memory.
KV_FN u32 stage_at(u32 group, u32 stage) { return stage * 2 * SIDE + group * GROUP * PITCH; }
#else
constexpr u32 PITCH = (SWAPPED ? CHUNKS : CHUNKS + 1) * 16;
constexpr u32 SIDE = GROUP * PITCH;
/// Of codes in eight bits: the codes, and a scale of two bytes for 16 of them at most.
constexpr u32 STAGE = KV_BITS ? 2 * GROUP * (KV_D + KV_D / 8) : KV_SIDES * SIDE;
constexpr u32 RING = KV_STAGES * STAGE;

/// Byte of a chunk in a side.
KV_FN u32 chunk_at(u32 row, u32 chunk) { return row * PITCH + (SWAPPED ? chunk ^ (row & 7) : chunk) * 16; }

/// Where a stage of a warp begins in shared memory.
KV_FN u32 stage_at(u32 warp, u32 stage) { return warp * RING + stage * STAGE; }
#endif

struct Range {
    u32 lo, hi;
};
KV_FN bool has(const Range& r, u32 token) { return token >= r.lo && token < r.hi; }

/// A list of tokens, in pages or slots.
struct List {
    u32 first_item, len;
    u32 position; // of the first token; pages only
    u32 head;
};

KV_FN List open_list(const AttendParams& p, u32 list, u32 head) {
    u32 first = load<u32>(p.indptr, list);
#if KV_SLOTS
    return List{first, p.lens ? load<u32>(p.lens, list) : load<u32>(p.indptr, list + 1) - first, 0, head};
#else
    return List{first, load<u32>(p.lens, list), p.first_pos ? load<u32>(p.first_pos, list) : 0, head};
#endif
}

/// How many of the list's tokens lie before `position`.
KV_FN u32 before(const AttendParams& p, const List& list, u64 position) {
#if KV_SLOTS
    u32 lo = 0, hi = list.len;
    while (lo < hi) {
        u32 middle = (lo + hi) / 2;
        if (load<u32>(p.slot_pos, list.first_item + middle) < position) {
            lo = middle + 1;
        } else {
            hi = middle;
        }
    }
    return lo;
#else
    u64 n = position > list.position ? position - list.position : 0;
    return n < list.len ? static_cast<u32>(n) : list.len;
#endif
}

/// The tokens of a list that a query row sees.
KV_FN Range seen(const AttendParams& p, const List& list, u32 q_row) {
    Range r{0, list.len};
    if (p.causal || p.window) {
        u64 end = static_cast<u64>(load<u32>(p.q_pos, q_row)) + 1;
        if (p.causal) {
            r.hi = before(p, list, end);
        }
        if (p.window && end > p.window) {
            u32 lo = before(p, list, end - p.window);
            r.lo = lo < r.hi ? lo : r.hi;
        }
    }
    return r;
}

/// The item that the lane needs to find its group's rows: the frame (pages: all lanes the same), or the
/// slot of token lane % 16. Asked for a tile ahead of the copies, because they wait for it.
KV_FN u32 item(const AttendParams& p, const List& list, const Range& wanted, u32 token) {
#if KV_SLOTS
    u32 mine = token + kv::lane() % GROUP;
    return has(wanted, mine) ? load<u32>(p.items, list.first_item + mine) : 0;
#else
    bool none = token >= wanted.hi || token + GROUP <= wanted.lo;
    return none ? 0 : load<u32>(p.items, list.first_item + token / p.page_tokens);
#endif
}

/// Bytes from where items lie to where this one does: with its highest bit, it lies in the other of two places.
template <class P> KV_FN i64 far_of(const P&, u32&) { return 0; }
KV_FN i64 far_of(const AttendParams& p, u32& item) {
    bool away = p.far && item >> 31;
    item = away ? item & 0x7fffffff : item;
    return away ? p.far : 0;
}

/// Starts the copies of tokens token..token + 16 into a stage; those not wanted become zeros, and their
/// memory is not read (it may hold anything).
template <class P>
KV_FN void fetch(const P& p, const List& list, const Range& wanted, u32 token, u32 item, u32 stage) {
    const u8* k = reinterpret_cast<const u8*>(p.k + list.head * p.k_head * ELEMENT);
    const u8* v = reinterpret_cast<const u8*>(p.v + list.head * p.v_head * ELEMENT);
#if !KV_SLOTS
    // A group lies in one page: page_tokens is a multiple of 16.
    u32 offset = token % p.page_tokens;
    i64 far = far_of(p, item);
    k += (item * p.k_frame + offset * p.k_token) * ELEMENT + far;
    v += (item * p.v_frame + offset * p.v_token) * ELEMENT + far;
#else
    u32 slot = item;
    u32 mark = far_of(p, slot) ? item & 0x80000000 : 0;
    u32 my_frame = slot / p.page_tokens | mark, my_offset = slot % p.page_tokens;
#endif
#pragma unroll
    for (u32 i = 0; i < GROUP * CHUNKS / 32; i++) {
        u32 at = i * 32 + kv::lane(), row = at / CHUNKS, chunk = at % CHUNKS;
#if KV_SLOTS
        u32 frame = kv::shfl(my_frame, row), offset = kv::shfl(my_offset, row);
        i64 far = far_of(p, frame);
        i64 k_at = (frame * p.k_frame + offset * p.k_token) * ELEMENT + far;
        i64 v_at = (frame * p.v_frame + offset * p.v_token) * ELEMENT + far;
#else
        i64 k_at = row * p.k_token * ELEMENT, v_at = row * p.v_token * ELEMENT;
#endif
        u32 to = stage + chunk_at(row, chunk);
        bool real = has(wanted, token + row);
        kv::cp16(to, k + k_at + chunk * 16, real);
        if (KV_SIDES == 2) {
            kv::cp16(to + SIDE, v + v_at + chunk * 16, real);
        }
    }
}
