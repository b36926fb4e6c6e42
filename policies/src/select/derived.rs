//! Selectors that score what is derived from keys once: codes, channels, means, representatives.

use serde::{Deserialize, Serialize};

use super::{Digest, Fold, Parts, Reuse, Rule, Scope, Settings};
use crate::Keep;

/// PQCache (Zhang et al., SIGMOD 2025, arXiv 2407.12820): keys coded by product quantisation, tokens ranked by
/// the sum of the softmax of the group's estimates; half of what is read is recent.
///
/// Centroids are trained on the prompt and stay; they begin at even distances, not at random, and the
/// number of iterations is fixed rather than fitted to the time that is left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PqCache {
    /// Tokens read per KV head and query, keeps included; none (paper): the share `share` of the sequence.
    pub budget: Option<usize>,
    /// Share of the sequence that is read, sinks not counted (code: 0.1).
    pub share: f32,
    /// Part of these that are the most recent tokens (code: 0.5).
    pub recent_share: f32,
    /// First tokens always read (code: 32).
    pub sinks: usize,
    /// Parts of a key; they must divide its dimension (code: 2).
    pub parts: usize,
    /// Bits of a part's code (code: 6).
    pub bits: u32,
    /// Iterations of k-means (code: 3 to 300).
    pub iterations: usize,
}

impl Default for PqCache {
    fn default() -> Self {
        PqCache {
            budget: None,
            share: 0.1,
            recent_share: 0.5,
            sinks: 32,
            parts: 2,
            bits: 6,
            iterations: 20,
        }
    }
}

impl Settings for PqCache {
    const NAME: &'static str = "pqcache";
    const ABOUT: &'static str =
        "tokens ranked by product-quantised keys, half of the budget recent";
    const SOURCE: &'static str = "PQCache, SIGMOD 2025, arXiv 2407.12820";

    fn parts(&self) -> Parts {
        let (share, recent) = (self.share, self.recent_share);
        let of_budget = |b: usize| (b.saturating_sub(self.sinks) as f32 * recent) as usize;
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.budget.map_or(1, of_budget) },
            digest: Digest::Codes {
                parts: self.parts,
                bits: self.bits,
                iterations: self.iterations,
            },
            fold: Fold::MassSum,
            scope: Scope::KvHead,
            rule: self.budget.map_or(Rule::Split { share, recent }, Rule::Budget),
            refine: None,
            reuse: Reuse::Never,
        }
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = Some(tokens);
    }
}

/// ShadowKV (Sun et al., ICML 2025, arXiv 2410.21465) as a selector: units of 8 tokens ranked by their mean key,
/// folded by the largest softmax mass; units with a key unlike their mean are taken first.
///
/// The published code has the softmax scale of 128 channels written in, and never ranks what was generated;
/// here the scale is the call's, and generated units are ranked like the prompt's. Keys of low rank are not part
/// of selection. Outliers count in the budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShadowKv {
    /// Tokens read per KV head and query, keeps included (paper: 2048).
    pub budget: usize,
    /// Tokens of a unit: a divisor of 64 (paper: 8).
    pub unit_tokens: usize,
    /// Units whose least cosine of a key with their mean is smallest, always read (code: 48).
    pub outliers: usize,
    /// Most recent tokens always read (code: 4 units).
    pub recent: usize,
}

impl Default for ShadowKv {
    fn default() -> Self {
        ShadowKv { budget: 2048, unit_tokens: 8, outliers: 48, recent: 32 }
    }
}

impl Settings for ShadowKv {
    const NAME: &'static str = "shadowkv";
    const ABOUT: &'static str =
        "8-token units ranked by their mean key, and units unlike their mean";
    const SOURCE: &'static str = "ShadowKV, ICML 2025, arXiv 2410.21465";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: 0, recent: self.recent },
            digest: Digest::Landmarks { tokens: self.unit_tokens, outliers: self.outliers },
            fold: Fold::MassMax,
            scope: Scope::KvHead,
            rule: Rule::Budget(self.budget),
            refine: None,
            reuse: Reuse::Never,
        }
    }

    /// Outliers take three sixteenths at most, as in the paper's proportions.
    fn set_budget(&mut self, tokens: usize) {
        self.outliers = self.outliers.min(tokens * 3 / 16 / self.unit_tokens.max(1));
        self.budget = tokens;
    }
}

/// InfLLM (Xiao et al., NeurIPS 2024, arXiv 2402.04617): blocks of 128 tokens, each known by the mean of the
/// few keys that the queries behind it looked for most; one list for all heads of a layer by the mean score.
///
/// How much a key is looked for is its product with the sum of the group's queries behind its block, as in the
/// paper; the window begins behind the block for all its keys alike. Blocks whose queries were not seen
/// (of a sequence that was opened from a file) are known by their mean key. Positions are not re-numbered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InfLlm {
    /// Tokens read per KV head and query, keeps included (paper: 128 + 4096 and 16 blocks).
    pub budget: usize,
    /// Tokens of a block (paper: 128).
    pub unit_tokens: usize,
    /// Keys that stand for a block (paper: 4).
    pub representatives: usize,
    /// First tokens always read (paper: 128).
    pub sinks: usize,
    /// Most recent tokens always read; their queries judge the block in front of them (paper: 4096).
    pub recent: usize,
}

impl Default for InfLlm {
    fn default() -> Self {
        InfLlm { budget: 6272, unit_tokens: 128, representatives: 4, sinks: 128, recent: 4096 }
    }
}

impl Settings for InfLlm {
    const NAME: &'static str = "infllm";
    const ABOUT: &'static str =
        "128-token blocks by the keys that later queries looked for, one list for a layer";
    const SOURCE: &'static str = "InfLLM, NeurIPS 2024, arXiv 2402.04617";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Representatives {
                tokens: self.unit_tokens,
                count: self.representatives,
                behind: self.recent,
            },
            fold: Fold::Mean,
            scope: Scope::Layer,
            rule: Rule::Budget(self.budget),
            refine: None,
            reuse: Reuse::Never,
        }
    }

    /// The window takes two thirds, as in the paper's proportions.
    fn set_budget(&mut self, tokens: usize) {
        let unit = self.unit_tokens.max(1);
        let blocks = |n: usize| n / unit * unit;
        self.sinks = self.sinks.min(tokens / 16);
        self.recent = blocks(tokens / 3 * 2).clamp(unit, 4096.max(unit));
        self.budget = tokens;
    }
}

/// InfiniGen (Lee et al., OSDI 2024, arXiv 2406.19707) as a selector: tokens scored by a share of the channels of
/// their keys, those on which the prompt's queries are largest; as many are read as come within `alpha` of
/// the best.
///
/// The published number of tokens is a mean over all heads of the layer, which starves heads that look at
/// much; here each KV head has its own. Channels are skewed by the singular vectors of the weights before they
/// are chosen, which needs the model; here they are the keys' own. Queries are those of the layer, not
/// predicted ones: a prediction may only say what to fetch ahead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InfiniGen {
    /// Tokens read per KV head and query, keeps included; none (paper): as many as `alpha` says.
    pub budget: Option<usize>,
    /// Natural logits below the largest that a token may lie to count (code: 4 and 5.2).
    pub alpha: f32,
    /// Most of the sequence that is read, keeps not counted (paper: 0.2).
    pub share: f32,
    /// Share of the channels that are scored (paper: 0.3).
    pub channels: f32,
    /// First tokens always read (paper: none).
    pub sinks: usize,
    /// Most recent tokens always read (paper: the token itself).
    pub recent: usize,
}

impl Default for InfiniGen {
    fn default() -> Self {
        InfiniGen { budget: None, alpha: 5.0, share: 0.2, channels: 0.3, sinks: 0, recent: 1 }
    }
}

impl Settings for InfiniGen {
    const NAME: &'static str = "infinigen";
    const ABOUT: &'static str = "tokens scored by a few channels, as many as come near the best";
    const SOURCE: &'static str = "InfiniGen, OSDI 2024, arXiv 2406.19707";

    fn parts(&self) -> Parts {
        let rule = Rule::Near { alpha: self.alpha, share: self.share };
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Channels { share: self.channels },
            fold: Fold::MassSum,
            scope: Scope::KvHead,
            rule: self.budget.map_or(rule, Rule::Budget),
            refine: None,
            reuse: Reuse::Never,
        }
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = Some(tokens);
    }
}
