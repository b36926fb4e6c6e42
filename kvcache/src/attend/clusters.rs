//! Selectors over clusters of tokens whose keys are alike.

use kvist_kernels::cluster::Clusters;
use kvist_kernels::rows::QueryRows;
use kvist_kernels::{DType, Isa};
use kvist_policies::{Digest, Parts, Rule};

use super::certify::{Certificate, Unread, slack};
use super::compose;
use super::derived::dots;
use super::head::{Choice, Estimate, Members, Origin, Work};
use crate::Error;
use crate::index::Made;
use crate::pages;

/// Covers the rounding of a product of a query's length and a radius in f64.
const ROUNDING: f64 = 1.0 + 1e-12;

/// A head's clusters, part after part.
struct Scored<'a> {
    /// With the position of their token 0.
    parts: Vec<(&'a Clusters, usize)>,
    /// Raw products with the centroids, `[group][clusters]`.
    raw: Vec<f32>,
    count: usize,
}

impl<'a> Scored<'a> {
    fn new(work: &'a Work, precise: bool) -> Scored<'a> {
        let of = |part: &'a crate::index::Part| match &part.made {
            Made::Clusters(clusters) => Some((clusters, part.tokens.start)),
            _ => None,
        };
        let parts: Vec<_> = work.index.parts().filter_map(of).collect();
        let dim = work.q.len() / work.group;
        let query = QueryRows::new(Isa::level(), DType::F32, work.q, dim, precise);
        let of_part = |&(clusters, _): &(&Clusters, usize)| {
            let bytes = bytemuck::cast_slice(clusters.centroids());
            dots(&query, bytes, dim * size_of::<f32>())
        };
        let each: Vec<Vec<f32>> = parts.iter().map(of_part).collect();
        let of_head = |head: usize| {
            let row = move |scores: &Vec<f32>| {
                let n = scores.len() / work.group;
                scores[head * n..(head + 1) * n].to_vec()
            };
            each.iter().flat_map(row)
        };
        let raw: Vec<f32> = (0..work.group).flat_map(of_head).collect();
        let count = parts.iter().map(|(clusters, _)| clusters.len()).sum();
        Scored { parts, raw, count }
    }

    /// All clusters, in order: the part, its number there.
    fn each(&self) -> impl Iterator<Item = (&'a Clusters, usize, usize)> + '_ {
        let of = |&(clusters, first): &(&'a Clusters, usize)| {
            (0..clusters.len()).map(move |c| (clusters, first, c))
        };
        self.parts.iter().flat_map(of)
    }

    /// Bytes of the centroids.
    fn bytes(&self) -> u64 {
        self.parts.iter().map(|(c, _)| 4 * c.centroids().len() as u64).sum()
    }

    /// The weight of each cluster, all heads of the group together.
    fn weights(&mut self, work: &Work, parts: &Parts) -> Vec<f32> {
        compose::fold(work, parts.fold, &mut self.raw, self.count, self.count)
    }
}

/// Reads whole clusters, heaviest first, and the first tokens of the one that does not fit; the next ones
/// are estimated where that is wanted.
pub(super) fn choose(work: &Work, parts: &Parts) -> Choice {
    let Digest::Clusters(how) = parts.digest else { return Choice::default() };
    let keep = compose::keep(work, parts);
    let mut scored = Scored::new(work, false);
    let weights = scored.weights(work, parts);
    let order = heaviest_first(&weights);
    let each: Vec<_> = scored.each().collect();
    let kept = keep[0].len() + keep[1].len();
    let (tokens, clusters) = match parts.rule {
        Rule::Budget(tokens) => (tokens.saturating_sub(kept), usize::MAX),
        Rule::Share(share) => (usize::MAX, ((share * order.len() as f32) as usize).max(1)),
        Rule::Split { .. } | Rule::Near { .. } => (usize::MAX, usize::MAX),
    };
    // After a cut, recent tokens that are kept may be in a cluster, too.
    let end = keep[1].start as u32;
    let open = work.index.parts().flat_map(|part| &part.open);
    let mut chosen: Vec<u32> = open.copied().filter(|&t| t < end).collect();
    let most = tokens.max(chosen.len());
    let (mut taken, mut members) = (0, Vec::new());
    while taken < order.len().min(clusters) && chosen.len() < most {
        let (of, first, cluster) = each[order[taken] as usize];
        let there = of.members(cluster).iter().map(|t| t + first as u32);
        let before = chosen.len();
        chosen.extend(there.take_while(|&t| t < end).take(most - before));
        members.push(Members { first, cluster, tokens: chosen.len() - before });
        taken += 1;
    }
    chosen.sort_unstable();
    let mut choice = Choice { origin: Origin::Fresh, clusters: members, ..Choice::default() };
    choice.bytes.summary = scored.bytes();
    choice.set(&keep, &chosen);
    let estimated = (how.estimated * order.len() as f32) as usize;
    if estimated > 0 {
        // What is kept is not estimated, too.
        let apart = |&id: &u32| {
            let (of, first, c) = each[id as usize];
            of.members(c).last().is_some_and(|&t| t + (first as u32) < end)
        };
        let next: Vec<u32> = order[taken..].iter().copied().take(estimated).filter(apart).collect();
        choice.estimate = Some(estimate(work, &scored, &each, &next));
        let value = 4 * work.call.cache.geometry().dim_v as u64;
        choice.bytes.summary += value * next.len() as u64;
    }
    choice
}

/// Clusters by weight, NaN first, ties to the lower.
fn heaviest_first(weights: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    let weight = |i: u32| {
        let w = weights[i as usize];
        if w.is_nan() { f32::INFINITY } else { w }
    };
    order.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)).then(a.cmp(&b)));
    order
}

/// Attention over clusters, each of which counts as many times as it has members, with its centroid for their
/// keys and their mean value.
fn estimate(
    work: &Work,
    scored: &Scored,
    each: &[(&Clusters, usize, usize)],
    ids: &[u32],
) -> Estimate {
    let dim = work.call.cache.geometry().dim_v;
    let scale = work.scale_log2();
    let mut all = Estimate { o: vec![0.0; work.group * dim], lse2: Vec::new() };
    for (head, o) in all.o.chunks_mut(dim).enumerate() {
        let raw = &scored.raw[head * scored.count..][..scored.count];
        let size = |id: u32| {
            let (clusters, _, c) = each[id as usize];
            clusters.members(c).len() as f32
        };
        let logit = |id: u32| raw[id as usize] * scale;
        let top = ids.iter().map(|&id| logit(id)).fold(f32::NEG_INFINITY, f32::max);
        let mut mass = 0f32;
        for &id in ids {
            let weight = (logit(id) - top).exp2();
            let (clusters, _, c) = each[id as usize];
            mass += weight * size(id);
            let sum = &clusters.value_sums()[c * dim..][..dim];
            o.iter_mut().zip(sum).for_each(|(o, v)| *o += weight * v);
        }
        if mass > 0.0 {
            o.iter_mut().for_each(|o| *o /= mass);
        }
        all.lse2.push(if mass > 0.0 { top + mass.log2() } else { f32::NEG_INFINITY });
    }
    all
}

/// Bounds what is missed where these positions are read, all of which are near.
pub(super) fn prove(work: &Work, positions: &[u32]) -> Result<Vec<f32>, Error> {
    let logits = work.logits(&work.exact_query(true), positions.iter().copied())?;
    let norm = work.key_norm(positions.iter().copied())?;
    Ok(bounds(work, positions, &logits, norm))
}

/// The same from the logits of the keys that are read, `[group, positions]` in any order, and the largest of
/// their norms. Each unread token of a cluster is at most as far from the centroid as the radius.
pub(super) fn bounds(work: &Work, positions: &[u32], logits: &[f32], of_read: f32) -> Vec<f32> {
    let scored = Scored::new(work, true);
    let dim = work.q.len() / work.group;
    let farthest = |(clusters, _, c): (&Clusters, usize, usize)| {
        pages::norm(&clusters.centroids()[c * dim..][..dim]) + clusters.radii()[c]
    };
    let norm = scored.each().map(farthest).fold(of_read, f32::max).next_up();
    let slack = slack(work, norm);
    let length = |q: &[f32]| q.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let lengths: Vec<f64> = work.q.chunks_exact(dim).map(length).collect();
    let mut read = vec![false; work.len];
    positions.iter().for_each(|&p| read[p as usize] = true);
    let unread = |(clusters, first, c): (&Clusters, usize, usize)| {
        clusters.members(c).iter().filter(|&&t| !read[first + t as usize]).count()
    };
    let left: Vec<usize> = scored.each().map(unread).collect();
    let radii: Vec<f32> = scored.each().map(|(clusters, _, c)| clusters.radii()[c]).collect();
    let (scale, cap) = (f64::from(work.call.params.scale), f64::from(work.call.params.soft_cap));
    let capped = |x: f64| if cap > 0.0 { cap * (x * scale / cap).tanh() / scale } else { x };
    let certificate = Certificate::of_logits(work, logits, norm);
    certificate.bounds(|head| {
        let of = |c: usize| {
            let centre = f64::from(scored.raw[head * scored.count + c]) + slack[head];
            let upper = capped(centre + lengths[head] * f64::from(radii[c]) * ROUNDING);
            let upper = if upper.is_nan() { f64::INFINITY } else { upper };
            Unread { upper, tokens: left[c] as f64 }
        };
        (0..scored.count).filter(|&c| left[c] > 0).map(of).collect()
    })
}
