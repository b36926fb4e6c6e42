//! Statistics of every head of a dump: what a selector misses by its budget, what a window covers, how flat
//! attention is. Everything is measured against exact attention in f64.

use std::ops::Range;

use kvist::policies::{HeadStats, Missed, Window};
use kvist::{Select, Sequence};

use crate::Error;
use crate::quality::dump::Dump;
use crate::quality::truth::Truth;
use crate::quality::{append, attend, sequence};

/// First and most recent tokens whose cover is measured; the third is DuoAttention's.
const WINDOWS: [(usize, usize); 6] =
    [(16, 112), (16, 240), (128, 256), (16, 496), (16, 1008), (16, 2032)];
/// Each budget measured is larger than the one before by this.
const STEP: f64 = 1.25;
/// Percentile of [`Window::worst`].
const WORST: f64 = 0.01;

/// What a head's measured steps add up to.
#[derive(Default)]
struct Gathered {
    support: f64,
    /// Covered mass per (step, query head), by window.
    covered: Vec<Vec<f64>>,
    /// Missed mass, summed, by budget.
    missed: Vec<f64>,
    count: usize,
}

/// Statistics of the heads of each layer, from some steps of a dump. `progress` is told each layer that is
/// done.
pub(crate) fn measure(
    dump: &Dump,
    select: &Select,
    steps: &[usize],
    mut progress: impl FnMut(usize),
) -> Result<Vec<Vec<HeadStats>>, Error> {
    let budgets = ladder(select.least_budget(), dump.tokens);
    let mut all = Vec::with_capacity(dump.layers.len());
    for layer in 0..dump.layers.len() {
        all.push(of_layer(dump, select, layer, steps, &budgets)?);
        progress(layer + 1);
    }
    Ok(all)
}

/// At most `most` of some steps, evenly spread, the last one included.
pub(crate) fn spread(steps: Range<usize>, most: usize) -> Vec<usize> {
    let (len, n) = (steps.len(), steps.len().min(most));
    (1..=n).map(|i| steps.start + i * len / n - 1).collect()
}

/// Budgets from the least one up to all tokens.
fn ladder(least: usize, tokens: usize) -> Vec<usize> {
    let next = |&at: &usize| Some(((at as f64 * STEP) as usize).max(at + 1));
    std::iter::successors(Some(least.max(1)), next).take_while(|&b| b < tokens).collect()
}

fn of_layer(
    dump: &Dump,
    select: &Select,
    layer: usize,
    steps: &[usize],
    budgets: &[usize],
) -> Result<Vec<HeadStats>, Error> {
    let fresh = || Gathered {
        covered: vec![Vec::new(); WINDOWS.len()],
        missed: vec![0.0; budgets.len()],
        ..Gathered::default()
    };
    let mut heads: Vec<Gathered> = std::iter::repeat_with(fresh).take(dump.kv_heads).collect();
    let mut s = sequence(dump, layer, select)?;
    let (mut next, mut tokens) = (0, 0);
    for &step in steps {
        let first = dump.tokens - dump.queries;
        append(dump, layer, first + next..first + step + 1, &mut s, 0)?;
        next = step + 1;
        let len = first + step + 1;
        tokens += len;
        let truths: Vec<Truth> =
            (0..dump.kv_heads).map(|head| Truth::of(dump, layer, step, head, len)).collect();
        heads.iter_mut().zip(&truths).for_each(|(head, truth)| head.look(truth));
        for (i, &budget) in budgets.iter().enumerate() {
            let selected = picks(dump, layer, step, &s, &select.clone().with_budget(budget))?;
            for ((head, truth), chosen) in heads.iter_mut().zip(&truths).zip(selected) {
                head.missed[i] += truth.covered(&chosen).iter().map(|c| 1.0 - c).sum::<f64>();
            }
        }
    }
    let context = tokens / steps.len().max(1);
    Ok(heads.into_iter().map(|head| head.stats(steps.len(), context, budgets)).collect())
}

fn picks(
    dump: &Dump,
    layer: usize,
    step: usize,
    s: &Sequence,
    select: &Select,
) -> Result<Vec<Vec<u32>>, Error> {
    let (_, info) = attend(dump, layer, step, &s.fork_with(select)?, 0)?;
    Ok(info.selected.unwrap_or_default())
}

impl Gathered {
    fn look(&mut self, truth: &Truth) {
        for mass in &truth.mass {
            let entropy: f64 = mass.iter().filter(|&&m| m > 0.0).map(|m| -m * m.ln()).sum();
            self.support += entropy.exp();
            self.count += 1;
            for (covered, (sinks, recent)) in self.covered.iter_mut().zip(WINDOWS) {
                let from = mass.len().saturating_sub(recent);
                let first = mass[..sinks.min(from)].iter().sum::<f64>();
                covered.push(first + mass[from..].iter().sum::<f64>());
            }
        }
    }

    fn stats(self, steps: usize, tokens: usize, budgets: &[usize]) -> HeadStats {
        let n = self.count.max(1) as f64;
        let window = |((sinks, recent), mut covered): ((usize, usize), Vec<f64>)| {
            covered.sort_by(f64::total_cmp);
            let rank = (WORST * covered.len() as f64).ceil() as usize;
            let worst = covered.get(rank.saturating_sub(1)).copied().unwrap_or(0.0);
            Window { sinks, recent, mean: covered.iter().sum::<f64>() / n, worst }
        };
        let missed = budgets.iter().zip(&self.missed);
        // Rounding may leave a hair less than nothing.
        let missed = missed.map(|(&tokens, sum)| Missed { tokens, mean: (sum / n).max(0.0) });
        HeadStats {
            steps,
            tokens,
            support: self.support / n,
            windows: WINDOWS.into_iter().zip(self.covered).map(window).collect(),
            missed: missed.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_spread_and_budgets_ascend() {
        assert_eq!(spread(0..6, 3), [1, 3, 5]);
        assert_eq!(spread(48..96, 1000).len(), 48);
        assert_eq!(spread(48..96, 1), [95]);
        assert!(spread(5..5, 3).is_empty());
        let budgets = ladder(81, 6912);
        assert!(budgets[0] == 81 && budgets.windows(2).all(|w| w[0] < w[1]));
        assert!(budgets.last().is_some_and(|&b| b < 6912 && b * 5 / 4 >= 6912));
        assert_eq!(ladder(0, 4), [1, 2, 3]);
        assert!(ladder(81, 81).is_empty());
    }
}
