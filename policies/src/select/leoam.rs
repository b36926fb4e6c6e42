//! Chunks of several sizes, searched best first.

use serde::{Deserialize, Serialize};

use super::{Digest, Fold, Parts, Reuse, Rule, Scope, Settings};
use crate::Keep;

/// LeoAM (arXiv 2506.20187): keys are digested by boxes of chunks of 16, 64, 256 and 1024 tokens, and the
/// chunks that promise most are opened, best first, until 16-token chunks of the budget are found: the same
/// as if all of these were ranked. Layers whose attention is flat are read in chunks of 256.
///
/// No code is public; what the paper leaves open is kvist's: the order is that of the largest mass of the
/// group by the upper bounds, in which a query head's masses are taken relative to those of the largest
/// chunks; a layer is flat where the prompt's last queries attend to many tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeoAm {
    /// Tokens read per KV head and query, keeps included (kvist: 2048).
    pub budget: usize,
    /// First tokens always read (kvist: 16).
    pub sinks: usize,
    /// Most recent tokens always read (kvist: 64).
    pub recent: usize,
    /// A layer is flat where attention's effective support, exp(entropy), is above this share of the
    /// tokens (kvist: an eighth); 1: none is.
    pub flat: f32,
    /// Last queries that this is measured with, once when there are so many and then anew after every 1024
    /// tokens (kvist: 64).
    pub queries: usize,
}

impl Default for LeoAm {
    fn default() -> Self {
        LeoAm { budget: 2048, sinks: 16, recent: 64, flat: 0.125, queries: 64 }
    }
}

impl Settings for LeoAm {
    const NAME: &'static str = "leoam";
    const ABOUT: &'static str = "16-token chunks found best first in a tree of key boxes, coarser ones where attention is flat";
    const SOURCE: &'static str = "LeoAM, arXiv 2506.20187";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Tree { flat: self.flat, queries: self.queries },
            fold: Fold::MassMax,
            scope: Scope::KvHead,
            rule: Rule::Budget(self.budget),
            refine: None,
            reuse: Reuse::Never,
        }
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = tokens;
    }
}
