//! Locks, counters, threads and shared ownership of what is concurrent here, in one place, so that
//! model checkers can put theirs there: loom for small pieces (`tests/loom`), shuttle for the whole
//! prefix store over a simulated disk (`--cfg kvist_shuttle`, `tests/shuttle.rs`).

#[cfg(kvist_shuttle)]
mod shim;

pub(crate) use std::sync::Arc;

#[cfg(not(kvist_shuttle))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
#[cfg(not(kvist_shuttle))]
pub(crate) use std::{sync::atomic, thread};

#[cfg(kvist_shuttle)]
pub(crate) use shim::{Condvar, Mutex, MutexGuard};
#[cfg(kvist_shuttle)]
use shuttle::sync as checked;
#[cfg(kvist_shuttle)]
pub(crate) use shuttle::{sync::atomic, thread};
