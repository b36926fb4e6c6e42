//! Where the tokens lie that were chosen of sequences which are all near.

use std::sync::Arc;

use kvist_kernels::SlotLists;

use super::head::Choice;
use super::order::Sources;
use super::{Call, Run};
use crate::index::{Index, Made, Part};
use crate::live::Copied;

/// Lists of tokens by (sequence, KV head).
pub(super) struct Slots {
    ends: Vec<u32>,
    slots: Vec<u32>,
    /// Copies that are read, so that they stay.
    copies: Vec<Arc<Copied>>,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { ends: vec![0], slots: Vec::new(), copies: Vec::new() }
    }
}

fn copied(part: &Part) -> Option<(&Part, Arc<Copied>)> {
    part.copied.get().map(|rows| (part, rows))
}

impl Slots {
    /// Adds the list of a sequence's head.
    pub(super) fn add(
        &mut self,
        call: &Call,
        run: &Run,
        (row, head): (usize, usize),
        choice: &Choice,
    ) {
        let ids = run.ids(call, row, head);
        let index = match call.copies() {
            Some(_) => run.sequences[row].memories.of(call.layer).index.get(head).cloned(),
            None => None,
        };
        match index {
            Some(index) => self.add_ordered(call, ids, choice, &index),
            None => self.add_paged(call, ids, &choice.positions),
        }
        self.ends.push(self.slots.len() as u32);
    }

    /// Clusters where their rows lie together, other tokens where they were appended.
    fn add_ordered(&mut self, call: &Call, ids: &[u32], choice: &Choice, index: &Index) {
        let Sources { clusters, paged } = Sources::of(choice, index, copied);
        self.add_paged(call, ids, &paged);
        for ((part, rows), picked) in clusters {
            let Made::Clusters(clusters) = &part.made else { continue };
            for m in picked {
                let first = clusters.offsets()[m.cluster];
                self.slots.extend(rows.slots(first..first + m.tokens as u32));
            }
            self.copies.push(rows);
        }
    }

    /// Tokens where they were appended.
    fn add_paged(&mut self, call: &Call, ids: &[u32], positions: &[u32]) {
        // Divisions of 32 bits take half as long.
        let page = call.cache.geometry().page_tokens as u32;
        let slot = |&p: &u32| ids[(p / page) as usize] * page + p % page;
        self.slots.extend(positions.iter().map(slot));
    }

    pub(super) fn lists(&self) -> SlotLists<'_> {
        SlotLists { indptr: &self.ends, slots: &self.slots, positions: None, per_head: true }
    }
}
