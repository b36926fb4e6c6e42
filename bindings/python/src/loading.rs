//! `kvist._kvist.Loading`: whether stored blocks are worth loading.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kvist::policies::gain::Tier;
use kvist::policies::loading::{Found, Loading};
use pyo3::prelude::*;

use crate::error::option_error;

/// Learns how quickly prompts are computed and blocks loaded, and says which blocks to load.
#[pyclass(frozen, name = "Loading", module = "kvist._kvist")]
pub(crate) struct PyLoading(Mutex<Loading>);

/// Seconds to compute, before the first byte, and to move the bytes.
type Gain = (f64, f64, f64);

impl PyLoading {
    fn lock(&self) -> MutexGuard<'_, Loading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyLoading {
    /// Loads what gains more than `margin` seconds.
    #[new]
    #[pyo3(signature = (margin=0.0))]
    fn new(margin: f64) -> PyResult<PyLoading> {
        match margin.is_nan() {
            true => Err(option_error("margin", "seconds", margin)),
            false => Ok(PyLoading(Mutex::new(Loading::new(margin)))),
        }
    }

    /// Learns that tokens of prompts were computed.
    fn computed(&self, tokens: u64, seconds: f64) {
        self.lock().computed(tokens, seconds);
    }

    /// Learns that bytes came from memory and from disk in `seconds`, asked for and noticed in `lookup`
    /// more.
    fn loaded(&self, host_bytes: u64, disk_bytes: u64, seconds: f64, lookup: f64) {
        self.lock().loaded([host_bytes, disk_bytes, 0], seconds, lookup);
    }

    /// Learns that nothing came from disk in `seconds`.
    fn stuck(&self, seconds: f64) {
        self.lock().stuck(Tier::Disk, seconds);
    }

    /// What to do with `blocks` leading blocks, `near` of them in memory, `near_first` before the first
    /// that is not, while the oldest load has been under way for `waiting` seconds: "load", "learn",
    /// "near" or "compute"; how many leading blocks to load; and what all of them would gain, in
    /// seconds to compute, before the first byte and to move the bytes, if that is known.
    #[pyo3(signature = (*, block_tokens, block_bytes, blocks, near, near_first, waiting))]
    fn choose(
        &self,
        block_tokens: u64,
        block_bytes: u64,
        blocks: u64,
        near: u64,
        near_first: u64,
        waiting: f64,
    ) -> (&'static str, u64, Option<Gain>) {
        let found = Found { block_tokens, block_bytes, blocks, near, near_first };
        let choice = self.lock().choose(&found, waiting);
        let gain = choice.gain.map(|g| (g.compute, g.lookup, g.transfer + g.decode));
        (choice.verdict.name(), choice.blocks, gain)
    }

    /// Whether blocks that were not loaded are to be read for trial at `now` (seconds of any clock).
    fn try_now(&self, now: f64) -> bool {
        self.lock().try_now(now)
    }

    /// Learns what a trial read from disk (`far`) or from memory; with 0 seconds it says nothing.
    fn tried(&self, far: bool, bytes: u64, seconds: f64, now: f64) {
        let tier = if far { Tier::Disk } else { Tier::Host };
        self.lock().tried(tier, bytes, seconds, now);
    }

    /// Tokens computed and bytes loaded from memory and from disk in a second; `None` where that is not
    /// known yet.
    #[getter]
    fn rates(&self) -> (Option<f64>, Option<f64>, Option<f64>) {
        let rates = *self.lock().rates();
        let tier = |tier| rates.tier(tier).per_second();
        (rates.prefill.per_second(), tier(Tier::Host), tier(Tier::Disk))
    }
}
