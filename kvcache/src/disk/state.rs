//! What is stored where: the index, the segments, the tenants that were erased.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use super::Segment;
use super::budget::DiskCharge;
use super::health::Degraded;
use crate::format::{BlockKey, FLAG_TOMBSTONE, FooterEntry, SECTOR};
use crate::journal::{Journal, Tier};
use crate::table::KeyTable;

/// What stands for a tenant in records of live sequences: they have none.
pub(crate) const LIVE: [u8; 16] = [0; 16];

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    pub(crate) segment: u32,
    /// Offset and length in sectors.
    pub(crate) position: u32,
    pub(crate) sectors: u32,
    pub(crate) tokens: u32,
    /// Number of the tenant.
    pub(crate) tenant: u32,
    pub(crate) flags: u16,
    pub(crate) codec: u16,
    /// Read since it was written: it moves on when its segment leaves.
    pub(crate) hit: bool,
    /// Live sequences and sessions that need it: while there are any it is not evicted.
    pub(crate) holders: u32,
}

impl Entry {
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.sectors) * SECTOR as u64
    }

    pub(crate) fn is_held(&self) -> bool {
        self.holders > 0
    }
}

/// A segment and what is alive in it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) segment: Arc<Segment>,
    pub(crate) live_records: u64,
    pub(crate) live_bytes: u64,
    /// Whose records it has or had.
    pub(crate) tenants: BTreeSet<u32>,
    /// Records that are not to be evicted.
    pub(crate) held: u64,
    /// Records of erased tenants, whose bytes are still there.
    pub(crate) erased_records: u64,
    /// Nothing will be added.
    pub(crate) finished: bool,
    /// It has no index that was right: some of its records may not have been seen.
    pub(crate) doubtful: bool,
    /// It stays: it may hold what a session needs.
    pub(crate) stays: bool,
}

impl Slot {
    pub(crate) fn new(segment: Arc<Segment>) -> Slot {
        Slot {
            segment,
            live_records: 0,
            live_bytes: 0,
            tenants: BTreeSet::new(),
            held: 0,
            erased_records: 0,
            finished: false,
            doubtful: false,
            stays: false,
        }
    }
}

/// A tenant, by the half of its tag that stands in records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenant {
    pub(crate) tag: [u8; 16],
    /// Records with a lower sequence number were erased.
    pub(crate) erased_before: u64,
    /// The segment that says so; none if that is still to be written again.
    pub(crate) tombstone: Option<u32>,
}

/// Everything the tier knows, under one short lock.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) index: KeyTable<Entry>,
    pub(crate) segments: BTreeMap<u32, Slot>,
    pub(crate) tenants: Vec<Tenant>,
    tenant_numbers: HashMap<[u8; 16], u32>,
    /// Segments that are not to be trusted or could not be removed. They still take room.
    pub(crate) aside: Vec<Arc<Segment>>,
    /// Removed segments that somebody may still read.
    leaving: Vec<Weak<Segment>>,
    /// Files that could not be read, and are left alone: they take room all the same.
    pub(crate) unread: Vec<DiskCharge>,
    pub(crate) counts: DiskUse,
    /// The run of bytes that was written last.
    run: Run,
    /// Told what becomes readable, and what no longer is.
    pub(crate) journal: Arc<Journal>,
    /// Cleared by `fork` checks and by closing.
    pub(crate) closed: bool,
}

/// What the Disk tier holds and has done.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct DiskUse {
    /// The budget in bytes of files.
    pub budget_bytes: u64,
    /// Bytes of files charged to it.
    pub used_bytes: u64,
    /// Bytes of records that can be read.
    pub live_bytes: u64,
    /// Records that can be read.
    pub records: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of the index in memory.
    pub index_bytes: u64,
    /// Buffers that the kernel has not let go of after a deadline.
    pub parked_bytes: u64,
    /// Bytes written and read since the start.
    pub written_bytes: u64,
    /// Runs of consecutive bytes of a file that they were written in, by however many calls.
    pub write_runs: u64,
    /// Bytes written in runs of at least 1 MiB.
    pub large_run_bytes: u64,
    /// Bytes read since the start, rounding and directories included.
    pub read_bytes: u64,
    /// Records evicted to make room.
    pub evicted: u64,
    /// Records moved on because they had been read.
    pub moved: u64,
    /// Records that failed a check and are not served any more.
    pub quarantined: u64,
    /// Segments in which a write or sync failed.
    pub poisoned_segments: u64,
    /// Files that are not this store's.
    pub alien_files: u64,
    /// Records found damaged or cut when the directory was opened.
    pub skipped_records: u64,
    /// The engine that moves bytes.
    pub engine: &'static str,
    /// Why the tier rests, if it does.
    pub degraded: Option<Degraded>,
    /// Seconds of rest so far.
    pub degraded_seconds: f64,
}

/// Runs of this many bytes are large: transfers of less do not reach a disk's speed.
const LARGE_RUN: u64 = 1 << 20;

/// Consecutive bytes of a segment.
#[derive(Debug, Default)]
struct Run {
    segment: u32,
    end: u64,
    len: u64,
}

impl State {
    /// Counts bytes that are written to a segment.
    pub(crate) fn wrote(&mut self, segment: u32, offset: u64, len: u64) {
        let goes_on = self.run.len > 0 && (self.run.segment, self.run.end) == (segment, offset);
        let before = if goes_on { self.run.len } else { 0 };
        self.run = Run { segment, end: offset + len, len: before + len };
        self.counts.written_bytes += len;
        self.counts.write_runs += u64::from(!goes_on);
        if before + len >= LARGE_RUN {
            let counted = if before >= LARGE_RUN { before } else { 0 };
            self.counts.large_run_bytes += before + len - counted;
        }
    }

    /// Number of a tenant, new if it was not known.
    pub(crate) fn tenant(&mut self, tag: [u8; 16]) -> u32 {
        *self.tenant_numbers.entry(tag).or_insert_with(|| {
            self.tenants.push(Tenant { tag, erased_before: 0, tombstone: None });
            (self.tenants.len() - 1) as u32
        })
    }

    /// Makes a record readable, in place of an older one under the same key. An older record than the
    /// one there, or one of an erased tenant, stays unseen. A record that is held stays so where it
    /// moves to; `hold` makes the caller its first holder.
    pub(crate) fn publish(&mut self, segment: u32, found: &FooterEntry, hold: bool) -> bool {
        if found.flags & FLAG_TOMBSTONE != 0 {
            return true;
        }
        self.note(segment, found.tenant);
        let tenant = self.tenant(found.tenant);
        let erased = found.sequence < self.tenants[tenant as usize].erased_before;
        if erased && let Some(slot) = self.segments.get_mut(&segment) {
            slot.erased_records += 1;
        }
        let older = self.index.get(&found.key).is_some_and(|e| e.sequence >= found.sequence);
        if erased || older || !self.segments.contains_key(&segment) {
            return false;
        }
        let holders = self.unpublish(&found.key).map_or(0, |e| e.holders) + u32::from(hold);
        let entry = Entry {
            sequence: found.sequence,
            segment,
            position: found.position,
            sectors: found.sectors,
            tokens: found.tokens,
            tenant,
            flags: found.flags,
            codec: found.codec,
            hit: false,
            holders,
        };
        if let Some(slot) = self.segments.get_mut(&segment) {
            slot.live_records += 1;
            slot.live_bytes += entry.bytes();
            slot.held += u64::from(holders > 0);
        }
        self.index.insert(found.key, entry);
        self.journal.note(&found.key, Tier::Disk, true);
        true
    }

    /// [`State::publish`] of a copy, unless what was copied is no longer what its key stands for: a
    /// record that was removed meanwhile does not come back.
    pub(crate) fn publish_moved(&mut self, segment: u32, found: &FooterEntry, from: u64) -> bool {
        let same = self.index.get(&found.key).is_some_and(|e| e.sequence == from);
        if same || bug!("moved_comes_back") {
            return self.publish(segment, found, false);
        }
        self.note(segment, found.tenant);
        false
    }

    /// Notes that a segment has bytes of a tenant, readable or not.
    pub(crate) fn note(&mut self, segment: u32, tag: [u8; 16]) {
        let tenant = self.tenant(tag);
        if let Some(slot) = self.segments.get_mut(&segment) {
            slot.tenants.insert(tenant);
        }
    }

    /// Makes a record unreadable. Its bytes stay until its segment leaves.
    pub(crate) fn unpublish(&mut self, key: &BlockKey) -> Option<Entry> {
        let entry = self.index.remove(key)?;
        self.journal.note(key, Tier::Disk, false);
        if let Some(slot) = self.segments.get_mut(&entry.segment) {
            slot.live_records -= 1;
            slot.live_bytes -= entry.bytes();
            slot.held -= u64::from(entry.is_held());
        }
        Some(entry)
    }

    /// Keeps a record until it is released; its entry, if it is there.
    pub(crate) fn hold(&mut self, key: &BlockKey) -> Option<Entry> {
        let entry = self.index.get_mut(key)?;
        entry.holders += 1;
        let entry = *entry;
        if entry.holders == 1
            && let Some(slot) = self.segments.get_mut(&entry.segment)
        {
            slot.held += 1;
        }
        Some(entry)
    }

    /// One holder less; the last takes the record along. Its entry then.
    pub(crate) fn release(&mut self, key: &BlockKey) -> Option<Entry> {
        let entry = self.index.get_mut(key)?;
        match entry.holders {
            0 | 1 => self.unpublish(key),
            _ => {
                entry.holders -= 1;
                None
            }
        }
    }

    /// Keeps the segments whose records may not all have been seen: the next start may find there what
    /// is missing now.
    pub(crate) fn keep_doubtful(&mut self) {
        self.segments.values_mut().filter(|s| s.doubtful).for_each(|s| s.stays = true);
    }

    /// Forgets what sequences of a former run left and no session needs: nobody knows its keys any
    /// more. Whether there was any.
    pub(crate) fn forget_orphans(&mut self) -> bool {
        let Some(&live) = self.tenant_numbers.get(&LIVE) else { return false };
        let gone = self.index.iter().filter(|(_, e)| e.tenant == live && !e.is_held());
        let gone: Vec<BlockKey> = gone.map(|(key, _)| *key).collect();
        for key in &gone {
            self.unpublish(key);
        }
        !gone.is_empty()
    }

    /// Notes what a tombstone of a former run says.
    pub(crate) fn erased(&mut self, tag: [u8; 16], before: u64, said: u32) {
        let number = self.tenant(tag);
        let tenant = &mut self.tenants[number as usize];
        if before >= tenant.erased_before {
            (tenant.erased_before, tenant.tombstone) = (before, Some(said));
        }
    }

    /// Forgets records that a tombstone found later speaks of. Returns the segments that hold any:
    /// erasing was cut short, and goes on.
    pub(crate) fn forget_erased(&mut self) -> Vec<u32> {
        let tenants = &self.tenants;
        let is_erased = |e: &Entry| e.sequence < tenants[e.tenant as usize].erased_before;
        let gone = self.index.iter().filter(|(_, e)| is_erased(e));
        let gone: Vec<BlockKey> = gone.map(|(key, _)| *key).collect();
        for entry in gone.iter().filter_map(|key| self.unpublish(key)).collect::<Vec<_>>() {
            if let Some(slot) = self.segments.get_mut(&entry.segment) {
                slot.erased_records += 1;
            }
        }
        let segments = self.segments.iter().filter(|(_, slot)| slot.erased_records > 0);
        segments.map(|(&id, _)| id).collect()
    }

    /// Forgets a tenant's records. Returns how many, and the segments that hold or held any; `said` is
    /// the segment with the tombstone.
    pub(crate) fn erase(
        &mut self,
        tag: [u8; 16],
        erased_before: u64,
        said: Option<u32>,
    ) -> (u64, Vec<u32>) {
        let number = self.tenant(tag);
        let tenant = &mut self.tenants[number as usize];
        (tenant.erased_before, tenant.tombstone) = (erased_before, said);
        let gone = self.index.iter().filter(|(_, e)| e.tenant == number);
        let gone: Vec<BlockKey> = gone.map(|(key, _)| *key).collect();
        for key in &gone {
            self.unpublish(key);
        }
        let has = |(_, slot): &(&u32, &Slot)| slot.tenants.contains(&number);
        let segments = self.segments.iter().filter(has).map(|(&id, _)| id).collect();
        (gone.len() as u64, segments)
    }

    /// [`State::unpublish`], unless another record has taken the key since.
    pub(crate) fn quarantine(&mut self, key: &BlockKey, sequence: u64) {
        if self.index.get(key).is_some_and(|e| e.sequence == sequence) {
            self.unpublish(key);
            self.counts.quarantined += 1;
        }
    }

    /// Takes a segment out of the books, with every record in it.
    pub(crate) fn drop_segment(&mut self, id: u32) -> Option<Arc<Segment>> {
        let journal = &self.journal;
        self.index.retain(|key, entry| {
            let stays = entry.segment != id;
            if !stays {
                journal.note(key, Tier::Disk, false);
            }
            stays
        });
        let said = self.tenants.iter_mut().filter(|t| t.tombstone == Some(id));
        said.for_each(|t| t.tombstone = None);
        self.segments.remove(&id).map(|slot| slot.segment)
    }

    /// The file is gone; its bytes come back when the last reader lets go.
    pub(crate) fn left(&mut self, segment: &Arc<Segment>) {
        self.leaving.push(Arc::downgrade(segment));
    }

    /// Bytes of removed segments that come back when their last reader lets go.
    pub(crate) fn leaving_bytes(&mut self) -> u64 {
        self.leaving.retain(|segment| segment.strong_count() > 0);
        let held = self.leaving.iter().filter_map(Weak::upgrade);
        held.map(|segment| segment.charged()).sum()
    }

    /// Whether a segment says that tenants were erased.
    pub(crate) fn says(&self, id: u32) -> bool {
        self.tenants.iter().any(|t| t.tombstone == Some(id))
    }

    /// Whether the tenant of an entry is the one with this tag.
    pub(crate) fn is_of(&self, entry: &Entry, tag: &[u8; 16]) -> bool {
        self.tenants.get(entry.tenant as usize).is_some_and(|t| t.tag == *tag)
    }

    pub(crate) fn usage(&self) -> DiskUse {
        DiskUse {
            live_bytes: self.segments.values().map(|s| s.live_bytes).sum(),
            records: self.index.len() as u64,
            segments: self.segments.len() as u64,
            index_bytes: self.index.len() as u64 * KeyTable::<Entry>::ENTRY_BYTES,
            ..self.counts.clone()
        }
    }
}
