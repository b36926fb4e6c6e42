//! Missing pages of a call: read in runs, as far as frames can be had.

use std::collections::VecDeque;
use std::ops::Range;

use crate::Error;
use crate::live::{Lease, PageKey, Tier};

/// Missing pages on their way: at most two runs of them, so that one comes while the other is used.
pub(super) struct Flights<'a> {
    tier: &'a Tier,
    keys: &'a [PageKey],
    /// The first that was not started.
    next: usize,
    /// Pages of a run at most.
    most: usize,
    under_way: VecDeque<(Range<usize>, Lease<'a>)>,
}

impl<'a> Flights<'a> {
    /// None started yet.
    pub(super) fn new(tier: &'a Tier, keys: &'a [PageKey], most: usize) -> Flights<'a> {
        Flights { tier, keys, next: 0, most, under_way: VecDeque::new() }
    }

    /// Pages that wait for frames.
    pub(super) fn waiting(&self) -> usize {
        self.keys.len() - self.next
    }

    /// Starts what there are frames for.
    pub(super) fn start(&mut self) -> Result<(), Error> {
        while self.under_way.len() < 2 && self.next < self.keys.len() {
            let end = (self.next + self.most).min(self.keys.len());
            let lease = self.tier.start(&self.keys[self.next..end], false)?;
            if lease.len() == 0 {
                break;
            }
            let range = self.next..self.next + lease.len();
            self.next = range.end;
            self.under_way.push_back((range, lease));
        }
        Ok(())
    }

    /// The run that was started first; none when all are done. Makes room if none is under way.
    pub(super) fn pop(&mut self) -> Result<Option<(Range<usize>, Lease<'a>)>, Error> {
        while self.under_way.is_empty() && self.next < self.keys.len() {
            self.start()?;
            // Nothing is held here, so waiting for others cannot keep them waiting for this.
            if self.under_way.is_empty() && !self.tier.make_room(self.tier.bytes_of(1), true) {
                return Err(self.tier.over_budget(1));
            }
        }
        Ok(self.under_way.pop_front())
    }
}
