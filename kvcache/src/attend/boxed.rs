//! kvist's selector: token scores from nested bit planes, refined where the cut is close.

use std::ops::Range;

use kvist_kernels::score::{self, BoxedQuery};
use kvist_kernels::{Isa, select};
use kvist_policies::Boxed;

use super::head::{Choice, Scratch, Work, sized};
use super::tree::{self, Tiles};
use super::{certify, gate};
use crate::Error;
use crate::summaries::TILE;

/// Tokens within this many rms errors of the cut are looked at more closely: by a further plane
/// where a tile has many of them, by their true keys where it has few. The second number is for sequences of
/// which not all tiles are scored: the others cost them more than a closer look would gain.
const STRADDLE: [f32; 2] = [0.5, 0.25];
/// Where all tokens below the cut hold less than this share of the mass, their order is not worth
/// a closer look.
const NEGLIGIBLE: f32 = 1e-4;
/// Planes read for every token: three cost no more time than two, and spare a second look.
pub(super) const PLANES_FIRST: u32 = 3;

/// Estimates of one head group and where its candidates lie. Tokens are counted within the tiles that were
/// scored.
pub(super) struct Scored<'a> {
    pub(super) query: BoxedQuery,
    pub(super) tiles: Tiles,
    /// Raw q.k estimates, `[group, stride]`.
    pub(super) estimates: &'a mut [f32],
    pub(super) stride: usize,
    /// Kept positions.
    pub(super) keep: [Range<usize>; 2],
    /// Raw exact logits of the kept tokens, `[group, kept]`.
    pub(super) kept: Vec<f32>,
    /// Tokens that may be picked or left.
    pub(super) candidates: Range<usize>,
}

impl Scored<'_> {
    /// The position of a candidate, counted from the first one.
    pub(super) fn position(&self, candidate: u32) -> u32 {
        self.tiles.position(self.candidates.start + candidate as usize)
    }

    /// The candidates of a tile, counted from the first candidate.
    fn of_tile(&self, tile: usize) -> Range<usize> {
        let all = &self.candidates;
        let from = (tile * TILE).clamp(all.start, all.end) - all.start;
        from..((tile + 1) * TILE).clamp(all.start, all.end) - all.start
    }

    pub(super) fn kept_tokens(&self) -> usize {
        self.keep[0].len() + self.keep[1].len()
    }
}

pub(super) fn choose(work: &Work, boxed: &Boxed) -> Result<Choice, Error> {
    Scratch::with(|scratch| {
        if boxed.max_missed_mass.is_some() {
            return certify::choose(work, boxed, scratch);
        }
        let mut choice = match gate::choose(work, boxed)? {
            Some(choice) => choice,
            None => by_estimate(work, boxed, scratch)?,
        };
        if work.call.options.bound {
            choice.bound = Some(certify::prove(work, boxed, &choice.positions, scratch)?);
        }
        Ok(choice)
    })
}

/// The kept ranges of this head, given the tiles that are summarised.
pub(super) fn keep(work: &Work, boxed: &Boxed) -> [Range<usize>; 2] {
    boxed.keep().ranges(work.len, work.boxed().1.len() * TILE)
}

/// Scores these tiles, and the kept tokens exactly.
pub(super) fn score<'a>(
    work: &Work,
    boxed: &Boxed,
    tiles: Tiles,
    estimates: &'a mut Vec<f32>,
    bounds: Option<&mut [f32]>,
    sigma: Option<&mut [f32]>,
    precise: bool,
) -> Result<Scored<'a>, Error> {
    let (spec, _) = work.boxed();
    let query = BoxedQuery::new(Isa::level(), spec, work.q, work.group);
    let stride = tiles.len() * TILE;
    let cells = tiles.cells(work);
    let estimates = sized(estimates, work.group * stride);
    score::boxed(&query, &cells, tiles.planes, estimates, bounds, sigma);
    if work.call.params.soft_cap > 0.0 {
        work.cap(estimates);
    }
    let keep = keep(work, boxed);
    let positions = keep.clone().into_iter().flatten().map(|p| p as u32);
    let kept = work.logits(&work.exact_query(precise), positions)?;
    let candidates = tiles.index(keep[0].end)..tiles.index(keep[1].start);
    Ok(Scored { query, tiles, estimates, stride, keep, kept, candidates })
}

/// Picks by estimated softmax mass: a fixed number of tokens, or as many as cover `top_p`.
fn by_estimate(work: &Work, boxed: &Boxed, scratch: &mut Scratch) -> Result<Choice, Error> {
    let (spec, _) = work.boxed();

    // A plane is added to raw estimates; capped ones would no longer be that.
    let first =
        if work.call.params.soft_cap > 0.0 { boxed.planes } else { boxed.planes.min(PLANES_FIRST) };
    let tiles = tree::open(work, boxed, first)?;
    let mut summary_bytes = tiles.bytes;
    let sigma = sized(&mut scratch.sigma, tiles.len());
    let estimates = &mut scratch.estimates;
    let scored = score(work, boxed, tiles, estimates, None, Some(&mut *sigma), false)?;
    let candidates = &scored.candidates;
    let weights = sized(&mut scratch.weights, candidates.len());
    let lse = lse2(work, &scored);
    fold(work, &scored, &lse, 0..candidates.len(), weights);
    let plane_bytes = spec.plane_bytes() + spec.box_bytes();
    summary_bytes += scored.tiles.len() * spec.bytes_read(first);
    let negligible = NEGLIGIBLE * work.group as f32 / candidates.len().max(1) as f32;
    let mut plane = first;
    let near = loop {
        let cut = cut(work, boxed, &scored, &lse, weights, &mut scratch.chosen);
        // Reading a few keys is cheaper than another plane of the whole tile.
        let keys =
            if plane < boxed.planes { plane_bytes / work.key_bytes() as usize } else { TILE };
        let near = match cut < negligible {
            true => Near::default(),
            false => straddlers(work, &scored, sigma, cut, weights, keys, &mut scratch.chosen),
        };
        if near.tiles.is_empty() {
            break near;
        }
        plane += 1;
        let (estimates, sigma) = (&mut *scored.estimates, Some(&mut *sigma));
        score::refine(
            &scored.query,
            &scored.tiles.cells(work),
            &near.tiles,
            plane,
            estimates,
            None,
            sigma,
        );
        for &tile in &near.tiles {
            fold(work, &scored, &lse, scored.of_tile(tile as usize), weights);
        }
        summary_bytes += near.tiles.len() * plane_bytes;
    };
    let chosen = &mut scratch.chosen;
    read_keys(work, &scored, &lse, &near.tokens, weights)?;
    let spared = match boxed.top_p.is_none() && !(near.above.is_empty() && near.tokens.is_empty()) {
        true => {
            let count = boxed.floor_tokens().saturating_sub(scored.kept_tokens());
            near.tokens.len() - fill_up(count, &near, weights, chosen)
        }
        false => {
            pick(work, boxed, &scored, &lse, weights, chosen);
            near.tokens.iter().filter(|t| chosen.binary_search(t).is_err()).count()
        }
    };
    let mut choice = Choice::default();
    choice.bytes.summary = summary_bytes as u64;
    choice.bytes.keys = spared as u64 * work.key_bytes();
    chosen.iter_mut().for_each(|i| *i = scored.position(*i));
    choice.set(&scored.keep, chosen);
    Ok(choice)
}

/// Replaces the weights of these candidates by those of their true keys.
fn read_keys(
    work: &Work,
    scored: &Scored,
    lse: &[f32],
    near: &[u32],
    weights: &mut [f32],
) -> Result<(), Error> {
    if near.is_empty() {
        return Ok(());
    }
    let exact = work.logits(&work.exact_query(false), near.iter().map(|&t| scored.position(t)))?;
    let mut mass = vec![0f32; near.len()];
    select::fold_mass_strided(&exact, near.len(), near.len(), work.scale_log2(), lse, &mut mass);
    near.iter().zip(&mass).for_each(|(&t, &m)| weights[t as usize] = m);
    Ok(())
}

/// The tokens above every doubt, and the heaviest of the doubtful ones up to `count` in all. More
/// than that can only be above where tiles are open; their first tokens are taken then. Returns how many of
/// the doubtful ones were taken.
fn fill_up(count: usize, near: &Near, weights: &[f32], chosen: &mut Vec<u32>) -> usize {
    let doubtful: Vec<f32> = near.tokens.iter().map(|&t| weights[t as usize]).collect();
    select::top_k(&doubtful, count.saturating_sub(near.above.len()), chosen);
    chosen.iter_mut().for_each(|i| *i = near.tokens[*i as usize]);
    let taken = chosen.len();
    chosen.extend(near.above.iter().take(count));
    chosen.sort();
    taken
}

/// Base-2 log-sum-exp per head over kept tokens (exact), candidates (estimated) and what the tiles that were
/// not scored promise.
fn lse2(work: &Work, scored: &Scored) -> Vec<f32> {
    let scale = work.scale_log2();
    let mut lse = scored.tiles.rest.clone();
    let kept = scored.kept_tokens();
    if kept > 0 {
        select::lse2_strided(&scored.kept, kept, kept, scale, &mut lse);
    }
    let candidates = &scored.candidates;
    if !candidates.is_empty() {
        let from = &scored.estimates[candidates.start..];
        select::lse2_strided(from, scored.stride, candidates.len(), scale, &mut lse);
    }
    lse
}

/// Softmax mass, summed over the group, of a range of the candidates.
fn fold(work: &Work, scored: &Scored, lse: &[f32], range: Range<usize>, weights: &mut [f32]) {
    if range.is_empty() {
        return;
    }
    let from = &scored.estimates[scored.candidates.start + range.start..];
    let out = &mut weights[range.clone()];
    select::fold_mass_strided(from, scored.stride, range.len(), work.scale_log2(), lse, out);
}

/// Mass of the kept tokens, summed over the group.
fn kept_mass(work: &Work, scored: &Scored, lse: &[f32]) -> f64 {
    let kept = scored.kept_tokens();
    let scale = work.scale_log2();
    let of_head = |h: usize| -> f64 {
        let row = &scored.kept[h * kept..(h + 1) * kept];
        row.iter().map(|&x| f64::from(x * scale - lse[h]).exp2()).sum()
    };
    (0..work.group).map(of_head).sum()
}

/// Chooses among the candidates; indices count from the first candidate.
fn pick(
    work: &Work,
    boxed: &Boxed,
    scored: &Scored,
    lse: &[f32],
    weights: &[f32],
    chosen: &mut Vec<u32>,
) {
    let kept = scored.kept_tokens();
    let at_least = boxed.floor_tokens().saturating_sub(kept);
    match boxed.top_p {
        None => select::top_k(weights, at_least, chosen),
        Some(p) => {
            let target = f64::from(p) * work.group as f64 - kept_mass(work, scored, lse);
            let at_most = boxed.cap_tokens().saturating_sub(kept);
            select::top_p(weights, target, at_least, at_most, chosen);
        }
    }
}

/// The weight at the edge of the choice.
fn cut(
    work: &Work,
    boxed: &Boxed,
    scored: &Scored,
    lse: &[f32],
    weights: &[f32],
    chosen: &mut Vec<u32>,
) -> f32 {
    let count = match boxed.top_p {
        None => boxed.floor_tokens().saturating_sub(scored.kept_tokens()),
        Some(_) => {
            pick(work, boxed, scored, lse, weights, chosen);
            chosen.len()
        }
    };
    match count.min(weights.len()) {
        0 => f32::INFINITY,
        k => select::threshold(weights, k),
    }
}

/// Candidates by where they lie to the cut, counted from the first candidate.
#[derive(Default)]
struct Near {
    /// Above it by more than the model error.
    above: Vec<u32>,
    /// Within the model error, in tiles with few of them.
    tokens: Vec<u32>,
    /// Tiles with more.
    tiles: Vec<u32>,
}

/// Parts the candidates at `cut`. A NaN weight counts as above. `ids` is scratch.
fn straddlers(
    work: &Work,
    scored: &Scored,
    sigma: &[f32],
    cut: f32,
    weights: &[f32],
    keys: usize,
    ids: &mut Vec<u32>,
) -> Near {
    let candidates = &scored.candidates;
    let mut near = Near::default();
    if candidates.is_empty() {
        return near;
    }
    let straddle = STRADDLE[usize::from(!scored.tiles.are_all())];
    let factor = |sigma: f32| (straddle * sigma * work.scale_log2()).exp2();
    let (first, last) = (candidates.start / TILE, (candidates.end - 1) / TILE);
    let widest = sigma[first..=last].iter().copied().fold(0.0, f32::max);
    select::at_least(weights, cut / factor(widest), ids);
    let tile_of = |t: &u32| (*t as usize + candidates.start) / TILE;
    // As long as they can get; the counts say how much of them is used.
    (near.above, near.tokens) = (vec![0; ids.len()], vec![0; ids.len()]);
    let (mut above, mut within) = (0, 0);
    for ids in ids.chunk_by(|a, b| tile_of(a) == tile_of(b)) {
        let tile = tile_of(&ids[0]);
        let factor = factor(sigma[tile]);
        let (low, high) = (cut / factor, cut * factor);
        let before = within;
        for &t in ids {
            // Written always, counted where it holds: a branch would be mispredicted.
            let w = weights[t as usize];
            (near.above[above], near.tokens[within]) = (t, t);
            above += usize::from(w > high || w.is_nan());
            within += usize::from(w >= low && w <= high);
        }
        if within - before > keys {
            within = before;
            near.tiles.push(tile as u32);
        }
    }
    near.above.truncate(above);
    near.tokens.truncate(within);
    near
}
