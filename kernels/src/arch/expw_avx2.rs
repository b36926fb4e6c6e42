//! EXPW on AVX2 with BMI2: 64 lanes are two registers. Masks become bytes, and expansion and its inverse
//! go through general-purpose registers, eight lanes at a time.

use std::arch::x86_64::*;

use super::expw_lanes::Bytes;

/// Two `ymm` registers.
pub(crate) struct Avx2Bytes;

type Pair = [__m256i; 2];

/// The lowest bit of every byte of a word.
const ONES: u64 = 0x0101_0101_0101_0101;

/// The `i`-th 32 bytes.
///
/// # Safety
/// The CPU must have AVX2; `from` must be readable for `32 * (i + 1)` bytes.
#[inline(always)]
unsafe fn part(from: *const u8, i: usize) -> __m256i {
    // SAFETY: the caller vouches for AVX2 and the `i`-th 32 readable bytes (so below).
    unsafe { _mm256_loadu_si256(from.add(32 * i).cast()) }
}

/// Writes the `i`-th 32 bytes.
///
/// # Safety
/// The CPU must have AVX2; `to` must be writable for `32 * (i + 1)` bytes.
#[inline(always)]
unsafe fn put(x: __m256i, to: *mut u8, i: usize) {
    // SAFETY: as above, writable.
    unsafe { _mm256_storeu_si256(to.add(32 * i).cast(), x) }
}

/// Puts the quarters that packing leaves in the order 0, 2, 1, 3 into order, and back.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn order(x: __m256i) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_permute4x64_epi64::<0b11_01_10_00>(x) }
}

/// Bytes of ones where bits of `mask` are set.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn spread(mask: u64) -> Pair {
    // SAFETY: as above.
    unsafe {
        let source = _mm256_setr_epi64x(0, ONES as i64, 2 * ONES as i64, 3 * ONES as i64);
        let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let low = _mm256_shuffle_epi8(_mm256_set1_epi32(mask as i32), source);
        let high = _mm256_shuffle_epi8(_mm256_set1_epi32((mask >> 32) as i32), source);
        [
            _mm256_cmpeq_epi8(_mm256_and_si256(low, bits), bits),
            _mm256_cmpeq_epi8(_mm256_and_si256(high, bits), bits),
        ]
    }
}

/// Bytes of ones where the lowest eight bits of `mask` are set.
///
/// # Safety
/// The CPU must have BMI2.
#[inline(always)]
unsafe fn spread8(mask: u64) -> u64 {
    // SAFETY: as above; so is BMI2.
    unsafe { _pdep_u64(mask, ONES) * 255 }
}

/// The word that begins at byte `at`.
///
/// # Safety
/// `from` must be readable for eight bytes from `at` on.
#[inline(always)]
unsafe fn word(from: *const u8, at: usize) -> u64 {
    // SAFETY: the caller vouches for eight readable bytes.
    unsafe { from.add(at).cast::<u64>().read_unaligned() }
}

/// Lower or upper halves of double words.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn half<const UPPER: bool>(x: __m256i) -> __m256i {
    // SAFETY: as above.
    unsafe {
        if UPPER {
            _mm256_srli_epi32::<16>(x)
        } else {
            _mm256_and_si256(x, _mm256_set1_epi32(0xffff))
        }
    }
}

/// The same of 64.
///
/// # Safety
/// The CPU must have AVX2; `from` must be readable for 256 bytes.
#[inline(always)]
unsafe fn halves<const UPPER: bool>(from: *const u8) -> [__m256i; 4] {
    // SAFETY: 64 double words are 256 bytes.
    unsafe {
        let mut words = [_mm256_setzero_si256(); 4];
        for (i, words) in words.iter_mut().enumerate() {
            let a = half::<UPPER>(part(from, 2 * i));
            let b = half::<UPPER>(part(from, 2 * i + 1));
            *words = order(_mm256_packus_epi32(a, b));
        }
        words
    }
}

/// Lower or upper bytes of 32 words.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn pack<const UPPER: bool>(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: as above.
    unsafe {
        if UPPER {
            let (a, b) = (_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
            order(_mm256_packus_epi16(a, b))
        } else {
            let low = _mm256_set1_epi16(0xff);
            let (a, b) = (_mm256_and_si256(a, low), _mm256_and_si256(b, low));
            order(_mm256_packus_epi16(a, b))
        }
    }
}

impl Bytes for Avx2Bytes {
    type V = Pair;
    type W = [__m256i; 4];

    #[inline(always)]
    unsafe fn splat(x: u8) -> Pair {
        // SAFETY: the features are the caller's to enable, pointers its to vouch for (so below).
        unsafe { [_mm256_set1_epi8(x as i8); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Pair {
        // SAFETY: as above.
        unsafe { [part(from, 0), part(from, 1)] }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: as above; a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(x: Pair, to: *mut u8) {
        // SAFETY: as above.
        unsafe {
            put(x[0], to, 0);
            put(x[1], to, 1);
        }
    }

    #[inline(always)]
    unsafe fn add(a: Pair, b: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_add_epi8(a[0], b[0]), _mm256_add_epi8(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn sub(a: Pair, b: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_sub_epi8(a[0], b[0]), _mm256_sub_epi8(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn max(a: Pair, b: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_max_epu8(a[0], b[0]), _mm256_max_epu8(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn min(a: Pair, b: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_min_epu8(a[0], b[0]), _mm256_min_epu8(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn and(a: Pair, b: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn shl2(x: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_slli_epi16::<2>(x[0]), _mm256_slli_epi16::<2>(x[1])] }
    }

    #[inline(always)]
    unsafe fn shr2(x: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_srli_epi16::<2>(x[0]), _mm256_srli_epi16::<2>(x[1])] }
    }

    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], x: Pair) -> Pair {
        // SAFETY: as above; the table has 16 bytes.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, x[0]), _mm256_shuffle_epi8(table, x[1])]
        }
    }

    #[inline(always)]
    unsafe fn bit<const BIT: u32>(x: Pair) -> u64 {
        // SAFETY: as above.
        unsafe {
            let top = _mm_cvtsi32_si128(7 - BIT as i32);
            let low = _mm256_movemask_epi8(_mm256_sll_epi16(x[0], top)) as u32;
            let high = _mm256_movemask_epi8(_mm256_sll_epi16(x[1], top)) as u32;
            u64::from(low) | u64::from(high) << 32
        }
    }

    #[inline(always)]
    unsafe fn add_at(x: Pair, mask: u64, c: u8) -> Pair {
        // SAFETY: as above.
        unsafe {
            let (mask, c) = (spread(mask), _mm256_set1_epi8(c as i8));
            Self::add(x, [_mm256_and_si256(mask[0], c), _mm256_and_si256(mask[1], c)])
        }
    }

    #[inline(always)]
    unsafe fn decode(level: [i8; 3], planes: *const u8, next: *const u8) -> Pair {
        // SAFETY: as above; planes are two words, and `next` has as many bytes as are taken plus 8.
        unsafe {
            let (low, high) = (word(planes, 0), word(planes, 8));
            let mut x = Self::splat(level[0] as u8);
            x = Self::add_at(x, low, (level[1] - level[0]) as u8);
            x = Self::add_at(x, high, (level[2] - level[0]) as u8);
            let (mut mask, mut at) = (low & high, 0);
            // Code 3 has both differences so far; what is missing from there is added.
            let so_far = (level[1] - level[0] + level[2]) as u8;
            let x = Self::add_at(x, mask, so_far.wrapping_neg());
            let mut taken = [0u64; 8];
            for taken in &mut taken {
                *taken = _pdep_u64(word(next, at), spread8(mask & 255));
                at += (mask & 255).count_ones() as usize;
                mask >>= 8;
            }
            Self::add(x, Self::load(taken.as_ptr().cast()))
        }
    }

    #[inline(always)]
    unsafe fn encode(codes: Pair, distances: Pair, planes: *mut u8, next: *mut u8) {
        // SAFETY: as above; what is written to `next` ends within 64 bytes.
        unsafe {
            let (low, high) = (Self::bit::<0>(codes), Self::bit::<1>(codes));
            planes.cast::<u64>().write_unaligned(low);
            planes.add(8).cast::<u64>().write_unaligned(high);
            let mut lanes = [0u64; 8];
            Self::store(distances, lanes.as_mut_ptr().cast());
            let (mut mask, mut at) = (low & high, 0);
            for lanes in lanes {
                let passed = _pext_u64(lanes, spread8(mask & 255));
                next.add(at).cast::<u64>().write_unaligned(passed);
                at += (mask & 255).count_ones() as usize;
                mask >>= 8;
            }
        }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> [__m256i; 4] {
        // SAFETY: 64 words are 128 bytes.
        unsafe { [part(from, 0), part(from, 1), part(from, 2), part(from, 3)] }
    }

    #[inline(always)]
    unsafe fn store_words(x: [__m256i; 4], to: *mut u8) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { put(x, to, i) }
        }
    }

    #[inline(always)]
    unsafe fn load_upper(from: *const u8) -> [__m256i; 4] {
        // SAFETY: as above.
        unsafe { halves::<true>(from) }
    }

    #[inline(always)]
    unsafe fn load_lower(from: *const u8) -> [__m256i; 4] {
        // SAFETY: as above.
        unsafe { halves::<false>(from) }
    }

    #[inline(always)]
    unsafe fn store_wide(lower: [__m256i; 4], upper: [__m256i; 4], to: *mut u8) {
        for (i, (lower, upper)) in lower.into_iter().zip(upper).enumerate() {
            // SAFETY: 64 double words of output.
            unsafe {
                let (lower, upper) = (order(lower), order(upper));
                put(_mm256_unpacklo_epi16(lower, upper), to, 2 * i);
                put(_mm256_unpackhi_epi16(lower, upper), to, 2 * i + 1);
            }
        }
    }

    #[inline(always)]
    unsafe fn rotate_left(mut words: [__m256i; 4]) -> [__m256i; 4] {
        for x in &mut words {
            // SAFETY: as above.
            *x = unsafe { _mm256_or_si256(_mm256_add_epi16(*x, *x), _mm256_srli_epi16::<15>(*x)) };
        }
        words
    }

    #[inline(always)]
    unsafe fn rotate_right(mut words: [__m256i; 4]) -> [__m256i; 4] {
        for x in &mut words {
            // SAFETY: as above.
            *x =
                unsafe { _mm256_or_si256(_mm256_srli_epi16::<1>(*x), _mm256_slli_epi16::<15>(*x)) };
        }
        words
    }

    #[inline(always)]
    unsafe fn unzip(x: [__m256i; 4]) -> (Pair, Pair) {
        // SAFETY: as above.
        unsafe {
            (
                [pack::<false>(x[0], x[1]), pack::<false>(x[2], x[3])],
                [pack::<true>(x[0], x[1]), pack::<true>(x[2], x[3])],
            )
        }
    }

    #[inline(always)]
    unsafe fn zip(low: Pair, high: Pair) -> [__m256i; 4] {
        // SAFETY: as above.
        unsafe {
            let (low, high) = ([order(low[0]), order(low[1])], [order(high[0]), order(high[1])]);
            [
                _mm256_unpacklo_epi8(low[0], high[0]),
                _mm256_unpackhi_epi8(low[0], high[0]),
                _mm256_unpacklo_epi8(low[1], high[1]),
                _mm256_unpackhi_epi8(low[1], high[1]),
            ]
        }
    }
}
