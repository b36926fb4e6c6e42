// The softmax of a warp's 16 or 32 query rows over a tile of 64 tokens, whose groups of 16 lie in the stages of
// four warps (ring.cuh). All warps of a block read the same tile.
#pragma once

#ifndef KV_WGMMA
#define KV_WGMMA 0
#endif
/// Rows of a warp: 32, where their outputs and scores fit into registers. With wgmma, four warps share 64 rows.
#define KV_ROW_TILES (KV_TY == KV_F32 || KV_D > 128 || KV_WGMMA ? 1 : 2)

#include "sight.cuh"

constexpr u32 M = KV_ROW_TILES;
/// Groups that are attended to at once: as many as registers have room for their scores.
constexpr u32 SPAN = KV_TY == KV_F32 ? 1 : M == 2 && KV_D > 80 ? 2 : WARPS;
constexpr u32 EVERY = (1 << SPAN) - 1;
constexpr u32 ALL_WARPS = KV_WGMMA ? 2 * WARPS : WARPS;
constexpr u32 WARP_ROWS = M * GROUP;
constexpr u32 KV_ROWS = ALL_WARPS * WARP_ROWS;
/// Warps that take the same tokens at a time: what one of them reads or leaves out, all do.
constexpr u32 TEAM = KV_WGMMA ? WARPS : 1;
/// Queries lie behind the rings.
constexpr u32 Q_AT = WARPS * RING;
constexpr u32 TALL_BYTES = Q_AT + (KV_WGMMA ? 2 : WARPS * M) * SIDE;

/// Where the warp's `m`-th 16 query rows lie.
KV_FN u32 queries_at(u32 m) {
    u32 warp = kv::warp();
    return Q_AT + (KV_WGMMA ? warp / WARPS * SIDE + warp % WARPS * GROUP * PITCH : (warp * M + m) * SIDE);
}

KV_FN Queries load_all_queries(const AttendParams& p, const Unit& unit, u32 first) {
    Queries q;
#pragma unroll 1
    for (u32 m = 0; m < M; m++) {
        load_queries(p, unit, first + m * GROUP, queries_at(m), q, [](f32x4 x) { return x; });
    }
    return q;
}

/// What the lane's two rows of 16 see: Row has `has(row, token)`.
template <class Row> struct Seen {
    Row rows[2];
};

/// Groups first..first + SPAN of a stage: where their tokens begin in the list, and which of them (a bit each)
/// every row of the warp sees, and none does.
struct Span {
    u32 stage, first, base[SPAN], full, none;
};

KV_FN bool is_in(u32 set, u32 g) { return set >> g & 1; }
KV_FN u32 keys_at(const Span& t, u32 g) { return stage_at(t.first + g, t.stage); }
KV_FN u32 values_at(const Span& t, u32 g) { return keys_at(t, g) + SIDE; }

#if KV_TY == KV_F32
/// Attends to a span. `view(m)` is what the lane's rows of 16 see.
template <class View>
KV_FN void attend_span(const AttendParams& p, const Queries& q, const Span& t, View view, State (&x)[M]) {
    Scores s[1] = {};
    dot(q, keys_at(t, 0), s[0]);
    auto seen = view(0);
    scale_and_mask(p, t.base[0], t.full, seen.rows, s[0]);
    weigh(s, x[0]);
    u32 values = values_at(t, 0);
    auto value = [&](u32 token, u32 c) { return value_pair(values, token, c); };
    add_values_seen(s[0], t.base[0], seen.rows, x[0], value);
}
#else
#if KV_WGMMA
KV_FN void settle_outputs(State& x) {
#pragma unroll
    for (u32 panel = 0; panel < KV_D / 64; panel++) {
        kv::settle(x.o[panel * 8]);
    }
}
/// s = q k for the 64 rows of four warps.
KV_FN void dot_span(const Queries& q, const Span& t, Scores (&s)[M][SPAN]) {
    kv::settle(&s[0][0][0][0]);
    kv::wgmma_begin();
#pragma unroll
    for (u32 step = 0; step < KV_D / 16; step++) {
        u32 at = keys_at(t, 0) + step / 4 * PANEL + step % 4 * 32;
        kv::wgmma<KV_TY == KV_BF16, false>(&s[0][0][0][0], q.kept[step], at);
    }
    KV_GUARD(5, kv::wgmma_wait());
    kv::settle(&s[0][0][0][0]);
}
/// o += p v for them. No branch may part one wgmma from the next, or the compiler waits for each by itself.
KV_FN void add_span(const u32 (&a)[SPAN][M][4], const Span& t, State (&x)[M]) {
    settle_outputs(x[0]);
    kv::wgmma_begin();
#pragma unroll
    for (u32 i = 0; i < SPAN * KV_D / 64; i++) {
        u32 g = i / (KV_D / 64), panel = i % (KV_D / 64);
        kv::wgmma<KV_TY == KV_BF16, true>(x[0].o[panel * 8], a[g][0], values_at(t, g) + panel * PANEL);
    }
    KV_GUARD(6, kv::wgmma_wait());
    settle_outputs(x[0]);
}
#else
/// s = q k on the tensor cores for all rows and groups: 16 dimensions a step.
KV_FN void dot_span(const Queries&, const Span& t, Scores (&s)[M][SPAN]) {
    u32 queries = kv::opaque(queries_at(0) + matrix_rows_first(0)), keys = keys_at(t, 0) + matrix_chunks_first(0);
#pragma unroll
    for (u32 step = 0; step < KV_D / 16; step++) {
        u32 a[M][4];
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            kv::ldm4(onwards(queries + m * SIDE, 2 * step), a[m]);
        }
#pragma unroll
        for (u32 g = 0; g < SPAN; g++) {
            u32 b[4];
            kv::ldm4(onwards(keys + g * RING, 2 * step), b);
#pragma unroll
            for (u32 m = 0; m < M; m++) {
                mma(s[m][g][0], a[m], b[0], b[1]);
                mma(s[m][g][1], a[m], b[2], b[3]);
            }
        }
    }
}

/// o += p v on the tensor cores, leaving out groups that nobody sees.
KV_FN void add_span(const u32 (&a)[SPAN][M][4], const Span& t, State (&x)[M]) {
#pragma unroll
    for (u32 g = 0; g < SPAN; g++) {
        if (!is_in(t.none, g)) {
            add_values(a[g], values_at(t, g), x);
        }
    }
}
#endif

/// Whether the values of a group have a NaN or an infinity.
KV_FN bool has_special(u32 side) {
    constexpr u32 exponent = KV_TY == KV_BF16 ? 0x7f80 : 0x7c00, high = exponent << 16;
    bool found = false;
    for (u32 i = kv::lane(); i < GROUP * CHUNKS; i += 32) {
        u32x4 c = kv::lds<u32x4>(side + chunk_at(i / CHUNKS, i % CHUNKS));
        u32 words[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
        for (u32 w = 0; w < 4; w++) {
            found = found || (words[w] & exponent) == exponent || (words[w] & high) == high;
        }
    }
    return kv::any(found);
}

/// Whether weights of 0 may not be multiplied: some row of the warp does not see a token that another sees,
/// and its value is a NaN or infinite. Tokens that nobody sees were zeroed, or their group is left out if it can be.
KV_FN bool is_delicate(const Span& t) {
    bool found = false;
#pragma unroll 1
    for (u32 g = 0; g < SPAN; g++) {
        if (!is_in(KV_WGMMA ? t.full : t.full | t.none, g)) {
            found = found || has_special(values_at(t, g));
        }
    }
    return found;
}

/// Attends to a span. `view(m)` is what the lane's rows of 16 see; it is asked for only where they differ,
/// because registers are short.
template <class View>
KV_FN void attend_span(const AttendParams& p, const Queries& q, const Span& t, View view, State (&x)[M]) {
    Scores s[M][SPAN] = {};
    dot_span(q, t, s);
#pragma unroll
    for (u32 m = 0; m < M; m++) {
#pragma unroll
        for (u32 g = 0; g < SPAN; g++) {
            scale(p, s[m][g]);
        }
        if (t.full != EVERY) {
            auto seen = view(m);
#pragma unroll
            for (u32 g = 0; g < SPAN; g++) {
                hide(t.base[g], seen.rows, s[m][g]);
            }
        }
        weigh(s[m], x[m]);
    }
    u32 a[SPAN][M][4];
#pragma unroll
    for (u32 i = 0; i < SPAN * M; i++) {
        pack_weights(s[i % M][i / M], a[i / M][i % M]);
    }
    if (!is_delicate(t)) {
        return add_span(a, t, x);
    }
#pragma unroll
    for (u32 g = 0; g < SPAN; g++) {
        if (!is_in(t.none, g)) {
            u32 values = values_at(t, g);
            auto value = [&](u32 token, u32 c) { return value_pair(values, token, c); };
#pragma unroll
            for (u32 m = 0; m < M; m++) {
                auto seen = view(m);
                add_values_seen(a[g][m], t.base[g], seen.rows, x[m], value);
            }
        }
    }
}
#endif

/// Ends the warp's rows, from `first` on, and writes them: as partial result `partial`, or to the output (-1).
/// Lanes beside each other swap pairs of columns, so that each has four of one row: even ones of the first 8 rows,
/// odd ones of the last.
KV_FN void write_rows(const AttendParams& p, const Unit& unit, u32 first, i32 partial, State (&x)[M]) {
    u32 half = quad() % 2;
#pragma unroll
    for (u32 m = 0; m < M; m++) {
        float sum[2];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            sum[i] = x[m].l[i] + kv::shfl_xor(x[m].l[i], 1);
            sum[i] += kv::shfl_xor(sum[i], 2);
        }
        float l = half ? sum[1] : sum[0], highest = half ? x[m].m[1] : x[m].m[0];
        float lse = l == 0.0f ? KV_NEG_INF : highest + kv::log2(l), factor = l == 0.0f ? 0.0f : 1.0f / l;
        u32 row = first + m * GROUP + row_of(half), packed = unit.packed + row;
        u32 token = unit.first_row + packed / p.group, head = unit.head * p.group + packed % p.group;
        bool real = row < unit.rows, whole = partial < 0;
        i64 part = static_cast<i64>(partial) * KV_ROWS + row;
        if (whole && p.sinks && real) {
            factor *= join_sink(lse, load<float>(p.sinks, head));
        }
        if (real && quad() / 2 == 0 && (!whole || p.lse2)) {
            i64 at = whole ? static_cast<i64>(token) * p.q_heads + head : part;
            kv::stg(reinterpret_cast<float*>(whole ? p.lse2 : p.part_lse2) + at, lse);
        }
        u64 to = whole ? p.o : p.part_o;
        i64 at = (whole ? token * p.o_row + head * p.o_head : part * KV_D) + quad() / 2 * 4;
        u32 type = whole ? p.types >> 8 : KV_F32;
#pragma unroll
        for (u32 n = 0; n < KV_D / 8; n++) {
            const float* o = x[m].o[n];
            float a = kv::shfl_xor(half ? o[0] : o[2], 1), b = kv::shfl_xor(half ? o[1] : o[3], 1);
            f32x4 y = half ? f32x4{a, b, o[2], o[3]} : f32x4{o[0], o[1], a, b};
            if (real) {
                store4(to, at + n * 8, type, times(y, factor));
            }
        }
    }
}
