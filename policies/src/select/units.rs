//! Selectors over units of consecutive tokens.

use serde::{Deserialize, Serialize};

use super::{Digest, Fold, Parts, Reuse, Row, Rule, Scope, Settings};
use crate::Keep;

/// Quest (Tang et al., ICML 2024, arXiv 2406.10774): units of consecutive tokens scored by the
/// upper bound of q.k over their per-channel key box; the best ones are read whole.
///
/// The published code has no grouped-query attention; here a KV head reads one set for its whole
/// group, ranked by the largest bound of the group's query heads, so that the budget is what is
/// read. As in the paper the last, partial unit is always read and no sinks are forced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quest {
    /// Tokens read per KV head and query, the last unit included (paper: 256 to 4096).
    pub budget: usize,
    /// Tokens of a unit: a divisor of 64 (paper: 16).
    pub unit_tokens: usize,
}

impl Default for Quest {
    fn default() -> Self {
        Quest { budget: 1024, unit_tokens: 16 }
    }
}

impl Settings for Quest {
    const NAME: &'static str = "quest";
    const ABOUT: &'static str =
        "16-token units ranked by the bound of their key box, folded by maximum";
    const SOURCE: &'static str = "Quest, ICML 2024, arXiv 2406.10774";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: 0, recent: 1 },
            digest: Digest::Units { row: Row::Box, tokens: self.unit_tokens },
            fold: Fold::Max,
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

/// ArkVale (Chen et al., NeurIPS 2024): pages of 32 tokens scored by the bound of a shrunken box, centre
/// plus and minus the mean deviation; one list for all heads of a layer by the mean of raw scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArkVale {
    /// Tokens read per KV head and query, keeps included (paper: 2048 to 4096).
    pub budget: usize,
    /// Tokens of a page: a divisor of 64 (paper: 32).
    pub unit_tokens: usize,
    /// First tokens always read (code: 2 pages).
    pub sinks: usize,
    /// Most recent tokens always read (code: at least 2 pages).
    pub recent: usize,
    /// One list for all heads of a layer (code: `n_groups` 1), or one for each KV head.
    pub layer_wide: bool,
}

impl Default for ArkVale {
    fn default() -> Self {
        ArkVale { budget: 2048, unit_tokens: 32, sinks: 64, recent: 64, layer_wide: true }
    }
}

impl Settings for ArkVale {
    const NAME: &'static str = "arkvale";
    const ABOUT: &'static str = "32-token pages ranked by a box shrunk to the mean deviation, folded by mean over the layer";
    const SOURCE: &'static str = "ArkVale, NeurIPS 2024";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Units { row: Row::MeanBox, tokens: self.unit_tokens },
            fold: Fold::Mean,
            scope: if self.layer_wide { Scope::Layer } else { Scope::KvHead },
            rule: Rule::Budget(self.budget),
            refine: None,
            reuse: Reuse::Never,
        }
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = tokens;
    }
}
