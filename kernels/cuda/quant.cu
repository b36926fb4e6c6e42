// K14: rows of pages to codes of eight or four bits with f16 scales per group of a row, and back. The bits
// are those of kvist_kernels::quant, which says what codes and scales mean.
//
//   entry           parameters     blocks                                       threads   shared memory
//   quant_encode    QuantParams    ceil(items * page_tokens * heads / 4)        128       0
//   quant_decode    QuantParams    ceil(items * page_tokens * heads / 4)        128       0
//
// No macros. A warp does a row, four neighbouring elements a lane: a group is 4 to 32 lanes. Rows start at a
// multiple of four elements, codes at a multiple of 4 bytes.
#include "numbers.cuh"
#include "params_codec.cuh"

constexpr float F16_MAX = 65504.0f;
#define KV_INFINITY (kv::float_of(0x7f800000u))

/// Where a row, its codes and its scales begin.
struct Row {
    i64 from, codes, scales;
    bool real;
};

KV_FN u32 number(u64 items, u32 i) { return items ? load<u32>(items, i) : i; }

KV_FN Row row_of_warp(const QuantParams& p) {
    u64 task = static_cast<u64>(kv::block()) * 4 + kv::warp();
    u32 head = static_cast<u32>(task % p.heads), token = static_cast<u32>(task / p.heads % p.page_tokens);
    u64 item = task / p.heads / p.page_tokens;
    Row r{0, 0, 0, item < p.items};
    if (r.real) {
        u32 i = static_cast<u32>(item), row = number(p.row_items, i), code = number(p.code_items, i);
        r.real = token < (p.lens ? load<u32>(p.lens, i) : p.page_tokens) && row != KV_SKIP && code != KV_SKIP;
        r.from = row * p.row_item + head * p.row_head + token * p.row_token;
        r.codes = code * p.code_item + head * p.code_head + token * p.code_token;
        r.scales = code * p.scale_item + head * p.scale_head + token * p.scale_token;
    }
    return r;
}

KV_FN u16 to_f16(float x) { return static_cast<u16>(kv::pack_f16(x, 0.0f)); }
KV_FN float least(float a, float b) { return b < a ? b : a; }
KV_FN float most(float a, float b) { return b > a ? b : a; }
KV_FN float within(float x, float lo, float hi) { return x < lo ? lo : x > hi ? hi : x; }

/// The smallest f16 that is not below x >= 0, up to the largest.
KV_FN u16 up(float x) {
    x = least(x, F16_MAX);
    u16 nearest = to_f16(x);
    return kv::wide_f16(nearest) < x ? nearest + 1 : nearest;
}
/// The largest finite f16 that is not above x, or the smallest one.
KV_FN u16 down(float x) {
    x = within(x, -F16_MAX, F16_MAX);
    u16 nearest = to_f16(x);
    if (kv::wide_f16(nearest) <= x) {
        return nearest;
    }
    return nearest == 0 ? 0x8001 : nearest >> 15 ? nearest + 1 : nearest - 1;
}

/// 0 for an element that is not finite.
KV_FN bool finite(float x) { return (kv::bits(x) & 0x7f800000u) != 0x7f800000u; }

/// The largest of a group's lanes.
KV_FN float over_group(float x, u32 group) {
    for (u32 mask = 1; mask < group / 4; mask *= 2) {
        x = most(x, kv::shfl_xor(x, mask));
    }
    return x;
}

KV_FN u32 code(float x, float inverse, float lo, float hi) {
    return static_cast<u32>(static_cast<i32>(kv::rint(within(x * inverse, lo, hi))));
}

KV_KERNEL(quant_encode, QuantParams, 128, 8) {
    Row r = row_of_warp(p);
    if (!r.real) {
        return;
    }
    bool four = p.bits == 4;
    u16* scales = reinterpret_cast<u16*>(p.scales) + r.scales;
    u8* codes = reinterpret_cast<u8*>(p.codes) + r.codes;
    for (u32 base = 0; base < p.dim; base += 128) {
        u32 c = base + kv::lane() * 4;
        bool real = c < p.dim;
        f32x4 x = real ? load4(p.rows, r.from + c, p.type) : f32x4{0, 0, 0, 0};
        bool wild = !finite(x.x) || !finite(x.y) || !finite(x.z) || !finite(x.w);
        // Of four bits the largest and the smallest's opposite; of eight the largest magnitude.
        float hi = most(most(x.x, x.y), most(x.z, x.w)), lo = most(most(-x.x, -x.y), most(-x.z, -x.w));
        hi = wild ? KV_INFINITY : real ? hi : KV_NEG_INF;
        lo = wild ? KV_INFINITY : real ? lo : KV_NEG_INF;
        hi = over_group(hi, p.group);
        lo = over_group(lo, p.group);
        wild = hi == KV_INFINITY;
        u16 low = down(-lo);
        float end = four ? kv::wide_f16(low) : 0.0f;
        u16 scale = up(four ? most(hi - end, 0.0f) / 15.0f : most(hi, lo) / 127.0f);
        float step = kv::wide_f16(scale), inverse = step > 0.0f && !wild ? 1.0f / step : 0.0f;
        if (real) {
            float first = four ? 0.0f : -127.0f, last = four ? 15.0f : 127.0f;
            float y[4] = {x.x - end, x.y - end, x.z - end, x.w - end};
            u32 q[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                q[i] = wild ? 0 : code(y[i], inverse, first, last);
            }
            if (four) {
                kv::stg(reinterpret_cast<u16*>(codes + c / 2),
                        static_cast<u16>(q[0] | q[1] << 4 | q[2] << 8 | q[3] << 12));
            } else {
                kv::stg(reinterpret_cast<u32*>(codes + c),
                        (q[0] & 255) | (q[1] & 255) << 8 | (q[2] & 255) << 16 | q[3] << 24);
            }
            if (c % p.group == 0) {
                u16* to = scales + c / p.group * (four ? 2 : 1);
                kv::stg(to, wild ? static_cast<u16>(0x7e00) : scale);
                if (four) {
                    kv::stg(to + 1, wild ? static_cast<u16>(0x7e00) : low);
                }
            }
        }
    }
}

KV_KERNEL(quant_decode, QuantParams, 128, 8) {
    Row r = row_of_warp(p);
    if (!r.real) {
        return;
    }
    const u16* scales = reinterpret_cast<const u16*>(p.scales) + r.scales;
    const u8* codes = reinterpret_cast<const u8*>(p.codes) + r.codes;
    for (u32 c = kv::lane() * 4; c < p.dim; c += 128) {
        float x[4];
        if (p.bits == 4) {
            const u16* at = scales + c / p.group * 2;
            float scale = kv::wide_f16(kv::ldg(at)), low = kv::wide_f16(kv::ldg(at + 1));
            u32 q = kv::ldg(reinterpret_cast<const u16*>(codes + c / 2));
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                // The product is exact: fused or not, the sum is rounded once.
                x[i] = low + scale * static_cast<float>(q >> i * 4 & 15);
            }
        } else {
            float scale = kv::wide_f16(kv::ldg(scales + c / p.group));
            u32 q = kv::ldg(reinterpret_cast<const u32*>(codes + c));
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                x[i] = scale * static_cast<float>(static_cast<i32>(q << (24 - i * 8)) >> 24);
            }
        }
        if (p.type == KV_F16) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                x[i] = within(x[i], -F16_MAX, F16_MAX);
            }
        }
        store4(p.rows, r.from + c, p.type, f32x4{x[0], x[1], x[2], x[3]});
    }
}
