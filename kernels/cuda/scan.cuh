// Numbers of 512 threads joined across a block, by shuffles and a number per warp in shared memory; always in the
// same order.
#pragma once

#include "kvdev.cuh"

constexpr u32 THREADS = 512;

/// Shared memory that over_warps wants: two rows of a number per warp, used in turn.
template <class T> constexpr u32 TURNS_BYTES = 2 * (THREADS / 32) * sizeof(T);

KV_FN u32 from_lane(u32 x, u32 lane) { return kv::shfl(x, lane); }
KV_FN u64 from_lane(u64 x, u32 lane) {
    u64 low = kv::shfl(static_cast<u32>(x), lane);
    return low | static_cast<u64>(kv::shfl(static_cast<u32>(x >> 32), lane)) << 32;
}

/// Shows every thread each warp's number. `turn` alternates between calls, so that one barrier is enough.
template <class T, class Each> KV_FN void over_warps(T mine, u32 at, u32 turn, Each each) {
    at += turn % 2 * (THREADS / 32) * sizeof(T);
    if (kv::lane() == 0) {
        kv::sts(at + kv::warp() * sizeof(T), mine);
    }
    KV_GUARD(1, kv::sync());
    for (u32 w = 0; w < THREADS / 32; w++) {
        each(w, kv::lds<T>(at + w * sizeof(T)));
    }
}

/// A sum of what comes before, and of all.
template <class T> struct Sums {
    T before, all;
};

/// Sums over the warps.
template <class T> KV_FN Sums<T> sums_of_warps(T total, u32 at, u32 turn) {
    Sums<T> s{0, 0};
    over_warps(total, at, turn, [&](u32 w, T x) {
        s.before += w < kv::warp() ? x : 0;
        s.all += x;
    });
    return s;
}

/// Sums over the threads.
template <class T> KV_FN Sums<T> scan(T mine, u32 at, u32 turn) {
    T sum = mine;
    for (u32 d = 1; d < 32; d *= 2) {
        T other = from_lane(sum, (kv::lane() - d) % 32);
        sum += kv::lane() >= d ? other : 0;
    }
    Sums<T> s = sums_of_warps(from_lane(sum, 31), at, turn);
    s.before += sum - mine;
    return s;
}
