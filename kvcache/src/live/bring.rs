//! Whole stripes at once: leases on what a call needs complete, restoring and pinning.

use std::sync::Arc;

use super::fetch::Lease;
use super::stripe::{Pin, Stripe};
use super::table::{PageKey, Place};
use super::tier::{Inner, Tier};
use crate::Error;
use crate::arena::{Arena, Cell};

/// Stripes restored by one read.
const STRIPES_AT_ONCE: usize = 32;

/// All pages of a layer, pinned; they are all near. The stripes must outlive it.
pub(crate) struct Whole<'a> {
    inner: &'a Inner,
    slots: Vec<u32>,
    /// Frame numbers by head and page, the open pages included.
    ids: Vec<Vec<u32>>,
}

impl Whole<'_> {
    /// Frame numbers of a head's pages.
    pub(crate) fn ids(&self, head: usize) -> &[u32] {
        &self.ids[head]
    }
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        let mut table = self.inner.lock();
        self.slots.iter().for_each(|&slot| table.unpin_stripe(slot));
        table.counts.leases -= 1;
        drop(table);
        self.inner.changed.notify_all();
    }
}

impl Tier {
    /// Pins all pages of a layer if all are near. `open` are the frames of each head's open pages.
    pub(crate) fn whole(&self, stripes: &[Arc<Stripe>], open: &[&[u32]]) -> Option<Whole<'_>> {
        let slots: Vec<u32> = stripes.iter().map(|s| s.id().slot).collect();
        let mut table = self.inner.lock();
        let heads = table.heads;
        if slots.iter().any(|&slot| (table.stripes[slot as usize].resident as usize) < heads) {
            return None;
        }
        let ids_of = |(head, open): (usize, &&[u32])| {
            let frame = |&slot: &u32| table.pages[slot as usize * heads + head].frame;
            let mut ids = Vec::with_capacity(slots.len() + open.len());
            ids.extend(slots.iter().map(frame));
            ids.extend_from_slice(open);
            ids
        };
        let ids = open.iter().enumerate().map(ids_of).collect();
        slots.iter().for_each(|&slot| table.stripes[slot as usize].pins += 1);
        table.counts.leases += 1;
        drop(table);
        Some(Whole { inner: &self.inner, slots, ids })
    }

    /// Brings pages near, all at once, and pins them; their frames. The caller must hold no lease.
    pub(crate) fn bring(&self, keys: &[PageKey]) -> Result<(Lease<'_>, Vec<u32>), Error> {
        loop {
            let lease = self.start(keys, true)?;
            if lease.len() == keys.len() {
                let frames = self.wait(keys, self.deadline())?;
                return Ok((lease, frames));
            }
            drop(lease);
            if !self.make_room(self.bytes_of(keys.len()), true) {
                return Err(self.over_budget(keys.len()));
            }
        }
    }

    /// Copies of all pages of these stripes, by head.
    pub(crate) fn copies(
        &self,
        stripes: &[Arc<Stripe>],
        arena: &Arc<Arena>,
    ) -> Result<Vec<Vec<Arc<Cell>>>, Error> {
        let heads = self.inner.lock().heads;
        let mut copies: Vec<Vec<Arc<Cell>>> =
            (0..heads).map(|_| arena.take(stripes.len())).collect::<Result<_, _>>()?;
        // One stripe after the other: its frames are all that is needed besides the copies.
        for (i, stripe) in stripes.iter().enumerate() {
            let (_lease, frames) = self.bring(&self.keys(stripe))?;
            for (to, frame) in copies.iter_mut().map(|c| &mut c[i]).zip(frames) {
                let Some(bytes) = to.bytes_mut() else {
                    unreachable!("a fresh cell has one holder")
                };
                // SAFETY: both are whole cells of one arena; the lease keeps the page where it is,
                // and a sealed page is not written.
                unsafe {
                    std::ptr::copy_nonoverlapping(arena.at(frame), bytes.as_mut_ptr(), bytes.len());
                }
            }
        }
        Ok(copies)
    }

    /// Brings a stripe near; its pages stay there for as long as their cells are held.
    pub(crate) fn hold(&self, stripe: &Stripe) -> Result<Vec<Arc<Cell>>, Error> {
        let keys = self.keys(stripe);
        let (_lease, _) = self.bring(&keys)?;
        let table = self.inner.lock();
        let cell = |&key: &PageKey| match &table.pages[table.at(key)].place {
            Place::Frame(cell) => cell.clone(),
            other => unreachable!("a leased page is in host memory, found {other:?}"),
        };
        Ok(keys.iter().map(cell).collect())
    }

    /// Bytes of so many frames.
    pub(crate) fn bytes_of(&self, frames: usize) -> u64 {
        frames as u64 * self.inner.arena.cell_bytes() as u64
    }

    /// Frames that take about that many bytes, and a small part of all at most.
    pub(crate) fn frames_for(&self, bytes: usize) -> usize {
        (bytes / self.inner.arena.cell_bytes()).min(self.inner.arena.cells() / 8).max(1)
    }

    /// The error of a call that needs so many frames at once.
    pub(crate) fn over_budget(&self, frames: usize) -> Error {
        let (inner, needed) = (&self.inner, self.bytes_of(frames));
        let budget = inner.budget.limit();
        Error::OverBudget { needed, free: budget.saturating_sub(inner.budget.used()), budget }
    }

    /// Brings stripes back in their order, as many as fit; how many pages were read.
    pub(crate) fn restore(&self, stripes: &[Arc<Stripe>]) -> Result<usize, Error> {
        // What came back stays pinned until the end, or it would make room for what follows.
        let mut leases = Vec::new();
        let mut pages = 0;
        for stripes in stripes.chunks(STRIPES_AT_ONCE) {
            let keys: Vec<PageKey> = stripes.iter().flat_map(|s| self.keys(s)).collect();
            let near = self.near(&keys);
            let lease = self.start(&keys, false)?;
            let n = lease.len();
            self.wait(&keys[..n], self.deadline())?;
            pages += near[..n].iter().filter(|near| !**near).count();
            leases.push(lease);
            if n < keys.len() {
                break;
            }
        }
        Ok(pages)
    }

    /// Brings stripes near and keeps them there.
    pub(crate) fn pin(&self, stripes: Vec<Arc<Stripe>>) -> Result<Pin, Error> {
        let keys: Vec<PageKey> = stripes.iter().flat_map(|s| self.keys(s)).collect();
        let (lease, _) = self.bring(&keys)?;
        stripes.iter().for_each(|s| self.pin_stripe(s));
        drop(lease);
        Ok(Pin::new(stripes))
    }
}
