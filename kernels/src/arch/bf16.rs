//! AVX-512 BF16: both products of attention as bf16 pair dot products (`vdpbf16ps`), f32 sums.
//!
//! Query rows are bf16, zero-padded to 32 elements, and output rows are kept in the order that
//! interleaving two value rows produces ([`unpermute`] undoes it once per query).

use std::arch::x86_64::*;

use super::fused;
use super::product::{Product, Weights};
use super::tile::{Dots, Step};

/// Elements of one register.
const N: usize = 32;

/// 32 elements from `at` on.
///
/// # Safety
/// The CPU must have AVX-512 F; `p` must be readable for 32 bf16 from element `at` on.
#[inline(always)]
unsafe fn load(p: *const u8, at: usize) -> __m512i {
    // SAFETY: the caller vouches for 32 readable elements at `at`.
    unsafe { _mm512_loadu_si512(p.add(2 * at).cast()) }
}

/// The last `n < 32` elements from `at` on, then zeros.
///
/// # Safety
/// The CPU must have AVX-512 F and BW; `p` must be readable for `n < 32` bf16 from element `at` on.
#[inline(always)]
unsafe fn load_part(p: *const u8, at: usize, n: usize) -> __m512i {
    let mask = (1u32 << n).wrapping_sub(1);
    // SAFETY: masked lanes are not read.
    unsafe { _mm512_maskz_loadu_epi16(mask, p.add(2 * at).cast()) }
}

/// Adds the dot products of pairs.
///
/// # Safety
/// The CPU must have AVX-512 F and BF16.
#[inline(always)]
unsafe fn dp(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: the caller enabled avx512bf16; both types are 512 plain bits.
    unsafe {
        _mm512_dpbf16_ps(
            acc,
            std::mem::transmute::<__m512i, __m512bh>(a),
            std::mem::transmute::<__m512i, __m512bh>(b),
        )
    }
}

/// Rows of bf16 multiplied as pairs: K and V, queries and weights are bf16, sums are f32. Two value
/// rows are interleaved so that one pair dot product adds both tokens.
pub(crate) struct Pairs;

impl Product for Pairs {
    const STEP: usize = N;
    const SIZE: usize = 2;
    const ROWS: usize = 2;
    type X = __m512i;

    #[inline(always)]
    unsafe fn load_q(q: *const u8, at: usize) -> __m512i {
        // SAFETY: by the trait's contract (so below).
        unsafe { load(q, at) }
    }
    #[inline(always)]
    unsafe fn load_k(row: *const u8, at: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { load(row, at) }
    }
    #[inline(always)]
    unsafe fn load_k_part(row: *const u8, at: usize, n: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { load_part(row, at, n) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512, q: __m512i, k: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { dp(acc, q, k) }
    }
    #[inline(always)]
    unsafe fn load_v(v: *const *const u8, at: usize, n: usize) -> [__m512i; 2] {
        // SAFETY: as above.
        unsafe {
            let (a, b) = (*v, *v.add(1));
            let (x, y) = if n == N {
                (load(a, at), load(b, at))
            } else {
                (load_part(a, at, n), load_part(b, at, n))
            };
            [_mm512_unpacklo_epi16(x, y), _mm512_unpackhi_epi16(x, y)]
        }
    }
    #[inline(always)]
    unsafe fn put_weights(to: &mut Weights, i: usize, w: __m512) {
        // SAFETY: as above; four halves of a register fit into the buffer.
        unsafe {
            let w = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(w));
            _mm256_storeu_si256(to.0.as_mut_ptr().add(32 * i).cast(), w);
        }
    }
    #[inline(always)]
    unsafe fn weights(from: &Weights, row: usize, i: usize) -> __m512i {
        // SAFETY: as above; rows and pairs of a round.
        unsafe {
            let at = from.0.as_ptr().cast::<i32>().add(i / 2 * 8 + row * 2 + i % 2);
            _mm512_set1_epi32(*at)
        }
    }
}

/// As [`fused::dots`] for bf16 rows and bf16 queries.
///
/// # Safety
/// The CPU must have AVX-512 F, BW, DQ, VL and BF16; otherwise as for [`fused::dots`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn dots(x: &Dots) {
    // SAFETY: by the function's contract.
    unsafe { fused::dots::<Pairs>(x) }
}

/// As [`fused::attend`] for bf16 rows; output rows are interleaved.
///
/// # Safety
/// The CPU must have AVX-512 F, BW, DQ, VL and BF16; otherwise as for [`fused::attend`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn attend(x: &mut Step) {
    // SAFETY: by the function's contract.
    unsafe { fused::attend::<Pairs>(x) }
}

/// Puts an output row back into channel order.
pub(crate) fn unpermute(row: &[f32], out: &mut [f32]) {
    for (c, o) in out.iter_mut().enumerate() {
        let (block, in_block) = (c / N, c % N);
        let (lane, e) = (in_block / 8, in_block % 8);
        *o = row[block * N + (e / 4) * 16 + lane * 4 + e % 4];
    }
}
