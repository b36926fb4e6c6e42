//! What can go wrong in a benchmark run.

/// A benchmark cannot run as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No benchmark has this name.
    #[error("no benchmark is named \"{name}\"{}; known: {known}", hint(.near))]
    UnknownBench {
        /// The name given.
        name: String,
        /// The nearest known name, if any is near.
        near: Option<String>,
        /// All names.
        known: String,
    },
    /// No flag has this name.
    #[error("no flag is named \"--{name}\"{}; known: {known}", hint(.near))]
    UnknownFlag {
        /// The name given.
        name: String,
        /// The nearest known name, if any is near.
        near: Option<String>,
        /// All names.
        known: String,
    },
    /// A flag's value does not fit.
    #[error("--{flag}: expected {expected}, found \"{found}\"")]
    BadValue {
        /// The flag.
        flag: String,
        /// What would have been right.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A q/k/v dump cannot be read.
    #[error("dump {path}: {problem}")]
    Dump {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A trace cannot be read.
    #[error("trace {path}, line {line}: {problem}")]
    Trace {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A model's shape cannot be read.
    #[error("model {path}: {problem}")]
    Model {
        /// The file or directory.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A Python helper did not do its part.
    #[error("python helper: {0}")]
    Python(String),
    /// A store under measurement did not keep its word.
    #[error("{name}: {problem}")]
    Subject {
        /// The store.
        name: String,
        /// What it did.
        problem: String,
    },
    /// A policy refused its input.
    #[error(transparent)]
    Policy(#[from] kvist::policies::Error),
    /// A GPU cannot be used, or refused.
    #[error(transparent)]
    Gpu(#[from] kvist_kernels::cuda::TrialError),
    /// A kernel refused its input.
    #[error(transparent)]
    Kernel(#[from] kvist_kernels::Error),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] kvist::Error),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// An input or output error with its occasion.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    /// A store that cannot be measured.
    pub fn subject(name: impl Into<String>, problem: impl ToString) -> Error {
        Error::Subject { name: name.into(), problem: problem.to_string() }
    }
}

fn hint(near: &Option<String>) -> String {
    near.as_ref().map(|n| format!(" (did you mean \"{n}\"?)")).unwrap_or_default()
}

/// The candidate nearest to `name`, if it is near enough to be a slip of the pen.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let near = candidates.into_iter().map(|c| (strsim::jaro_winkler(name, c), c));
    let best = near.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.75).then(|| best.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_suggested_and_nonsense_is_not() {
        assert_eq!(nearest("atend", ["attend", "select"]), Some("attend".to_owned()));
        assert_eq!(nearest("zzz", ["attend", "select"]), None);
    }
}
