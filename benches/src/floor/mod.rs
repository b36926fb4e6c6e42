//! The machine's limits, measured: how fast this many cores can read or copy this very memory, how
//! many multiply-adds they do when nothing has to be fetched, and what the disk gives and takes.

mod compute;
mod copy;
#[cfg(target_os = "linux")]
mod disk;
#[cfg(target_os = "linux")]
mod queue;
mod read;

use std::sync::Barrier;
use std::time::Instant;

use kvist_kernels::DType;

pub use compute::{byte_products, multiply_adds};
pub use copy::{CopyLoop, best_copy, copy_hash_seconds, copy_seconds, gather_seconds};
#[cfg(target_os = "linux")]
pub use disk::{DiskFile, ReadPlan, WriteSync};
pub use read::ReadLoop;

/// Runs `work(thread)` on `threads` threads at once; seconds from the common start to the last
/// end. Starting the threads is not counted.
pub(crate) fn together(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    if threads <= 1 {
        return crate::timing::time(|| work(0));
    }
    let barrier = Barrier::new(threads);
    let one = |thread: usize| {
        barrier.wait();
        let start = Instant::now();
        work(thread);
        (start, Instant::now())
    };
    let spans: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let one = &one;
        let handles: Vec<_> = (1..threads).map(|t| scope.spawn(move || one(t))).collect();
        let mut spans = vec![one(0)];
        spans.extend(handles.into_iter().filter_map(|h| h.join().ok()));
        spans
    });
    let first = spans.iter().map(|s| s.0).min();
    let last = spans.iter().map(|s| s.1).max();
    match (first, last) {
        (Some(first), Some(last)) => (last - first).as_secs_f64(),
        _ => f64::NAN,
    }
}

/// Seconds of one pass over `bytes` with `threads` threads, each over its own part.
pub fn read_seconds(read: ReadLoop, bytes: &[u8], threads: usize) -> f64 {
    let part = bytes.len().div_ceil(threads.max(1)).next_multiple_of(1 << 16);
    together(threads, |t| {
        let from = (t * part).min(bytes.len());
        let to = ((t + 1) * part).min(bytes.len());
        std::hint::black_box(read.sum(&bytes[from..to]));
    })
}

/// The read loop that is fastest on this machine with this many threads.
pub fn best_read(bytes: &[u8], threads: usize) -> ReadLoop {
    let sample = &bytes[..bytes.len().min(256 << 20)];
    let rate = |read: ReadLoop| {
        let times = (0..3).map(|_| read_seconds(read, sample, threads));
        times.fold(f64::INFINITY, f64::min)
    };
    let timed = ReadLoop::candidates().into_iter().map(|read| (rate(read), read));
    timed.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(ReadLoop::PLAIN, |best| best.1)
}

/// Billions of multiply-adds per second that `threads` cores do on operands in registers:
/// `vdpbf16ps` for bf16 where the CPU has it, f32 FMA else.
#[must_use]
pub fn multiply_add_rate(dtype: DType, threads: usize) -> f64 {
    rate(threads, |steps| multiply_adds(dtype, steps))
}

/// The same of [`byte_products`].
#[must_use]
pub fn product_rate(threads: usize) -> f64 {
    rate(threads, byte_products)
}

/// Best of several short runs, because nothing but a disturbance can make it slower.
fn rate(threads: usize, work: impl Fn(usize) -> usize + Sync) -> f64 {
    const STEPS: usize = 200_000;
    let run = || {
        let done = std::sync::atomic::AtomicUsize::new(0);
        let seconds = together(threads, |_| {
            done.fetch_add(work(STEPS), std::sync::atomic::Ordering::Relaxed);
        });
        done.into_inner() as f64 / seconds * 1e-9
    };
    (0..8).map(|_| run()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_read_loop_sees_every_byte() {
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i * 7 + 1) as u8).collect();
        let words = bytes.chunks(8).map(|c| {
            let mut word = [0u8; 8];
            word[..c.len()].copy_from_slice(c);
            u64::from_ne_bytes(word)
        });
        let expected = words.fold(0, |a, w| a ^ w);
        for read in ReadLoop::candidates() {
            assert_eq!(read.sum(&bytes), expected, "{read:?}");
        }
    }

    #[test]
    fn rates_are_positive_on_one_and_two_threads() {
        for threads in [1, 2] {
            assert!(multiply_add_rate(DType::F32, threads) > 0.0);
            assert!(product_rate(threads) > 0.0);
            assert!(read_seconds(ReadLoop::PLAIN, &[1; 100_000], threads) > 0.0);
        }
    }
}
