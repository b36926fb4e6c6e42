//! AVX-512 BF16: both products of attention as bf16 pair dot products (`vdpbf16ps`), f32 sums.
//!
//! Differs from the f32 loops in three layouts: query rows and weights are bf16, zero-padded to
//! 32 and 64 elements, and output rows are kept in the order that interleaving two value rows
//! produces ([`unpermute`] undoes it once per query).

use std::arch::x86_64::*;

use super::avx512::{Avx512, sum16};
use super::loops::{self, Ahead, Share, Softmax, TILE};

/// Elements of one register.
const N: usize = 32;
/// Rows a padding token points to: enough zeros for the largest head dimension.
static ZEROS: [u16; crate::DIM_MAX + N] = [0; crate::DIM_MAX + N];

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

/// One block of `32 * C` channels for R rows. Two value rows are interleaved so that one pair dot
/// product adds both tokens.
#[inline(always)]
unsafe fn acc_block<const R: usize, const C: usize>(
    p: *const u8,
    ptrs: &[*const u8],
    ahead: Ahead,
    share: Share,
    c: usize,
    part: usize,
    alpha: *const f32,
    o: *mut f32,
    o_stride: usize,
) {
    // SAFETY: by the contract of `accumulate`.
    unsafe {
        let mut acc = [[[_mm512_setzero_ps(); 2]; C]; R];
        let zeros = ZEROS.as_ptr().cast::<u8>();
        for (i, pair) in ptrs.chunks(2).enumerate() {
            share.touch(ahead, i);
            let (a, b) = (pair[0], pair.get(1).copied().unwrap_or(zeros));
            for j in 0..C {
                let at = c + j * N;
                let (x, y) = if part > 0 && j + 1 == C {
                    (load_part(a, at, part), load_part(b, at, part))
                } else {
                    (load(a, at), load(b, at))
                };
                let (lo, hi) = (_mm512_unpacklo_epi16(x, y), _mm512_unpackhi_epi16(x, y));
                for r in 0..R {
                    let w = p.add(2 * (r * TILE + 2 * i)).cast::<i32>().read_unaligned();
                    let w = _mm512_set1_epi32(w);
                    acc[r][j][0] = dp(acc[r][j][0], w, lo);
                    acc[r][j][1] = dp(acc[r][j][1], w, hi);
                }
            }
        }
        for r in 0..R {
            let a = _mm512_set1_ps(*alpha.add(r));
            for j in 0..C {
                for h in 0..2 {
                    let at = o.add(r * o_stride + c + j * N + h * 16);
                    _mm512_storeu_ps(at, _mm512_fmadd_ps(a, _mm512_loadu_ps(at), acc[r][j][h]));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn acc_rows<const R: usize>(
    p: *const u8,
    ptrs: &[*const u8],
    ahead: Ahead,
    first: bool,
    dim: usize,
    alpha: *const f32,
    o: *mut f32,
    o_stride: usize,
) {
    // Fewer rows leave registers for longer runs of channels.
    let wide = if R <= 2 { 4 * N } else { 2 * N };
    let passes = dim.div_ceil(wide);
    let (mut c, mut pass) = (0, 0);
    // SAFETY: by the contract of `accumulate`; c stays below the padded dim.
    unsafe {
        while c < dim {
            let share = if first { Share::of_pass(pass, passes) } else { Share::NONE };
            if R <= 2 && c + 4 * N <= dim {
                acc_block::<R, 4>(p, ptrs, ahead, share, c, 0, alpha, o, o_stride);
                c += 4 * N;
            } else if c + 2 * N <= dim {
                acc_block::<R, 2>(p, ptrs, ahead, share, c, 0, alpha, o, o_stride);
                c += 2 * N;
            } else {
                let part = if c + N <= dim { 0 } else { dim - c };
                acc_block::<R, 1>(p, ptrs, ahead, share, c, part, alpha, o, o_stride);
                c += N;
            }
            pass += 1;
        }
    }
}

/// As [`loops::accumulate`], for bf16 rows and bf16 weights; output rows are interleaved.
///
/// # Safety
/// AVX-512 BF16 is available; pointers are valid for `dim` elements; weights behind the last
/// token of an odd tile are zero; rows of `o` are padded to a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn accumulate(
    p: *const u8,
    rows: usize,
    ptrs: &[*const u8],
    ahead: Ahead,
    dim: usize,
    alpha: *const f32,
    o: *mut f32,
    o_stride: usize,
) {
    let mut r = 0;
    // SAFETY: by the function's contract; r stays below `rows`.
    unsafe {
        while r < rows {
            let (p, a, o) = (p.add(2 * r * TILE), alpha.add(r), o.add(r * o_stride));
            match rows - r {
                1 => acc_rows::<1>(p, ptrs, ahead, r == 0, dim, a, o, o_stride),
                2 => acc_rows::<2>(p, ptrs, ahead, r == 0, dim, a, o, o_stride),
                3 => acc_rows::<3>(p, ptrs, ahead, r == 0, dim, a, o, o_stride),
                _ => acc_rows::<4>(p, ptrs, ahead, r == 0, dim, a, o, o_stride),
            }
            r += 4;
        }
    }
}

/// As [`loops::softmax`], and rounds the weights to bf16 into `p` (`[rows][TILE]`); the sums keep
/// the unrounded ones.
///
/// # Safety
/// AVX-512 BF16 is available; `p` has room for all rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn softmax(x: &mut Softmax, p: *mut u8) {
    // SAFETY: by the function's contract.
    unsafe {
        loops::softmax::<Avx512>(x);
        for r in 0..x.m.len() {
            for t in (0..x.n).step_by(16) {
                let w = _mm512_loadu_ps(x.s.as_ptr().add(r * TILE + t));
                let w = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(w));
                _mm256_storeu_si256(p.add(2 * (r * TILE + t)).cast(), w);
            }
        }
    }
}

/// Puts an output row back into channel order.
pub(crate) fn unpermute(row: &[f32], out: &mut [f32]) {
    for (c, o) in out.iter_mut().enumerate() {
        let (block, in_block) = (c / N, c % N);
        let (lane, e) = (in_block / 8, in_block % 8);
        *o = row[block * N + (e / 4) * 16 + lane * 4 + e % 4];
    }
}
