//! The prefix store: `kvist.PrefixStore` and what comes from it.

mod args;
pub(crate) mod inspect;
pub(crate) mod lease;
mod own;
pub(crate) mod pinned;
mod result;
pub(crate) mod space;
pub(crate) mod store;
pub(crate) mod ticket;
mod tokens;

use std::time::Duration;

use pyo3::prelude::*;

use crate::error::option_error;
use crate::number::Whole;

/// A longest wait: more would overflow clocks.
const PATIENCE_MAX: f64 = 1e9;

/// Seconds as a duration; `None` waits as good as for ever.
fn patience(seconds: Option<f64>, what: &str) -> PyResult<Duration> {
    match seconds {
        None => Ok(Duration::from_secs_f64(PATIENCE_MAX)),
        Some(s) if s >= 0.0 => Ok(Duration::from_secs_f64(s.min(PATIENCE_MAX))),
        Some(s) => Err(option_error(what, "0 or more seconds", s)),
    }
}

/// The number of a source of hints; too large ones are refused by the store.
fn source_of(source: Whole) -> PyResult<u8> {
    Ok(u8::try_from(source.get("source")?).unwrap_or(u8::MAX))
}

/// Exactly 32 bytes.
fn bytes32(bytes: &[u8], what: &str) -> PyResult<[u8; 32]> {
    <[u8; 32]>::try_from(bytes)
        .map_err(|_| option_error(what, "32 bytes", format!("{} bytes", bytes.len())))
}
