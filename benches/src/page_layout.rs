//! Bare reads of two layouts of a page: the K tile and then the V tile of 64 tokens, or units
//! interleaved (K and V of 16 tokens side by side). No arithmetic beyond an XOR of what was read.

use kvist_kernels::DType;

use crate::{Arena, Error, Line, Options, Params, Rng, Sink, repeat};

/// Bytes of memory walked over.
const BYTES: usize = 512 << 20;
const PAGE_TOKENS: usize = 64;
const UNIT_TOKENS: usize = 16;

/// How a page is laid out.
#[derive(Clone, Copy)]
enum Layout {
    Tiles,
    Interleaved,
}

/// What is read, in which order.
#[derive(Clone, Copy)]
enum Walk {
    Dense,
    ShuffledPages,
    Units,
    Tokens,
}

impl Walk {
    fn name(self) -> &'static str {
        match self {
            Walk::Dense => "dense, in order",
            Walk::ShuffledPages => "dense, pages shuffled",
            Walk::Units => "1/8 of the 16-token units, scattered",
            Walk::Tokens => "1/8 of the tokens, scattered",
        }
    }
}

/// Runs of bytes `(start, len)` in the order in which attention would read them.
fn runs(
    layout: Layout,
    walk: Walk,
    row: usize,
    pages: usize,
    rng: &mut Rng,
) -> Vec<(usize, usize)> {
    let page = 2 * PAGE_TOKENS * row;
    let rows = |first: usize, n: usize| -> [(usize, usize); 2] {
        let (base, t) = (first / PAGE_TOKENS * page, first % PAGE_TOKENS);
        let (k, v) = match layout {
            Layout::Tiles => (t * row, (PAGE_TOKENS + t) * row),
            Layout::Interleaved => {
                let unit = t / UNIT_TOKENS * 2 * UNIT_TOKENS * row + t % UNIT_TOKENS * row;
                (unit, unit + UNIT_TOKENS * row)
            }
        };
        [(base + k, n * row), (base + v, n * row)]
    };
    match walk {
        Walk::Dense => (0..pages).map(|p| (p * page, page)).collect(),
        Walk::ShuffledPages => {
            rng.permutation(pages).into_iter().map(|p| (p as usize * page, page)).collect()
        }
        Walk::Units => {
            let units = pages * PAGE_TOKENS / UNIT_TOKENS;
            let some = rng.choose(units, units / 8);
            some.into_iter().flat_map(|u| rows(u as usize * UNIT_TOKENS, UNIT_TOKENS)).collect()
        }
        Walk::Tokens => {
            let tokens = pages * PAGE_TOKENS;
            let some = rng.choose(tokens, tokens / 8);
            some.into_iter().flat_map(|t| rows(t as usize, 1)).collect()
        }
    }
}

/// XOR of everything in the runs, touching the run `ahead` places further on if that is not 0.
fn read(bytes: &[u8], runs: &[(usize, usize)], ahead: usize) -> u64 {
    let mut sum = [0u64; 8];
    for (i, &(start, len)) in runs.iter().enumerate() {
        if ahead > 0
            && let Some(&(next, len)) = runs.get(i + ahead)
        {
            touch(&bytes[next..next + len]);
        }
        for line in bytes[start..start + len].as_chunks::<64>().0 {
            for (s, word) in sum.iter_mut().zip(line.as_chunks::<8>().0) {
                *s ^= u64::from_ne_bytes(*word);
            }
        }
    }
    sum.into_iter().fold(0, |a, b| a ^ b)
}

fn touch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch never faults.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let dim = options.head_dim.unwrap_or(128);
    let row = dim * DType::Bf16.size();
    let arena = Arena::random(BYTES, DType::Bf16, 31)?;
    let pages = arena.bytes().len() / (2 * PAGE_TOKENS * row);
    for walk in [Walk::Dense, Walk::ShuffledPages, Walk::Units, Walk::Tokens] {
        for ahead in [0, 1, 8] {
            let mut results = Vec::new();
            for layout in [Layout::Tiles, Layout::Interleaved] {
                let runs = runs(layout, walk, row, pages, &mut Rng::new(32));
                let total: usize = runs.iter().map(|r| r.1).sum();
                let sample = repeat(options.repeats(), || {
                    std::hint::black_box(read(arena.bytes(), &runs, ahead));
                });
                results.push((sample, total as f64 / sample.median * 1e-9));
            }
            let params = Params::new().with("head_dim", dim).with("walk", walk.name());
            let params = params.with("prefetch_runs", ahead).with("layout", "tiles");
            let (sample, rate) = results[0];
            sink.push(
                Line::new("page-layout", params, rate, "GB/s")
                    .peer("units interleaved", results[1].1)
                    .repeated(sample.repeats, sample.spread),
            );
        }
    }
    Ok(())
}
