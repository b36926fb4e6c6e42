//! Filling one segment: items are encoded into stages, written in large pieces while the next is
//! encoded, synced once, then published. Pages that are stored as they are, are written from where they
//! lie.

use std::io;
use std::time::Duration;

use super::item::Item;
use super::stage::Stage;
use super::write::{Open, Refused, is_full};
use super::{Disk, health};
use crate::format::{FooterEntry, SECTOR};
use crate::vfs::{MEMORY_ALIGN, Op, Outcome, Whole};

/// Items are collected up to this many bytes before they are written.
const STAGE: usize = 2 << 20;
/// Bytes of a stage for records whose tiles stay where they are.
const PREFIXES: usize = 128 << 10;
/// Pieces in flight while the next is encoded.
const IN_FLIGHT: usize = 4;
/// Bytes of a footer per record, and of its frame, trailer and padding.
const FOOTER_ENTRY: u64 = 72;
pub(super) const FOOTER_REST: u64 = 8192;

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Taken,
    /// The segment has no room for it.
    SegmentFull,
    /// Writing failed: nothing more goes into this segment.
    Failed,
}

/// An item that was encoded.
#[derive(Clone, Copy)]
struct Wrote {
    /// Place of its result.
    index: usize,
    entry: FooterEntry,
    /// The caller holds it: it need not survive a crash yet, and must not be evicted.
    live: bool,
    /// Sequence number of what it is a copy of.
    copy_of: Option<u64>,
}

/// One segment being filled.
pub(super) struct Append<'a> {
    disk: &'a Disk,
    open: Open,
    flight: Whole,
    /// Where it began: what lies before was finished earlier.
    start: u64,
    stage: Option<Stage>,
    /// Bytes that are expected in all, at most.
    expected: usize,
    /// Encoded and not yet durable, with the place of its result.
    wrote: Vec<Wrote>,
    failure: Option<Refused>,
}

impl<'a> Append<'a> {
    /// A segment that is about to get so many bytes, at most.
    pub(super) fn new(disk: &'a Disk, open: Open, expected: usize) -> Append<'a> {
        Append {
            expected,
            flight: Whole::start(&disk.vfs, Vec::new()),
            start: open.at,
            disk,
            open,
            stage: None,
            wrote: Vec::new(),
            failure: None,
        }
    }

    /// Whose segment it is.
    pub(super) fn owner(&self) -> [u8; 16] {
        self.open.segment.tenant
    }

    fn align(&self) -> usize {
        self.open.segment.file.alignment().max(SECTOR)
    }

    /// Bytes that wait in the stage.
    fn waiting(&self) -> usize {
        self.stage.as_ref().map_or(0, Stage::len)
    }

    /// Whether `need` more bytes and the footer fit.
    fn fits(&self, need: usize) -> bool {
        let records = (self.open.entries.len() + self.wrote.len() + 1) as u64;
        // What waits may be sent before, rounded up by itself.
        let waiting = self.waiting().next_multiple_of(self.align());
        let end = self.open.at + (waiting + need).next_multiple_of(self.align()) as u64;
        end + FOOTER_REST + records * FOOTER_ENTRY <= self.open.capacity
    }

    /// Takes items until the segment is full or fails; how many have their result, and why it ended.
    pub(super) fn put_all(
        &mut self,
        items: &[(usize, Item)],
        sequence: &mut u64,
        results: &mut [Result<(), Refused>],
    ) -> (usize, Put) {
        for (taken, (index, item)) in items.iter().enumerate() {
            let put = self.put(*index, item, *sequence);
            if put == Put::SegmentFull {
                return (taken, put);
            }
            *sequence += 1;
            if put == Put::Failed {
                results[*index] = Err(self.failure.unwrap_or(Refused::Io));
                // It has its result: so that no disk, however broken, keeps us here for ever.
                return (taken + 1, put);
            }
        }
        (items.len(), Put::Taken)
    }

    /// Takes an item whose result has this index.
    fn put(&mut self, index: usize, item: &Item, sequence: u64) -> Put {
        let need = item.need();
        if !self.fits(need) {
            return Put::SegmentFull;
        }
        let tiles = item.tiles(&*self.open.segment.file);
        let staged = item.staged(tiles.as_ref());
        let inserts = tiles.as_ref().map_or(0, Vec::len);
        // What lies elsewhere must start at a multiple, too.
        let ragged = |s: &Stage| tiles.is_some() && !s.len().is_multiple_of(self.align());
        let full = |s: &Stage| s.len() + need > STAGE || !s.has_room(staged, inserts) || ragged(s);
        if self.stage.as_ref().is_some_and(full) {
            self.submit();
        }
        if self.stage.is_none() {
            let usual = if tiles.is_some() { PREFIXES } else { STAGE.min(self.expected) };
            self.stage = self.fresh(staged.max(usual));
        }
        let position = (self.open.at as usize + self.waiting()) / SECTOR;
        let Some(stage) = self.stage.as_mut().filter(|_| self.failure.is_none()) else {
            self.failure.get_or_insert(Refused::Throttled);
            return Put::Failed;
        };
        let entry = stage.put(item, tiles, &self.open.segment, position as u32, sequence);
        let (live, copy_of) = (item.is_live(), item.copy_of());
        self.wrote.push(Wrote { index, entry, live, copy_of });
        Put::Taken
    }

    /// A stage for `len` bytes of its own, once no more than a few are in flight.
    fn fresh(&mut self, len: usize) -> Option<Stage> {
        if self.flight.pending() >= IN_FLIGHT {
            self.reap();
        }
        // Whole pages: what is written is rounded up to the file's alignment.
        self.disk.buffers.take(len.next_multiple_of(MEMORY_ALIGN)).map(Stage::new)
    }

    /// Sends the stage on its way.
    fn submit(&mut self) {
        let Some(stage) = self.stage.take() else { return };
        while self.flight.pending() >= IN_FLIGHT && self.failure.is_none() {
            self.reap();
        }
        if self.failure.is_some() {
            return;
        }
        let (file, offset) = (self.open.segment.file.clone(), self.open.at);
        let (buf, inserts) = stage.finish(self.align());
        let op = Op { inserts, ..Op::write(file, offset, buf) };
        let len = op.len() as u64;
        self.flight.push(op);
        self.open.at = offset + len;
        self.disk.state.lock().wrote(self.open.segment.id, offset, len);
        // Hands it to the kernel now, not when somebody waits.
        let soon = self.flight.next(Some(Duration::ZERO));
        self.ended(soon);
    }

    /// Waits for one piece.
    fn reap(&mut self) {
        let outcome = self.flight.next(Some(self.disk.deadline()));
        if matches!(outcome, Outcome::TimedOut) {
            self.disk.health.lock().stuck(self.disk.vfs.now());
            self.failure = Some(Refused::Timeout);
        }
        self.ended(outcome);
    }

    fn ended(&mut self, outcome: Outcome) {
        if let Outcome::Done { result, buf, .. } = outcome {
            self.disk.buffers.give(buf);
            if let Err(e) = result {
                self.fail(&e);
            }
        }
    }

    fn fail(&mut self, e: &io::Error) {
        tracing::warn!(segment = self.open.segment.id, "cannot be written: {e}");
        let now = self.disk.vfs.now();
        self.failure = Some(match is_full(e) {
            true => Refused::Full,
            false => Refused::Io,
        });
        if is_full(e) {
            self.disk.health.lock().full(now);
        }
    }

    /// Sends what was taken on its way and waits for a part of it; `false` if nothing is on its way.
    pub(super) fn advance(&mut self) -> bool {
        self.submit();
        let waits = self.failure.is_none() && self.flight.pending() > 0;
        if waits {
            self.reap();
        }
        waits
    }

    /// Makes what was taken durable, then visible, and says what became of each. `false` if that
    /// failed: then none of it exists, and the segment must not be used any more.
    pub(super) fn finish(mut self, results: &mut [Result<(), Refused>]) -> (Open, bool) {
        self.submit();
        while self.failure.is_none() && self.flight.pending() > 0 {
            self.reap();
        }
        let lasts = self.wrote.iter().any(|w| !w.live);
        if self.failure.is_none() && !self.wrote.is_empty() && !lasts {
            self.open.segment.set_synced(false);
        }
        if self.failure.is_none() && lasts {
            if bug!("published_before_sync") {
                let mut state = self.disk.state.lock();
                let id = self.open.segment.id;
                for w in &self.wrote {
                    state.publish(id, &w.entry, false);
                }
            }
            if let Err(e) = self.disk.sync_segment(&self.open.segment) {
                tracing::warn!(segment = self.open.segment.id, "fdatasync failed: {e}");
                self.failure = Some(Refused::Io);
            }
        }
        match self.failure {
            Some(refused) => self.give_up(refused, results),
            None => self.publish(results),
        }
        (self.open, self.failure.is_none())
    }

    fn publish(&mut self, results: &mut [Result<(), Refused>]) {
        let mut state = self.disk.state.lock();
        for Wrote { index, entry, live, copy_of } in self.wrote.drain(..) {
            let id = self.open.segment.id;
            let seen = match copy_of {
                Some(from) => state.publish_moved(id, &entry, from),
                None => state.publish(id, &entry, live),
            };
            results[index] = if seen { Ok(()) } else { Err(Refused::AlreadyPresent) };
            self.open.entries.push(entry);
        }
        drop(state);
        self.disk.health.lock().recovered();
    }

    fn give_up(&mut self, refused: Refused, results: &mut [Result<(), Refused>]) {
        self.wrote.iter().for_each(|w| results[w.index] = Err(refused));
        self.open.segment.poison();
        self.open.failed = Some(refused);
        if !bug!("failed_tail_kept") {
            self.cut_tail(refused);
        }
        let mut state = self.disk.state.lock();
        state.counts.poisoned_segments += 1;
        if bug!("unacknowledged_kept") {
            let id = self.open.segment.id;
            for w in &self.wrote {
                state.publish(id, &w.entry, false);
            }
        }
        // Nobody reads them, but erasing their tenant must take them along.
        self.wrote.iter().for_each(|w| state.note(self.open.segment.id, w.entry.tenant));
        if let Some(slot) = state.segments.get_mut(&self.open.segment.id) {
            slot.finished = true;
        }
    }
}

impl Append<'_> {
    /// Takes away what was not acknowledged: the next process would see it in the page cache, though
    /// it may never reach the disk.
    fn cut_tail(&self, refused: Refused) {
        let segment = &self.open.segment;
        match segment.file.set_len(self.start) {
            // What is still in flight may come later.
            Ok(()) if refused != Refused::Timeout => segment.finish(self.start),
            Ok(()) => {}
            Err(e) => tracing::warn!(segment = segment.id, "keeps what failed: {e}"),
        }
    }
}

impl std::fmt::Debug for Append<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Append").field("segment", &self.open.segment.id).finish_non_exhaustive()
    }
}

/// Whether a rest is only for lack of room.
pub(super) fn refused_by(cause: health::Cause) -> Refused {
    if cause == health::Cause::Full { Refused::Full } else { Refused::Throttled }
}
