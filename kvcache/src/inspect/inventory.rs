//! What is stored, by what it is and where it is. Reads headers alone.

use std::collections::{BTreeMap, HashMap};
use std::io;

use serde::Serialize;

use super::json::hex;
use super::sessions::SessionUse;
use super::{Listed, StoreView, threads_default};
use crate::codec::Codec;
use crate::disk::scan::{Depth, Seen};
use crate::format::{BlockKey, FLAG_SEALED, FLAG_TOMBSTONE, HEAD_BYTES, Header, Meta, SECTOR};

/// What a directory holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inventory {
    /// The directory.
    pub path: String,
    /// Version of its format.
    pub format: u32,
    /// Who made it.
    pub created_by: String,
    /// Whether some process has the store open; `None` if the system does not tell.
    pub in_use: Option<bool>,
    /// The most bytes it may take. The directory does not say: whoever opens it does.
    pub budget_bytes: Option<u64>,
    /// Bytes of all segment files.
    pub file_bytes: u64,
    /// Bytes of records that can be found.
    pub live_bytes: u64,
    /// Bytes of records that a newer one under the same key has replaced.
    pub superseded_bytes: u64,
    /// Bytes of records of erased tenants that are still there.
    pub erased_bytes: u64,
    /// Bytes of files that hold no record: heads, indexes, padding, damage.
    pub free_bytes: u64,
    /// Bytes of segments that were put aside after failed reads.
    pub aside_bytes: u64,
    /// Records that can be found.
    pub records: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their bytes when decoded.
    pub decoded_bytes: u64,
    /// Tenants that were erased.
    pub erased_tenants: u64,
    /// Records that can be found, by what they are.
    pub groups: Vec<Group>,
    /// Segments, the oldest first.
    pub segments: Vec<SegmentUse>,
    /// Saved sessions, by name.
    pub sessions: Vec<SessionUse>,
}

/// Records of one model, layout, tenant and codec.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Group {
    /// Model fingerprint.
    pub model: String,
    /// Layout fingerprint.
    pub layout: String,
    /// What stands for the tenant.
    pub tenant: String,
    /// Codec.
    pub codec: String,
    /// Whether they are sealed.
    pub sealed: bool,
    /// Records.
    pub records: u64,
    /// Tokens.
    pub tokens: u64,
    /// Bytes on disk.
    pub stored_bytes: u64,
    /// Bytes when decoded.
    pub decoded_bytes: u64,
    /// When the oldest was written, in seconds since 1970.
    pub oldest: u32,
    /// When the newest was written.
    pub newest: u32,
}

/// What a segment holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SegmentUse {
    /// The file.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
    /// Whether it has an index.
    pub finished: bool,
    /// Records in it, tombstones left out.
    pub records: u64,
    /// Those that can be found.
    pub live_records: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// When the oldest record was written, in seconds since 1970; 0 if there is none.
    pub oldest: u32,
    /// When the newest was written.
    pub newest: u32,
    /// Why it could not be read, if it could not.
    pub unreadable: Option<String>,
}

/// Headers of a segment, as they stand there.
#[derive(Debug, Default)]
struct Headers {
    finished: bool,
    headers: Vec<Header>,
    unreadable: Option<String>,
}

impl StoreView {
    /// What is stored. Whether it can also be read, [`StoreView::verify`] tells.
    #[must_use]
    pub fn inventory(&self) -> Inventory {
        let found =
            self.each_segment(&self.segments, threads_default(), |listed| self.headers(listed));
        let mut inventory = Inventory {
            path: self.path.display().to_string(),
            format: Meta::MAJOR,
            created_by: self.meta.created_by.clone(),
            in_use: self.in_use(),
            file_bytes: self.segments.iter().map(|s| s.len).sum(),
            aside_bytes: self.aside.iter().map(|s| s.len).sum(),
            ..Inventory::default()
        };
        let index = Index::new(&found);
        inventory.erased_tenants = index.erased.len() as u64;
        let mut groups: BTreeMap<GroupKey, Group> = BTreeMap::new();
        for (listed, found) in self.segments.iter().zip(&found) {
            let mut segment = SegmentUse {
                file: listed.name(),
                bytes: listed.len,
                finished: found.finished,
                unreadable: found.unreadable.clone(),
                ..SegmentUse::default()
            };
            for header in &found.headers {
                inventory.add(header, &index, &mut segment, &mut groups);
            }
            inventory.segments.push(segment);
        }
        inventory.groups = groups.into_values().collect();
        let listing = self.list_sessions();
        inventory.sessions =
            listing.files.iter().map(|s| s.describe(|key| index.has(key))).collect();
        inventory
    }

    /// What of all records counts.
    pub(super) fn index(&self) -> Index {
        Index::new(&self.each_segment(&self.segments, threads_default(), |l| self.headers(l)))
    }

    fn headers(&self, listed: &Listed) -> Headers {
        let mut found = Headers::default();
        if let Err(e) = self.read_headers(listed, &mut found) {
            found.unreadable = Some(e.to_string());
        }
        found
    }

    fn read_headers(&self, listed: &Listed, found: &mut Headers) -> io::Result<()> {
        let scanner = self.scanner(listed)?;
        if scanner.len < HEAD_BYTES as u64 {
            return Ok(());
        }
        self.check_head(&scanner)?;
        let trailer = scanner.trailer()?.ok();
        found.finished = trailer.is_some();
        let end = trailer.map_or(scanner.len, |t| t.offset);
        scanner.each(Depth::Headers, HEAD_BYTES as u64, end, |seen| {
            let Seen::Record(record) = seen else { return false };
            found.headers.extend(record.header.ok());
            record.header.is_ok()
        })
    }
}

/// Model, layout, tenant, codec, sealed.
type GroupKey = ([u8; 32], [u8; 32], [u8; 16], u16, bool);

/// What of the headers counts: the newest of each key, save what was erased.
pub(super) struct Index {
    newest: HashMap<BlockKey, u64>,
    erased: HashMap<[u8; 16], u64>,
}

impl Index {
    fn new(found: &[Headers]) -> Index {
        let (mut newest, mut erased) = (HashMap::new(), HashMap::new());
        let all = || found.iter().flat_map(|f| &f.headers);
        for header in all().filter(|h| h.flags & FLAG_TOMBSTONE != 0) {
            let (tenant, sequence) = header.erasure();
            let before = erased.entry(tenant).or_insert(0);
            *before = sequence.max(*before);
        }
        let mut index = Index { newest: HashMap::new(), erased };
        for header in all().filter(|h| h.flags & FLAG_TOMBSTONE == 0 && !index.is_erased(h)) {
            let sequence = newest.entry(header.key).or_insert(0);
            *sequence = header.sequence.max(*sequence);
        }
        index.newest = newest;
        index
    }

    /// Whether a record can be found.
    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.newest.contains_key(key)
    }

    fn is_erased(&self, header: &Header) -> bool {
        self.erased.get(&header.tenant).is_some_and(|&before| header.sequence < before)
    }

    fn is_newest(&self, header: &Header) -> bool {
        self.newest.get(&header.key) == Some(&header.sequence)
    }
}

impl Inventory {
    fn add(
        &mut self,
        header: &Header,
        index: &Index,
        segment: &mut SegmentUse,
        groups: &mut BTreeMap<GroupKey, Group>,
    ) {
        let bytes = u64::from(header.sectors()) * SECTOR as u64;
        if header.flags & FLAG_TOMBSTONE != 0 {
            return;
        }
        segment.records += 1;
        segment.newest = segment.newest.max(header.written);
        segment.oldest = match segment.records {
            1 => header.written,
            _ => segment.oldest.min(header.written),
        };
        if index.is_erased(header) {
            self.erased_bytes += bytes;
        } else if !index.is_newest(header) {
            self.superseded_bytes += bytes;
        } else {
            segment.live_records += 1;
            segment.live_bytes += bytes;
            self.live_bytes += bytes;
            self.records += 1;
            self.tokens += u64::from(header.tokens);
            self.decoded_bytes += u64::from(header.decoded_len);
            let sealed = header.flags & FLAG_SEALED != 0;
            let key = (header.model, header.layout, header.tenant, header.codec, sealed);
            groups.entry(key).or_insert_with(|| Group::of(header)).add(header);
        }
        let records = self.live_bytes + self.superseded_bytes + self.erased_bytes;
        self.free_bytes = self.file_bytes.saturating_sub(records);
    }
}

impl Group {
    fn of(header: &Header) -> Group {
        Group {
            model: hex(&header.model),
            layout: hex(&header.layout),
            tenant: hex(&header.tenant),
            codec: codec_name(header.codec),
            sealed: header.flags & FLAG_SEALED != 0,
            oldest: header.written,
            newest: header.written,
            ..Group::default()
        }
    }

    fn add(&mut self, header: &Header) {
        self.records += 1;
        self.tokens += u64::from(header.tokens);
        self.stored_bytes += u64::from(header.sectors()) * SECTOR as u64;
        self.decoded_bytes += u64::from(header.decoded_len);
        self.oldest = self.oldest.min(header.written);
        self.newest = self.newest.max(header.written);
    }

    /// Decoded bytes per byte on disk.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.decoded_bytes as f64 / self.stored_bytes.max(1) as f64
    }
}

/// A codec's name, or its number if this version does not know it.
pub(super) fn codec_name(id: u16) -> String {
    let known = Codec::all().iter().find(|codec| codec.id() == id);
    known.map_or_else(|| id.to_string(), |codec| codec.name().to_owned())
}
