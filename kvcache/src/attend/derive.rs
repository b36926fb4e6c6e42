//! Derives from keys what selectors score: clusters, codes, channels, means and representatives.

use std::ops::Range;
use std::sync::Arc;

use kvist_kernels::cluster::pq::{Codebook, PqSpec};
use kvist_kernels::cluster::{self, Count, Head, KMeans, Rows};
use kvist_kernels::{Isa, Tensor3, convert, select};
use kvist_policies::{Clustering, Digest, Method, Parts, Style};

use super::{Call, Run};
use crate::budget::Charge;
use crate::index::{BATCH, Index, Made, Part};
use crate::memory::Asked;
use crate::{Error, Geometry};

/// Pages brought near at a time.
const PAGES: usize = 64;

/// Keys of consecutive tokens of one head, and values where they are wanted.
pub(super) struct Taken {
    pub(super) tokens: Range<usize>,
    pub(super) k: Vec<u8>,
    pub(super) v: Vec<u8>,
}

/// What the parts of an index depend on besides the keys.
struct Context<'a> {
    call: &'a Call<'a>,
    asked: &'a Asked,
    head: usize,
    /// What was derived from the first tokens.
    first: Option<&'a Part>,
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
                    if c.estimated > 0.0 || self.clustered(run).is_some());
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
        for pages in pages.chunk_by(|a, b| (*a < far) == (*b < far) && a / PAGES == b / PAGES) {
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

impl Context<'_> {
    fn part(&self, parts: &Parts, taken: &Taken) -> Result<Part, Error> {
        let g = self.call.cache.geometry();
        let (tokens, bytes) = (taken.tokens.clone(), g.dim_k * g.dtype.size());
        let keys: Vec<*const u8> = taken.k.chunks_exact(bytes).map(<[u8]>::as_ptr).collect();
        // SAFETY: the rows are those that were copied.
        let rows = unsafe { Rows::new(g.dtype, g.dim_k, &keys) }?;
        let mut open = Vec::new();
        let made = match parts.digest {
            Digest::Clusters(clustering) => self.clusters(&clustering, rows, taken, &mut open)?,
            Digest::Codes { parts, bits, iterations } => {
                let spec = PqSpec::new(g.dim_k, parts, bits)?;
                let made = self.codes(spec, iterations, rows, &mut open)?;
                open.iter_mut().for_each(|t| *t += tokens.start as u32);
                made
            }
            Digest::Channels { share } => self.channels(share, &taken.k),
            Digest::Representatives { tokens: unit, count, behind } => {
                self.representatives(unit, count, behind, taken)
            }
            Digest::Landmarks { tokens: unit, .. } => Made::Cosines(
                self.floats(&taken.k)
                    .chunks(unit * g.dim_k)
                    .map(|u| least_cosine(u, g.dim_k))
                    .collect(),
            ),
            _ => unreachable!("nothing is derived for other digests"),
        };
        if matches!(made, Made::Channels { .. }) {
            let of = |(i, key): (usize, &[f32])| {
                key.iter().any(|x| !x.is_finite()).then_some((tokens.start + i) as u32)
            };
            open = self.floats(&taken.k).chunks(g.dim_k).enumerate().filter_map(of).collect();
        }
        let budget = &self.call.cache.shared.budget;
        let charge = self.call.cache.with_room(|| {
            let mut charge = Charge::none(budget.clone());
            charge.grow_to(made.bytes() + 4 * open.len() as u64)?;
            Ok(charge)
        })?;
        Ok(Part::new(tokens, open, made, charge))
    }

    fn floats(&self, k: &[u8]) -> Vec<f32> {
        let g = self.call.cache.geometry();
        let mut floats = vec![0f32; k.len() / g.dtype.size()];
        // SAFETY: as many elements as there are numbers.
        unsafe { convert::widen(g.dtype, k.as_ptr(), &mut floats) }
        floats
    }

    fn clusters(
        &self,
        how: &Clustering,
        keys: Rows,
        taken: &Taken,
        open: &mut Vec<u32>,
    ) -> Result<Made, Error> {
        let g = self.call.cache.geometry();
        let base = match how.style {
            Style::Whole => KMeans::cluster_kv(),
            Style::Segments => KMeans::retro_infer(),
        };
        // What comes in small portions gets smaller clusters.
        let later = self.first.is_some() && keys.len() < 2 * how.window;
        let size = if later { how.later } else { how.size };
        let settings = KMeans { count: Count::PerTokens(size), iterations: how.iterations, ..base };
        let rows = taken.v.chunks_exact(g.dim_v * g.dtype.size()).map(<[u8]>::as_ptr);
        let ptrs: Vec<*const u8> = rows.collect();
        let values = match how.estimated > 0.0 {
            // SAFETY: the rows are those that were copied.
            true => Some(unsafe { Rows::new(g.dtype, g.dim_v, &ptrs) }?),
            false => None,
        };
        let exec = &self.call.cache.shared.exec;
        let mut built = cluster::build(&settings, &[Head { keys, values }], Isa::level(), exec)?;
        let Some(clusters) = built.pop() else { unreachable!("a result for each head") };
        let first = taken.tokens.start as u32;
        open.extend(clusters.unclustered().iter().map(|t| t + first));
        Ok(Made::Clusters(clusters))
    }

    fn codes(
        &self,
        spec: PqSpec,
        iterations: usize,
        keys: Rows,
        open: &mut Vec<u32>,
    ) -> Result<Made, Error> {
        let (isa, exec) = (Isa::level(), &self.call.cache.shared.exec);
        let book = match self.first.map(|first| &first.made) {
            Some(Made::Codes { book, .. }) => book.clone(),
            _ => Arc::new(Codebook::train(spec, &keys, iterations, isa, exec)?),
        };
        let tiles = keys.len().div_ceil(BATCH);
        let mut cells = vec![0u8; tiles * spec.cell_bytes()];
        *open = book.encode(&keys, 0, &mut cells, isa, exec)?;
        Ok(Made::Codes { book, cells, ids: (0..tiles as u32).collect() })
    }

    /// The channels on which queries are largest, of all keys.
    fn channels(&self, share: f32, k: &[u8]) -> Made {
        let g = self.call.cache.geometry();
        let channels = match self.first.map(|first| &first.made) {
            Some(Made::Channels { channels, .. }) => channels.clone(),
            _ => {
                let n = ((share * g.dim_k as f32) as usize).max(1);
                let mut best = Vec::new();
                select::top_k(&self.asked.channels[self.head * g.dim_k..][..g.dim_k], n, &mut best);
                best.into()
            }
        };
        let size = g.dtype.size();
        let of_key = |key: &[u8]| {
            let of = |&c: &u32| key[c as usize * size..][..size].to_vec();
            channels.iter().flat_map(of).collect::<Vec<u8>>()
        };
        let rows = k.chunks_exact(g.dim_k * size).flat_map(of_key).collect();
        Made::Channels { channels, rows }
    }

    /// The mean of the keys of each block that the queries behind it looked for most.
    fn representatives(&self, unit: usize, count: usize, behind: usize, taken: &Taken) -> Made {
        let g = self.call.cache.geometry();
        let (keys, mut rows) = (self.floats(&taken.k), Vec::new());
        for (i, block) in keys.chunks_exact(unit * g.dim_k).enumerate() {
            let asked = self.asked_behind(taken.tokens.start / unit + i, behind / unit);
            let sought = |key: &[f32]| key.iter().zip(&asked).map(|(k, q)| k * q).sum::<f32>();
            let weights: Vec<f32> = block.chunks_exact(g.dim_k).map(sought).collect();
            let mut best = Vec::new();
            let seen = asked.iter().any(|x| *x != 0.0);
            select::top_k(&weights, if seen { count } else { unit }, &mut best);
            let mut mean = vec![0f32; g.dim_k];
            for &t in &best {
                let key = &block[t as usize * g.dim_k..][..g.dim_k];
                mean.iter_mut().zip(key).for_each(|(m, k)| *m += k / best.len() as f32);
            }
            rows.append(&mut mean);
        }
        Made::Rows(rows)
    }

    /// The sum of the group's queries of the blocks behind a block.
    fn asked_behind(&self, block: usize, blocks: usize) -> Vec<f32> {
        let g = self.call.cache.geometry();
        let (width, mut sum) = (g.kv_heads * g.dim_k, vec![0f32; g.dim_k]);
        let seen = self.asked.blocks.sums.chunks_exact(width);
        for of_block in seen.skip(block + 1).take(blocks) {
            let of_head = &of_block[self.head * g.dim_k..][..g.dim_k];
            sum.iter_mut().zip(of_head).for_each(|(s, q)| *s += q);
        }
        sum
    }
}

/// The least cosine of a key with the mean of the keys of its unit; -1 where one is zero or not finite.
fn least_cosine(keys: &[f32], dim: usize) -> f32 {
    let mut mean = vec![0f32; dim];
    for key in keys.chunks_exact(dim) {
        mean.iter_mut().zip(key).for_each(|(m, k)| *m += k);
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let cosine = |key: &[f32]| dot(key, &mean) / (dot(key, key) * dot(&mean, &mean)).sqrt();
    let lower = |least: f32, x: f32| if x < least || x.is_nan() { x } else { least };
    let least = keys.chunks_exact(dim).map(cosine).fold(1.0, lower);
    if least.is_nan() { -1.0 } else { least }
}

#[cfg(test)]
mod tests {
    use kvist_policies::{ClusterKv, InfLlm, InfiniGen, Select};

    use super::*;
    use crate::budget::Budget;

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

    #[test]
    fn cosines_with_the_mean() {
        assert!((least_cosine(&[1.0, 0.0, 1.0, 0.0], 2) - 1.0).abs() < 1e-6);
        assert!(least_cosine(&[1.0, 0.0, -1.0, 0.1], 2) < 0.2);
        assert_eq!(least_cosine(&[0.0, 0.0, 1.0, 0.0], 2), -1.0);
        assert_eq!(least_cosine(&[f32::INFINITY, 0.0, 1.0, 0.0], 2), -1.0);
    }
}
