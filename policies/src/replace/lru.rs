//! Orders by recency alone: LRU, and LRU in two segments.

use super::nodes::{List, Nodes};
use super::queue::Queue;

/// The least recently used leaves.
#[derive(Clone, Debug)]
pub(super) struct Lru(List);

impl Lru {
    pub(super) fn new() -> Lru {
        Lru(List::new(0))
    }
}

impl Queue for Lru {
    fn insert(&mut self, nodes: &mut Nodes, block: u32, _: usize) {
        self.0.push(nodes, block);
    }

    fn touch(&mut self, nodes: &mut Nodes, block: u32, _: usize) {
        self.0.renew(nodes, block);
    }

    fn remove(&mut self, nodes: &mut Nodes, block: u32, _: usize, _: bool) {
        self.0.remove(nodes, block);
    }

    fn find(
        &mut self,
        nodes: &mut Nodes,
        _: usize,
        wanted: &mut dyn FnMut(&Nodes, u32) -> Option<u32>,
    ) -> Option<u32> {
        self.0.find(nodes, wanted)
    }

    fn len(&self) -> usize {
        self.0.len
    }
}

/// Blocks used once leave before those used again, each kind by recency; the latter have a share of the room.
/// Source: Karedla, Love and Wherry, "Caching strategies to improve disk system performance" (1994).
#[derive(Clone, Debug)]
pub(super) struct Slru {
    once: List,
    again: List,
    share: f32,
}

impl Slru {
    pub(super) fn new(share: f32) -> Slru {
        Slru { once: List::new(0), again: List::new(1), share }
    }
}

impl Queue for Slru {
    fn insert(&mut self, nodes: &mut Nodes, block: u32, _: usize) {
        self.once.push(nodes, block);
    }

    fn touch(&mut self, nodes: &mut Nodes, block: u32, capacity: usize) {
        if self.again.holds(nodes, block) {
            return self.again.renew(nodes, block);
        }
        self.once.remove(nodes, block);
        self.again.push(nodes, block);
        if self.again.len > (self.share * capacity as f32) as usize {
            let oldest = self.again.oldest;
            self.again.remove(nodes, oldest);
            self.once.push(nodes, oldest);
        }
    }

    fn remove(&mut self, nodes: &mut Nodes, block: u32, _: usize, _: bool) {
        match self.again.holds(nodes, block) {
            true => self.again.remove(nodes, block),
            false => self.once.remove(nodes, block),
        }
    }

    fn find(
        &mut self,
        nodes: &mut Nodes,
        _: usize,
        wanted: &mut dyn FnMut(&Nodes, u32) -> Option<u32>,
    ) -> Option<u32> {
        self.once.find(nodes, &mut *wanted).or_else(|| self.again.find(nodes, wanted))
    }

    fn len(&self) -> usize {
        self.once.len + self.again.len
    }
}
