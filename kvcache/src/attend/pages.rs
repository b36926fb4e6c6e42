//! Which whole pages a query reads, from summaries alone: what is not near is not touched.
//!
//! Selectors score as they do for tokens; a page weighs what its tokens weigh together (`boxed`:
//! estimated softmax mass, summed) or what its best unit does (`quest`: the largest bound). Pages that
//! hold a kept token are always read.

use std::ops::Range;

use kvist_kernels::score::{self, BoxedQuery, UnitQuery};
use kvist_kernels::{Isa, select};
use kvist_policies::{Boxed, Quest, Select};

use super::boxed::PLANES_FIRST;
use super::head::{Scratch, Work, sized};
use super::proof::Proof;
use crate::Error;
use crate::summaries::{Spec, TILE};

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
}

/// How many of the candidates to pick.
struct Count {
    least: usize,
    most: usize,
    /// Pick until they hold this much of the weight.
    mass: Option<f64>,
}

pub(super) fn choose(work: &Work, select: &Select) -> Result<Pages, Error> {
    Scratch::with(|scratch| match select {
        Select::Full => {
            let pages = work.len.div_ceil(work.page_tokens()) as u32;
            Ok(Pages { chosen: (0..pages).collect(), ..Pages::default() })
        }
        Select::Quest(quest) => Ok(by_bound(work, quest, scratch)),
        Select::Boxed(boxed) => by_mass(work, boxed, scratch),
    })
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

/// The heaviest that were not picked, heaviest first.
fn runners(weights: &[f32], best: &[u32]) -> Vec<u32> {
    let n = (best.len() / RUNNERS_SHARE).max(RUNNERS_MIN);
    let mut next = Vec::new();
    select::top_k(weights, best.len() + n, &mut next);
    next.retain(|p| best.binary_search(p).is_err());
    let heavier = |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]);
    next.sort_by(|a, b| heavier(a, b).then(a.cmp(b)));
    next.truncate(n);
    next
}

fn by_bound(work: &Work, quest: &Quest, scratch: &mut Scratch) -> Pages {
    let Spec::Units(spec) = work.store.spec else {
        unreachable!("a sequence's store is made for its selector")
    };
    let scale = work.call.params.scale;
    let query = UnitQuery::new(Isa::level(), spec, work.q, work.group, scale, false);
    let cells = work.cells();
    let (unit, stored) = (quest.unit_tokens, cells.len() * spec.units());
    let estimates = sized(&mut scratch.estimates, work.group * stored);
    score::units(&query, &cells, estimates);
    let weights = sized(&mut scratch.weights, stored);
    select::fold_max(estimates, stored, weights);
    // The last unit is always read.
    let last = (work.len - 1) / unit * unit;
    let candidates = work.candidates(&[0..0, last..work.len]);
    let of_page = |page: usize| {
        let tokens = work.tokens_of(page);
        let units = &weights[tokens.start / unit..tokens.end.div_ceil(unit)];
        // A NaN weight counts as the largest, as it does for units.
        units.iter().fold(f32::NEG_INFINITY, |m, &w| if w > m || w.is_nan() { w } else { m })
    };
    let of_page: Vec<f32> = candidates.clone().map(of_page).collect();
    let n = work.affordable(quest.budget, &candidates);
    let mut pages = pick(work, &candidates, &of_page, &Count { least: n, most: n, mass: None });
    let units = work.len.div_ceil(unit);
    pages.summary_bytes = (units * 2 * spec.dim() * spec.dtype().size()) as u64;
    if work.call.options.bound {
        let mut upper = vec![0f32; work.group * stored];
        score::units_upper(&query, &cells, &mut upper);
        if work.call.params.soft_cap > 0.0 {
            work.cap(&mut upper);
        }
        pages.proof = Some(Proof::of_units(work, &upper, unit, &pages.chosen));
    }
    pages
}

fn by_mass(work: &Work, boxed: &Boxed, scratch: &mut Scratch) -> Result<Pages, Error> {
    let Spec::Boxed(spec) = work.store.spec else {
        unreachable!("a sequence's store is made for its selector")
    };
    let proves = boxed.max_missed_mass.is_some() || work.call.options.bound;
    let planes = if proves { boxed.planes } else { boxed.planes.min(PLANES_FIRST) };
    let cells = work.cells();
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
    let of_page: Vec<f32> = candidates.clone().map(of_page).collect();
    let least = work.affordable(boxed.floor_tokens(), &candidates);
    let most = work.affordable(boxed.cap_tokens(), &candidates);
    // The weights of all tokens sum to the group's size: what is missing to that is kept.
    let sum: f64 = of_page.iter().map(|&w| f64::from(w)).sum();
    let mass = boxed.top_p.map(|p| sum - (1.0 - f64::from(p)) * work.group as f64);
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
