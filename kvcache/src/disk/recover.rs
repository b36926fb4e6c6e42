//! Finding what is stored: footers where segments were finished, a scan where not. Reads only; a
//! record that is damaged or cut is skipped, those before and after it are served.

use std::io;
use std::sync::Arc;

use super::clean::Erased;
use super::dir::{error_at, is_known};
use super::state::Slot;
use super::{Disk, Segment};
use crate::Error;
use crate::codec::verify_stored;
use crate::format::{
    Bad, FLAG_SEALED, FLAG_TOMBSTONE, Footer, FooterEntry, HEAD_BYTES, Head, Header, SECTOR,
    TRAILER_BYTES, Trailer, parse_name, segment_name,
};
use crate::vfs::{Access, Buf, Entry, File, Kind, read_exact};

/// Bytes of a segment that are scanned at a time.
const SCAN: u64 = 4 << 20;
/// A footer is not longer than this, however many records there are.
const FOOTER_MAX: u64 = 64 << 20;
/// So many, where that failed.
const SCAN_LEAST: u64 = 4096;
/// Failures after which the rest of a segment is given up.
const ERRORS: u64 = 64;

/// What was found in a segment.
#[derive(Default)]
struct Found {
    entries: Vec<FooterEntry>,
    /// Tenants erased before a sequence number, as tombstones say.
    erased: Vec<([u8; 16], u64)>,
    skipped: u64,
}

/// What a tombstone says: a tenant, and the sequence number below which its records are gone. Never
/// more than what was there when it was written.
fn erasure(header: &Header) -> ([u8; 16], u64) {
    (header.tenant, header.decoded_hash.min(header.sequence))
}

/// A segment of another directory, or a copy under another number.
fn foreign() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "of another directory or place")
}

fn is_foreign(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::InvalidData
}

impl Disk {
    /// Fills the state from the directory.
    pub(super) fn recover(&mut self) -> Result<(), Error> {
        let path = self.options.path.clone();
        let entries = self.dir.list().map_err(|e| error_at(&path, e))?;
        self.state.lock().counts.alien_files =
            entries.iter().filter(|e| !is_known(e)).count() as u64;
        let numbered = |e: &Entry| Some((u32::try_from(parse_name(&e.name)?).ok()?, e.len));
        let files = entries.iter().filter(|e| e.kind == Kind::File);
        let mut ids: Vec<(u32, u64)> = files.filter_map(numbered).collect();
        ids.sort_unstable();
        // Also those that cannot be read have taken their number.
        let last = ids.last().map_or(0, |(id, _)| *id).max(self.find_aside());
        let mut sequence = 0;
        for &(id, len) in &ids {
            match self.take_segment(id, len) {
                Ok(next) => sequence = sequence.max(next),
                Err(e) => self.leave_alone(id, len, &e),
            }
        }
        let mut writer = self.writer.take(std::time::Duration::ZERO).ok_or_else(|| {
            Error::System { what: "opening the disk tier", reason: "it is in use".to_owned() }
        })?;
        writer.sequence = if cfg!(kvist_bug = "sequence_reset") { 0 } else { sequence };
        writer.next_id = last.saturating_add(1);
        let erased = self.state.lock().forget_erased();
        // Files of a former run count, before anything is served.
        while self.budget.used() > self.budget.limit() && self.evict_oldest() {}
        self.rewrite_without(&mut writer, &erased, &mut Erased::default());
        Ok(())
    }

    /// A file with the name of a segment that is not taken into the books. It may be ours, and only
    /// unreadable or never finished, so its bytes count.
    fn leave_alone(&self, id: u32, len: u64, e: &io::Error) {
        tracing::warn!("segment {id:016x} is left alone: {e}");
        if cfg!(kvist_bug = "alien_removed") {
            let _ = self.dir.remove(&segment_name(u64::from(id)));
        }
        let mut state = self.state.lock();
        state.counts.alien_files += 1;
        if !is_foreign(e) {
            state.unread.push(self.budget.found(len));
        }
    }

    /// Charges segments that a former run put aside. Returns the highest number of one.
    fn find_aside(&self) -> u32 {
        let Ok(aside) = self.dir.subdir(super::clean::ASIDE, false) else { return 0 };
        let mut last = 0;
        for entry in aside.list().unwrap_or_default() {
            let id = parse_name(&entry.name).and_then(|id| u32::try_from(id).ok());
            let (Some(id), Kind::File) = (id, entry.kind) else { continue };
            last = last.max(id);
            let charge = self.budget.found(entry.len);
            let mut state = self.state.lock();
            match aside.open(&entry.name, Access::Buffered) {
                Ok(file) => {
                    let segment = Segment::new(id, file, [0; 32], [0; 16], charge);
                    state.aside.push(Arc::new(segment));
                }
                Err(_) => state.unread.push(charge),
            }
        }
        last
    }

    /// Opens a segment for reading: past the page cache, unless its length forbids it, as where it was
    /// copied from a disk with smaller sectors.
    fn open_segment_file(&self, id: u32, len: u64) -> io::Result<Arc<dyn File>> {
        let name = segment_name(u64::from(id));
        let file = self.dir.open(&name, Access::Direct)?;
        if len.is_multiple_of(file.alignment() as u64) {
            return Ok(file);
        }
        self.dir.open(&name, Access::Buffered)
    }

    /// Takes a segment into the books. Returns a sequence number above all of its records.
    fn take_segment(&self, number: u32, len: u64) -> io::Result<u64> {
        if len < HEAD_BYTES as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let file = self.open_segment_file(number, len)?;
        let stat = file.stat()?;
        if !stat.mine && !self.options.allow_shared_dir {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let deadline = self.deadline();
        let buf = super::write::alloc(HEAD_BYTES)?;
        let head = read_exact(&self.vfs, &file, 0, buf, deadline)?;
        let head = Head::decode(&head).map_err(io::Error::other)?;
        if head.id != u64::from(number) || head.uuid != self.uuid {
            return Err(foreign());
        }
        let charge = self.budget.found(len);
        let segment = Arc::new(Segment::new(number, file, head.seal, head.tenant, charge));
        let found = match self.footer(&segment, len) {
            Some(found) => found,
            None => {
                // What a killed process wrote last may be in the page cache only.
                if !cfg!(kvist_bug = "unsynced_trusted") {
                    segment.file.sync_data()?;
                }
                self.scan(&segment, len)?
            }
        };
        let next = found.entries.iter().map(|e| e.sequence + 1).fold(head.sequence, u64::max);
        let mut state = self.state.lock();
        state.counts.skipped_records += found.skipped;
        state.segments.insert(number, Slot { finished: true, ..Slot::new(segment) });
        for (tenant, before) in found.erased {
            state.erased(tenant, before, number);
        }
        for entry in &found.entries {
            state.publish(number, entry, false);
        }
        Ok(next)
    }

    fn span(&self, segment: &Segment, from: u64, to: u64, len: u64) -> io::Result<(Buf, usize)> {
        let align = segment.file.alignment().max(SECTOR) as u64;
        let start = from / align * align;
        // The end of a file may not be aligned; what is behind it reads short and is not asked for.
        let end = to.next_multiple_of(align).min(len / align * align);
        if end <= start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let buf = self.buffers.take((end - start) as usize);
        let buf = buf.ok_or(io::ErrorKind::OutOfMemory)?;
        let buf = read_exact(&self.vfs, &segment.file, start, buf, self.deadline())?;
        Ok((buf, (from - start) as usize))
    }

    /// The index that a finished segment ends with, if it is there and right.
    fn footer(&self, segment: &Segment, len: u64) -> Option<Found> {
        let at = len.checked_sub(TRAILER_BYTES as u64)?;
        let (buf, shift) = self.span(segment, at, len, len).ok()?;
        let id = u64::from(segment.id);
        let trailer = Trailer::decode(buf.get(shift..)?, id, len).ok()?;
        self.buffers.give(buf);
        if trailer.len > FOOTER_MAX {
            return None;
        }
        let end = trailer.offset + trailer.len;
        let (buf, shift) = self.span(segment, trailer.offset, end, len).ok()?;
        let raw = buf.get(shift..shift + trailer.len as usize)?;
        let sectors = u32::try_from(trailer.offset / SECTOR as u64).ok()?;
        let footer = Footer::decode(raw, &self.uuid, id, sectors).ok()?;
        self.buffers.give(buf);
        let mut found = Found { entries: footer.entries, ..Found::default() };
        let is_tombstone = |e: &&FooterEntry| e.flags & FLAG_TOMBSTONE != 0;
        let tombstones: Vec<FooterEntry> =
            found.entries.iter().filter(is_tombstone).copied().collect();
        for entry in tombstones {
            // What it erases stands in the record alone: without it the footer is not enough.
            let from = u64::from(entry.position) * SECTOR as u64;
            let (buf, shift) = self.span(segment, from, from + SECTOR as u64, len).ok()?;
            let header = Header::decode(buf.get(shift..)?, &self.options.limits).ok()?;
            let here = header.segment == segment.id && header.position == entry.position;
            if !here || super::item::entry_of(&header) != entry {
                return None;
            }
            found.erased.push(erasure(&header));
        }
        Some(found)
    }

    /// Looks for records at every sector. What cannot be read is skipped, up to a limit.
    fn scan(&self, segment: &Segment, len: u64) -> io::Result<Found> {
        let mut found = Found::default();
        let mut at = HEAD_BYTES as u64;
        let (mut errors, mut step) = (0, SCAN);
        while at + SECTOR as u64 <= len {
            let to = (at + step).min(len);
            let scanned = self.span(segment, at, to, len).and_then(|(buf, shift)| {
                let next = self.scan_window(segment, len, at, &buf[shift..], &mut found);
                self.buffers.give(buf);
                next
            });
            match scanned {
                Ok(next) => (at, step) = (next, SCAN),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(e),
                Err(_) if errors == ERRORS => break,
                // Closer in on what is bad, then past it.
                Err(_) if step > SCAN_LEAST => step = SCAN_LEAST,
                Err(_) => {
                    errors += 1;
                    found.skipped += 1;
                    at += SCAN_LEAST;
                }
            }
        }
        Ok(found)
    }

    /// Scans what was read from `at` on. Returns where to go on.
    fn scan_window(
        &self,
        segment: &Segment,
        len: u64,
        at: u64,
        window: &[u8],
        found: &mut Found,
    ) -> io::Result<u64> {
        let mut done = 0;
        while let Some(rest) = window.get(done..).filter(|r| r.len() >= SECTOR) {
            if !Header::may_start(rest) {
                done += SECTOR;
                continue;
            }
            let place = at + done as u64;
            match self.record_at(segment, len, place, rest)? {
                Ok(header) => {
                    if header.flags & FLAG_TOMBSTONE != 0 {
                        found.erased.push(erasure(&header));
                    }
                    found.entries.push(super::item::entry_of(&header));
                    done += header.sectors() as usize * SECTOR;
                }
                Err(_) => {
                    found.skipped += 1;
                    done += SECTOR;
                }
            }
        }
        Ok(at + done as u64)
    }

    /// The record that starts at `place`, whole and right. `rest` is what was read from there on.
    fn record_at(
        &self,
        segment: &Segment,
        len: u64,
        place: u64,
        rest: &[u8],
    ) -> io::Result<Result<Header, Bad>> {
        let header = match Header::decode(rest, &self.options.limits) {
            Ok(header) => header,
            Err(bad) => return Ok(Err(bad)),
        };
        let here = u64::from(header.position) * SECTOR as u64 == place;
        if (!here || header.segment != segment.id) && !cfg!(kvist_bug = "place_not_compared") {
            return Ok(Err(Bad::Field));
        }
        let bytes = u64::from(header.sectors()) * SECTOR as u64;
        if place + bytes > len {
            return Ok(Err(Bad::Short));
        }
        if header.flags & (FLAG_TOMBSTONE | FLAG_SEALED) != 0 {
            return Ok(Ok(header));
        }
        if cfg!(kvist_bug = "torn_accepted") {
            return Ok(Ok(header));
        }
        if let Some(record) = rest.get(..bytes as usize) {
            return Ok(verify_stored(record, &header, false).map(|()| header));
        }
        let Ok((buf, shift)) = self.span(segment, place, place + bytes, len) else {
            return Ok(Err(Bad::Short));
        };
        let record = buf.get(shift..shift + bytes as usize).unwrap_or_default();
        let checked = verify_stored(record, &header, false).map(|()| header);
        self.buffers.give(buf);
        Ok(checked)
    }
}
