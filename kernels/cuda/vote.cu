// K11: the scores of a group's query heads become one score of their KV head, or those of all heads one of
// the layer: maximum, sum or mean of scores, sum or maximum of softmax masses (kernels/src/select/fold.rs).
//
//   entry    parameters    blocks             threads   shared memory
//   vote     VoteParams    rows * KV heads    512       128 + 4 * group
//
// No macros. Masses are 2^(scale x - lse) with the log-sum-exp over a head's scores, or those from one on, and
// what `lse2` adds.
// A NaN score counts for nothing in the lse; its unit's mass is NaN, as is that of an infinite score.
#include "numbers.cuh"
#include "params_select.cuh"
#include "scan.cuh"

constexpr u32 LSE_AT = TURNS_BYTES<float>;

/// Joins a number of every thread.
template <class Join> KV_FN float over_block(float x, u32 turn, Join join) {
    for (u32 mask = 1; mask < 32; mask *= 2) {
        x = join(x, kv::shfl_xor(x, mask));
    }
    float all = 0.0f;
    over_warps(x, 0, turn, [&](u32 w, float y) { all = w ? join(all, y) : y; });
    return all;
}

/// log2(2^a + 2^b).
KV_FN float join_lse(float a, float b) {
    float high = kv::max(a, b), low = a < b ? a : b;
    return low == KV_NEG_INF || high == -KV_NEG_INF ? high : high + kv::log2(1.0f + kv::exp2(low - high));
}

/// Log-sum-exp of a query head's scores.
KV_FN float lse_of(const float* scores, u32 n, float scale, u32& turn) {
    float most = KV_NEG_INF, sum = 0.0f;
    for (u32 i = kv::tid(); i < n; i += THREADS) {
        most = kv::max(most, kv::ldg(scores + i) * scale);
    }
    most = over_block(most, turn++, [](float a, float b) { return kv::max(a, b); });
    for (u32 i = kv::tid(); i < n; i += THREADS) {
        float w = kv::exp2(kv::ldg(scores + i) * scale - reference(most));
        sum += w == w ? w : 0.0f;
    }
    sum = over_block(sum, turn++, [](float a, float b) { return a + b; });
    return most == KV_NEG_INF || most == -KV_NEG_INF ? most : most + kv::log2(sum);
}

KV_FN float join_masses(u32 how, float a, float b) {
    return how == KV_FOLD_MASS ? a + b : fold(KV_FOLD_MAX, a, b);
}

KV_KERNEL(vote, VoteParams, THREADS, 2) {
    i64 first = static_cast<i64>(kv::block()) * p.group; // of the group's query heads
    u32 n = load<u32>(p.counts, kv::block()), turn = 0;
    u32 from = p.from ? load<u32>(p.from, kv::block()) : 0;
    const float* scores = reinterpret_cast<const float*>(p.scores) + first * p.scores_row;
    float* out = reinterpret_cast<float*>(p.out) + kv::block() * p.out_row;
    bool masses = p.fold >= KV_FOLD_MASS;
    for (u32 g = 0; masses && g < p.group; g++) {
        float lse = lse_of(scores + g * p.scores_row + from, n - from, p.scale, turn);
        lse = p.lse2 ? join_lse(lse, load<float>(p.lse2, first + g)) : lse;
        if (kv::tid() == 0) {
            kv::sts(LSE_AT + g * 4, reference(lse));
            if (p.out_lse2) {
                kv::stg(reinterpret_cast<float*>(p.out_lse2) + first + g, lse);
            }
        }
    }
    KV_GUARD(2, kv::sync());
    for (u32 i = kv::tid(); i < n; i += THREADS) {
        float all = 0.0f;
        for (u32 g = 0; g < p.group; g++) {
            float x = kv::ldg(scores + g * p.scores_row + i);
            if (masses) {
                x = kv::exp2(x * p.scale - kv::lds<float>(LSE_AT + g * 4));
                all = g ? join_masses(p.fold, all, x) : x;
            } else {
                all = g ? fold(p.fold, all, x) : x;
            }
        }
        kv::stg(out + i, p.fold == KV_FOLD_MEAN ? all / p.group : all);
    }
}
