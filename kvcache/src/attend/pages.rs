//! Which whole pages a query reads, from summaries alone: what is not near is not touched.
//!
//! Selectors score as they do for tokens; a page weighs what its tokens weigh together (`boxed`:
//! estimated softmax mass, summed) or what its best unit does (all others). Pages that hold a kept token
//! are always read. Selections of earlier steps are not used again. Clusters are picked as they are.

use std::ops::Range;

use kvist_kernels::score::{self, BoxedQuery, UnitQuery};
use kvist_kernels::{Isa, select};
use kvist_policies::{Boxed, Digest, Method, Parts, Refine, Row, Rule};

use super::boxed::PLANES_FIRST;
use super::compose::{self, Weighed};
use super::gathered::{self, Gathered};
use super::head::{Scratch, Work, sized};
use super::proof::Proof;
use crate::Error;
use crate::summaries::TILE;

/// Pages that came next, noted for prefetching: a share of those picked.
const RUNNERS_SHARE: usize = 4;
const RUNNERS_MIN: usize = 4;

/// The pages a query group reads.
#[derive(Default)]
pub(super) struct Pages {
    /// Ascending.
    pub(super) chosen: Vec<u32>,
    /// The best of the others, best first.
    pub(super) runners: Vec<u32>,
    /// Bytes of summaries that were read to choose.
    pub(super) summary_bytes: u64,
    /// What is needed to bound the missed mass, if that is wanted.
    pub(super) proof: Option<Proof>,
    /// Where clusters were picked: what is read of these, and of the pages.
    pub(super) gathered: Option<Gathered>,
}

/// How many of the candidates to pick.
struct Count {
    least: usize,
    most: usize,
    /// Pick until they hold this much of the weight.
    mass: Option<f64>,
}

/// `vote` is what the heads of the layer think together, where they choose together.
pub(super) fn choose(work: &Work, method: &Method, vote: Option<&Weighed>) -> Result<Pages, Error> {
    match method {
        Method::Full => {
            let pages = work.len.div_ceil(work.page_tokens()) as u32;
            Ok(Pages { chosen: (0..pages).collect(), ..Pages::default() })
        }
        Method::Parts(parts) if matches!(parts.digest, Digest::Clusters(_)) => {
            Ok(gathered::choose(work, parts))
        }
        Method::Parts(parts) => match vote {
            Some(vote) => Ok(by_units(work, parts, vote)),
            None => Ok(by_units(work, parts, &weigh(work, parts)?)),
        },
        Method::Boxed(boxed) => Scratch::with(|scratch| by_mass(work, boxed, scratch)),
    }
}

impl Work<'_> {
    pub(super) fn page_tokens(&self) -> usize {
        self.call.cache.geometry().page_tokens
    }

    /// Tokens of a page that are there.
    pub(super) fn tokens_of(&self, page: usize) -> Range<usize> {
        let n = self.page_tokens();
        page * n..((page + 1) * n).min(self.len)
    }

    /// Pages that hold no kept token.
    fn candidates(&self, keep: &[Range<usize>; 2]) -> Range<usize> {
        let page = self.page_tokens();
        let first = keep[0].end.div_ceil(page);
        first..(keep[1].start / page).max(first)
    }

    /// How many more whole pages a budget of tokens pays for.
    fn affordable(&self, budget: usize, candidates: &Range<usize>) -> usize {
        let page = self.page_tokens();
        let kept = self.len - (candidates.len() * page).min(self.len);
        budget.saturating_sub(kept) / page
    }
}

/// Picks by weight: what is kept, and the heaviest of the candidates.
fn pick(work: &Work, candidates: &Range<usize>, weights: &[f32], count: &Count) -> Pages {
    let mut best = Vec::new();
    match count.mass {
        None => select::top_k(weights, count.least, &mut best),
        Some(mass) => {
            select::top_p(weights, mass, count.least, count.most, &mut best);
        }
    }
    let pages = work.len.div_ceil(work.page_tokens());
    let first = candidates.start as u32;
    let mut chosen: Vec<u32> = (0..first).collect();
    chosen.extend(best.iter().map(|&p| p + first));
    chosen.extend(candidates.end as u32..pages as u32);
    let runners = runners(weights, &best).into_iter().map(|p| p + first).collect();
    Pages { chosen, runners, ..Pages::default() }
}

/// How many are noted beside so many that are picked.
fn runners_of(picked: usize) -> usize {
    (picked / RUNNERS_SHARE).max(RUNNERS_MIN)
}

/// The heaviest that were not picked, heaviest first.
fn runners(weights: &[f32], best: &[u32]) -> Vec<u32> {
    let n = runners_of(best.len());
    let mut next = Vec::new();
    select::top_k(weights, best.len() + n, &mut next);
    next.retain(|p| best.binary_search(p).is_err());
    let heavier = |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]);
    next.sort_by(|a, b| heavier(a, b).then(a.cmp(b)));
    next.truncate(n);
    next
}

/// Weighs the units. Of a tree, chunks are looked for until enough of the pages that they lie in were found.
fn weigh(work: &Work, parts: &Parts) -> Result<Weighed, Error> {
    let (Digest::Tree { .. }, Rule::Budget(tokens)) = (parts.digest, parts.rule) else {
        return compose::weigh(work, parts);
    };
    let mut weighed = Weighed::new(compose::keep(work, parts), parts.unit_tokens());
    let (unit, page, candidates) =
        (weighed.unit, work.page_tokens(), work.candidates(&weighed.keep));
    let n = work.affordable(tokens, &candidates);
    let mut left = (n + runners_of(n)).min(candidates.len());
    let mut found = vec![false; candidates.len()];
    let take = |leaves: Range<usize>| {
        for leaf in leaves {
            // A page that holds kept tokens is read anyway.
            let of_page = (leaf * unit / page).checked_sub(candidates.start);
            if let Some(found) = of_page.and_then(|p| found.get_mut(p)) {
                left -= usize::from(!std::mem::replace(found, true));
            }
        }
        left > 0
    };
    weighed.search(work, 0, usize::MAX, take);
    Ok(weighed)
}

/// A page weighs what its heaviest unit does.
fn by_units(work: &Work, parts: &Parts, weighed: &Weighed) -> Pages {
    let candidates = work.candidates(&weighed.keep);
    let of_page = |page| weighed.heaviest(work.tokens_of(page));
    let of_page: Vec<f32> = candidates.clone().map(of_page).collect();
    let n = match parts.rule {
        Rule::Budget(tokens) => work.affordable(tokens, &candidates),
        Rule::Share(share) => ((share * work.len as f32) as usize).div_ceil(work.page_tokens()),
        Rule::Split { share, recent } => {
            ((share * (1.0 - recent) * work.len as f32) as usize).div_ceil(work.page_tokens())
        }
        // As many pages as hold that many tokens, if each held one only.
        Rule::Near { share, .. } => {
            let most = (share * work.len as f32) as usize;
            weighed.near.min(most).div_ceil(work.page_tokens()).max(1)
        }
    };
    let mut pages = pick(work, &candidates, &of_page, &Count { least: n, most: n, mass: None });
    pages.summary_bytes = weighed.summary_bytes;
    if let Some(Refine::TopP { p, .. }) = parts.refine {
        pages.summary_bytes += refine(work, p, &candidates, &mut pages.chosen);
    }
    if work.call.options.bound && parts.rows().is_some_and(|(row, _)| row == Row::Box) {
        let (spec, cells) = work.units();
        let scale = work.call.params.scale;
        let query = UnitQuery::new(Isa::level(), spec, work.q, work.group, scale, false);
        let mut upper = vec![0f32; work.group * cells.len() * spec.units()];
        score::units_upper(&query, &cells, &mut upper);
        if work.call.params.soft_cap > 0.0 {
            work.cap(&mut upper);
        }
        pages.proof = Some(Proof::of_units(work, &upper, spec.unit_tokens(), &pages.chosen));
    }
    pages
}

/// Leaves the fewest of the candidates among `chosen` whose estimated mass, with that of the kept pages,
/// reaches the share `p` of all these; returns the bytes of the digests that were read.
fn refine(work: &Work, p: f32, candidates: &Range<usize>, chosen: &mut Vec<u32>) -> u64 {
    let tokens = |&page: &u32| work.tokens_of(page as usize).map(|t| t as u32);
    let all: Vec<u32> = chosen.iter().flat_map(tokens).collect();
    let (mass, bytes) = compose::low_bit(work, &all);
    let mut mass = mass.into_iter();
    let mut of_page = |page: &u32| mass.by_ref().take(tokens(page).len()).sum::<f32>();
    let masses: Vec<(u32, f32)> = chosen.iter().map(|page| (*page, of_page(page))).collect();
    let (picked, kept): (Vec<_>, Vec<_>) =
        masses.into_iter().partition(|(page, _)| candidates.contains(&(*page as usize)));
    let only = |part: &[(u32, f32)]| part.iter().map(|m| m.1).collect::<Vec<f32>>();
    let ids = compose::reach(work, p, &only(&picked), &only(&kept));
    *chosen =
        kept.iter().map(|m| m.0).chain(ids.into_iter().map(|i| picked[i as usize].0)).collect();
    chosen.sort_unstable();
    bytes
}

fn by_mass(work: &Work, boxed: &Boxed, scratch: &mut Scratch) -> Result<Pages, Error> {
    let (spec, cells) = work.boxed();
    let proves = boxed.max_missed_mass.is_some() || work.call.options.bound;
    let planes = if proves { boxed.planes } else { boxed.planes.min(PLANES_FIRST) };
    let stride = cells.len() * TILE;
    let query = BoxedQuery::new(Isa::level(), spec, work.q, work.group);
    let estimates = sized(&mut scratch.estimates, work.group * stride);
    let bounds = sized(&mut scratch.bounds, work.group * cells.len());
    score::boxed(&query, &cells, planes, estimates, proves.then_some(&mut *bounds), None);
    if work.call.params.soft_cap > 0.0 {
        work.cap(estimates);
    }
    // Tokens without a summary lie in open pages, which are near.
    let tail = work.logits(&work.exact_query(proves), stride as u32..work.len as u32)?;
    let lse = lse2(work, estimates, stride, &tail);
    let weights = sized(&mut scratch.weights, stride);
    if stride > 0 {
        let scale = work.scale_log2();
        select::fold_mass_strided(estimates, stride, stride, scale, &lse, weights);
    }
    let candidates = work.candidates(&boxed.keep().ranges(work.len, stride));
    let of_page = |page: usize| weights[work.tokens_of(page)].iter().sum::<f32>();
    let mut of_page: Vec<f32> = candidates.clone().map(of_page).collect();
    let least = work.affordable(boxed.floor_tokens(), &candidates);
    let most = work.affordable(boxed.cap_tokens(), &candidates);
    // The weights of all tokens sum to the group's size: what is missing to that is kept.
    let sum: f64 = of_page.iter().map(|&w| f64::from(w)).sum();
    let mass = boxed.top_p.map(|p| sum - (1.0 - f64::from(p)) * work.group as f64);
    if boxed.residency > 0.0 && mass.is_none() {
        prefer_near(work, &candidates, (-boxed.residency).exp(), &mut of_page);
    }
    let mut pages = pick(work, &candidates, &of_page, &Count { least, most, mass });
    pages.summary_bytes = (cells.len() * spec.bytes_read(planes)) as u64;
    if proves {
        let scored = (&*estimates, &*bounds, &tail[..]);
        let all = work.len.div_ceil(work.page_tokens());
        let cap = (all - candidates.len()).saturating_add(most);
        let mut proof = Proof::of_boxed(work, scored, &pages.chosen, cap);
        if let Some(eps) = boxed.max_missed_mass {
            pages.chosen = proof.first(f64::from(eps));
        }
        pages.proof = Some(proof);
    }
    Ok(pages)
}

/// Scales down the weights of the pages that are not near.
fn prefer_near(work: &Work, candidates: &Range<usize>, factor: f32, weights: &mut [f32]) {
    let Some(tier) = &work.call.cache.shared.tier else { return };
    let sealed = &work.sequence.layers[work.call.layer].sealed;
    tier.with_near(|near| {
        for (page, weight) in candidates.clone().zip(weights) {
            let is_near = sealed.get(page).is_none_or(|stripe| near(stripe.page(work.number)));
            *weight *= if is_near { 1.0 } else { factor };
        }
    });
}

/// Base-2 log-sum-exp per head over all tokens: estimates, and the exact logits of the tail.
fn lse2(work: &Work, estimates: &[f32], stride: usize, tail: &[f32]) -> Vec<f32> {
    let (scale, n) = (work.scale_log2(), work.len - stride);
    let mut lse = vec![f32::NEG_INFINITY; work.group];
    if n > 0 {
        select::lse2_strided(tail, n, n, scale, &mut lse);
    }
    if stride > 0 {
        select::lse2_strided(estimates, stride, stride, scale, &mut lse);
    }
    lse
}
