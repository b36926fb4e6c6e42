//! The share of S3-FIFO's small queue, chosen by what would have done best.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::ghosts::{Ghosts, fingerprint};
use super::order::Uses;
use super::s3::{MEMORY, USES_MOST};

/// Shares that are tried.
const SHARES: [f32; 4] = [0.1, 0.3, 0.5, 0.75];
/// One in so many chains is followed.
const SAMPLE: usize = 8;
/// Requests after which a share is chosen anew, and what the hits before count from then on.
const REQUESTS: u32 = 100;
const DECAY: f64 = 0.97;

/// Blocks of a small cache from which on it tells something.
const TELLING: usize = 16;

/// Four small caches, each with another share, that see some of the chains.
#[derive(Clone, Debug)]
pub(super) struct Adaptive {
    shadows: [Shadow; SHARES.len()],
    hits: [f64; SHARES.len()],
    requests: u32,
    chosen: usize,
}

impl Adaptive {
    /// The share before anything was seen.
    pub(super) const FIRST: f32 = 0.3;
    /// What it takes for each block there is room for, in blocks that left and are remembered.
    pub(super) const MEMORY: f32 = (MEMORY + 2.5) * SHARES.len() as f32 / SAMPLE as f32;

    pub(super) fn new() -> Adaptive {
        let shadows = SHARES.map(|share| Shadow { share, ..Shadow::default() });
        Adaptive { shadows, hits: [0.0; SHARES.len()], requests: 0, chosen: 1 }
    }

    /// Notes what a request uses; a share if it is time to choose.
    pub(super) fn request(&mut self, uses: &Uses, capacity: usize) -> Option<f32> {
        self.requests += u32::from(uses.before.is_none());
        let chain = fingerprint(uses.chain);
        if (chain.wrapping_mul(5) >> 8).is_multiple_of(SAMPLE as u32) {
            for (shadow, hits) in self.shadows.iter_mut().zip(&mut self.hits) {
                *hits += shadow.request(uses, capacity / SAMPLE) as f64;
            }
        }
        if self.requests < REQUESTS {
            return None;
        }
        self.requests = 0;
        let best = (0..SHARES.len()).max_by(|&a, &b| self.hits[a].total_cmp(&self.hits[b]))?;
        let telling = capacity / SAMPLE >= TELLING;
        let better = telling && self.hits[best] > self.hits[self.chosen];
        self.hits.iter_mut().for_each(|hits| *hits *= DECAY);
        if !better {
            return None;
        }
        self.chosen = best;
        Some(SHARES[best])
    }

    pub(super) fn bytes(&self) -> usize {
        self.shadows.iter().map(Shadow::bytes).sum()
    }
}

/// [`S3`](super::s3::S3) of fingerprints, from which nothing is taken out: a third of the memory that blocks take.
#[derive(Clone, Debug, Default)]
struct Shadow {
    share: f32,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    /// Uses of what is there.
    uses: HashMap<u32, u8, BuildHasherDefault<Same>>,
    gone: Ghosts,
}

impl Shadow {
    /// Uses blocks, the last of them first; how many leading ones were there.
    fn request(&mut self, uses: &Uses, capacity: usize) -> usize {
        let there = |key: &u64| self.uses.contains_key(&fingerprint(*key));
        let reached = uses.before.as_ref().is_none_or(there);
        let hits = uses.keys.iter().take_while(|key| reached && there(key)).count();
        for &key in uses.keys.iter().rev() {
            let print = fingerprint(key);
            match self.uses.get_mut(&print) {
                Some(uses) => *uses = (*uses + 1).min(USES_MOST),
                None => {
                    self.uses.insert(print, 0);
                    match self.gone.take(print) {
                        true => self.main.push_back(print),
                        false => self.small.push_back(print),
                    }
                }
            }
        }
        while self.uses.len() > capacity {
            self.evict(capacity);
        }
        hits
    }

    fn evict(&mut self, capacity: usize) {
        loop {
            let small = self.small.len() > (self.share * capacity as f32) as usize;
            let small = small || self.main.is_empty();
            let queue = if small { &mut self.small } else { &mut self.main };
            let Some(print) = queue.pop_front() else { return };
            match self.uses.get_mut(&print) {
                Some(uses) if *uses > 0 => {
                    *uses = if small { 0 } else { *uses - 1 };
                    self.main.push_back(print);
                }
                _ => {
                    self.uses.remove(&print);
                    if small {
                        self.gone.add(print, (MEMORY * capacity as f32) as usize);
                    }
                    return;
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        let queues = 4 * (self.small.capacity() + self.main.capacity());
        // A byte of control for each entry.
        queues + self.uses.capacity() * (size_of::<(u32, u8)>() + 1) + self.gone.bytes()
    }
}

/// Fingerprints are hashes.
#[derive(Clone, Debug, Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0 << 8 | u64::from(byte));
    }

    fn write_u32(&mut self, print: u32) {
        // Tables take the bucket from the low bits and a tag from the high ones.
        self.0 = u64::from(print) << 32 | u64::from(print);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Arrival, Order, Replace};
    use super::*;

    proptest! {
        /// A small cache of fingerprints holds what an order of blocks does.
        #[test]
        fn what_is_tried_is_s3_fifo(
            capacity in 1usize..20,
            requests in prop::collection::vec(prop::collection::btree_set(0u64..40, 1..6), 1..120),
        ) {
            let mut shadow = Shadow { share: 0.1, ..Shadow::default() };
            let mut order = Order::new(Replace::S3Fifo, capacity);
            for request in requests {
                let keys: Vec<u64> = request.into_iter().collect();
                let there = keys.iter().take_while(|&&key| order.contains(key as u32)).count();
                prop_assert_eq!(shadow.request(&Uses::all(&keys), capacity), there);
                for &key in keys.iter().rev() {
                    match order.contains(key as u32) {
                        true => order.touch(key as u32),
                        false => order.insert(key as u32, &Arrival { key, ..Arrival::default() }),
                    }
                }
                while order.len() > capacity {
                    order.evict(0, |_| true);
                }
                let held = (0..40).all(|key| {
                    shadow.uses.contains_key(&fingerprint(key)) == order.contains(key as u32)
                });
                prop_assert!(held);
            }
        }
    }

    const ROOM: usize = 1000;

    #[test]
    fn what_finds_more_is_chosen() {
        let (mut adaptive, uses) = (Adaptive::new(), Uses::all(&[3, 3]));
        adaptive.hits = [1.0, 2.0, 3.0, 9.0];
        let none: Vec<Option<f32>> = (1..REQUESTS).map(|_| adaptive.request(&uses, ROOM)).collect();
        assert!(none.iter().all(Option::is_none));
        // A further part is no further request.
        assert_eq!(adaptive.request(&Uses { before: Some(3), ..uses }, ROOM), None);
        assert_eq!(adaptive.request(&uses, ROOM), Some(0.75));
        assert_eq!((adaptive.requests, adaptive.hits[3]), (0, 9.0 * DECAY));
        let again: Vec<Option<f32>> =
            (0..REQUESTS).map(|_| adaptive.request(&uses, ROOM)).collect();
        assert!(again.iter().all(Option::is_none));
        // In a small tier chance would choose.
        adaptive.hits = [9.0, 2.0, 3.0, 1.0];
        let small: Vec<Option<f32>> = (0..REQUESTS).map(|_| adaptive.request(&uses, 20)).collect();
        assert!(small.iter().all(Option::is_none));
    }

    #[test]
    fn a_request_may_come_in_parts() {
        let (mut whole, mut parts) = (Shadow::default(), Shadow::default());
        (whole.share, parts.share) = (0.5, 0.5);
        let mut hits = [0, 0];
        for keys in [[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 3, 4], [7, 2, 3, 4]] {
            let all = Uses::all(&keys);
            hits[0] += whole.request(&all, 20);
            let (first, rest) = keys.split_at(2);
            hits[1] += parts.request(&Uses { keys: first, ..all }, 20);
            hits[1] += parts.request(&Uses { keys: rest, before: Some(first[1]), ..all }, 20);
        }
        // Those after a block that was not there are none; in parts that is seen as far as the one before.
        assert_eq!(hits, [6, 8]);
    }
}
