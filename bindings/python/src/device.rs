//! The device tier's settings, and what it holds and has done.

use kvist::{DeviceOptions, DeviceUse};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::dlpack;
use crate::error::option_error;
use crate::select::parse_bytes;

/// The keywords `device` and `device_*` of a cache.
pub(crate) struct DeviceArgs<'a, 'py> {
    pub(crate) device: Option<&'a Bound<'py, PyAny>>,
    pub(crate) bytes: Option<&'a Bound<'py, PyAny>>,
    pub(crate) memory: Option<&'a Bound<'py, PyAny>>,
    pub(crate) optional: bool,
}

impl DeviceArgs<'_, '_> {
    /// `None` without a device.
    pub(crate) fn options(&self) -> PyResult<Option<DeviceOptions>> {
        let Some(device) = self.device else {
            let given = [
                ("device_bytes", self.bytes.is_some()),
                ("device_memory", self.memory.is_some()),
                ("device_optional", self.optional),
            ];
            return match given.iter().find(|(_, given)| *given) {
                Some((name, _)) => Err(option_error(name, "device= beside it", "none")),
                None => Ok(None),
            };
        };
        let ordinal = ordinal(device)?;
        let mut options = DeviceOptions::default().ordinal(ordinal).optional(self.optional);
        match (self.bytes, self.memory) {
            (Some(_), Some(_)) => {
                return Err(option_error("device_bytes", "it or device_memory", "both"));
            }
            (Some(bytes), None) => options = options.bytes(parse_bytes(bytes)?),
            (None, Some(memory)) => options = dlpack::lend(options, memory, ordinal)?,
            (None, None) => {}
        }
        Ok(Some(options))
    }
}

/// A GPU's number: as one, or as `"cuda"` (0) or `"cuda:1"`.
fn ordinal(device: &Bound<PyAny>) -> PyResult<usize> {
    let of_text = |text: String| match text.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    };
    let found = match device.extract::<String>() {
        Ok(text) => of_text(text),
        Err(_) => device.extract().ok(),
    };
    found.ok_or_else(|| option_error("device", "a GPU's number, \"cuda\" or \"cuda:1\"", device))
}

/// An instance of the dataclass `kvist.DeviceUse`.
pub(crate) fn device_object(py: Python<'_>, used: DeviceUse) -> PyResult<Bound<'_, PyAny>> {
    let dict = PyDict::new(py);
    dict.set_item("name", used.name)?;
    for (name, value) in [
        ("budget_bytes", used.budget_bytes),
        ("used_bytes", used.used_bytes),
        ("page_hits", used.page_hits),
        ("page_misses", used.page_misses),
        ("copied_bytes", used.copied_bytes),
        ("prefetched", used.prefetched),
        ("pages_in_place", used.pages_in_place),
        ("pages_on_cpu", used.pages_on_cpu),
        ("calls", used.calls),
        ("selections", used.selections),
        ("calls_on_cpu", used.calls_on_cpu),
    ] {
        dict.set_item(name, value)?;
    }
    dict.set_item("degraded", used.degraded.as_ref().map(|d| d.cause.to_string()))?;
    dict.set_item("degraded_seconds", used.degraded.map(|d| d.seconds))?;
    py.import("kvist._stats")?.getattr("DeviceUse")?.call((), Some(&dict))
}
