//! What calls of a space return, as Python's objects.

use kvist::{MissReason, Refused};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::sequence::PySequence;

/// What a refusal is called.
fn refusal(refused: &Refused) -> &'static str {
    match refused {
        Refused::AlreadyPresent => "present",
        Refused::Throttled => "throttled",
        Refused::Full => "full",
        Refused::TooLarge => "too_large",
        Refused::Io => "io",
        Refused::Timeout => "timeout",
        Refused::Closed => "closed",
        _ => "refused",
    }
}

/// A `kvist.Stored`.
pub(super) fn stored<'py>(
    py: Python<'py>,
    results: &[Result<(), Refused>],
) -> PyResult<Bound<'py, PyAny>> {
    let each = results.iter().map(|r| r.as_ref().map_or_else(refusal, |()| "stored"));
    py.import("kvist._prefix")?.getattr("Stored")?.call1((PyTuple::new(py, each)?,))
}

/// A `kvist.Restored`.
pub(super) fn restored_object(
    py: Python<'_>,
    restored: kvist::Restored,
) -> PyResult<Bound<'_, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("blocks", restored.blocks)?;
    fields.set_item("miss", miss_object(py, restored.miss)?)?;
    fields.set_item("from_disk", restored.from_disk)?;
    py.import("kvist._prefix")?.getattr("Restored")?.call((), Some(&fields))
}

/// A `kvist.Miss`, or `None`.
fn miss_object<'py>(
    py: Python<'py>,
    miss: Option<MissReason>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Some(reason) = miss else { return Ok(None) };
    let class = py.import("kvist._prefix")?.getattr("Miss")?;
    class.call1((reason.name(), reason.to_string())).map(Some)
}

/// A `kvist.Published`.
pub(super) fn published_object<'py>(
    py: Python<'py>,
    published: &kvist::Published,
) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("blocks", published.blocks)?;
    fields.set_item("new", published.new)?;
    fields.set_item("present", published.present)?;
    fields.set_item("refused", published.refused.as_ref().map(refusal))?;
    py.import("kvist._prefix")?.getattr("Published")?.call((), Some(&fields))
}

/// A `kvist.Started`.
pub(super) fn started_object(
    py: Python<'_>,
    started: kvist::Started,
) -> PyResult<Bound<'_, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("miss", miss_object(py, started.miss)?)?;
    fields.set_item("shared", started.shared)?;
    fields.set_item("from_disk", started.from_disk)?;
    fields.set_item("sequence", Bound::new(py, PySequence::new(started.sequence))?)?;
    py.import("kvist._prefix")?.getattr("Started")?.call((), Some(&fields))
}
