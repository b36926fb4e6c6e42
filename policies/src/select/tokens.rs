//! Selectors that score tokens by their keys, and those that pick nothing.

use serde::{Deserialize, Serialize};

use super::{Digest, Fold, Parts, Refine, Reuse, Row, Rule, Scope, Settings};
use crate::Keep;

/// StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): the first tokens and the most recent ones, and
/// nothing else. Tokens between stay in the cache, so that another selector can still read them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    /// First tokens read (paper: 4).
    pub sinks: usize,
    /// Most recent tokens read (paper: 1020, for a cache of 1024).
    pub recent: usize,
}

impl Default for Streaming {
    fn default() -> Self {
        Streaming { sinks: 4, recent: 1020 }
    }
}

impl Settings for Streaming {
    const NAME: &'static str = "streaming";
    const ABOUT: &'static str = "the first tokens and the most recent ones";
    const SOURCE: &'static str = "StreamingLLM, ICLR 2024, arXiv 2309.17453";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Nothing,
            fold: Fold::Max,
            scope: Scope::KvHead,
            rule: Rule::Budget(self.sinks.saturating_add(self.recent)),
            refine: None,
            reuse: Reuse::Never,
        }
    }

    /// The window takes what the sinks leave.
    fn set_budget(&mut self, tokens: usize) {
        self.recent = tokens.saturating_sub(self.sinks);
    }
}

/// TokenSelect (Wu et al., EMNLP 2025, arXiv 2411.02886): every key is scored exactly, the softmax of each
/// query head is a vote, and all heads of a layer read the tokens with most votes. A selection is used again
/// while the queries stay similar.
///
/// The published kernel pairs query head `h` with KV head `h mod kv_heads` and leaves out the softmax
/// scale; both are mended here, and tokens that leave the window while a selection is reused stay in
/// it. The published extrapolation by re-numbered positions is not part of selection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenSelect {
    /// Tokens read per KV head and query, keeps included (code: 128 + 512 + 2048).
    pub budget: usize,
    /// First tokens always read (code: 128).
    pub sinks: usize,
    /// Most recent tokens always read (code: 512).
    pub recent: usize,
    /// A selection is used again while the cosine of the queries with those that made it is at least
    /// this (paper: 0.9); none: every step selects.
    pub theta: Option<f32>,
}

impl Default for TokenSelect {
    fn default() -> Self {
        TokenSelect { budget: 2688, sinks: 128, recent: 512, theta: Some(0.9) }
    }
}

impl Settings for TokenSelect {
    const NAME: &'static str = "tokenselect";
    const ABOUT: &'static str = "tokens ranked by exact scores, voted on by all heads of the layer, reused while queries agree";
    const SOURCE: &'static str = "TokenSelect, EMNLP 2025, arXiv 2411.02886";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Keys,
            fold: Fold::MassSum,
            scope: Scope::Layer,
            rule: Rule::Budget(self.budget),
            refine: None,
            reuse: self.theta.map_or(Reuse::Never, Reuse::Cosine),
        }
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = tokens;
    }
}

/// TidalDecode (Yang et al., ICLR 2025, arXiv 2410.05076): some layers score every key and pick the best
/// tokens, the layers behind them read the same positions.
///
/// Layers below the first anchor are meant to be dense (`dense_layers`). Where a layer finds no selection of
/// this step below it, it selects itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TidalDecode {
    /// Tokens read per KV head and query, keeps included (paper: 256).
    pub budget: usize,
    /// Layers that select, ascending (paper, Llama 3 8B: 2 and 13).
    pub anchors: Vec<usize>,
    /// First tokens always read (code: none).
    pub sinks: usize,
    /// Most recent tokens always read (code: none; the token itself is).
    pub recent: usize,
}

impl Default for TidalDecode {
    fn default() -> Self {
        TidalDecode { budget: 256, anchors: vec![2, 13], sinks: 0, recent: 1 }
    }
}

impl Settings for TidalDecode {
    const NAME: &'static str = "tidaldecode";
    const ABOUT: &'static str =
        "a few layers rank tokens by exact scores, the others read the same positions";
    const SOURCE: &'static str = "TidalDecode, ICLR 2025, arXiv 2410.05076";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Keys,
            fold: Fold::MassSum,
            scope: Scope::KvHead,
            rule: Rule::Budget(self.budget),
            refine: None,
            reuse: Reuse::Layers(self.anchors.clone()),
        }
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = tokens;
    }
}

/// Twilight (Lin et al., NeurIPS 2025, arXiv 2502.02770) over Quest: units are picked with a generous budget, then
/// the fewest tokens of them whose mass, estimated from 4-bit keys, reaches `top_p`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Twilight {
    /// Tokens looked at per KV head and query: what Quest picks (code: 8192).
    pub budget: usize,
    /// Tokens of a unit: a divisor of 64 (code: 16).
    pub unit_tokens: usize,
    /// Share of the estimated mass that is read (code: 0.85).
    pub top_p: f32,
}

impl Default for Twilight {
    fn default() -> Self {
        Twilight { budget: 8192, unit_tokens: 16, top_p: 0.85 }
    }
}

impl Settings for Twilight {
    const NAME: &'static str = "twilight";
    const ABOUT: &'static str =
        "Quest with a generous budget, pruned to a share of the mass by 4-bit keys";
    const SOURCE: &'static str = "Twilight, NeurIPS 2025, arXiv 2502.02770";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: 0, recent: 1 },
            digest: Digest::Units { row: Row::Box, tokens: self.unit_tokens },
            fold: Fold::Max,
            scope: Scope::KvHead,
            rule: Rule::Budget(self.budget),
            refine: Some(Refine::TopP { p: self.top_p, bits: 4 }),
            reuse: Reuse::Never,
        }
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = tokens;
    }
}
