//! From what was measured of heads to how they are read.

use serde::Serialize;

use super::shares::{Curve, apportion, fill};
use super::{Class, HeadStats, Profile, Shape, Window};
use crate::{Error, Select};

/// A window is judged where the context measured is at least so many times as long: near its length every
/// window covers everything.
const CONTEXTS: usize = 4;

/// When a head is not left to the selector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// A head streams where the smallest measured window, within the budget and a quarter of the context, covers
    /// at least this at the worst steps ([`Window::worst`]); `None`: never.
    pub streaming: Option<f64>,
    /// A head is dense where its effective support is more than this part of the context: its attention is
    /// so flat that a selection of any size misses much. `None`: never.
    pub dense: Option<f64>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { streaming: Some(0.99), dense: Some(1.0 / 8.0) }
    }
}

/// What is to be expected of a model's heads, from their statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Expected {
    /// Tokens read per KV head and query, mean over all heads.
    pub tokens: f64,
    /// Softmax mass missed, mean over all heads.
    pub missed: f64,
}

impl Profile {
    /// The profile that misses least by these statistics, `[layers][kv_heads]`, with the budget of `select`:
    /// heads stream or are dense where `rules` say so, the others share the budget of all heads that are not
    /// dense, by need, over heads and layers: each token goes where it lowers the missed mass most. The sum
    /// over the heads that are not dense is the budget times their number, to the token, and no head gets
    /// less than the selector's least.
    ///
    /// # Errors
    /// [`Error::Profile`] for statistics that are not of this shape, not finite or out of range;
    /// [`Error::Setting`] if `select` has no fixed budget, or one that does not pay for all heads.
    pub fn measured(
        model: impl Into<String>,
        shape: Shape,
        stats: &[Vec<HeadStats>],
        select: &Select,
        rules: &Rules,
    ) -> Result<Profile, Error> {
        check(shape, stats)?;
        select.validate()?;
        let Some(budget) = select.budget() else {
            return Err(Error::setting(select.name(), "budget", "a number of tokens", "none"));
        };
        let class = |s: &HeadStats| s.class(rules, budget);
        let mut heads: Vec<Option<Class>> = stats.iter().flatten().map(class).collect();
        let spent = |c: &Option<Class>| c.and_then(Class::stream_tokens).unwrap_or(0);
        let paid = heads.iter().filter(|c| **c != Some(Class::Dense)).count();
        // Positions have 32 bits: nobody can read more.
        let total = budget.min(u32::MAX as usize).saturating_mul(paid);
        let total = total.saturating_sub(heads.iter().map(spent).sum());
        let open = || stats.iter().flatten().zip(&heads).filter(|(_, c)| c.is_none());
        let curves: Vec<Curve> = open().map(|(s, _)| s.curve(select.least_budget())).collect();
        // Streams take at most the budget, so that the others have at least that, too.
        let by_need = if curves.is_empty() { Some(Vec::new()) } else { fill(&curves, total) };
        // Where measured curves are not convex, water-filling may be wrong: then equal shares stay.
        let tokens = by_need.map(|by_need| {
            let equal = apportion(total, &vec![1.0; by_need.len()], select.least_budget());
            let missed = |tokens: &[usize]| -> f64 {
                open().zip(tokens).map(|((s, _), &t)| s.missed_at(t)).sum()
            };
            if missed(&by_need) <= missed(&equal) { by_need } else { equal }
        });
        let expected = || format!("at least {} for every head", select.least_budget());
        let tokens =
            tokens.ok_or_else(|| Error::setting(select.name(), "budget", expected(), budget))?;
        for (class, tokens) in heads.iter_mut().filter(|c| c.is_none()).zip(tokens) {
            *class = Some(Class::Select { share: (tokens as f64 / budget as f64) as f32 });
        }
        let heads: Vec<Class> = heads.into_iter().flatten().collect();
        Profile::new(model, shape, heads.chunks(shape.kv_heads).map(<[Class]>::to_vec).collect())
    }

    /// What this profile leads to with `select`, by these statistics.
    ///
    /// # Errors
    /// As [`Profile::selects`], and [`Error::Profile`] for statistics that are not of its shape.
    pub fn expected(&self, stats: &[Vec<HeadStats>], select: &Select) -> Result<Expected, Error> {
        check(self.shape, stats)?;
        let selects = self.selects(select, &[])?;
        let each = self.heads.iter().flatten().zip(selects.iter().flatten());
        let mut sum = Expected::default();
        for ((class, select), s) in each.zip(stats.iter().flatten()) {
            let (tokens, missed) = s.expected(*class, select);
            sum.tokens += tokens as f64;
            sum.missed += missed;
        }
        let heads = (self.shape.layers * self.shape.kv_heads) as f64;
        Ok(Expected { tokens: sum.tokens / heads, missed: sum.missed / heads })
    }
}

impl HeadStats {
    /// The class of a head that is not left to the selector.
    fn class(&self, rules: &Rules, budget: usize) -> Option<Class> {
        let (streaming, most) = (rules.streaming, budget.min(self.tokens / CONTEXTS));
        let covers = |w: &&Window| {
            w.sinks.saturating_add(w.recent) <= most && streaming.is_some_and(|s| w.worst >= s)
        };
        let smallest = self.windows.iter().filter(covers).min_by_key(|w| w.sinks + w.recent);
        let flat = rules.dense.is_some_and(|part| self.support > part * self.tokens as f64);
        match smallest {
            Some(w) => Some(Class::Streaming { sinks: w.sinks, recent: w.recent }),
            None => flat.then_some(Class::Dense),
        }
    }

    /// Tokens read and mass missed by a head of this class that reads as `select` says.
    #[must_use]
    pub fn expected(&self, class: Class, select: &Select) -> (usize, f64) {
        let read = select.floor_tokens().min(self.tokens);
        let of_window = |sinks: usize, recent: usize| {
            let same = |w: &&Window| (w.sinks, w.recent) == (sinks, recent);
            self.windows.iter().find(same).map(|w| 1.0 - w.mean)
        };
        let missed = match class {
            Class::Streaming { sinks, recent } => of_window(sinks, recent),
            Class::Dense | Class::Select { .. } => None,
        };
        (read, missed.unwrap_or_else(|| self.missed_at(read)))
    }
}

/// Checks that there are statistics of every head.
fn check(shape: Shape, stats: &[Vec<HeadStats>]) -> Result<(), Error> {
    shape.validate()?;
    shape.check("statistics", stats)?;
    let numbered = stats.iter().enumerate();
    let mut all = numbered.flat_map(|(l, row)| row.iter().enumerate().map(move |(h, s)| (l, h, s)));
    all.try_for_each(|(layer, head, s)| s.validate(layer, head))
}

#[cfg(test)]
mod tests;
