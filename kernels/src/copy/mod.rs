//! Copying memory past the CPU's caches. An ordinary store first reads the line that it overwrites,
//! and the copy then pushes other data out of the caches; for blocks that nobody looks at soon,
//! stores that bypass them move a third less and leave the caches alone.

mod transpose;

use crate::Isa;

pub use transpose::transpose_raw;

/// Copies `from` to `to` past the caches, at the machine's instruction-set level.
///
/// # Panics
/// If the lengths differ.
pub fn streaming(from: &[u8], to: &mut [u8]) {
    streaming_at(Isa::level(), from, to);
}

/// [`streaming`] at a level, for tests that compare them.
///
/// # Panics
/// If the lengths differ, or this CPU has not that level.
pub fn streaming_at(isa: Isa, from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len(), "a copy is as long as its source");
    assert!(isa <= Isa::detected(), "{} on a CPU without it", isa.name());
    // SAFETY: as long as each other, and borrowed; the level is there.
    unsafe { copy(isa, from.as_ptr(), to.as_mut_ptr(), from.len()) }
}

/// [`streaming`] over raw memory.
///
/// # Safety
/// `from` must be readable and `to` writable for `len` bytes, and they must not overlap.
pub unsafe fn streaming_raw(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: by the caller; the level is one that the CPU has.
    unsafe { copy(Isa::level(), from, to, len) }
}

/// Cache lines, the unit of streaming stores.
const LINE: usize = 64;

/// # Safety
/// As [`streaming_raw`], and the CPU has the level.
unsafe fn copy(isa: Isa, from: *const u8, to: *mut u8, len: usize) {
    let head = to.align_offset(LINE).min(len);
    let lines = if isa >= Isa::Avx2 { (len - head) / LINE * LINE } else { 0 };
    let tail = head + lines;
    // SAFETY: three neighbouring parts of what the caller vouches for; the middle one of `to` starts
    // at a line and has whole lines.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, head);
        #[cfg(target_arch = "x86_64")]
        match isa {
            Isa::Generic => {}
            Isa::Avx2 => x86::avx2(from.add(head), to.add(head), lines),
            Isa::Avx512 | Isa::Avx512Bf16 => x86::avx512(from.add(head), to.add(head), lines),
        }
        std::ptr::copy_nonoverlapping(from.add(tail), to.add(tail), len - tail);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256,
        _mm512_loadu_si512, _mm512_stream_si512,
    };

    use super::LINE;

    /// How far ahead the source is asked for.
    const AHEAD: usize = 2048;

    /// Asks for the lines of a range of the source.
    #[inline(always)]
    fn ask(from: *const u8, start: usize, end: usize) {
        for line in (start..end).step_by(LINE) {
            // SAFETY: a prefetch never faults, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) }
        }
    }

    /// # Safety
    /// AVX-512F; `len` bytes readable and writable, whole lines, `to` aligned to a line.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(from: *const u8, to: *mut u8, len: usize) {
        ask(from, 0, AHEAD.min(len));
        for at in (0..len).step_by(LINE) {
            ask(from, at + AHEAD, len.min(at + AHEAD + LINE));
            // SAFETY: a whole line before `len`.
            unsafe {
                let line = _mm512_loadu_si512(from.add(at).cast());
                _mm512_stream_si512(to.add(at).cast(), line);
            }
        }
        _mm_sfence();
    }

    /// # Safety
    /// AVX2; else as [`avx512`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(from: *const u8, to: *mut u8, len: usize) {
        ask(from, 0, AHEAD.min(len));
        for at in (0..len).step_by(LINE) {
            ask(from, at + AHEAD, len.min(at + AHEAD + LINE));
            // SAFETY: both halves of a whole line before `len`.
            unsafe {
                let low = _mm256_loadu_si256(from.add(at).cast());
                let high = _mm256_loadu_si256(from.add(at + LINE / 2).cast());
                _mm256_stream_si256(to.add(at).cast(), low);
                _mm256_stream_si256(to.add(at + LINE / 2).cast(), high);
            }
        }
        _mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_arrives_and_no_other_changes(
            data in prop::collection::vec(any::<u8>(), 0..3000),
            from in 0usize..70,
            to in 0usize..70,
        ) {
            let data = &data[from.min(data.len())..];
            for isa in Isa::available() {
                let mut out = vec![7u8; data.len() + 140];
                streaming_at(isa, data, &mut out[to..to + data.len()]);
                prop_assert_eq!(&out[to..to + data.len()], data, "{}", isa.name());
                let around = out[..to].iter().chain(&out[to + data.len()..]);
                prop_assert!(around.copied().all(|b| b == 7));
            }
        }
    }
}
