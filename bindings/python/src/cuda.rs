//! What the machine has for kernels on GPUs; where Python packages keep parts of it.

use std::path::PathBuf;

use kvist_bench::doctor::Cuda;
use kvist_kernels::cuda;
use pyo3::prelude::*;

use crate::error::raise;

/// `kvist.cuda.probe`, as JSON.
#[pyfunction]
pub(crate) fn cuda_json(py: Python) -> PyResult<String> {
    let found = py.detach(Cuda::probe);
    serde_json::to_string(&found).map_err(|e| raise("KvistError", e.to_string()))
}

/// Folders of Python packages where the compiler may be, and of prebuilt kernels.
#[pyfunction]
pub(crate) fn cuda_folders(compilers: Vec<PathBuf>, prebuilt: Vec<PathBuf>) {
    cuda::search_in(compilers);
    cuda::prebuilt_in(prebuilt);
}
