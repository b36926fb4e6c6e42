//! Derives from keys what selectors score, when enough tokens wait for it.

use std::ops::Range;

use kvist_kernels::Tensor3;
use kvist_kernels::cluster::pq::PqSpec;
use kvist_policies::{Digest, Method, Parts};

use super::make::Context;
use super::{Call, Run};
use crate::index::{BATCH, Index};
use crate::memory::Asked;
use crate::{Error, Geometry};

/// Bytes of pages brought near at a time.
const BYTES: usize = 2 << 20;

/// Keys of consecutive tokens of one head, and values where they are wanted.
pub(super) struct Taken {
    pub(super) tokens: Range<usize>,
    pub(super) k: Vec<u8>,
    pub(super) v: Vec<u8>,
}

/// Checks that a digest can be made from keys of this shape.
pub(crate) fn check(digest: &Digest, geometry: &Geometry) -> Result<(), Error> {
    match *digest {
        Digest::Codes { parts, bits, .. } => {
            Ok(PqSpec::new(geometry.dim_k, parts, bits).map(drop)?)
        }
        _ => Ok(()),
    }
}

/// The tokens to derive from next; empty while they wait.
fn due(parts: &Parts, index: &Index, len: usize) -> Range<usize> {
    let unit = parts.unit_tokens();
    let first = parts.keep.sinks.next_multiple_of(unit);
    let recent = match parts.digest {
        // The queries of the window are what judges the blocks in front of it.
        Digest::Representatives { behind, .. } => behind,
        // Means of all units are kept up to date elsewhere; here it is whole units that count.
        Digest::Landmarks { .. } => 0,
        _ => parts.keep.recent,
    };
    let end = len.saturating_sub(recent) / unit * unit;
    let Some(done) = index.end() else { return first..end.max(first) };
    // What depends on single tokens or units is made again until there is a batch of it.
    let short = index.later().filter(|part| part.tokens.len() < BATCH);
    let (from, wait) = match parts.digest {
        Digest::Clusters(c) => (done, c.window),
        _ => (short.map_or(done, |part| part.tokens.start), 1),
    };
    if end >= done + wait { from..end } else { done..done }
}

impl Call<'_> {
    /// Derives what the selectors of a run's heads are missing.
    pub(super) fn derive(&self, run: &Run, q: &Tensor3) -> Result<(), Error> {
        let heads = self.cache.geometry().kv_heads;
        for (row, sequence) in run.sequences.iter().enumerate() {
            let len = sequence.layers[self.layer].len;
            for head in 0..heads {
                let Method::Parts(parts) = sequence.selector.method(self.layer, head, len) else {
                    continue;
                };
                if !parts.derives() {
                    continue;
                }
                let (mut index, asked) = {
                    let mut memory = sequence.memories.of(self.layer);
                    memory.index.resize_with(heads, Index::default);
                    let index = memory.index[head].clone();
                    if due(parts, &index, len).is_empty() {
                        drop(memory);
                        self.order(run, row, head, &index, None)?;
                        continue;
                    }
                    let asked = self.asked(&memory.asked, q, row);
                    (index, asked)
                };
                let tokens = due(parts, &index, len);
                let values = matches!(parts.digest, Digest::Clusters(c)
                    if c.estimated > 0.0 || self.orders(run));
                let taken = self.take(run, row, head, tokens, values)?;
                let first = index.first();
                let part =
                    Context { call: self, asked: &asked, head, first }.part(parts, &taken)?;
                index.push(part);
                sequence.memories.of(self.layer).index[head] = index.clone();
                self.order(run, row, head, &index, Some(taken))?;
            }
        }
        Ok(())
    }

    /// What was asked so far; by this query if none was seen.
    fn asked(&self, asked: &Asked, q: &Tensor3, row: usize) -> Asked {
        let mut asked = asked.clone();
        if asked.channels.is_empty() {
            self.add_channels(&mut asked.channels, q, row);
        }
        asked
    }

    /// Adds the magnitudes of a query's channels.
    pub(super) fn add_channels(&self, sums: &mut Vec<f32>, q: &Tensor3, row: usize) {
        let g = self.cache.geometry();
        sums.resize(g.kv_heads * g.dim_k, 0.0);
        let mut one = vec![0f32; g.dim_k];
        for head in 0..g.q_heads {
            q.read_f32(row, head, &mut one);
            let of_head = sums[head / g.group() * g.dim_k..].iter_mut();
            of_head.zip(&one).for_each(|(sum, x)| *sum += x.abs());
        }
    }

    /// Copies keys of consecutive tokens, which are brought near where they are not.
    pub(super) fn take(
        &self,
        run: &Run,
        row: usize,
        head: usize,
        tokens: Range<usize>,
        values: bool,
    ) -> Result<Taken, Error> {
        let g = self.cache.geometry();
        let layer = &run.sequences[row].layers[self.layer];
        let ids = run.ids(self, row, head);
        let far = if run.whole.is_empty() { layer.sealed.len() } else { 0 };
        let mut taken = Taken { tokens: tokens.clone(), k: Vec::new(), v: Vec::new() };
        let pages: Vec<usize> =
            (tokens.start / g.page_tokens..tokens.end.div_ceil(g.page_tokens)).collect();
        let n = self.cache.shared.tier.as_ref().map_or(pages.len(), |tier| tier.frames_for(BYTES));
        for pages in pages.chunk_by(|a, b| (*a < far) == (*b < far) && a / n == b / n) {
            let mut lease = None;
            let frames: Vec<u32> = match (&self.cache.shared.tier, pages[0] < far) {
                (Some(tier), true) => {
                    let keys: Vec<_> = pages.iter().map(|&p| layer.sealed[p].page(head)).collect();
                    let (held, frames) = self.cache.with_frames(|| tier.bring(&keys))?;
                    lease = Some(held);
                    frames
                }
                _ => pages.iter().map(|&p| ids[p - far]).collect(),
            };
            self.copy(pages, &frames, &mut taken, values)?;
            drop(lease);
        }
        Ok(taken)
    }

    /// Copies what a part's tokens have in these pages.
    fn copy(
        &self,
        pages: &[usize],
        frames: &[u32],
        taken: &mut Taken,
        values: bool,
    ) -> Result<(), Error> {
        let g = self.cache.geometry();
        let pool = self.cache.pool()?;
        for (&page, &frame) in pages.iter().zip(frames) {
            let first = page * g.page_tokens;
            let from = taken.tokens.start.max(first);
            for token in from..taken.tokens.end.min(first + g.page_tokens) {
                let (frame, at) = (frame as usize, token - first);
                // SAFETY: the token is below the layer's length; its page is held by the sequence, and leased
                // where it is sealed.
                let row = |row: *const u8, dim: usize| unsafe {
                    std::slice::from_raw_parts(row, dim * g.dtype.size())
                };
                taken.k.extend_from_slice(row(pool.k_row(frame, 0, at), g.dim_k));
                if values {
                    taken.v.extend_from_slice(row(pool.v_row(frame, 0, at), g.dim_v));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvist_policies::{ClusterKv, InfLlm, InfiniGen, Select};

    use super::*;
    use crate::budget::{Budget, Charge};
    use crate::index::{Made, Part};

    fn parts(select: impl Into<Select>) -> Parts {
        match select.into().method() {
            Method::Parts(parts) => parts,
            other => panic!("{other:?}"),
        }
    }

    /// Derives for lengths one after the other.
    fn grow(parts: &Parts, lens: &[usize]) -> Vec<(usize, usize)> {
        let mut index = Index::default();
        for &len in lens {
            let tokens = due(parts, &index, len);
            if !tokens.is_empty() {
                let charge = Charge::none(Arc::new(Budget::new(0)));
                index.push(Part::new(tokens, Vec::new(), Made::Rows(Vec::new()), charge));
            }
        }
        index.parts().map(|part| (part.tokens.start, part.tokens.end)).collect()
    }

    #[test]
    fn tokens_wait_until_there_are_enough() {
        let clusters = parts(ClusterKv { sinks: 4, window: 10, ..ClusterKv::default() });
        assert_eq!(grow(&clusters, &[3, 100, 105, 109]), [(4, 99)]);
        assert_eq!(grow(&clusters, &[100, 109, 110, 111]), [(4, 99), (99, 109)]);
        let blocks = parts(InfLlm { unit_tokens: 16, sinks: 4, recent: 32, ..InfLlm::default() });
        assert_eq!(grow(&blocks, &[100, 111, 112]), [(16, 64), (64, 80)]);
        assert_eq!(grow(&blocks, &[100, 112, 128, 200]), [(16, 64), (64, 160)]);
        let channels = parts(InfiniGen::default());
        assert_eq!(grow(&channels, &[21, 22, 23, 84, 85, 86]), [(0, 20), (20, 84), (84, 85)]);
    }
}
