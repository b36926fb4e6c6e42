//! What can go wrong, with the numbers a user needs to act on it.

use kvist_kernels::DType;

/// An operation was refused; whatever it would have changed is as it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong shape.
    #[error("{what} must have shape {expected}, found {found:?}")]
    Shape {
        /// The tensor.
        what: &'static str,
        /// The shape that fits, in words and numbers.
        expected: String,
        /// Its shape.
        found: [usize; 3],
    },
    /// A tensor has the wrong element type.
    #[error("{what} must be {expected} as the cache is, found {found}")]
    DType {
        /// The tensor.
        what: &'static str,
        /// The cache's type.
        expected: DType,
        /// Its type.
        found: DType,
    },
    /// There is no such layer.
    #[error("layer {layer} is outside 0..{layers}")]
    Layer {
        /// The layer asked for.
        layer: usize,
        /// Layers of the cache.
        layers: usize,
    },
    /// Tokens must follow one another.
    #[error("layer {layer}: the next token has position {expected}, found {found}")]
    Position {
        /// The layer.
        layer: usize,
        /// The next position.
        expected: usize,
        /// The position given.
        found: usize,
    },
    /// More tokens were named than the sequence has.
    #[error("{what}: the sequence has {len} tokens in layer {layer}, found {found}")]
    Length {
        /// The operation.
        what: &'static str,
        /// The layer with the fewest tokens.
        layer: usize,
        /// Its tokens.
        len: usize,
        /// What was asked for.
        found: usize,
    },
    /// The budget does not hold it.
    #[error("over budget: {needed} bytes needed, {free} of {budget} free")]
    OverBudget {
        /// Bytes the operation needs.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// The whole budget.
        budget: u64,
    },
    /// The sequences of a batch belong to different caches.
    #[error("sequence {index} of the batch belongs to another cache")]
    ForeignSequence {
        /// Its place in the batch.
        index: usize,
    },
    /// A list of the call has the wrong length.
    #[error("{what}: expected {expected}, found {found}")]
    Count {
        /// The list.
        what: &'static str,
        /// The right length.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// A setting is out of range.
    #[error("{setting} must be {expected}, found {found}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The operating system refused memory or threads.
    #[error("{what}: {reason}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        reason: String,
    },
    /// A selector's settings make no sense.
    #[error(transparent)]
    Select(#[from] kvist_policies::Error),
    /// A view or kernel argument does not fit.
    #[error(transparent)]
    Kernel(#[from] kvist_kernels::Error),
}

impl Error {
    pub(crate) fn setting(
        setting: &'static str,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Error {
        Error::Setting { setting, expected: expected.to_string(), found: found.to_string() }
    }
}
