//! Errors of this crate: bad shapes and lists. Messages name expected and found.

use crate::DType;

/// A kernel's input does not fit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor or list has the wrong shape or length.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// What would have been right.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A number is outside its range.
    #[error("{what}: expected {expected}, found {found}")]
    Range {
        /// The argument.
        what: &'static str,
        /// The allowed range.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Element types that do not go together.
    #[error("{what}: expected dtype {expected}, found {found}")]
    DType {
        /// The argument.
        what: &'static str,
        /// The type that fits.
        expected: DType,
        /// The type given.
        found: DType,
    },
    /// The operating system refused to start threads.
    #[error("threads: expected to start {count}, found: {reason}")]
    Threads {
        /// How many were wanted.
        count: usize,
        /// What the system said.
        reason: String,
    },
    /// Encoded bytes that no encoder wrote.
    #[error("corrupt tile: {what}")]
    Corrupt {
        /// What does not fit.
        what: &'static str,
    },
    /// Strided memory does not lie inside its buffer.
    #[error("{what}: reaches element {last} of a buffer of {len}")]
    OutOfBounds {
        /// The argument.
        what: &'static str,
        /// Largest element index touched.
        last: i128,
        /// Elements in the buffer.
        len: usize,
    },
}

impl Error {
    pub(crate) fn shape(
        what: &'static str,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Error {
        Error::Shape { what, expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn range(
        what: &'static str,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Error {
        Error::Range { what, expected: expected.to_string(), found: found.to_string() }
    }
}
