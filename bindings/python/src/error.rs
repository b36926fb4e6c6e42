//! Errors as Python sees them: the classes of `kvist._errors`, chosen by what went wrong.

use kvist::policies;
use kvist_kernels as kernels;
use pyo3::prelude::*;

/// A class of `kvist._errors` with this message (or the import's own error).
pub(crate) fn raise(class: &str, message: String) -> PyErr {
    Python::attach(|py| {
        let made = py
            .import("kvist._errors")
            .and_then(|module| module.getattr(class))
            .and_then(|class| class.call1((message,)));
        made.map_or_else(|e| e, PyErr::from_value)
    })
}

/// A tensor's dtype is wrong.
pub(crate) fn dtype_error(what: &str, expected: &str, found: &str) -> PyErr {
    raise("DTypeError", format!("{what}: expected {expected}, found {found}"))
}

/// A tensor's shape is wrong.
pub(crate) fn shape_error(what: &str, expected: &str, found: &[usize]) -> PyErr {
    raise("ShapeError", format!("{what}: expected {expected}, found {found:?}"))
}

/// An option is wrong.
pub(crate) fn option_error(what: &str, expected: &str, found: impl std::fmt::Display) -> PyErr {
    raise("OptionError", format!("{what}: expected {expected}, found {found}"))
}

/// An error of the store.
pub(crate) fn from_store(error: kvist::Error) -> PyErr {
    use kvist::Error as E;
    let class = match &error {
        E::Shape { .. } | E::Count { .. } | E::ForeignSequence { .. } => "ShapeError",
        E::DType { .. } => "DTypeError",
        E::Layer { .. } => "RangeError",
        E::Position { .. } | E::Length { .. } => "PositionError",
        E::OverBudget { .. } => "BudgetError",
        E::Setting { .. } => "OptionError",
        E::UnknownCodec { .. } => "UnknownNameError",
        E::InUse { .. } => "InUseError",
        E::Permission { .. } => "StorePermissionError",
        E::BadMeta { .. } => "CorruptError",
        E::Version { .. } => "VersionError",
        E::NotAStore { .. } | E::NoStore { .. } | E::Disk { .. } | E::Erase { .. } => "StoreError",
        E::Session { .. } | E::OtherSession { .. } | E::Save { .. } => "StoreError",
        E::Missing { .. } | E::Demote { .. } => "StoreError",
        E::Closed => "ClosedError",
        E::Forked => "ForkedError",
        E::Select(e) => return from_policy(e),
        E::Kernel(e) => return from_kernel(e),
        E::Gpu(e) => return from_gpu(e),
        _ => "KvistError",
    };
    raise(class, error.to_string())
}

/// An error of a selector's settings.
pub(crate) fn from_policy(error: &policies::Error) -> PyErr {
    let class = match error {
        policies::Error::UnknownName { .. } => "UnknownNameError",
        _ => "OptionError",
    };
    raise(class, error.to_string())
}

/// An error of a kernel.
pub(crate) fn from_kernel(error: &kernels::Error) -> PyErr {
    let class = match error {
        kernels::Error::Shape { .. } | kernels::Error::OutOfBounds { .. } => "ShapeError",
        kernels::Error::DType { .. } => "DTypeError",
        kernels::Error::Range { what: "frame" | "slot", .. } => "RangeError",
        kernels::Error::Range { .. } => "OptionError",
        _ => "KvistError",
    };
    raise(class, error.to_string())
}

/// An error of a GPU or of what it needs.
pub(crate) fn from_gpu(error: &kernels::cuda::Error) -> PyErr {
    raise("DeviceError", error.to_string())
}

/// What can go wrong while a lock is held: turned into a Python exception only after it is released,
/// because that needs the GIL, and a thread with the GIL may wait for the lock.
pub(crate) enum Failure {
    /// The object named was closed.
    Closed(&'static str),
    /// The store refused.
    Store(kvist::Error),
}

impl From<kvist::Error> for Failure {
    fn from(error: kvist::Error) -> Failure {
        Failure::Store(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> PyErr {
        match failure {
            Failure::Closed(what) => {
                raise("ClosedError", format!("{what}: expected an open one, found it closed"))
            }
            Failure::Store(error) => from_store(error),
        }
    }
}
