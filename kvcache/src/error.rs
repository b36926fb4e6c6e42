//! What can go wrong, with the numbers a user needs to act on it.

use std::path::PathBuf;

use kvist_kernels::DType;

use crate::MissReason;

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
    /// A page is not in host memory and cannot be brought back.
    #[error("page {page} of layer {layer} is missing: {reason}")]
    Missing {
        /// The layer.
        layer: usize,
        /// The page's number in its sequence.
        page: usize,
        /// Why.
        reason: MissReason,
    },
    /// Pages could not be stored below; they stay in host memory.
    #[error("pages could not be stored below: {reason} ({pages} others were)")]
    Demote {
        /// Pages that left host memory nevertheless.
        pages: usize,
        /// Why the last one could not.
        reason: MissReason,
    },
    /// A saved session cannot be opened.
    #[error("session {name:?} cannot be opened: {reason}")]
    Session {
        /// Its name.
        name: String,
        /// Why.
        reason: MissReason,
    },
    /// A session was saved for something else.
    #[error("session {name:?} was saved for {what} {found}, this cache has {expected}")]
    OtherSession {
        /// Its name.
        name: String,
        /// What is different: `model` or `geometry`.
        what: &'static str,
        /// That of the cache.
        expected: String,
        /// That of the session.
        found: String,
    },
    /// A session could not be saved or deleted.
    #[error("session {name:?} {reason}")]
    Save {
        /// Its name.
        name: String,
        /// What became of it, and why.
        reason: String,
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
    /// No codec has that name.
    #[error("unknown codec {name:?}{}; there are: {known}", hint(.suggestion))]
    UnknownCodec {
        /// The name given.
        name: String,
        /// A known name that is near to it.
        suggestion: Option<&'static str>,
        /// All known names.
        known: String,
    },
    /// The operating system refused memory or threads.
    #[error("{what}: {reason}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        reason: String,
    },
    /// Another process has the directory.
    #[error("{} is in use by another process{}", path.display(), of_pid(*pid))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, if its lock file says.
        pid: Option<u32>,
    },
    /// The directory may not be used.
    #[error("{} cannot be used: {reason}", path.display())]
    Permission {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The directory has something else in it.
    #[error("{} is not a kvist store, and not empty: it has {found:?}", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// Something in it.
        found: String,
    },
    /// The directory has nothing in it.
    #[error("{} holds no kvist store", path.display())]
    NoStore {
        /// The directory.
        path: PathBuf,
    },
    /// The directory's description is damaged.
    #[error("{}: kvist.meta is damaged; nothing was changed", path.display())]
    BadMeta {
        /// The directory.
        path: PathBuf,
    },
    /// The directory was written by another version.
    #[error("{} has format {found}, this version reads {supported}", path.display())]
    Version {
        /// The directory.
        path: PathBuf,
        /// Its major version.
        found: u32,
        /// The one that can be read.
        supported: u32,
    },
    /// The file system refused.
    #[error("{}: {reason}", path.display())]
    Disk {
        /// The directory.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The handle was made before the process was forked.
    #[error("this store belongs to the parent process; open another one after forking")]
    Forked,
    /// A migration ended without the sequence having moved.
    #[error("the migration ended: {0}")]
    Migrate(#[from] crate::migrate::Ended),
    /// A tenant could not be erased for good.
    #[error("the tenant could not be erased on disk: {refused:?}")]
    Erase {
        /// Why.
        refused: crate::Refused,
    },
    /// A GPU cannot be used.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Gpu(#[from] kvist_kernels::cuda::Error),
    /// A selector's settings make no sense.
    #[error(transparent)]
    Select(#[from] kvist_policies::Error),
    /// A view or kernel argument does not fit.
    #[error(transparent)]
    Kernel(#[from] kvist_kernels::Error),
}

fn of_pid(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
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

fn hint(suggestion: &Option<&'static str>) -> String {
    suggestion.map(|s| format!(", did you mean {s:?}?")).unwrap_or_default()
}
