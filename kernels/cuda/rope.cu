// K14: keys in pages moved to other positions, in place: rotary embeddings turned on by differences, as
// kvist_kernels::rope does it. Angles are reduced in f64, so that any difference is as exact as the first.
//
//   entry         parameters    blocks                               threads   shared memory
//   rope_shift    RopeParams    ceil(items * page_tokens / 4)        128       0
//
// No macros. A warp does a token of all heads, a pair of elements a lane, so that angles are computed once. A token
// that moves by 0 is not touched.
#include "numbers.cuh"
#include "params_codec.cuh"

/// Sine and cosine of `difference * frequency` radians.
KV_FN f32x2 turn(i32 difference, float frequency) {
    constexpr double PI = 3.14159265358979323846, WHOLE = 6755399441055744.0; // 1.5 * 2^52
    double quarters = difference * static_cast<double>(frequency) * (2.0 / PI);
    double nearest = (quarters + WHOLE) - WHOLE;
    float r = static_cast<float>((quarters - nearest) * (PI / 2.0)), z = r * r;
    // Minimax polynomials on -pi/4 .. pi/4 (Cephes).
    float sine = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
    float cosine = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z -
                   0.5f * z + 1.0f;
    u32 quadrant = static_cast<u32>(static_cast<i64>(nearest)) & 3;
    float s = quadrant & 1 ? cosine : sine, c = quadrant & 1 ? sine : cosine;
    return f32x2{quadrant & 2 ? -s : s, quadrant == 1 || quadrant == 2 ? -c : c};
}

KV_FN float load1(u64 base, i64 at, u32 type) {
    return type == KV_F32 ? load<float>(base, at) : wide(type, load<u16>(base, at));
}
KV_FN void store1(u64 base, i64 at, u32 type, float x) {
    if (type == KV_F32) {
        kv::stg(reinterpret_cast<float*>(base) + at, x);
    } else {
        kv::stg(reinterpret_cast<u16*>(base) + at, static_cast<u16>(pack(type, x, 0.0f)));
    }
}

KV_KERNEL(rope_shift, RopeParams, 128, 8) {
    u64 task = static_cast<u64>(kv::block()) * 4 + kv::warp();
    if (task / p.page_tokens >= p.items) {
        return;
    }
    u32 item = static_cast<u32>(task / p.page_tokens), token = static_cast<u32>(task % p.page_tokens);
    u32 frame = p.frames ? load<u32>(p.frames, item) : item;
    if (token >= (p.lens ? load<u32>(p.lens, item) : p.page_tokens) || frame == KV_SKIP) {
        return;
    }
    i32 difference = load<i32>(p.differences, item * p.difference_item + token * p.difference_token);
    if (difference == 0) {
        return;
    }
    for (u32 i = kv::lane(); i < p.pairs; i += 32) {
        f32x2 by = turn(difference, load<float>(p.frequencies, i));
        u32 a = p.neighbours ? 2 * i : i, b = p.neighbours ? 2 * i + 1 : i + p.pairs;
        for (u32 head = 0; head < p.heads; head++) {
            i64 row = frame * p.k_item + head * p.k_head + token * p.k_token;
            float x = load1(p.k, row + a, p.type), y = load1(p.k, row + b, p.type);
            store1(p.k, row + a, p.type, x * by.y - y * by.x);
            store1(p.k, row + b, p.type, y * by.y + x * by.x);
        }
    }
}
