//! Exponentials of score rows with AVX-512: log-sum-exp of a chunk, and the mass fold.

use std::arch::x86_64::*;

use crate::select::{EXP2, fold_offset};

/// Lanes of a vector.
const LANES: usize = 16;

/// 2^x of 16 numbers; NaN for NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2(x: __m512) -> __m512 {
    let f = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
    let mut p = _mm512_set1_ps(EXP2[4]);
    for &c in EXP2[..4].iter().rev() {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    }
    // Scales by 2^floor(x).
    _mm512_scalef_ps(p, x)
}

/// Runs `each` on every 16 numbers of `x`; the last ones are filled up with minus infinity.
#[inline]
#[target_feature(enable = "avx512f")]
fn for_each(x: &[f32], mut each: impl FnMut(usize, __m512)) {
    let (body, tail) = x.as_chunks::<LANES>();
    for (i, x) in body.iter().enumerate() {
        // SAFETY: 16 numbers.
        each(i, unsafe { _mm512_loadu_ps(x.as_ptr()) });
    }
    if !tail.is_empty() {
        let (mask, none) = ((1u16 << tail.len()) - 1, _mm512_set1_ps(f32::NEG_INFINITY));
        // SAFETY: the mask ends at the slice's end.
        each(body.len(), unsafe { _mm512_mask_loadu_ps(none, mask, tail.as_ptr()) });
    }
}

/// Maximum of the scaled scores, NaN skipped.
#[inline]
#[target_feature(enable = "avx512f")]
fn maximum(x: &[f32], scale: __m512) -> f32 {
    let mut top = _mm512_set1_ps(f32::NEG_INFINITY);
    // A NaN in the first operand gives the second.
    for_each(x, |_, x| top = _mm512_max_ps(_mm512_mul_ps(x, scale), top));
    _mm512_reduce_max_ps(top)
}

/// `(sum of 2^(scale x - offset), maximum of scale x - offset)`, NaN skipped.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sum(x: &[f32], scale: __m512, offset: f32) -> (f32, f32) {
    // A NaN becomes the floor, whose exponential vanishes.
    let (offset, floor) = (_mm512_set1_ps(offset), _mm512_set1_ps(-150.0));
    let (mut sum, mut top) = (_mm512_setzero_ps(), floor);
    for_each(x, |_, x| {
        let t = _mm512_max_ps(_mm512_fmsub_ps(x, scale, offset), floor);
        top = _mm512_max_ps(t, top);
        sum = _mm512_add_ps(sum, exp2(t));
    });
    (_mm512_reduce_add_ps(sum), _mm512_reduce_max_ps(top))
}

/// `(reference, sum of 2^(scale x - reference))`, NaN skipped. The reference is `guess` unless some score
/// is far above it, or it is not finite; then it is the maximum.
///
/// # Safety
/// The CPU must have AVX-512 F and DQ.
#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) unsafe fn chunk(x: &[f32], scale: f32, guess: f32) -> (f32, f32) {
    let scale = _mm512_set1_ps(scale);
    if guess.is_finite() {
        let (sum, top) = sum(x, scale, guess);
        if top < 60.0 {
            return (guess, sum);
        }
    }
    let top = maximum(x, scale);
    (top, sum(x, scale, top).0)
}

/// `out[i] = sum_g 2^(est[g * stride + i] scale - lse2[g])`.
///
/// # Safety
/// The CPU must have AVX-512 F and DQ; `est` must hold `lse2.len()` rows of `out.len()` at that stride.
#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) unsafe fn fold(est: &[f32], stride: usize, scale: f32, lse2: &[f32], out: &mut [f32]) {
    let (n, scale) = (out.len(), _mm512_set1_ps(scale));
    let whole = n / LANES * LANES;
    let mass = |x, g: usize| {
        let offset = _mm512_set1_ps(fold_offset(lse2[g]));
        exp2(_mm512_fmsub_ps(x, scale, offset))
    };
    for at in (0..whole).step_by(LANES) {
        let mut sum = _mm512_setzero_ps();
        for g in 0..lse2.len() {
            // SAFETY: inside row g.
            let x = unsafe { _mm512_loadu_ps(est.as_ptr().add(g * stride + at)) };
            sum = _mm512_add_ps(sum, mass(x, g));
        }
        // SAFETY: inside `out`.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(at), sum) }
    }
    let mask = (1u16 << (n - whole)) - 1;
    let mut sum = _mm512_setzero_ps();
    for g in 0..lse2.len() {
        // SAFETY: the mask ends at the row's end.
        let x =
            unsafe { _mm512_maskz_loadu_ps(mask, est.as_ptr().wrapping_add(g * stride + whole)) };
        sum = _mm512_add_ps(sum, mass(x, g));
    }
    // SAFETY: the mask ends at the slice's end.
    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().wrapping_add(whole), mask, sum) }
}
