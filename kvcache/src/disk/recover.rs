//! Finding what is stored: footers where segments were finished, a scan where not. Reads only; a
//! record that is damaged or cut is skipped, those before and after it are served.

use std::io;
use std::sync::Arc;

use super::clean::Erased;
use super::dir::{error_at, is_known};
use super::item::entry_of;
use super::scan::{Depth, Scanner, Seen};
use super::state::Slot;
use super::{Disk, Segment};
use crate::Error;
use crate::format::{
    Bad, FLAG_TOMBSTONE, FooterEntry, HEAD_BYTES, SECTOR, parse_name, segment_name,
};
use crate::vfs::{Access, Entry, File, Kind};

/// What was found in a segment.
#[derive(Default)]
struct Found {
    entries: Vec<FooterEntry>,
    /// Tenants erased before a sequence number, as tombstones say.
    erased: Vec<([u8; 16], u64)>,
    skipped: u64,
}

/// A segment of another directory.
fn foreign() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "of another directory")
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
        writer.sequence = if bug!("sequence_reset") { 0 } else { sequence };
        writer.next_id = last.saturating_add(1);
        let erased = self.state.lock().forget_erased();
        // Where a session may only seem to be gone, what it needs must stay.
        if self.find_sessions() && self.state.lock().forget_orphans() {
            self.remove_empty();
        }
        // Files of a former run count, before anything is served.
        while self.budget.used() > self.budget.limit() && self.evict_oldest() {}
        self.rewrite_without(&mut writer, &erased, &mut Erased::default());
        Ok(())
    }

    /// A file with the name of a segment that is not taken into the books. It may be ours, and only
    /// unreadable or never finished, so its bytes count.
    fn leave_alone(&self, id: u32, len: u64, e: &io::Error) {
        tracing::warn!("segment {id:016x} is left alone: {e}");
        if bug!("alien_removed") {
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
        let scanner = Scanner {
            vfs: &self.vfs,
            buffers: &self.buffers,
            file: file.clone(),
            id: u64::from(number),
            len,
            limits: self.options.limits,
            patience: self.options.deadline,
        };
        let head = scanner.head()?.map_err(io::Error::other)?;
        if head.uuid != self.uuid {
            return Err(foreign());
        }
        // A copy; or a torn head, where the disk left that of another segment.
        if !scanner.owns(&head, &self.uuid) {
            return Err(io::Error::other("the head of another segment"));
        }
        let charge = self.budget.found(len);
        let segment = Arc::new(Segment::new(number, file, head.seal, head.tenant, charge));
        let footer = self.footer(&scanner);
        let doubtful = footer.is_none();
        let found = match footer {
            Some(found) => found,
            None => {
                // What a killed process wrote last may be in the page cache only.
                if !bug!("unsynced_trusted") {
                    segment.file.sync_data()?;
                }
                self.scan(&scanner)?
            }
        };
        let next = found.entries.iter().map(|e| e.sequence + 1).fold(head.sequence, u64::max);
        let mut state = self.state.lock();
        state.counts.skipped_records += found.skipped;
        let slot = Slot { finished: true, doubtful, ..Slot::new(segment) };
        state.segments.insert(number, slot);
        for (tenant, before) in found.erased {
            state.erased(tenant, before, number);
        }
        for entry in &found.entries {
            state.publish(number, entry, false);
        }
        Ok(next)
    }

    /// The index that a finished segment ends with, if it is there and right.
    fn footer(&self, scanner: &Scanner) -> Option<Found> {
        let trailer = scanner.trailer().ok()?.ok()?;
        let footer = scanner.footer(&trailer, &self.uuid).ok()?.ok()?;
        let mut found = Found { entries: footer.entries, ..Found::default() };
        for entry in found.entries.iter().filter(|e| e.flags & FLAG_TOMBSTONE != 0) {
            // What it erases stands in the record alone: without it the footer is not enough.
            let place = u64::from(entry.position) * SECTOR as u64;
            let header = scanner.record_at(place, Depth::Headers, |record| record.header);
            let header = header.ok()?.ok()?;
            if entry_of(&header) != *entry {
                return None;
            }
            found.erased.push(header.erasure());
        }
        Some(found)
    }

    /// Looks for records at every sector.
    fn scan(&self, scanner: &Scanner) -> io::Result<Found> {
        let mut found = Found::default();
        scanner.each(Depth::Records, HEAD_BYTES as u64, scanner.len, |seen| {
            let checked = match seen {
                Seen::Record(record) => record.check(),
                Seen::Other(..) => return false,
                Seen::Unread(..) => Err(Bad::Short),
            };
            let Ok(header) = checked else {
                found.skipped += 1;
                return false;
            };
            if header.flags & FLAG_TOMBSTONE != 0 {
                found.erased.push(header.erasure());
            }
            found.entries.push(entry_of(&header));
            true
        })?;
        Ok(found)
    }
}
