//! `kvist.Pinned`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kvist::Pinned;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::own::Own;

/// Blocks that stay in memory until it is closed.
#[pyclass(frozen, name = "Pinned", module = "kvist")]
pub(crate) struct PyPinned {
    inner: Own<Mutex<Option<Pinned>>>,
}

impl PyPinned {
    pub(super) fn new(pinned: Pinned) -> PyPinned {
        PyPinned { inner: Own::new(Mutex::new(Some(pinned))) }
    }

    fn lock(&self) -> PyResult<MutexGuard<'_, Option<Pinned>>> {
        Ok(self.inner.get()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl PyPinned {
    /// Lets them leave again. Closing twice is fine.
    fn close(&self, py: Python) -> PyResult<()> {
        let pinned = self.lock()?.take();
        py.detach(|| drop(pinned));
        Ok(())
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.lock()?.as_ref().map_or(0, Pinned::len))
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python, _exception: &Bound<PyTuple>) -> PyResult<()> {
        self.close(py)
    }
}
