// The softmax of 16 query rows over 16 tokens or several times as many, in the registers of a warp.
//
// Everything is laid out as the tensor core's accumulators are: lane l holds rows l/4 and l/4 + 8, and of
// each 8 columns the two at 2 (l%4). Columns are tokens in scores, and dimensions in outputs.
#pragma once

#include "ring.cuh"

/// Queries stay in registers where outputs leave room for them.
constexpr bool Q_KEPT = KV_TY != KV_F32 && KV_D <= 128 && KV_ROW_TILES == 1;
constexpr u32 Q_STEPS = Q_KEPT ? KV_D / 16 : 1;
/// Queries in shared memory otherwise: 16 rows a warp, behind the rings.
constexpr u32 Q_BYTES = Q_KEPT ? 0 : SIDE;

struct Queries {
    u32 kept[Q_STEPS][4];
    u32 at; // in shared memory
};

struct State {
    float o[KV_D / 8][4];
    float m[2]; // highest score of both rows, in units of log2
    float l[2]; // this lane's share of the sum of weights
};

/// Scores, then weights: [tokens 0..8 | 8..16][row l/4: 2, row l/4 + 8: 2].
typedef float Scores[2][4];

KV_FN u32 quad() { return kv::lane() % 4; }
KV_FN u32 row_of(u32 half) { return kv::lane() / 4 + half * 8; }
/// The token of the lane's column `j` of 8-token half `n`.
KV_FN u32 token_of(u32 n, u32 j) { return n * 8 + quad() * 2 + j; }
/// Where a lane points for ldm4 so that matrices 0..3 are (rows 0-7, 8-15) x (chunk, chunk + 1), rows first.
KV_FN u32 matrix_rows_first(u32 chunk) { return chunk_at(kv::lane() % 16, chunk + kv::lane() / 16); }
/// The same with chunks first.
KV_FN u32 matrix_chunks_first(u32 chunk) {
    return chunk_at(kv::lane() % 8 + kv::lane() / 16 * 8, chunk + kv::lane() / 8 % 2);
}

KV_FN void clear(State& x) {
    for (u32 i = 0; i < 2; i++) {
        x.m[i] = KV_NEG_INF;
        x.l[i] = 0.0f;
    }
#pragma unroll
    for (u32 n = 0; n < KV_D / 8; n++) {
        x.o[n][0] = x.o[n][1] = x.o[n][2] = x.o[n][3] = 0.0f;
    }
}

/// Eight (16 bits) or four (f32) query elements as a chunk of the type of K; zeros for rows there are not.
template <class P, class Part> KV_FN u32x4 query_chunk(const P& p, i64 at, bool real, Part part) {
    if (!real) {
        return u32x4{0, 0, 0, 0};
    }
    f32x4 a = part(load4(p.q, at, p.types & 255));
    if (KV_TY == KV_F32) {
        return u32x4{kv::bits(a.x), kv::bits(a.y), kv::bits(a.z), kv::bits(a.w)};
    }
    f32x4 b = part(load4(p.q, at + 4, p.types & 255));
    return u32x4{pack(KV_TY, a.x, a.y), pack(KV_TY, a.z, a.w), pack(KV_TY, b.x, b.y), pack(KV_TY, b.z, b.w)};
}

/// Takes the warp's 16 rows, which lie at `at` in shared memory.
KV_FN void keep(u32 at, Queries& q) {
    q.at = at;
#pragma unroll
    for (u32 k = 0; k < Q_STEPS; k++) {
        if (Q_KEPT) {
            kv::ldm4(at + matrix_rows_first(2 * k), q.kept[k]);
        }
    }
}

/// Brings the warp's 16 query rows, first..first + 16 of the unit, through shared memory at `at`; `part` is
/// what of them is wanted.
template <class P, class Part>
KV_FN void load_queries(const P& p, const Unit& unit, u32 first, u32 at, Queries& q, Part part) {
    for (u32 i = kv::lane(); i < GROUP * CHUNKS; i += 32) {
        u32 row = i / CHUNKS, chunk = i % CHUNKS, packed = unit.packed + first + row;
        u32 token = unit.first_row + packed / p.group, head = unit.head * p.group + packed % p.group;
        i64 from = token * p.q_row + head * p.q_head + chunk * (16 / ELEMENT);
        kv::sts(at + chunk_at(row, chunk), query_chunk(p, from, first + row < unit.rows, part));
    }
    // Who leaves them in shared memory comes to a barrier before a first tile.
    if (Q_KEPT) {
        KV_GUARD(1, kv::syncwarp());
    }
    keep(at, q);
}

#if KV_TY == KV_F32
/// s = q k, in f32.
KV_FN void dot(const Queries& q, u32 k, Scores& s) {
    for (u32 c = 0; c < CHUNKS; c++) {
        f32x4 a[2];
        for (u32 half = 0; half < 2; half++) {
            a[half] = kv::lds<f32x4>(q.at + chunk_at(row_of(half), c));
        }
#pragma unroll
        for (u32 n = 0; n < 2; n++) {
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                f32x4 b = kv::lds<f32x4>(k + chunk_at(token_of(n, j), c));
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    float& x = s[n][half * 2 + j];
                    x += a[half].x * b.x;
                    x += a[half].y * b.y;
                    x += a[half].z * b.z;
                    x += a[half].w * b.w;
                }
            }
        }
    }
}
KV_FN f32x2 value_pair(u32 v, u32 token, u32 n) {
    return kv::lds<f32x2>(v + chunk_at(token, 2 * n + quad() / 2) + quad() % 2 * 8);
}
/// Of the row of lane `from`, weights of tokens 2 (from%4) and the next of half `n`.
KV_FN f32x2 weights_of(const Scores& p, u32 n, u32 half, u32 from) {
    // Registers have no addresses: n may be unknown to the compiler.
    float a = n ? p[1][half * 2] : p[0][half * 2], b = n ? p[1][half * 2 + 1] : p[0][half * 2 + 1];
    return f32x2{kv::shfl(a, from), kv::shfl(b, from)};
}
#else
KV_FN void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    KV_TY == KV_BF16 ? kv::mma_bf16(c, a, b0, b1) : kv::mma_f16(c, a, b0, b1);
}
/// s = q k on the tensor cores: 16 dimensions a step, both halves of the tokens.
KV_FN void dot(const Queries& q, u32 k, Scores& s) {
#pragma unroll
    for (u32 step = 0; step < KV_D / 16; step++) {
        u32 b[4];
        kv::ldm4(k + matrix_chunks_first(2 * step), b);
        if (Q_KEPT) {
            mma(s[0], q.kept[step % Q_STEPS], b[0], b[1]);
            mma(s[1], q.kept[step % Q_STEPS], b[2], b[3]);
        } else {
            u32 a[4];
            kv::ldm4(q.at + matrix_rows_first(2 * step), a);
            mma(s[0], a, b[0], b[1]);
            mma(s[1], a, b[2], b[3]);
        }
    }
}
/// From chunk 0 of a row to an even chunk. Swapped chunks differ in bits that the row's begin has not.
KV_FN u32 onwards(u32 at, u32 chunk) { return SWAPPED ? at ^ chunk * 16 : at + chunk * 16; }
static_assert(!SWAPPED || (PITCH & (PITCH - 1)) == 0, "swapped rows are powers of two");

/// Weights as the tensor core's operand: the accumulator's layout is that of the operand.
KV_FN void pack_weights(const Scores& p, u32 (&a)[4]) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        a[i] = pack(KV_TY, p[i / 2][i % 2 * 2], p[i / 2][i % 2 * 2 + 1]);
    }
}
/// o += p v on the tensor cores, for M times 16 rows.
template <u32 M> KV_FN void add_values(const u32 (&p)[M][4], u32 v, State* x) {
    u32 first = v + matrix_rows_first(0);
#pragma unroll
    for (u32 n = 0; n < KV_D / 8; n += 2) {
        u32 b[4];
        kv::ldm4t(onwards(first, n), b);
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            mma(x[m].o[n], p[m], b[0], b[1]);
            mma(x[m].o[n + 1], p[m], b[2], b[3]);
        }
    }
}
KV_FN f32x2 value_pair(u32 v, u32 token, u32 n) {
    return wide2(KV_TY, kv::lds<u32>(v + chunk_at(token, n) + quad() * 4));
}
/// Of the row of lane `from`, weights of tokens 2 (from%4) and the next of half `n`.
KV_FN f32x2 weights_of(const u32 (&p)[4], u32 n, u32 half, u32 from) {
    // Registers have no addresses: n may be unknown to the compiler.
    return wide2(KV_TY, kv::shfl(n ? p[2 + half] : p[half], from));
}
#endif

/// How many of the tokens below are written out: code for many rows is long.
constexpr u32 WRITTEN_OUT = KV_ROW_TILES == 1 ? 4 : 1;

/// o += p v by ordinary arithmetic, row by row only what the row sees: with f32, and where rows of the tile
/// see different tokens (0 times a NaN that another row sees would be NaN). Tokens are numbered from `base`;
/// `value` gives the lane's two elements of a token and chunk of eight.
template <class Weights, class Row, class Value>
KV_FN void add_values_seen(const Weights& p, u32 base, const Row (&rows)[2], State& x, Value value) {
#pragma unroll 1
    for (u32 pair = 0; pair < 4; pair++) {
#pragma unroll WRITTEN_OUT
        for (u32 i = 0; i < 4; i++) {
            u32 token = i / 2 * 8 + pair * 2 + i % 2, from = kv::lane() / 4 * 4 + pair;
            float weight[2];
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                f32x2 w = weights_of(p, i / 2, half, from);
                weight[half] = i % 2 ? w.y : w.x;
            }
            bool sees[2] = {has(rows[0], base + token), has(rows[1], base + token)};
#pragma unroll
            for (u32 c = 0; c < KV_D / 8; c++) {
                f32x2 y = value(token, c);
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    if (sees[half]) {
                        x.o[c][half * 2] += weight[half] * y.x;
                        x.o[c][half * 2 + 1] += weight[half] * y.y;
                    }
                }
            }
        }
    }
}

/// Turns q k into scores in units of log2.
KV_FN void scale(const AttendParams& p, Scores& s) {
    float factor = p.soft_cap > 0.0f ? 2.0f * KV_LOG2_E * p.scale / p.soft_cap : p.scale * KV_LOG2_E;
#pragma unroll
    for (u32 n = 0; n < 2; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            float x = s[n][i] * factor;
            if (p.soft_cap > 0.0f) {
                // tanh(y) = 1 - 2 / (e^2y + 1), right at both ends.
                x = p.soft_cap * KV_LOG2_E * (1.0f - 2.0f / (kv::exp2(x) + 1.0f));
            }
            s[n][i] = x;
        }
    }
}

/// Scores become -inf where a row does not see a token.
template <class Row> KV_FN void hide(u32 base, const Row (&rows)[2], Scores& s) {
#pragma unroll
    for (u32 n = 0; n < 2; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            s[n][i] = has(rows[i / 2], base + token_of(n, i % 2)) ? s[n][i] : KV_NEG_INF;
        }
    }
}

/// Both of them, one if `all` tokens are seen.
template <class Row>
KV_FN void scale_and_mask(const AttendParams& p, u32 base, bool all, const Row (&rows)[2], Scores& s) {
    scale(p, s);
    if (!all) {
        hide(base, rows, s);
    }
}

/// Takes scores of G times 16 tokens into the running maximum and sum; they become weights against the new
/// maximum.
template <u32 G> KV_FN void weigh(Scores (&s)[G], State& x) {
    float alpha[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float highest = KV_NEG_INF;
#pragma unroll
        for (u32 i = 0; i < G * 4; i++) {
            highest = kv::max(highest, s[i / 4][i / 2 % 2][half * 2 + i % 2]);
        }
        highest = kv::max(highest, kv::shfl_xor(highest, 1));
        highest = kv::max(x.m[half], kv::max(highest, kv::shfl_xor(highest, 2)));
        float ref = reference(highest);
        alpha[half] = kv::exp2(x.m[half] - ref);
        x.m[half] = highest;
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < G * 4; i++) {
            float& w = s[i / 4][i / 2 % 2][half * 2 + i % 2];
            w = kv::exp2(w - ref);
            sum += w;
        }
        x.l[half] = x.l[half] * alpha[half] + sum;
    }
    // The maximum of a long list soon stays what it is.
    if (kv::any(alpha[0] != 1.0f || alpha[1] != 1.0f)) {
#pragma unroll
        for (u32 n = 0; n < KV_D / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                x.o[n][i] *= alpha[i / 2];
            }
        }
    }
}

/// Attends to the 16 tokens of a stage. `alike`: tokens that every row of the warp sees.
KV_FN void attend_group(const AttendParams& p, const Queries& q, u32 stage, u32 base, const Range& alike,
                        const Range (&rows)[2], State& x) {
    auto value = [&](u32 token, u32 c) { return value_pair(stage + SIDE, token, c); };
    Scores s[1] = {};
    dot(q, stage, s[0]);
    bool all = base >= alike.lo && base + GROUP <= alike.hi;
    scale_and_mask(p, base, all, rows, s[0]);
    weigh(s, x);
#if KV_TY == KV_F32
    add_values_seen(s[0], base, rows, x, value);
#else
    u32 a[1][4];
    pack_weights(s[0], a[0]);
    // Zeroed tokens may be multiplied: only those that some row sees, and another does not, may not.
    bool mixed = !all && (p.causal || p.window);
    if (mixed) {
        add_values_seen(a[0], base, rows, x, value);
    } else {
        add_values(a, stage + SIDE, &x);
    }
#endif
}
