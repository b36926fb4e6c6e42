//! Selectors composed of parts: score the units, fold the scores of the group, pick, look closer.

use std::ops::Range;

use kvist_kernels::score::{self, UnitQuery};
use kvist_kernels::{Isa, select};
use kvist_policies::{Digest, Fold, Parts, Refine, Reuse, Row, Rule};

use super::certify::{Certificate, Unread, slack};
use super::head::{Choice, Origin, Scratch, Work, sized};
use super::{again, clusters, derived, leo, observed};
use crate::Error;

/// What one head, or all heads of a layer together, think of the units.
#[derive(Default)]
pub(super) struct Weighed {
    /// One per candidate unit.
    pub(super) weights: Vec<f32>,
    /// The first candidate unit, and tokens of a unit.
    pub(super) first: usize,
    pub(super) unit: usize,
    /// Kept tokens: up to the first candidate, and from behind the last on.
    pub(super) keep: [Range<usize>; 2],
    /// Bytes of summaries and of keys that were read to tell.
    pub(super) summary_bytes: u64,
    key_bytes: u64,
    /// How many tokens come near the best, where that is the rule.
    pub(super) near: usize,
}

impl Weighed {
    pub(super) fn new(keep: [Range<usize>; 2], unit: usize) -> Weighed {
        Weighed { first: keep[0].end / unit, unit, keep, ..Weighed::default() }
    }

    /// Candidate units.
    pub(super) fn len(&self) -> usize {
        (self.keep[1].start - self.keep[0].end) / self.unit
    }

    /// Largest weight of the units that hold these tokens, all candidates; NaN is the largest.
    pub(super) fn heaviest(&self, tokens: Range<usize>) -> f32 {
        let units = tokens.start / self.unit..tokens.end.div_ceil(self.unit);
        let larger = |m: f32, &w: &f32| if w > m || w.is_nan() { w } else { m };
        let units = units.start - self.first..(units.end - self.first).min(self.weights.len());
        self.weights[units].iter().fold(f32::NEG_INFINITY, larger)
    }

    /// Searches the tree of the candidates, see [`leo::search`].
    pub(super) fn search(
        &mut self,
        work: &Work,
        grain: u32,
        wanted: usize,
        take: impl FnMut(Range<usize>) -> bool,
    ) {
        let candidates = self.first..self.first + self.len();
        let found = leo::search(work, candidates, grain, wanted, take);
        (self.weights, self.summary_bytes) = (found.weights, found.bytes);
    }

    /// Adds what another head thinks of the same units.
    pub(super) fn join(&mut self, other: &Weighed) {
        self.weights.iter_mut().zip(&other.weights).for_each(|(w, o)| *w += o);
    }

    /// Candidates that `rule` takes.
    pub(super) fn count(&self, rule: Rule, len: usize) -> usize {
        let kept = self.keep[0].len() + self.keep[1].len();
        match rule {
            Rule::Budget(tokens) => tokens.saturating_sub(kept) / self.unit,
            Rule::Share(share) => ((share * len as f32) as usize / self.unit).max(1),
            Rule::Split { share, recent } => {
                ((share * (1.0 - recent) * len as f32) as usize / self.unit).max(1)
            }
            Rule::Near { share, .. } => self.near.min((share * len as f32) as usize).max(1),
        }
    }

    /// Positions of the candidates that `rule` takes, ascending.
    fn pick(&self, rule: Rule, len: usize) -> Vec<u32> {
        let n = self.count(rule, len);
        let tokens = |&u: &u32| {
            let first = (self.first + u as usize) * self.unit;
            (first..first + self.unit).map(|t| t as u32)
        };
        Scratch::with(|scratch| {
            select::top_k(&self.weights, n, &mut scratch.chosen);
            scratch.chosen.iter().flat_map(tokens).collect()
        })
    }
}

/// Kept tokens, in whole units: what lies between can be picked.
pub(super) fn keep(work: &Work, parts: &Parts) -> [Range<usize>; 2] {
    // What waits to be derived from is kept; means of units are kept up to date elsewhere.
    let derived = parts.derives() && !matches!(parts.digest, Digest::Landmarks { .. });
    let known = if derived { work.index.end().unwrap_or(0) } else { work.len };
    keep_of(parts, work.len, known)
}

/// The same of a sequence of `len` tokens, of which the first `known` can be picked.
pub(super) fn keep_of(parts: &Parts, len: usize, known: usize) -> [Range<usize>; 2] {
    let unit = parts.unit_tokens();
    let mut keep = parts.keep;
    if let Rule::Split { share, recent } = parts.rule {
        keep.recent = keep.recent.max((share * recent * len as f32) as usize);
    }
    let [sinks, recent] = keep.ranges(len, known);
    let first = sinks.end.next_multiple_of(unit).min(len);
    let last = (recent.start / unit * unit).max(first);
    [0..first, last..len]
}

/// What a head thinks where the heads of its layer choose together; none where an earlier selection is
/// used again.
pub(super) fn vote(work: &Work, parts: &Parts) -> Result<Option<Weighed>, Error> {
    match again::choose(work, parts) {
        Some(_) => Ok(None),
        None => weigh(work, parts).map(Some),
    }
}

/// The choice of a head; by `vote` where the heads of its layer choose together.
pub(super) fn choose(work: &Work, parts: &Parts, vote: Option<&Weighed>) -> Result<Choice, Error> {
    let mut choice = match (vote, again::choose(work, parts)) {
        (Some(vote), _) => finish(work, parts, vote),
        (None, Some(choice)) => choice,
        (None, None) if matches!(parts.digest, Digest::Clusters(_)) => {
            clusters::choose(work, parts)
        }
        (None, None) => finish(work, parts, &weigh(work, parts)?),
    };
    choice.bound = prove(work, parts, &choice.positions)?;
    Ok(choice)
}

/// Scores the units and folds the scores of the group.
pub(super) fn weigh(work: &Work, parts: &Parts) -> Result<Weighed, Error> {
    let mut weighed = Weighed::new(keep(work, parts), parts.unit_tokens());
    match parts.digest {
        Digest::Nothing => weighed.weights = vec![0.0; weighed.len()],
        Digest::Keys => {
            let n = weighed.len();
            let candidates = weighed.keep[0].end as u32..weighed.keep[1].start as u32;
            let mut raw = work.logits(&work.exact_query(false), candidates)?;
            weighed.weights = fold(work, parts.fold, &mut raw, n, n);
            weighed.key_bytes = n as u64 * work.key_bytes();
        }
        Digest::Units { .. } => units(work, parts.fold, &mut weighed),
        Digest::Landmarks { outliers, .. } => {
            units(work, parts.fold, &mut weighed);
            derived::outliers(work, outliers, &mut weighed);
        }
        Digest::Clusters(_) => unreachable!("clusters are picked as such"),
        Digest::Codes { .. } | Digest::Channels { .. } | Digest::Representatives { .. } => {
            let mut raw = derived::score(work, parts, &mut weighed);
            let n = weighed.len();
            weighed.weights = fold(work, parts.fold, &mut raw, n, n);
            if let Rule::Near { alpha, .. } = parts.rule {
                weighed.near = derived::near(work, &raw, alpha);
            }
            derived::open(work, &mut weighed);
        }
        Digest::Tree { flat, .. } => {
            let support = work.sequence.memories.of(work.call.layer).support;
            let grain = support.filter(|s| s.share > f64::from(flat)).map_or(0, |_| leo::COARSE);
            let (n, mut found) = (weighed.count(parts.rule, work.len), 0);
            let take = |leaves: Range<usize>| {
                found += leaves.len();
                found < n
            };
            weighed.search(work, grain, n, take);
        }
        Digest::Given { tokens } => weighed.weights = given(work, tokens, &weighed)?,
        Digest::Observed { pool, .. } => {
            let observed = work.sequence.memories.of(work.call.layer).observed.clone();
            // Without queries of a prompt there is nothing to go by: all is kept.
            let start = observed.as_ref().map_or(0, |o| o.positions.start);
            let first = weighed.keep[0].end.min(start);
            weighed = Weighed::new([0..first, start..work.len], 1);
            if let Some(observed) = &observed {
                weighed.weights = observed::weigh(work, observed, pool)?.split_off(first);
                weighed.key_bytes = observed.positions.end as u64 * work.key_bytes();
            }
        }
    }
    Ok(weighed)
}

fn units(work: &Work, how: Fold, weighed: &mut Weighed) {
    let (spec, cells) = work.units();
    let scale = work.call.params.scale;
    let query = UnitQuery::new(Isa::level(), spec, work.q, work.group, scale, false);
    let stored = cells.len() * spec.units();
    Scratch::with(|scratch| {
        let estimates = sized(&mut scratch.estimates, work.group * stored);
        score::units(&query, &cells, estimates);
        let (first, n) = (weighed.first.min(stored), weighed.len());
        weighed.weights = fold(work, how, &mut estimates[first..], stored, n);
    });
    let units = work.len.div_ceil(spec.unit_tokens());
    weighed.summary_bytes = (units * spec.row_bytes()) as u64;
}

/// One weight for each of the first `n` of raw scores, `[group][stride]`.
pub(super) fn fold(work: &Work, how: Fold, raw: &mut [f32], stride: usize, n: usize) -> Vec<f32> {
    let mut weights = vec![0f32; n];
    if n == 0 {
        return weights;
    }
    if work.call.params.soft_cap > 0.0 {
        work.cap(raw);
    }
    let (heads, scale) = (work.group, work.scale_log2());
    let lse = || {
        let mut lse = vec![f32::NEG_INFINITY; heads];
        select::lse2_strided(raw, stride, n, scale, &mut lse);
        lse
    };
    match how {
        Fold::Max => select::fold_max(raw, stride, heads, &mut weights),
        Fold::Mean => select::fold_mean(raw, stride, heads, &mut weights),
        Fold::MassSum => {
            select::fold_mass_strided(raw, stride, n, scale, &lse(), &mut weights);
        }
        Fold::MassMax => select::fold_mass_max(raw, stride, scale, &lse(), &mut weights),
    }
    weights
}

/// The weights that came with the query.
fn given(work: &Work, tokens: usize, weighed: &Weighed) -> Result<Vec<f32>, Error> {
    let name = work.sequence.selector.select.name();
    let Some(scores) = &work.call.options.scores else {
        let expected = format!("one for every {tokens} tokens, as select {name:?} needs");
        return Err(Error::setting("scores", expected, "none"));
    };
    let row = scores.of(work.row, work.number);
    let (expected, found) = (work.len.div_ceil(tokens), row.len());
    if found < expected {
        return Err(Error::Count { what: "scores of a query", expected, found });
    }
    Ok(row[weighed.first..][..weighed.len()].to_vec())
}

/// Picks, looks closer and adds what is kept.
fn finish(work: &Work, parts: &Parts, weighed: &Weighed) -> Choice {
    let mut chosen = weighed.pick(parts.rule, work.len);
    let mut choice = Choice { origin: Origin::Fresh, ..Choice::default() };
    choice.bytes.summary = weighed.summary_bytes;
    if let Some(Refine::TopP { p, .. }) = parts.refine {
        choice.bytes.summary += refine(work, p, &weighed.keep, &mut chosen);
    }
    // Keys that were scored and are then attended count once.
    let spared = weighed.len().saturating_sub(chosen.len()) as u64 * work.key_bytes();
    choice.bytes.keys = weighed.key_bytes.min(spared);
    choice.set(&weighed.keep, &chosen);
    if let Reuse::Cosine(_) = parts.reuse {
        choice.q = work.queries(parts.scope);
    }
    choice
}

/// Leaves the fewest of `chosen` whose estimated mass, with that of the kept tokens, reaches the share `p`
/// of all these; returns the bytes of the digests that were read.
fn refine(work: &Work, p: f32, keep: &[Range<usize>; 2], chosen: &mut Vec<u32>) -> u64 {
    let picked = chosen.len();
    let kept = keep.iter().cloned().flatten().map(|t| t as u32);
    let tokens: Vec<u32> = chosen.iter().copied().chain(kept).collect();
    let (mass, bytes) = low_bit(work, &tokens);
    let ids = reach(work, p, &mass[..picked], &mass[picked..]);
    *chosen = ids.into_iter().map(|i| chosen[i as usize]).collect();
    bytes
}

/// Masses of these tokens by their keys of a few bits, summed over the group, and the bytes read.
pub(super) fn low_bit(work: &Work, tokens: &[u32]) -> (Vec<f32>, u64) {
    let (spec, cells) = work.low_bit();
    let n = tokens.len();
    let mut raw = vec![0f32; work.group * n];
    score::low_bit(&spec, work.q, work.group, &cells, tokens, &mut raw);
    (fold(work, Fold::MassSum, &mut raw, n, n), (n * spec.token_bytes()) as u64)
}

/// The fewest of `masses` that reach the share `p` of all with those kept anyway.
pub(super) fn reach(work: &Work, p: f32, masses: &[f32], kept: &[f32]) -> Vec<u32> {
    let held: f64 = kept.iter().map(|&m| f64::from(m)).sum();
    let target = f64::from(p) * work.group as f64 - held;
    let mut ids = Vec::new();
    select::top_p(masses, target, 0, masses.len(), &mut ids);
    ids
}

/// Bounds what is missed, where that is wanted and the digest allows it.
pub(super) fn prove(
    work: &Work,
    parts: &Parts,
    positions: &[u32],
) -> Result<Option<Vec<f32>>, Error> {
    match parts.digest {
        _ if !work.call.options.bound => Ok(None),
        Digest::Units { row: Row::Box, .. } | Digest::Tree { .. } => {
            prove_units(work, positions).map(Some)
        }
        Digest::Keys | Digest::Observed { .. } => prove_keys(work, positions).map(Some),
        Digest::Clusters(_) => clusters::prove(work, positions).map(Some),
        _ => Ok(None),
    }
}

/// Each unread unit holds at most its tokens times its box's bound.
fn prove_units(work: &Work, positions: &[u32]) -> Result<Vec<f32>, Error> {
    let (spec, cells) = work.units();
    let (unit, stored) = (spec.unit_tokens(), cells.len() * spec.units());
    let query =
        UnitQuery::new(Isa::level(), spec, work.q, work.group, work.call.params.scale, false);
    let mut upper = vec![0f32; work.group * stored];
    score::units_upper(&query, &cells, &mut upper);
    if work.call.params.soft_cap > 0.0 {
        work.cap(&mut upper);
    }
    // Of a unit that is read in part, the rest counts.
    let mut unread: Vec<usize> =
        (0..work.len.div_ceil(unit)).map(|u| unit.min(work.len - u * unit)).collect();
    positions.iter().for_each(|&p| unread[p as usize / unit] -= 1);
    let certificate = Certificate::of_read(work, positions, work.head.norm_max())?;
    let left = |head: usize| {
        let units = unread.iter().enumerate().filter(|(_, n)| **n > 0);
        let of = |(u, &n): (usize, &usize)| Unread {
            upper: f64::from(upper[head * stored + u]),
            tokens: n as f64,
        };
        units.map(of).collect()
    };
    Ok(certificate.bounds(left))
}

/// Each unread token holds what its key says.
fn prove_keys(work: &Work, positions: &[u32]) -> Result<Vec<f32>, Error> {
    let norm = work.key_norm(0..work.len as u32)?;
    let mut read = vec![false; work.len];
    positions.iter().for_each(|&p| read[p as usize] = true);
    let unread: Vec<u32> = (0..work.len as u32).filter(|&t| !read[t as usize]).collect();
    let logits = work.logits(&work.exact_query(true), unread.iter().copied())?;
    let slack = slack(work, norm);
    let certificate = Certificate::of_read(work, positions, norm)?;
    Ok(certificate.bounds(|head| {
        let of = |&x: &f32| {
            let upper = f64::from(x) + slack[head];
            Unread { upper: if upper.is_nan() { f64::INFINITY } else { upper }, tokens: 1.0 }
        };
        logits[head * unread.len()..(head + 1) * unread.len()].iter().map(of).collect()
    }))
}
