// Kernels that break each rule of the machine once, and some that keep them, to test the emulator itself.
#include "kvdev.cuh"

struct SelfParams {
    u64 in, out;
    u32 mode, zero;
};

enum Mode {
    CLEAN,
    NEIGHBOUR,          // reads the neighbour's word, no barrier
    NEIGHBOUR_WARP,     // the same behind a warp barrier: right
    OTHER_WARP,         // reads another warp's word behind a warp barrier only
    OTHER_WARP_BLOCK,   // the same behind a block barrier: right
    SHUFFLE_IS_NONE,    // reads the neighbour's word behind a shuffle, which orders nothing
    OVERWRITE_READ,     // writes what the neighbour read
    OVERWRITE_READ_LATE, // the same where an older barrier hides one reader but not the other warp's
    OVERWRITE_WRITTEN,
    EARLY_READ,         // reads a copy that was not waited for
    LAX_WAIT,           // waits for the wrong group
    WAITED_ALONE,       // reads another lane's copy that was waited for, without a barrier
    REFILL,             // copies into what the neighbour reads
    NEVER_WRITTEN,
    BEHIND_SHARED,
    MISALIGNED_SHARED,
    CANARY,
    BEHIND_GLOBAL,
    READ_ONLY,
    TWICE,
    HALF_AT_BARRIER,
    LEFT_EARLY,
    APART,
    COUNTED,       // all count in one word, and read it behind a barrier: right
    COUNTED_EARLY, // the same without the barrier
    ADDED,         // the same in 64 bits
    ADDED_EARLY,
    SLIP // reads behind a buffer without ldg; for the sanitizers
};

KV_KERNEL(break_rule, SelfParams, 64, 1) {
    u32 t = kv::tid(), mine = t * 4;
    const u32* in = reinterpret_cast<const u32*>(p.in);
    u32* out = reinterpret_cast<u32*>(p.out);
    u32 seen = t;
    if (p.mode != NEVER_WRITTEN && p.mode != HALF_AT_BARRIER) {
        kv::sts(mine, t);
    }
    switch (p.mode) {
    case CLEAN:
        break;
    case NEIGHBOUR:
        seen = kv::lds<u32>(mine ^ 4);
        break;
    case NEIGHBOUR_WARP:
        kv::syncwarp();
        seen = kv::lds<u32>(mine ^ 4) ^ 1;
        break;
    case OTHER_WARP:
        kv::syncwarp();
        seen = kv::lds<u32>(mine ^ 128);
        break;
    case OTHER_WARP_BLOCK:
        kv::sync();
        seen = kv::lds<u32>(mine ^ 128) ^ 32;
        break;
    case SHUFFLE_IS_NONE:
        kv::shfl_xor(t, 1);
        seen = kv::lds<u32>(mine ^ 4);
        break;
    case OVERWRITE_READ:
        kv::sync();
        seen = kv::lds<u32>(mine ^ 4) ^ 1;
        kv::sts(mine, t);
        break;
    case OVERWRITE_READ_LATE:
        kv::sync();
        seen = kv::lds<u32>(mine ^ 128) ^ 32;
        kv::syncwarp();
        kv::sts(mine, t);
        break;
    case OVERWRITE_WRITTEN:
        kv::sts(mine ^ 4, t);
        break;
    case EARLY_READ:
        kv::sync();
        kv::cp16(t * 16, in + t * 4, true);
        kv::cp_commit();
        seen = kv::lds<u32>(t * 16);
        break;
    case LAX_WAIT:
        kv::sync();
        kv::cp16(t * 16, in + t * 4, true);
        kv::cp_commit();
        kv::cp_wait<1>();
        seen = kv::lds<u32>(t * 16);
        break;
    case WAITED_ALONE:
        kv::sync();
        kv::cp16(t * 16, in + t * 4, true);
        kv::cp_commit();
        kv::cp_wait<0>();
        seen = kv::lds<u32>((t ^ 1) * 16);
        break;
    case REFILL:
        kv::sync();
        seen = kv::lds<u32>(mine);
        if (t < 16) {
            kv::cp16(t * 16, in + t * 4, true);
        }
        kv::cp_commit();
        kv::cp_wait<0>();
        break;
    case NEVER_WRITTEN:
        seen = kv::lds<u32>(mine);
        break;
    case BEHIND_SHARED:
        kv::sts(mine + 1024 - 252, t);
        break;
    case MISALIGNED_SHARED:
        seen = kv::lds<u32>(mine + 2);
        break;
    case CANARY:
#ifdef KV_EMU
        kv::machine.shared[1024] = 0;
#endif
        break;
    case BEHIND_GLOBAL:
        seen = kv::ldg(in + 256 - 63 + t);
        break;
    case READ_ONLY:
        kv::stg(const_cast<u32*>(in) + t, t);
        break;
    case TWICE:
        kv::stg(out + (t ^ 1) / 2, t);
        break;
    case HALF_AT_BARRIER:
        if (t < 32) {
            kv::sync();
        }
        break;
    case LEFT_EARLY:
        if (t == 5) {
            return;
        }
        kv::sync();
        break;
    case APART:
        if (t % 2) {
            kv::syncwarp();
        } else {
            seen = kv::shfl_xor(t, 0);
        }
        break;
    case COUNTED:
    case COUNTED_EARLY:
        kv::sync();
        kv::count(0);
        if (p.mode == COUNTED) {
            kv::sync();
        }
        seen = kv::lds<u32>(0) == 64 ? t : 0;
        break;
    case ADDED:
    case ADDED_EARLY:
        kv::sync();
        kv::add(8, t);
        if (p.mode == ADDED) {
            kv::sync();
        }
        // Beside the 2 and the 3 that lay there.
        seen = kv::lds<u64>(8) == 0x300000002ull + 2016 ? t : 0;
        break;
    case SLIP:
        seen = in[256];
        break;
    }
    kv::stg(out + 64 + t, seen);
}

// Fragments as they come out of ldm4 (mode 0) and ldm4t (1), of 16 x 16 elements; and c = a b + c by
// mma in bf16 (2) and f16 (3): `in` is a[16][16], b[8][16] (columns of b as rows), c[16][8] in f32.
KV_KERNEL(fragments, SelfParams, 32, 1) {
    u32 l = kv::lane();
    u32* out = reinterpret_cast<u32*>(p.out);
    for (u32 i = l; i < 48 + 32; i += 32) {
        kv::cp16(i * 16, reinterpret_cast<const u8*>(p.in) + i * 16, true);
    }
    kv::cp_commit();
    kv::cp_wait<0>();
    kv::syncwarp();
    // Rows first: matrices (rows 0-7, columns 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
    u32 a[4], b[4], at = l % 16 * 32 + l / 16 * 16;
    if (p.mode == 1) {
        kv::ldm4t(at, a);
    } else {
        kv::ldm4(at, a);
    }
    if (p.mode < 2) {
        for (u32 i = 0; i < 4; i++) {
            kv::stg(out + l * 4 + i, a[i]);
        }
        return;
    }
    kv::ldm4(512 + l % 8 * 32 + l / 8 % 2 * 16, b);
    float c[4];
    for (u32 i = 0; i < 4; i++) {
        c[i] = kv::lds<float>(768 + ((l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2) * 4);
    }
    p.mode == 2 ? kv::mma_bf16(c, a, b[0], b[1]) : kv::mma_f16(c, a, b[0], b[1]);
    for (u32 i = 0; i < 4; i++) {
        kv::stg(out + (l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2, kv::bits(c[i]));
    }
}

// c = a b + c in signed bytes: `in` is a[16][32], b[8][32] (columns of b as rows), c[16][8] of i32.
KV_KERNEL(bytes, SelfParams, 32, 1) {
    u32 l = kv::lane();
    const u32* in = reinterpret_cast<const u32*>(p.in);
    auto word = [&](u32 row, u32 quarter) { return kv::ldg(in + row * 8 + l % 4 + quarter * 4); };
    u32 a[4] = {word(l / 4, 0), word(l / 4 + 8, 0), word(l / 4, 1), word(l / 4 + 8, 1)};
    auto at = [&](u32 i) { return (l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2; };
    i32 c[4];
    for (u32 i = 0; i < 4; i++) {
        c[i] = static_cast<i32>(kv::ldg(in + 192 + at(i)));
    }
    kv::mma_s8(c, a, word(16 + l / 4, 0), word(16 + l / 4, 1));
    for (u32 i = 0; i < 4; i++) {
        kv::stg(reinterpret_cast<u32*>(p.out) + at(i), static_cast<u32>(c[i]));
    }
}

// c[64][64] += a b twice by wgmma, in bf16 (modes 0, 1) and f16 (2, 3): `in` is a[64][16] and x[64][64], of whose
// second 16 columns (0, 2) or rows (1, 3) b is made: a column of x is a k, or a row is.
KV_KERNEL(hopper, SelfParams, 128, 1) {
    const u8* in = reinterpret_cast<const u8*>(p.in);
    u32 l = kv::lane(), row = kv::warp() * 16 + l / 4;
    for (u32 i = kv::tid(); i < 512; i += 128) {
        kv::cp16(i / 8 * 128 + (i % 8 ^ (i / 8 & 7)) * 16, in + 2048 + i * 16, true);
    }
    kv::cp_commit();
    kv::cp_wait<0>();
    kv::publish();
    kv::sync();
    u32 a[4];
    for (u32 i = 0; i < 4; i++) {
        a[i] = kv::ldg(reinterpret_cast<const u32*>(in) + (row + i % 2 * 8) * 8 + l % 4 + i / 2 * 4);
    }
    float c[32] = {};
    kv::settle(c);
    kv::wgmma_begin();
    for (u32 twice = 0; twice < 2; twice++) {
        switch (p.mode) {
        case 0: kv::wgmma<true, false>(c, a, 32); break;
        case 1: kv::wgmma<true, true>(c, a, 2048); break;
        case 2: kv::wgmma<false, false>(c, a, 32); break;
        case 3: kv::wgmma<false, true>(c, a, 2048); break;
        }
    }
    kv::wgmma_wait();
    kv::settle(c);
    for (u32 i = 0; i < 32; i++) {
        u32 at = (row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + l % 4 * 2 + i % 2;
        kv::stg(reinterpret_cast<u32*>(p.out) + at, kv::bits(c[i]));
    }
}

#ifdef KV_EMU
extern "C" u32 kv_pack_bf16(float low, float high) { return kv::pack_bf16(low, high); }
extern "C" u32 kv_pack_f16(float low, float high) { return kv::pack_f16(low, high); }
extern "C" float kv_wide_bf16(u16 x) { return kv::wide_bf16(x); }
extern "C" float kv_wide_f16(u16 x) { return kv::wide_f16(x); }
#endif
