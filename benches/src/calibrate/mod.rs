//! Profiles from a dump: measures every head on real text, decides how it is read, and says what that gains.

pub(crate) mod measure;
mod report;

use std::path::Path;

use kvist::policies::{Error as Refused, HeadStats, Rules, Shape};
use kvist::{Boxed, Profile, Select};

use crate::Error;
use crate::quality::dump::Dump;

pub use report::{ClassReport, HeadReport, Report};

/// The window whose cover stands in for DuoAttention's learned gates (its own: 128 first, 256 recent tokens).
const DUO: (usize, usize) = (128, 256);
/// Share of the heads that streams with `duoattention`, as in the paper for grouped queries.
const SPARSITY: f64 = 0.5;

/// How to make a profile.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// The selector and its budget. `duoattention` asks for its own kind of profile, with the budget of what
    /// picks for the heads that do not stream.
    pub select: Select,
    /// Which heads are not left to the selector.
    pub rules: Rules,
    /// DuoAttention instead of the rules: this share of the heads streams, those that a window covers best.
    pub sparsity: Option<f64>,
    /// Steps measured at most, evenly spread over those of the dump.
    pub steps: usize,
    /// The model's name; by default the dump's.
    pub model: Option<String>,
}

impl Calibration {
    /// With the default rules, on 48 steps.
    #[must_use]
    pub fn new(select: Select) -> Calibration {
        Calibration { select, rules: Rules::default(), sparsity: None, steps: 48, model: None }
    }
}

/// A profile, and what it leads to.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// The profile.
    pub profile: Profile,
    /// What is to be expected of it on the text measured.
    pub report: Report,
}

/// Makes a profile from a file of real queries, keys and values (`docs/formats.md`). `progress` is told how
/// many layers are done, and of how many.
///
/// # Errors
/// [`Error::Io`] or [`Error::Dump`] for a file that cannot be read or is too short, [`Error::Policy`] for a
/// selector without a fixed budget, one that no profile goes with, or a budget that does not pay for all heads.
pub fn calibrate(
    dump: &Path,
    how: &Calibration,
    progress: impl FnMut(usize, usize),
) -> Result<Calibrated, Error> {
    let how = &how.measurable()?;
    let path = dump.display().to_string();
    let dump = Dump::open(dump)?;
    let least = how.select.least_budget();
    if dump.tokens <= least {
        let problem =
            format!("expected more tokens than are always read, {least}, found {}", dump.tokens);
        return Err(Error::Dump { path, problem });
    }
    of_dump(&dump, how, progress)
}

fn of_dump(
    dump: &Dump,
    how: &Calibration,
    mut progress: impl FnMut(usize, usize),
) -> Result<Calibrated, Error> {
    let model = how.model.clone().unwrap_or_else(|| dump.model.clone());
    let shape = shape(dump);
    // What cannot be done is said before it is measured.
    let zero = vec![vec![0.0; shape.kv_heads]; shape.layers];
    let trial = Profile::duo(model.clone(), shape, &zero, how.sparsity.unwrap_or(0.0))?;
    trial.selects(&how.select, &[])?;
    let steps = measure::spread(0..dump.queries, how.steps.max(1));
    let layers = dump.layers.len();
    let stats = measure::measure(dump, &how.select, &steps, |done| progress(done, layers))?;
    let profile = how.decide(model, shape, &stats)?;
    let report = Report::new(&profile, &stats, &how.select, &dump.layers)?;
    Ok(Calibrated { profile, report })
}

/// The geometry of a dump.
pub(crate) fn shape(dump: &Dump) -> Shape {
    let Dump { q_heads, kv_heads, dim_k, .. } = *dump;
    Shape { layers: dump.layers.len(), q_heads, kv_heads, dim_k }
}

impl Calibration {
    /// The same with a selector that can be measured at any budget.
    fn measurable(&self) -> Result<Calibration, Refused> {
        self.select.validate()?;
        let Some(budget) = self.select.budget() else {
            let (name, expected) = (self.select.name(), "a number of tokens".to_owned());
            let found = "none".to_owned();
            return Err(Refused::Setting { selector: name, setting: "budget", expected, found });
        };
        let duo = self.select.needs_profile();
        let select = if duo { Boxed::with_budget(budget).into() } else { self.select.clone() };
        let sparsity = self.sparsity.or(duo.then_some(SPARSITY));
        Ok(Calibration { select, sparsity, ..self.clone() })
    }

    fn decide(
        &self,
        model: String,
        shape: Shape,
        stats: &[Vec<HeadStats>],
    ) -> Result<Profile, Refused> {
        let Some(sparsity) = self.sparsity else {
            return Profile::measured(model, shape, stats, &self.select, &self.rules);
        };
        let gate = |s: &HeadStats| {
            let same = s.windows.iter().find(|w| (w.sinks, w.recent) == DUO);
            same.map_or(1.0, |w| 1.0 - w.mean)
        };
        let gates: Vec<Vec<f64>> = stats.iter().map(|row| row.iter().map(gate).collect()).collect();
        Profile::duo(model, shape, &gates, sparsity)
    }
}

#[cfg(test)]
mod tests;
