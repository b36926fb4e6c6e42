//! Storing records: who may, where to, and what becomes of each.

use std::io;
use std::sync::Arc;

use super::Disk;
use super::append::FOOTER_REST;
use super::budget::DiskCharge;
use super::item::Item;
use super::segment::Segment;
use super::state::Slot;
use crate::format::{
    Footer, FooterEntry, HEAD_BYTES, Head, SECTOR, TRAILER_BYTES, Trailer, segment_name,
};
use crate::vfs::{Access, Buf, File, write_all};

/// Segments that are kept open at once: one for all, and those of the last sealed tenants.
const OPEN_MAX: usize = 8;

/// Interruptions after which room is not asked for any more: it is only a favour.
const REPEATS: u32 = 100;
/// `EIO`, for which the library has no name.
const EIO: i32 = 5;

/// Why a record was not stored. Full, throttled and present are answers, not failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// The key is there already; bytes under a key never change.
    AlreadyPresent,
    /// The tier rests, or its queue is full.
    Throttled,
    /// The disk is full and nothing could be evicted.
    Full,
    /// Larger than a segment or than the largest record.
    TooLarge,
    /// Writing failed; the record is not there.
    Io,
    /// It did not end before the deadline.
    Timeout,
    /// The store is closed.
    Closed,
}

/// The open ends of the log. One caller at a time has it.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(super) open: Vec<Open>,
    pub(super) sequence: u64,
    pub(super) next_id: u32,
}

/// A segment that is appended to.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) segment: Arc<Segment>,
    /// Where the next record goes.
    pub(super) at: u64,
    pub(super) capacity: u64,
    pub(super) entries: Vec<FooterEntry>,
    /// Why nothing may be added any more.
    pub(super) failed: Option<Refused>,
}

impl Open {
    /// Takes it over from whoever holds it until it is put back.
    pub(super) fn take(&mut self) -> Open {
        let entries = std::mem::take(&mut self.entries);
        Open { segment: self.segment.clone(), entries, ..*self }
    }
}

impl Disk {
    /// The open segment of the item's owner if it has room, else a new one.
    pub(super) fn open_segment(&self, writer: &mut Writer, item: &Item) -> Result<Open, Refused> {
        let (owner, key) = item.owner();
        if let Some(at) = writer.open.iter().position(|o| o.segment.tenant == owner) {
            let open = writer.open.remove(at);
            let room = open.capacity - open.at;
            if item.need() as u64 + FOOTER_REST + (open.entries.len() as u64 + 64) * 72 <= room {
                return Ok(open);
            }
            self.finish(open);
        }
        if writer.open.len() >= OPEN_MAX {
            let oldest = writer.open.remove(0);
            self.finish(oldest);
        }
        self.make_segment(writer, owner, key.is_some())
    }

    /// Creates a segment and makes sure that there is room for one more after it.
    fn make_segment(
        &self,
        writer: &mut Writer,
        tenant: [u8; 16],
        sealed: bool,
    ) -> Result<Open, Refused> {
        let capacity = self.options.segment_bytes;
        let charge = self.room_for_segment()?;
        let mut seal = [0; 32];
        if sealed && !bug!("seal_not_random") {
            getrandom::fill(&mut seal).map_err(|_| Refused::Throttled)?;
        }
        let segment = self.create_segment(writer, charge, seal, tenant)?;
        self.state.lock().segments.insert(segment.id, Slot::new(segment.clone()));
        let mut open =
            Open { segment, at: HEAD_BYTES as u64, capacity, entries: Vec::new(), failed: None };
        self.make_headroom(writer, &mut open);
        self.say_tombstones(writer, &mut open, None);
        match open.failed {
            Some(refused) if !bug!("poisoned_reused") => Err(refused),
            _ => Ok(open),
        }
    }

    /// Charges a segment, after evicting what must leave for it.
    fn room_for_segment(&self) -> Result<DiskCharge, Refused> {
        let capacity = self.options.segment_bytes;
        loop {
            if let Some(charge) = self.budget.charge(capacity, 0) {
                return Ok(charge);
            }
            let leaving = self.state.lock().leaving_bytes();
            if self.budget.used().saturating_sub(leaving) + capacity <= self.budget.limit() {
                // Enough has been removed, only somebody still reads it.
                return Err(Refused::Throttled);
            }
            if !self.evict_oldest() {
                return Err(Refused::Full);
            }
        }
    }

    /// Makes the file of a new segment under the next free number.
    fn create_segment(
        &self,
        writer: &mut Writer,
        charge: DiskCharge,
        seal: [u8; 32],
        tenant: [u8; 16],
    ) -> Result<Arc<Segment>, Refused> {
        loop {
            let id = writer.next_id;
            writer.next_id = id.checked_add(1).ok_or(Refused::Full)?;
            // Above all numbers in earlier segments, also in those that could not be read.
            if !bug!("sequence_reset") {
                writer.sequence = writer.sequence.max(u64::from(id) << 32);
            }
            let (uuid, sequence) = (self.uuid, writer.sequence);
            let head = Head { uuid, id: u64::from(id), sequence, seal, tenant };
            match self.create_file(&head) {
                Ok(file) => return Ok(Arc::new(Segment::new(id, file, seal, tenant, charge))),
                // Something of somebody else: it is left alone.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(self.no_segment(&e)),
            }
        }
    }

    fn no_segment(&self, e: &io::Error) -> Refused {
        tracing::warn!("no new segment: {e}");
        let now = self.vfs.now();
        match e.kind() {
            _ if is_full(e) => {
                self.health.lock().full(now);
                Refused::Full
            }
            io::ErrorKind::TimedOut => {
                self.health.lock().stuck(now);
                Refused::Timeout
            }
            _ if e.raw_os_error() == Some(EIO) => Refused::Io,
            _ => Refused::Throttled,
        }
    }

    /// A new segment file, its head and its name durable. Nothing is left of one that fails.
    fn create_file(&self, head: &Head) -> io::Result<Arc<dyn File>> {
        let name = segment_name(head.id);
        let file = self.dir.create(&name, Access::Direct)?;
        let made = self.begin_file(&file, head);
        if made.is_err()
            && let Err(e) = self.dir.remove(&name)
        {
            tracing::warn!("{name} stays: {e}");
            let charge = self.budget.found(file.len().unwrap_or(HEAD_BYTES as u64));
            let (id, seal, tenant) = (head.id as u32, head.seal, head.tenant);
            let segment = Arc::new(Segment::new(id, file, seal, tenant, charge));
            self.state.lock().aside.push(segment);
            return Err(made.err().unwrap_or(e));
        }
        made.map(|()| file)
    }

    fn begin_file(&self, file: &Arc<dyn File>, head: &Head) -> io::Result<()> {
        let mut buf = alloc(HEAD_BYTES)?;
        buf.copy_from_slice(&head.encode());
        write_all(&self.vfs, file, 0, buf, self.deadline())?;
        self.sync_once(&**file)?;
        if !bug!("no_dir_sync") {
            self.dir.sync()?;
        }
        self.reserve(&**file)
    }

    /// Asks for the room of a segment; file systems that have no such call do without.
    fn reserve(&self, file: &dyn File) -> io::Result<()> {
        for _ in 0..REPEATS {
            match file.allocate(self.options.segment_bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() != io::ErrorKind::Unsupported => return Err(e),
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// `fdatasync`, never repeated on a file after a failure: the kernel may have dropped the pages
    /// and forgotten it.
    pub(super) fn sync_once(&self, file: &dyn File) -> io::Result<()> {
        if bug!("no_data_sync") {
            return Ok(());
        }
        let synced = file.sync_data();
        if synced.is_err() && bug!("sync_retried") {
            return file.sync_data();
        }
        synced.inspect_err(|_| self.health.lock().poisoned(self.vfs.now()))
    }

    /// [`Disk::sync_once`] of a segment: what fails is poisoned.
    pub(super) fn sync_segment(&self, segment: &Segment) -> io::Result<()> {
        let synced = self.sync_once(&*segment.file);
        match synced {
            Ok(()) => segment.set_synced(true),
            Err(_) => segment.poison(),
        }
        synced
    }

    /// Ends every open segment with its footer. The log goes on in new ones.
    pub(crate) fn finish_segments(&self) {
        if let Some(mut writer) = self.writer.take(self.options.deadline) {
            std::mem::take(&mut writer.open).into_iter().for_each(|open| self.finish(open));
        }
    }

    /// Writes the footer: a hint that spares recovery a scan. A failure costs only that.
    pub(super) fn finish(&self, open: Open) {
        let Open { segment, at, entries, .. } = open;
        match self.write_footer(&segment, at, entries) {
            Ok(end) => segment.finish(end),
            Err(e) => tracing::warn!(segment = segment.id, "no footer: {e}"),
        }
        if let Some(slot) = self.state.lock().segments.get_mut(&segment.id) {
            slot.finished = true;
        }
    }

    fn write_footer(
        &self,
        segment: &Segment,
        at: u64,
        entries: Vec<FooterEntry>,
    ) -> io::Result<u64> {
        let id = u64::from(segment.id);
        let footer = Footer { id, uuid: self.uuid, entries }.encode();
        let align = segment.file.alignment().max(SECTOR);
        let len = (footer.len() + TRAILER_BYTES).next_multiple_of(align);
        let mut buf = alloc(len)?;
        buf[..footer.len()].copy_from_slice(&footer);
        let trailer = Trailer { id, offset: at, len: footer.len() as u64 }.encode();
        buf[len - TRAILER_BYTES..].copy_from_slice(&trailer);
        write_all(&self.vfs, &segment.file, at, buf, self.deadline())?;
        self.sync_segment(segment)?;
        let end = at + len as u64;
        // Room that was asked for beyond the end goes back to the file system.
        segment.file.set_len(end)?;
        Ok(end)
    }
}

pub(super) fn alloc(len: usize) -> io::Result<Buf> {
    Buf::alloc(len).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Whether an error says that there is no room. A write across a limit that ends inside a page takes
/// the part before it again and again, and never says why.
pub(super) fn is_full(e: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull, WriteZero};
    matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge | WriteZero)
}
