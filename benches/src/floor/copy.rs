//! Copying memory, and copying it with a checksum: the limits of moving blocks into and out of a
//! store in memory.

use std::hint::black_box;

use twox_hash::XxHash3_64;

use crate::timing::time;

/// A way to copy a block. Which one is faster depends on the machine and on the block's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyLoop {
    /// The C library's `memcpy`.
    Plain,
    /// Stores that bypass the caches (AVX-512); `Plain` where there are none.
    Streaming,
}

impl CopyLoop {
    /// All loops worth trying.
    #[must_use]
    pub fn candidates() -> [CopyLoop; 2] {
        [CopyLoop::Plain, CopyLoop::Streaming]
    }

    /// Copies `from` into `to`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy(self, from: &[u8], to: &mut [u8]) {
        assert_eq!(from.len(), to.len(), "a copy has the length of its source");
        #[cfg(target_arch = "x86_64")]
        if self == CopyLoop::Streaming && x86::fits(to) {
            let whole = from.len() - from.len() % x86::STEP;
            // SAFETY: `fits` found AVX-512 and an aligned target; both slices hold `whole` bytes,
            // a multiple of the step.
            unsafe { x86::stream(from.as_ptr(), to.as_mut_ptr(), whole) };
            to[whole..].copy_from_slice(&from[whole..]);
            return;
        }
        to.copy_from_slice(from);
    }
}

/// Seconds to copy `from` into `to`, block after block.
pub fn copy_seconds(how: CopyLoop, from: &[u8], to: &mut [u8], block: usize) -> f64 {
    let order: Vec<u32> = (0..to.len().div_ceil(block) as u32).collect();
    gather_seconds(how, from, to, block, &order)
}

/// Seconds to copy the blocks of `from` named by `order` side by side into `to`.
///
/// # Panics
/// If there is no such block.
pub fn gather_seconds(
    how: CopyLoop,
    from: &[u8],
    to: &mut [u8],
    block: usize,
    order: &[u32],
) -> f64 {
    time(|| {
        for (&i, to) in order.iter().zip(to.chunks_mut(block)) {
            how.copy(&from[i as usize * block..][..to.len()], to);
        }
        black_box(to);
    })
}

/// Seconds to copy `from` into `to` block after block in pieces, each hashed (xxh3-64) right after
/// it was copied, while it lies in the nearest caches.
pub fn copy_hash_seconds(piece: usize, from: &[u8], to: &mut [u8], block: usize) -> f64 {
    time(|| {
        let mut all = 0;
        for (from, to) in from.chunks(block).zip(to.chunks_mut(block)) {
            for (from, to) in from.chunks(piece).zip(to.chunks_mut(piece)) {
                to.copy_from_slice(from);
                all ^= XxHash3_64::oneshot(to);
            }
        }
        black_box(all);
    })
}

/// The loop that copies blocks of this size fastest.
pub fn best_copy(from: &[u8], to: &mut [u8], block: usize) -> CopyLoop {
    let mut rate = |how| {
        let times = (0..3).map(|_| copy_seconds(how, from, to, block));
        times.fold(f64::INFINITY, f64::min)
    };
    let timed = CopyLoop::candidates().map(|how| (rate(how), how));
    timed.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(CopyLoop::Plain, |best| best.1)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm_sfence, _mm512_loadu_si512, _mm512_stream_si512,
    };

    /// Bytes of one round.
    pub(super) const STEP: usize = 256;
    const AHEAD: usize = 2048;

    pub(super) fn fits(to: &[u8]) -> bool {
        to.as_ptr().addr().is_multiple_of(64) && is_x86_feature_detected!("avx512f")
    }

    /// # Safety
    /// AVX-512F; `from` readable and `to` writable for `len`, a multiple of [`STEP`]; `to` aligned
    /// to 64 bytes.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn stream(from: *const u8, to: *mut u8, len: usize) {
        for at in (0..len).step_by(STEP) {
            for line in (at..at + STEP).step_by(64) {
                // A prefetch never faults, wherever it points.
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line + AHEAD).cast());
                // SAFETY: `line + 64 <= len`, and `to` is aligned.
                unsafe {
                    let bytes = _mm512_loadu_si512(from.add(line).cast());
                    _mm512_stream_si512(to.add(line).cast(), bytes);
                }
            }
        }
        _mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arena;

    #[test]
    fn every_loop_copies_every_byte() {
        let from: Vec<u8> = (0..100_003u32).map(|i| (i * 31 + 7) as u8).collect();
        for how in CopyLoop::candidates() {
            for at in [0, 1] {
                let mut arena = Arena::new(from.len() + 1).unwrap();
                let to = &mut arena.bytes_mut()[at..at + from.len()];
                assert!(copy_seconds(how, &from, to, 4096) > 0.0);
                assert_eq!(to, from, "{how:?}");
            }
        }
    }

    #[test]
    fn copying_with_a_hash_copies_too() {
        let from = vec![5; 300_000];
        let mut to = vec![0; 300_000];
        assert!(copy_hash_seconds(16 << 10, &from, &mut to, 1 << 16) > 0.0);
        assert_eq!(from, to);
    }
}
