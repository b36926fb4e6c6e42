//! What a selector is made of. Every preset but [`Boxed`](super::Boxed) is a choice of these parts, so
//! that a system of the literature is a name for a composition and one engine runs them all.

use crate::Keep;

/// Tokens of a tree's finest chunk.
const TREE_TOKENS: usize = 16;

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
    /// Boxes of 16 tokens, and a tree of larger ones over them.
    Tree {
        /// Layers whose attention has an effective support above this share of the tokens are read in
        /// chunks of 256 tokens.
        flat: f32,
        /// Last queries with which that is measured.
        queries: usize,
    },
    /// Scores that come with the query: of a trained indexer.
    Given {
        /// Consecutive tokens that a score speaks of.
        tokens: usize,
    },
    /// Centroids of clusters of tokens whose keys are alike, wherever they stand.
    Clusters(Clustering),
    /// Keys coded by product quantisation.
    Codes {
        /// Parts of a key, each coded by itself.
        parts: usize,
        /// Bits of a part's code.
        bits: u32,
        /// Iterations of k-means for the centroids.
        iterations: usize,
    },
    /// Some channels of each key: those on which the prompt's queries are largest.
    Channels {
        /// Share of all channels.
        share: f32,
    },
    /// One row for each block: the mean of the keys that the queries behind it looked for most.
    Representatives {
        /// Tokens of a block.
        tokens: usize,
        /// Keys averaged.
        count: usize,
        /// Tokens behind the block whose queries are asked.
        behind: usize,
    },
    /// Mean key of each unit; units that are not like their mean are taken first.
    Landmarks {
        /// Tokens of a unit, a divisor of 64.
        tokens: usize,
        /// Units taken for being unlike their mean.
        outliers: usize,
    },
    /// The attention that the last queries of the prompt paid.
    Observed {
        /// Queries looked at.
        window: usize,
        /// Neighbouring tokens over which scores are averaged; odd.
        pool: usize,
    },
}

/// How keys are clustered. Tokens wait, and are read, until there are `window` of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clustering {
    /// Tokens per cluster of the prompt.
    pub size: usize,
    /// Tokens per cluster of what comes later.
    pub later: usize,
    /// Later tokens that are clustered together.
    pub window: usize,
    /// Iterations of k-means.
    pub iterations: usize,
    /// How the published systems differ.
    pub style: Style,
    /// Share of the clusters, next after those read, of which the mean stands for each member.
    pub estimated: f32,
}

/// How clusters are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One k-means over all keys; centroids as the last iteration left them (ClusterKV).
    Whole,
    /// Segments of 8192 keys about their mean, and a last iteration over all clusters (RetroInfer).
    Segments,
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
    /// Whole units up to this share of the sequence's tokens (of its clusters), keeps not counted; at least one.
    Share(f32),
    /// This share of the sequence's tokens, of which a part are the most recent ones, read anyway.
    Split {
        /// Of the sequence's tokens.
        share: f32,
        /// Part of these that is recent.
        recent: f32,
    },
    /// As many tokens as have an estimated logit above the largest less `alpha`, mean over the group; at most
    /// this share of the sequence's.
    Near {
        /// Natural logits.
        alpha: f32,
        /// Of the sequence's tokens.
        share: f32,
    },
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
    /// Until the sequence is cut: what the end of the prompt selected.
    Prompt,
    /// Of the nearest of these layers below, at this step; they select themselves.
    Layers(Vec<usize>),
    /// For some steps, and at each of them by other heads and layers as well, whose selections overlapped
    /// most when all selected for themselves.
    Shared {
        /// Steps, the one that selected included.
        steps: usize,
        /// Share of a layer's heads that read what another head selected.
        heads: f32,
        /// Share of the layers that read what a layer below selected.
        layers: f32,
    },
}

impl Parts {
    /// Tokens of a unit.
    #[must_use]
    pub fn unit_tokens(&self) -> usize {
        match self.digest {
            Digest::Units { tokens, .. }
            | Digest::Given { tokens }
            | Digest::Representatives { tokens, .. }
            | Digest::Landmarks { tokens, .. } => tokens,
            Digest::Tree { .. } => TREE_TOKENS,
            Digest::Nothing
            | Digest::Keys
            | Digest::Observed { .. }
            | Digest::Clusters(_)
            | Digest::Codes { .. }
            | Digest::Channels { .. } => 1,
        }
    }

    /// What rows of consecutive tokens are scored, and how many tokens a row speaks of.
    #[must_use]
    pub fn rows(&self) -> Option<(Row, usize)> {
        match self.digest {
            Digest::Units { row, tokens } => Some((row, tokens)),
            Digest::Landmarks { tokens, .. } => Some((Row::Mean, tokens)),
            Digest::Tree { .. } => Some((Row::Box, TREE_TOKENS)),
            _ => None,
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
            (_, Rule::Share(_) | Rule::Split { .. } | Rule::Near { .. }) => {
                keeps.saturating_add(self.unit_tokens())
            }
        }
    }

    /// The smallest budget: what is kept, and a unit.
    #[must_use]
    pub fn least_budget(&self) -> usize {
        let (Keep { sinks, recent }, unit) = (self.keep, self.unit_tokens());
        match self.digest {
            // The window takes what the sinks leave.
            Digest::Nothing => sinks.saturating_add(1),
            // A unit that is not whole yet, one cut by the sinks' end, and tokens that wait are kept.
            _ => sinks.next_multiple_of(unit) + recent.max(1) + self.waiting() + unit - 1 + unit,
        }
    }

    /// Tokens behind the recent ones that may wait until something is derived from their keys, and are read
    /// until then.
    #[must_use]
    pub fn waiting(&self) -> usize {
        match self.digest {
            Digest::Clusters(Clustering { window, .. }) => window.saturating_sub(1),
            _ => 0,
        }
    }

    /// Last queries, of the prompt at least, that must be remembered.
    #[must_use]
    pub fn observed(&self) -> usize {
        match self.digest {
            Digest::Observed { window, .. } => window,
            Digest::Tree { queries, .. } => queries,
            _ => 0,
        }
    }

    /// Whether something is derived from keys when a query first needs it.
    #[must_use]
    pub fn derives(&self) -> bool {
        matches!(
            self.digest,
            Digest::Clusters(_)
                | Digest::Codes { .. }
                | Digest::Channels { .. }
                | Digest::Representatives { .. }
                | Digest::Landmarks { .. }
        )
    }

    /// Whether keys are read to choose, so that they must be at hand.
    #[must_use]
    pub fn needs_keys(&self) -> bool {
        matches!(self.digest, Digest::Keys | Digest::Observed { .. })
    }
}
