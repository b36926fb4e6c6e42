//! What may come back: for every block the set of allowed answers.

use std::collections::BTreeMap;

use super::rig::{Rig, tenant_of};

/// The block may be there.
pub(super) const PRESENT: u8 = 1;
/// It may be missing.
pub(super) const ABSENT: u8 = 2;

/// Allowed answers by block; a block that was never put is absent.
pub(super) type Allowed = BTreeMap<u32, u8>;

/// Keeps the books of what was promised.
#[derive(Clone, Default)]
pub(super) struct Oracle {
    pub(super) allowed: Allowed,
}

impl Oracle {
    /// Whoever is acknowledged must be there from now on; whoever is not may be.
    pub(super) fn put(&mut self, n: u32, acknowledged: bool) {
        let set = if acknowledged { PRESENT } else { PRESENT | ABSENT };
        let old = self.allowed.insert(n, set);
        if !acknowledged && old == Some(PRESENT) {
            // Refused because it was there already, or it was lost and is being put again.
            self.allowed.insert(n, PRESENT | ABSENT);
        }
    }

    /// It may come back after a crash: its bytes are right, and nobody promised that it would not.
    pub(super) fn lost(&mut self, n: u32) {
        if let Some(set) = self.allowed.get_mut(&n)
            && *set != ABSENT
        {
            *set = PRESENT | ABSENT;
        }
    }

    pub(super) fn erased(&mut self, tenant: u32) {
        let of_tenant = self.allowed.iter_mut().filter(|(n, _)| tenant_of(**n) == tenant);
        of_tenant.for_each(|(_, set)| *set = ABSENT);
    }

    /// An erasure that was refused may have happened.
    pub(super) fn maybe_erased(&mut self, tenant: u32) {
        let of_tenant = self.allowed.iter_mut().filter(|(n, _)| tenant_of(**n) == tenant);
        of_tenant.for_each(|(_, set)| *set |= ABSENT);
    }

    /// Notes which blocks the store has dropped on its own.
    pub(super) fn observe(&mut self, rig: &Rig) {
        let gone: Vec<u32> = self.allowed.keys().copied().filter(|&n| !rig.is_listed(n)).collect();
        gone.into_iter().for_each(|n| self.lost(n));
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        self.allowed.keys().copied().collect()
    }
}

/// What may be seen between two moments.
pub(super) fn either(before: &Allowed, after: &Allowed) -> Allowed {
    let mut both = before.clone();
    for (n, set) in after {
        *both.entry(*n).or_insert(ABSENT) |= set;
    }
    both
}
