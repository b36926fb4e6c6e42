//! Which blocks came to which tier and left it, for whoever keeps an index of a store elsewhere.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::format::BlockKey;
use crate::sync::Mutex;

/// Changes that are kept until they are asked for; with more, everything is listed again.
const CHANGES_MAX: usize = 1 << 16;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Memory of this process.
    Host,
    /// The store's directory.
    Disk,
}

/// A block came to a tier, or left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which block.
    pub key: BlockKey,
    /// Which tier.
    pub tier: Tier,
    /// Whether it came.
    pub arrived: bool,
}

/// What changed, in the order in which it did for each tier.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether what was known before is void: the changes list all that is there.
    pub reset: bool,
    /// Repeated arrivals and departures of what is not there are possible, and mean nothing.
    pub changes: Vec<Change>,
}

/// Notes changes once somebody has asked for them. A leaf: taken while a tier is locked.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    on: AtomicBool,
    changes: Mutex<Vec<Change>>,
}

impl Journal {
    pub(crate) fn note(&self, key: &BlockKey, tier: Tier, arrived: bool) {
        if !self.on.load(Ordering::Acquire) {
            return;
        }
        let mut changes = self.changes.lock();
        if changes.len() < CHANGES_MAX {
            changes.push(Change { key: *key, tier, arrived });
            return;
        }
        self.on.store(false, Ordering::Release);
        *changes = Vec::new();
    }

    /// What was noted since the last call; `None` if it is not complete. From then on it is, if all
    /// that is there is listed after this call.
    pub(crate) fn take(&self) -> Option<Vec<Change>> {
        let mut changes = self.changes.lock();
        let taken = std::mem::take(&mut *changes);
        self.on.swap(true, Ordering::AcqRel).then_some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_noted_unasked_and_too_much_is_said_to_be() {
        let (journal, key) = (Journal::default(), BlockKey([7; 32]));
        journal.note(&key, Tier::Host, true);
        assert_eq!(journal.take(), None);
        journal.note(&key, Tier::Disk, true);
        let change = Change { key, tier: Tier::Disk, arrived: true };
        assert_eq!((journal.take(), journal.take()), (Some(vec![change]), Some(vec![])));
        (0..=CHANGES_MAX).for_each(|_| journal.note(&key, Tier::Host, false));
        assert_eq!((journal.take(), journal.take()), (None, Some(vec![])));
    }
}
