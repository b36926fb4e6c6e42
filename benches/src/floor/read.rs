//! Read loops over plain memory. Which one is the fastest depends on the machine, so several are
//! offered and the run picks.

/// A way to read memory once, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLoop {
    /// Places read side by side (1, 2, 4 or 8), 4 KiB apart.
    pub streams: usize,
    /// Distance of the software prefetch in bytes, 0 for none.
    pub prefetch: usize,
}

/// Bytes of one stream between two jumps to the next block.
const STREAM: usize = 4096;

impl ReadLoop {
    /// One stream, hardware prefetch only.
    pub const PLAIN: ReadLoop = ReadLoop { streams: 1, prefetch: 0 };

    /// All loops worth trying.
    #[must_use]
    pub fn candidates() -> Vec<ReadLoop> {
        let prefetches = [0, 512, 1024, 2048, 4096, 8192];
        let with = |streams| prefetches.map(|prefetch| ReadLoop { streams, prefetch });
        [1, 2, 4, 8].into_iter().flat_map(with).collect()
    }

    /// XOR of all 8-byte words (a short last word is padded with zeros): proof of having read.
    #[must_use]
    pub fn sum(self, bytes: &[u8]) -> u64 {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            let whole = bytes.len() - bytes.len() % (self.streams.max(1) * STREAM);
            // SAFETY: the feature was just detected; `whole` bytes are in the slice and a
            // multiple of the loop's block.
            let head = unsafe { x86::dispatch(self, bytes.as_ptr(), whole) };
            return head ^ plain(&bytes[whole..]);
        }
        plain(bytes)
    }
}

fn plain(bytes: &[u8]) -> u64 {
    let mut parts = [0u64; 8];
    let mut lines = bytes.chunks_exact(64);
    for line in &mut lines {
        for (part, word) in parts.iter_mut().zip(line.as_chunks::<8>().0) {
            *part ^= u64::from_ne_bytes(*word);
        }
    }
    let mut all = parts.iter().fold(0, |a, b| a ^ b);
    for rest in lines.remainder().chunks(8) {
        let mut word = [0u8; 8];
        word[..rest.len()].copy_from_slice(rest);
        all ^= u64::from_ne_bytes(word);
    }
    all
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_loadu_si512, _mm512_setzero_si512,
        _mm512_storeu_si512, _mm512_xor_si512,
    };

    use super::{ReadLoop, STREAM};

    /// The XOR of all words.
    ///
    /// # Safety
    /// The CPU must have AVX-512 F; `ptr` must be readable for `len` bytes, a multiple of
    /// `read.streams * STREAM`.
    pub(super) unsafe fn dispatch(read: ReadLoop, ptr: *const u8, len: usize) -> u64 {
        // SAFETY: passed on from the caller.
        unsafe {
            match read.streams {
                2 => streams::<2>(ptr, len, read.prefetch),
                4 => streams::<4>(ptr, len, read.prefetch),
                8 => streams::<8>(ptr, len, read.prefetch),
                _ => streams::<1>(ptr, len, read.prefetch),
            }
        }
    }

    /// [`dispatch`] for one number of streams.
    ///
    /// # Safety
    /// The CPU must have AVX-512 F; `ptr` must be readable for `len` bytes, a multiple of
    /// `S * STREAM`.
    #[target_feature(enable = "avx512f")]
    unsafe fn streams<const S: usize>(ptr: *const u8, len: usize, ahead: usize) -> u64 {
        let mut acc = [_mm512_setzero_si512(); 8];
        for block in (0..len).step_by(S * STREAM) {
            for at in (0..STREAM).step_by(256) {
                for s in 0..S {
                    // SAFETY: `block + s * STREAM + at + 256 <= len` by the loop bounds.
                    unsafe {
                        let p = ptr.add(block + s * STREAM + at);
                        four_lines(p, ahead, &mut acc, s % 2 * 4);
                    }
                }
            }
        }
        // SAFETY: passed on from the caller.
        unsafe { fold(&acc) }
    }

    /// Adds four lines to the sums from `first` on.
    ///
    /// # Safety
    /// The CPU must have AVX-512 F; `p` must be readable for 256 bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn four_lines(p: *const u8, ahead: usize, acc: &mut [__m512i; 8], first: usize) {
        for i in 0..4 {
            if ahead > 0 {
                // A prefetch never faults, wherever it points.
                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead + i * 64).cast());
            }
            // SAFETY: the caller vouches for 256 bytes.
            let line = unsafe { _mm512_loadu_si512(p.add(i * 64).cast()) };
            acc[first + i] = _mm512_xor_si512(acc[first + i], line);
        }
    }

    /// The sums in one word.
    ///
    /// # Safety
    /// The CPU must have AVX-512 F.
    #[target_feature(enable = "avx512f")]
    unsafe fn fold(acc: &[__m512i; 8]) -> u64 {
        let all = acc.iter().fold(_mm512_setzero_si512(), |a, &b| _mm512_xor_si512(a, b));
        let mut words = [0u64; 8];
        // SAFETY: the array is 64 bytes long.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), all) };
        words.iter().fold(0, |a, b| a ^ b)
    }
}
