//! From a profile and a selector to what every head reads.

use super::{Class, Profile, shares};
use crate::select::{Method, Reuse, Scope, Streaming};
use crate::{Error, Select};

impl Profile {
    /// What each head reads with this selector, `[layers][kv_heads]`. Layers marked `dense` read everything.
    ///
    /// A selector with a fixed budget B reads, summed over the heads that stream or select, B tokens for each
    /// of them: streaming heads take what they need, the others share the rest as their shares say, and none
    /// gets less than the selector's least. A selector without a fixed budget (`full`, a target of mass, a
    /// share of the context) stays as it is in the heads that select.
    ///
    /// # Errors
    /// [`Error::Setting`] if the selector's settings are wrong, if the budget does not pay for all heads, or
    /// if the selector cannot be told head by head what to read: one that picks for several heads or layers
    /// at once, or one that proves what it missed where heads stream.
    pub fn selects(&self, select: &Select, dense: &[bool]) -> Result<Vec<Vec<Select>>, Error> {
        select.validate()?;
        self.check_select(select)?;
        let open = |l: usize| !dense.get(l).copied().unwrap_or(false);
        let classes = || {
            let layers = self.heads.iter().enumerate().filter(|(l, _)| open(*l));
            layers.flat_map(|(_, row)| row.iter().copied())
        };
        let mut budgets = self.budgets(select, classes)?.into_iter();
        let mut of = |class: &Class, dense: bool| match *class {
            _ if dense => Select::Full,
            Class::Dense => Select::Full,
            Class::Streaming { sinks, recent } => Streaming { sinks, recent }.into(),
            Class::Select { .. } => match budgets.next() {
                Some(tokens) => select.clone().with_budget(tokens),
                None => select.clone(),
            },
        };
        let rows = self.heads.iter().enumerate();
        let selects: Vec<Vec<Select>> =
            rows.map(|(l, row)| row.iter().map(|class| of(class, !open(l))).collect()).collect();
        selects.iter().flatten().try_for_each(Select::validate)?;
        Ok(selects)
    }

    /// Tokens of each head that selects; none without a fixed budget.
    fn budgets<I: Iterator<Item = Class>>(
        &self,
        select: &Select,
        classes: impl Fn() -> I,
    ) -> Result<Vec<usize>, Error> {
        let Some(budget) = select.budget() else { return Ok(Vec::new()) };
        let share = |c| if let Class::Select { share } = c { Some(f64::from(share)) } else { None };
        let shares: Vec<f64> = classes().filter_map(share).collect();
        let streaming: Vec<usize> = classes().filter_map(Class::stream_tokens).collect();
        let (heads, least) = (shares.len() + streaming.len(), select.least_budget());
        let spent = streaming.iter().fold(0usize, |sum, n| sum.saturating_add(*n));
        let needed = spent.saturating_add(least.saturating_mul(shares.len()));
        // Positions have 32 bits: nobody can read more.
        let total = budget.min(u32::MAX as usize).saturating_mul(heads);
        if total < needed {
            let expected = format!(
                "at least {} with this profile, for {} streaming and {} other heads",
                needed.div_ceil(heads),
                streaming.len(),
                shares.len()
            );
            return Err(Error::setting(select.name(), "budget", expected, budget));
        }
        Ok(shares::apportion(total - spent, &shares, least))
    }

    fn check_select(&self, select: &Select) -> Result<(), Error> {
        let err = |expected, found| Err(Error::setting(select.name(), "profile", expected, found));
        let streams = self.heads.iter().flatten().any(|c| c.stream_tokens().is_some());
        match select.method() {
            Method::Parts(parts)
                if parts.scope == Scope::Layer
                    || matches!(parts.reuse, Reuse::Layers(_) | Reuse::Shared { .. }) =>
            {
                err("none: it picks for several heads or layers at once", "one")
            }
            Method::Boxed(boxed) if boxed.max_missed_mass.is_some() && streams => {
                err("one without streaming heads: what they miss cannot be proven", "some")
            }
            _ => Ok(()),
        }
    }
}
