//! Selections shared between steps, heads and layers.

use serde::{Deserialize, Serialize};

use super::{Digest, Fold, Parts, Reuse, Rule, Scope, Settings};
use crate::Keep;

/// HShare (Wu et al., ICLR 2025): some heads score every key and pick the best tokens, every few steps;
/// other heads of their layer, and other layers, read the same positions. Who reads whose is found once, at
/// the first step after the prompt, from how much the selections overlap (see [`Sharing`](crate::share::Sharing)).
///
/// The published code finds pairs over all queries of the prompt, selects per query head, from a few
/// channels, and lets a source borrow later, whose borrowers then read what they were not matched
/// with; here keys are scored exactly, a KV head reads one set, and a source never borrows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HShare {
    /// Tokens read per KV head and query, keeps included (code: 8 + 88 + 32).
    pub budget: usize,
    /// First tokens always read (code: 8).
    pub sinks: usize,
    /// Most recent tokens always read (code: 32).
    pub recent: usize,
    /// Steps that a selection serves, its own included (code: 2).
    pub steps: usize,
    /// Share of a layer's KV heads that read what another head selected (code: 16 of 32).
    pub heads: f32,
    /// Share of the selecting layers that read what a layer below selected (code: 16 of 32).
    pub layers: f32,
}

impl Default for HShare {
    fn default() -> Self {
        HShare { budget: 128, sinks: 8, recent: 32, steps: 2, heads: 0.5, layers: 0.5 }
    }
}

impl Settings for HShare {
    const NAME: &'static str = "hshare";
    const ABOUT: &'static str =
        "tokens ranked by exact scores in some heads, read by others that picked alike";
    const SOURCE: &'static str = "HShare, ICLR 2025";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Keys,
            fold: Fold::MassSum,
            scope: Scope::KvHead,
            rule: Rule::Budget(self.budget),
            refine: None,
            reuse: Reuse::Shared { steps: self.steps, heads: self.heads, layers: self.layers },
        }
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = tokens;
    }
}
