//! Table look-ups of product-quantised codes. Entries are added part by part at every level, so the
//! scores of equal tables are equal bits.

use crate::Isa;
use crate::cluster::pq::{Job, plain};

/// Scores all tiles of a job.
pub(crate) type PqFn = unsafe fn(&mut Job);

/// The loop of a level, or of the best below it that this CPU has.
pub(crate) fn loops(isa: Isa) -> PqFn {
    match isa.min(Isa::detected()) {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => x86::avx512,
        _ => plain,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Job;
    use crate::summary::TILE;

    /// Tokens whose bytes fill a small register: a quarter of a tile.
    const QUARTER: usize = 16;

    /// The codes of each quarter of a tile, as bytes.
    ///
    /// # Safety
    /// `p` is readable for the codes of one part.
    #[inline(always)]
    unsafe fn quarters<const BITS: usize>(p: *const u8) -> [__m128i; 4] {
        // SAFETY: by the function's contract; SSE2 is always there.
        unsafe {
            let load = |i: usize| _mm_loadu_si128(p.add(i * QUARTER).cast());
            if BITS == 8 {
                return [load(0), load(1), load(2), load(3)];
            }
            let low = |x| _mm_and_si128(x, _mm_set1_epi8(0xf));
            let (a, b) = (load(0), load(1));
            let x = [low(a), low(b), low(_mm_srli_epi16::<4>(a)), low(_mm_srli_epi16::<4>(b))];
            if BITS == 4 {
                return x;
            }
            let high = |x| _mm_and_si128(x, _mm_set1_epi8(0x30));
            let c = load(2);
            let y = [_mm_slli_epi16::<4>(c), _mm_slli_epi16::<2>(c), c, _mm_srli_epi16::<2>(c)];
            std::array::from_fn(|i| _mm_or_si128(x[i], high(y[i])))
        }
    }

    /// Entries of 16 codes.
    ///
    /// # Safety
    /// The CPU must have AVX-512 F; `table` must be readable for `2^BITS` entries, and codes be below.
    #[inline(always)]
    unsafe fn look16<const BITS: usize>(table: *const f32, codes: __m512i) -> __m512 {
        // SAFETY: the caller enabled AVX-512 and has a table of 2^BITS entries.
        unsafe {
            let t = |i: usize| _mm512_loadu_ps(table.add(i * 16));
            match BITS {
                4 => _mm512_permutexvar_ps(codes, t(0)),
                6 => {
                    let low = _mm512_permutex2var_ps(t(0), codes, t(1));
                    let high = _mm512_permutex2var_ps(t(2), codes, t(3));
                    let upper = _mm512_test_epi32_mask(codes, _mm512_set1_epi32(32));
                    _mm512_mask_blend_ps(upper, low, high)
                }
                _ => _mm512_i32gather_ps::<4>(codes, table),
            }
        }
    }

    /// Entries of 8 codes.
    ///
    /// # Safety
    /// The CPU must have AVX2; `table` must be readable for `2^BITS` entries, and codes be below.
    #[inline(always)]
    unsafe fn look8<const BITS: usize>(table: *const f32, codes: __m256i) -> __m256 {
        // SAFETY: the caller enabled AVX2 and has a table of 2^BITS entries.
        unsafe {
            if BITS == 4 {
                let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), codes);
                let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.add(8)), codes);
                let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                _mm256_blendv_ps(low, high, upper)
            } else {
                _mm256_i32gather_ps::<4>(table, codes)
            }
        }
    }

    /// How the codes of a part are looked up. Only a function that enables the features of `Self` makes
    /// the methods inline.
    trait Lookup<const BITS: usize> {
        /// Codes of a tile.
        type Codes: Copy;

        /// Reads the codes of a part.
        ///
        /// # Safety
        /// The CPU must have the features of `Self`; `p` must be readable for the codes of a part.
        unsafe fn codes(p: *const u8) -> Self::Codes;

        /// Adds the entries to the scores, or writes them if this is the first part.
        ///
        /// # Safety
        /// The CPU must have the features of `Self`; `table` must be readable for `2^BITS` entries, `out`
        /// writable for a tile's scores.
        unsafe fn add(codes: Self::Codes, table: *const f32, out: *mut f32, first: bool);
    }

    struct Wide;

    impl<const BITS: usize> Lookup<BITS> for Wide {
        type Codes = [__m512i; 4];

        #[inline(always)]
        unsafe fn codes(p: *const u8) -> [__m512i; 4] {
            // SAFETY: by the trait's contract (so below).
            unsafe {
                let [a, b, c, d] = quarters::<BITS>(p);
                [
                    _mm512_cvtepu8_epi32(a),
                    _mm512_cvtepu8_epi32(b),
                    _mm512_cvtepu8_epi32(c),
                    _mm512_cvtepu8_epi32(d),
                ]
            }
        }

        #[inline(always)]
        unsafe fn add(codes: [__m512i; 4], table: *const f32, out: *mut f32, first: bool) {
            for (i, codes) in codes.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe {
                    let out = out.add(i * QUARTER);
                    let x = look16::<BITS>(table, codes);
                    let x = if first { x } else { _mm512_add_ps(_mm512_loadu_ps(out), x) };
                    _mm512_storeu_ps(out, x);
                }
            }
        }
    }

    struct Narrow;

    impl<const BITS: usize> Lookup<BITS> for Narrow {
        type Codes = [__m128i; 4];

        #[inline(always)]
        unsafe fn codes(p: *const u8) -> [__m128i; 4] {
            // SAFETY: as above.
            unsafe { quarters::<BITS>(p) }
        }

        #[inline(always)]
        unsafe fn add(codes: [__m128i; 4], table: *const f32, out: *mut f32, first: bool) {
            for (i, codes) in codes.into_iter().enumerate() {
                for j in 0..2 {
                    // SAFETY: as above.
                    unsafe {
                        let codes = if j == 0 { codes } else { _mm_srli_si128::<8>(codes) };
                        let out = out.add(i * QUARTER + j * QUARTER / 2);
                        let x = look8::<BITS>(table, _mm256_cvtepu8_epi32(codes));
                        let x = if first { x } else { _mm256_add_ps(_mm256_loadu_ps(out), x) };
                        _mm256_storeu_ps(out, x);
                    }
                }
            }
        }
    }

    /// All tiles, parts and heads.
    ///
    /// # Safety
    /// What `L` needs is enabled; cells, tables and scores are as the job says.
    #[inline(always)]
    unsafe fn walk<const BITS: usize, L: Lookup<BITS>>(job: &mut Job) {
        let (spec, tokens) = (job.spec, job.cells.len() * TILE);
        let stride = spec.parts() << BITS;
        let (tables, out) = (job.tables.as_ptr(), job.out.as_mut_ptr());
        for tile in 0..job.cells.len() {
            for part in 0..spec.parts() {
                // SAFETY: by the function's contract.
                unsafe {
                    let codes = L::codes(job.cells.cell(tile).add(part * spec.part_bytes()));
                    for head in 0..job.heads {
                        let table = tables.add(head * stride + (part << BITS));
                        L::add(codes, table, out.add(head * tokens + tile * TILE), part == 0);
                    }
                }
            }
        }
    }

    /// Scores with AVX-512.
    ///
    /// # Safety
    /// As for [`avx512`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn wide<const BITS: usize>(job: &mut Job) {
        // SAFETY: passed on from the caller; the features are enabled above.
        unsafe { walk::<BITS, Wide>(job) }
    }

    /// Scores with AVX2.
    ///
    /// # Safety
    /// As for [`avx2`].
    #[target_feature(enable = "avx2")]
    unsafe fn narrow<const BITS: usize>(job: &mut Job) {
        // SAFETY: as above.
        unsafe { walk::<BITS, Narrow>(job) }
    }

    /// # Safety
    /// AVX-512 is available; cells, tables and scores are as the job says.
    pub(super) unsafe fn avx512(job: &mut Job) {
        // SAFETY: passed on from the caller.
        unsafe {
            match job.spec.code_bits() {
                4 => wide::<4>(job),
                6 => wide::<6>(job),
                _ => wide::<8>(job),
            }
        }
    }

    /// # Safety
    /// AVX2 is available; otherwise as for [`avx512`].
    pub(super) unsafe fn avx2(job: &mut Job) {
        // SAFETY: passed on from the caller.
        unsafe {
            match job.spec.code_bits() {
                4 => narrow::<4>(job),
                6 => narrow::<6>(job),
                _ => narrow::<8>(job),
            }
        }
    }
}
