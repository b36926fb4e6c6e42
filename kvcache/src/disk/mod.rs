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
mod blob;
mod budget;
mod clean;
mod commit;
pub(crate) mod dir;
mod direct;
mod expect;
mod health;
mod hold;
mod item;
mod open;
mod options;
mod pieces;
mod read;
mod recover;
pub(crate) mod scan;
mod segment;
mod sessions;
mod spans;
mod stage;
mod state;
mod turn;
mod write;

use std::sync::Arc;
use std::time::Duration;

use crate::format::{BlockKey, KeySecret};
use crate::journal::Journal;
use crate::miss::MissReason;
use crate::sync::Mutex;
use crate::vfs::{Buf, BufPool, Dir, Lock, Vfs};

pub(crate) use blob::BlobPlan;
pub(crate) use budget::DiskBudget;
pub(crate) use clean::ASIDE;
pub use clean::Erased;
pub(crate) use commit::Commit;
pub(crate) use expect::{Expect, Want};
pub use health::{Cause, Degraded};
pub(crate) use item::{NewRecord, entry_of};
pub use options::{DiskOptions, OnVersion};
pub(crate) use read::{BlockDone, BlockReads, Place, reason, reason_of_error};
pub(crate) use segment::Segment;
pub(crate) use sessions::{ListedSession, NotSaved, SESSIONS};
pub(crate) use spans::{Into, Part, RunDone, Span, SpanNext, SpanReads};
pub use state::DiskUse;
pub(crate) use state::{Entry, LIVE, State};
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
    sessions: turn::Turn<sessions::Sessions>,
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

    /// Whether the tier rests now, and reads are not tried.
    pub(crate) fn is_stuck(&self) -> bool {
        self.check_readable().is_err()
    }

    /// The clock of deadlines.
    pub(crate) fn now(&self) -> Duration {
        self.vfs.now()
    }

    /// Touches the memory of the buffers that reading needs, so that no reader waits for the system.
    pub(crate) fn prefault(&self) {
        let count = spans::WINDOW / spans::RUN as usize;
        let buffers: Vec<Buf> =
            (0..count).map_while(|_| self.buffers.take(2 * spans::RUN as usize)).collect();
        for mut buf in buffers {
            buf.fill(0);
            self.buffers.give(buf);
        }
    }

    /// Keeps a buffer that [`SpanReads`] handed out.
    pub(crate) fn reuse(&self, buf: Buf) {
        self.buffers.give(buf);
    }

    /// Counts bytes read.
    pub(crate) fn count_read(&self, bytes: u64) {
        self.state.lock().counts.read_bytes += bytes;
    }

    /// Tells this journal what becomes readable from now on, and what no longer is.
    pub(crate) fn tell(&self, journal: Arc<Journal>) {
        self.state.lock().journal = journal;
    }

    /// Every record that can be read and is not a live sequence's.
    pub(crate) fn keys(&self) -> Vec<BlockKey> {
        let state = self.state.lock();
        let live = |e: &Entry| state.is_of(e, &LIVE);
        state.index.iter().filter(|(_, e)| !live(e)).map(|(key, _)| *key).collect()
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

    /// Every record that can be read: its key, and where it begins and ends in sectors of its segment.
    #[cfg(feature = "testing")]
    pub(crate) fn places(&self) -> Vec<(BlockKey, std::ops::Range<u64>)> {
        let place = |(key, e): (&BlockKey, &Entry)| {
            (*key, e.position.into()..u64::from(e.position) + u64::from(e.sectors))
        };
        self.state.lock().index.iter().map(place).collect()
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
