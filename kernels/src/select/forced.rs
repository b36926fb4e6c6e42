//! Selection with keeps: ranges of ids that are always chosen and count towards the budget.

use std::ops::Range;

use super::top::{top_k, top_p};

/// Checks the ranges and returns the number of ids in them.
fn count(forced: &[Range<u32>], n: usize) -> usize {
    let mut end = 0;
    for r in forced {
        assert!(
            r.start >= end && r.start <= r.end && r.end as usize <= n,
            "range {r:?} of {n} after {end}"
        );
        end = r.end;
    }
    forced.iter().map(|r| (r.end - r.start) as usize).sum()
}

/// The ids outside `forced`, as ranges.
fn others(forced: &[Range<u32>], n: usize) -> impl Iterator<Item = Range<u32>> {
    let starts = std::iter::once(0).chain(forced.iter().map(|r| r.end));
    let ends = forced.iter().map(|r| r.start).chain(std::iter::once(n as u32));
    starts.zip(ends).map(|(a, b)| a..b)
}

/// Turns ids among the others into ids among all, and adds the forced ones in order.
fn merge(forced: &[Range<u32>], n: usize, chosen: &[u32], out: &mut Vec<u32>) {
    out.clear();
    let (mut at, mut before) = (0, 0);
    for (i, other) in others(forced, n).enumerate() {
        let len = other.end - other.start;
        while at < chosen.len() && chosen[at] < before + len {
            out.push(other.start + chosen[at] - before);
            at += 1;
        }
        before += len;
        out.extend(forced.get(i).cloned().unwrap_or(0..0));
    }
}

fn compact(weights: &[f32], forced: &[Range<u32>]) -> Vec<f32> {
    let mut rest = Vec::with_capacity(weights.len());
    for r in others(forced, weights.len()) {
        rest.extend_from_slice(&weights[r.start as usize..r.end as usize]);
    }
    rest
}

/// [`top_k`] with forced ranges of ids (ascending, disjoint), which are always part of the result and
/// of the `k`; more forced ids than `k` are all kept.
///
/// # Panics
/// If the ranges overlap, are out of order or out of range.
pub fn top_k_forced(weights: &[f32], forced: &[Range<u32>], k: usize, out: &mut Vec<u32>) {
    let keep = count(forced, weights.len());
    let mut chosen = Vec::new();
    top_k(&compact(weights, forced), k.saturating_sub(keep), &mut chosen);
    merge(forced, weights.len(), &chosen, out);
}

/// [`top_p`] with forced ranges of ids (ascending, disjoint), which are always part of the result, of
/// its mass, and of `min` and `max`; more forced ids than `max` are all kept.
///
/// # Panics
/// If the ranges overlap, are out of order or out of range.
pub fn top_p_forced(
    weights: &[f32],
    forced: &[Range<u32>],
    target: f64,
    min: usize,
    max: usize,
    out: &mut Vec<u32>,
) -> f64 {
    let keep = count(forced, weights.len());
    let kept = forced.iter().flat_map(|r| &weights[r.start as usize..r.end as usize]);
    let mass: f64 = kept.filter(|x| x.is_finite()).map(|&x| f64::from(x)).sum();
    let (min, max) = (min.saturating_sub(keep), max.saturating_sub(keep));
    let mut chosen = Vec::new();
    let rest = top_p(&compact(weights, forced), target - mass, min, max, &mut chosen);
    merge(forced, weights.len(), &chosen, out);
    mass + rest
}
