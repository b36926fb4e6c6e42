//! Errors of this crate: settings that make no sense.

/// A policy's settings are wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is outside its range.
    #[error("{selector}: {setting} must be {expected}, found {found}")]
    Setting {
        /// The policy.
        selector: &'static str,
        /// The setting.
        setting: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A preset has no setting of that name.
    #[error("{selector}: unknown setting {setting:?}{}; there are: {known}", hint(.suggestion.as_deref()))]
    UnknownSetting {
        /// The preset.
        selector: &'static str,
        /// The setting asked for.
        setting: String,
        /// The nearest setting there is, if one is near.
        suggestion: Option<String>,
        /// All its settings.
        known: String,
    },
    /// A setting is of another type.
    #[error("{selector}: {setting}: {problem} (found {found})")]
    SettingType {
        /// The preset.
        selector: &'static str,
        /// The setting.
        setting: String,
        /// What was expected.
        problem: String,
        /// What it is, as JSON.
        found: String,
    },
    /// A profile cannot be what it is said to be.
    #[error("profile: {problem}")]
    Profile {
        /// What is wrong with it.
        problem: String,
    },
    /// A profile was made for something else.
    #[error("the profile was made for {what} {found}, this cache has {expected}")]
    OtherProfile {
        /// What is different: `model` or `geometry`.
        what: &'static str,
        /// That of the cache.
        expected: String,
        /// That of the profile.
        found: String,
    },
    /// A selector that means nothing without a profile.
    #[error(
        "{selector}: needs a profile that says how each KV head is read, found none; make one with `kvist calibrate`"
    )]
    NeedsProfile {
        /// The selector.
        selector: &'static str,
    },
    /// No policy of that name.
    #[error("unknown {what} {name:?}{}; there are: {known}", hint(*.suggestion))]
    UnknownName {
        /// What was to be named: `selector`, `prefill pattern`, `order of replacement`.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The nearest name there is, if one is near.
        suggestion: Option<&'static str>,
        /// All names.
        known: String,
    },
}

fn hint(suggestion: Option<&str>) -> String {
    suggestion.map(|s| format!(", did you mean {s:?}?")).unwrap_or_default()
}

impl Error {
    pub(crate) fn profile(problem: impl Into<String>) -> Error {
        Error::Profile { problem: problem.into() }
    }

    pub(crate) fn setting(
        selector: &'static str,
        setting: &'static str,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Error {
        let (expected, found) = (expected.to_string(), found.to_string());
        Error::Setting { selector, setting, expected, found }
    }
}
