//! Making room and erasing: whole segments leave; what is to stay moves to the newest first.

use super::append::Put;
use super::item::Item;
use super::read::{Place, reason, reason_of_error};
use super::spans::{Part, Span, SpanNext, SpanReads};
use super::state::{Slot, Tenant};
use super::write::{Open, Refused, Writer};
use super::{Disk, Entry};
use crate::codec::verify_stored;
use crate::format::{BlockKey, FLAG_SEALED, Header, segment_name};
use crate::miss::MissReason;
use crate::vfs::Buf;

/// Bytes of records that are moved at a time.
pub(super) const MOVE: u64 = 16 << 20;
/// Where segments go that are not to be trusted.
pub(crate) const ASIDE: &str = "quarantine";

/// How many of the first records have at most so many bytes together; at least one.
pub(super) fn run_of(places: &[Place], most: u64) -> usize {
    let mut bytes = 0;
    let fits = |p: &&Place| {
        bytes += p.entry.bytes();
        bytes <= most
    };
    places.iter().take_while(fits).count().max(1)
}

/// What erasing a tenant came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Records that were readable.
    pub records: u64,
    /// Segment files that held some of the tenant's bytes, and are gone.
    pub segments: u64,
    /// Such files that could not be removed yet; the next start tries again.
    pub segments_left: u64,
}

impl Disk {
    /// Removes one segment with everything in it: one that was put aside, else the oldest finished
    /// one. `false` if there is none.
    pub(super) fn evict_oldest(&self) -> bool {
        if self.remove_aside() {
            return true;
        }
        let victim = self.oldest();
        victim.is_some_and(|id| self.remove_segment(id))
    }

    /// Removes a segment that was put aside. One that cannot be removed keeps its charge.
    fn remove_aside(&self) -> bool {
        let Some(segment) = self.state.lock().aside.pop() else { return false };
        let name = segment_name(u64::from(segment.id));
        let aside = self.dir.subdir(ASIDE, false);
        let removed = aside.and_then(|dir| dir.remove(&name));
        // One that could not be removed before is still under its old name.
        let removed = removed.or_else(|_| self.dir.remove(&name));
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("{name} cannot be removed: {e}");
                self.state.lock().aside.insert(0, segment);
                false
            }
            _ => {
                self.state.lock().left(&segment);
                true
            }
        }
    }

    /// The oldest segment that may leave; one that says of tenants that they were erased comes last.
    fn oldest(&self) -> Option<u32> {
        let state = self.state.lock();
        let free = |(_, slot): &(&u32, &Slot)| slot.finished && slot.held == 0 && !slot.stays;
        let mut victims: Vec<u32> = state.segments.iter().filter(free).map(|(&id, _)| id).collect();
        victims.sort_by_key(|&id| (state.says(id), id));
        victims.first().copied()
    }

    /// Forgets a segment's records, then removes its file; its bytes are given back when the last
    /// reader lets go.
    pub(super) fn remove_segment(&self, id: u32) -> bool {
        let mut state = self.state.lock();
        let Some(slot) = state.segments.get(&id) else { return false };
        state.counts.evicted += slot.live_records;
        let Some(segment) = state.drop_segment(id) else { return false };
        drop(state);
        match self.dir.remove(&segment_name(u64::from(id))) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(segment = id, "cannot be removed: {e}");
                self.state.lock().aside.push(segment);
                false
            }
            _ => {
                self.state.lock().left(&segment);
                self.health.lock().freed();
                true
            }
        }
    }

    /// Removes finished segments in which nothing is alive.
    pub(crate) fn remove_empty(&self) {
        let state = self.state.lock();
        let empty = |(id, slot): &(&u32, &Slot)| {
            slot.finished && slot.live_records == 0 && !slot.stays && !state.says(**id)
        };
        let ids: Vec<u32> = state.segments.iter().filter(empty).map(|(&id, _)| id).collect();
        drop(state);
        for id in ids {
            self.remove_segment(id);
        }
    }

    /// Puts a segment aside that failed reads: its records are misses.
    pub(super) fn quarantine_segment(&self, id: u32) {
        let mut state = self.state.lock();
        let Some(slot) = state.segments.get(&id) else { return };
        // The open one is finished first: it is written by name and must stay where it is.
        if !slot.finished {
            return;
        }
        state.counts.quarantined += slot.live_records;
        let Some(segment) = state.drop_segment(id) else { return };
        drop(state);
        let name = segment_name(u64::from(id));
        let moved = self
            .dir
            .subdir(ASIDE, true)
            .and_then(|aside| self.dir.rename_into(&name, &*aside, &name));
        if let Err(e) = moved {
            tracing::warn!(segment = id, "stays where it is: {e}");
        }
        self.state.lock().aside.push(segment);
    }

    /// Frees old segments until another one fits, so that there is always somewhere to move to.
    pub(super) fn make_headroom(&self, writer: &mut Writer, open: &mut Open) {
        loop {
            let leaving = self.state.lock().leaving_bytes();
            if self.budget.used().saturating_sub(leaving) + open.capacity <= self.budget.limit() {
                return;
            }
            if self.remove_aside() {
                continue;
            }
            // One whose held records find no room stays, and the next is tried.
            let victims = self.finished(open.segment.id);
            let left = victims.into_iter().any(|victim| self.vacate(writer, open, victim));
            if !left {
                return;
            }
        }
    }

    fn finished(&self, but: u32) -> Vec<u32> {
        let state = self.state.lock();
        let finished = |(id, slot): &(&u32, &Slot)| slot.finished && !slot.stays && **id != but;
        state.segments.iter().filter(finished).map(|(&id, _)| id).collect()
    }

    /// Moves what must stay, and what was read as far as half of the open segment goes, and removes
    /// the rest with its segment. `false` if something must stay where it is.
    fn vacate(&self, writer: &mut Writer, open: &mut Open, victim: u32) -> bool {
        let held = self.records_of(victim, Entry::is_held);
        let bytes: u64 = held.iter().map(|p| p.entry.bytes()).sum();
        // Moving one that is nearly all needed would only make another like it.
        if bytes > open.capacity / 4 * 3 {
            return false;
        }
        if !self.move_records(writer, open, held, open.capacity).is_empty() {
            return false;
        }
        let hot = self.records_of(victim, |entry| entry.hit);
        self.move_records(writer, open, hot, open.capacity / 2);
        self.say_tombstones(writer, open, Some(victim)) && self.remove_segment(victim)
    }

    /// The unsealed records of a segment, in order of place. Sealed ones cannot be moved without
    /// their tenant's key.
    fn records_of(&self, id: u32, wanted: impl Fn(&Entry) -> bool) -> Vec<Place> {
        let state = self.state.lock();
        let Some(slot) = state.segments.get(&id) else { return Vec::new() };
        let segment = &slot.segment;
        let of_segment = |(_, e): &(&BlockKey, &Entry)| {
            e.segment == id && e.flags & FLAG_SEALED == 0 && wanted(e)
        };
        let place = |(key, entry): (&BlockKey, &Entry)| Place {
            segment: segment.clone(),
            entry: *entry,
            key: *key,
        };
        let mut places: Vec<Place> = state.index.iter().filter(of_segment).map(place).collect();
        places.sort_by_key(|p| p.entry.position);
        places
    }

    /// Copies records into the open segment until it is filled up to `limit`. Returns those for
    /// which there was no room.
    fn move_records(
        &self,
        writer: &mut Writer,
        open: &mut Open,
        mut places: Vec<Place>,
        limit: u64,
    ) -> Vec<Place> {
        while !places.is_empty() && open.at < limit && !open.segment.is_poisoned() {
            let rest = places.split_off(run_of(&places, MOVE.min(limit - open.at)));
            let items: Vec<(usize, Item)> = self.load(&places).into_iter().enumerate().collect();
            let mut results = vec![Ok(()); items.len()];
            let (taken, ..) = self.fill(writer, open, &items, &mut results);
            let moved = results[..taken].iter().filter(|r| r.is_ok()).count();
            self.state.lock().counts.moved += moved as u64;
            if taken < items.len() {
                return places.split_off(taken).into_iter().chain(rest).collect();
            }
            places = rest;
        }
        places
    }

    /// Reads and checks whole records. What fails is left out, and not served any more.
    pub(super) fn load(&self, places: &[Place]) -> Vec<Item<'static>> {
        let span = |(tag, p): (usize, &Place)| {
            let from = u64::from(p.entry.position) * crate::format::SECTOR as u64;
            let bytes = from..from + p.entry.bytes();
            Span { segment: p.segment.clone(), bytes, tag, into: None }
        };
        let mut reads = SpanReads::start(self, places.iter().enumerate().map(span).collect());
        let mut found: Vec<(usize, Item)> = Vec::new();
        while let SpanNext::Done(run) = reads.next(Some(self.deadline())) {
            for Part { tag, range, .. } in run.parts {
                let stored = match (&run.result, &run.buf) {
                    (Ok(()), Some(buf)) => Ok(&buf[range]),
                    (Err(e), _) => Err(reason_of_error(e)),
                    _ => Err(MissReason::Io),
                };
                match stored.and_then(|raw| self.copy(&places[tag], raw)) {
                    Ok(item) => found.push((tag, item)),
                    Err(reason) => self.failed(&places[tag], reason),
                }
            }
        }
        found.sort_by_key(|(tag, _)| *tag);
        found.into_iter().map(|(_, item)| item).collect()
    }

    fn copy(&self, place: &Place, raw: &[u8]) -> Result<Item<'static>, MissReason> {
        let header: Header = place.header(self, raw)?;
        verify_stored(raw, &header, false).map_err(reason)?;
        let mut buf = Buf::alloc(raw.len()).ok_or(MissReason::Busy)?;
        buf.copy_from_slice(raw);
        Ok(Item::Moved(header, buf))
    }

    /// Says again what a leaving segment, or one that has left, says of erased tenants. `false` if that
    /// failed: then the segment must stay.
    pub(super) fn say_tombstones(
        &self,
        writer: &mut Writer,
        open: &mut Open,
        leaving: Option<u32>,
    ) -> bool {
        let state = self.state.lock();
        let wanted = |(_, t): &(usize, &Tenant)| t.erased_before > 0 && t.tombstone == leaving;
        let of = |(number, t): (usize, &Tenant)| (number, t.tag, t.erased_before);
        let tenants: Vec<_> = state.tenants.iter().enumerate().filter(wanted).map(of).collect();
        drop(state);
        for (number, tenant, erased_before) in tenants {
            if open.segment.is_poisoned() {
                return false;
            }
            let item = Item::Tombstone { tenant, erased_before: Some(erased_before) };
            let mut result = [Ok(())];
            let (_, put, ok) = self.fill(writer, open, &[(0, item)], &mut result);
            if !ok || put != Put::Taken || result[0].is_err() {
                return false;
            }
            self.state.lock().tenants[number].tombstone = Some(open.segment.id);
        }
        true
    }

    fn keep_tombstones(&self, writer: &mut Writer, leaving: u32) -> bool {
        if !self.state.lock().says(leaving) {
            return true;
        }
        let item = Item::Tombstone { tenant: [0; 16], erased_before: None };
        let Ok(mut open) = self.open_segment(writer, &item) else { return false };
        let said = self.say_tombstones(writer, &mut open, Some(leaving));
        if !open.segment.is_poisoned() {
            writer.open.push(open);
        }
        said
    }

    /// Erases a tenant: nothing of it is served from now on, whatever happens; its bytes leave with
    /// the segments that hold them, which are rewritten without it. A barrier: puts and reads that
    /// start later see an empty tenant.
    ///
    /// # Errors
    /// [`Refused`] if the erasure could not be made durable; then nothing was erased on disk.
    pub(crate) fn erase_tenant(&self, tenant: [u8; 16]) -> Result<Erased, Refused> {
        let mut writer = self.writer.take(self.options.deadline).ok_or(Refused::Timeout)?;
        let item = [(0, Item::Tombstone { tenant, erased_before: None })];
        let mut result = [Ok(())];
        if !bug!("tombstone_not_written") {
            self.append(&mut writer, &item, &mut result);
        }
        result[0]?;
        let said = writer.open.iter().find(|o| o.segment.tenant == [0; 16]);
        let said = said.map(|o| o.segment.id);
        let erased_before = writer.sequence;
        let (records, segments) = self.state.lock().erase(tenant, erased_before, said);
        let mut erased = Erased { records, ..Erased::default() };
        self.rewrite_without(&mut writer, &segments, &mut erased);
        Ok(erased)
    }

    /// Removes segments, moving what is alive in them.
    pub(super) fn rewrite_without(
        &self,
        writer: &mut Writer,
        segments: &[u32],
        erased: &mut Erased,
    ) {
        let is_open = |o: &Open| segments.contains(&o.segment.id);
        let (leaving, open) = std::mem::take(&mut writer.open).into_iter().partition(is_open);
        writer.open = open;
        let leaving: Vec<Open> = leaving;
        leaving.into_iter().for_each(|open| self.finish(open));
        for &id in segments {
            self.copy_records(writer, self.records_of(id, |_| true));
            // It may have left to make room for what was moved. What could not be moved, stays.
            let all_moved = match self.state.lock().segments.get(&id) {
                Some(slot) => slot.live_records == 0,
                None => true,
            };
            let may_go = all_moved && self.keep_tombstones(writer, id);
            let is_there = self.state.lock().segments.contains_key(&id);
            let gone = !is_there || (may_go && self.remove_segment(id));
            if gone {
                erased.segments += 1;
            } else {
                erased.segments_left += 1;
            }
        }
        // Names that come back after a crash hold records that the tombstone keeps unseen.
        if let Err(e) = self.dir.sync() {
            tracing::warn!("removed segments may come back: {e}");
        }
    }
}
