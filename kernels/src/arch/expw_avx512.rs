//! EXPW on AVX-512 with VBMI2: 64 lanes are one register, and masks act on them directly.

use std::arch::asm;
use std::arch::x86_64::*;

use super::expw_lanes::Bytes;

/// One `zmm` register.
pub(crate) struct Avx512Bytes;

/// `from + 2 i` for byte `i`.
const fn every_second_byte(from: u8) -> [u8; 64] {
    let mut index = [0; 64];
    let mut i = 0;
    while i < 64 {
        index[i] = from + 2 * i as u8;
        i += 1;
    }
    index
}

/// Pairs of a byte of the first register and one of the second, from byte `from` on.
const fn byte_pairs(from: u8) -> [u8; 64] {
    let mut index = [0; 64];
    let mut i = 0;
    while i < 64 {
        index[i] = from + i as u8 / 2 + 64 * (i as u8 % 2);
        i += 1;
    }
    index
}

/// `from + 2 i` for word `i`.
const fn every_second_word(from: u16) -> [u16; 32] {
    let mut index = [0; 32];
    let mut i = 0;
    while i < 32 {
        index[i] = from + 2 * i as u16;
        i += 1;
    }
    index
}

/// Pairs of a word of the first register and one of the second, from word `from` on.
const fn word_pairs(from: u16) -> [u16; 32] {
    let mut index = [0; 32];
    let mut i = 0;
    while i < 32 {
        index[i] = from + i as u16 / 2 + 32 * (i as u16 % 2);
        i += 1;
    }
    index
}

static EVEN: [u8; 64] = every_second_byte(0);
static ODD: [u8; 64] = every_second_byte(1);
static PAIRS: [[u8; 64]; 2] = [byte_pairs(0), byte_pairs(32)];
static EVEN_WORDS: [u16; 32] = every_second_word(0);
static ODD_WORDS: [u16; 32] = every_second_word(1);
static WORD_PAIRS: [[u16; 32]; 2] = [word_pairs(0), word_pairs(16)];

/// A table as a register.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
unsafe fn read<T>(from: &'static T) -> __m512i {
    const { assert!(size_of::<T>() == 64) };
    // SAFETY: the caller vouches for AVX-512 (so below); a table has 64 bytes.
    unsafe { _mm512_loadu_si512((&raw const *from).cast()) }
}

/// The `i`-th 64 bytes.
///
/// # Safety
/// The CPU must have AVX-512 F; `from` must be readable for `64 * (i + 1)` bytes.
#[inline(always)]
unsafe fn part(from: *const u8, i: usize) -> __m512i {
    // SAFETY: the caller vouches for the `i`-th 64 readable bytes.
    unsafe { _mm512_loadu_si512(from.add(64 * i).cast()) }
}

/// Writes the `i`-th 64 bytes.
///
/// # Safety
/// The CPU must have AVX-512 F; `to` must be writable for `64 * (i + 1)` bytes.
#[inline(always)]
unsafe fn put(x: __m512i, to: *mut u8, i: usize) {
    // SAFETY: as above, writable.
    unsafe { _mm512_storeu_si512(to.add(64 * i).cast(), x) }
}

/// A constant that stays in a register: known to the compiler, four sums would become four selects with
/// constants from memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn opaque(x: i8) -> __m512i {
    let mut x = _mm512_set1_epi8(x);
    // SAFETY: empty.
    unsafe { asm!("/* {0} */", inout(zmm_reg) x, options(pure, nomem, nostack, preserves_flags)) }
    x
}

/// Words picked from four registers of double words.
///
/// # Safety
/// The CPU must have AVX-512 F and BW; `from` must be readable for 256 bytes.
#[inline(always)]
unsafe fn words(from: *const u8, index: __m512i) -> [__m512i; 2] {
    // SAFETY: 64 double words are 256 bytes.
    unsafe {
        [
            _mm512_permutex2var_epi16(part(from, 0), index, part(from, 1)),
            _mm512_permutex2var_epi16(part(from, 2), index, part(from, 3)),
        ]
    }
}

impl Bytes for Avx512Bytes {
    type V = __m512i;
    type W = [__m512i; 2];

    #[inline(always)]
    unsafe fn splat(x: u8) -> __m512i {
        // SAFETY: the features are the caller's to enable, pointers its to vouch for (so below).
        unsafe { _mm512_set1_epi8(x as i8) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: as above.
        unsafe { part(from, 0) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: as above; a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(x: __m512i, to: *mut u8) {
        // SAFETY: as above.
        unsafe { put(x, to, 0) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi8(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sub_epi8(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_max_epu8(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_min_epu8(a, b) }
    }

    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn shl2(x: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_slli_epi16::<2>(x) }
    }

    #[inline(always)]
    unsafe fn shr2(x: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srli_epi16::<2>(x) }
    }

    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], x: __m512i) -> __m512i {
        // SAFETY: as above; the table has 16 bytes.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, x)
        }
    }

    #[inline(always)]
    unsafe fn bit<const BIT: u32>(x: __m512i) -> u64 {
        // SAFETY: as above.
        unsafe { _mm512_test_epi8_mask(x, Self::splat(1 << BIT)) }
    }

    #[inline(always)]
    unsafe fn add_at(x: __m512i, mask: u64, c: u8) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_mask_add_epi8(x, mask, x, Self::splat(c)) }
    }

    #[inline(always)]
    unsafe fn decode(level: [i8; 3], planes: *const u8, next: *const u8) -> __m512i {
        // SAFETY: as above; planes are two words.
        unsafe {
            let low = _load_mask64(planes.cast());
            let high = _load_mask64(planes.add(8).cast());
            let mut x = _mm512_set1_epi8(level[0]);
            x = _mm512_mask_add_epi8(x, low, x, opaque(level[1] - level[0]));
            x = _mm512_mask_add_epi8(x, high, x, opaque(level[2] - level[0]));
            _mm512_mask_expand_epi8(x, _kand_mask64(low, high), part(next, 0))
        }
    }

    #[inline(always)]
    unsafe fn encode(codes: __m512i, distances: __m512i, planes: *mut u8, next: *mut u8) {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (Self::bit::<0>(codes), Self::bit::<1>(codes));
            _store_mask64(planes.cast(), low);
            _store_mask64(planes.add(8).cast(), high);
            // In a register: to memory it is microcoded on Zen 4.
            let passed = _mm512_maskz_compress_epi8(_kand_mask64(low, high), distances);
            put(passed, next, 0);
        }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> [__m512i; 2] {
        // SAFETY: 64 words are 128 bytes.
        unsafe { [part(from, 0), part(from, 1)] }
    }

    #[inline(always)]
    unsafe fn store_words(x: [__m512i; 2], to: *mut u8) {
        // SAFETY: as above.
        unsafe {
            put(x[0], to, 0);
            put(x[1], to, 1);
        }
    }

    #[inline(always)]
    unsafe fn load_upper(from: *const u8) -> [__m512i; 2] {
        // SAFETY: as above.
        unsafe { words(from, read(&ODD_WORDS)) }
    }

    #[inline(always)]
    unsafe fn load_lower(from: *const u8) -> [__m512i; 2] {
        // SAFETY: as above.
        unsafe { words(from, read(&EVEN_WORDS)) }
    }

    #[inline(always)]
    unsafe fn store_wide(lower: [__m512i; 2], upper: [__m512i; 2], to: *mut u8) {
        // SAFETY: 64 double words of output.
        unsafe {
            for i in 0..2 {
                for (j, pairs) in WORD_PAIRS.iter().enumerate() {
                    let x = _mm512_permutex2var_epi16(lower[i], read(pairs), upper[i]);
                    put(x, to, 2 * i + j);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rotate_left(x: [__m512i; 2]) -> [__m512i; 2] {
        // SAFETY: as above.
        unsafe { [_mm512_shldi_epi16::<1>(x[0], x[0]), _mm512_shldi_epi16::<1>(x[1], x[1])] }
    }

    #[inline(always)]
    unsafe fn rotate_right(x: [__m512i; 2]) -> [__m512i; 2] {
        // SAFETY: as above.
        unsafe { [_mm512_shrdi_epi16::<1>(x[0], x[0]), _mm512_shrdi_epi16::<1>(x[1], x[1])] }
    }

    #[inline(always)]
    unsafe fn unzip(x: [__m512i; 2]) -> (__m512i, __m512i) {
        // SAFETY: as above.
        unsafe {
            (
                _mm512_permutex2var_epi8(x[0], read(&EVEN), x[1]),
                _mm512_permutex2var_epi8(x[0], read(&ODD), x[1]),
            )
        }
    }

    #[inline(always)]
    unsafe fn zip(low: __m512i, high: __m512i) -> [__m512i; 2] {
        // SAFETY: as above.
        unsafe {
            [
                _mm512_permutex2var_epi8(low, read(&PAIRS[0]), high),
                _mm512_permutex2var_epi8(low, read(&PAIRS[1]), high),
            ]
        }
    }
}
