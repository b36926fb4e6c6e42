//! How many tokens attention effectively reads: the exponential of its entropy, measured with the last
//! queries. Layers where that is much are read in coarser chunks (LeoAM).

use std::sync::Arc;

use kvist_kernels::{Tensor3, select};
use kvist_policies::{Digest, Method};

use super::head::Work;
use super::sparse::each_head;
use super::{Call, Run, observed};
use crate::memory::{Observed, Support};
use crate::{Error, Sequence};

/// Tokens after which it is measured anew.
const EVERY: usize = 1024;

/// The queries with which a head is measured, where it is.
fn queries(method: &Method) -> Option<usize> {
    let Method::Parts(parts) = method else { return None };
    match parts.digest {
        Digest::Tree { flat, queries } if flat < 1.0 => Some(queries),
        _ => None,
    }
}

impl Call<'_> {
    /// The queries with which heads of the layer are measured, where some are.
    fn queries(&self, sequence: &Sequence) -> Option<usize> {
        sequence.selector.layer(self.layer).iter().find_map(|reads| queries(&reads.method))
    }

    /// Whether single queries are among those that a layer is measured with next.
    pub(super) fn soon_measured(&self, sequence: &Sequence) -> bool {
        let Some(queries) = self.queries(sequence) else { return false };
        let support = sequence.memories.of(self.layer).support;
        support.is_none_or(|s| sequence.layers[self.layer].len + queries >= s.at + EVERY)
    }

    /// The queries to measure with, where that is due.
    fn due(&self, sequence: &Sequence) -> Option<Arc<Observed>> {
        let queries = self.queries(sequence)?;
        let len = sequence.layers[self.layer].len;
        let memory = sequence.memories.of(self.layer);
        let enough = |o: &&Arc<Observed>| o.positions.len() >= queries && o.positions.end <= len;
        let observed = memory.observed.as_ref().filter(enough)?;
        memory.support.is_none_or(|s| len >= s.at + EVERY).then(|| observed.clone())
    }

    /// Measures layers where that is due; by sequence the bytes of keys that were read for it.
    pub(super) fn measure(&self, run: &Run, q: &Tensor3) -> Result<Vec<u64>, Error> {
        let due: Vec<Option<Arc<Observed>>> = run.sequences.iter().map(|s| self.due(s)).collect();
        let mut read = vec![0; due.len()];
        if due.iter().all(Option::is_none) {
            return Ok(read);
        }
        let heads = self.cache.geometry().kv_heads;
        let supports = each_head(self, run, q, |i, work, method| {
            let observed = due[i / heads].as_ref().filter(|_| queries(method).is_some());
            observed.map(|observed| support(work, observed)).transpose()
        })?;
        let g = self.cache.geometry();
        for (i, (sequence, observed)) in run.sequences.iter().zip(due).enumerate() {
            let Some(observed) = observed else { continue };
            let measured: Vec<f64> =
                supports[i * heads..][..heads].iter().copied().flatten().collect();
            if measured.is_empty() {
                continue;
            }
            let mean = measured.iter().sum::<f64>() / measured.len() as f64;
            let at = sequence.layers[self.layer].len;
            // Of the tokens that the queries saw.
            let share = mean / observed.positions.end as f64;
            sequence.memories.of(self.layer).support = Some(Support { share, at });
            read[i] = (observed.positions.end * measured.len() * g.dim_k * g.dtype.size()) as u64;
        }
        Ok(read)
    }
}

/// Mean effective support of the head's group over the observed queries, in tokens.
fn support(work: &Work, observed: &Observed) -> Result<f64, Error> {
    let (end, scale) = (observed.positions.end, work.scale_log2());
    let row = observed.q.len() / observed.positions.len();
    let (mut sum, mut masses) = (0f64, vec![0f32; end]);
    for (at, queries) in observed.positions.clone().zip(observed.q.chunks(row)) {
        let raw = observed::raw(work, queries, at, end)?;
        for raw in raw.chunks(end) {
            let (raw, masses) = (&raw[..=at], &mut masses[..=at]);
            let mut lse = [f32::NEG_INFINITY];
            select::lse2(raw, raw.len(), scale, &mut lse);
            select::fold_mass(raw, raw.len(), scale, &lse, masses);
            // Where there is no mass, a logit of minus infinity counts for nothing.
            let terms = raw.iter().zip(masses.iter()).filter(|(_, m)| **m > 0.0);
            let logit: f64 =
                terms.map(|(x, m)| f64::from(*x) * f64::from(scale) * f64::from(*m)).sum();
            sum += (f64::from(lse[0]) - logit).exp2();
        }
    }
    Ok(sum / (observed.positions.len() * work.group) as f64)
}
