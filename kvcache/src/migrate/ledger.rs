//! Who owns what has come: the one place where that is decided.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;

use super::{MigrationId, Refusal};

/// Migrations that are under way, or whose source has not yet heard that they are done.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<HashMap<[u8; 16], State>>);

/// Entries at most. None is ever dropped for another: its source may still ask.
const ENTRIES_MAX: usize = 1 << 16;

#[derive(Clone, Copy, Debug)]
struct State {
    epoch: u64,
    committed: bool,
}

impl Ledger {
    /// A sequence is on its way. An earlier attempt is void from now on.
    pub(super) fn begin(&self, id: MigrationId) -> Result<(), Refusal> {
        let mut entries = self.0.lock();
        let full = entries.len() >= ENTRIES_MAX;
        let state = State { epoch: id.epoch, committed: false };
        match entries.entry(id.sequence) {
            Entry::Occupied(there) if there.get().epoch >= id.epoch => {
                Err(Refusal::Stale { known: there.get().epoch })
            }
            Entry::Occupied(mut there) => {
                there.insert(state);
                Ok(())
            }
            Entry::Vacant(_) if full => Err(Refusal::Crowded),
            Entry::Vacant(place) => {
                place.insert(state);
                Ok(())
            }
        }
    }

    /// The sequence is the destination's from here on; false if this attempt is void.
    pub(super) fn commit(&self, id: MigrationId) -> bool {
        match self.0.lock().get_mut(&id.sequence) {
            Some(state) if state.epoch == id.epoch => {
                state.committed = true;
                true
            }
            _ => false,
        }
    }

    /// Whether the destination owns the sequence under this epoch. If not, it never will.
    pub(super) fn settle(&self, id: MigrationId) -> bool {
        self.give_up(id);
        let entries = self.0.lock();
        entries.get(&id.sequence).is_some_and(|s| s.epoch == id.epoch && s.committed)
    }

    /// An attempt has failed, if it is still under way.
    pub(super) fn give_up(&self, id: MigrationId) {
        self.remove(id, false);
    }

    /// Nobody will ask for this any more.
    pub(super) fn release(&self, id: MigrationId) {
        self.remove(id, true);
    }

    fn remove(&self, id: MigrationId, committed: bool) {
        if let Entry::Occupied(there) = self.0.lock().entry(id.sequence)
            && there.get().epoch == id.epoch
            && there.get().committed == committed
        {
            there.remove();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sequence: u8, epoch: u64) -> MigrationId {
        MigrationId { sequence: [sequence; 16], epoch }
    }

    #[test]
    fn an_attempt_is_committed_once_and_only_while_nobody_settled_it() {
        let ledger = Ledger::default();
        ledger.begin(id(1, 1)).unwrap();
        assert_eq!(ledger.begin(id(1, 1)), Err(Refusal::Stale { known: 1 }));
        assert!(!ledger.settle(id(1, 1)), "it was under way");
        assert!(!ledger.commit(id(1, 1)), "and is void now");
        ledger.begin(id(1, 2)).unwrap();
        assert!(ledger.commit(id(1, 2)) && ledger.commit(id(1, 2)), "as often as one likes");
        assert!(ledger.settle(id(1, 2)) && ledger.settle(id(1, 2)));
        ledger.give_up(id(1, 2));
        assert!(ledger.settle(id(1, 2)), "what is committed is not given up");
        ledger.release(id(1, 2));
        assert!(!ledger.settle(id(1, 2)) && ledger.len() == 0);
    }

    #[test]
    fn a_later_attempt_makes_earlier_ones_void() {
        let ledger = Ledger::default();
        ledger.begin(id(1, 5)).unwrap();
        ledger.begin(id(1, 6)).unwrap();
        assert!(!ledger.commit(id(1, 5)));
        assert_eq!(ledger.begin(id(1, 4)), Err(Refusal::Stale { known: 6 }));
        ledger.give_up(id(1, 5));
        assert!(ledger.commit(id(1, 6)));
        ledger.release(id(1, 5));
        assert!(ledger.settle(id(1, 6)));
    }

    #[test]
    fn nothing_is_forgotten_for_lack_of_room() {
        let ledger = Ledger::default();
        for n in 0..ENTRIES_MAX as u128 {
            let id = MigrationId { sequence: n.to_le_bytes(), epoch: 1 };
            ledger.begin(id).unwrap();
            assert!(ledger.commit(id));
        }
        let first = MigrationId { sequence: [0; 16], epoch: 1 };
        assert_eq!(ledger.begin(id(255, 1)), Err(Refusal::Crowded));
        assert!(ledger.settle(first));
        ledger.release(first);
        ledger.begin(id(255, 1)).unwrap();
    }
}
