//! Rounding queries to int8 for one tile with AVX-512, and the numbers that turn dot products with them
//! into estimates and bounds.

use std::arch::x86_64::*;

use crate::DIM_MAX;
use crate::score::{CODE_SLACK, Job, QUERY_SHIFT, STEP_CODES, TINY, half_cell, slack};
use crate::summary::{BoxedSpec, OPEN, WIDTH_SHIFT};

/// Query heads of one pass.
pub(super) const HEADS: usize = 4;
/// Channels are rounded to int8 in blocks of 64: four vectors of f32 become one of bytes.
pub(super) const BLOCK: usize = 64;
/// Stride of the query, and the size of everything below that has a value per channel.
pub(super) const CHANNELS: usize = DIM_MAX.next_multiple_of(BLOCK);

/// The rounded queries of one tile.
pub(super) type Rounded = [[__m512i; CHANNELS / BLOCK]; HEADS];

/// Queries come in times 2^60 and widths times 2^-113, as their codes give them without a bias: no product
/// overflows or vanishes in between.
const SHIFT: f32 = pow2(WIDTH_SHIFT - QUERY_SHIFT);

const fn pow2(n: u32) -> f32 {
    f32::from_bits((127 + n) << 23)
}

/// Widths (times 2^-113) and middles (in eighths of the width) of the boxes of 16 channels.
///
/// # Safety
/// The CPU must have AVX-512 F, BW, DQ and VL; `cell` must be readable for `32 * (block + 1)`
/// bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn boxes(cell: *const u8, block: usize) -> (__m512, __m512) {
    // SAFETY: the caller's cell holds a box word for every channel of the block.
    let words = unsafe { _mm512_cvtepi16_epi32(_mm256_loadu_si256(cell.add(32 * block).cast())) };
    let width = _mm512_and_si512(_mm512_slli_epi32(words, 21), _mm512_set1_epi32(0x7f << 21));
    let middle = _mm512_cvtepi32_ps(_mm512_srai_epi32(words, 7));
    (_mm512_castsi512_ps(width), middle)
}

/// The four vectors reduced to one number each, by the same pairwise steps for all.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn reduce(v: [__m512; HEADS], op: impl Fn(__m256, __m256) -> __m256) -> __m128 {
    let half = |v| op(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    let [a, b, c, d] = v.map(half);
    let ab = op(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let cd = op(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    let all = op(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    let high = _mm256_castps128_ps256(_mm256_extractf128_ps(all, 1));
    _mm256_castps256_ps128(op(all, high))
}

/// `v` with as many vectors as one pass has heads.
#[inline]
#[target_feature(enable = "avx512f")]
fn filled<const H: usize>(v: [__m512; H]) -> [__m512; HEADS] {
    let mut all = [_mm512_setzero_ps(); HEADS];
    all[..H].copy_from_slice(&v);
    all
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn sum<const H: usize>(v: [__m512; H]) -> __m128 {
    reduce(filled(v), |a, b| _mm256_add_ps(a, b))
}

/// Largest sum of width code and size code of each head, see [`crate::score`].
///
/// # Safety
/// The CPU must have AVX-512 F, BW and VL; `cell` must be readable for the boxes of the spec,
/// `2 * padded` bytes, and `job.q_stride` be a multiple of [`BLOCK`] that is not below `padded`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn largest<const H: usize>(job: &Job, cell: *const u8, first: usize) -> __m128i {
    let mut top = [_mm_setzero_si128(); HEADS];
    let mut wide = [_mm512_setzero_si512(); H];
    let padded = job.spec.padded();
    let sizes = job.codes.relative[first * job.q_stride..][..H * job.q_stride].as_ptr();
    for at in (0..padded).step_by(BLOCK) {
        let left = (padded - at).min(BLOCK);
        let words = cell.wrapping_add(2 * at).cast::<i16>();
        // SAFETY: the masks end at the last box word.
        let (low, high) = unsafe {
            let valid = !0u64 >> (BLOCK - left);
            (
                _mm512_maskz_loadu_epi16(valid as u32, words),
                _mm512_maskz_loadu_epi16((valid >> 32) as u32, words.wrapping_add(32)),
            )
        };
        let both = _mm512_mask_mov_epi8(_mm512_slli_epi16(high, 8), 0x5555_5555_5555_5555, low);
        let width = _mm512_and_si512(both, _mm512_set1_epi8(0x7f));
        for (h, wide) in wide.iter_mut().enumerate() {
            // SAFETY: rows of codes are padded to whole blocks.
            let sizes = unsafe { _mm512_loadu_si512(sizes.add(h * job.q_stride + at).cast()) };
            *wide = _mm512_max_epu8(*wide, _mm512_add_epi8(width, sizes));
        }
    }
    for (top, wide) in top.iter_mut().zip(wide) {
        let half =
            _mm256_max_epu8(_mm512_castsi512_si256(wide), _mm512_extracti64x4_epi64(wide, 1));
        *top = _mm_max_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    }
    let [a, b, c, d] = top;
    let ab = _mm_max_epu8(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    let cd = _mm_max_epu8(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
    let all = _mm_max_epu8(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
    let all = _mm_max_epu8(all, _mm_srli_epi32(all, 16));
    _mm_and_si128(_mm_max_epu8(all, _mm_srli_epi32(all, 8)), _mm_set1_epi32(0xff))
}

/// `crate::score`'s rounding steps and their inverses, for four heads.
///
/// # Safety
/// As for [`largest`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn steps<const H: usize>(
    job: &Job,
    cell: *const u8,
    first: usize,
) -> (__m128, __m128) {
    let offset = &job.codes.offset[first..][..HEADS];
    // SAFETY: passed on from the caller; four offsets.
    let code = unsafe {
        _mm_add_epi32(largest::<H>(job, cell, first), _mm_loadu_si128(offset.as_ptr().cast()))
    };
    let code = _mm_max_epi32(code, _mm_set1_epi32(STEP_CODES.0));
    let code = _mm_slli_epi32(_mm_min_epi32(code, _mm_set1_epi32(STEP_CODES.1)), 21);
    let largest = _mm_mul_ps(_mm_castsi128_ps(code), _mm_set1_ps(CODE_SLACK));
    let top = _mm_set1_ps(127.0);
    (_mm_div_ps(largest, top), _mm_div_ps(top, largest))
}

/// Statistics that a pass computes: none, the typical error, or that and the bound.
pub(super) const PLAIN: u8 = 0;
pub(super) const SIGMA: u8 = 1;
pub(super) const BOUND: u8 = 2;

/// What a tile's estimates need, one lane per head; see `crate::score::Stage`.
pub(super) struct Stages {
    pub(super) base: __m128,
    pub(super) step: __m128,
    pub(super) sum: __m128,
    /// Spread, rounding, size (with [`BOUND`]) and square (from [`SIGMA`]).
    stats: [__m128; 4],
}

/// `Stage::close` for four heads.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn closed(base: __m128, step: __m128, open: bool) -> __m128 {
    let limit = _mm_set1_ps(f32::INFINITY);
    let size = _mm_andnot_ps(_mm_set1_ps(-0.0), base);
    let fine =
        _mm_cmp_ps_mask::<_CMP_LT_OQ>(step, limit) & _mm_cmp_ps_mask::<_CMP_LT_OQ>(size, limit);
    let fine = if open { 0 } else { fine };
    _mm_mask_mov_ps(_mm_set1_ps(f32::NAN), fine, base)
}

/// Rounds the queries of `H` heads for one tile. Inside a block of 64 channels, the 4 channels of
/// group g are the dword `4 (g % 4) + g / 4`: the order in which the packs leave them.
///
/// # Safety
/// The CPU must have AVX-512 F, BW, DQ, VL and VNNI; `cell` must be readable for the boxes of the
/// spec, `2 * padded` bytes, and `job.q_stride` be a multiple of [`BLOCK`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[expect(clippy::needless_range_loop, reason = "b counts blocks of the cell and the queries, too")]
pub(super) unsafe fn stage<const H: usize, const STATS: u8>(
    job: &Job,
    cell: *const u8,
    first: usize,
    (step, inverse): (__m128, __m128),
    rounded: &mut Rounded,
) -> Stages {
    let q = job.scaled[first * job.q_stride..][..H * job.q_stride].as_ptr();
    // SAFETY: a cell starts with the word of channel 0.
    let open = unsafe { cell.cast::<u16>().read_unaligned() } == OPEN;
    let spread = |v: __m128, by: f32| -> [__m512; HEADS] {
        let v = _mm512_castps128_ps512(_mm_mul_ps(v, _mm_set1_ps(by)));
        [0, 1, 2, 3].map(|h| _mm512_permutexvar_ps(_mm512_set1_epi32(h), v))
    };
    let (steps, inverse) = (spread(step, 1.0), spread(inverse, SHIFT));
    let zero = [_mm512_setzero_ps(); H];
    let (mut base, mut size, mut extent, mut rounding, mut square) = (zero, zero, zero, zero, zero);
    let mut ones = [_mm512_setzero_si512(); H];
    let blocks = job.spec.padded() / 16;
    for b in 0..job.q_stride / BLOCK {
        // A block of 64 channels at a time, for all heads.
        let mut sides = [(_mm512_setzero_ps(), _mm512_setzero_ps()); 4];
        for (i, side) in sides.iter_mut().enumerate() {
            if 4 * b + i < blocks {
                // SAFETY: a block of the cell.
                *side = unsafe { boxes(cell, 4 * b + i) };
            }
        }
        for h in 0..H {
            let mut n = [_mm512_setzero_si512(); 4];
            for (i, n) in n.iter_mut().enumerate() {
                let (w, m) = sides[i];
                // SAFETY: rows of q are padded to whole blocks.
                let q = unsafe { _mm512_loadu_ps(q.add(h * job.q_stride + BLOCK * b + 16 * i)) };
                let t = _mm512_mul_ps(q, w);
                base[h] = _mm512_fmadd_ps(t, m, base[h]);
                *n = _mm512_cvtps_epi32(_mm512_mul_ps(t, inverse[h]));
                let t = _mm512_mul_ps(t, _mm512_set1_ps(SHIFT));
                if STATS >= SIGMA {
                    square[h] = _mm512_fmadd_ps(t, t, square[h]);
                }
                if STATS == BOUND {
                    let error = _mm512_fnmadd_ps(steps[h], _mm512_cvtepi32_ps(*n), t);
                    rounding[h] = _mm512_add_ps(rounding[h], _mm512_abs_ps(error));
                    extent[h] = _mm512_add_ps(extent[h], _mm512_abs_ps(t));
                    size[h] = _mm512_add_ps(size[h], _mm512_abs_ps(_mm512_mul_ps(t, m)));
                }
            }
            let (low, high) = (_mm512_packs_epi32(n[0], n[1]), _mm512_packs_epi32(n[2], n[3]));
            let packed = _mm512_packs_epi16(low, high);
            rounded[h][b] = packed;
            ones[h] = _mm512_dpbusd_epi32(ones[h], _mm512_set1_epi8(1), packed);
        }
    }
    let none = _mm_setzero_ps();
    let stats = match STATS {
        PLAIN => [none; 4],
        SIGMA => [none, none, none, sum(square)],
        _ => {
            let size = _mm_mul_ps(sum(size), _mm_set1_ps(0.125));
            [sum(extent), sum(rounding), size, sum(square)]
        }
    };
    let base = _mm_mul_ps(sum(base), _mm_set1_ps(0.125 * SHIFT));
    let base = closed(base, step, open);
    // Sums of int8 are exact in f32.
    Stages { base, step, sum: sum(ones.map(|v| _mm512_cvtepi32_ps(v))), stats }
}

/// `Stage::bound` and `Stage::sigma` for four heads.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
pub(super) fn errors(spec: &BoxedSpec, s: &Stages, planes: u32) -> ([f32; HEADS], [f32; HEADS]) {
    let [spread, rounding, size, square] = s.stats;
    let (half, slack) = (_mm_set1_ps(half_cell(planes)), _mm_set1_ps(slack(spec)));
    let model = _mm_mul_ps(rounding, _mm_sub_ps(_mm_set1_ps(0.5), half));
    let terms = _mm_add_ps(_mm_add_ps(spread, size), rounding);
    let e = _mm_fmadd_ps(spread, half, _mm_fmadd_ps(terms, slack, model));
    let e = _mm_add_ps(e, _mm_set1_ps(TINY));
    let root = _mm_sqrt_ps(_mm_mul_ps(square, _mm_set1_ps(1.0 / 12.0)));
    let sigma = _mm_mul_ps(_mm_mul_ps(root, _mm_set1_ps(2.0)), half);
    // What is not a number, or whose estimate is none, is unbounded.
    let known = |v| _mm_cmp_ps_mask::<_CMP_ORD_Q>(v, s.base);
    let known = |v| lanes(_mm_mask_mov_ps(_mm_set1_ps(f32::INFINITY), known(v), v));
    (known(e), known(sigma))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn lanes(v: __m128) -> [f32; HEADS] {
    let mut out = [0f32; HEADS];
    // SAFETY: four numbers.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), v) }
    out
}
