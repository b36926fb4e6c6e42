// Numbers in global memory, by element type; and the softmax state's last steps.
#pragma once

#include "params.cuh"

template <class T> KV_FN T load(u64 base, i64 at) { return kv::ldg(reinterpret_cast<const T*>(base) + at); }

KV_FN float wide(u32 type, u16 x) { return type == KV_BF16 ? kv::wide_bf16(x) : kv::wide_f16(x); }
KV_FN u32 pack(u32 type, float low, float high) {
    return type == KV_BF16 ? kv::pack_bf16(low, high) : kv::pack_f16(low, high);
}
KV_FN f32x2 wide2(u32 type, u32 pair) {
    return f32x2{wide(type, static_cast<u16>(pair)), wide(type, static_cast<u16>(pair >> 16))};
}

/// Four neighbouring elements; their address is a multiple of their size.
KV_FN f32x4 load4(u64 base, i64 at, u32 type) {
    if (type == KV_F32) {
        return kv::ldg(reinterpret_cast<const f32x4*>(reinterpret_cast<const float*>(base) + at));
    }
    u32x2 x = kv::ldg(reinterpret_cast<const u32x2*>(reinterpret_cast<const u16*>(base) + at));
    f32x2 a = wide2(type, x.x), b = wide2(type, x.y);
    return f32x4{a.x, a.y, b.x, b.y};
}
KV_FN void store4(u64 base, i64 at, u32 type, f32x4 x) {
    if (type == KV_F32) {
        kv::stg(reinterpret_cast<f32x4*>(reinterpret_cast<float*>(base) + at), x);
    } else {
        u32x2 packed{pack(type, x.x, x.y), pack(type, x.z, x.w)};
        kv::stg(reinterpret_cast<u32x2*>(reinterpret_cast<u16*>(base) + at), packed);
    }
}

KV_FN f32x4 times(f32x4 x, float by) { return f32x4{x.x * by, x.y * by, x.z * by, x.w * by}; }
KV_FN f32x4 plus(f32x4 a, f32x4 b, float by) {
    return f32x4{a.x + b.x * by, a.y + b.y * by, a.z + b.z * by, a.w + b.w * by};
}

/// What exponents are taken against: a maximum of -inf would make -inf - -inf.
KV_FN float reference(float highest) { return highest == KV_NEG_INF ? 0.0f : highest; }

/// Joins the scores of two query heads, or of more that were joined already.
KV_FN float fold(u32 how, float a, float b) {
    return how == KV_FOLD_MAX ? (b > a || b != b ? b : a) : a + b;
}

/// Joins a sink logit into a row's lse; returns the factor of its output. A row without tokens has the
/// sink alone; a NaN row stays what it is.
KV_FN float join_sink(float& lse2, float sink) {
    float logit = sink * KV_LOG2_E, highest = kv::max(lse2, logit);
    float part = kv::exp2(lse2 - highest), extra = kv::exp2(logit - highest);
    if (!(part + extra > 0.0f)) {
        return 1.0f;
    }
    lse2 = highest + kv::log2(part + extra);
    return part / (part + extra);
}

/// Writes four elements of a finished row, and with the first of them its lse.
KV_FN void finish4(u64 o, i64 at, u32 type, u64 lse2, i64 lse_at, bool first, u64 sinks, u32 q_head, f32x4 x,
                   float lse) {
    if (sinks) {
        x = times(x, join_sink(lse, load<float>(sinks, q_head)));
    }
    store4(o, at, type, x);
    if (first && lse2) {
        kv::stg(reinterpret_cast<float*>(lse2) + lse_at, lse);
    }
}
