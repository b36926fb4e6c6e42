//! Probabilities pooled over blocks of queries and keys.

use std::ops::Range;
use std::sync::Mutex;

use super::{CHUNK, Call, ROWS, Strip};
use crate::attend::{Listed, Params, Queries};
use crate::select::{fold_mass_strided, log2_add, lse2_strided, piece_lse2};
use crate::{Error, Executor, Isa};

/// How the probabilities of a block of queries by a block of keys become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The largest (ProxyAttn, arXiv 2509.24745).
    Max,
    /// The sum over keys, mean over queries: the share of attention that the block gets. Divided by
    /// the tokens of a block it is the block mean of SparseD (arXiv 2509.24014).
    Mass,
}

/// The grid to pool over.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Query rows of a block, at least 1; the last one may be shorter.
    pub query_block: usize,
    /// Tokens of a key block, at least 1; the last one may be shorter.
    pub key_block: usize,
    /// What becomes of a block's probabilities.
    pub pool: Pool,
}

/// Attention probabilities pooled over blocks, `[q_heads, query blocks, key blocks]`; overwritten.
/// Query blocks are counted from the first row, key blocks from the first token of the lists.
///
/// With blocks of one row and one token these are the probabilities themselves: of mean keys, of
/// compressed keys (NSA, arXiv 2502.11089), of whatever the caller made its keys.
///
/// # Errors
/// [`Error`] if shapes, lists or parameters do not fit, or if there is more than one sequence.
pub fn blocks(
    queries: &Queries,
    keys: &Listed,
    params: &Params,
    grid: &Blocks,
    exec: &Executor,
    out: &mut [f32],
) -> Result<(), Error> {
    blocks_at(Isa::level(), queries, keys, params, grid, exec, out)
}

/// [`blocks`] at a given instruction-set level (lowered to what the CPU has).
///
/// # Errors
/// As [`blocks`].
pub fn blocks_at(
    isa: Isa,
    queries: &Queries,
    keys: &Listed,
    params: &Params,
    grid: &Blocks,
    exec: &Executor,
    out: &mut [f32],
) -> Result<(), Error> {
    let call = Call::new(isa, queries, keys, params)?;
    for (what, n) in [("query_block", grid.query_block), ("key_block", grid.key_block)] {
        if n == 0 {
            return Err(Error::range(what, "at least 1", n));
        }
    }
    let (query_blocks, width) =
        (call.rows().div_ceil(grid.query_block), call.len.div_ceil(grid.key_block));
    let want = call.q_heads() * query_blocks * width;
    if out.len() != want {
        return Err(Error::shape("pooled scores", want, out.len()));
    }
    out.fill(0.0);
    if want == 0 {
        return Ok(());
    }
    // As many short query blocks as fill a strip.
    let together = (ROWS / grid.query_block).max(1);
    let of_head = query_blocks.div_ceil(together);
    let parts: Vec<Mutex<&mut [f32]>> = out
        .chunks_mut(query_blocks * width)
        .flat_map(|head| head.chunks_mut(together * width))
        .map(Mutex::new)
        .collect();
    exec.run(parts.len(), |task| {
        let (head, first) = (task / of_head, task % of_head * together);
        if let Ok(mut out) = parts[task].lock() {
            let rows = first * grid.query_block;
            let end = (rows + together * grid.query_block).min(call.rows());
            Task { call: &call, grid, head, width }.run(rows..end, &mut out);
        }
    });
    Ok(())
}

/// Some query blocks of one head.
struct Task<'a> {
    call: &'a Call<'a>,
    grid: &'a Blocks,
    head: usize,
    /// Key blocks.
    width: usize,
}

impl Task<'_> {
    fn run(&self, rows: Range<usize>, out: &mut [f32]) {
        let mut strip = self.call.strip();
        let (mut pooled, first) = (Vec::new(), rows.start);
        for from in rows.clone().step_by(ROWS) {
            let strip_rows = from..(from + ROWS).min(rows.end);
            let lse = self.pool(&mut strip, strip_rows.clone(), &mut pooled);
            for (r, lse) in lse.iter().enumerate() {
                let block = (from - first + r) / self.grid.query_block;
                let out = &mut out[block * self.width..][..self.width];
                self.fold(&pooled[r * self.width..][..self.width], *lse, out);
            }
        }
        if self.grid.pool == Pool::Mass {
            for (i, out) in out.chunks_exact_mut(self.width).enumerate() {
                let n = self.grid.query_block.min(rows.len() - i * self.grid.query_block);
                out.iter_mut().for_each(|x| *x /= n as f32);
            }
        }
    }

    /// Per row and key block the largest score or the log-sum-exp; returns that of the whole rows.
    fn pool(&self, strip: &mut Strip, rows: Range<usize>, pooled: &mut Vec<f32>) -> Vec<f32> {
        let (call, width) = (self.call, self.width);
        pooled.clear();
        pooled.resize(rows.len() * width, f32::NEG_INFINITY);
        let mut lse = call.start(self.head, rows.len());
        call.walk(strip, self.head, rows, |first, n, s| {
            lse2_strided(s, CHUNK, n, 1.0, &mut lse);
            for (s, pooled) in s.chunks_exact(CHUNK).zip(pooled.chunks_exact_mut(width)) {
                self.pieces(first, &s[..n], pooled);
            }
        });
        lse
    }

    /// Joins a row's scores from token `first` on into those of their key blocks.
    fn pieces(&self, first: usize, s: &[f32], pooled: &mut [f32]) {
        let mut at = 0;
        while at < s.len() {
            let block = (first + at) / self.grid.key_block;
            let end = ((block + 1) * self.grid.key_block - first).min(s.len());
            let (piece, own) = (&s[at..end], &mut pooled[block]);
            *own = match self.grid.pool {
                Pool::Max => larger(*own, largest(piece)),
                Pool::Mass => match (*own, piece_lse2(self.call.isa, piece)) {
                    (f32::NEG_INFINITY, lse) => lse,
                    (own, lse) if own.is_nan() || lse.is_nan() => f32::NAN,
                    (own, lse) => log2_add(own, lse),
                },
            };
            at = end;
        }
    }

    /// Adds a row's probabilities to those of its query block.
    fn fold(&self, pooled: &[f32], lse: f32, out: &mut [f32]) {
        let mut p = [0f32; CHUNK];
        for (pooled, out) in pooled.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
            let p = &mut p[..pooled.len()];
            fold_mass_strided(pooled, p.len(), p.len(), 1.0, &[lse], p);
            for (o, &p) in out.iter_mut().zip(&*p) {
                *o = if self.grid.pool == Pool::Max { larger(*o, p) } else { *o + p };
            }
        }
    }
}

/// The larger one; NaN if either is.
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

/// The largest; NaN if any is.
fn largest(x: &[f32]) -> f32 {
    // Sixteen at a time: one would wait for the other.
    const LANES: usize = 16;
    let (mut top, mut nan) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
    let (body, tail) = x.as_chunks::<LANES>();
    for x in body {
        for i in 0..LANES {
            top[i] = if x[i] > top[i] { x[i] } else { top[i] };
            nan[i] |= x[i].is_nan();
        }
    }
    let top = top.into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, larger);
    if nan.contains(&true) { f32::NAN } else { top }
}
