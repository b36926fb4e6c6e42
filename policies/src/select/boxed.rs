//! kvist's own selector.

use serde::{Deserialize, Serialize};

use crate::{Error, Keep};

/// kvist's selector: 64-token boxes with nested bit planes inside them, scored per token, refined
/// where the decision is close, folded over the query group by softmax mass.
///
/// Set a `budget`, or a `top_p`, or `max_missed_mass`, or a combination: the budget is then what is
/// read at least, `max_tokens` what is read at most. With none of them set the budget is 1024.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Boxed {
    /// Bit planes stored per key channel, 2 to 4. Up to three are read for every token, the fourth
    /// where the choice is close, all of them for a certificate.
    pub planes: u32,
    /// Tokens read per KV head and query, keeps included.
    pub budget: Option<usize>,
    /// Read until this share of the estimated softmax mass (mean over the group) is covered.
    pub top_p: Option<f32>,
    /// Read until the proven softmax mass not read is at most this, for every query head.
    pub max_missed_mass: Option<f32>,
    /// Tokens read at least with `top_p` or `max_missed_mass`, keeps included. `None` is 256 with
    /// `top_p` and only the keeps with `max_missed_mass` alone.
    pub min_tokens: Option<usize>,
    /// Tokens read at most, keeps included; a certificate that would need more stays above its
    /// target, and the bound that was proven is reported.
    pub max_tokens: Option<usize>,
    /// First tokens always read.
    pub sinks: usize,
    /// Most recent tokens always read (and every token of the unfinished box).
    pub recent: usize,
    /// Sequences of at least this many tokens are searched by the boxes of 64-token tiles first, and only tiles
    /// that promise much are scored: the cost of selection then grows far slower than the sequence. A key that
    /// its box does not tell of may be missed that way.
    pub tree_from: usize,
    /// What a step selected is used again at the next ones while it holds at least this share of the softmax
    /// mass (mean over the group), as far as a sixteenth of the other tiles, another one every step, tells.
    /// `None`: every step selects. Not with `max_missed_mass`, and not while pages are in a lower tier.
    pub reuse: Option<f32>,
    /// Steps that a selection serves at most, its own included.
    pub reuse_steps: usize,
    /// Natural logits by which a page of a lower tier must be worth more than one that is near to be chosen
    /// in its place, where a budget decides: 0 is no preference, and what is read then does not depend on
    /// what is near.
    pub residency: f32,
}

impl Default for Boxed {
    fn default() -> Self {
        Boxed {
            planes: 3,
            budget: None,
            top_p: None,
            max_missed_mass: None,
            min_tokens: None,
            max_tokens: None,
            sinks: 16,
            recent: 64,
            tree_from: 65_536,
            reuse: None,
            reuse_steps: 8,
            residency: 0.0,
        }
    }
}

/// The budget of `boxed` where nothing else is set.
const BUDGET_DEFAULT: usize = 1024;
/// Tokens that `top_p` reads at least: estimates of very peaked heads are the least certain.
const TOP_P_MIN: usize = 256;

impl Boxed {
    /// A fixed number of tokens per KV head and query.
    #[must_use]
    pub fn with_budget(tokens: usize) -> Boxed {
        Boxed { budget: Some(tokens), ..Boxed::default() }
    }

    /// Proven missed softmax mass at most `share`, for every query head and step.
    #[must_use]
    pub fn with_max_missed_mass(share: f32) -> Boxed {
        Boxed { max_missed_mass: Some(share), planes: 4, ..Boxed::default() }
    }

    /// The kept tokens.
    #[must_use]
    pub fn keep(&self) -> Keep {
        Keep { sinks: self.sinks, recent: self.recent }
    }

    /// Tokens read at least.
    #[must_use]
    pub fn floor_tokens(&self) -> usize {
        let keeps = self.sinks.saturating_add(self.recent);
        match (self.budget, self.top_p, self.max_missed_mass) {
            (Some(budget), ..) => budget,
            (None, Some(_), _) => self.min_tokens.unwrap_or(TOP_P_MIN),
            (None, None, Some(_)) => self.min_tokens.unwrap_or(keeps),
            (None, None, None) => BUDGET_DEFAULT,
        }
    }

    /// Tokens read at most.
    #[must_use]
    pub fn cap_tokens(&self) -> usize {
        match (self.max_tokens, self.top_p.is_some() || self.max_missed_mass.is_some()) {
            (Some(cap), _) => cap,
            (None, true) => usize::MAX,
            (None, false) => self.floor_tokens(),
        }
    }

    /// Tokens kept at most: those of the unfinished box are, too, up to 63 of them.
    fn most_kept(&self) -> usize {
        self.sinks.saturating_add(self.recent.max(63))
    }

    /// The smallest budget: what is kept, and a token.
    #[must_use]
    pub fn least_budget(&self) -> usize {
        self.most_kept().saturating_add(1)
    }

    pub(super) fn validate(&self) -> Result<(), Error> {
        let err = |setting, expected: &str, found: String| {
            Err(Error::setting("boxed", setting, expected, found))
        };
        if !(2..=4).contains(&self.planes) {
            return err("planes", "2, 3 or 4", self.planes.to_string());
        }
        let shares = [
            ("top_p", self.top_p),
            ("max_missed_mass", self.max_missed_mass),
            ("reuse", self.reuse),
        ];
        for (setting, share) in shares {
            if let Some(x) = share
                && !(x > 0.0 && x < 1.0)
            {
                return err(setting, "above 0 and below 1", x.to_string());
            }
        }
        if self.reuse.is_some() && self.max_missed_mass.is_some() {
            return err("reuse", "none with max_missed_mass", "both".to_owned());
        }
        if self.reuse_steps == 0 {
            return err("reuse_steps", "at least 1", "0".to_owned());
        }
        if !(self.residency >= 0.0 && self.residency.is_finite()) {
            return err("residency", "at least 0", self.residency.to_string());
        }
        let keeps = self.most_kept();
        if let Some(budget) = self.budget
            && budget <= keeps
        {
            return err(
                "budget",
                &format!("above sinks + recent (at least 63) = {keeps}"),
                budget.to_string(),
            );
        }
        let anyway = self.floor_tokens().max(keeps);
        if self.cap_tokens() < anyway {
            let expected = format!("at least the tokens read anyway, {anyway}");
            return err("max_tokens", &expected, self.cap_tokens().to_string());
        }
        Ok(())
    }
}
