//! AVX-512: sixteen lanes, thirty-two registers.

use std::arch::x86_64::*;

use super::fused;
use super::product::Floats;
use super::simd::{Elem, Simd};
use super::tile::{Dots, Step};

/// Sixteen lanes in a `zmm` register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Adds the 128-bit lanes that `X` picks of two registers to those that `Y` picks.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
unsafe fn add_lanes<const X: i32, const Y: i32>(a: __m512, b: __m512) -> __m512 {
    // SAFETY: AVX-512 is enabled by the caller (so below).
    unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<X>(a, b), _mm512_shuffle_f32x4::<Y>(a, b)) }
}

/// Sums of 16 registers: lane `i` of the result is the sum of `v[i]`.
///
/// Four halving steps of 8 + 4 + 2 + 1 pair merges instead of 16 separate horizontal sums. Plain
/// loops, no closures: those would not inherit the caller's instruction set.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
pub(crate) unsafe fn sum16(v: &[__m512; 16]) -> __m512 {
    // SAFETY: as above.
    unsafe {
        // Low 256 bits belong to i, high to i + 8.
        let mut s = [_mm512_setzero_ps(); 8];
        for i in 0..8 {
            s[i] = add_lanes::<0b01_00_01_00, 0b11_10_11_10>(v[i], v[i + 8]);
        }
        // 128-bit lanes belong to i, i + 8, i + 4, i + 12.
        let mut t = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            t[i] = add_lanes::<0b10_00_10_00, 0b11_01_11_01>(s[i], s[i + 4]);
        }
        // Within a lane: halves of two inputs, then one sum of each of the four.
        let u0 = _mm512_add_ps(_mm512_unpacklo_ps(t[0], t[1]), _mm512_unpackhi_ps(t[0], t[1]));
        let u1 = _mm512_add_ps(_mm512_unpacklo_ps(t[2], t[3]), _mm512_unpackhi_ps(t[2], t[3]));
        let x = _mm512_shuffle_ps::<0b01_00_01_00>(u0, u1);
        let y = _mm512_shuffle_ps::<0b11_10_11_10>(u0, u1);
        let sums = _mm512_add_ps(x, y);
        // Lane order is now 0..3, 8..11, 4..7, 12..15.
        _mm512_shuffle_f32x4::<0b11_01_10_00>(sums, sums)
    }
}

impl Simd for Avx512 {
    type F = __m512;
    const N: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: AVX-512 is enabled, by the trait's contract (so for every method here).
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: as above; sixteen readable lanes.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        // SAFETY: as above; sixteen readable lanes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        // SAFETY: as above; sixteen readable lanes. A bf16 is the upper half of an f32.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        // SAFETY: as above; sixteen writable lanes.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale2(a: __m512, n: __m512) -> __m512 {
        // SAFETY: as above. n + 127 is the exponent field of 2^n (0 for n = -127).
        unsafe {
            let e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_mul_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(e)))
        }
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn hmax(a: __m512) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn ge(a: __m512, b: __m512) -> u32 {
        // SAFETY: as above.
        unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b)) }
    }
    #[inline(always)]
    unsafe fn dots<E: Elem>(x: &Dots) {
        // SAFETY: passed on from the caller.
        unsafe { fused::dots::<Floats<E>>(x) }
    }
    #[inline(always)]
    unsafe fn attend<E: Elem>(x: &mut Step) {
        // SAFETY: passed on from the caller.
        unsafe { fused::attend::<Floats<E>>(x) }
    }
    #[inline(always)]
    unsafe fn sums<const M: usize>(acc: &[__m512; M], out: &mut [f32; M]) {
        // SAFETY: as above; the copy out is M <= 16 lanes.
        unsafe {
            let zero = _mm512_setzero_ps();
            let mut all = [zero; 16];
            all[..M].copy_from_slice(acc);
            let mut lanes = [0f32; 16];
            _mm512_storeu_ps(lanes.as_mut_ptr(), sum16(&all));
            out.copy_from_slice(&lanes[..M]);
        }
    }
}
