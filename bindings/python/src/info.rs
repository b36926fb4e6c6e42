//! What an `attend` read and proved, and statistics.

use std::f32::consts::LN_2;

use kvist::AttendInfo;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::dlpack::{Storage, numpy};

/// What one `attend` read and proved, for one sequence.
#[pyclass(frozen, name = "AttendInfo", module = "kvist")]
pub(crate) struct PyAttendInfo {
    info: AttendInfo,
    q_heads: usize,
    /// A single query given without its own dimension: results have none either.
    flat: bool,
}

impl PyAttendInfo {
    pub(crate) fn new(
        py: Python,
        info: AttendInfo,
        q_heads: usize,
        flat: bool,
    ) -> PyResult<Py<Self>> {
        Py::new(py, PyAttendInfo { info, q_heads, flat })
    }

    /// `[q_heads]` or `[queries, q_heads]`.
    fn per_head(&self, len: usize) -> Vec<usize> {
        match self.flat {
            true => vec![len],
            false => vec![len / self.q_heads, self.q_heads],
        }
    }
}

#[pymethods]
impl PyAttendInfo {
    /// Natural log of the sum of exp(scale q.k) over the tokens read, f32 `[q_heads]` (or
    /// `[queries, q_heads]`).
    #[getter]
    fn lse(&self, py: Python) -> PyResult<Py<PyAny>> {
        let shape = self.per_head(self.info.lse2.len());
        numpy(py, Storage::of_f32(self.info.lse2.iter().map(|x| x * LN_2), &shape))
    }

    /// Tokens read per KV head, u32 `[kv_heads]`.
    #[getter]
    fn tokens_read(&self, py: Python) -> PyResult<Py<PyAny>> {
        numpy(py, Storage::of_u32(&self.info.tokens_read))
    }

    /// Proven upper bound of the softmax mass not read, f32 `[q_heads]`; `None` if the selector cannot
    /// bound it or was not asked to.
    #[getter]
    fn missed_mass_bound(&self, py: Python) -> PyResult<Option<Py<PyAny>>> {
        let bound = self.info.missed_mass_bound.as_ref();
        bound.map(|b| numpy(py, Storage::of_f32(b.iter().copied(), &[b.len()]))).transpose()
    }

    /// Positions read, ascending, one u32 array per KV head; `None` if not asked for.
    #[getter]
    fn selected<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let Some(selected) = &self.info.selected else { return Ok(None) };
        let arrays = selected.iter().map(|ids| numpy(py, Storage::of_u32(ids)));
        PyList::new(py, arrays.collect::<PyResult<Vec<_>>>()?).map(Some)
    }

    /// Bytes read: `summary`, `keys` (read for scoring alone) and `kv` (attended).
    #[getter]
    fn bytes_read<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("summary", self.info.bytes.summary)?;
        dict.set_item("keys", self.info.bytes.keys)?;
        dict.set_item("kv", self.info.bytes.kv)?;
        Ok(dict)
    }

    fn __repr__(&self) -> String {
        let bytes = &self.info.bytes;
        format!(
            "AttendInfo(tokens_read={:?}, bytes_read={})",
            self.info.tokens_read,
            bytes.summary + bytes.keys + bytes.kv
        )
    }
}

/// An instance of the dataclass `kvist._stats.<class>` with these fields.
pub(crate) fn stats_object<'py>(
    py: Python<'py>,
    class: &str,
    fields: &[(&str, u64)],
) -> PyResult<Bound<'py, PyAny>> {
    let dict = PyDict::new(py);
    for (name, value) in fields {
        dict.set_item(name, value)?;
    }
    py.import("kvist._stats")?.getattr(class)?.call((), Some(&dict))
}

/// An instance of the dataclass `kvist.SessionInfo`.
pub(crate) fn session_object(
    py: Python<'_>,
    session: kvist::SessionInfo,
) -> PyResult<Bound<'_, PyAny>> {
    let dict = PyDict::new(py);
    dict.set_item("name", session.name)?;
    dict.set_item("tokens", session.tokens)?;
    dict.set_item("bytes", session.bytes)?;
    dict.set_item("written", session.written)?;
    dict.set_item("model", PyBytes::new(py, &session.model))?;
    dict.set_item("missing", session.missing.map(|reason| reason.to_string()))?;
    py.import("kvist._stats")?.getattr("SessionInfo")?.call((), Some(&dict))
}
