//! A table from block keys to small values: one vector of slots and a hash table of their numbers,
//! so that a block's entry costs its own bytes and little more.

use hashbrown::HashTable;

use crate::format::BlockKey;

/// Entries by which the slots grow at least.
const GROWTH: usize = 64;

/// Values by key. Slot numbers stay valid until their entry is removed.
#[derive(Debug)]
pub(crate) struct KeyTable<T> {
    /// Keys are keyed BLAKE3 outputs: their first bytes are as good a hash as any.
    numbers: HashTable<u32>,
    slots: Vec<Option<(BlockKey, T)>>,
    free: Vec<u32>,
}

impl<T> Default for KeyTable<T> {
    fn default() -> KeyTable<T> {
        KeyTable { numbers: HashTable::new(), slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> KeyTable<T> {
    /// Bytes that an entry is charged: its slot with the slack of growing by an eighth, its number
    /// in the free list and, at the lowest load, in the hash table.
    pub(crate) const ENTRY_BYTES: u64 =
        (size_of::<Option<(BlockKey, T)>>() as u64) * 9 / 8 + 4 + 12;

    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }

    fn at(&self, slot: u32) -> Option<&(BlockKey, T)> {
        self.slots.get(slot as usize).and_then(Option::as_ref)
    }

    /// The slot of a key.
    pub(crate) fn find(&self, key: &BlockKey) -> Option<u32> {
        let same = |&slot: &u32| self.at(slot).is_some_and(|(k, _)| k == key);
        self.numbers.find(key.seed(), same).copied()
    }

    pub(crate) fn get(&self, key: &BlockKey) -> Option<&T> {
        self.find(key).and_then(|slot| self.at(slot)).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &BlockKey) -> Option<&mut T> {
        let slot = self.find(key)?;
        self.slot_mut(slot).map(|(_, value)| value)
    }

    /// Key and value in a slot.
    pub(crate) fn slot(&self, slot: u32) -> Option<(&BlockKey, &T)> {
        self.at(slot).map(|(k, v)| (k, v))
    }

    pub(crate) fn slot_mut(&mut self, slot: u32) -> Option<(&BlockKey, &mut T)> {
        self.slots.get_mut(slot as usize).and_then(Option::as_mut).map(|(k, v)| (&*k, v))
    }

    /// Adds a value under a key that is not there yet, or replaces the one there. Returns its slot.
    pub(crate) fn insert(&mut self, key: BlockKey, value: T) -> u32 {
        if let Some(slot) = self.find(&key) {
            self.slots[slot as usize] = Some((key, value));
            return slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            if self.slots.len() == self.slots.capacity() {
                self.slots.reserve_exact(GROWTH.max(self.slots.len() / 8));
            }
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some((key, value));
        let slots = &self.slots;
        let hash = |&slot: &u32| slots[slot as usize].as_ref().map_or(0, |(k, _)| k.seed());
        self.numbers.insert_unique(key.seed(), slot, hash);
        slot
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, key: &BlockKey) -> Option<T> {
        let slots = &self.slots;
        let same = |&slot: &u32| slots[slot as usize].as_ref().is_some_and(|(k, _)| k == key);
        let slot = match self.numbers.find_entry(key.seed(), same) {
            Ok(found) => found.remove().0,
            Err(_) => return None,
        };
        self.free.push(slot);
        self.slots[slot as usize].take().map(|(_, value)| value)
    }

    /// All entries, in order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&BlockKey, &T)> {
        self.slots.iter().flatten().map(|(k, v)| (k, v))
    }

    /// Takes out the entries that are not to stay.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&BlockKey, &mut T) -> bool) {
        let mut gone = Vec::new();
        for (key, value) in self.slots.iter_mut().flatten() {
            if !stays(key, value) {
                gone.push(*key);
            }
        }
        gone.iter().for_each(|key| drop(self.remove(key)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> BlockKey {
        // Few distinct hashes, so that keys collide in them and differ elsewhere.
        let mut key = [0; 32];
        (key[0], key[31]) = (n % 3, n);
        BlockKey(key)
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u8..4, any::<u8>(), any::<u16>()), 0..300)) {
            let (mut table, mut map) = (KeyTable::default(), HashMap::new());
            for (what, n, value) in steps {
                match what {
                    0 | 1 => {
                        let slot = table.insert(key(n), value);
                        prop_assert_eq!(table.slot(slot), Some((&key(n), &value)));
                        map.insert(key(n), value);
                    }
                    2 => prop_assert_eq!(table.remove(&key(n)), map.remove(&key(n))),
                    _ => {
                        table.retain(|_, v| *v % 7 != 0);
                        map.retain(|_, v| *v % 7 != 0);
                    }
                }
                prop_assert_eq!(table.len(), map.len());
                prop_assert_eq!(table.get(&key(n)), map.get(&key(n)));
            }
            let all: HashMap<BlockKey, u16> = table.iter().map(|(k, v)| (*k, *v)).collect();
            prop_assert_eq!(all, map);
        }
    }
}
