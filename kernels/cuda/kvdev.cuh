// What kernels may use of the machine. The only header they include besides params.cuh and each other.
//
// Two bodies: this file, for NVRTC (no CUDA header: built-ins and inline PTX), and kvemu.h, which runs a
// block's threads as fibers on a CPU and reports races (KV_EMU). Both offer the same functions:
//
//   tid() lane() warp() block() blocks()        places, one-dimensional
//   sync() syncwarp()                           barriers; they alone order shared memory between threads
//   shfl(x, from) shfl_xor(x, mask) any(x) ballot(x)      all 32 lanes take part
//   cp16(to, from, real) cp_commit() cp_wait<N>()         16 bytes to shared memory, later; zeros if not real
//   ldm4(at, r) ldm4t(at, r) mma_bf16(c, a, b0, b1) mma_f16(..) mma_s8(..)   tensor-core fragments, sm_80
//   wgmma<BF16, TURNED>(c, a, at) wgmma_begin() wgmma_wait() settle(c) publish()     the same, sm_90a
//   lds<T>(at) sts(at, x)                       shared memory, `at` in bytes from its start
//   count(at) add(at, x)                        there, at once: 1 more in 32 bits, x more in 64
//   ldg(p) ldg_once(p) stg(p, x)                global memory; _once: read by nobody else, kept out of L1
//   opaque popc exp2 log2 sqrt rint max pack_bf16 pack_f16 wide_bf16 wide_f16 bits float_of
//
// Rules: no static shared memory, no collective under a condition that differs between lanes, one
// parameter struct by value. A barrier or wait is written KV_GUARD(n, call), n unique in its file: the
// tests leave out one after the other, and the emulator has to notice each time.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

struct alignas(8) f32x2 {
    float x, y;
};
struct alignas(16) f32x4 {
    float x, y, z, w;
};
struct alignas(8) u32x2 {
    u32 x, y;
};
struct alignas(16) u32x4 {
    u32 x, y, z, w;
};

#define KV_NEG_INF (kv::float_of(0xff800000u))
#define KV_LOG2_E 1.44269504088896340736f

#ifdef KV_EMU
#include "kvemu.h"
#else

#define KV_FN static __device__ __forceinline__
#define KV_KERNEL(name, Params, threads, blocks_per_sm) \
    extern "C" __global__ void __launch_bounds__(threads, blocks_per_sm) name(const __grid_constant__ Params p)
#define KV_GUARD(n, call) call

extern __shared__ __align__(1024) u8 kv_shared[];

namespace kv {

KV_FN u32 tid() { return threadIdx.x; }
KV_FN u32 lane() { return threadIdx.x & 31; }
KV_FN u32 warp() { return threadIdx.x >> 5; }
KV_FN u32 block() { return blockIdx.x; }
KV_FN u32 blocks() { return gridDim.x; }

KV_FN void sync() { __syncthreads(); }
KV_FN void syncwarp() { __syncwarp(); }

KV_FN u32 bits(float x) { return __float_as_uint(x); }
KV_FN float float_of(u32 x) { return __uint_as_float(x); }

KV_FN u32 shfl(u32 x, u32 from) { return __shfl_sync(0xffffffffu, x, from); }
KV_FN float shfl(float x, u32 from) { return __shfl_sync(0xffffffffu, x, from); }
KV_FN u32 shfl_xor(u32 x, u32 mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
KV_FN float shfl_xor(float x, u32 mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
KV_FN bool any(bool x) { return __any_sync(0xffffffffu, x); }
KV_FN u32 ballot(bool x) { return __ballot_sync(0xffffffffu, x); }

/// Address of byte `at` of dynamic shared memory in the shared window, as PTX wants it.
KV_FN u32 window(u32 at) { return static_cast<u32>(__cvta_generic_to_shared(kv_shared)) + at; }

/// The hint lets L2 fetch the line's other half too: rows are read whole.
KV_FN void cp16(u32 to, const void* from, bool real) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(window(to)), "l"(from),
                 "r"(real ? 16 : 0)
                 : "memory");
}
KV_FN void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> KV_FN void cp_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

/// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
KV_FN void ldm4(u32 at, u32 (&r)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(window(at))
                 : "memory");
}
/// The same, each matrix transposed.
KV_FN void ldm4t(u32 at, u32 (&r)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(window(at))
                 : "memory");
}

/// c[16][8] += a[16][16] b[16][8], fragments as PTX lays them out.
KV_FN void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
KV_FN void mma_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// c[16][8] += a[16][32] b[32][8] of signed bytes, four neighbouring k in a word.
KV_FN void mma_s8(i32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Hopper's tensor cores. Four warps together compute c[64][64] += a[64][16] b[16][64], each with 16 rows of a and c
/// as mma has them; b is 16-bit in shared memory, in rows of 128 bytes whose chunks are swapped by row % 8, 1024
/// bytes for 8 rows, the first of them at a multiple of 1024. A row has one k in 64 columns (TURNED), or one column
/// in 16 k from `at` on. It is done when it was waited for: until then c and b are left alone.
#define KV_WGMMA_TEXT(type, turned)                                                                   \
    "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {%0, %1, %2, %3, %4, %5, %6, %7, "   \
    "%8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "                   \
    "%24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, 1, 1, 1, " turned ";"
#define KV_WGMMA_OF(type, turned)                                                                      \
    asm volatile(KV_WGMMA_TEXT(type, turned)                                                          \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), \
                   "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]),          \
                   "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]),       \
                   "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),       \
                   "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]),       \
                   "+f"(c[31])                                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                  \
                 : "memory")
template <bool BF16, bool TURNED> KV_FN void wgmma(float* c, const u32 (&a)[4], u32 at) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    // The PTX manual's matrix descriptor: address, 1024 bytes from 8 rows to the next, swizzle of 128 bytes.
    u64 b = (window(at) & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
    if (BF16) {
        if (TURNED) {
            KV_WGMMA_OF("bf16", "1");
        } else {
            KV_WGMMA_OF("bf16", "0");
        }
    } else {
        if (TURNED) {
            KV_WGMMA_OF("f16", "1");
        } else {
            KV_WGMMA_OF("f16", "0");
        }
    }
#endif
}
/// The compiler neither writes 32 registers of c later nor reads them earlier than here: before wgmma_begin, and
/// behind the wait.
KV_FN void settle(float* c) {
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
        asm volatile("" : "+f"(c[i])::"memory");
    }
}
/// Before the first of several.
KV_FN void wgmma_begin() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
KV_FN void wgmma_wait() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}
/// What the thread wrote to shared memory, or waited for, is there for wgmma after the next barrier.
KV_FN void publish() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

template <class T> KV_FN T lds(u32 at) { return *reinterpret_cast<const T*>(kv_shared + at); }
template <class T> KV_FN void sts(u32 at, T x) { *reinterpret_cast<T*>(kv_shared + at) = x; }

/// One more, whoever else counts there meanwhile.
KV_FN void count(u32 at) { atomicAdd(reinterpret_cast<u32*>(kv_shared + at), 1u); }
KV_FN void add(u32 at, u64 x) { atomicAdd(reinterpret_cast<u64*>(kv_shared + at), x); }

template <class T> KV_FN T ldg(const T* p) { return *p; }
template <class T> KV_FN void stg(T* p, T x) { *p = x; }
KV_FN u32x4 ldg_once(const u32x4* p) {
    u32x4 r;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p)
                 : "memory");
    return r;
}

/// The same number, which the compiler takes for another each time: it stays out of the way of what is computed
/// ahead of a loop, and kept.
KV_FN u32 opaque(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}

KV_FN u32 popc(u32 x) { return __popc(x); }
/// To the nearest whole number, ties to even.
KV_FN float rint(float x) { return rintf(x); }

/// Within 2 ulp; exp2(-inf) = 0. Results below the normal numbers are 0.
KV_FN float exp2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
KV_FN float log2(float x) {
    float r;
    asm("lg2.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
KV_FN float sqrt(float x) {
    float r;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
/// The larger; a NaN counts for nothing.
KV_FN float max(float a, float b) {
    float r;
    asm("max.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

/// Two numbers rounded to nearest even, `low` in the low half.
KV_FN u32 pack_bf16(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
KV_FN u32 pack_f16(float low, float high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
KV_FN float wide_bf16(u16 x) { return float_of(static_cast<u32>(x) << 16); }
KV_FN float wide_f16(u16 x) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
    return r;
}

} // namespace kv
#endif
