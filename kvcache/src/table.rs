//! A table from block keys to small values: one vector of slots and a hash table of their numbers,
//! so that a block's entry costs its own bytes and little more.

use hashbrown::HashTable;

use crate::format::BlockKey;

/// Entries by which the slots grow at least.
const GROWTH: usize = 64;

/// A place for an entry.
#[derive(Debug)]
enum Slot<T> {
    /// The next free one, if there is one.
    Free(Option<u32>),
    Full(BlockKey, T),
}

impl<T> Slot<T> {
    fn entry(&self) -> Option<(&BlockKey, &T)> {
        match self {
            Slot::Free(_) => None,
            Slot::Full(key, value) => Some((key, value)),
        }
    }

    fn entry_mut(&mut self) -> Option<(&BlockKey, &mut T)> {
        match self {
            Slot::Free(_) => None,
            Slot::Full(key, value) => Some((key, value)),
        }
    }

    fn hash(&self) -> u64 {
        self.entry().map_or(0, |(key, _)| key.seed())
    }
}

/// Values by key. Slot numbers stay valid until their entry is removed.
#[derive(Debug)]
pub(crate) struct KeyTable<T> {
    /// Keys are keyed BLAKE3 outputs: their first bytes are as good a hash as any.
    numbers: HashTable<u32>,
    slots: Vec<Slot<T>>,
    /// The slot that was freed last.
    free: Option<u32>,
}

impl<T> Default for KeyTable<T> {
    fn default() -> KeyTable<T> {
        KeyTable { numbers: HashTable::new(), slots: Vec::new(), free: None }
    }
}

impl<T> KeyTable<T> {
    /// Bytes that an entry is charged: its slot with the slack of growing by an eighth, and its number
    /// in the hash table, which has at most 18/7 buckets of 5 bytes an entry. What the table holds
    /// never exceeds this for as many entries as there ever were at once, and a few KiB.
    pub(crate) const ENTRY_BYTES: u64 = (size_of::<Slot<T>>() as u64 * 9).div_ceil(8) + 13;

    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// The slot of a key.
    pub(crate) fn find(&self, key: &BlockKey) -> Option<u32> {
        let same = |&slot: &u32| self.slot(slot).is_some_and(|(k, _)| k == key);
        self.numbers.find(key.seed(), same).copied()
    }

    pub(crate) fn get(&self, key: &BlockKey) -> Option<&T> {
        self.find(key).and_then(|slot| self.slot(slot)).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &BlockKey) -> Option<&mut T> {
        let slot = self.find(key)?;
        self.slot_mut(slot).map(|(_, value)| value)
    }

    /// Key and value in a slot.
    pub(crate) fn slot(&self, slot: u32) -> Option<(&BlockKey, &T)> {
        self.slots.get(slot as usize).and_then(Slot::entry)
    }

    pub(crate) fn slot_mut(&mut self, slot: u32) -> Option<(&BlockKey, &mut T)> {
        self.slots.get_mut(slot as usize).and_then(Slot::entry_mut)
    }

    /// Adds a value under a key that is not there yet, or replaces the one there. Returns its slot.
    pub(crate) fn insert(&mut self, key: BlockKey, value: T) -> u32 {
        if let Some(slot) = self.find(&key) {
            self.slots[slot as usize] = Slot::Full(key, value);
            return slot;
        }
        let slot = self.vacant();
        self.slots[slot as usize] = Slot::Full(key, value);
        self.make_room();
        let slots = &self.slots;
        self.numbers.insert_unique(key.seed(), slot, |&slot| slots[slot as usize].hash());
        slot
    }

    /// A slot for a new entry.
    fn vacant(&mut self) -> u32 {
        if let Some(slot) = self.free {
            self.free = match self.slots[slot as usize] {
                Slot::Free(next) => next,
                Slot::Full(..) => None,
            };
            return slot;
        }
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(GROWTH.max(self.slots.len() / 8));
        }
        self.slots.push(Slot::Free(None));
        (self.slots.len() - 1) as u32
    }

    /// Makes room for another number. Left to itself, the hash table would count the traces of numbers
    /// that were taken out, and in the end be twice as large as its entries ask for.
    fn make_room(&mut self) {
        let len = self.numbers.len();
        if len < self.numbers.capacity() {
            return;
        }
        let mut numbers = HashTable::with_capacity(len + len / 8 + 1);
        let hash = |&slot: &u32| self.slots[slot as usize].hash();
        for slot in &self.numbers {
            numbers.insert_unique(hash(slot), *slot, hash);
        }
        self.numbers = numbers;
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, key: &BlockKey) -> Option<T> {
        let slots = &self.slots;
        let same = |&slot: &u32| slots[slot as usize].entry().is_some_and(|(k, _)| k == key);
        let slot = match self.numbers.find_entry(key.seed(), same) {
            Ok(found) => found.remove().0,
            Err(_) => return None,
        };
        let freed = Slot::Free(self.free.replace(slot));
        match std::mem::replace(&mut self.slots[slot as usize], freed) {
            Slot::Free(_) => None,
            Slot::Full(_, value) => Some(value),
        }
    }

    /// All entries, in order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&BlockKey, &T)> {
        self.slots.iter().filter_map(Slot::entry)
    }

    /// Takes out the entries that are not to stay.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&BlockKey, &mut T) -> bool) {
        let mut gone = Vec::new();
        for (key, value) in self.slots.iter_mut().filter_map(Slot::entry_mut) {
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

    /// What the least of a table may hold beyond its entries.
    const SPARE: u64 = 4096;

    impl<T> KeyTable<T> {
        /// Bytes that it holds.
        fn bytes(&self) -> u64 {
            let slots = self.slots.capacity() * size_of::<Slot<T>>();
            (slots + self.numbers.allocation_size()) as u64
        }
    }

    #[test]
    fn entries_that_come_and_go_take_no_more_than_they_are_charged() {
        let key = |n: u64| BlockKey(*blake3::hash(&n.to_le_bytes()).as_bytes());
        // Just below a full hash table of 8192, just above, and between.
        for most in [7100u64, 7200, 10_000] {
            let mut table = KeyTable::default();
            for n in 0..40 * most {
                table.insert(key(n), n);
                let there = (table.len() as u64).max(if n < most { 0 } else { most });
                let charged = there * KeyTable::<u64>::ENTRY_BYTES + SPARE;
                assert!(table.bytes() <= charged, "{} bytes for {there}", table.bytes());
                if n + 1 >= most {
                    assert_eq!(table.remove(&key(n + 1 - most)), Some(n + 1 - most));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u8..4, any::<u8>(), any::<u16>()), 0..300)) {
            let (mut table, mut map, mut most) = (KeyTable::default(), HashMap::new(), 0);
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
                most = most.max(map.len());
                prop_assert!(table.bytes() <= most as u64 * KeyTable::<u16>::ENTRY_BYTES + SPARE);
                prop_assert_eq!(table.len(), map.len());
                prop_assert_eq!(table.get(&key(n)), map.get(&key(n)));
            }
            let all: HashMap<BlockKey, u16> = table.iter().map(|(k, v)| (*k, *v)).collect();
            prop_assert_eq!(all, map);
        }
    }
}
