//! Products of bytes with `vpdpbusd`: four channels a lane, 64 products an instruction, four times as
//! many as in f32.
//!
//! The instruction multiplies unsigned by signed bytes. Targets are stored 128 too large, and sums begin
//! at `-128` times the sum of the row's elements, which takes that out again.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::nearest::{Product, RowStats, Sweep, sweep};

/// Rows and targets as bytes.
struct Bytes;

impl Product for Bytes {
    type S = Avx512;
    type Sum = __m512i;
    type X = __m512i;

    #[inline(always)]
    unsafe fn start(stats: &RowStats) -> __m512i {
        // SAFETY: AVX-512 VNNI is enabled, by the trait's contract (so below).
        unsafe { _mm512_set1_epi32(stats.start) }
    }
    #[inline(always)]
    unsafe fn row(p: *const u8) -> __m512i {
        // SAFETY: as above; four readable bytes.
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn panel(p: *const u32) -> __m512i {
        // SAFETY: as above; 16 readable words.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add(sum: __m512i, row: __m512i, panel: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_dpbusd_epi32(sum, panel, row) }
    }
    #[inline(always)]
    unsafe fn float(sum: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(sum) }
    }
}

/// As [`sweep`](super::nearest::sweep) for bytes, panels of 32.
///
/// # Safety
/// AVX-512 VNNI is available; otherwise as there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn bytes(x: &mut Sweep) {
    // SAFETY: by the function's contract.
    unsafe { sweep::<Bytes, 12, 2>(x) }
}

/// Largest code: codes are symmetric.
const TOP: f32 = 127.0;
/// Lanes of a register.
const N: usize = 16;

/// Rounds `row - middle` to multiples of a 127th of its largest magnitude.
///
/// # Safety
/// AVX-512 is available.
///
/// # Panics
/// If the slices differ in length, or are no whole registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn round(row: &[f32], middle: &[f32], out: &mut [i8]) -> RowStats {
    assert!(row.len().is_multiple_of(N) && row.len() == middle.len() && row.len() == out.len());
    // SAFETY: all three have `row.len()` elements.
    let load = |at: usize| unsafe {
        _mm512_sub_ps(
            _mm512_loadu_ps(row.as_ptr().add(at)),
            _mm512_loadu_ps(middle.as_ptr().add(at)),
        )
    };
    let mut top = _mm512_setzero_ps();
    for at in (0..row.len()).step_by(N) {
        top = _mm512_max_ps(top, _mm512_abs_ps(load(at)));
    }
    let top = _mm512_reduce_max_ps(top);
    let scale = top / TOP;
    // Where the quotient would not be finite, nothing is kept: what is lost says so.
    let inverse = if top > f32::MIN_POSITIVE * TOP { TOP / top } else { 0.0 };
    let (mut sum, mut lost, mut size) =
        (_mm512_setzero_si512(), _mm512_setzero_ps(), _mm512_setzero_ps());
    for at in (0..row.len()).step_by(N) {
        let x = load(at);
        let codes = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
        let bound = _mm512_set1_epi32(TOP as i32);
        let codes = _mm512_min_epi32(codes, bound);
        let codes = _mm512_max_epi32(codes, _mm512_sub_epi32(_mm512_setzero_si512(), bound));
        sum = _mm512_add_epi32(sum, codes);
        let kept = _mm512_mul_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(scale));
        let gone = _mm512_sub_ps(x, kept);
        lost = _mm512_fmadd_ps(gone, gone, lost);
        size = _mm512_fmadd_ps(kept, kept, size);
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().add(at).cast(), _mm512_cvtepi32_epi8(codes)) }
    }
    // Far more than f32 rounds off in sums of at most 576 squares.
    let norm = |squares: __m512| _mm512_reduce_add_ps(squares).sqrt() * (1.0 + 1e-4);
    let start = -128 * _mm512_reduce_add_epi32(sum);
    RowStats { scale, lost: norm(lost), size: norm(size), start }
}
