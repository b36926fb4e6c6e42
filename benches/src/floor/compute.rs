//! Multiply-adds on registers only: the arithmetic limit of a core.

use kvist_kernels::DType;

/// Independent chains: more than latency times issue width of any core in mind.
const CHAINS: usize = 16;

/// The same for 16 registers, one of which holds the factor.
#[cfg(target_arch = "x86_64")]
const CHAINS_256: usize = 12;

/// Runs `steps` rounds of independent multiply-adds and returns how many it did: bf16 dot
/// products for bf16 where the CPU has them, f32 FMA else.
#[must_use]
pub fn multiply_adds(dtype: DType, steps: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if dtype == DType::Bf16 && is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the feature was just detected.
            unsafe { x86::dot_bf16(steps) };
            return steps * CHAINS * 32;
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was just detected.
            unsafe { x86::fma_512(steps) };
            return steps * CHAINS * 16;
        }
        if is_x86_feature_detected!("fma") {
            // SAFETY: the feature was just detected.
            unsafe { x86::fma_256(steps) };
            return steps * CHAINS_256 * 8;
        }
    }
    let _ = dtype;
    plain(steps);
    steps * CHAINS * 4
}

/// The same with products of bytes where the CPU has them, else as for f32.
#[must_use]
pub fn byte_products(steps: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the feature was just detected.
        unsafe { x86::dot_bytes(steps) };
        return steps * CHAINS * 64;
    }
    multiply_adds(DType::F32, steps)
}

/// What the compiler makes of independent multiply-adds without any feature.
fn plain(steps: usize) {
    let (a, mut acc) = (std::hint::black_box([1.000_1f32; 4]), [[0.5f32; 4]; CHAINS]);
    for _ in 0..steps {
        for chain in &mut acc {
            for (x, y) in chain.iter_mut().zip(a) {
                *x = *x * y + y;
            }
        }
    }
    std::hint::black_box(acc);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32,
        _mm512_fmadd_ps, _mm512_set1_epi16, _mm512_set1_ps, _mm512_setzero_si512,
    };
    use std::hint::black_box;

    use super::{CHAINS, CHAINS_256};

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn dot_bf16(steps: usize) {
        let ones: __m512i = black_box(_mm512_set1_epi16(0x3f80));
        // SAFETY: both types are 512 plain bits.
        let ones: __m512bh = unsafe { std::mem::transmute(ones) };
        let mut acc = [_mm512_set1_ps(0.5); CHAINS];
        for _ in 0..steps {
            for chain in &mut acc {
                *chain = _mm512_dpbf16_ps(*chain, ones, ones);
            }
        }
        black_box(acc);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn dot_bytes(steps: usize) {
        let ones: __m512i = black_box(_mm512_set1_epi16(0x0101));
        let mut acc = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..steps {
            for chain in &mut acc {
                *chain = _mm512_dpbusd_epi32(*chain, ones, ones);
            }
        }
        black_box(acc);
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma_512(steps: usize) {
        let a = black_box(_mm512_set1_ps(1.0001));
        let mut acc = [_mm512_set1_ps(0.5); CHAINS];
        for _ in 0..steps {
            for chain in &mut acc {
                *chain = _mm512_fmadd_ps(*chain, a, a);
            }
        }
        black_box(acc);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma_256(steps: usize) {
        let a = black_box(_mm256_set1_ps(1.0001));
        let mut acc = [_mm256_set1_ps(0.5); CHAINS_256];
        for _ in 0..steps {
            for chain in &mut acc {
                *chain = _mm256_fmadd_ps(*chain, a, a);
            }
        }
        black_box(acc);
    }
}
