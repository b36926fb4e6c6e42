//! The selectors: which tokens a decoding query reads.

use crate::{Error, Keep};

/// Which tokens of a sequence a decoding query attends to.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Select {
    /// All of them: dense attention.
    #[default]
    Full,
    /// Page boxes (Quest).
    Quest(Quest),
    /// kvist's own: nested bit planes inside page boxes.
    Boxed(Boxed),
}

/// Quest (Tang et al., ICML 2024, arXiv 2406.10774): units of consecutive tokens scored by the
/// upper bound of q.k over their per-channel key box; the best ones are read whole.
///
/// The published code has no grouped-query attention; here a KV head reads one set for its whole
/// group, ranked by the largest bound of the group's query heads, so that the budget is what is
/// read. As in the paper the last, partial unit is always read and no sinks are forced.
#[derive(Clone, Debug, PartialEq)]
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

/// kvist's selector: 64-token boxes with nested bit planes inside them, scored per token, refined
/// where the decision is close, folded over the query group by softmax mass.
///
/// Set a `budget`, or a `top_p`, or `max_missed_mass`, or a combination: the budget is then what is
/// read at least, `max_tokens` what is read at most. With none of them set the budget is 1024.
#[derive(Clone, Debug, PartialEq)]
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

    fn validate(&self) -> Result<(), Error> {
        let err = |setting, expected: &str, found: String| {
            Err(Error::setting("boxed", setting, expected, found))
        };
        if !(2..=4).contains(&self.planes) {
            return err("planes", "2, 3 or 4", self.planes.to_string());
        }
        for (setting, share) in [("top_p", self.top_p), ("max_missed_mass", self.max_missed_mass)] {
            if let Some(x) = share
                && !(x > 0.0 && x < 1.0)
            {
                return err(setting, "above 0 and below 1", x.to_string());
            }
        }
        // The tokens of the unfinished box are kept too: up to 63 of them.
        let keeps = self.sinks.saturating_add(self.recent.max(63));
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

impl Quest {
    fn validate(&self) -> Result<(), Error> {
        if self.unit_tokens == 0 || 64 % self.unit_tokens != 0 {
            return Err(Error::setting(
                "quest",
                "unit_tokens",
                "a divisor of 64",
                self.unit_tokens,
            ));
        }
        if self.budget < 2 * self.unit_tokens {
            let expected = format!("at least two units of {}", self.unit_tokens);
            return Err(Error::setting("quest", "budget", expected, self.budget));
        }
        Ok(())
    }
}

impl Select {
    /// The preset of that name, with its default settings.
    ///
    /// # Errors
    /// [`Error::UnknownName`], with the nearest name if one is near.
    pub fn parse(name: &str) -> Result<Select, Error> {
        match name {
            "full" => Ok(Select::Full),
            "quest" => Ok(Select::Quest(Quest::default())),
            "boxed" => Ok(Select::Boxed(Boxed::default())),
            _ => Err(Error::UnknownName {
                name: name.to_owned(),
                suggestion: nearest(name, PRESETS.iter().map(|p| p.name)),
                known: PRESETS.map(|p| p.name).join(", "),
            }),
        }
    }

    /// The same selector with this budget; `full` has none and stays as it is.
    #[must_use]
    pub fn with_budget(self, tokens: usize) -> Select {
        match self {
            Select::Full => Select::Full,
            Select::Quest(q) => Select::Quest(Quest { budget: tokens, ..q }),
            Select::Boxed(b) => Select::Boxed(Boxed { budget: Some(tokens), ..b }),
        }
    }

    /// The preset's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Select::Full => "full",
            Select::Quest(_) => "quest",
            Select::Boxed(_) => "boxed",
        }
    }

    /// The tokens that are read whatever the query says.
    #[must_use]
    pub fn keep(&self) -> Keep {
        match self {
            Select::Full => Keep { sinks: 0, recent: 0 },
            Select::Quest(q) => Keep { sinks: 0, recent: q.unit_tokens },
            Select::Boxed(b) => b.keep(),
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        match self {
            Select::Full => Ok(()),
            Select::Quest(q) => q.validate(),
            Select::Boxed(b) => b.validate(),
        }
    }

    /// Tokens read per KV head and query at least; a shorter sequence is read whole.
    #[must_use]
    pub fn floor_tokens(&self) -> usize {
        match self {
            Select::Full => usize::MAX,
            Select::Quest(q) => q.budget,
            Select::Boxed(b) => b.floor_tokens(),
        }
    }
}

/// A selector by name, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name `select=` takes.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// Where it comes from.
    pub source: &'static str,
}

/// All selectors.
pub const PRESETS: [Preset; 3] = [
    Preset { name: "full", about: "dense attention over every token", source: "exact" },
    Preset {
        name: "quest",
        about: "16-token units ranked by the bound of their key box, folded by maximum",
        source: "Quest, ICML 2024, arXiv 2406.10774",
    },
    Preset {
        name: "boxed",
        about: "tokens ranked by nested bit planes inside 64-token key boxes, folded by softmax mass",
        source: "kvist",
    },
];

/// All selectors, for listings.
#[must_use]
pub fn selection_presets() -> &'static [Preset] {
    &PRESETS
}

/// The known name nearest to `name`, if one is near enough to be a likely typing error.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let best = known.map(|k| (strsim::damerau_levenshtein(&name, k), k)).min()?;
    (best.0 <= 1 + best.1.len() / 3).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_gets_the_nearest_name() {
        let text = Select::parse("boxd").unwrap_err().to_string();
        assert_eq!(
            text,
            "unknown selector \"boxd\", did you mean \"boxed\"?; there are: full, quest, boxed"
        );
        assert!(!Select::parse("somethingelse").unwrap_err().to_string().contains("did you mean"));
    }

    #[test]
    fn every_preset_parses_and_is_valid() {
        for p in selection_presets() {
            let select = Select::parse(p.name).unwrap();
            assert_eq!(select.name(), p.name);
            select.validate().unwrap();
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let bad = |b: Boxed| Select::Boxed(b).validate().unwrap_err().to_string();
        assert_eq!(
            bad(Boxed { planes: 5, ..Boxed::default() }),
            "boxed: planes must be 2, 3 or 4, found 5"
        );
        assert_eq!(
            bad(Boxed::with_budget(80)),
            "boxed: budget must be above sinks + recent (at least 63) = 80, found 80"
        );
        for share in [0.0, 1.0, -0.5, f32::NAN, f32::INFINITY] {
            assert!(bad(Boxed::with_max_missed_mass(share)).contains("max_missed_mass"));
        }
        let proven = Boxed { recent: 0, ..Boxed::with_max_missed_mass(0.1) };
        assert_eq!(
            bad(Boxed { max_tokens: Some(78), ..proven.clone() }),
            "boxed: max_tokens must be at least the tokens read anyway, 79, found 78"
        );
        assert!(Select::Boxed(Boxed { max_tokens: Some(79), ..proven }).validate().is_ok());
        let quest = Select::Quest(Quest { budget: 16, unit_tokens: 16 });
        assert!(quest.validate().unwrap_err().to_string().contains("two units of 16"));
    }
}
