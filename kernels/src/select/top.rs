//! Top-k and top-p.
//!
//! Long lists are first cut by a guess: order statistics of a sample, moved far enough apart that
//! the wanted one almost surely lies between them, bracket the list in one vector pass; if the counts
//! say otherwise, the whole list is taken. What is left goes through the radix descent. The result is
//! exact either way.

use std::cell::RefCell;

use super::radix::{Cut, key, kth, reach, value};
use crate::Isa;

/// Shorter lists are not worth a sample.
const SHORT: usize = 4096;
/// Numbers in a sample.
const SAMPLE: usize = 1024;

#[derive(Default)]
struct Scratch {
    keys: Vec<u32>,
    weights: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Replaces `ids` by those of all weights that are not below `cut` (NaN included), ascending.
pub fn at_least(weights: &[f32], cut: f32, ids: &mut Vec<u32>) {
    #[cfg(target_arch = "x86_64")]
    if Isa::level() >= Isa::Avx512 {
        use crate::arch::boxed_filter;
        ids.clear();
        ids.reserve(weights.len() + boxed_filter::STEP);
        // SAFETY: the level is the CPU's; the room was just reserved, and what is found has been
        // written.
        unsafe {
            let found = boxed_filter::filter(weights, cut, ids.as_mut_ptr());
            ids.set_len(found);
        }
        return;
    }
    at_least_plain(weights, cut, ids);
}

fn at_least_plain(weights: &[f32], cut: f32, ids: &mut Vec<u32>) {
    ids.resize(weights.len() + 1, 0);
    let mut found = 0;
    for (id, &x) in weights.iter().enumerate() {
        // Without a branch: a slot that is not confirmed is overwritten.
        ids[found] = id as u32;
        found += usize::from(x >= cut || x.is_nan());
    }
    ids.truncate(found);
}

/// Numbers that the `k`-th largest almost surely lies between, by sampling; `None` for short lists.
fn guess(weights: &[f32], k: usize, keys: &mut Vec<u32>) -> Option<(f32, f32)> {
    if weights.len() < SHORT {
        return None;
    }
    // Spread without a period: scores often have the period of a tile.
    let place = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let sample = |i: u64| key(weights[((place(i) * weights.len() as u64) >> 32) as usize]);
    keys.clear();
    keys.extend((0..SAMPLE as u64).map(sample));
    let expected = (k * SAMPLE) as f64 / weights.len() as f64;
    let rest = 1.0 - expected / SAMPLE as f64;
    let margin = 4.0 * (expected * rest).sqrt() + 4.0;
    let (upper, lower) = ((expected - margin) as isize, (expected + margin) as usize);
    let mut nth = |rank: usize| value(*keys.select_nth_unstable_by(rank, |a, b| b.cmp(a)).1);
    let low = if lower < SAMPLE { nth(lower) } else { f32::NEG_INFINITY };
    let high = if upper > 0 { nth(upper as usize) } else { f32::INFINITY };
    Some((low, high))
}

/// Collects what is neither below `low` nor above `high`; returns how many are above. NaN is infinite.
fn bracket(weights: &[f32], low: f32, high: f32, inside: &mut Vec<f32>) -> usize {
    #[cfg(target_arch = "x86_64")]
    if Isa::level() >= Isa::Avx512 {
        use crate::arch::boxed_filter;
        inside.clear();
        inside.reserve(weights.len() + boxed_filter::STEP);
        // SAFETY: the level is the CPU's; the room was just reserved, and what is found has been
        // written.
        unsafe {
            let (above, found) = boxed_filter::bracket(weights, low, high, inside.as_mut_ptr());
            inside.set_len(found);
            return above;
        }
    }
    bracket_plain(weights, low, high, inside)
}

fn bracket_plain(weights: &[f32], low: f32, high: f32, inside: &mut Vec<f32>) -> usize {
    inside.resize(weights.len() + 1, 0.0);
    let (mut above, mut found) = (0, 0);
    for &x in weights {
        let over = x > high || (x.is_nan() && high < f32::INFINITY);
        inside[found] = x;
        above += usize::from(over);
        found += usize::from((x >= low || x.is_nan()) && !over);
    }
    inside.truncate(found);
    above
}

/// Key of the `k`-th largest weight, `1 <= k <= weights.len()`.
fn kth_key(weights: &[f32], k: usize, keys: &mut Vec<u32>, inside: &mut Vec<f32>) -> u32 {
    if let Some((low, high)) = guess(weights, k, keys) {
        let above = bracket(weights, low, high, inside);
        if above < k && k <= above + inside.len() {
            return if low == high { key(low) } else { kth(inside, k - above, keys) };
        }
    }
    kth(weights, k, keys)
}

/// Ids of the `cut.count` largest weights, of which the smallest has `cut.key`; ties to the lower id.
fn take(weights: &[f32], cut: Cut, out: &mut Vec<u32>) {
    out.clear();
    if cut.count == 0 {
        return;
    }
    at_least(weights, value(cut.key), out);
    let mut surplus = out.len() - cut.count;
    let mut keep = out.len();
    // The ties that go are the last ones: find where they begin, then squeeze them out.
    while surplus > 0 {
        keep -= 1;
        surplus -= usize::from(key(weights[out[keep] as usize]) == cut.key);
    }
    let mut to = keep;
    for from in keep..out.len() {
        if key(weights[out[from] as usize]) != cut.key {
            out[to] = out[from];
            to += 1;
        }
    }
    out.truncate(to);
}

/// Ids of the `k` largest weights, ascending; ties go to the lower id, NaN counts as +inf. All ids
/// if there are no more than `k`. `out` is overwritten. Any floats, negative ones included.
///
/// # Panics
/// If there are 2^32 weights or more.
pub fn top_k(weights: &[f32], k: usize, out: &mut Vec<u32>) {
    assert!(u32::try_from(weights.len()).is_ok(), "{} weights", weights.len());
    if k >= weights.len() {
        out.clear();
        out.extend(0..weights.len() as u32);
    } else if k == 0 {
        out.clear();
    } else {
        let key = SCRATCH.with_borrow_mut(|s| kth_key(weights, k, &mut s.keys, &mut s.weights));
        take(weights, Cut { count: k, key, mass: 0.0 }, out);
    }
}

/// The `k`-th largest weight; NaN counts as +inf.
///
/// # Panics
/// If `k` is outside `1..=weights.len()`.
#[must_use]
pub fn threshold(weights: &[f32], k: usize) -> f32 {
    assert!((1..=weights.len()).contains(&k), "rank {k} of {}", weights.len());
    value(SCRATCH.with_borrow_mut(|s| kth_key(weights, k, &mut s.keys, &mut s.weights)))
}

/// The fewest units, largest first and ties to the lower id, whose weights sum to `target` or more;
/// but at least `min` and at most `max` of them. Ids ascending in `out`, which is overwritten; returns
/// the sum of the chosen weights. Weights are masses, not negative; NaN and infinite ones are taken
/// first and count 0.
///
/// # Panics
/// If there are 2^32 weights or more.
pub fn top_p(weights: &[f32], target: f64, min: usize, max: usize, out: &mut Vec<u32>) -> f64 {
    assert!(u32::try_from(weights.len()).is_ok(), "{} weights", weights.len());
    let max = max.min(weights.len());
    let min = min.min(max);
    if max == 0 {
        out.clear();
        return 0.0;
    }
    let cut = SCRATCH.with_borrow_mut(|s| {
        // Only the `max` largest can be chosen, so a list of somewhat more than those will do.
        let cut = guess(weights, max, &mut s.keys).map_or(f32::NEG_INFINITY, |(low, _)| low);
        bracket(weights, cut, f32::INFINITY, &mut s.weights);
        let part = if s.weights.len() < max { weights } else { &s.weights };
        let cut = reach(part, target, min, &mut s.keys);
        if cut.count > max { capped(part, max, &mut s.keys) } else { cut }
    });
    take(weights, cut, out);
    cut.mass
}

/// The `max` largest, with their mass.
fn capped(weights: &[f32], max: usize, keys: &mut Vec<u32>) -> Cut {
    let least = kth(weights, max, keys);
    let above = weights.iter().filter(|&&x| key(x) > least && x.is_finite());
    let (mut mass, mut count) = (0f64, 0);
    for &x in above {
        mass += f64::from(x);
        count += 1;
    }
    let infinite = weights.iter().filter(|&&x| key(x) > least && !x.is_finite()).count();
    let one = value(least);
    let one = if one.is_finite() { f64::from(one) } else { 0.0 };
    Cut { count: max, key: least, mass: mass + one * (max - count - infinite) as f64 }
}
