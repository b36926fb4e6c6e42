//! Best-first search of a tree of chunks by bounds of what they hold.
//!
//! A chunk's children are the `fan` chunks of the next finer level that lie inside it, so that a node is a
//! level and a number. The best leaf is always below the node with the largest bound.
//!
//! Source: LeoAM (arXiv 2506.20187) evaluates importance by digests of chunks of several sizes; the search
//! and its proof are kvist's.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;

/// A chunk, and what is known of the scores of the leaves inside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// 0 for leaves; a node of level `l` holds `fan^l` of them.
    pub level: u32,
    /// Number of the node in its level.
    pub index: usize,
    /// No leaf inside scores more. A leaf: its score. Not NaN.
    pub upper: f32,
}

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// Children of a node, at least 1.
    pub fan: usize,
    /// Leaves that may be taken.
    pub candidates: Range<usize>,
    /// Nodes of this level are taken whole, as if they were leaves; finer ones as they are.
    pub grain: u32,
    /// Leaves that will be taken at most, or more: nodes that cannot be among so many are dropped.
    pub wanted: usize,
}

/// How many nodes are named before they are opened.
const SOON: usize = 3;

/// A node on the frontier: larger bounds first, then the one that begins first.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Open {
    node: Node,
    start: usize,
}

impl Eq for Open {}

impl Ord for Open {
    fn cmp(&self, other: &Open) -> Ordering {
        let by_bound = self.node.upper.total_cmp(&other.node.upper);
        by_bound.then(other.start.cmp(&self.start)).then(other.node.level.cmp(&self.node.level))
    }
}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Open) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The largest scores of disjoint nodes that hold enough leaves: what falls short of the least of them is not
/// among the best.
#[derive(Default)]
struct Cut {
    kept: BinaryHeap<Reverse<(Bound, usize)>>,
    leaves: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Bound(f32);

impl Eq for Bound {}

impl Ord for Bound {
    fn cmp(&self, other: &Bound) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Bound) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Cut {
    fn add(&mut self, score: f32, leaves: usize, wanted: usize) {
        if leaves == 0 || score <= self.at(wanted) {
            return;
        }
        self.kept.push(Reverse((Bound(score), leaves)));
        self.leaves += leaves;
        while let Some(Reverse((_, least))) = self.kept.peek()
            && self.leaves - least >= wanted
        {
            self.leaves -= least;
            self.kept.pop();
        }
    }

    fn at(&self, wanted: usize) -> f32 {
        match self.kept.peek() {
            Some(Reverse((bound, _))) if self.leaves >= wanted => bound.0,
            _ => f32::NEG_INFINITY,
        }
    }
}

impl Search {
    /// The leaves below a node.
    fn leaves(&self, level: u32, index: usize) -> Range<usize> {
        let size = self.fan.saturating_pow(level);
        let first = index.saturating_mul(size);
        let clip = |leaf: usize| leaf.clamp(self.candidates.start, self.candidates.end);
        clip(first)..clip(first.saturating_add(size)).max(clip(first))
    }

    /// Takes candidate leaves by their scores, best first, ties to the lower number, until `take` says that
    /// it has enough: exactly the order of a scan of all leaves. `take` gets the leaves of a node and its
    /// score: one leaf, or as many as a node of the grain has. `roots` are disjoint and hold all candidates.
    /// `open` adds the children of a node, each once; it is asked for nodes above the grain only, and only
    /// where no better leaf can be elsewhere. It is also told of a few nodes that it will probably be asked for
    /// soon.
    ///
    /// A child's bound is not taken to be larger than its parent's, so that rounding cannot change the order
    /// of the search.
    pub fn run(
        &self,
        roots: &[Node],
        mut open: impl FnMut(&Node, &[Node], &mut Vec<Node>),
        mut take: impl FnMut(Range<usize>, f32) -> bool,
    ) {
        let mut frontier = BinaryHeap::new();
        let mut cut = Cut::default();
        let mut see = |nodes: &[Node], most: f32, frontier: &mut BinaryHeap<Open>| {
            for node in nodes {
                let node = Node { upper: node.upper.min(most), ..*node };
                let leaves = self.leaves(node.level, node.index);
                // What is taken whole has its score, and none of them overlap: no other is opened.
                if node.level <= self.grain {
                    cut.add(node.upper, leaves.len(), self.wanted);
                }
                if !leaves.is_empty() && node.upper >= cut.at(self.wanted) {
                    frontier.push(Open { node, start: leaves.start });
                }
            }
        };
        see(roots, f32::INFINITY, &mut frontier);
        let (mut children, mut soon) = (Vec::new(), Vec::with_capacity(SOON));
        while let Some(Open { node, .. }) = frontier.pop() {
            if node.level <= self.grain {
                if !take(self.leaves(node.level, node.index), node.upper) {
                    return;
                }
                continue;
            }
            // The first of a heap are its best, more or less.
            let first = frontier.iter().take(SOON).map(|open| open.node);
            soon.clear();
            soon.extend(first.filter(|node| node.level > self.grain));
            children.clear();
            open(&node, &soon, &mut children);
            see(&children, node.upper, &mut frontier);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAN: usize = 3;
    const DEPTH: u32 = 2;
    const ROOT: usize = FAN.pow(DEPTH);

    /// Bounds of every level over these leaves, with some slack above the finest.
    fn levels(leaves: &[f32], slack: &[f32]) -> Vec<Vec<f32>> {
        let mut levels = vec![leaves.to_vec()];
        for level in 0..DEPTH as usize {
            let of = |(i, part): (usize, &[f32])| {
                let upper = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                upper + slack[(i + level) % slack.len()]
            };
            let next = levels[level].chunks(FAN).enumerate().map(of).collect();
            levels.push(next);
        }
        levels
    }

    fn node(levels: &[Vec<f32>], level: u32, index: usize) -> Option<Node> {
        let &upper = levels[level as usize].get(index)?;
        Some(Node { level, index, upper })
    }

    /// What is taken, in order, and how many nodes were opened.
    fn run(search: &Search, levels: &[Vec<f32>], whole: usize, n: usize) -> (Vec<usize>, usize) {
        let leaves = levels[0].len();
        // Behind the last whole root, leaves stand for themselves.
        let mut roots: Vec<Node> = (0..whole).filter_map(|i| node(levels, DEPTH, i)).collect();
        roots.extend((whole * ROOT..leaves).filter_map(|i| node(levels, 0, i)));
        let (mut taken, mut opened) = (Vec::new(), 0);
        let open = |at: &Node, soon: &[Node], out: &mut Vec<Node>| {
            assert!(soon.len() <= SOON && soon.iter().all(|n| n.level > search.grain && n != at));
            opened += 1;
            let below = at.index * FAN..(at.index + 1) * FAN;
            out.extend(below.filter_map(|i| node(levels, at.level - 1, i)));
        };
        search.run(&roots, open, |leaves, _| {
            taken.extend(leaves);
            taken.len() < n
        });
        (taken, opened)
    }

    proptest! {
        /// Few values, so that ties are common.
        #[test]
        fn leaves_come_as_in_a_flat_scan(
            scores in prop::collection::vec(-4i32..5, 1..60),
            slack in prop::collection::vec(prop::sample::select(vec![0f32, 0.0, 0.5, 3.0]), 1..9),
            ends in (0usize..70, 0usize..70), n in 1usize..20, infinite in 0usize..60, whole in 0usize..8,
        ) {
            let mut leaves: Vec<f32> = scores.iter().map(|&s| s as f32).collect();
            if let Some(leaf) = leaves.get_mut(infinite) {
                *leaf = f32::INFINITY;
            }
            let levels = levels(&leaves, &slack);
            let whole = whole.min(leaves.len() / ROOT);
            let candidates = ends.0.min(ends.1).min(leaves.len())..ends.0.max(ends.1).min(leaves.len());
            let mut want: Vec<usize> = candidates.clone().collect();
            want.sort_by(|&a, &b| leaves[b].total_cmp(&leaves[a]).then(a.cmp(&b)));
            want.truncate(n);
            let mut opened = Vec::new();
            for wanted in [n, n + 3, usize::MAX] {
                let search = Search { fan: FAN, candidates: candidates.clone(), grain: 0, wanted };
                let (mut taken, all) = run(&search, &levels, whole, n);
                taken.truncate(n);
                prop_assert_eq!(&taken, &want, "wanted {}", wanted);
                opened.push(all);
            }
            prop_assert!(opened[0] <= opened[2] && opened[2] <= whole * (1 + FAN));
        }

        /// Coarse nodes are taken whole, each once, by their bounds.
        #[test]
        fn grains_are_taken_whole(
            scores in prop::collection::vec(-9i32..9, ROOT..60), n in 1usize..6,
        ) {
            let leaves: Vec<f32> = scores.iter().map(|&s| s as f32).collect();
            let levels = levels(&leaves, &[0.0]);
            let whole = leaves.len() / ROOT;
            let search =
                Search { fan: FAN, candidates: 0..whole * ROOT, grain: 1, wanted: n * FAN };
            let (taken, opened) = run(&search, &levels, whole, n * FAN);
            let mut want: Vec<usize> = (0..whole * FAN).collect();
            want.sort_by(|&a, &b| levels[1][b].total_cmp(&levels[1][a]).then(a.cmp(&b)));
            let want: Vec<usize> =
                want.into_iter().take(n).flat_map(|c| c * FAN..(c + 1) * FAN).collect();
            prop_assert_eq!(taken, want);
            prop_assert!(opened <= whole, "leaves of grains are not looked at");
        }
    }

    #[test]
    fn only_what_may_hold_a_better_leaf_is_opened() {
        // One root holds all the best leaves.
        let leaves: Vec<f32> = (0..27).map(|i| if i < 9 { 90.0 } else { 1.0 } - i as f32).collect();
        let levels = levels(&leaves, &[0.0]);
        let search = Search { fan: FAN, candidates: 0..27, grain: 0, wanted: 4 };
        assert_eq!(run(&search, &levels, 3, 4), (vec![0, 1, 2, 3], 3));
    }

    #[test]
    fn scores_drop_what_is_not_among_the_best() {
        let mut cut = Cut::default();
        assert_eq!(cut.at(3), f32::NEG_INFINITY);
        cut.add(5.0, 2, 3);
        assert_eq!(cut.at(3), f32::NEG_INFINITY, "not enough leaves yet");
        cut.add(1.0, 4, 3);
        assert_eq!(cut.at(3), 1.0);
        cut.add(3.0, 1, 3);
        assert_eq!(cut.at(3), 3.0);
        cut.add(4.0, 0, 3);
        assert_eq!(cut.at(3), 3.0, "no candidate inside");
    }
}
