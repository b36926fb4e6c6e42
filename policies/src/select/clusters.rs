//! Selectors over clusters of tokens whose keys are alike.

use serde::{Deserialize, Serialize};

use super::{Clustering, Digest, Fold, Parts, Reuse, Rule, Scope, Settings, Style};
use crate::Keep;

/// ClusterKV (Liu et al., DAC 2025, arXiv 2412.03213): clusters of tokens with similar keys, ranked by the
/// query's product with their centroids; whole clusters are read while they fit, and the first tokens of the
/// next one.
///
/// The published code selects for each query head and keeps a copy of every key and value for each; here a KV
/// head reads one set for its whole group, by the sum of the softmax of the group's scores, which for a group
/// of one is the same order. Centroids begin at even distances, not at tokens drawn with replacement. Tokens
/// that are not clustered yet count in the budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterKv {
    /// Tokens read per KV head and query, keeps included (code: 1024).
    pub budget: usize,
    /// First tokens always read, and not clustered (paper: 16).
    pub sinks: usize,
    /// Tokens per cluster of the prompt (paper: 80).
    pub cluster_tokens: usize,
    /// Tokens after the prompt that are clustered together; until then they are read (paper: 320). Never
    /// more than a quarter of the budget.
    pub window: usize,
    /// Tokens per cluster of these (code: 40).
    pub later_tokens: usize,
    /// Iterations of k-means (code: 20).
    pub iterations: usize,
}

impl Default for ClusterKv {
    fn default() -> Self {
        ClusterKv {
            budget: 1024,
            sinks: 16,
            cluster_tokens: 80,
            window: 320,
            later_tokens: 40,
            iterations: 20,
        }
    }
}

impl Settings for ClusterKv {
    const NAME: &'static str = "clusterkv";
    const ABOUT: &'static str =
        "clusters of 80 tokens with similar keys, ranked by their centroids";
    const SOURCE: &'static str = "ClusterKV, DAC 2025, arXiv 2412.03213";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: 1 },
            digest: Digest::Clusters(Clustering {
                size: self.cluster_tokens,
                later: self.later_tokens,
                window: waiting(self.window, Some(self.budget)),
                iterations: self.iterations,
                style: Style::Whole,
                estimated: 0.0,
            }),
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

/// RetroInfer (Chen et al., arXiv 2505.02922): small clusters in segments; the best are read, of the next ones
/// the centroid stands for the keys and the mean value for the values, the others are left out.
///
/// The estimate never counts more mass than there is (Jensen's inequality). The published code rounds the
/// number of clusters to what its kernels like; here it is as the settings say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetroInfer {
    /// Tokens read per KV head and query, keeps included; none (paper): the share `retrieved` of the clusters,
    /// keeps not counted.
    pub budget: Option<usize>,
    /// Share of the clusters that is read (paper: 0.018).
    pub retrieved: f32,
    /// Share of the clusters that is estimated (paper: 0.232).
    pub estimated: f32,
    /// First tokens always read, and not clustered (paper: 4).
    pub sinks: usize,
    /// Most recent tokens always read (paper: 64).
    pub recent: usize,
    /// Tokens per cluster (paper: 16).
    pub cluster_tokens: usize,
    /// Tokens after the prompt that are clustered together; until then they are read (paper: 1024).
    /// Never more than a quarter of the budget.
    pub window: usize,
    /// Iterations of k-means inside a segment of 8192 tokens; one more follows over all clusters (paper: 9).
    pub iterations: usize,
}

impl Default for RetroInfer {
    fn default() -> Self {
        RetroInfer {
            budget: None,
            retrieved: 0.018,
            estimated: 0.232,
            sinks: 4,
            recent: 64,
            cluster_tokens: 16,
            window: 1024,
            iterations: 9,
        }
    }
}

impl Settings for RetroInfer {
    const NAME: &'static str = "retroinfer";
    const ABOUT: &'static str =
        "clusters of 16 tokens, the best read, the next ones estimated by their means";
    const SOURCE: &'static str = "RetroInfer, arXiv 2505.02922";

    fn parts(&self) -> Parts {
        Parts {
            keep: Keep { sinks: self.sinks, recent: self.recent },
            digest: Digest::Clusters(Clustering {
                size: self.cluster_tokens,
                later: self.cluster_tokens,
                window: waiting(self.window, self.budget),
                iterations: self.iterations,
                style: Style::Segments,
                estimated: self.estimated,
            }),
            fold: Fold::MassSum,
            scope: Scope::KvHead,
            rule: self.budget.map_or(Rule::Share(self.retrieved), Rule::Budget),
            refine: None,
            reuse: Reuse::Never,
        }
    }

    fn set_budget(&mut self, tokens: usize) {
        self.budget = Some(tokens);
    }
}

/// Tokens that wait; none where the setting says so, which is an error.
fn waiting(window: usize, budget: Option<usize>) -> usize {
    window.min(budget.map_or(window, |tokens| (tokens / 4).max(1)))
}
