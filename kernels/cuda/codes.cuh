// Attention over K and V in eight bits: codes and scales on their way to a warp, and the arithmetic with them.
//
// A stage of the ring holds codes as they lie in memory, and the scales of its tokens. Before it is used,
// the warp widens its codes to 16 bits in a tile of its own, exactly: whole numbers up to 127. Scales never
// meet codes. Those of K multiply the partial products of their group of dimensions, those of V the weights.
// K is widened to KV_TY, V to bf16: a small weight times a small scale is below what f16 can tell apart.
#pragma once

#include "params_codec.cuh"
#include "state.cuh"

static_assert(KV_BITS == 8 && KV_TY != KV_F32 && KV_D <= 128 && !KV_SLOTS, "macros");

/// A side's codes, and its scales behind both sides.
constexpr u32 CODES = GROUP * KV_D, SCALES = GROUP * KV_D / 8;
static_assert(STAGE == 2 * (CODES + SCALES), "ring.cuh");

/// log2 of a group, and the groups of a row.
KV_FN u32 shift_of(const AttendCodesParams& p) { return kv::popc(p.group - 1); }
KV_FN u32 groups_of(const AttendCodesParams& p) { return (KV_D + p.group - 1) >> shift_of(p); }
KV_FN u32 scales_at(u32 stage, u32 side) { return stage + 2 * CODES + side * SCALES; }

/// Starts the copies of tokens token..token + 16 into a stage; codes not wanted become zeros.
KV_FN void fetch_codes(const AttendCodesParams& p, const List& list, const Range& wanted, u32 token, u32 item,
                       u32 stage) {
    u32 offset = token % p.a.page_tokens, groups = groups_of(p);
    const u8* k = reinterpret_cast<const u8*>(p.a.k) + list.head * p.a.k_head;
    const u8* v = reinterpret_cast<const u8*>(p.a.v) + list.head * p.a.v_head;
    k += item * p.a.k_frame + offset * p.a.k_token;
    v += item * p.a.v_frame + offset * p.a.v_token;
    for (u32 at = kv::lane(); at < CODES / 16; at += 32) {
        u32 row = at / (KV_D / 16), chunk = at % (KV_D / 16);
        bool real = has(wanted, token + row);
        kv::cp16(stage + at * 16, k + row * p.a.k_token + chunk * 16, real);
        kv::cp16(stage + CODES + at * 16, v + row * p.a.v_token + chunk * 16, real);
    }
    // Eight scales to 16 bytes; half of the warp for each side.
    u32 side = kv::lane() / 16, chunk = kv::lane() % 16;
    if (chunk < 2 * groups) {
        i64 frame = side ? p.v_scale_frame : p.k_scale_frame, head = side ? p.v_scale_head : p.k_scale_head;
        const u16* from = reinterpret_cast<const u16*>(side ? p.v_scales : p.k_scales);
        from += item * frame + list.head * head + offset * groups + chunk * 8;
        bool real = token + chunk * 8 / groups < wanted.hi && token + (chunk * 8 + 7) / groups >= wanted.lo;
        kv::cp16(scales_at(stage, side) + chunk * 16, from, real);
    }
}

/// Four codes as numbers: the low bits of 2^23 + (code + 128), which takes no conversion.
KV_FN u32x2 widen4(u32 type, u32 codes) {
    float x[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        x[i] = kv::float_of(0x4b000000u | ((codes >> i * 8 & 255) ^ 128)) - 8388736.0f;
    }
    return u32x2{pack(type, x[0], x[1]), pack(type, x[2], x[3])};
}

/// Widens a stage's codes to a tile: a K side, then a V side.
KV_FN void widen_codes(u32 stage, u32 tile) {
    for (u32 at = kv::lane(); at < 2 * CODES / 16; at += 32) {
        u32 side = at / KV_D, row = at % KV_D / (KV_D / 16), chunk = at % (KV_D / 16);
        u32 type = side ? KV_BF16 : KV_TY;
        u32x4 x = kv::lds<u32x4>(stage + at * 16);
        u32x2 a = widen4(type, x.x), b = widen4(type, x.y), c = widen4(type, x.z), d = widen4(type, x.w);
        kv::sts(tile + side * SIDE + chunk_at(row, 2 * chunk), u32x4{a.x, a.y, b.x, b.y});
        kv::sts(tile + side * SIDE + chunk_at(row, 2 * chunk + 1), u32x4{c.x, c.y, d.x, d.y});
    }
}

/// The tokens of a stage that are wanted, and where their scales are.
struct Scaled {
    u32 stage, groups, shift;
    u32 base;
    Range wanted;
};

/// Scale of a token and dimension; 0 if the token is not wanted (its memory may hold anything).
KV_FN float scale_of(const Scaled& x, u32 side, u32 token, u32 dimension) {
    u16 scale = kv::lds<u16>(scales_at(x.stage, side) + (token * x.groups + (dimension >> x.shift)) * 2);
    return has(x.wanted, x.base + token) ? kv::wide_f16(scale) : 0.0f;
}
/// The scales of the lane's four tokens.
KV_FN void lane_scales(const Scaled& x, u32 side, u32 dimension, float (&scales)[4]) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        scales[i] = scale_of(x, side, token_of(i / 2, i % 2), dimension);
    }
}

/// s = q k.
KV_FN void dot_codes(const Queries& q, u32 k, const Scaled& x, Scores& s) {
    Scores part = {};
#pragma unroll
    for (u32 step = 0; step < KV_D / 16; step++) {
        u32 b[4], behind = step * 16 + 16;
        kv::ldm4(k + matrix_chunks_first(2 * step), b);
        mma(part[0], q.kept[step % Q_STEPS], b[0], b[1]);
        mma(part[1], q.kept[step % Q_STEPS], b[2], b[3]);
        if (behind == KV_D || behind >> x.shift << x.shift == behind) {
            float scales[4];
            lane_scales(x, 0, step * 16, scales);
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                s[i / 4][i % 4] += part[i / 4][i % 4] * scales[i / 4 * 2 + i % 2];
                part[i / 4][i % 4] = 0.0f;
            }
        }
    }
}

/// o += p v.
KV_FN void add_codes(const Scores& p, u32 v, const Scaled& x, State& state) {
    u32 a[4] = {0, 0, 0, 0};
#pragma unroll
    for (u32 n = 0; n < KV_D / 8; n += 2) {
        if (n * 8 >> x.shift << x.shift == n * 8) {
            float s[4];
            lane_scales(x, 1, n * 8, s);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const float(&row)[4] = p[i / 2];
                u32 half = i % 2 * 2;
                a[i] = kv::pack_bf16(row[half] * s[i / 2 * 2], row[half + 1] * s[i / 2 * 2 + 1]);
            }
        }
        u32 b[4];
        kv::ldm4t(v + matrix_rows_first(n), b);
        kv::mma_bf16(state.o[n], a, b[0], b[1]);
        kv::mma_bf16(state.o[n + 1], a, b[2], b[3]);
    }
}

/// `attend_group` of state.cuh for a tile of widened codes.
KV_FN void attend_codes(const AttendParams& p, const Queries& q, u32 tile, const Scaled& x, const Range& alike,
                        const Range (&rows)[2], State& state) {
    Scores s[1] = {};
    dot_codes(q, tile, x, s[0]);
    bool all = x.base >= alike.lo && x.base + GROUP <= alike.hi;
    scale_and_mask(p, x.base, all, rows, s[0]);
    weigh(s, state);
    if (!all && (p.causal || p.window)) {
        u32 a[4];
        pack_weights(s[0], a);
        add_values_seen(a, x.base, rows, state, [&](u32 token, u32 c) {
            f32x2 y = wide2(KV_BF16, kv::lds<u32>(tile + SIDE + chunk_at(token, c) + quad() * 4));
            float scale = scale_of(x, 1, token, c * 8);
            return f32x2{y.x * scale, y.y * scale};
        });
    } else {
        add_codes(s[0], tile + SIDE, x, state);
    }
}
