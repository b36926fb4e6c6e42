//! loom's locks, counters and references in the place of the real ones.

#[path = "../../../kvcache/src/sync/shim.rs"]
mod shim;

use loom::sync as checked;
pub(crate) use loom::sync::{Arc, atomic};
pub(crate) use shim::{Condvar, Mutex, MutexGuard};
