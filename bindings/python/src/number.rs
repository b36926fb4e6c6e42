//! Whole numbers as arguments: a negative or huge one becomes an error that names the argument.

use kvist_kernels::Executor;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

use crate::error::{option_error, raise};

const THREADS_MAX: usize = Executor::THREADS_MAX;

/// A whole number; one outside `usize` is kept as text, for the error.
#[derive(Clone)]
pub(crate) struct Whole(Result<usize, String>);

impl From<usize> for Whole {
    fn from(n: usize) -> Whole {
        Whole(Ok(n))
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Whole {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Whole> {
        match object.extract::<usize>() {
            Ok(n) => Ok(Whole(Ok(n))),
            Err(e) if e.is_instance_of::<PyOverflowError>(object.py()) => {
                Ok(Whole(Err(object.str()?.to_string())))
            }
            Err(e) => Err(e),
        }
    }
}

impl Whole {
    /// The number; `OptionError` if it is outside `usize`.
    pub(crate) fn get(self, what: &str) -> PyResult<usize> {
        self.named("OptionError", what)
    }

    /// The number of a layer; negative ones do not count from the end, they are outside every cache.
    pub(crate) fn layer(self) -> PyResult<usize> {
        self.named("RangeError", "layer")
    }

    /// A position or length.
    pub(crate) fn position(self, what: &str) -> PyResult<usize> {
        self.named("PositionError", what)
    }

    /// The size of a pool.
    pub(crate) fn threads(self) -> PyResult<usize> {
        match self.get("threads")? {
            n @ 1..=THREADS_MAX => Ok(n),
            n => Err(option_error("threads", &format!("1..={THREADS_MAX}"), n)),
        }
    }

    fn named(self, class: &str, what: &str) -> PyResult<usize> {
        self.0.map_err(|found| {
            let expected = if found.starts_with('-') { "0 or more" } else { "below 2^64" };
            raise(class, format!("{what}: expected {expected}, found {found}"))
        })
    }
}

/// `get` of an optional number.
pub(crate) fn optional(n: Option<Whole>, what: &str) -> PyResult<Option<usize>> {
    n.map(|n| n.get(what)).transpose()
}
