//! AVX-512 BF16: both products of attention as bf16 pair dot products (`vdpbf16ps`), f32 sums.
//!
//! Query rows are bf16, zero-padded to 32 elements, and output rows are kept in the order that
//! interleaving two value rows produces ([`unpermute`] undoes it once per query).

use std::arch::x86_64::*;

use super::avx512::sum16;
use super::fused::{self, Product, Weights};
use super::loops::Ahead;
use super::tile::Step;

/// Elements of one register.
const N: usize = 32;

#[inline(always)]
unsafe fn load(p: *const u8, at: usize) -> __m512i {
    // SAFETY: the caller vouches for 32 readable elements at `at`.
    unsafe { _mm512_loadu_si512(p.add(2 * at).cast()) }
}

#[inline(always)]
unsafe fn load_part(p: *const u8, at: usize, n: usize) -> __m512i {
    let mask = (1u32 << n).wrapping_sub(1);
    // SAFETY: masked lanes are not read.
    unsafe { _mm512_maskz_loadu_epi16(mask, p.add(2 * at).cast()) }
}

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

#[inline(always)]
unsafe fn dot_block<const R: usize, const T: usize>(
    q: *const u8,
    q_stride: usize,
    dim: usize,
    ptrs: *const *const u8,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: by the contract of `dots`.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); 16];
        let rows = *ptrs.cast::<[*const u8; T]>();
        let full = dim / N * N;
        let mut c = 0;
        while c < full {
            let mut k = [_mm512_setzero_si512(); T];
            for t in 0..T {
                k[t] = load(rows[t], c);
            }
            for r in 0..R {
                let x = load(q, r * q_stride + c);
                for t in 0..T {
                    acc[r * T + t] = dp(acc[r * T + t], x, k[t]);
                }
            }
            c += N;
        }
        if c < dim {
            let mut k = [_mm512_setzero_si512(); T];
            for t in 0..T {
                k[t] = load_part(rows[t], c, dim - c);
            }
            for r in 0..R {
                let x = load(q, r * q_stride + c);
                for t in 0..T {
                    acc[r * T + t] = dp(acc[r * T + t], x, k[t]);
                }
            }
        }
        store_sums::<R, T>(sum16(&acc), out, stride);
    }
}

/// Spreads sums `[R][T]` over R rows of scores.
#[inline(always)]
unsafe fn store_sums<const R: usize, const T: usize>(sums: __m512, out: *mut f32, stride: usize) {
    // SAFETY: the caller vouches for T writable scores in each of R rows.
    unsafe {
        match (R, T) {
            (_, 16) => _mm512_storeu_ps(out, sums),
            (2, 8) => {
                _mm256_storeu_ps(out, _mm512_castps512_ps256(sums));
                _mm256_storeu_ps(out.add(stride), _mm512_extractf32x8_ps::<1>(sums));
            }
            (3 | 4, 4) => {
                _mm_storeu_ps(out, _mm512_castps512_ps128(sums));
                _mm_storeu_ps(out.add(stride), _mm512_extractf32x4_ps::<1>(sums));
                _mm_storeu_ps(out.add(2 * stride), _mm512_extractf32x4_ps::<2>(sums));
                if R == 4 {
                    _mm_storeu_ps(out.add(3 * stride), _mm512_extractf32x4_ps::<3>(sums));
                }
            }
            _ => {
                let mut lanes = [0f32; 16];
                _mm512_storeu_ps(lanes.as_mut_ptr(), sums);
                for r in 0..R {
                    std::ptr::copy_nonoverlapping(&lanes[r * T], out.add(r * stride), T);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn dot_rows<const R: usize, const T: usize>(
    q: *const u8,
    q_stride: usize,
    dim: usize,
    ptrs: &[*const u8],
    ahead: Ahead,
    out: *mut f32,
    stride: usize,
) {
    let mut t = 0;
    // SAFETY: by the contract of `dots`; t stays inside `ptrs`.
    unsafe {
        while t + T <= ptrs.len() {
            ahead.touch(t, T);
            dot_block::<R, T>(q, q_stride, dim, ptrs.as_ptr().add(t), out.add(t), stride);
            t += T;
        }
        while t < ptrs.len() {
            dot_block::<R, 1>(q, q_stride, dim, ptrs.as_ptr().add(t), out.add(t), stride);
            t += 1;
        }
    }
}

/// As [`loops::dots`], for bf16 rows and bf16 queries (zero-padded to a multiple of 32).
///
/// # Safety
/// AVX-512 BF16 is available; pointers are valid for `dim` elements.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn dots(
    q: *const u8,
    q_stride: usize,
    rows: usize,
    dim: usize,
    ptrs: &[*const u8],
    ahead: Ahead,
    out: *mut f32,
    stride: usize,
) {
    let mut r = 0;
    // SAFETY: by the function's contract; r stays below `rows`.
    unsafe {
        while r < rows {
            let (x, o) = (q.add(2 * r * q_stride), out.add(r * stride));
            let ahead = if r == 0 { ahead } else { Ahead::NONE };
            match rows - r {
                1 => dot_rows::<1, 16>(x, q_stride, dim, ptrs, ahead, o, stride),
                2 => dot_rows::<2, 8>(x, q_stride, dim, ptrs, ahead, o, stride),
                3 => dot_rows::<3, 4>(x, q_stride, dim, ptrs, ahead, o, stride),
                _ => dot_rows::<4, 4>(x, q_stride, dim, ptrs, ahead, o, stride),
            }
            r += 4;
        }
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

/// As [`fused::attend`] for bf16 rows; output rows are interleaved.
///
/// # Safety
/// AVX-512 BF16 is available; otherwise as for [`fused::attend`].
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
