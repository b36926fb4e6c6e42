//! Boxed scores with AVX-512 and int8 dot products (`vpdpbusd`: 16 tokens x 4 channels).
//!
//! Up to [`HEADS`] query heads share a pass over the codes, with one accumulator per head and token
//! field: 16 of 32 registers at 4 heads, enough to hide the latency of the dot product. Codes stay where
//! they are inside their byte (a mask per field, no shift), so each field's sums come out scaled by a
//! power of two that the final conversion to f32 takes back.

use std::arch::x86_64::*;

use crate::DIM_MAX;
use crate::score::{CODE_SLACK, Job, QUERY_SHIFT, STEP_CODES, Stage};
use crate::summary::{OPEN, WIDTH_SHIFT};

/// Query heads of one pass.
const HEADS: usize = 4;
/// Channels are rounded to int8 in blocks of 64: four vectors of f32 become one of bytes.
const BLOCK: usize = 64;
/// Stride of the query, and the size of everything below that has a value per channel.
const CHANNELS: usize = DIM_MAX.next_multiple_of(BLOCK);

/// The rounded queries of one tile.
type Rounded = [[__m512i; CHANNELS / BLOCK]; HEADS];
type Sums<const H: usize> = [[__m512i; 4]; H];

/// Scales of the four token fields inside the bytes of planes 1+2, and inside assembled 3-bit codes
/// and later planes.
const PAIR: [f32; 4] = [1.0, 1.0 / 4.0, 1.0 / 16.0, 1.0 / 64.0];
const TRIPLE: [f32; 4] = [1.0, 1.0 / 2.0, 1.0 / 16.0, 1.0 / 32.0];

/// Which codes a pass multiplies.
const PAIRS: u8 = 2;
const TRIPLES: u8 = 3;
const BITS: u8 = 1;

/// Queries come in times 2^60 and widths times 2^-113, as their codes give them without a bias: no product
/// overflows or vanishes in between.
const SHIFT: f32 = pow2(WIDTH_SHIFT - QUERY_SHIFT);

const fn pow2(n: u32) -> f32 {
    f32::from_bits((127 + n) << 23)
}

/// Widths (times 2^-113) and middles (in eighths of the width) of the boxes of 16 channels.
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
        let half = _mm256_max_epu8(_mm512_castsi512_si256(wide), _mm512_extracti64x4_epi64(wide, 1));
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
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn steps<const H: usize>(job: &Job, cell: *const u8, first: usize) -> (__m128, __m128) {
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

/// What a tile's estimates need, one lane per head; see [`Stage`].
struct Stages {
    base: __m128,
    step: __m128,
    sum: __m128,
    /// Spread, rounding, size, square; only with statistics.
    stats: [__m128; 4],
}

/// [`Stage::close`] for four heads.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn closed(base: __m128, step: __m128, open: bool) -> __m128 {
    let limit = _mm_set1_ps(f32::INFINITY);
    let size = _mm_andnot_ps(_mm_set1_ps(-0.0), base);
    let fine = _mm_cmp_ps_mask::<_CMP_LT_OQ>(step, limit) & _mm_cmp_ps_mask::<_CMP_LT_OQ>(size, limit);
    let fine = if open { 0 } else { fine };
    _mm_mask_mov_ps(_mm_set1_ps(f32::NAN), fine, base)
}

/// Rounds the queries of `H` heads for one tile. Inside a block of 64 channels, the 4 channels of
/// group g are the dword `4 (g % 4) + g / 4`: the order in which the packs leave them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn stage<const H: usize, const STATS: bool>(
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
                if STATS {
                    let t = _mm512_mul_ps(t, _mm512_set1_ps(SHIFT));
                    let error = _mm512_fnmadd_ps(steps[h], _mm512_cvtepi32_ps(*n), t);
                    rounding[h] = _mm512_add_ps(rounding[h], _mm512_abs_ps(error));
                    extent[h] = _mm512_add_ps(extent[h], _mm512_abs_ps(t));
                    size[h] = _mm512_add_ps(size[h], _mm512_abs_ps(_mm512_mul_ps(t, m)));
                    square[h] = _mm512_fmadd_ps(t, t, square[h]);
                }
            }
            let (low, high) = (_mm512_packs_epi32(n[0], n[1]), _mm512_packs_epi32(n[2], n[3]));
            let packed = _mm512_packs_epi16(low, high);
            rounded[h][b] = packed;
            ones[h] = _mm512_dpbusd_epi32(ones[h], _mm512_set1_epi8(1), packed);
        }
    }
    let stats = if STATS {
        let size = _mm_mul_ps(sum(size), _mm_set1_ps(0.125));
        [sum(extent), sum(rounding), size, sum(square)]
    } else {
        [_mm_setzero_ps(); 4]
    };
    let base = _mm_mul_ps(sum(base), _mm_set1_ps(0.125 * SHIFT));
    let base = closed(base, step, open);
    // Sums of int8 are exact in f32.
    Stages { base, step, sum: sum(ones.map(|v| _mm512_cvtepi32_ps(v))), stats }
}

/// The stages as numbers, for bounds.
#[inline]
#[target_feature(enable = "avx512f")]
fn numbers<const H: usize>(s: &Stages) -> [Stage; H] {
    let lanes = |v: __m128| {
        let mut out = [0f32; HEADS];
        // SAFETY: four numbers.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), v) }
        out
    };
    let (base, step, sum) = (lanes(s.base), lanes(s.step), lanes(s.sum));
    let [spread, rounding, size, square] = s.stats.map(lanes);
    std::array::from_fn(|h| Stage {
        base: base[h],
        step: step[h],
        sum: sum[h] as i32,
        spread: spread[h],
        rounding: rounding[h],
        size: size[h],
        square: square[h],
    })
}

/// `a` where the mask has ones, else `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn select(mask: i8, a: __m512i, b: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32(_mm512_set1_epi8(mask), a, b, 0xca)
}

/// The codes of one channel group, one vector of 16 tokens x 4 channels per token field, each
/// scaled as `PAIR` or `TRIPLE` says.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn fields<const KIND: u8>(planes: *const u8, bits: *const u8, group: usize) -> [__m512i; 4] {
    let and = |x, mask: i8| _mm512_and_si512(x, _mm512_set1_epi8(mask));
    let pair = if KIND == BITS {
        _mm512_setzero_si512()
    } else {
        // SAFETY: the caller's planes 1+2 hold 64 bytes per group.
        unsafe { _mm512_loadu_si512(planes.add(64 * group).cast()) }
    };
    if KIND == PAIRS {
        return [and(pair, 0x03), and(pair, 0x0c), and(pair, 0x30), and(pair, 0xc0u8 as i8)];
    }
    // SAFETY: the caller's plane holds 64 bytes per two groups.
    let bit = unsafe { _mm512_loadu_si512(bits.add(64 * (group / 2)).cast()) };
    let bit = if group % 2 == 0 { bit } else { _mm512_srli_epi16(bit, 2) };
    if KIND == BITS {
        return [and(bit, 0x01), and(bit, 0x02), and(bit, 0x10), and(bit, 0x20)];
    }
    // Fields 0 and 2 lie one bit higher than stored, to make room below for the third bit.
    let even = select(0x66, _mm512_slli_epi16(pair, 1), bit);
    let odd = select(0xccu8 as i8, pair, bit);
    [and(even, 0x07), and(odd, 0x0e), and(even, 0x70), and(odd, 0xe0u8 as i8)]
}

/// Asks for a line that the next tile will read; any address is allowed.
#[inline]
#[target_feature(enable = "sse")]
fn prefetch(line: *const u8) {
    _mm_prefetch(line.cast(), _MM_HINT_T1);
}

/// Dot products of the rounded queries with the codes, per head and token field.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn sums<const H: usize, const KIND: u8>(
    padded: usize,
    [boxes, planes, bits]: [*const u8; 3],
    rounded: &Rounded,
    ahead: isize,
) -> Sums<H> {
    let mut acc = [[_mm512_setzero_si512(); 4]; H];
    for b in 0..padded / 16 {
        // Boxes take half a line per 16 channels, right before the planes.
        prefetch(boxes.wrapping_offset(ahead + 32 * b as isize));
        for l in 0..4 {
            let group = 4 * b + l;
            if KIND != BITS {
                prefetch(planes.wrapping_offset(ahead + 64 * group as isize));
            }
            if KIND != PAIRS && l % 2 == 0 {
                prefetch(bits.wrapping_offset(ahead + 32 * group as isize));
            }
            // SAFETY: group counts groups of the cell.
            let codes = unsafe { fields::<KIND>(planes, bits, group) };
            for h in 0..H {
                let at = 16 * (b / 4) + 4 * l + b % 4;
                // SAFETY: `at` is a dword of the padded row.
                let q = unsafe { rounded[h].as_ptr().cast::<i32>().add(at).read() };
                let q = _mm512_set1_epi32(q);
                for f in 0..4 {
                    acc[h][f] = _mm512_dpbusd_epi32(acc[h][f], codes[f], q);
                }
            }
        }
    }
    acc
}

/// Factors per token field and head, and offsets per head, of the dot products in the estimates.
struct Affine {
    factor: [[f32; HEADS]; 4],
    offset: [f32; HEADS],
}

/// [`Stage::affine`] (or with [`BITS`] `affine_bit`) of four heads, for scaled fields.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn affine<const KIND: u8>(s: &Stages, level: u32) -> Affine {
    let cells = (1u32 << level) as f32;
    let factor = _mm_mul_ps(s.step, _mm_set1_ps(1.0 / cells));
    let middle = if KIND == BITS { 0.5 } else { (cells - 1.0) * 0.5 };
    let base = if KIND == BITS { _mm_setzero_ps() } else { s.base };
    let offset = _mm_sub_ps(base, _mm_mul_ps(_mm_mul_ps(factor, _mm_set1_ps(middle)), s.sum));
    let mut out = Affine { factor: [[0.0; HEADS]; 4], offset: [0.0; HEADS] };
    let scales = if KIND == PAIRS { PAIR } else { TRIPLE };
    // SAFETY: four numbers each.
    unsafe {
        for (f, scale) in out.factor.iter_mut().zip(scales) {
            _mm_storeu_ps(f.as_mut_ptr(), _mm_mul_ps(factor, _mm_set1_ps(scale)));
        }
        _mm_storeu_ps(out.offset.as_mut_ptr(), offset);
    }
    out
}

/// Writes, or with [`BITS`] adds to, the estimates of one head.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish<const KIND: u8>(acc: &[__m512i; 4], affine: &Affine, head: usize, est: *mut f32) {
    let offset = _mm512_set1_ps(affine.offset[head]);
    for f in 0..4 {
        let at = est.wrapping_add(16 * f);
        let factor = _mm512_set1_ps(affine.factor[f][head]);
        // SAFETY: the caller's estimates hold 64 f32.
        unsafe {
            let base = if KIND == BITS { _mm512_add_ps(_mm512_loadu_ps(at), offset) } else { offset };
            _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[f]), factor, base));
        }
    }
}

/// One pass: which tile, and the first of its heads.
#[derive(Clone, Copy)]
struct Unit {
    tile: usize,
    first: usize,
}

/// The passes of a call over `H` heads at a time: all tiles or the listed ones, and of each tile the heads
/// `from..to`, a multiple of `H`.
struct Sweep<'a> {
    job: &'a Job<'a>,
    tiles: Option<&'a [u32]>,
    from: usize,
    to: usize,
}

impl Sweep<'_> {
    fn tiles(&self) -> usize {
        self.tiles.map_or(self.job.cells.len(), <[u32]>::len)
    }

    fn tile(&self, i: usize) -> usize {
        let i = i.min(self.tiles() - 1);
        self.tiles.map_or(i, |t| t[i] as usize)
    }

    /// Scores with planes 1+2 ([`PAIRS`]) or 1+2+3 ([`TRIPLES`]), or adds plane `level` ([`BITS`]).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn run<const H: usize, const KIND: u8, const STATS: bool>(&self, level: u32) {
        let passes = (self.to - self.from) / H;
        let units = self.tiles() * passes;
        let unit = |i: usize| Unit { tile: self.tile(i / passes), first: self.from + i % passes * H };
        if units == 0 {
            return;
        }
        let mut rounded: Rounded = [[_mm512_setzero_si512(); CHANNELS / BLOCK]; HEADS];
        let cell = |u: Unit| self.job.cells.cell(u.tile);
        // SAFETY: passed on from the caller.
        unsafe {
            let mut ready = steps::<H>(self.job, cell(unit(0)), self.from);
            for i in 0..units {
                let (u, next) = (unit(i), unit((i + 1).min(units - 1)));
                let stages = stage::<H, STATS>(self.job, cell(u), u.first, ready, &mut rounded);
                // One tile ahead: a long chain of dependent steps that overlaps with the products.
                ready = steps::<H>(self.job, cell(next), next.first);
                let ahead = self.job.cells.cell(self.tile(i / passes + 2)) as isize - cell(u) as isize;
                self.heads::<H, KIND, STATS>(u, level, ahead, &stages, &rounded);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn heads<const H: usize, const KIND: u8, const STATS: bool>(
        &self,
        u: Unit,
        level: u32,
        ahead: isize,
        stages: &Stages,
        rounded: &Rounded,
    ) {
        let job = self.job;
        let cell = job.cells.cell(u.tile);
        let planes = cell.wrapping_add(job.spec.box_bytes());
        let later = level.max(3) as usize - 1;
        let bits = planes.wrapping_add(job.spec.plane_bytes() * later);
        // SAFETY: cells and outputs by the caller's promise.
        unsafe {
            let affine = affine::<KIND>(stages, level);
            let acc = sums::<H, KIND>(job.spec.padded(), [cell, planes, bits], rounded, ahead);
            for (h, acc) in acc.iter().enumerate() {
                finish::<KIND>(acc, &affine, h, job.est(u.tile, u.first + h));
            }
            if STATS {
                job.write_stats(u.tile, u.first, &numbers::<H>(stages), level);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn dispatch<const KIND: u8, const STATS: bool>(&self, heads: usize, level: u32) {
        // SAFETY: passed on from the caller.
        unsafe {
            match heads {
                1 => self.run::<1, KIND, STATS>(level),
                2 => self.run::<2, KIND, STATS>(level),
                3 => self.run::<3, KIND, STATS>(level),
                _ => self.run::<4, KIND, STATS>(level),
            }
        }
    }
}

/// Sweeps over as many heads at a time as fit, then over the rest.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn sweep<const KIND: u8, const STATS: bool>(job: &Job, tiles: Option<&[u32]>, level: u32) {
    let even = job.heads / HEADS * HEADS;
    // SAFETY: passed on from the caller.
    unsafe {
        if even > 0 {
            Sweep { job, tiles, from: 0, to: even }.dispatch::<KIND, STATS>(HEADS, level);
        }
        if even < job.heads {
            let rest = job.heads - even;
            Sweep { job, tiles, from: even, to: job.heads }.dispatch::<KIND, STATS>(rest, level);
        }
    }
}

/// Estimates of all tiles.
///
/// # Safety
/// The CPU must have AVX-512 with VNNI; cells and outputs of the job must be valid.
pub(crate) unsafe fn score(job: &Job, planes: u32) {
    // SAFETY: passed on from the caller.
    unsafe {
        match (planes, job.wants_stats()) {
            (2, false) => sweep::<PAIRS, false>(job, None, 2),
            (2, true) => sweep::<PAIRS, true>(job, None, 2),
            (3, true) => sweep::<TRIPLES, true>(job, None, 3),
            _ => sweep::<TRIPLES, false>(job, None, 3),
        }
        if planes == 4 {
            add(job, None, 4);
        }
    }
}

/// Adds one plane to the listed tiles.
///
/// # Safety
/// The CPU must have AVX-512 with VNNI; cells and outputs of the job must be valid.
pub(crate) unsafe fn refine(job: &Job, tiles: &[u32], plane: u32) {
    // SAFETY: passed on from the caller.
    unsafe { add(job, Some(tiles), plane) }
}

/// # Safety
/// As for [`refine`].
unsafe fn add(job: &Job, tiles: Option<&[u32]>, plane: u32) {
    // SAFETY: passed on from the caller.
    unsafe {
        if job.wants_stats() {
            sweep::<BITS, true>(job, tiles, plane);
        } else {
            sweep::<BITS, false>(job, tiles, plane);
        }
    }
}
