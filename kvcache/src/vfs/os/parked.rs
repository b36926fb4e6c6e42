//! Bytes that nobody waits for any more but the kernel still uses.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default)]
pub(super) struct Parked {
    bytes: Mutex<u64>,
    none: Condvar,
}

impl Parked {
    pub(super) fn bytes(&self) -> u64 {
        *self.bytes.lock()
    }

    pub(super) fn add(&self, bytes: usize) {
        *self.bytes.lock() += bytes as u64;
    }

    /// Call it after the memory was freed.
    pub(super) fn sub(&self, bytes: usize) {
        let mut all = self.bytes.lock();
        *all = all.checked_sub(bytes as u64).expect("no more is freed than was parked");
        if *all == 0 {
            self.none.notify_all();
        }
    }

    /// Waits until nothing is parked, at most for `limit`.
    pub(super) fn wait_until_none(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut bytes = self.bytes.lock();
        while *bytes > 0 {
            if self.none.wait_until(&mut bytes, end).timed_out() {
                return;
            }
        }
    }
}
