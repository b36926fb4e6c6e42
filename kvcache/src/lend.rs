//! Who keeps pages of a cache beyond its sequences, and gives them back when memory is short.

use std::fmt::Debug;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::cache::Shared;

/// Keeps pages of caches, as far as they have room.
pub(crate) trait Lender: Debug + Send + Sync {
    /// Gives back pages of this cache until `bytes` more of its budget are free, or as much as there
    /// is; whether anything was given back. Called without any lock.
    fn give_back(&self, cache: &Arc<Shared>, bytes: u64) -> bool;
}

/// The lenders of a cache that are still there.
#[derive(Debug, Default)]
pub(crate) struct Lenders(Mutex<Vec<Weak<dyn Lender>>>);

impl Lenders {
    /// Adds a lender, once.
    pub(crate) fn add(&self, lender: Weak<dyn Lender>) {
        let mut lenders = self.0.lock();
        lenders.retain(|there| there.strong_count() > 0);
        if !lenders.iter().any(|there| std::ptr::addr_eq(there.as_ptr(), lender.as_ptr())) {
            lenders.push(lender);
        }
    }

    /// Asks one lender after the other; whether any gave something back.
    pub(crate) fn give_back(&self, cache: &Arc<Shared>, bytes: u64) -> bool {
        let lenders: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        let before = cache.budget.used();
        let short = || bytes.saturating_sub(before.saturating_sub(cache.budget.used()));
        let give = |any, lender: Arc<dyn Lender>| match short() {
            0 => any,
            short => lender.give_back(cache, short) || any,
        };
        lenders.into_iter().fold(false, give)
    }
}
