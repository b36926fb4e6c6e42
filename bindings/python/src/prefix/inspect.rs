//! Looking at a store's directory; what is found travels as JSON.

use std::path::PathBuf;

use kvist::format::BlockKey;
use kvist::inspect::{StoreView, VerifyOptions};
use pyo3::prelude::*;

use super::bytes32;
use crate::error::{from_store, raise};

fn json(value: &impl serde::Serialize) -> PyResult<String> {
    serde_json::to_string(value).map_err(|e| raise("KvistError", e.to_string()))
}

/// `kvist.verify`, as JSON.
#[pyfunction]
pub(crate) fn verify_json(
    py: Python,
    path: PathBuf,
    strict: bool,
    allow_shared_dir: bool,
    threads: usize,
) -> PyResult<String> {
    let options = VerifyOptions { strict, allow_shared_dir, threads, progress: None };
    let report = py.detach(|| StoreView::open(path)?.verify(&options)).map_err(from_store)?;
    json(&report)
}

/// `kvist.inspect`, as JSON.
#[pyfunction]
pub(crate) fn inspect_json(py: Python, path: PathBuf) -> PyResult<String> {
    let found = py.detach(|| Ok(StoreView::open(path)?.inventory())).map_err(from_store)?;
    json(&found)
}

/// `kvist.why`, as JSON.
#[pyfunction]
pub(crate) fn why_json(py: Python, path: PathBuf, key: &[u8]) -> PyResult<String> {
    let key = BlockKey(bytes32(key, "key")?);
    let found = py.detach(|| Ok(StoreView::open(path)?.why(&key))).map_err(from_store)?;
    json(&found)
}
