//! Selectors whose scores come from elsewhere: from a trained indexer, or from the prompt's last queries.

use serde::{Deserialize, Serialize};

use super::{Digest, Fold, Parts, Reuse, Rule, Scope, Settings};
use crate::Keep;

/// Native Sparse Attention (Yuan et al., ACL 2025, arXiv 2502.11089): blocks by scores of the model's
/// compressed attention, which come with each query, one set for a KV head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nsa {
    /// Tokens read per KV head and query, keeps included (paper: 16 blocks of 64 and a window of 512).
    pub budget: usize,
    /// Tokens of a block (paper: 64).
    pub unit_tokens: usize,
    /// First tokens always read (paper: 1 block).
    pub sinks: usize,
    /// Most recent tokens always read (paper: a window of 512, which holds the 2 local blocks).
    pub recent: usize,
}

impl Default for Nsa {
    fn default() -> Self {
        Nsa { budget: 64 + 13 * 64 + 512 + 64, unit_tokens: 64, sinks: 64, recent: 512 }
    }
}

impl Settings for Nsa {
    const NAME: &'static str = "nsa";
    const ABOUT: &'static str = "64-token blocks by scores that the model gives with each query";
    const SOURCE: &'static str = "Native Sparse Attention, ACL 2025, arXiv 2502.11089";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Given { tokens: self.unit_tokens },
            fold: Fold::MassSum,
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

/// DeepSeek Sparse Attention (DeepSeek-V3.2, 2025): tokens by the scores of the model's indexer, which come
/// with each query, one set for all heads of the layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dsa {
    /// Tokens read per KV head and query, keeps included (paper: 2048).
    pub budget: usize,
    /// First tokens always read (paper: none).
    pub sinks: usize,
    /// Most recent tokens always read (paper: none; the token itself is).
    pub recent: usize,
}

impl Default for Dsa {
    fn default() -> Self {
        Dsa { budget: 2048, sinks: 0, recent: 1 }
    }
}

impl Settings for Dsa {
    const NAME: &'static str = "dsa";
    const ABOUT: &'static str = "tokens by scores that the model's indexer gives with each query";
    const SOURCE: &'static str = "DeepSeek Sparse Attention, DeepSeek-V3.2 report, 2025";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Given { tokens: 1 },
            fold: Fold::Max,
            scope: Scope::Layer,
            rule: Rule::Budget(self.budget),
            refine: None,
            reuse: Reuse::Never,
        }
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = tokens;
    }
}

/// SnapKV (Li et al., NeurIPS 2024, arXiv 2404.14469) as a view: the tokens that the prompt's last queries
/// attended to, smoothed over neighbours, summed over the group; fixed until the sequence is cut. What came
/// after the prompt is read, too. Nothing is evicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapKv {
    /// Tokens of the prompt read per KV head, its last queries' included (paper: 1024 to 4096).
    pub budget: usize,
    /// Last queries of the prompt that are looked at, and always read (paper: 32).
    pub window: usize,
    /// Neighbours averaged over; odd (paper: 5).
    pub pool: usize,
}

impl Default for SnapKv {
    fn default() -> Self {
        SnapKv { budget: 1024, window: 32, pool: 5 }
    }
}

impl Settings for SnapKv {
    const NAME: &'static str = "snapkv";
    const ABOUT: &'static str = "what the prompt's last queries attended to, fixed from then on";
    const SOURCE: &'static str = "SnapKV, NeurIPS 2024, arXiv 2404.14469";

    fn parts(&self) -> Parts {
        observed(self.budget, self.window, self.pool)
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = tokens;
    }
}

/// The draft view of MagicDec (Chen et al., ICLR 2025, arXiv 2408.11049): SnapKV of the prompt with a small
/// budget, for the draft steps of self-speculation; a dense pass verifies them.
///
/// The published code leaves out the softmax scale; here it is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MagicDec {
    /// Tokens of the prompt read per KV head, its last queries' included (code: 257).
    pub budget: usize,
    /// Last queries of the prompt that are looked at, and always read (code: 32).
    pub window: usize,
    /// Neighbours averaged over; odd (code: 5).
    pub pool: usize,
}

impl Default for MagicDec {
    fn default() -> Self {
        MagicDec { budget: 257, window: 32, pool: 5 }
    }
}

impl Settings for MagicDec {
    const NAME: &'static str = "magicdec";
    const ABOUT: &'static str = "a small draft view for self-speculation: SnapKV of the prompt";
    const SOURCE: &'static str = "MagicDec, ICLR 2025, arXiv 2408.11049";

    fn parts(&self) -> Parts {
        observed(self.budget, self.window, self.pool)
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = tokens;
    }
}

fn observed(budget: usize, window: usize, pool: usize) -> Parts {
    Parts {
        keep: Keep { sinks: 0, recent: window },
        digest: Digest::Observed { window, pool },
        fold: Fold::MassSum,
        scope: Scope::KvHead,
        rule: Rule::Budget(budget),
        refine: None,
        reuse: Reuse::Prompt,
    }
}
