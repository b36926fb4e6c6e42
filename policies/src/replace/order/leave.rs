//! Which block leaves next.

use super::super::nodes::{Hint, Nodes, Steps};
use super::super::share;
use super::{Order, Part};

/// One in so many blocks leaves as if no session had been closed, to know how good that would be.
const TRIAL: u32 = 32;
/// Blocks among which the one that is wanted last leaves, where all are wanted.
const WANTED_SEEN: usize = 64;

/// What leaves if nothing else does.
#[derive(Default)]
struct Spare {
    /// Blocks looked at.
    seen: usize,
    /// Of the first of them the one that is wanted last, and when.
    wanted: Option<(u32, u32)>,
    /// The first, in front of others that cannot leave.
    any: Option<u32>,
    steps: Steps,
}

impl Spare {
    fn note(&mut self, nodes: &Nodes, block: u32, mut may: impl FnMut(u32) -> bool) {
        self.seen += 1;
        if self.seen > WANTED_SEEN && self.any.is_some() {
            return;
        }
        let leaf = nodes.leaf(block, &mut self.steps, &mut may);
        let leaf = leaf.map(|leaf| (nodes.get(leaf).until, leaf));
        self.wanted = self.wanted.max(leaf);
        if self.any.is_none() && may(block) {
            self.any = Some(block);
        }
    }
}

impl Order {
    /// Takes out the block that leaves next at tick `now`, of those that `may`; `None` if none does.
    pub fn evict(&mut self, now: u32, mut may: impl FnMut(u32) -> bool) -> Option<u32> {
        self.evicted = self.evicted.wrapping_add(1);
        let trial = self.evicted.is_multiple_of(TRIAL);
        let mut spare = Spare::default();
        let closed = if trial { None } else { self.closed_block(&mut may, &mut spare.steps) };
        let block = closed
            .or_else(|| self.search(now, &mut may, &mut spare))
            .or_else(|| self.closed_block(&mut may, &mut spare.steps))
            .or_else(|| spare.wanted.map(|(_, block)| block))
            .or(spare.any)?;
        let node = self.nodes.get(block);
        match node.hint {
            Hint::Closed(s) => {
                self.trust.closed[usize::from(s)].left(node.print, self.capacity);
            }
            Hint::None | Hint::Wanted(_) => {
                self.trust.others.rate.said(1.0);
                self.trust.others.left(node.print, self.capacity);
            }
        }
        // What left for another reason may have been on the way.
        let found = self.trail.filter(|&(turn, leaf)| leaf == block && turn != block);
        self.trail = found.map(|(turn, _)| (turn, self.nodes.parent(block)));
        self.take(block, true);
        Some(block)
    }

    /// The block of a closed session that leaves next.
    fn closed_block(&self, may: &mut impl FnMut(u32) -> bool, steps: &mut Steps) -> Option<u32> {
        let mut may = |nodes: &Nodes, block: u32| nodes.get(block).pins == 0 && may(block);
        self.closed.find(&self.nodes, |nodes, block| nodes.leaf(block, steps, |b| may(nodes, b)))
    }

    /// The block that leaves next, the last of its chain, of those that nobody wants. Parts that are above their
    /// ceiling come first, then by priority, and among equals by what their tenant has above its share;
    /// tenants at their floor come last.
    fn search(
        &mut self,
        now: u32,
        may: &mut impl FnMut(u32) -> bool,
        spare: &mut Spare,
    ) -> Option<u32> {
        if let [_] = self.parts[..] {
            return self.search_part(0, now, may, spare);
        }
        let mut parts: Vec<_> = (0..self.parts.len()).map(|i| (self.rank(i), i)).collect();
        parts.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        parts.into_iter().find_map(|(_, part)| self.search_part(part, now, may, spare))
    }

    /// Smaller leaves first.
    fn rank(&self, part: usize) -> (u8, i8, f64) {
        let Part { tenant, priority, .. } = self.parts[part];
        let held = self.held(tenant);
        let share = self.shares.iter().find(|(t, _)| Some(*t) == tenant).map(|(_, s)| *s);
        let share = share.unwrap_or_default();
        let class = if held > share::blocks(share.ceiling, self.capacity) {
            0
        } else if share.floor > 0.0 && held <= share::blocks(share.floor, self.capacity) {
            2
        } else {
            1
        };
        // Equal parts for all tenants with a share of their own, and for all others together.
        let fair = (1.0 / (1 + self.shares.len()) as f64).max(share.floor);
        (class, priority, share::blocks(fair, self.capacity) as f64 - held as f64)
    }

    fn search_part(
        &mut self,
        part: usize,
        now: u32,
        may: &mut impl FnMut(u32) -> bool,
        spare: &mut Spare,
    ) -> Option<u32> {
        let capacity = self.room(part);
        let Order { nodes, parts, trust, trail, .. } = self;
        // Hints that did not come true in time were wrong.
        let mut late = Vec::new();
        let found = parts[part].queue.find(nodes, capacity, &mut |nodes, block| {
            let mut may = |block: u32| nodes.get(block).pins == 0 && may(block);
            let mut unwanted = |block: u32| {
                let node = nodes.get(block);
                match node.hint {
                    Hint::Wanted(source) if node.until > now => !trust.keeps(source),
                    Hint::Wanted(_) => {
                        late.push(block);
                        true
                    }
                    Hint::None | Hint::Closed(_) => true,
                }
            };
            let from = trail.filter(|(turn, _)| *turn == block).map_or(block, |(_, at)| at);
            let mut free = |block: u32| may(block) && unwanted(block);
            let mut leaf = nodes.leaf(from, &mut spare.steps, &mut free);
            if leaf.is_none() && from != block {
                leaf = nodes.leaf(block, &mut spare.steps, &mut free);
            }
            match leaf {
                Some(leaf) => *trail = Some((block, leaf)),
                None => spare.note(nodes, block, &mut may),
            }
            leaf
        });
        for block in late {
            if let Hint::Wanted(source) = std::mem::take(&mut nodes.get_mut(block).hint) {
                trust.wanted[usize::from(source)].wrong(1.0);
            }
        }
        found
    }
}
