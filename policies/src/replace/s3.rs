//! S3-FIFO: a small queue that what is used once leaves soon, a main one, and the memory of what left.

use super::ghosts::Ghosts;
use super::nodes::{List, Nodes};
use super::queue::Queue;

/// Uses that a block is credited with at most.
pub(super) const USES_MOST: u8 = 3;
/// Blocks that left and are remembered, for each there is room for.
pub(super) const MEMORY: f32 = 4.0;

/// Source: Yang et al., "FIFO queues are all you need for cache eviction" (SOSP 2023), algorithm 1. The memory of
/// what left is longer here: reuse of prefixes comes late.
#[derive(Clone, Debug)]
pub(super) struct S3 {
    small: List,
    main: List,
    gone: Ghosts,
    /// Share of the room that the small queue has.
    share: f32,
}

impl S3 {
    pub(super) fn new(share: f32) -> S3 {
        let (small, main) = (List::new(0), List::new(1));
        S3 { small, main, gone: Ghosts::default(), share }
    }
}

impl Queue for S3 {
    fn insert(&mut self, nodes: &mut Nodes, block: u32, _: usize) {
        nodes.get_mut(block).count = 0;
        match self.gone.take(nodes.get(block).print) {
            true => self.main.push(nodes, block),
            false => self.small.push(nodes, block),
        }
    }

    fn touch(&mut self, nodes: &mut Nodes, block: u32, _: usize) {
        let count = &mut nodes.get_mut(block).count;
        *count = (*count + 1).min(USES_MOST);
    }

    fn remove(&mut self, nodes: &mut Nodes, block: u32, capacity: usize, evicted: bool) {
        if self.main.holds(nodes, block) {
            return self.main.remove(nodes, block);
        }
        self.small.remove(nodes, block);
        if evicted {
            self.gone.add(nodes.get(block).print, (MEMORY * capacity as f32) as usize);
        }
    }

    fn find(
        &mut self,
        nodes: &mut Nodes,
        capacity: usize,
        wanted: &mut dyn FnMut(&Nodes, u32) -> Option<u32>,
    ) -> Option<u32> {
        let room = (self.share * capacity as f32) as usize;
        // Each block comes to the main queue at most once, loses its uses there round by round, and goes
        // round once more if it may not leave.
        for _ in 0..(3 + usize::from(USES_MOST)) * self.len() {
            let small = self.small.len > room || self.main.len == 0;
            let block = if small { self.small.oldest } else { self.main.oldest };
            let uses = nodes.get(block).count;
            if uses == 0
                && let Some(found) = wanted(nodes, block)
            {
                return Some(found);
            }
            match small {
                true => {
                    self.small.remove(nodes, block);
                    nodes.get_mut(block).count = 0;
                    self.main.push(nodes, block);
                }
                false => {
                    nodes.get_mut(block).count = uses.saturating_sub(1);
                    self.main.renew(nodes, block);
                }
            }
        }
        // Nothing of the main queue may leave.
        self.small.find(nodes, wanted)
    }

    fn set_share(&mut self, share: f32) {
        self.share = share;
    }

    fn len(&self) -> usize {
        self.small.len + self.main.len
    }

    fn bytes(&self) -> usize {
        self.gone.bytes()
    }
}
