//! Boxed scores without int8 dot products: the plain loops compiled for AVX2, with a dot product of
//! `vpmaddubsw` and `vpmaddwd`.

use std::arch::x86_64::*;

use crate::score::Job;
use crate::score::plain;
use crate::summary::TILE;

/// Groups of 4 channels whose i16 sums cannot overflow: 8 * 2 * 15 * 127 < 2^15.
const FLUSH: usize = 8;
/// Vectors of 8 tokens in a tile.
const VECTORS: usize = TILE / 8;

/// # Safety
/// The CPU must have AVX2; `codes` holds `[q.len() / 4][64][4]` bytes of at most 15.
#[target_feature(enable = "avx2")]
unsafe fn dot_avx2(codes: &[u8], q: &[i8], out: &mut [i32; TILE]) {
    debug_assert_eq!(codes.len(), q.len() * TILE);
    let mut total = [_mm256_setzero_si256(); VECTORS];
    let ones = _mm256_set1_epi16(1);
    for (codes, q) in codes.chunks(4 * TILE * FLUSH).zip(q.chunks(4 * FLUSH)) {
        let mut sum = [_mm256_setzero_si256(); VECTORS];
        for (group, q) in codes.chunks_exact(4 * TILE).zip(q.chunks_exact(4)) {
            let q = _mm256_set1_epi32(i32::from_le_bytes([
                q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8,
            ]));
            for (v, sum) in sum.iter_mut().enumerate() {
                // SAFETY: a group holds 8 vectors of 32 bytes.
                let c = unsafe { _mm256_loadu_si256(group.as_ptr().add(32 * v).cast()) };
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(c, q));
            }
        }
        for (total, sum) in total.iter_mut().zip(sum) {
            *total = _mm256_add_epi32(*total, _mm256_madd_epi16(sum, ones));
        }
    }
    for (out, total) in out.chunks_exact_mut(8).zip(total) {
        // SAFETY: a chunk holds 8 i32.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), total) }
    }
}

/// Estimates of all tiles.
///
/// # Safety
/// The CPU must have AVX2; every cell of the job must be readable as one of the spec, with all its
/// planes, and its outputs writable, by nobody else.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn score(job: &Job, planes: u32) {
    // SAFETY: passed on from the caller; `plain` hands over codes of the shape that the dot needs.
    unsafe {
        plain::score(job, planes, |c: &[u8], q: &[i8], o: &mut [i32; TILE]| dot_avx2(c, q, o))
    }
}

/// Adds one plane to the listed tiles.
///
/// # Safety
/// As for [`score`], for the listed tiles, whose estimates must be initialised.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn refine(job: &Job, tiles: &[u32], plane: u32) {
    // SAFETY: as above.
    unsafe {
        plain::refine(job, tiles, plane, |c: &[u8], q: &[i8], o: &mut [i32; TILE]| {
            dot_avx2(c, q, o)
        })
    }
}
