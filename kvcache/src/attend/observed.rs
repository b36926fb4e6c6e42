//! What the last queries of the prompt attended to (SnapKV).

use std::ops::Range;
use std::sync::Arc;

use kvist_kernels::Tensor3;
use kvist_kernels::select;
use kvist_policies::{Digest, Method};

use super::head::Work;
use super::{Call, Run};
use crate::memory::Observed;
use crate::selector::Reads;
use crate::{Error, Sequence};

/// Keys scored at a time; bounds the scores held.
const PIECE: usize = 4096;

impl Call<'_> {
    /// Notes the queries of a prompt's chunk, where a sequence's selector looks at them.
    pub(super) fn observe(&self, run: &Run, q: &Tensor3) {
        let g = self.cache.geometry();
        let mut row = 0;
        for (sequence, &n) in run.sequences.iter().zip(run.queries) {
            let of_head = |reads: &Arc<Reads>| match &reads.method {
                Method::Parts(parts) => parts.observed(),
                Method::Full | Method::Boxed(_) => 0,
            };
            let reads = sequence.selector.layer(self.layer);
            let most = reads.iter().map(of_head).max().unwrap_or(0);
            // A single query is a step, not a prompt.
            if most > 0 && (n > 1 || n == 1 && self.soon_measured(sequence)) {
                let (len, seen) = (sequence.layers[self.layer].len, n.min(most));
                let mut rows = vec![0f32; seen * g.q_heads * g.dim_k];
                for (i, out) in rows.chunks_mut(g.dim_k).enumerate() {
                    q.read_f32(row + n - seen + i / g.q_heads, i % g.q_heads, out);
                }
                let positions = len - seen..len;
                let new = Observed { positions, q: rows };
                sequence.memories.of(self.layer).observe(&new, most);
            }
            self.sum(sequence, q, row..row + n);
            row += n;
        }
    }

    /// Adds up what queries look for, where something is derived that depends on it.
    fn sum(&self, sequence: &Sequence, q: &Tensor3, rows: Range<usize>) {
        let g = self.cache.geometry();
        let derives = |reads: &Arc<Reads>| match &reads.method {
            Method::Parts(parts) => Some(parts.digest).filter(|_| parts.derives()),
            Method::Full | Method::Boxed(_) => None,
        };
        let Some(digest) = sequence.selector.layer(self.layer).iter().find_map(derives) else {
            return;
        };
        let first = sequence.layers[self.layer].len - rows.len();
        let asked = &mut sequence.memories.of(self.layer).asked;
        match digest {
            Digest::Channels { .. } => {
                rows.for_each(|row| self.add_channels(&mut asked.channels, q, row));
            }
            Digest::Representatives { tokens, .. } => {
                (asked.blocks.tokens, asked.blocks.width) = (tokens, g.kv_heads * g.dim_k);
                for (i, row) in rows.enumerate() {
                    self.add_query(asked.blocks.of(first + i), q, row);
                }
            }
            _ => {}
        }
    }

    /// Adds a query, summed over the heads of each group.
    fn add_query(&self, sums: &mut [f32], q: &Tensor3, row: usize) {
        let g = self.cache.geometry();
        let mut one = vec![0f32; g.dim_k];
        for head in 0..g.q_heads {
            q.read_f32(row, head, &mut one);
            let of_head = sums[head / g.group() * g.dim_k..].iter_mut();
            of_head.zip(&one).for_each(|(sum, x)| *sum += x);
        }
    }
}

/// Softmax mass that the observed queries of the head's group give each token in front of them, summed over
/// queries and group and averaged over `pool` neighbours.
pub(super) fn weigh(work: &Work, observed: &Observed, pool: usize) -> Result<Vec<f32>, Error> {
    let (start, end) = (observed.positions.start, observed.positions.end);
    let row = observed.q.len() / observed.positions.len();
    let scale = work.scale_log2();
    let mut mass = vec![0f32; start];
    for (at, queries) in observed.positions.clone().zip(observed.q.chunks(row)) {
        let raw = raw(work, queries, at, end)?;
        let mut lse = vec![f32::NEG_INFINITY; work.group];
        select::lse2_strided(&raw, end, at + 1, scale, &mut lse);
        let mut one = vec![0f32; start];
        if start > 0 {
            select::fold_mass_strided(&raw, end, start, scale, &lse, &mut one);
        }
        mass.iter_mut().zip(one).for_each(|(m, o)| *m += o);
    }
    Ok(pooled(&mass, pool))
}

/// Exact raw q.k of the head's group among `queries`, those of all heads at position `at`, with the keys up
/// to there: `[group][end]`, zeros behind.
pub(super) fn raw(work: &Work, queries: &[f32], at: usize, end: usize) -> Result<Vec<f32>, Error> {
    let dim = work.call.cache.geometry().dim_k;
    let group = &queries[work.number * work.group * dim..][..work.group * dim];
    let rows = work.query_rows(group, false);
    let mut raw = vec![0f32; work.group * end];
    for from in (0..=at).step_by(PIECE) {
        let to = (from + PIECE).min(at + 1);
        let part = work.logits(&rows, from as u32..to as u32)?;
        for (all, part) in raw.chunks_mut(end).zip(part.chunks(to - from)) {
            all[from..to].copy_from_slice(part);
        }
    }
    Ok(raw)
}

/// Mean over `pool` neighbours, zeros beyond the ends.
fn pooled(x: &[f32], pool: usize) -> Vec<f32> {
    let half = pool / 2;
    let mean = |i: usize| {
        let near = &x[i.saturating_sub(half)..(i + half + 1).min(x.len())];
        near.iter().sum::<f32>() / pool as f32
    };
    (0..x.len()).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::pooled;

    #[test]
    fn neighbours_are_averaged() {
        assert_eq!(pooled(&[3.0, 0.0, 6.0, 0.0], 3), [1.0, 3.0, 2.0, 2.0]);
        assert_eq!(pooled(&[3.0, 0.0], 1), [3.0, 0.0]);
        assert!(pooled(&[], 5).is_empty());
    }
}
