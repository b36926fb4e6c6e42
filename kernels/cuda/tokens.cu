// K9: how much of the softmax of a KV head's query heads each listed token has (TokenSelect, arXiv 2411.02886):
// a token's logits with every query row of a unit at one read of its key, then per row the softmax over all
// listed tokens, and the sum of a token's weights over the heads of the KV head.
//
//   macro       values
//   KV_D        64, 80, 96, 128, 256: dimensions of K
//   KV_TY       0 f32 (KV_D <= 128), 1 f16, 2 bf16: type of K
//   KV_SLOTS    0 pages, 1 slots
//   KV_WIDE     0
//   KV_STAGES   4 up to 256 bytes a row, 3 above
//
//   entry          parameters      blocks                  threads   shared memory
//   score_tokens   TokensParams    workers of the plan     128       TokensSpec::shared_bytes
//   vote_tokens    TokensParams    workers of the plan     128       64
//
// More than 48 KiB of shared memory has to be asked for before the launch.
//
// The plan is that of attend_pages.cu without masks; its units hold whole groups, up to 16 rows. The first
// kernel keeps logits in units of log2, and the highest and the sum of weights of each segment; the second joins
// those of a unit's segments, in order. A NaN logit counts for nothing in the softmax of its row, and its token
// has the vote NaN; so has the token of an infinite logit, and what else the row sees has 0 (as select::lse2 and
// select::fold_mass on the CPU).
#define KV_SIDES 1
#include "params_select.cuh"
#include "state.cuh"

static_assert(KV_D % 16 == 0 && KV_D >= 64 && KV_D <= (KV_TY == KV_F32 ? 128 : 256), "KV_D");
static_assert(!KV_WIDE, "KV_WIDE");

constexpr u32 Q_AT = WARPS * RING;
constexpr u32 SUMS_AT = Q_AT + WARPS * Q_BYTES;
constexpr u32 SUMS_BYTES = WARPS * GROUP * 8;

#ifdef KV_EMU
extern "C" u32 kv_shared_bytes() { return SUMS_AT + SUMS_BYTES; }
#endif

/// Highest score and sum of weights against it, of some tokens.
struct Sum {
    float highest, weights;
};

/// The sum with the reference moved up to `highest`.
KV_FN float moved(const Sum& s, float highest) {
    return s.highest == highest ? s.weights : s.weights * kv::exp2(s.highest - highest);
}

KV_FN float weight(float score, float highest) {
    float w = kv::exp2(score - reference(highest));
    return w == w ? w : 0.0f;
}

KV_FN void take(const Scores& s, Sum (&sums)[2]) {
    for (u32 half = 0; half < 2; half++) {
        u32 i = half * 2;
        Sum& sum = sums[half];
        float highest = kv::max(kv::max(s[0][i], s[0][i + 1]), kv::max(s[1][i], s[1][i + 1]));
        highest = kv::max(highest, kv::shfl_xor(highest, 1));
        highest = kv::max(sum.highest, kv::max(highest, kv::shfl_xor(highest, 2)));
        float low = weight(s[0][i], highest) + weight(s[0][i + 1], highest);
        float high = weight(s[1][i], highest) + weight(s[1][i + 1], highest);
        sum = Sum{highest, moved(sum, highest) + (low + high)};
    }
}

/// Where a query row's logits or a KV head's votes begin.
KV_FN float* logits_of(const TokensParams& p, const Unit& unit, u32 row) {
    u32 packed = unit.packed + row, token = unit.first_row + packed / p.of.group;
    u32 head = unit.head * p.of.group + packed % p.of.group;
    return reinterpret_cast<float*>(p.logits) + (static_cast<i64>(token) * p.of.q_heads + head) * p.logits_row;
}

/// Pairs of tokens; the last one may have a neighbour behind the list's end, which is -inf.
KV_FN void keep(const TokensParams& p, const Unit& unit, const Scores& s, u32 base, u32 len) {
    for (u32 half = 0; half < 2; half++) {
        float* to = logits_of(p, unit, row_of(half));
        for (u32 n = 0; n < 2; n++) {
            u32 token = base + token_of(n, 0);
            if (row_of(half) < unit.rows && token < len) {
                kv::stg(reinterpret_cast<f32x2*>(to + token), f32x2{s[n][half * 2], s[n][half * 2 + 1]});
            }
        }
    }
}

KV_FN void walk(const TokensParams& p, const Unit& unit, const Segment& segment, Sum (&sums)[2]) {
    u32 warp = kv::warp();
    List list = open_list(p.of, unit.list, unit.head);
    Range all{0, list.len}, rows[2] = {all, all};
    auto mine = [&](u32 tile) { return tile * TILE + warp * GROUP; };
    auto next_item = [&](u32 tile) { return item(p.of, list, all, mine(tile)); };
    for (u32 i = 0; i < KV_STAGES - 1; i++) {
        u32 tile = segment.begin + i;
        if (tile < segment.end) {
            fetch(p.of, list, all, mine(tile), next_item(tile), stage_at(warp, i));
        }
        kv::cp_commit();
    }
    Queries q;
    u32 q_at = Q_KEPT ? stage_at(warp, KV_STAGES - 1) : Q_AT + warp * Q_BYTES;
    load_queries(p.of, unit, 0, q_at, q, [](f32x4 x) { return x; });
    u32 stage = 0, ahead = next_item(segment.begin + KV_STAGES - 1);
    for (u32 tile = segment.begin; tile < segment.end; tile++) {
        KV_GUARD(2, kv::cp_wait<KV_STAGES - 2>());
        KV_GUARD(3, kv::syncwarp());
        u32 fill = stage == 0 ? KV_STAGES - 1 : stage - 1, then = tile + KV_STAGES - 1;
        if (then < segment.end) {
            fetch(p.of, list, all, mine(then), ahead, stage_at(warp, fill));
            ahead = next_item(then + 1);
        }
        kv::cp_commit();
        Scores s = {};
        dot(q, stage_at(warp, stage), s);
        scale_and_mask(p.of, mine(tile), mine(tile) + GROUP <= list.len, rows, s);
        keep(p, unit, s, mine(tile), list.len);
        take(s, sums);
        stage = stage + 1 == KV_STAGES ? 0 : stage + 1;
    }
}

/// Sums in order, as `at` gives them.
template <class At> KV_FN Sum join(u32 n, At at) {
    Sum all{KV_NEG_INF, 0.0f};
    for (u32 i = 0; i < n; i++) {
        all.highest = kv::max(all.highest, at(i).x);
    }
    for (u32 i = 0; i < n; i++) {
        f32x2 part = at(i);
        all.weights += moved(Sum{part.x, part.y}, all.highest);
    }
    return all;
}

/// Joins the warps' sums, and leaves the segment's for the votes.
KV_FN void put(const TokensParams& p, u32 segment, Sum (&sums)[2]) {
    for (u32 half = 0; half < 2; half++) {
        float l = sums[half].weights + kv::shfl_xor(sums[half].weights, 1);
        l += kv::shfl_xor(l, 2);
        if (quad() == 0) {
            u32 row = kv::warp() * GROUP + row_of(half);
            kv::sts(SUMS_AT + row * 8, f32x2{sums[half].highest, l});
        }
    }
    KV_GUARD(4, kv::sync()); // the rings are read, too
    u32 row = kv::tid();
    if (row < GROUP) {
        Sum s = join(WARPS, [&](u32 w) { return kv::lds<f32x2>(SUMS_AT + (w * GROUP + row) * 8); });
        f32x2* parts = reinterpret_cast<f32x2*>(p.parts) + static_cast<i64>(segment) * GROUP;
        kv::stg(parts + row, f32x2{s.highest, s.weights});
    }
    KV_GUARD(5, kv::sync());
}

KV_KERNEL(score_tokens, TokensParams, WARPS * 32, KV_D * ELEMENT <= 256 ? 3 : 2) {
    u32 end = load<u32>(p.of.workers, kv::block() + 1);
    for (u32 i = load<u32>(p.of.workers, kv::block()); i < end; i++) {
        Segment segment = load<Segment>(p.of.segments, i);
        Sum sums[2] = {{KV_NEG_INF, 0.0f}, {KV_NEG_INF, 0.0f}};
        walk(p, load<Unit>(p.of.units, segment.unit), segment, sums);
        put(p, i, sums);
    }
}

/// The row's log-sum-exp over the unit's segments, sinks included.
KV_FN float row_lse(const TokensParams& p, const Unit& unit, const Segment& segment, u32 i, u32 row) {
    // Segments of a unit lie one behind the other, and so do their partial results.
    u32 n = unit.reduce ? unit.reduce : 1;
    u32 first = unit.reduce ? i - (static_cast<u32>(segment.partial) - unit.partial) : i;
    const f32x2* parts = reinterpret_cast<const f32x2*>(p.parts) + static_cast<i64>(first) * GROUP + row;
    Sum s = join(n, [&](u32 part) { return kv::ldg(parts + part * GROUP); });
    u32 packed = unit.packed + row, head = unit.head * p.of.group + packed % p.of.group;
    bool open = s.highest == KV_NEG_INF || s.highest == -KV_NEG_INF;
    float lse = open ? s.highest : s.highest + kv::log2(s.weights);
    if (p.of.sinks) {
        join_sink(lse, load<float>(p.of.sinks, head));
    }
    if (p.of.lse2 && i == first) {
        i64 token = unit.first_row + packed / p.of.group;
        kv::stg(reinterpret_cast<float*>(p.of.lse2) + token * p.of.q_heads + head, lse);
    }
    return lse;
}

KV_KERNEL(vote_tokens, TokensParams, WARPS * 32, 8) {
    u32 end = load<u32>(p.of.workers, kv::block() + 1);
    for (u32 i = load<u32>(p.of.workers, kv::block()); i < end; i++) {
        Segment segment = load<Segment>(p.of.segments, i);
        Unit unit = load<Unit>(p.of.units, segment.unit);
        u32 len = open_list(p.of, unit.list, unit.head).len, row = kv::tid();
        if (row < unit.rows) {
            kv::sts(row * 4, row_lse(p, unit, segment, i, row));
        }
        KV_GUARD(6, kv::sync());
        u32 last = segment.end * TILE < len ? segment.end * TILE : len;
        for (u32 first = 0; first < unit.rows; first += p.of.group) {
            i64 q_row = unit.first_row + (unit.packed + first) / p.of.group;
            float* out = reinterpret_cast<float*>(p.out) + (q_row * p.kv_heads + unit.head) * p.out_row;
            for (u32 token = segment.begin * TILE + kv::tid(); token < last; token += WARPS * 32) {
                float sum = 0.0f;
                for (u32 g = first; g < first + p.of.group; g++) {
                    float lse = reference(kv::lds<float>(g * 4));
                    sum += kv::exp2(kv::ldg(logits_of(p, unit, g) + token) - lse);
                }
                kv::stg(out + token, sum);
            }
        }
        KV_GUARD(7, kv::sync()); // the sums are read
    }
}
