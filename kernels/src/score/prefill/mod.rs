//! What block-sparse prefill chooses by: attention probabilities of many queries, summed over lines
//! ([`lines`]) or pooled over blocks ([`blocks`]), and means over tokens and heads ([`means`]).
//!
//! No matrix of queries by keys is stored: query rows go through the keys in strips of 64 rows and
//! 256 tokens. All functions take the keys of *one* sequence. Probabilities are those of the exact
//! softmax (to 3e-6); a query that sees nothing has none. A score that is NaN gives NaN: it is
//! unknown, and whoever chooses should choose it.

mod blocks;
mod lines;
mod means;

use std::ops::Range;

use crate::arch::{self, Loops};
use crate::attend::source::Source;
use crate::attend::{Listed, Params, Queries};
use crate::rows::QueryRows;
use crate::{Error, Isa, KvPool};

pub use blocks::{Blocks, Pool, blocks, blocks_at};
pub use lines::{lines, lines_at};
pub use means::means;

/// Tokens of a strip: rows of keys are asked for ahead within it.
const CHUNK: usize = 256;
/// Query rows of a strip: its scores stay in L2.
const ROWS: usize = 64;

/// A checked call.
struct Call<'a> {
    isa: Isa,
    queries: &'a Queries<'a>,
    pool: &'a KvPool<'a>,
    source: Source<'a>,
    params: &'a Params<'a>,
    loops: Loops,
    kv_heads: usize,
    /// Tokens of every list.
    len: usize,
}

/// Buffers of a task.
struct Strip {
    q: Vec<f32>,
    query: QueryRows,
    /// Scores in base 2, `[rows][CHUNK]`.
    s: Vec<f32>,
    k: [*const u8; CHUNK],
    v: [*const u8; CHUNK],
}

impl<'a> Call<'a> {
    fn new(
        isa: Isa,
        queries: &'a Queries,
        keys: &Listed<'a>,
        params: &'a Params,
    ) -> Result<Call<'a>, Error> {
        let kv_heads = keys.check(queries, params)?;
        let sequences = queries.indptr.len() - 1;
        if sequences != 1 {
            return Err(Error::shape("query indptr", "one sequence", sequences));
        }
        let (pool, source) = keys.source();
        let len = same_len(&source, kv_heads)?;
        let loops = arch::table(isa, pool.dtype(), params.precise);
        let isa = isa.min(Isa::detected());
        Ok(Call { isa, queries, pool, source, params, loops, kv_heads, len })
    }

    fn q_heads(&self) -> usize {
        self.queries.q.shape()[1]
    }

    fn rows(&self) -> usize {
        self.queries.q.shape()[0]
    }

    /// The KV head and list that a query head reads.
    fn list(&self, head: usize) -> (usize, usize) {
        let kv_head = head / (self.q_heads() / self.kv_heads);
        (kv_head, self.source.list(0, kv_head, self.kv_heads))
    }

    /// What a query row sees of its list.
    fn seen(&self, list: usize, row: usize) -> Range<usize> {
        self.source.seen(list, self.queries.positions.map(|p| p[row]), self.params)
    }

    fn strip(&self) -> Strip {
        let query = QueryRows::empty(self.loops, self.pool.layout().dim_k);
        let none = [std::ptr::null(); CHUNK];
        Strip { q: Vec::new(), query, s: Vec::new(), k: none, v: none }
    }

    /// Takes query rows of one head through all the keys that any of them sees. `each` gets the first
    /// token of a chunk, the number of its tokens, and their scores in base 2, `[rows][CHUNK]`; minus
    /// infinity where a row does not see the token.
    fn walk(
        &self,
        strip: &mut Strip,
        head: usize,
        rows: Range<usize>,
        mut each: impl FnMut(usize, usize, &mut [f32]),
    ) {
        let (kv_head, list) = self.list(head);
        let seen: Vec<Range<usize>> = rows.clone().map(|row| self.seen(list, row)).collect();
        let visible = seen.iter().filter(|r| !r.is_empty());
        let (from, to) = visible.fold((usize::MAX, 0), |(a, b), r| (a.min(r.start), b.max(r.end)));
        self.load(strip, head, rows.clone());
        strip.s.resize(rows.len() * CHUNK, 0.0);
        for first in (from / CHUNK * CHUNK..to).step_by(CHUNK) {
            let n = CHUNK.min(to - first);
            let (k, v) = (&mut strip.k[..n], &mut strip.v[..n]);
            self.source.fill(self.pool, list, kv_head, first, (k, v));
            // SAFETY: the pool vouches for the rows of listed tokens; a strip's buffer is a multiple
            // of 16 long, and the table only offers levels this CPU has.
            unsafe {
                strip.query.dots(&strip.k[..n], &mut strip.s, CHUNK);
                (self.loops.shape)(&mut strip.s, self.params.scale, self.params.soft_cap);
            }
            for (s, seen) in strip.s.chunks_exact_mut(CHUNK).zip(&seen) {
                let at = |t: usize| t.clamp(first, first + n) - first;
                s[..at(seen.start)].fill(f32::NEG_INFINITY);
                s[at(seen.end.max(seen.start))..n].fill(f32::NEG_INFINITY);
            }
            each(first, n, &mut strip.s);
        }
    }

    fn load(&self, strip: &mut Strip, head: usize, rows: Range<usize>) {
        let dim = self.pool.layout().dim_k;
        strip.q.resize(rows.len() * dim, 0.0);
        for (q, row) in strip.q.chunks_exact_mut(dim).zip(rows) {
            self.queries.q.read_f32(row, head, q);
        }
        strip.query.refill(strip.q.chunks_exact(dim));
    }

    /// Log-sum-exp of each row before any token: that of its sink.
    fn start(&self, head: usize, rows: usize) -> Vec<f32> {
        let sink =
            self.params.sinks.map_or(f32::NEG_INFINITY, |s| s[head] * std::f32::consts::LOG2_E);
        vec![sink; rows]
    }
}

/// Tokens of a sequence's lists, which must be equally many for every KV head.
fn same_len(source: &Source, kv_heads: usize) -> Result<usize, Error> {
    let len = |head| source.len(source.list(0, head, kv_heads));
    let first = len(0);
    match (1..kv_heads).map(len).find(|&n| n != first) {
        Some(other) => {
            Err(Error::shape("tokens of a list", format!("{first} for every head"), other))
        }
        None => Ok(first),
    }
}
