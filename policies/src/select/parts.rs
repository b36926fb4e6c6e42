//! What a selector is made of. Every preset but [`Boxed`](super::Boxed) is a choice of these parts, so
//! that a system of the literature is a name for a composition and one engine runs them all.

use crate::{Error, Keep};

/// A selector, part by part, in the order in which a step runs them.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// Tokens read whatever the query says. Units that hold one of them are read whole.
    pub keep: Keep,
    /// What is scored.
    pub digest: Digest,
    /// From one score per query head to one weight.
    pub fold: Fold,
    /// Who shares a selection.
    pub scope: Scope,
    /// How many units are taken.
    pub rule: Rule,
    /// A closer look at what was taken.
    pub refine: Option<Refine>,
    /// When an earlier selection is used again.
    pub reuse: Reuse,
}

/// What stands for the keys when a query comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Digest {
    /// Nothing: only the kept tokens are read.
    Nothing,
    /// The keys themselves, token by token.
    Keys,
    /// One row for each unit of consecutive tokens.
    Units {
        /// What the row says.
        row: Row,
        /// Tokens of a unit, a divisor of 64.
        tokens: usize,
    },
    /// Scores that come with the query: of a trained indexer.
    Given {
        /// Consecutive tokens that a score speaks of.
        tokens: usize,
    },
    /// The attention that the last queries of the prompt paid.
    Observed {
        /// Queries looked at.
        window: usize,
        /// Neighbouring tokens over which scores are averaged; odd.
        pool: usize,
    },
}

/// What a unit's row says of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Largest and smallest value per channel: an upper bound of q.k.
    Box,
    /// The box shrunk to its centre plus and minus the mean deviation from it (ArkVale's cuboid-mean). Not a
    /// bound.
    MeanBox,
    /// Mean key.
    Mean,
    /// Mean and variance per channel: the second-order estimate of the unit's mass.
    Moments,
}

/// How the query heads of a group become one weight per unit. Raw scores of different heads are not
/// comparable; masses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// Largest raw score.
    Max,
    /// Mean raw score.
    Mean,
    /// Sum of softmax masses.
    MassSum,
    /// Largest softmax mass.
    MassMax,
}

/// Who shares a selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The query heads of one KV head.
    KvHead,
    /// All heads of a layer: weights are summed over its KV heads.
    Layer,
}

/// How many units are taken, best first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Whole units while they fit into this many tokens, keeps included.
    Budget(usize),
    /// Whole units up to this share of the sequence's tokens, keeps not counted; at least one.
    Share(f32),
}

/// A closer look at what was taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refine {
    /// Tokens taken are scored by keys of `bits` bits (a range per token), and the fewest are read whose
    /// estimated softmax mass reaches `p`.
    TopP {
        /// Share of the mass of what was taken.
        p: f32,
        /// Bits per channel.
        bits: u32,
    },
}

/// When an earlier selection is used again. Tokens that have left the window since are read, too, so that
/// every token is in what is kept or could have been picked.
#[derive(Clone, Debug, PartialEq)]
pub enum Reuse {
    /// Never.
    Never,
    /// While the cosine of the group's queries with those of the last selection is at least this.
    Cosine(f32),
    /// For this many steps, the one that selected included.
    Steps(usize),
    /// Until the sequence is cut: what the end of the prompt selected.
    Prompt,
    /// Of the nearest of these layers below, at this step; they select themselves.
    Layers(Vec<usize>),
}

impl Parts {
    /// Tokens of a unit.
    #[must_use]
    pub fn unit_tokens(&self) -> usize {
        match self.digest {
            Digest::Units { tokens, .. } | Digest::Given { tokens } => tokens,
            Digest::Nothing | Digest::Keys | Digest::Observed { .. } => 1,
        }
    }

    /// Tokens read per KV head and query at least; a shorter sequence is read whole.
    #[must_use]
    pub fn floor_tokens(&self) -> usize {
        let keeps = self.keep.sinks.saturating_add(self.keep.recent);
        match (self.digest, self.rule) {
            (Digest::Nothing, _) => keeps,
            // However much is looked at, what is read follows from the masses.
            _ if self.refine.is_some() => keeps.saturating_add(self.unit_tokens()),
            (_, Rule::Budget(tokens)) => tokens,
            (_, Rule::Share(_)) => keeps.saturating_add(self.unit_tokens()),
        }
    }

    /// The smallest budget: what is kept, and a unit.
    #[must_use]
    pub fn least_budget(&self) -> usize {
        let (Keep { sinks, recent }, unit) = (self.keep, self.unit_tokens());
        match self.digest {
            // The window takes what the sinks leave.
            Digest::Nothing => sinks.saturating_add(1),
            // A unit that is not whole yet, and one cut by the sinks' end, are kept whole.
            _ => sinks.next_multiple_of(unit) + recent.max(1) + unit - 1 + unit,
        }
    }

    /// Last queries of the prompt that must be remembered.
    #[must_use]
    pub fn observed(&self) -> usize {
        match self.digest {
            Digest::Observed { window, .. } => window,
            _ => 0,
        }
    }

    /// Whether keys are read to choose, so that they must be at hand.
    #[must_use]
    pub fn needs_keys(&self) -> bool {
        matches!(self.digest, Digest::Keys | Digest::Observed { .. })
    }

    pub(super) fn validate(&self, name: &'static str) -> Result<(), Error> {
        let err = |setting, expected: &str, found: &dyn std::fmt::Display| {
            Err(Error::setting(name, setting, expected, found))
        };
        let unit = self.unit_tokens();
        match self.digest {
            Digest::Units { tokens, .. } if tokens == 0 || 64 % tokens != 0 => {
                return err("unit_tokens", "a divisor of 64", &tokens);
            }
            Digest::Given { tokens: 0 } => return err("unit_tokens", "at least 1", &0),
            Digest::Observed { window: 0, .. } => return err("window", "at least 1", &0),
            Digest::Observed { pool, .. } if pool % 2 == 0 => return err("pool", "odd", &pool),
            Digest::Nothing if self.floor_tokens() == 0 => {
                return err("recent", "at least 1 where nothing is picked", &self.keep.recent);
            }
            _ => {}
        }
        match self.rule {
            Rule::Budget(budget) if budget < self.least_budget() => {
                let least = self.least_budget();
                let keeps = least - unit;
                let expected =
                    format!("at least {least}: what is kept, {keeps}, and a unit of {unit}");
                return err("budget", &expected, &budget);
            }
            Rule::Share(share) if !(share > 0.0 && share < 1.0) => {
                return err("share", "above 0 and below 1", &share);
            }
            _ => {}
        }
        match &self.refine {
            Some(Refine::TopP { p, .. }) if !(*p > 0.0 && *p < 1.0) => {
                return err("top_p", "above 0 and below 1", p);
            }
            Some(Refine::TopP { bits, .. }) if !matches!(bits, 4 | 8) => {
                return err("bits", "4 or 8", bits);
            }
            _ => {}
        }
        match &self.reuse {
            Reuse::Cosine(theta) if !(*theta > 0.0 && *theta <= 1.0) => {
                err("theta", "above 0 and at most 1", theta)
            }
            Reuse::Steps(0) => err("steps", "at least 1", &0),
            Reuse::Layers(layers) if !layers.is_sorted_by(|a, b| a < b) || layers.is_empty() => {
                err("anchors", "ascending layers, at least one", &format!("{layers:?}"))
            }
            _ => Ok(()),
        }
    }
}
