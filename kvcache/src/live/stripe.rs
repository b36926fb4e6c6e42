//! Handles of sealed pages.

use std::sync::Arc;

use super::below::Stored;
use super::table::{PageKey, StripeId};
use super::tier::Inner;
use crate::arena::Cell;
use crate::budget::Charge;

/// The sealed pages of all KV heads of a layer for one run of tokens. Forks share it; the last handle
/// forgets the pages, near and below.
#[derive(Debug)]
pub(crate) struct Stripe {
    inner: Arc<Inner>,
    id: StripeId,
    _charge: Charge,
}

impl Stripe {
    /// Seals pages, one per KV head. `kept` ones leave last. The charge is [`Inner::stripe_bytes`].
    pub(super) fn new(
        inner: &Arc<Inner>,
        (layer, page): (usize, usize),
        cells: Vec<Arc<Cell>>,
        kept: bool,
        charge: Charge,
    ) -> Arc<Stripe> {
        let id = inner.lock().insert((layer, page), cells, kept);
        Arc::new(Stripe { inner: inner.clone(), id, _charge: charge })
    }

    /// A stripe that is below only.
    pub(super) fn of_stored(
        inner: &Arc<Inner>,
        at: (usize, usize),
        stored: Arc<dyn Stored>,
        kept: bool,
        charge: Charge,
    ) -> Arc<Stripe> {
        let id = inner.lock().insert_stored(at, stored, kept);
        Arc::new(Stripe { inner: inner.clone(), id, _charge: charge })
    }

    /// What it is below, if it is stored.
    pub(crate) fn stored(&self) -> Option<Arc<dyn Stored>> {
        self.inner.lock().stripes[self.id.slot as usize].stored.clone()
    }

    pub(super) fn id(&self) -> StripeId {
        self.id
    }

    /// One of its pages.
    pub(crate) fn page(&self, head: usize) -> PageKey {
        PageKey { slot: self.id.slot, head: head as u32 }
    }

    /// Whether its pages are always read, and so leave last.
    pub(crate) fn keep(&self, kept: bool) {
        self.inner.lock().keep(self.id.slot, kept);
    }

    /// How many of its pages are in host memory, and how many bytes of it are stored below.
    pub(crate) fn place(&self) -> (usize, bool) {
        self.inner.lock().place(self.id.slot)
    }
}

impl Drop for Stripe {
    fn drop(&mut self) {
        // What it held goes after the lock: frames, reads nobody waits for, the stored bytes.
        let removed = self.inner.lock().remove(self.id);
        self.inner.changed.notify_all();
        drop(removed);
    }
}

/// Keeps pages in host memory. Dropping it lets them go again.
#[derive(Debug, Default)]
pub struct Pin {
    stripes: Vec<Arc<Stripe>>,
}

impl Pin {
    /// Takes over the stripes, pinned by the caller.
    pub(super) fn new(stripes: Vec<Arc<Stripe>>) -> Pin {
        Pin { stripes }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let Some(first) = self.stripes.first() else { return };
        let inner = first.inner.clone();
        let mut table = inner.lock();
        self.stripes.iter().for_each(|s| table.unpin_stripe(s.id.slot));
        drop(table);
        inner.changed.notify_all();
    }
}
