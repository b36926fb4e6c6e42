//! What the order of replacement is told of a space's blocks.

use std::ops::Range;
use std::sync::atomic::Ordering;

use kvist_policies::replace::Uses;

use super::Shared;
use super::host::Entry;
use super::keys::Prefix;
use super::space::Space;
use crate::format::BlockKey;

impl Space {
    /// What a block is added as.
    pub(super) fn entry(&self, prefix: &Prefix, block: usize) -> Entry {
        Entry {
            key: prefix.keys[block],
            parent: prefix.before(block),
            owner: self.inner.owner,
            priority: self.inner.priority,
        }
    }

    /// Notes blocks that a request used, for an order that learns; `links` those that came in no order.
    pub(super) fn note(&self, prefix: &Prefix, used: Range<usize>, links: bool) {
        if used.is_empty() {
            return;
        }
        let before = prefix.before(used.start);
        let keys = &prefix.keys[used];
        let seeds: Vec<u64> = keys.iter().map(BlockKey::seed).collect();
        let before_seed = before.as_ref().map(BlockKey::seed);
        let mut blocks = self.shared.host.blocks.lock();
        blocks.request(&Uses { chain: prefix.chain.seed(), before: before_seed, keys: &seeds });
        if links {
            blocks.chain(before.iter().chain(keys));
        }
    }

    /// Has room made in the background if there is little.
    pub(super) fn make_room(&self) {
        let shared = &self.shared;
        let excess = |shared: &Shared| {
            let budget = shared.host.budget();
            shared.watermarks.map_or(0, |marks| marks.excess(budget.used(), budget.limit()))
        };
        if excess(shared) == 0 || shared.shedding.swap(true, Ordering::AcqRel) {
            return;
        }
        let of = shared.clone();
        let shed = move || {
            of.host.shed(excess(&of));
            of.shedding.store(false, Ordering::Release);
        };
        shared.fetch(usize::MAX, Box::new(shed));
    }
}
