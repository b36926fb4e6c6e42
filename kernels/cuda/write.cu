// K12: new rows of K and V, [token][head][dim], into the slots of pages, and into the boxes of their units
// (largest and smallest key of each channel) at the same time, so that keys are read once.
//
//   entry     parameters     blocks                      threads   shared memory
//   append    AppendParams   ceil(tokens * heads / 4)    128       0
//
// No macros. A warp does a token of a head, 16 bytes a lane and step. Tokens of one unit are neighbours in
// the call, in ascending slots; the warp of the first of them does the unit's box, so nothing is written
// twice. A unit whose first slot is written starts its box anew; others extend it. A NaN stays.
#include "numbers.cuh"

/// Sixteen bytes of numbers, widened.
struct Chunk {
    float x[8];
    u32 n; // 4 or 8
};

KV_FN Chunk widen(u32 type, u32x4 raw) {
    if (type == KV_F32) {
        return Chunk{{kv::float_of(raw.x), kv::float_of(raw.y), kv::float_of(raw.z), kv::float_of(raw.w)}, 4};
    }
    f32x2 a = wide2(type, raw.x), b = wide2(type, raw.y), c = wide2(type, raw.z), d = wide2(type, raw.w);
    return Chunk{{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}, 8};
}

KV_FN u32x4 narrow(u32 type, const Chunk& c) {
    if (type == KV_F32) {
        return u32x4{kv::bits(c.x[0]), kv::bits(c.x[1]), kv::bits(c.x[2]), kv::bits(c.x[3])};
    }
    return u32x4{pack(type, c.x[0], c.x[1]), pack(type, c.x[2], c.x[3]), pack(type, c.x[4], c.x[5]),
                 pack(type, c.x[6], c.x[7])};
}

KV_FN const u32x4* chunk_of(u64 base, i64 row, u32 size, u32 chunk) {
    return reinterpret_cast<const u32x4*>(reinterpret_cast<const u8*>(base) + row * size) + chunk;
}
KV_FN u32x4* chunk_in(u64 base, i64 row, u32 size, u32 chunk) {
    return const_cast<u32x4*>(chunk_of(base, row, size, chunk));
}

/// Does a chunk of the box of the unit that begins, in this call, with `token` in `slot`.
KV_FN void extend_box(const AppendParams& p, u32 token, u32 head, u32 slot, u32 size, u32 chunk) {
    u32 frame = slot / p.page_tokens, unit = slot % p.page_tokens / p.unit_tokens;
    i64 row = frame * p.box_frame + head * p.box_head + unit * p.box_unit;
    Chunk most, least;
    bool fresh = slot % p.unit_tokens == 0;
    if (!fresh) {
        most = widen(p.type, kv::ldg(chunk_of(p.boxes, row, size, chunk)));
        least = widen(p.type, kv::ldg(chunk_of(p.boxes, row + p.dim_k, size, chunk)));
    }
    for (u32 i = 0; token + i < p.tokens; i++) {
        if (i > 0 && ((slot + i) % p.unit_tokens == 0 || load<u32>(p.slots, token + i) != slot + i)) {
            break;
        }
        Chunk key = widen(p.type, kv::ldg(chunk_of(p.k, (token + i) * p.k_row + head * p.k_head, size, chunk)));
        if (fresh && i == 0) {
            most = least = key;
        }
#pragma unroll
        for (u32 e = 0; e < 8; e++) {
            float x = key.x[e];
            if (e < key.n) {
                most.x[e] = x > most.x[e] || x != x ? x : most.x[e];
                least.x[e] = x < least.x[e] || x != x ? x : least.x[e];
            }
        }
    }
    kv::stg(chunk_in(p.boxes, row, size, chunk), narrow(p.type, most));
    kv::stg(chunk_in(p.boxes, row + p.dim_k, size, chunk), narrow(p.type, least));
}

KV_KERNEL(append, AppendParams, 128, 8) {
    u32 task = kv::block() * 4 + kv::warp(), token = task / p.heads, head = task % p.heads;
    if (token >= p.tokens) {
        return;
    }
    u32 slot = load<u32>(p.slots, token), size = p.type == KV_F32 ? 4 : 2;
    if (slot == KV_SKIP) {
        return;
    }
    u32 before = token ? load<u32>(p.slots, token - 1) : KV_SKIP;
    bool first = before == KV_SKIP || before + 1 != slot || slot % p.unit_tokens == 0;
    u32 frame = slot / p.page_tokens, offset = slot % p.page_tokens;
    i64 k_to = frame * p.k_frame + head * p.k_pool_head + offset * p.k_token;
    i64 v_to = frame * p.v_frame + head * p.v_pool_head + offset * p.v_token;
    i64 k_from = token * p.k_row + head * p.k_head, v_from = token * p.v_row + head * p.v_head;
    for (u32 chunk = kv::lane(); chunk < p.dim_k * size / 16; chunk += 32) {
        kv::stg(chunk_in(p.k_pool, k_to, size, chunk), kv::ldg(chunk_of(p.k, k_from, size, chunk)));
        if (p.boxes && first) {
            extend_box(p, token, head, slot, size, chunk);
        }
    }
    for (u32 chunk = kv::lane(); chunk < p.dim_v * size / 16; chunk += 32) {
        kv::stg(chunk_in(p.v_pool, v_to, size, chunk), kv::ldg_once(chunk_of(p.v, v_from, size, chunk)));
    }
}
