//! Blocks that left a while ago: only that they were there is still known.

use std::collections::VecDeque;

/// A number for a key that is as good as different for different keys; never 0. One in four thousand million
/// others has the same, which costs a wrong guess.
pub(super) fn fingerprint(key: u64) -> u32 {
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 32) as u32).max(1)
}

/// In the queue: taken out.
const GONE: u32 = 0;
/// In the table: nothing. Else a place in the queue, counted from the first there ever was, plus one.
const FREE: u32 = 0;

/// The last blocks that left, first in, first out, found by fingerprint. At most 16 bytes for each.
#[derive(Clone, Debug, Default)]
pub(super) struct Ghosts {
    queue: VecDeque<u32>,
    /// Place of the queue's front.
    front: u32,
    /// Open addressing, at most 5/8 full.
    table: Vec<u32>,
    /// A part of the fingerprint for each place of the table, so that the queue is seldom looked at in vain.
    tags: Vec<u8>,
    len: usize,
}

fn tag(print: u32) -> u8 {
    print as u8
}

impl Ghosts {
    /// The most that one takes.
    pub(super) const BYTES: usize = 16;

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> usize {
        4 * (self.queue.capacity() + self.table.capacity()) + self.tags.capacity()
    }

    /// Takes a block out; whether it was there.
    pub(super) fn take(&mut self, print: u32) -> bool {
        let Some(at) = self.find(print) else { return false };
        let place = self.place(self.table[at]);
        self.vacate(at);
        self.queue[place] = GONE;
        self.len -= 1;
        true
    }

    /// Adds a block, of which there may be `most`; how many of the first ones are dropped for it.
    pub(super) fn add(&mut self, print: u32, most: usize) -> usize {
        self.take(print);
        if most == 0 {
            return self.shrink(0);
        }
        let dropped = self.shrink(most - 1);
        // Those taken out of the middle take room until they come to the front, but not for ever.
        let spread = self.queue.len() > self.len + self.len / 8 + 16;
        if spread || 8 * (self.len + 1) > 5 * self.table.len() || self.front > u32::MAX / 2 {
            self.renumber(most);
        }
        if self.queue.len() == self.queue.capacity() {
            self.queue.reserve_exact(self.queue.len() / 4 + 16);
        }
        self.queue.push_back(print);
        self.enter(print, self.front + self.queue.len() as u32);
        self.len += 1;
        dropped
    }

    /// Drops the first ones beyond `most`; how many.
    fn shrink(&mut self, most: usize) -> usize {
        let mut dropped = 0;
        while self.len > most || self.queue.front() == Some(&GONE) {
            let Some(&print) = self.queue.front() else { break };
            if let Some(at) = self.find(print).filter(|_| print != GONE) {
                self.vacate(at);
                self.len -= 1;
                dropped += 1;
            }
            self.queue.pop_front();
            self.front += 1;
        }
        dropped
    }

    fn place(&self, entry: u32) -> usize {
        (entry - 1 - self.front) as usize
    }

    fn home(&self, print: u32) -> usize {
        let mixed = u64::from(print.wrapping_mul(0x85eb_ca6b));
        ((mixed * self.table.len() as u64) >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.table.len() { 0 } else { at + 1 }
    }

    fn find(&self, print: u32) -> Option<usize> {
        if self.table.is_empty() {
            return None;
        }
        let mut at = self.home(print);
        while self.table[at] != FREE {
            let same = self.tags[at] == tag(print);
            if same && self.queue[self.place(self.table[at])] == print {
                return Some(at);
            }
            at = self.next(at);
        }
        None
    }

    fn enter(&mut self, print: u32, entry: u32) {
        let mut at = self.home(print);
        while self.table[at] != FREE {
            at = self.next(at);
        }
        (self.table[at], self.tags[at]) = (entry, tag(print));
    }

    /// Frees a place of the table; what stands behind it because it was taken moves up.
    fn vacate(&mut self, mut hole: usize) {
        let len = self.table.len();
        let way = |from: usize, to: usize| if to < from { to + len - from } else { to - from };
        let mut at = self.next(hole);
        while self.table[at] != FREE {
            let home = self.home(self.queue[self.place(self.table[at])]);
            if way(home, at) >= way(hole, at) {
                (self.table[hole], self.tags[hole]) = (self.table[at], self.tags[at]);
                hole = at;
            }
            at = self.next(at);
        }
        self.table[hole] = FREE;
    }

    /// Counts places anew, with a table that has room for one more.
    fn renumber(&mut self, most: usize) {
        self.queue.retain(|&print| print != GONE);
        self.front = 0;
        let wanted = (4 * self.len).min(2 * most).max(2 * self.len) + 16;
        (self.table, self.tags) = (vec![FREE; wanted], vec![0; wanted]);
        for i in 0..self.queue.len() {
            self.enter(self.queue[i], i as u32 + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_a_plain_queue(steps in prop::collection::vec((any::<bool>(), 0u64..60, 0usize..30), 0..600)) {
            let (mut ghosts, mut plain) = (Ghosts::default(), Vec::<u32>::new());
            for (adds, key, most) in steps {
                let print = fingerprint(key);
                let at = plain.iter().position(|&p| p == print);
                if adds {
                    at.map(|at| plain.remove(at));
                    let excess = (plain.len() + usize::from(most > 0)).saturating_sub(most);
                    prop_assert_eq!(ghosts.add(print, most), excess);
                    plain.drain(..excess);
                    plain.extend((most > 0).then_some(print));
                } else {
                    prop_assert_eq!(ghosts.take(print), at.is_some());
                    at.map(|at| plain.remove(at));
                }
                prop_assert_eq!(ghosts.len(), plain.len());
            }
            for print in plain {
                prop_assert!(ghosts.take(print));
            }
        }
    }

    #[test]
    fn one_takes_at_most_16_bytes() {
        for most in [1000, 40_000, 100_000] {
            let mut ghosts = Ghosts::default();
            for key in 0..4 * most as u64 {
                ghosts.add(fingerprint(key), most);
                if key % 7 == 0 {
                    ghosts.take(fingerprint(key / 2));
                }
            }
            assert!(ghosts.len() > most * 7 / 10, "{} of {most}", ghosts.len());
            assert!(ghosts.bytes() <= Ghosts::BYTES * most, "{} bytes for {most}", ghosts.bytes());
        }
    }
}
