//! Requests of a trace through tiers.

use kvist::policies::replace::{Admission, Admit, Replace};

use super::cost::Cost;
use super::tier::Tier;
use super::trace::Trace;
use crate::Error;

/// A tier of a set, nearest first.
#[derive(Clone, Debug, PartialEq)]
pub struct TierSpec {
    /// Its name.
    pub name: &'static str,
    /// Blocks there is room for.
    pub blocks: usize,
    /// Which blocks leave.
    pub replace: Replace,
    /// What is let in; all where `None`.
    pub admit: Option<Admit>,
    /// Rate at which it is read, in 10^9 bytes a second; `None`: at no cost.
    pub gbps: Option<f64>,
}

/// What a tier did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TierResult {
    /// Its name.
    pub name: &'static str,
    /// Blocks of hit prefixes that it gave.
    pub hits: u64,
    /// Bytes read of it.
    pub read_bytes: f64,
    /// Seconds of prefill that its blocks spared.
    pub saved_s: f64,
    /// Seconds that reading them took.
    pub read_s: f64,
    /// Bytes written to it.
    pub written_bytes: f64,
    /// Blocks that left.
    pub evicted: u64,
}

/// What a replay did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Blocks that requests used.
    pub blocks: u64,
    /// Those of them that were found with all blocks before them, by tier.
    pub tiers: Vec<TierResult>,
    /// Requests that found something.
    pub requests_hit: u64,
    /// All of them.
    pub requests: u64,
    /// Seconds that all prefills would take.
    pub compute_s: f64,
    /// Seconds of them that the hits spared.
    pub saved_s: f64,
    /// Seconds that reading the hits took.
    pub read_s: f64,
    /// Share of blocks hit by time, in parts of the trace of equal length.
    pub by_time: Vec<f64>,
}

/// Parts in which hits are told by time.
const PARTS: usize = 60;

impl Outcome {
    /// Share of the blocks that were found with all blocks before them.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        self.tiers.iter().map(|tier| tier.hits).sum::<u64>() as f64 / self.blocks.max(1) as f64
    }

    /// The same, weighted by what computing them costs.
    #[must_use]
    pub fn saved_ratio(&self) -> f64 {
        if self.compute_s > 0.0 { self.saved_s / self.compute_s } else { 0.0 }
    }
}

/// Runs a trace through tiers. A request finds its longest prefix of which each block is in some tier; all its
/// blocks are in the nearest tier then, and were offered to the others.
///
/// # Errors
/// [`Error::Policy`] for impossible settings of a tier.
pub fn simulate(trace: &Trace, specs: &[TierSpec], cost: &Cost) -> Result<Outcome, Error> {
    let make = |spec: &TierSpec| -> Result<Tier, Error> {
        let admission = spec.admit.map(Admission::new).transpose()?;
        Ok(Tier::new(spec.replace, spec.blocks, admission))
    };
    let mut tiers: Vec<Tier> = specs.iter().map(make).collect::<Result<_, _>>()?;
    let results = specs.iter().map(|s| TierResult { name: s.name, ..TierResult::default() });
    let mut out = Outcome { tiers: results.collect(), ..Outcome::default() };
    let bytes = cost.bytes(trace.block_tokens);
    let end = trace.requests.last().map_or(0.0, |r| r.at).max(f64::MIN_POSITIVE);
    let mut by_time = [(0u64, 0u64); PARTS];
    for request in &trace.requests {
        let mut hits = 0;
        for (i, &block) in request.blocks.iter().enumerate() {
            let compute = cost.compute(i, trace.block_tokens);
            out.compute_s += compute;
            let Some(tier) = tiers.iter().position(|tier| tier.holds(block)) else { continue };
            // What follows a gap is of no use.
            if i > hits {
                continue;
            }
            hits += 1;
            let read = specs[tier].gbps.map_or(0.0, |gbps| bytes / (gbps * 1e9));
            let of = &mut out.tiers[tier];
            of.hits += 1;
            of.read_bytes += bytes;
            of.saved_s += compute;
            of.read_s += read;
            out.read_s += read;
            out.saved_s += compute;
        }
        out.requests += 1;
        out.requests_hit += u64::from(hits > 0);
        out.blocks += request.blocks.len() as u64;
        let part = &mut by_time[((request.at / end * PARTS as f64) as usize).min(PARTS - 1)];
        *part = (part.0 + hits as u64, part.1 + request.blocks.len() as u64);
        tiers.iter_mut().for_each(|tier| tier.request(request, &request.blocks));
    }
    for (result, tier) in out.tiers.iter_mut().zip(&tiers) {
        result.written_bytes = tier.written as f64 * bytes;
        result.evicted = tier.evicted;
    }
    out.by_time = by_time.map(|(hits, all)| hits as f64 / all.max(1) as f64).to_vec();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::Request;
    use super::*;

    /// Requests for chains of blocks, a second apart.
    fn trace(chains: &[&[u64]]) -> Trace {
        let request = |(i, blocks): (usize, &&[u64])| Request {
            at: i as f64,
            blocks: blocks.to_vec(),
            ..Request::default()
        };
        let requests = chains.iter().enumerate().map(request).collect();
        Trace { name: "made up".to_owned(), format: "kvist", block_tokens: 16, requests }
    }

    #[test]
    fn a_hit_is_a_prefix_that_is_there() {
        let trace = trace(&[&[1, 2, 3], &[1, 2, 4], &[5], &[1, 2, 3], &[9, 3]]);
        for replace in Replace::ALL {
            let out =
                simulate(&trace, &[TierSpec::new("host", 100, replace)], &Cost::default()).unwrap();
            assert_eq!(
                (out.tiers[0].hits, out.blocks, out.requests_hit),
                (5, 12, 2),
                "{replace:?}"
            );
            assert_eq!((out.tiers[0].evicted, out.requests), (0, 5));
            let compute = |i| Cost::default().compute(i, 16);
            let saved = 2.0 * (compute(0) + compute(1)) + compute(2);
            assert!((out.saved_s - saved).abs() < 1e-12);
        }
        // The last block of the chain leaves first, and what is left of it is still of use.
        let out =
            simulate(&trace, &[TierSpec::new("host", 3, Replace::Lru)], &Cost::default()).unwrap();
        assert_eq!((out.tiers[0].hits, out.tiers[0].evicted), (4, 4));
    }

    #[test]
    fn what_the_near_tier_lost_the_far_one_gives() {
        let trace = trace(&[&[1, 2], &[3, 4], &[1, 2], &[3, 4], &[1, 2]]);
        let far = TierSpec { gbps: Some(1.0), ..TierSpec::new("disk", 10, Replace::Lru) };
        let near = TierSpec::new("host", 2, Replace::Lru);
        let out = simulate(&trace, &[near.clone(), far.clone()], &Cost::default()).unwrap();
        assert_eq!(out.tiers.iter().map(|t| t.hits).collect::<Vec<_>>(), [0, 6]);
        let bytes = Cost::default().bytes(16);
        assert_eq!((out.tiers[1].written_bytes, out.read_s), (4.0 * bytes, 6.0 * bytes / 1e9));
        assert_eq!((out.tiers[1].saved_s, out.tiers[1].read_s), (out.saved_s, out.read_s));
        // Let in when it comes for the second time, it is there for the third.
        let far = TierSpec { admit: Some(Admit::default()), ..far };
        let out = simulate(&trace, &[near, far], &Cost::default()).unwrap();
        assert_eq!((out.tiers[1].hits, out.tiers[1].written_bytes), (2, 4.0 * bytes));
    }
}
