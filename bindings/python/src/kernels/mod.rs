//! The kernels over tensors the caller keeps, under `kvist.kernels`.

pub(crate) mod attend;
pub(crate) mod score;
pub(crate) mod select;

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use kvist_kernels::Executor;
use pyo3::prelude::*;

use crate::error::raise;
use crate::number::Whole;

/// The pool of so many threads; made once.
fn executor(threads: Whole) -> PyResult<Executor> {
    let threads = threads.threads()?;
    static POOLS: OnceLock<Mutex<HashMap<usize, Executor>>> = OnceLock::new();
    let pools = POOLS.get_or_init(Mutex::default);
    let mut pools = pools.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.get(&threads) {
        return Ok(pool.clone());
    }
    let pool = Executor::with_threads(threads).map_err(|e| raise("KvistError", e.to_string()))?;
    pools.insert(threads, pool.clone());
    Ok(pool)
}
