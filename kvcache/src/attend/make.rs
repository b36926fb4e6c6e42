//! Makes what is derived from keys: clusters, codes, channels, means and representatives.

use std::sync::Arc;

use kvist_kernels::cluster::pq::{Codebook, PqSpec};
use kvist_kernels::cluster::{self, Count, Head, KMeans, Rows};
use kvist_kernels::{Isa, convert, select};
use kvist_policies::{Clustering, Digest, Parts, Style};

use super::Call;
use super::derive::Taken;
use crate::Error;
use crate::budget::Charge;
use crate::index::{BATCH, Made, Part};
use crate::memory::Asked;

/// What the parts of an index depend on besides the keys.
pub(super) struct Context<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) asked: &'a Asked,
    pub(super) head: usize,
    /// What was derived from the first tokens.
    pub(super) first: Option<&'a Part>,
}

impl Context<'_> {
    /// What a selector derives from keys that were taken.
    pub(super) fn part(&self, parts: &Parts, taken: &Taken) -> Result<Part, Error> {
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
    use super::*;

    #[test]
    fn cosines_with_the_mean() {
        assert!((least_cosine(&[1.0, 0.0, 1.0, 0.0], 2) - 1.0).abs() < 1e-6);
        assert!(least_cosine(&[1.0, 0.0, -1.0, 0.1], 2) < 0.2);
        assert_eq!(least_cosine(&[0.0, 0.0, 1.0, 0.0], 2), -1.0);
        assert_eq!(least_cosine(&[f32::INFINITY, 0.0, 1.0, 0.0], 2), -1.0);
    }
}
