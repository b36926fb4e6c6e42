//! Exponentials of score rows with AVX-512: log-sum-exp of a chunk, and the mass fold.

use std::arch::x86_64::*;

use crate::select::{EXP2, fold_offset};

/// Lanes of a vector.
const LANES: usize = 16;

/// 2^x of 16 numbers; NaN for NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2(x: __m512) -> __m512 {
    let whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    let f = _mm512_sub_ps(x, whole);
    let mut p = _mm512_set1_ps(EXP2[5]);
    for &c in EXP2[..5].iter().rev() {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(p, whole)
}

/// 16 scores from `at`; beyond the end, minus infinity.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32], at: usize) -> __m512 {
    let mask = match x.len().saturating_sub(at) {
        have if have >= LANES => !0,
        have => (1u16 << have) - 1,
    };
    let none = _mm512_set1_ps(f32::NEG_INFINITY);
    // SAFETY: the mask ends at the slice's end.
    unsafe { _mm512_mask_loadu_ps(none, mask, x.as_ptr().wrapping_add(at)) }
}

/// Maximum of the scaled scores, NaN skipped.
#[inline]
#[target_feature(enable = "avx512f")]
fn maximum(x: &[f32], scale: __m512) -> f32 {
    let mut top = [_mm512_set1_ps(f32::NEG_INFINITY); 2];
    for at in (0..x.len()).step_by(2 * LANES) {
        for (i, top) in top.iter_mut().enumerate() {
            // A NaN in the first operand gives the second.
            *top = _mm512_max_ps(_mm512_mul_ps(load(x, at + LANES * i), scale), *top);
        }
    }
    _mm512_reduce_max_ps(_mm512_max_ps(top[0], top[1]))
}

/// `(sum of 2^(scale x - offset), maximum of scale x - offset)`, NaN skipped.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum(x: &[f32], scale: __m512, offset: f32) -> (f32, f32) {
    // A NaN becomes the floor, whose exponential vanishes.
    let (offset, floor) = (_mm512_set1_ps(offset), _mm512_set1_ps(-150.0));
    let (mut sum, mut top) = ([_mm512_setzero_ps(); 2], [floor; 2]);
    for at in (0..x.len()).step_by(2 * LANES) {
        for i in 0..2 {
            let t = _mm512_fmsub_ps(load(x, at + LANES * i), scale, offset);
            let t = _mm512_max_ps(t, floor);
            top[i] = _mm512_max_ps(t, top[i]);
            sum[i] = _mm512_add_ps(sum[i], exp2(t));
        }
    }
    let top = _mm512_reduce_max_ps(_mm512_max_ps(top[0], top[1]));
    (_mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1])), top)
}

/// `(reference, sum of 2^(scale x - reference))`, NaN skipped. The reference is `guess` unless some score
/// is far above it, or it is not finite; then it is the maximum.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[target_feature(enable = "avx512f")]
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
/// The CPU must have AVX-512 F; `est` must hold `lse2.len()` rows of `out.len()` at that stride.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn fold(est: &[f32], stride: usize, scale: f32, lse2: &[f32], out: &mut [f32]) {
    let (n, scale) = (out.len(), _mm512_set1_ps(scale));
    for at in (0..n).step_by(LANES) {
        let mut sum = _mm512_setzero_ps();
        for (g, &lse) in lse2.iter().enumerate() {
            let x = load(&est[g * stride..][..n], at);
            sum = _mm512_add_ps(sum, exp2(_mm512_fmsub_ps(x, scale, _mm512_set1_ps(fold_offset(lse)))));
        }
        let mask = if n - at >= LANES { !0 } else { (1u16 << (n - at)) - 1 };
        // SAFETY: the mask ends at the slice's end.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().add(at), mask, sum) }
    }
}
