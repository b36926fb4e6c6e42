//! `kvist.Lease`: a block's bytes where they are.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::own::Own;

/// A block's bytes in canonical order, read-only, held in memory as long as this object or an array
/// over it: `numpy.asarray(lease)`, `memoryview(lease.array)`.
#[pyclass(frozen, name = "Lease", module = "kvist")]
pub(crate) struct PyLease {
    inner: Own<kvist::Lease>,
}

impl PyLease {
    pub(super) fn new(lease: kvist::Lease) -> PyLease {
        PyLease { inner: Own::new(lease) }
    }
}

#[pymethods]
impl PyLease {
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let lease = self.inner.get()?;
        let dict = PyDict::new(py);
        dict.set_item("version", 3)?;
        dict.set_item("typestr", "|u1")?;
        dict.set_item("shape", PyTuple::new(py, [lease.len()])?)?;
        dict.set_item("data", (lease.as_ptr().expose_provenance(), true))?;
        Ok(dict)
    }

    /// The bytes as a read-only NumPy array of `uint8`, without a copy.
    #[getter]
    fn array<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("numpy")?.call_method1("asarray", (slf,))
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.inner.get()?.len())
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("a Lease holds memory of a store and cannot be pickled"))
    }

    fn __repr__(&self) -> String {
        match self.__len__() {
            Ok(len) => format!("Lease(bytes={len})"),
            Err(_) => "Lease(of the parent process)".to_owned(),
        }
    }
}
