//! Objects that are a name with settings: what selectors and prefill patterns have in common.

use kvist::policies::Preset;
use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Map, Value};

use crate::error::option_error;

/// Settings given as keywords.
pub(crate) fn changed(settings: Option<&Bound<PyDict>>) -> PyResult<Map<String, Value>> {
    let mut changed = Map::new();
    for (key, value) in settings.into_iter().flatten() {
        let key: String = key.extract()?;
        changed.insert(key.clone(), json_of(&key, &value)?);
    }
    Ok(changed)
}

/// All settings as a dict.
pub(crate) fn dict(py: Python<'_>, settings: Map<String, Value>) -> PyResult<Bound<'_, PyDict>> {
    let text = Value::Object(settings).to_string();
    Ok(py.import("json")?.call_method1("loads", (text,))?.cast_into()?)
}

/// A setting as an attribute.
pub(crate) fn attribute<'py>(
    settings: &Bound<'py, PyDict>,
    what: &str,
    of: &str,
    name: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let found = settings.get_item(name)?;
    found.ok_or_else(|| PyAttributeError::new_err(format!("{what} {of:?} has no setting {name:?}")))
}

/// As it is made.
pub(crate) fn repr(settings: &Bound<PyDict>, class: &str, name: &str) -> PyResult<String> {
    let mut text = format!("{class}({name:?}");
    for (key, value) in settings {
        text += &format!(", {key}={}", value.repr()?);
    }
    Ok(text + ")")
}

/// A setting's value as JSON: whole numbers of any type, floats, text, `None` and lists of these.
fn json_of(key: &str, value: &Bound<PyAny>) -> PyResult<Value> {
    let py = value.py();
    let options = PyDict::new(py);
    options.set_item("default", py.import("operator")?.getattr("index")?)?;
    options.set_item("allow_nan", false)?;
    let text = py.import("json")?.call_method("dumps", (value,), Some(&options));
    let parsed = text.ok().and_then(|t| serde_json::from_str(&t.extract::<String>().ok()?).ok());
    parsed.ok_or_else(|| option_error(key, "a finite number, text, None or a list", value))
}

/// Name, one line and source of each.
pub(crate) fn listed<'py>(
    py: Python<'py>,
    presets: &[Preset],
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let preset = |p: &Preset| {
        let dict = PyDict::new(py);
        dict.set_item("name", p.name)?;
        dict.set_item("about", p.about)?;
        dict.set_item("source", p.source)?;
        Ok(dict)
    };
    presets.iter().map(preset).collect()
}
