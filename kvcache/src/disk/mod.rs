//! The Disk tier: records of blocks in append-only segments, found by key, checked when read.
//!
//! One idea carries it: *a key is visible only after the `fdatasync` that covers its record*. What
//! was acknowledged survives any crash; what was not is there whole or not at all; what is read is
//! checked against key, place and checksums before anybody sees it, and a failed check is a miss.
//!
//! Segments are written once. A segment leaves as a whole, the oldest first: records that were read
//! since they were written move to the newest segment, the others are evicted (CLOCK). Nothing in a
//! file is ever changed in place.

mod append;
mod budget;
mod clean;
pub(crate) mod dir;
mod health;
mod item;
mod open;
mod options;
mod read;
mod recover;
pub(crate) mod scan;
mod segment;
mod spans;
mod state;
mod turn;
mod write;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::format::{BlockKey, KeySecret};
use crate::miss::MissReason;
use crate::vfs::{Buf, BufPool, Dir, Lock, Vfs};

pub(crate) use budget::DiskBudget;
pub(crate) use clean::ASIDE;
pub use clean::Erased;
pub use health::{Cause, Degraded};
pub(crate) use item::{NewRecord, entry_of};
pub use options::{DiskOptions, OnVersion};
pub(crate) use read::{BlockDone, BlockReads, Expect, Place, Want, reason, reason_of_error};
pub(crate) use segment::Segment;
pub(crate) use spans::{RunDone, SpanNext, SpanReads};
pub use state::DiskUse;
pub(crate) use state::{Entry, State};
pub use write::Refused;
pub(crate) use write::Writer;

/// The records of one directory.
#[derive(Debug)]
pub(crate) struct Disk {
    vfs: Arc<dyn Vfs>,
    dir: Arc<dyn Dir>,
    options: DiskOptions,
    uuid: [u8; 16],
    secret: KeySecret,
    budget: Arc<DiskBudget>,
    buffers: BufPool,
    state: Mutex<State>,
    writer: turn::Turn<Writer>,
    health: Mutex<health::Health>,
    /// Held until the tier is closed.
    lock: Mutex<Option<Box<dyn Lock>>>,
}

impl Disk {
    /// The secret that keys this directory's hashes.
    pub(crate) fn secret(&self) -> &KeySecret {
        &self.secret
    }

    /// Whether a record of a tenant can be read now, as far as the index knows. What would only fail
    /// is not promised.
    ///
    /// # Errors
    /// [`MissReason::Absent`], [`MissReason::Degraded`].
    pub(crate) fn look(&self, key: &BlockKey, tenant: &[u8; 16]) -> Result<(), MissReason> {
        let state = self.state.lock();
        let there = state.index.get(key).is_some_and(|e| state.is_of(e, tenant));
        drop(state);
        if there { self.check_readable() } else { Err(MissReason::Absent) }
    }

    /// Forgets a record. Its bytes leave with its segment, at once if nothing else is in it.
    pub(crate) fn remove(&self, key: &BlockKey) -> bool {
        let mut state = self.state.lock();
        let Some(entry) = state.unpublish(key) else { return false };
        let last = state.segments.get(&entry.segment).is_some_and(|s| s.live_records == 0);
        drop(state);
        if last {
            self.remove_empty();
        }
        true
    }

    /// Whether the tier rests now, and reads are not tried.
    pub(crate) fn is_stuck(&self) -> bool {
        self.check_readable().is_err()
    }

    /// The clock of deadlines.
    pub(crate) fn now(&self) -> Duration {
        self.vfs.now()
    }

    /// Keeps a buffer that [`SpanReads`] handed out.
    pub(crate) fn reuse(&self, buf: Buf) {
        self.buffers.give(buf);
    }

    /// Counts bytes read.
    pub(crate) fn count_read(&self, bytes: u64) {
        self.state.lock().counts.read_bytes += bytes;
    }

    /// Refuses everything from now on, and unlocks the directory once nobody can write to it any more.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        if self.writer.retire(self.options.deadline).is_some() {
            drop(self.lock.lock().take());
        }
    }

    /// What is stored, and how the tier is.
    pub(crate) fn usage(&self) -> DiskUse {
        let mut usage = self.state.lock().usage();
        usage.budget_bytes = self.budget.limit();
        usage.used_bytes = self.budget.used();
        usage.parked_bytes = self.vfs.parked_bytes();
        usage.engine = self.vfs.name();
        let now = self.vfs.now();
        let mut health = self.health.lock();
        usage.degraded = health.degraded(now);
        usage.degraded_seconds = health.seconds();
        drop(health);
        usage
    }

    /// How long an operation may take.
    pub(crate) fn patience(&self) -> Duration {
        self.options.deadline
    }

    /// The moment by which an operation that starts now must end.
    pub(crate) fn deadline(&self) -> Duration {
        self.vfs.now() + self.options.deadline
    }

    /// Whether reads may be tried.
    fn check_readable(&self) -> Result<(), MissReason> {
        match self.health.lock().refuses_reads(self.vfs.now()) {
            true => Err(MissReason::Degraded),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
