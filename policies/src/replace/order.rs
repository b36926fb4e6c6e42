//! The order in which the blocks of a tier leave.

mod leave;

use super::adaptive::Adaptive;
use super::ghosts::fingerprint;
use super::nodes::{Hint, List, Nodes};
use super::policy::Replace;
use super::queue::Queue;
use super::share::{self, Share};
use super::trust::{SOURCES, Trust};
use crate::Error;

/// The list of blocks whose session is closed; no queue uses this number.
const CLOSED: u8 = 16;
/// Blocks that so many requests used belong to no single session.
const SHARED: u8 = 6;

/// What an order is told of a block that comes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// A hash of what identifies it: the same when it comes again.
    pub key: u64,
    /// The block that it continues, if that is there; see also [`Order::link`].
    pub parent: Option<u32>,
    /// Whose it is; tenants with a [`Share`] are told apart.
    pub tenant: u16,
    /// Blocks of a lower priority leave before all others.
    pub priority: i8,
}

/// Blocks that a request uses, there or not: all of them, or a part after others that were told before.
#[derive(Clone, Copy, Debug)]
pub struct Uses<'a> {
    /// Key of the chain's second block, or of its only one: the first is often shared by all.
    pub chain: u64,
    /// Key of the block before these.
    pub before: Option<u64>,
    /// Keys of the blocks, in their order.
    pub keys: &'a [u64],
}

impl Uses<'_> {
    /// All blocks of a request.
    #[must_use]
    pub fn all(keys: &[u64]) -> Uses<'_> {
        let chain = keys.get(1).or(keys.first()).copied().unwrap_or_default();
        Uses { chain, before: None, keys }
    }
}

/// Blocks that leave in an order of their own.
struct Part {
    tenant: Option<u16>,
    priority: i8,
    queue: Box<dyn Queue + Send + Sync>,
}

/// Which blocks leave a tier, by any [`Replace`].
///
/// The caller numbers blocks from 0; numbers of blocks that left are used again. An operation takes constant time
/// on average. At most 64 bytes are kept for a block that is there, and at most 16 for each that
/// left and is remembered.
pub struct Order {
    replace: Replace,
    nodes: Nodes,
    parts: Vec<Part>,
    closed: List,
    trust: Trust,
    adaptive: Option<Adaptive>,
    /// Share of what was used once, where it is learned.
    small: f32,
    shares: Vec<(u16, Share)>,
    capacity: usize,
    evicted: u32,
    /// The block whose turn to leave it last was, and below it the one that the one that left continued: there the
    /// next search begins, so that a long chain is not gone through for each of its blocks.
    trail: Option<(u32, u32)>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order").field("replace", &self.replace).field("len", &self.len()).finish()
    }
}

impl Order {
    /// An order for a tier that has room for about `capacity` blocks.
    #[must_use]
    pub fn new(replace: Replace, capacity: usize) -> Order {
        let adaptive = (replace == Replace::Adaptive).then(Adaptive::new);
        Order {
            replace,
            nodes: Nodes::default(),
            parts: Vec::new(),
            closed: List::new(CLOSED),
            trust: Trust::new(),
            adaptive,
            small: Adaptive::FIRST,
            shares: Vec::new(),
            capacity,
            evicted: 0,
            trail: None,
        }
    }

    /// Changes how many blocks there is room for.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// Gives a tenant a share, before its first block comes.
    ///
    /// # Errors
    /// [`Error::Setting`] for an impossible share, or if the floors of all tenants together are more than there is.
    pub fn set_share(&mut self, tenant: u16, share: Share) -> Result<(), Error> {
        share.check()?;
        let others = self.shares.iter().filter(|(t, _)| *t != tenant).map(|(_, s)| s.floor);
        let floors: f64 = others.sum::<f64>() + share.floor;
        if floors > 1.0 {
            return Err(Error::setting("share of a tenant", "sum of floors", "at most 1", floors));
        }
        self.shares.retain(|(t, _)| *t != tenant);
        self.shares.push((tenant, share));
        Ok(())
    }

    /// Blocks that are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.closed.len + self.parts.iter().map(|part| part.queue.len()).sum::<usize>()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a block is there.
    #[must_use]
    pub fn contains(&self, block: u32) -> bool {
        self.nodes.is_there(block)
    }

    /// Notes what a request uses: what an order that learns goes by. The blocks themselves are touched or inserted
    /// besides.
    pub fn request(&mut self, uses: &Uses) {
        let learned = self.adaptive.as_mut().and_then(|a| a.request(uses, self.capacity));
        if let Some(small) = learned {
            self.small = small;
            self.parts.iter_mut().for_each(|part| part.queue.set_share(small));
        }
    }

    /// Adds a block.
    ///
    /// # Panics
    /// If a block of that number is there.
    pub fn insert(&mut self, block: u32, arrival: &Arrival) {
        assert!(!self.contains(block), "block {block} is there already");
        let print = fingerprint(arrival.key);
        self.trust.came(print);
        let part = self.part(arrival);
        self.nodes.add(block, print, part as u16);
        let capacity = self.room(part);
        self.parts[part].queue.insert(&mut self.nodes, block, capacity);
        if let Some(parent) = arrival.parent {
            self.link(block, parent);
        }
    }

    /// Says that a block continues another, if both are there, and the other does not continue it.
    pub fn link(&mut self, block: u32, parent: u32) {
        let both = self.contains(block) && self.contains(parent) && block != parent;
        if !both || self.nodes.parent(block) == parent {
            return;
        }
        if self.nodes.has_children(block) {
            if self.nodes.is_below(parent, block) {
                return;
            }
            self.trail = None;
        }
        self.nodes.link(block, parent);
    }

    /// Notes a use of a block that is there. Touch the last blocks of a request first, as those before
    /// them must not leave earlier.
    pub fn touch(&mut self, block: u32) {
        if !self.contains(block) {
            return;
        }
        let node = self.nodes.get_mut(block);
        node.seen = node.seen.saturating_add(1);
        let (part, hint) = (usize::from(node.part), std::mem::take(&mut node.hint));
        let capacity = self.room(part);
        match hint {
            Hint::Closed(source) => self.trust.closed[usize::from(source)].rate.wrong(1.0),
            Hint::Wanted(_) => self.nodes.get_mut(block).until = 0,
            Hint::None => {}
        }
        let queue = &mut self.parts[part].queue;
        if self.closed.holds(&self.nodes, block) {
            self.closed.remove(&mut self.nodes, block);
            queue.insert(&mut self.nodes, block, capacity);
        }
        queue.touch(&mut self.nodes, block, capacity);
    }

    /// Takes a block out that left for a reason of the caller's.
    pub fn remove(&mut self, block: u32) {
        if self.contains(block) {
            self.trail = None;
            self.take(block, false);
        }
    }

    /// Keeps a block, whatever happens, until it is unpinned as often.
    pub fn pin(&mut self, block: u32) {
        if self.contains(block) {
            let pins = &mut self.nodes.get_mut(block).pins;
            *pins = pins.saturating_add(1);
        }
    }

    /// Undoes one [`Order::pin`].
    pub fn unpin(&mut self, block: u32) {
        if self.contains(block) {
            let pins = &mut self.nodes.get_mut(block).pins;
            *pins = pins.saturating_sub(1);
        }
    }

    /// Says that the session of these blocks does not go on, in the order of its prefix. Those that many
    /// requests used are others', too, and are left alone. As long as that is worth more than the order itself
    /// (see [`Order::precision`]), they leave first.
    ///
    /// # Panics
    /// If `source` is not below [`SOURCES`].
    pub fn session_closed(&mut self, blocks: &[u32], source: u8) {
        assert!(usize::from(source) < SOURCES, "source {source} of {SOURCES}");
        // The last ones first, as they leave first.
        for &block in blocks.iter().rev() {
            let own = self.contains(block) && self.nodes.get(block).seen < SHARED;
            if !own || self.closed.holds(&self.nodes, block) {
                continue;
            }
            self.trust.closed[usize::from(source)].rate.said(1.0);
            let node = self.nodes.get_mut(block);
            (node.hint, node.until) = (Hint::Closed(source), 0);
            if self.trust.closes(source) {
                let part = usize::from(node.part);
                let capacity = self.room(part);
                self.parts[part].queue.remove(&mut self.nodes, block, capacity, false);
                self.closed.push(&mut self.nodes, block);
            }
        }
    }

    /// Says that blocks are wanted before tick `until`: while a turn is open (a tool runs, or a user types), or
    /// because their next use is known. They stay that long where others can leave, and where none
    /// can, those leave first that are wanted last. It holds while most such hints of the source come true.
    ///
    /// # Panics
    /// If `source` is not below [`SOURCES`].
    pub fn wanted(&mut self, blocks: &[u32], until: u32, source: u8) {
        assert!(usize::from(source) < SOURCES, "source {source} of {SOURCES}");
        for &block in blocks {
            if !self.contains(block) {
                continue;
            }
            if self.closed.holds(&self.nodes, block) {
                self.reopen(block);
            }
            let node = self.nodes.get_mut(block);
            if node.hint != Hint::Wanted(source) {
                self.trust.wanted[usize::from(source)].said(1.0);
            }
            (node.hint, node.until) = (Hint::Wanted(source), until);
        }
    }

    /// Puts a block of a closed session back among the others.
    fn reopen(&mut self, block: u32) {
        let part = usize::from(self.nodes.get(block).part);
        let capacity = self.room(part);
        self.closed.remove(&mut self.nodes, block);
        self.parts[part].queue.insert(&mut self.nodes, block, capacity);
    }

    /// Shares of the hints of a source that came true so far: of closed sessions, of wanted blocks.
    ///
    /// # Panics
    /// If `source` is not below [`SOURCES`].
    #[must_use]
    pub fn precision(&self, source: u8) -> [f32; 2] {
        let i = usize::from(source);
        let (closed, wanted) = (&self.trust.closed[i].rate, &self.trust.wanted[i]);
        [1.0 - closed.of_wrong(), 1.0 - wanted.of_wrong()]
    }

    /// Blocks by which a tenant is above its ceiling.
    #[must_use]
    pub fn above_ceiling(&self, tenant: u16) -> usize {
        let share = self.shares.iter().find(|(t, _)| *t == tenant);
        share.map_or(0, |(t, s)| {
            self.held(Some(*t)).saturating_sub(share::blocks(s.ceiling, self.capacity))
        })
    }

    /// Blocks of a tenant with a share, or of all others.
    fn held(&self, tenant: Option<u16>) -> usize {
        let own = self.parts.iter().filter(|part| part.tenant == tenant);
        own.map(|part| part.queue.len()).sum()
    }

    fn take(&mut self, block: u32, evicted: bool) {
        let part = usize::from(self.nodes.get(block).part);
        if self.closed.holds(&self.nodes, block) {
            self.closed.remove(&mut self.nodes, block);
        } else {
            let capacity = self.room(part);
            self.parts[part].queue.remove(&mut self.nodes, block, capacity, evicted);
        }
        self.nodes.cut(block);
    }

    /// The number of the part that a block belongs to.
    fn part(&mut self, arrival: &Arrival) -> usize {
        let tenant = self.shares.iter().find(|(t, _)| *t == arrival.tenant).map(|(t, _)| *t);
        let priority = arrival.priority;
        let same = |part: &Part| part.tenant == tenant && part.priority == priority;
        self.parts.iter().position(same).unwrap_or_else(|| {
            let mut queue = self.replace.queue();
            if self.adaptive.is_some() {
                queue.set_share(self.small);
            }
            self.parts.push(Part { tenant, priority, queue });
            self.parts.len() - 1
        })
    }

    /// Blocks that a part has room for: what of the whole falls to it at present.
    fn room(&self, part: usize) -> usize {
        match self.parts.len() {
            1 => self.capacity,
            _ => {
                let all = self.len().max(1);
                (self.capacity as u128 * self.parts[part].queue.len() as u128 / all as u128)
                    as usize
            }
        }
    }

    /// Bytes that it takes itself.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let queues: usize = self.parts.iter().map(|part| part.queue.bytes()).sum();
        let adaptive = self.adaptive.as_ref().map_or(0, Adaptive::bytes);
        self.nodes.bytes() + queues + adaptive + self.trust.bytes()
    }
}
