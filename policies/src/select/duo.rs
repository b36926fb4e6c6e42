//! Heads that stream beside heads that retrieve.

use serde::{Deserialize, Serialize};

use super::Method;
use crate::Boxed;

/// DuoAttention (Xiao et al., ICLR 2025, arXiv 2410.10819): some KV heads read the first and the most recent
/// tokens only, the others everything.
///
/// Which are which says a [`Profile`](crate::Profile), made from the paper's learned gates
/// ([`Profile::duo`](crate::Profile::duo)) or from measured ones; without one it cannot be used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DuoAttention {
    /// Tokens read per KV head and query, mean over all heads, where `boxed` picks for the heads that retrieve;
    /// none (paper): these read everything.
    pub budget: Option<usize>,
}

impl DuoAttention {
    /// What heads read that do not stream.
    pub(super) fn method(&self) -> Method {
        self.budget.map_or(Method::Full, |tokens| Method::Boxed(Boxed::with_budget(tokens)))
    }
}
