//! Prefill patterns as Python objects.

use kvist::policies::prefill::PATTERNS;
use kvist::prefill::Prefill;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::from_policy;
use crate::named;

/// A prefill pattern by name, with its settings.
#[pyclass(frozen, eq, name = "Prefill", module = "kvist")]
#[derive(Clone, PartialEq)]
pub(crate) struct PyPrefill(Prefill);

#[pymethods]
impl PyPrefill {
    #[new]
    #[pyo3(signature = (name, /, **settings), text_signature = "(name, /, **settings)")]
    fn new(name: &str, settings: Option<&Bound<PyDict>>) -> PyResult<PyPrefill> {
        let changed = named::changed(settings)?;
        Prefill::configured(name, changed).map(PyPrefill).map_err(|e| from_policy(&e))
    }

    /// The pattern's name.
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name()
    }

    /// All settings by name.
    #[getter]
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        named::dict(py, self.0.settings())
    }

    /// A setting.
    fn __getattr__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        named::attribute(&self.settings(py)?, "prefill", self.0.name(), name)
    }

    fn __repr__(&self, py: Python) -> PyResult<String> {
        named::repr(&self.settings(py)?, "Prefill", self.0.name())
    }

    /// For copies and pickles.
    fn __getnewargs_ex__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<((&'static str,), Bound<'py, PyDict>)> {
        Ok(((self.0.name(),), self.settings(py)?))
    }
}

/// The pattern behind a name or an object.
pub(crate) fn prefill_of(prefill: &Bound<PyAny>) -> PyResult<Prefill> {
    if let Ok(name) = prefill.extract::<String>() {
        return Prefill::parse(&name).map_err(|e| from_policy(&e));
    }
    let object = prefill.cast::<PyPrefill>().map_err(|_| {
        let found = prefill.get_type().name().map_or_else(|_| String::new(), |n| n.to_string());
        PyTypeError::new_err(format!("prefill: expected a name or a Prefill object, found {found}"))
    })?;
    Ok(object.get().0.clone())
}

/// Name, one line and source of every prefill pattern.
#[pyfunction]
pub(crate) fn prefill_presets(py: Python) -> PyResult<Vec<Bound<PyDict>>> {
    named::listed(py, PATTERNS)
}
