//! A segment file that is held open, and the bytes it is charged for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::budget::DiskCharge;
use crate::vfs::File;

/// An open segment. Readers hold it, so that its bytes are given back only when nobody reads any
/// more; the file's name may be gone before that.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) file: Arc<dyn File>,
    /// Derives the key of its sealed records.
    pub(crate) seal: [u8; 32],
    pub(crate) tenant: [u8; 16],
    charge: DiskCharge,
    /// A write or sync failed: what was acknowledged before is still there, nothing is added.
    poisoned: AtomicBool,
    /// It has records that no `fdatasync` covers yet.
    unsynced: AtomicBool,
    read_errors: AtomicU32,
}

impl Segment {
    pub(crate) fn new(
        id: u32,
        file: Arc<dyn File>,
        seal: [u8; 32],
        tenant: [u8; 16],
        charge: DiskCharge,
    ) -> Segment {
        let (poisoned, unsynced) = (AtomicBool::new(false), AtomicBool::new(false));
        let read_errors = AtomicU32::new(0);
        Segment { id, file, seal, tenant, charge, poisoned, unsynced, read_errors }
    }

    /// Bytes charged for the file.
    pub(crate) fn charged(&self) -> u64 {
        self.charge.bytes()
    }

    /// The file will not grow beyond `bytes`.
    pub(crate) fn finish(&self, bytes: u64) {
        self.charge.shrink_to(bytes);
    }

    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// Notes whether an `fdatasync` covers everything in it. Whoever has the writer's turn says so.
    pub(crate) fn set_synced(&self, synced: bool) {
        self.unsynced.store(!synced, Ordering::Relaxed);
    }

    pub(crate) fn is_synced(&self) -> bool {
        !self.unsynced.load(Ordering::Relaxed)
    }

    /// Counts a failed read; from the second on the segment is not to be trusted.
    pub(crate) fn read_failed(&self) -> bool {
        self.read_errors.fetch_add(1, Ordering::Relaxed) >= 1
    }
}
