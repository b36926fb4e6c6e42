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
    /// No policy of that name.
    #[error("unknown selector {name:?}{}; there are: {known}", hint(.suggestion))]
    UnknownName {
        /// The name asked for.
        name: String,
        /// The nearest name there is, if one is near.
        suggestion: Option<&'static str>,
        /// All names.
        known: String,
    },
}

fn hint(suggestion: &Option<&'static str>) -> String {
    suggestion.map(|s| format!(", did you mean {s:?}?")).unwrap_or_default()
}

impl Error {
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
