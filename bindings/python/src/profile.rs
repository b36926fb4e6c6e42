//! Profiles as Python objects, and making them from a dump.

use std::path::PathBuf;

use kvist::Profile;
use kvist::policies::{Rules, Shape};
use kvist_bench::calibrate::{Calibration, calibrate};
use pyo3::exceptions::{PyOSError, PyTypeError};
use pyo3::prelude::*;
use serde_json::Value;

use crate::error::{from_policy, from_store, option_error, raise};
use crate::number::Whole;
use crate::select::SelectArg;

/// How each KV head of a model is read.
#[pyclass(frozen, eq, name = "Profile", module = "kvist")]
#[derive(Clone)]
pub(crate) struct PyProfile {
    profile: Profile,
    /// What was measured, where it was made here.
    report: Option<Value>,
}

impl PartialEq for PyProfile {
    fn eq(&self, other: &PyProfile) -> bool {
        self.profile == other.profile
    }
}

#[pymethods]
impl PyProfile {
    /// A profile from JSON.
    #[staticmethod]
    fn from_json(text: &str) -> PyResult<PyProfile> {
        Profile::from_json(text).map(PyProfile::of).map_err(|e| from_policy(&e))
    }

    /// The profile as JSON.
    fn to_json(&self) -> String {
        self.profile.to_json()
    }

    /// A profile from a file.
    #[staticmethod]
    fn load(path: PathBuf) -> PyResult<PyProfile> {
        PyProfile::from_json(&std::fs::read_to_string(path)?)
    }

    /// Writes the profile to a file.
    fn save(&self, path: PathBuf) -> PyResult<()> {
        Ok(std::fs::write(path, self.to_json() + "\n")?)
    }

    /// DuoAttention from the gate of every KV head, `[layers][kv_heads]`.
    #[staticmethod]
    #[pyo3(signature = (gates, *, model, q_heads, head_dim, sparsity=0.5))]
    fn duo(
        gates: Vec<Vec<f64>>,
        model: String,
        q_heads: Whole,
        head_dim: Whole,
        sparsity: f64,
    ) -> PyResult<PyProfile> {
        let (layers, kv_heads) = (gates.len(), gates.first().map_or(0, Vec::len));
        let (q_heads, dim_k) = (q_heads.get("q_heads")?, head_dim.get("head_dim")?);
        let shape = Shape { layers, q_heads, kv_heads, dim_k };
        let duo = Profile::duo(model, shape, &gates, sparsity);
        duo.map(PyProfile::of).map_err(|e| from_policy(&e))
    }

    #[getter]
    fn model(&self) -> &str {
        self.profile.model()
    }

    #[getter]
    fn layers(&self) -> usize {
        self.profile.shape().layers
    }

    #[getter]
    fn q_heads(&self) -> usize {
        self.profile.shape().q_heads
    }

    #[getter]
    fn kv_heads(&self) -> usize {
        self.profile.shape().kv_heads
    }

    #[getter]
    fn head_dim(&self) -> usize {
        self.profile.shape().dim_k
    }

    /// The class of each KV head, layer by layer.
    #[getter]
    fn heads<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        loads(py, &serde_json::to_string(self.profile.heads()).unwrap_or_default())
    }

    /// What was measured when it was made; `None` if it was read.
    #[getter]
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.report.as_ref().map(|report| loads(py, &report.to_string())).transpose()
    }

    /// Raises if it was made for another model or number of layers; the rest of the geometry is checked where
    /// the cache is made.
    fn _check(&self, model: Option<&str>, layers: usize) -> PyResult<()> {
        let shape = Shape { layers, ..self.profile.shape() };
        self.profile.check(model.map(str::as_bytes), shape).map_err(|e| from_policy(&e))
    }

    fn __repr__(&self) -> String {
        let shape = self.profile.shape();
        let (model, layers, kv_heads) = (self.profile.model(), shape.layers, shape.kv_heads);
        format!("Profile(model={model:?}, layers={layers}, kv_heads={kv_heads})")
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        Ok((py.get_type::<PyProfile>().getattr("from_json")?, (self.to_json(),)))
    }
}

fn loads<'py>(py: Python<'py>, json: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (json,))
}

impl PyProfile {
    fn of(profile: Profile) -> PyProfile {
        PyProfile { profile, report: None }
    }

    /// A profile of a cache or sequence as a Python object.
    pub(crate) fn object(py: Python, profile: Option<&Profile>) -> PyResult<Option<Py<PyProfile>>> {
        profile.map(|profile| Py::new(py, PyProfile::of(profile.clone()))).transpose()
    }
}

/// The profile behind an argument: a `Profile`, or the path of one.
pub(crate) fn profile_of(argument: &Bound<PyAny>) -> PyResult<Profile> {
    if let Ok(profile) = argument.cast::<PyProfile>() {
        return Ok(profile.get().profile.clone());
    }
    match argument.extract::<PathBuf>() {
        Ok(path) => Ok(PyProfile::load(path)?.profile),
        Err(_) => Err(PyTypeError::new_err(format!(
            "profile: expected a Profile or the path of one, found {}",
            argument.get_type().name()?
        ))),
    }
}

/// A profile made from a dump, and the report in words.
#[pyfunction]
#[pyo3(signature = (dump, select, budget, steps, streaming, dense, sparsity, model))]
#[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
pub(crate) fn _calibrate(
    py: Python,
    dump: PathBuf,
    select: SelectArg,
    budget: Whole,
    steps: Whole,
    streaming: Option<f64>,
    dense: Option<f64>,
    sparsity: Option<f64>,
    model: Option<String>,
) -> PyResult<(PyProfile, String)> {
    for (what, share) in [("streaming", streaming), ("dense", dense)] {
        if let Some(x) = share.filter(|x| !(0.0..=1.0).contains(x)) {
            return Err(option_error(what, "None or 0 to 1", x));
        }
    }
    let select = select.resolve(py, Some(budget.get("budget")?))?;
    let rules = Rules { streaming, dense };
    let steps = steps.get("steps")?;
    let how = Calibration { rules, sparsity, steps, model, ..Calibration::new(select) };
    let made = py.detach(|| calibrate(&dump, &how, |_, _| ())).map_err(failed)?;
    let text = made.report.to_string();
    let report = serde_json::to_value(&made.report).ok();
    Ok((PyProfile { profile: made.profile, report }, text))
}

fn failed(error: kvist_bench::Error) -> PyErr {
    match error {
        kvist_bench::Error::Store(error) => from_store(error),
        kvist_bench::Error::Io { .. } => PyOSError::new_err(error.to_string()),
        error => raise("OptionError", error.to_string()),
    }
}
