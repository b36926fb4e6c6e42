//! What a check found, and what to do about it.

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well or not as safely as it could.
    Warning,
    /// It does not work.
    Error,
}

impl Level {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// One line of the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is about: `machine`, `cuda`, `directory`, `links`, `model`, `gain`, or a part of the host.
    pub about: String,
    /// What was found.
    pub text: String,
    /// What to do, if something is to be done.
    #[serde(default)]
    pub advice: String,
}

/// All that was found, in order.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn ok(&mut self, about: &str, text: impl Into<String>) {
        self.add(Level::Ok, about, text.into(), "");
    }

    pub(super) fn warn(&mut self, about: &str, text: impl Into<String>, advice: &str) {
        self.add(Level::Warning, about, text.into(), advice);
    }

    pub(super) fn error(&mut self, about: &str, text: impl Into<String>, advice: &str) {
        self.add(Level::Error, about, text.into(), advice);
    }

    fn add(&mut self, level: Level, about: &str, text: String, advice: &str) {
        let (about, advice) = (about.to_owned(), advice.to_owned());
        self.0.push(Finding { level, about, text, advice });
    }
}
