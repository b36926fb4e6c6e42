//! What is kept for each block: its place in a list, and in the tree of prefixes.

/// No block.
pub(super) const NONE: u32 = u32::MAX;
/// The list of blocks that are not there.
pub(super) const ABSENT: u8 = u8::MAX;
/// Blocks looked at in search of descendants that may leave, for one that leaves.
const STEPS: usize = 1 << 16;

/// Blocks by which the room grows at least.
const GROWTH: usize = 64;

/// How far the search for a block that leaves may still go.
#[derive(Debug)]
pub(super) struct Steps(usize);

impl Default for Steps {
    fn default() -> Steps {
        Steps(STEPS)
    }
}

/// A block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) newer: u32,
    pub(super) older: u32,
    parent: u32,
    /// One of the blocks that continue this one, and the others of the same parent.
    child: u32,
    next: u32,
    previous: u32,
    /// See [`super::ghosts::fingerprint`].
    pub(super) print: u32,
    /// Not to leave before this tick.
    pub(super) until: u32,
    /// Its partition.
    pub(super) part: u16,
    pub(super) pins: u16,
    pub(super) list: u8,
    /// Uses that a queue credits it with.
    pub(super) count: u8,
    /// Requests that used it, up to 255.
    pub(super) seen: u8,
    pub(super) hint: Hint,
}

/// What was said of a block's future: the kind and who said it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Hint {
    #[default]
    None,
    /// Its session does not go on.
    Closed(u8),
    /// It is wanted again.
    Wanted(u8),
}

const VACANT: Node = Node {
    newer: NONE,
    older: NONE,
    parent: NONE,
    child: NONE,
    next: NONE,
    previous: NONE,
    print: 0,
    until: 0,
    part: 0,
    pins: 0,
    list: ABSENT,
    count: 0,
    seen: 0,
    hint: Hint::None,
};

/// A list of blocks by age.
#[derive(Clone, Debug)]
pub(super) struct List {
    id: u8,
    pub(super) newest: u32,
    pub(super) oldest: u32,
    pub(super) len: usize,
}

impl List {
    pub(super) fn new(id: u8) -> List {
        List { id, newest: NONE, oldest: NONE, len: 0 }
    }

    pub(super) fn holds(&self, nodes: &Nodes, block: u32) -> bool {
        nodes.get(block).list == self.id
    }

    /// Adds a block that is in no list, as the newest.
    pub(super) fn push(&mut self, nodes: &mut Nodes, block: u32) {
        let newest = std::mem::replace(&mut self.newest, block);
        let node = nodes.get_mut(block);
        (node.newer, node.older, node.list) = (NONE, newest, self.id);
        match newest {
            NONE => self.oldest = block,
            newest => nodes.get_mut(newest).newer = block,
        }
        self.len += 1;
    }

    /// Takes a block of this list out.
    pub(super) fn remove(&mut self, nodes: &mut Nodes, block: u32) {
        let Node { newer, older, .. } = *nodes.get(block);
        match newer {
            NONE => self.newest = older,
            newer => nodes.get_mut(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => nodes.get_mut(older).newer = newer,
        }
        nodes.get_mut(block).list = ABSENT;
        self.len -= 1;
    }

    /// Makes a block of this list the newest.
    pub(super) fn renew(&mut self, nodes: &mut Nodes, block: u32) {
        if self.newest != block {
            self.remove(nodes, block);
            self.push(nodes, block);
        }
    }

    /// The first block from the oldest on for which there is something.
    pub(super) fn find<T>(
        &self,
        nodes: &Nodes,
        mut wanted: impl FnMut(&Nodes, u32) -> Option<T>,
    ) -> Option<T> {
        let mut block = self.oldest;
        while block != NONE {
            if let Some(found) = wanted(nodes, block) {
                return Some(found);
            }
            block = nodes.get(block).newer;
        }
        None
    }
}

/// All blocks, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes(Vec<Node>);

impl Nodes {
    /// Bytes for a block.
    pub(super) const BYTES: usize = size_of::<Node>();

    pub(super) fn get(&self, block: u32) -> &Node {
        &self.0[block as usize]
    }

    pub(super) fn get_mut(&mut self, block: u32) -> &mut Node {
        &mut self.0[block as usize]
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * Nodes::BYTES
    }

    pub(super) fn is_there(&self, block: u32) -> bool {
        self.0.get(block as usize).is_some_and(|node| node.list != ABSENT)
    }

    /// Makes a block known, in no list yet.
    pub(super) fn add(&mut self, block: u32, print: u32, part: u16) {
        let len = block as usize + 1;
        if self.0.len() < len {
            // Growing by an eighth, it holds little more than it needs.
            if self.0.capacity() < len {
                self.0.reserve_exact((len - self.0.len()).max(self.0.len() / 8).max(GROWTH));
            }
            self.0.resize(len, VACANT);
        }
        self.0[block as usize] = Node { print, part, seen: 1, ..VACANT };
    }

    /// The block that this one continues, or `NONE`.
    pub(super) fn parent(&self, block: u32) -> u32 {
        self.get(block).parent
    }

    /// Whether a block continues that one, directly or not.
    pub(super) fn is_below(&self, block: u32, above: u32) -> bool {
        let mut at = block;
        while at != NONE && at != above {
            at = self.parent(at);
        }
        at == above
    }

    /// Whether others continue a block.
    pub(super) fn has_children(&self, block: u32) -> bool {
        self.get(block).child != NONE
    }

    /// Says that a block continues another, which does not continue it.
    pub(super) fn link(&mut self, block: u32, parent: u32) {
        self.unlink(block);
        let next = std::mem::replace(&mut self.get_mut(parent).child, block);
        let node = self.get_mut(block);
        (node.parent, node.next, node.previous) = (parent, next, NONE);
        if next != NONE {
            self.get_mut(next).previous = block;
        }
    }

    fn unlink(&mut self, block: u32) {
        let Node { parent, next, previous, .. } = *self.get(block);
        if parent == NONE {
            return;
        }
        match previous {
            NONE => self.get_mut(parent).child = next,
            previous => self.get_mut(previous).next = next,
        }
        if next != NONE {
            self.get_mut(next).previous = previous;
        }
        let node = self.get_mut(block);
        (node.parent, node.next, node.previous) = (NONE, NONE, NONE);
    }

    /// Cuts a block that leaves out of the tree; what continued it stays, by itself.
    pub(super) fn cut(&mut self, block: u32) {
        self.unlink(block);
        let mut child = std::mem::replace(&mut self.get_mut(block).child, NONE);
        while child != NONE {
            let node = self.get_mut(child);
            child = node.next;
            (node.parent, node.next, node.previous) = (NONE, NONE, NONE);
        }
    }

    /// A block that may leave and that no other continues: this one, or the first found below it, depth first.
    /// `None` if there is none, or none within the steps.
    pub(super) fn leaf(
        &self,
        block: u32,
        steps: &mut Steps,
        mut may: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let mut at = block;
        while steps.0 > 0 {
            steps.0 -= 1;
            let node = self.get(at);
            if node.child != NONE {
                at = node.child;
                continue;
            }
            if may(at) {
                return Some(at);
            }
            // What cannot leave keeps those it continues.
            while self.get(at).next == NONE || at == block {
                if at == block {
                    return None;
                }
                steps.0 = steps.0.saturating_sub(1);
                at = self.get(at).parent;
            }
            at = self.get(at).next;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_takes_at_most_48_bytes() {
        const { assert!(Nodes::BYTES <= 48) }
    }

    #[test]
    fn leaves_are_found_below() {
        let mut nodes = Nodes::default();
        (0..7).for_each(|block| nodes.add(block, block, 0));
        // 0 - 1 - 2, 1 - 3 - 4, 5 - 6.
        for (block, parent) in [(1, 0), (2, 1), (3, 1), (4, 3), (6, 5)] {
            nodes.link(block, parent);
        }
        let leaf = |nodes: &Nodes, block, held: &[u32]| {
            nodes.leaf(block, &mut Steps::default(), |b| !held.contains(&b))
        };
        assert_eq!(leaf(&nodes, 0, &[]), Some(4));
        assert_eq!(leaf(&nodes, 0, &[4]), Some(2));
        assert_eq!(leaf(&nodes, 0, &[4, 2]), None);
        assert_eq!((leaf(&nodes, 5, &[]), leaf(&nodes, 5, &[6])), (Some(6), None));
        assert_eq!(nodes.leaf(0, &mut Steps(2), |_| true), None);
        assert!(nodes.is_below(4, 0) && nodes.is_below(4, 4) && !nodes.is_below(0, 4));
        nodes.cut(3);
        assert_eq!(leaf(&nodes, 0, &[]), Some(2));
        assert_eq!((leaf(&nodes, 4, &[]), nodes.parent(4)), (Some(4), NONE));
        nodes.link(4, 2);
        nodes.link(4, 6);
        assert_eq!((leaf(&nodes, 1, &[]), leaf(&nodes, 5, &[])), (Some(2), Some(4)));
    }
}
