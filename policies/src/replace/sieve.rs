//! SIEVE: first in, first out, but what was used since the hand last passed stays.

use super::nodes::{List, NONE, Nodes};
use super::queue::Queue;

/// Source: Zhang et al., "SIEVE is simpler than LRU" (NSDI 2024), algorithm 1.
#[derive(Clone, Debug)]
pub(super) struct Sieve {
    all: List,
    /// The next block to look at; `NONE` for the oldest.
    hand: u32,
}

impl Sieve {
    pub(super) fn new() -> Sieve {
        Sieve { all: List::new(0), hand: NONE }
    }
}

impl Queue for Sieve {
    fn insert(&mut self, nodes: &mut Nodes, block: u32, _: usize) {
        nodes.get_mut(block).count = 0;
        self.all.push(nodes, block);
    }

    fn touch(&mut self, nodes: &mut Nodes, block: u32, _: usize) {
        nodes.get_mut(block).count = 1;
    }

    fn remove(&mut self, nodes: &mut Nodes, block: u32, _: usize, _: bool) {
        if self.hand == block {
            self.hand = nodes.get(block).newer;
        }
        self.all.remove(nodes, block);
    }

    fn find(
        &mut self,
        nodes: &mut Nodes,
        _: usize,
        wanted: &mut dyn FnMut(&Nodes, u32) -> Option<u32>,
    ) -> Option<u32> {
        // Twice around: the first time may only clear what was used.
        for _ in 0..2 * self.all.len {
            let block = if self.hand == NONE { self.all.oldest } else { self.hand };
            if nodes.get(block).count == 0
                && let Some(found) = wanted(nodes, block)
            {
                // The hand stays: removing the block moves it on.
                self.hand = block;
                return Some(found);
            }
            nodes.get_mut(block).count = 0;
            self.hand = nodes.get(block).newer;
        }
        None
    }

    fn len(&self) -> usize {
        self.all.len
    }
}
