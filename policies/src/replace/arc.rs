//! ARC: recency against frequency, the share of each learned from what left too early.

use super::ghosts::Ghosts;
use super::nodes::{List, Nodes};
use super::queue::Queue;

/// Source: Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache" (FAST 2003), figure 4. Blocks
/// come before others leave for them here, so that the case "B1 is empty and T1 is full" does not arise apart.
#[derive(Clone, Debug)]
pub(super) struct Arc {
    once: List,
    again: List,
    once_gone: Ghosts,
    again_gone: Ghosts,
    /// Wanted length of `once`.
    target: f64,
    /// The block that came last was one that `again` had let go.
    from_again: bool,
}

impl Arc {
    pub(super) fn new() -> Arc {
        let (once_gone, again_gone) = Default::default();
        let (once, again) = (List::new(0), List::new(1));
        Arc { once, again, once_gone, again_gone, target: 0.0, from_again: false }
    }
}

impl Queue for Arc {
    fn insert(&mut self, nodes: &mut Nodes, block: u32, capacity: usize) {
        let print = nodes.get(block).print;
        let lens = (self.once_gone.len().max(1) as f64, self.again_gone.len().max(1) as f64);
        self.from_again = false;
        if self.once_gone.take(print) {
            self.target = (self.target + (lens.1 / lens.0).max(1.0)).min(capacity as f64);
            self.again.push(nodes, block);
        } else if self.again_gone.take(print) {
            self.target = (self.target - (lens.0 / lens.1).max(1.0)).max(0.0);
            self.from_again = true;
            self.again.push(nodes, block);
        } else {
            self.once.push(nodes, block);
        }
    }

    fn touch(&mut self, nodes: &mut Nodes, block: u32, _: usize) {
        match self.again.holds(nodes, block) {
            true => self.again.renew(nodes, block),
            false => {
                self.once.remove(nodes, block);
                self.again.push(nodes, block);
            }
        }
    }

    fn remove(&mut self, nodes: &mut Nodes, block: u32, capacity: usize, evicted: bool) {
        let print = nodes.get(block).print;
        // Both kinds of `once` together have as many entries as there is room, all four lists twice that.
        let (gone, most) = if self.again.holds(nodes, block) {
            self.again.remove(nodes, block);
            let others = self.len() + self.once_gone.len();
            (&mut self.again_gone, (2 * capacity).saturating_sub(others))
        } else {
            self.once.remove(nodes, block);
            (&mut self.once_gone, capacity.saturating_sub(self.once.len))
        };
        if evicted {
            gone.add(print, most);
        }
    }

    fn find(
        &mut self,
        nodes: &mut Nodes,
        _: usize,
        wanted: &mut dyn FnMut(&Nodes, u32) -> Option<u32>,
    ) -> Option<u32> {
        let len = self.once.len as f64;
        let once_first = len > self.target || (self.from_again && len == self.target && len > 0.0);
        let (first, second) = match once_first {
            true => (&self.once, &self.again),
            false => (&self.again, &self.once),
        };
        first.find(nodes, &mut *wanted).or_else(|| second.find(nodes, wanted))
    }

    fn len(&self) -> usize {
        self.once.len + self.again.len
    }

    fn bytes(&self) -> usize {
        self.once_gone.bytes() + self.again_gone.bytes()
    }
}
