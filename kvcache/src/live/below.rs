//! What lies below the host tier for live pages.

use std::any::Any;
use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::MissReason;
use crate::arena::Cell;
use crate::vfs::Buf;

/// Stores and reads stripes. A *stripe* is the pages of all KV heads of one layer for one run of
/// `page_tokens` tokens: written once, immutable.
pub(crate) trait Below: Debug + Send + Sync {
    /// Stores stripes; each becomes readable when its result is `Ok`. Blocks; called on the demoting
    /// thread or the caller's, never under a lock. One result per stripe, in their order.
    fn write(&self, stripes: &[StripeOut]) -> Vec<Result<Arc<dyn Stored>, MissReason>>;

    /// Starts reading pages into frames. Neighbours are joined below.
    fn read(&self, wants: Vec<PageIn>) -> Box<dyn PageReads>;

    /// Where a stripe lies: neighbours in this order are read together. Of no account where it is not
    /// known.
    fn position(&self, _stripe: &dyn Stored) -> u64 {
        0
    }

    /// Monotonic time since some fixed moment: the clock of deadlines.
    fn now(&self) -> Duration;
}

/// A stripe that is stored. Dropping the last handle forgets it below.
pub(crate) trait Stored: Debug + Send + Sync + Any {
    /// For the [`Below`] that made it.
    fn as_any(&self) -> &dyn Any;
}

/// Reads in flight. Dropping them parks the buffers that are still in use.
pub(crate) trait PageReads: Send {
    /// Waits for a page until `deadline` on [`Below::now`]'s clock; `None` waits for ever, a past
    /// deadline only looks.
    fn next(&mut self, deadline: Option<Duration>) -> PageNext;

    /// Pages not yet handed back.
    #[cfg(test)]
    fn pending(&self) -> usize;
}

/// What [`PageReads::next`] found.
pub(crate) enum PageNext {
    /// A page arrived, or will not.
    Done {
        /// Its place in the list given to [`Below::read`].
        index: usize,
        /// Whether its bytes are there and verified.
        result: Result<(), MissReason>,
        /// Its memory.
        buf: Buf,
    },
    /// None arrived before the deadline; they go on.
    TimedOut,
    /// All were handed back.
    Empty,
}

/// A page to read.
pub(crate) struct PageIn {
    /// The stripe it is part of.
    pub(crate) stripe: Arc<dyn Stored>,
    /// Its KV head.
    pub(crate) head: usize,
    /// Where its bytes go: as long as the page.
    pub(crate) into: Buf,
}

/// A stripe to store.
pub(crate) struct StripeOut {
    /// The layer.
    pub(crate) layer: usize,
    /// The page's number in its sequence.
    pub(crate) page: usize,
    /// The pages, one per KV head.
    pub(crate) pages: Vec<Held>,
}

/// The bytes of a sealed page: K tile, then V tile.
#[derive(Debug)]
pub(crate) struct Held(Arc<Cell>);

impl Held {
    /// Of a page that was written in full and has been sealed.
    pub(super) fn new(cell: Arc<Cell>) -> Held {
        Held(cell)
    }

    /// The page's cell.
    pub(super) fn cell(&self) -> &Arc<Cell> {
        &self.0
    }
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside the cell, which this handle keeps. Sealed pages were written in full, and are
        // only written through a sole handle (`Cell::bytes_mut`), which nobody has while this lives.
        unsafe { std::slice::from_raw_parts(self.0.ptr(), self.0.len()) }
    }
}
