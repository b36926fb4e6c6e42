//! Boxed scores with AVX-512 and int8 dot products (`vpdpbusd`: 16 tokens x 4 channels).
//!
//! Up to [`HEADS`] query heads share a pass over the codes, with one accumulator per head and token
//! field: 16 of 32 registers at 4 heads, enough to hide the latency of the dot product. Codes stay where
//! they are inside their byte (a mask per field, no shift), so each field's sums come out scaled by a
//! power of two that the final conversion to f32 takes back.

use std::arch::x86_64::*;

use super::boxed_round::{
    BLOCK, BOUND, CHANNELS, HEADS, PLAIN, Rounded, SIGMA, Stages, errors, stage, steps,
};
use crate::score::Job;

type Sums<const H: usize> = [[__m512i; 4]; H];

/// Scales of the four token fields inside the bytes of planes 1+2, and inside assembled 3-bit codes
/// and later planes.
const PAIR: [f32; 4] = [1.0, 1.0 / 4.0, 1.0 / 16.0, 1.0 / 64.0];
const TRIPLE: [f32; 4] = [1.0, 1.0 / 2.0, 1.0 / 16.0, 1.0 / 32.0];

/// Which codes a pass multiplies.
const PAIRS: u8 = 2;
const TRIPLES: u8 = 3;
const BITS: u8 = 1;

/// `a` where the mask has ones, else `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn select(mask: i8, a: __m512i, b: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32(_mm512_set1_epi8(mask), a, b, 0xca)
}

/// The codes of one channel group, one vector of 16 tokens x 4 channels per token field, each
/// scaled as `PAIR` or `TRIPLE` says.
///
/// # Safety
/// The CPU must have AVX-512 F and BW. Except with [`BITS`], `planes` must be readable for
/// `64 * (group + 1)` bytes; except with [`PAIRS`], `bits` for `64 * (group / 2 + 1)`.
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
    let bit = if group.is_multiple_of(2) { bit } else { _mm512_srli_epi16(bit, 2) };
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
///
/// # Safety
/// The CPU must have AVX-512 F, BW and VNNI; `padded` must be a multiple of 16 and at most
/// [`CHANNELS`]. Except with [`BITS`], the second pointer must be readable for `16 * padded` bytes;
/// except with [`PAIRS`], the third for `8 * padded`. The first is only prefetched from.
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

/// `Stage::affine` (or with [`BITS`] `affine_bit`) of four heads, for scaled fields.
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
///
/// # Safety
/// The CPU must have AVX-512 F; `est` must be writable for 64 numbers, which with [`BITS`] must be
/// initialised.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish<const KIND: u8>(acc: &[__m512i; 4], affine: &Affine, head: usize, est: *mut f32) {
    let offset = _mm512_set1_ps(affine.offset[head]);
    for (f, &acc) in acc.iter().enumerate() {
        let at = est.wrapping_add(16 * f);
        let factor = _mm512_set1_ps(affine.factor[f][head]);
        // SAFETY: the caller's estimates hold 64 f32.
        unsafe {
            let base =
                if KIND == BITS { _mm512_add_ps(_mm512_loadu_ps(at), offset) } else { offset };
            _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), factor, base));
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
    ///
    /// # Safety
    /// The CPU must have AVX-512 F, BW, DQ, VL and VNNI. The cells of the tiles must be readable for
    /// `level` planes of the spec, and the outputs of the job writable for these tiles and the heads
    /// `from..to`, by nobody else. Estimates must be initialised with [`BITS`], sigmas unless `from`
    /// is 0.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn run<const H: usize, const KIND: u8, const STATS: u8>(&self, level: u32) {
        let passes = (self.to - self.from) / H;
        let units = self.tiles() * passes;
        let unit =
            |i: usize| Unit { tile: self.tile(i / passes), first: self.from + i % passes * H };
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
                let ahead =
                    self.job.cells.cell(self.tile(i / passes + 2)) as isize - cell(u) as isize;
                self.heads::<H, KIND, STATS>(u, level, ahead, &stages, &rounded);
            }
        }
    }

    /// One pass; `ahead` is the distance of the cell to ask for.
    ///
    /// # Safety
    /// As for [`Sweep::run`], for the tile of `u` and `H` heads from `u.first` on, whose `stages`
    /// and `rounded` these are.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn heads<const H: usize, const KIND: u8, const STATS: u8>(
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
            if STATS != PLAIN {
                let (bounds, sigmas) = errors(&job.spec, stages, level);
                job.write_stats(u.tile, u.first, &bounds[..H], &sigmas[..H]);
            }
        }
    }

    /// [`Sweep::run`] for 1 to 4 heads at a time.
    ///
    /// # Safety
    /// As for [`Sweep::run`] with `H = heads`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn dispatch<const KIND: u8, const STATS: u8>(&self, heads: usize, level: u32) {
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
///
/// # Safety
/// As for [`Sweep::run`], for all heads of the job and, without a list, for all tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn sweep<const KIND: u8, const STATS: u8>(job: &Job, tiles: Option<&[u32]>, level: u32) {
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
/// The CPU must have AVX-512 F, BW, DQ, VL and VNNI; every cell of the job must be readable for
/// `planes` planes of the spec, and its outputs writable, by nobody else.
pub(crate) unsafe fn score(job: &Job, planes: u32) {
    // SAFETY: passed on from the caller.
    unsafe {
        match (planes, wanted(job)) {
            (2, PLAIN) => sweep::<PAIRS, PLAIN>(job, None, 2),
            (2, SIGMA) => sweep::<PAIRS, SIGMA>(job, None, 2),
            (2, _) => sweep::<PAIRS, BOUND>(job, None, 2),
            (_, PLAIN) => sweep::<TRIPLES, PLAIN>(job, None, 3),
            (_, SIGMA) => sweep::<TRIPLES, SIGMA>(job, None, 3),
            (_, _) => sweep::<TRIPLES, BOUND>(job, None, 3),
        }
        if planes == 4 {
            add(job, None, 4);
        }
    }
}

/// Adds one plane to the listed tiles.
///
/// # Safety
/// As for [`score`] with `plane` planes, for the listed tiles, whose estimates must be initialised.
pub(crate) unsafe fn refine(job: &Job, tiles: &[u32], plane: u32) {
    // SAFETY: passed on from the caller.
    unsafe { add(job, Some(tiles), plane) }
}

/// [`refine`] of the listed or all tiles.
///
/// # Safety
/// As for [`refine`].
unsafe fn add(job: &Job, tiles: Option<&[u32]>, plane: u32) {
    // SAFETY: passed on from the caller.
    unsafe {
        match wanted(job) {
            PLAIN => sweep::<BITS, PLAIN>(job, tiles, plane),
            SIGMA => sweep::<BITS, SIGMA>(job, tiles, plane),
            _ => sweep::<BITS, BOUND>(job, tiles, plane),
        }
    }
}

/// The statistics that the job has places for.
fn wanted(job: &Job) -> u8 {
    match (job.out.bounds, job.out.sigma) {
        (Some(_), _) => BOUND,
        (None, Some(_)) => SIGMA,
        (None, None) => PLAIN,
    }
}
