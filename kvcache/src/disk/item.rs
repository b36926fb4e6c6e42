//! What is appended: new blocks, records moved from an older segment, tombstones.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Segment;
use crate::arena::Cell;
use crate::codec::{CODEC_VERSION, Directory, PageSource, Plan};
use crate::format::{
    BlockKey, FLAG_SEALED, FLAG_TOKENS, FLAG_TOMBSTONE, FooterEntry, HEADER_BYTES, Header, SECTOR,
};
use crate::seal::TenantKey;
use crate::vfs::{Buf, File, INSERTS_MAX};

/// A block to store.
pub(crate) struct NewRecord<'a> {
    pub(crate) key: BlockKey,
    pub(crate) model: [u8; 32],
    /// First half of what stands for the tenant.
    pub(crate) tenant: [u8; 16],
    /// Seals the record.
    pub(crate) seal: Option<&'a TenantKey>,
    /// Token ids to store beside the payload.
    pub(crate) tokens: Option<&'a [u32]>,
    pub(crate) num_tokens: u32,
    pub(crate) plan: &'a Plan,
    pub(crate) pages: &'a dyn PageSource,
    /// The caller holds it: it is not evicted until it is released, and need not survive a crash before
    /// [`Disk::make_durable`](super::Disk::make_durable). Its directory is left here.
    pub(crate) live: Option<&'a OnceLock<Directory>>,
}

/// A block's tiles in canonical order, where they lie.
pub(super) type Tiles = Vec<Buf>;

/// One thing to append.
pub(super) enum Item<'a> {
    New(&'a NewRecord<'a>),
    /// A checked record from another segment, whole sectors.
    Moved(Header, Buf),
    /// Records of the tenant with a lower sequence number are erased; lower than its own, if none is
    /// given: what opening a segment for it may move is erased, too.
    Tombstone {
        tenant: [u8; 16],
        erased_before: Option<u64>,
    },
}

impl Item<'_> {
    /// The most bytes it takes.
    pub(super) fn need(&self) -> usize {
        match self {
            Item::New(r) => r.plan.max_encoded(r.tokens.map_or(0, <[u32]>::len)),
            Item::Moved(header, _) => header.sectors() as usize * SECTOR,
            Item::Tombstone { .. } => SECTOR,
        }
    }

    /// The bytes of it that are encoded, at most, if its tiles are written from where they lie or not.
    pub(super) fn staged(&self, tiles: Option<&Tiles>) -> usize {
        match (self, tiles) {
            (Item::New(record), Some(_)) => record.prefix(),
            (item, _) => item.need(),
        }
    }

    /// Its tiles where they lie, if they can be written to the file from there.
    pub(super) fn tiles(&self, file: &dyn File) -> Option<Tiles> {
        match self {
            Item::New(record) => record.tiles(file),
            _ => None,
        }
    }

    /// Sequence number of what it is a copy of.
    pub(super) fn copy_of(&self) -> Option<u64> {
        match self {
            Item::Moved(header, _) => Some(header.sequence),
            _ => None,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self, Item::New(NewRecord { live: Some(_), .. }))
    }

    /// Decoded bytes.
    pub(super) fn decoded(&self) -> usize {
        match self {
            Item::New(r) => r.plan.layout().bytes(),
            Item::Moved(header, _) => header.decoded_len as usize,
            Item::Tombstone { .. } => 0,
        }
    }

    /// The only tenant of its segment, if it is sealed.
    pub(super) fn owner(&self) -> ([u8; 16], Option<&TenantKey>) {
        match self {
            Item::New(NewRecord { tenant, seal: Some(key), .. }) => (*tenant, Some(key)),
            _ => ([0; 16], None),
        }
    }

    /// Writes the record for this place to `out`, which has [`Item::staged`] bytes; without its tiles if
    /// it has those `outside`.
    pub(super) fn encode(
        &self,
        segment: &Segment,
        position: u32,
        sequence: u64,
        out: &mut [u8],
        outside: bool,
    ) -> FooterEntry {
        let header = match self {
            Item::New(record) => encode_new(record, segment, position, sequence, out, outside),
            Item::Moved(header, bytes) => {
                let len = header.sectors() as usize * SECTOR;
                out[..len].copy_from_slice(&bytes[..len]);
                Header { segment: segment.id, position, sequence, ..*header }
            }
            Item::Tombstone { tenant, erased_before } => {
                let before = erased_before.unwrap_or(sequence);
                tombstone(*tenant, before, segment, position, sequence)
            }
        };
        out[..HEADER_BYTES].copy_from_slice(&header.encode());
        if !outside {
            out[header.used_bytes()..header.sectors() as usize * SECTOR].fill(0);
        }
        entry_of(&header)
    }
}

impl NewRecord<'_> {
    /// Bytes in front of tiles that are stored as they are.
    fn prefix(&self) -> usize {
        self.plan.plain_prefix(self.tokens.map_or(0, <[u32]>::len))
    }

    /// Its tiles where they lie, neighbours together; none if they are not stored as they are, or not
    /// aligned as the file wants them.
    fn tiles(&self, file: &dyn File) -> Option<Tiles> {
        let align = file.alignment().max(SECTOR);
        let (bytes, pages) = (self.plan.layout().page_bytes(), self.plan.layout().pages());
        let aligned = self.prefix().is_multiple_of(align) && bytes.is_multiple_of(align);
        if self.seal.is_some()
            || !self.plan.is_plain(self.plan.codec().id())
            || !file.gathers()
            || !aligned
        {
            return None;
        }
        let mut runs: Vec<(&Arc<Cell>, Range<usize>)> = Vec::new();
        for page in 0..pages {
            let (cell, (k, v)) = (self.pages.cell(page)?, self.pages.page(page));
            let apart = !v.is_empty() && k.as_ptr_range().end != v.as_ptr();
            if apart || !k.as_ptr().addr().is_multiple_of(align) {
                return None;
            }
            let from = k.as_ptr().addr() - cell.ptr().addr();
            match runs.last_mut() {
                Some((last, run)) if Arc::ptr_eq(last, cell) && run.end == from => run.end += bytes,
                _ => runs.push((cell, from..from + bytes)),
            }
        }
        let lent = |(cell, run): (&Arc<Cell>, Range<usize>)| {
            Buf::shared(Arc::clone(cell), move |cell| &cell.bytes()[run])
        };
        (runs.len() <= INSERTS_MAX).then(|| runs.into_iter().map(lent).collect())
    }
}

/// The index entry of a record.
pub(crate) fn entry_of(header: &Header) -> FooterEntry {
    FooterEntry {
        key: header.key,
        tenant: header.tenant,
        sequence: header.sequence,
        position: header.position,
        sectors: header.sectors(),
        tokens: header.tokens,
        flags: header.flags,
        codec: header.codec,
    }
}

fn encode_new(
    record: &NewRecord,
    segment: &Segment,
    position: u32,
    sequence: u64,
    out: &mut [u8],
    outside: bool,
) -> Header {
    let (key, tokens, pages) = (&record.key, record.tokens, record.pages);
    let encoded = record.plan.encode(key, tokens, pages, out, outside);
    let mut header = Header {
        flags: if record.tokens.is_some() { FLAG_TOKENS } else { 0 },
        loss_class: record.plan.codec().loss_class(),
        sequence,
        stored_len: encoded.stored_len,
        decoded_len: record.plan.layout().bytes() as u32,
        key: record.key,
        model: record.model,
        layout: *record.plan.fingerprint(),
        payload_hash: encoded.payload_hash,
        decoded_hash: encoded.decoded_hash,
        segment: segment.id,
        position,
        codec: record.plan.codec().id(),
        codec_version: CODEC_VERSION,
        tokens: record.num_tokens,
        tenant: record.tenant,
        written: now_seconds(),
    };
    if let Some(directory) = record.live {
        let parsed = Directory::parse(out, &header, record.plan);
        // Just encoded: it parses, and nobody else has this record.
        let _ = parsed.map(|parsed| directory.set(parsed));
    }
    if let Some(key) = record.seal {
        header.flags |= FLAG_SEALED;
        let (from, to) = (HEADER_BYTES + header.token_bytes(), header.used_bytes());
        let (head, payload) = out[..to].split_at_mut(from);
        header.payload_hash = key.seal(&segment.seal, &header, &head[HEADER_BYTES..], payload);
    }
    header
}

fn tombstone(
    tenant: [u8; 16],
    erased_before: u64,
    segment: &Segment,
    position: u32,
    sequence: u64,
) -> Header {
    Header {
        flags: FLAG_TOMBSTONE,
        loss_class: 0,
        sequence,
        stored_len: 0,
        decoded_len: 0,
        key: BlockKey([0; 32]),
        model: [0; 32],
        layout: [0; 32],
        payload_hash: [0; 16],
        decoded_hash: erased_before,
        segment: segment.id,
        position,
        codec: 0,
        codec_version: 0,
        tokens: 0,
        tenant,
        written: now_seconds(),
    }
}

fn now_seconds() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs() as u32)
}
