//! Bytes of files, charged before they are written.

use std::sync::Arc;

use crate::sync::atomic::{AtomicU64, Ordering};

/// A hard limit on the bytes of all files of a directory.
#[derive(Debug)]
pub(crate) struct DiskBudget {
    limit: u64,
    used: AtomicU64,
}

/// Bytes charged; given back when dropped.
#[derive(Debug)]
pub(crate) struct DiskCharge {
    budget: Arc<DiskBudget>,
    bytes: AtomicU64,
}

impl DiskBudget {
    pub(crate) fn new(limit: u64) -> Arc<DiskBudget> {
        Arc::new(DiskBudget { limit, used: AtomicU64::new(0) })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Charges `bytes`, or nothing if they do not fit below `limit - spare`.
    pub(crate) fn charge(self: &Arc<DiskBudget>, bytes: u64, spare: u64) -> Option<DiskCharge> {
        let fits = |used: u64| {
            let sum = used.checked_add(bytes)?;
            (sum.checked_add(spare)? <= self.limit).then_some(sum)
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(DiskCharge { budget: self.clone(), bytes: AtomicU64::new(bytes) })
    }

    /// Charges what is there already, whether it fits or not.
    pub(crate) fn found(self: &Arc<DiskBudget>, bytes: u64) -> DiskCharge {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        DiskCharge { budget: self.clone(), bytes: AtomicU64::new(bytes) }
    }
}

impl DiskCharge {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Gives back what exceeds `bytes`.
    pub(crate) fn shrink_to(&self, bytes: u64) {
        let before = self.bytes.fetch_min(bytes, Ordering::Relaxed);
        self.budget.used.fetch_sub(before.saturating_sub(bytes), Ordering::Relaxed);
    }
}

impl Drop for DiskCharge {
    fn drop(&mut self) {
        let times = if bug!("budget_given_back_twice") { 2 } else { 1 };
        self.budget.used.fetch_sub(self.bytes() * times, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_come_back_and_spare_room_stays() {
        let budget = DiskBudget::new(100);
        let a = budget.charge(60, 20).unwrap();
        assert!(budget.charge(21, 20).is_none());
        assert!(budget.charge(u64::MAX, 1).is_none());
        a.shrink_to(50);
        a.shrink_to(70);
        assert_eq!((a.bytes(), budget.used()), (50, 50));
        let found = budget.found(80);
        assert_eq!(budget.used(), 130);
        drop((a, found));
        assert_eq!(budget.used(), 0);
    }
}
