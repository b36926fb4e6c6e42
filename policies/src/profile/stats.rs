//! What was measured of heads.

use serde::{Deserialize, Serialize};

use super::shares::Curve;
use crate::Error;

/// What was measured of one KV head on real text: softmax masses of its query heads against exact attention.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeadStats {
    /// Steps measured.
    pub steps: usize,
    /// Tokens of the context, mean over the steps.
    pub tokens: usize,
    /// Effective support: exp(entropy) of the attention, mean over steps and query heads.
    pub support: f64,
    /// What first and most recent tokens alone cover.
    pub windows: Vec<Window>,
    /// What the selector misses by its budget, ascending.
    pub missed: Vec<Missed>,
}

/// Softmax mass that first and most recent tokens cover.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// First tokens.
    pub sinks: usize,
    /// Most recent tokens.
    pub recent: usize,
    /// Mean over steps and query heads.
    pub mean: f64,
    /// At the worst steps: the first percentile over (step, query head), by nearest rank, so that it is the
    /// worst of all below a hundred.
    ///
    /// A stream cannot read at any later step what it does not hold, and heads that retrieve do so at few
    /// steps: a mean, or a fifth percentile, would not see one in fifty.
    pub worst: f64,
}

/// Softmax mass that a selector misses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Missed {
    /// Tokens read, keeps included.
    pub tokens: usize,
    /// Mean over steps and query heads.
    pub mean: f64,
}

impl HeadStats {
    /// Softmax mass missed with this many tokens: between measured points in a straight line, with none of
    /// them as at the nearest, and nothing once all tokens are read.
    #[must_use]
    pub fn missed_at(&self, tokens: usize) -> f64 {
        if tokens >= self.tokens {
            return 0.0;
        }
        let after = self.missed.partition_point(|m| m.tokens < tokens);
        let end = Missed { tokens: self.tokens, mean: 0.0 };
        match (after.checked_sub(1).map(|i| self.missed[i]), self.missed.get(after)) {
            (None, first) => first.map_or(1.0, |m| m.mean),
            (Some(a), b) => {
                let b = b.filter(|b| b.tokens < end.tokens).copied().unwrap_or(end);
                let part = (tokens - a.tokens) as f64 / (b.tokens - a.tokens) as f64;
                a.mean + part * (b.mean - a.mean)
            }
        }
    }

    /// Measured points from `least` tokens to all.
    pub(super) fn curve(&self, least: usize) -> Curve {
        let mut points = vec![(least, self.missed_at(least))];
        let inside = self.missed.iter().filter(|m| m.tokens > least && m.tokens < self.tokens);
        points.extend(inside.map(|m| (m.tokens, m.mean)));
        if self.tokens > least {
            points.push((self.tokens, 0.0));
        }
        Curve::hull(&points)
    }

    pub(super) fn validate(&self, layer: usize, head: usize) -> Result<(), Error> {
        let err = |what: &str, expected: &str, found: f64| {
            let at = format!("statistics of layer {layer}, KV head {head}");
            Err(Error::profile(format!("{at}: {what} must be {expected}, found {found}")))
        };
        if self.tokens == 0 || self.steps == 0 {
            let least = self.tokens.min(self.steps) as f64;
            return err("steps and tokens", "at least 1", least);
        }
        if !(self.support.is_finite() && self.support >= 0.0) {
            return err("support", "finite and at least 0", self.support);
        }
        // Sums of a million masses round.
        let is_mass = |x: &f64| (-1e-6..=1.0 + 1e-6).contains(x);
        let masses = self.windows.iter().flat_map(|w| [w.mean, w.worst]);
        if let Some(x) = masses.chain(self.missed.iter().map(|m| m.mean)).find(|x| !is_mass(x)) {
            return err("a mass", "0 to 1", x);
        }
        if self.missed.is_empty() || !self.missed.is_sorted_by(|a, b| a.tokens < b.tokens) {
            return err("budgets measured", "ascending, at least one", self.missed.len() as f64);
        }
        match self.windows.iter().find(|w| w.recent == 0) {
            Some(_) => err("recent tokens", "at least 1", 0.0),
            None => Ok(()),
        }
    }
}
