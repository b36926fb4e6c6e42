//! Whether the parts of a selector can be what they are set to.

use super::{Digest, Parts, Refine, Reuse, Rule};
use crate::Error;

impl Parts {
    /// Checks what is derived from keys.
    fn validate_derived(&self, name: &'static str) -> Result<(), Error> {
        let least = |setting, found: usize| match found {
            0 => Err(Error::setting(name, setting, "at least 1", found)),
            _ => Ok(()),
        };
        match self.digest {
            Digest::Clusters(c) => {
                least("cluster_tokens", c.size)?;
                least("later_tokens", c.later)?;
                least("window", c.window)?;
                least("iterations", c.iterations)?;
                if !(0.0..=1.0).contains(&c.estimated) {
                    return Err(Error::setting(name, "estimated", "from 0 to 1", c.estimated));
                }
            }
            Digest::Codes { parts, bits, iterations } => {
                least("parts", parts)?;
                least("iterations", iterations)?;
                if !(1..=8).contains(&bits) {
                    return Err(Error::setting(name, "bits", "from 1 to 8", bits));
                }
            }
            Digest::Channels { share } if !(share > 0.0 && share <= 1.0) => {
                return Err(Error::setting(name, "channels", "above 0 and at most 1", share));
            }
            Digest::Representatives { tokens, count, behind } => {
                least("unit_tokens", tokens)?;
                least("representatives", count)?;
                if behind < tokens || count > tokens {
                    let expected = format!(
                        "a unit of {tokens} tokens or more, and no more representatives than that"
                    );
                    return Err(Error::setting(name, "recent", expected, behind));
                }
            }
            Digest::Landmarks { tokens, .. } if tokens == 0 || 64 % tokens != 0 => {
                return Err(Error::setting(name, "unit_tokens", "a divisor of 64", tokens));
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn validate(&self, name: &'static str) -> Result<(), Error> {
        let err = |setting, expected: &str, found: &dyn std::fmt::Display| {
            Err(Error::setting(name, setting, expected, found))
        };
        let unit = self.unit_tokens();
        match self.digest {
            Digest::Units { tokens, .. } if tokens == 0 || 64 % tokens != 0 => {
                return err("unit_tokens", "a divisor of 64", &tokens);
            }
            Digest::Given { tokens: 0 } => return err("unit_tokens", "at least 1", &0),
            Digest::Observed { window: 0, .. } => return err("window", "at least 1", &0),
            Digest::Tree { queries: 0, .. } => return err("queries", "at least 1", &0),
            Digest::Tree { flat, .. } if !(flat > 0.0 && flat <= 1.0) => {
                return err("flat", "above 0 and at most 1", &flat);
            }
            Digest::Observed { pool, .. } if pool % 2 == 0 => return err("pool", "odd", &pool),
            Digest::Nothing if self.floor_tokens() == 0 => {
                return err("recent", "at least 1 where nothing is picked", &self.keep.recent);
            }
            _ => {}
        }
        self.validate_derived(name)?;
        match self.rule {
            Rule::Budget(budget) if budget < self.least_budget() => {
                let least = self.least_budget();
                let keeps = least - unit;
                let expected =
                    format!("at least {least}: what is kept, {keeps}, and a unit of {unit}");
                return err("budget", &expected, &budget);
            }
            Rule::Share(share) | Rule::Split { share, .. } | Rule::Near { share, .. }
                if !(share > 0.0 && share < 1.0) =>
            {
                return err("share", "above 0 and below 1", &share);
            }
            Rule::Split { recent, .. } if !(recent > 0.0 && recent < 1.0) => {
                return err("recent_share", "above 0 and below 1", &recent);
            }
            Rule::Near { alpha, .. } if !(alpha > 0.0 && alpha.is_finite()) => {
                return err("alpha", "above 0", &alpha);
            }
            _ => {}
        }
        match &self.refine {
            Some(Refine::TopP { p, .. }) if !(*p > 0.0 && *p < 1.0) => {
                return err("top_p", "above 0 and below 1", p);
            }
            Some(Refine::TopP { bits, .. }) if !matches!(bits, 4 | 8) => {
                return err("bits", "4 or 8", bits);
            }
            _ => {}
        }
        match &self.reuse {
            Reuse::Cosine(theta) if !(*theta > 0.0 && *theta <= 1.0) => {
                err("theta", "above 0 and at most 1", theta)
            }
            Reuse::Shared { steps: 0, .. } => err("steps", "at least 1", &0),
            Reuse::Shared { heads, .. } if !(0.0..=1.0).contains(heads) => {
                err("heads", "from 0 to 1", heads)
            }
            Reuse::Shared { layers, .. } if !(0.0..=1.0).contains(layers) => {
                err("layers", "from 0 to 1", layers)
            }
            Reuse::Layers(layers) if !layers.is_sorted_by(|a, b| a < b) || layers.is_empty() => {
                err("anchors", "ascending layers, at least one", &format!("{layers:?}"))
            }
            _ => Ok(()),
        }
    }
}
