//! Blocks on their way to and from the caller's memory while it goes on.

use std::ops::Range;

use super::keys::Prefix;
use super::load::Wave;
use super::rows::{BlockRows, BlockRowsMut};
use super::space::{Restored, Space};
use crate::Error;
use crate::disk::Refused;
use crate::ticket::{Ticket, ticket};

/// Prefetches that may wait; later ones are given up.
pub(super) const PREFETCHES_MAX: usize = 64;

/// Memory of the caller that blocks are written to while it goes on. It is kept until that is done, and
/// nobody else may use it before.
pub trait Destination: Send {
    /// Calls `write` with its rows, a block each.
    fn with_rows(&mut self, write: &mut dyn FnMut(&mut [BlockRowsMut]));
}

/// Memory of the caller that blocks are read from while it goes on. It is kept until that is done, and
/// nobody may write to it before.
pub trait Origin: Send {
    /// Calls `read` with its rows, a block each.
    fn with_rows(&mut self, read: &mut dyn FnMut(&[BlockRows]));
}

impl Space {
    /// Brings blocks from disk into memory in the background. The ticket tells how many leading ones
    /// are there then.
    #[must_use]
    pub fn prefetch(&self, prefix: &Prefix, range: Range<usize>) -> Ticket<usize> {
        let (ticket, promise) = ticket();
        if self.check().is_err() || self.owns(prefix).is_err() {
            return ticket;
        }
        let (space, prefix) = (self.clone(), prefix.part(range));
        let fetch = move || {
            let there = space.bring(&prefix, || promise.is_cancelled());
            promise.keep(there);
        };
        self.shared.fetch(PREFETCHES_MAX, Box::new(fetch));
        ticket
    }

    /// Brings blocks into memory until it is to stop; how many leading ones are there.
    pub(super) fn bring(&self, prefix: &Prefix, stop: impl Fn() -> bool) -> usize {
        let mut wave = Wave::new(self, prefix, 0..self.layout().pages());
        let there = |block: &usize| !stop() && wave.next(*block, prefix.len()).is_ok();
        (0..prefix.len()).take_while(there).count()
    }

    /// [`Space::get`] in the background, on a thread of the store. A ticket without a result was given
    /// up before anything was written: it was cancelled or dropped, or the store was closed.
    ///
    /// # Errors
    /// As [`Space::get`], for what can be said now.
    pub fn get_behind(
        &self,
        prefix: &Prefix,
        range: Range<usize>,
        mut to: Box<dyn Destination>,
    ) -> Result<Ticket<Restored>, Error> {
        self.check()?;
        self.owns(prefix)?;
        prefix.check(&range, range.len())?;
        let (ticket, promise) = ticket();
        let (space, prefix) = (self.clone(), prefix.part(range));
        let fetch = move || {
            if promise.is_cancelled() {
                return;
            }
            let mut restored = None;
            to.with_rows(&mut |rows| restored = space.get(&prefix, 0..rows.len(), rows).ok());
            drop(to);
            if let Some(restored) = restored {
                promise.keep(restored);
            }
        };
        self.shared.fetch(usize::MAX, Box::new(fetch));
        Ok(ticket)
    }

    /// [`Space::put`] of all blocks of a prefix in the background, on a thread of the store: in the order
    /// of the calls, those of [`Space::get_behind`] included. A ticket without a result was given up
    /// before anything was read.
    ///
    /// # Errors
    /// As [`Space::put`], for what can be said now.
    pub fn put_behind(
        &self,
        prefix: &Prefix,
        mut from: Box<dyn Origin>,
    ) -> Result<Ticket<Vec<Result<(), Refused>>>, Error> {
        self.check()?;
        self.owns(prefix)?;
        let (ticket, promise) = ticket();
        let (space, prefix) = (self.clone(), prefix.clone());
        let put = move || {
            if promise.is_cancelled() {
                return;
            }
            let mut stored = None;
            from.with_rows(&mut |rows| stored = space.put(&prefix, 0, rows).ok());
            drop(from);
            if let Some(stored) = stored {
                promise.keep(stored);
            }
        };
        self.shared.fetch(usize::MAX, Box::new(put));
        Ok(ticket)
    }
}
