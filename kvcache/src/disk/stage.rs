//! What is written in one go: encoded bytes, and between them pages that are stored as they are, which
//! stay where they lie.

use super::Segment;
use super::item::{Item, Tiles};
use crate::format::{FooterEntry, SECTOR};
use crate::vfs::{Buf, INSERTS_MAX, Insert};

/// Records that wait to be written.
#[derive(Debug)]
pub(super) struct Stage {
    buf: Buf,
    /// Bytes of `buf` that are used.
    used: usize,
    inserts: Vec<Insert>,
    /// Bytes of inserts.
    inserted: usize,
}

impl Stage {
    pub(super) fn new(buf: Buf) -> Stage {
        Stage { buf, used: 0, inserts: Vec::new(), inserted: 0 }
    }

    /// Bytes to be written.
    pub(super) fn len(&self) -> usize {
        self.used + self.inserted
    }

    /// Whether so many bytes and inserts can be added.
    pub(super) fn has_room(&self, bytes: usize, inserts: usize) -> bool {
        self.used + bytes <= self.buf.len() && self.inserts.len() + inserts <= INSERTS_MAX
    }

    /// Adds the record of an item, for which there must be room; with its tiles from where they lie, if
    /// those are given.
    pub(super) fn put(
        &mut self,
        item: &Item,
        tiles: Option<Tiles>,
        segment: &Segment,
        position: u32,
        sequence: u64,
    ) -> FooterEntry {
        let out = &mut self.buf[self.used..];
        let entry = item.encode(segment, position, sequence, out, tiles.is_some());
        let tiles = tiles.unwrap_or_default();
        let outside: usize = tiles.iter().map(|buf| buf.len()).sum();
        self.used += entry.sectors as usize * SECTOR - outside;
        self.inserted += outside;
        self.inserts.extend(tiles.into_iter().map(|buf| Insert { at: self.used, buf }));
        entry
    }

    /// All of it, rounded up with zeros.
    pub(super) fn finish(self, align: usize) -> (Buf, Vec<Insert>) {
        let Stage { mut buf, used, inserts, inserted } = self;
        let end = used + (used + inserted).next_multiple_of(align) - (used + inserted);
        buf[used..end].fill(0);
        buf.set_len(end);
        (buf, inserts)
    }
}
