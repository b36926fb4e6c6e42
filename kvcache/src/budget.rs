//! The byte budget that everything a cache holds is charged to, before it is touched.

use crate::Error;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the heap behind an `Arc`: two counts, the value and the allocator's own word, which hands
/// out multiples of 16.
pub(crate) const fn arc_bytes<T>() -> u64 {
    (3 * size_of::<usize>() + size_of::<T>()).next_multiple_of(16) as u64
}

/// A hard limit in bytes, shared by all memory of a cache.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
    /// The part of `used` that tables of pages and cells hold.
    tables: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Budget {
        Budget { limit, used: AtomicU64::new(0), tables: AtomicU64::new(0) }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn tables(&self) -> u64 {
        self.tables.load(Ordering::Relaxed)
    }

    /// Charges `bytes`, or nothing if they do not fit.
    pub(crate) fn charge(&self, bytes: u64) -> Result<(), Error> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(used) => Err(Error::OverBudget {
                needed: bytes,
                free: self.limit - used,
                budget: self.limit,
            }),
        }
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes of tables, given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    pub(crate) fn none(budget: Arc<Budget>) -> Charge {
        Charge { budget, bytes: 0 }
    }

    /// Charges as much more as is missing to `bytes`, which must not be less than before.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> Result<(), Error> {
        let more = bytes - self.bytes;
        if more > 0 {
            self.budget.charge(more)?;
            self.budget.tables.fetch_add(more, Ordering::Relaxed);
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Gives back as much as there is more than `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        self.budget.tables.fetch_sub(less, Ordering::Relaxed);
        self.budget.release(less);
        self.bytes -= less;
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_is_all_or_nothing_and_comes_back() {
        let budget = Arc::new(Budget::new(100));
        let mut charge = Charge::none(budget.clone());
        charge.grow_to(60).unwrap();
        let refused = charge.grow_to(101).unwrap_err();
        assert_eq!(refused, Error::OverBudget { needed: 41, free: 40, budget: 100 });
        assert_eq!((budget.used(), budget.tables(), charge.bytes()), (60, 60, 60));
        budget.charge(40).unwrap();
        assert!(budget.charge(u64::MAX).is_err());
        charge.shrink_to(70);
        assert_eq!((budget.used(), budget.tables(), charge.bytes()), (100, 60, 60));
        charge.shrink_to(10);
        assert_eq!((budget.used(), budget.tables(), charge.bytes()), (50, 10, 10));
        drop(charge);
        assert_eq!((budget.used(), budget.tables()), (40, 0));
    }
}
