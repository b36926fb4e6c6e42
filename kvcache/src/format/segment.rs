//! Segment files: a head, records, and, once finished, a footer with a trailer that finds it.

use super::record::{Bad, SEQUENCE_MAX, field};
use super::{BlockKey, SECTOR};

/// Bytes of a segment's head; records start behind it.
pub(crate) const HEAD_BYTES: usize = 4096;
/// Bytes of the trailer, the last of a finished segment.
pub(crate) const TRAILER_BYTES: usize = 64;
const HEAD_MAGIC: [u8; 8] = *b"KVISTSG1";
const FOOTER_MAGIC: [u8; 8] = *b"KVISTFT1";
const TRAILER_MAGIC: [u8; 8] = *b"KVISTTR1";
const VERSION: u32 = 1;
/// Bytes of the head that its checksum covers.
const HEAD_USED: usize = 96;
const FOOTER_HEAD: usize = 48;
const ENTRY_BYTES: usize = 72;

/// Name of a segment's file.
pub(crate) fn segment_name(id: u64) -> String {
    format!("seg-{id:016x}.kv")
}

/// The number in a segment's name, if it is one.
pub(crate) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("seg-")?.strip_suffix(".kv")?;
    let id = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(id) == name).then_some(id)
}

/// A segment's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The directory it belongs to.
    pub(crate) uuid: [u8; 16],
    pub(crate) id: u64,
    /// Sequence numbers of its records are at least this.
    pub(crate) sequence: u64,
    /// Random bytes that its sealing key is derived from; zeros if not sealed.
    pub(crate) seal: [u8; 32],
    /// The only tenant of a sealed segment.
    pub(crate) tenant: [u8; 16],
}

impl Head {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES);
        out.extend(HEAD_MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.uuid);
        out.extend(self.id.to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        out.extend(self.seal);
        out.extend(self.tenant);
        debug_assert_eq!(out.len(), HEAD_USED);
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        out.resize(HEAD_BYTES, 0);
        out
    }

    pub(crate) fn decode(raw: &[u8]) -> Result<Head, Bad> {
        if raw.len() < HEAD_BYTES {
            return Err(Bad::Short);
        }
        if !raw.starts_with(&HEAD_MAGIC) {
            return Err(Bad::Magic);
        }
        if u32::from_le_bytes(field(raw, 8)) != VERSION {
            return Err(Bad::Version);
        }
        if crc32c::crc32c(&raw[..HEAD_USED]) != u32::from_le_bytes(field(raw, HEAD_USED)) {
            return Err(Bad::Checksum);
        }
        if raw[12..16].iter().chain(&raw[HEAD_USED + 4..HEAD_BYTES]).any(|&b| b != 0) {
            return Err(Bad::Field);
        }
        if u64::from_le_bytes(field(raw, 40)) > SEQUENCE_MAX {
            return Err(Bad::Field);
        }
        Ok(Head {
            uuid: field(raw, 16),
            id: u64::from_le_bytes(field(raw, 32)),
            sequence: u64::from_le_bytes(field(raw, 40)),
            seal: field(raw, 48),
            tenant: field(raw, 80),
        })
    }
}

/// One record of a footer's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FooterEntry {
    pub(crate) key: BlockKey,
    pub(crate) tenant: [u8; 16],
    pub(crate) sequence: u64,
    /// Offset and length in sectors.
    pub(crate) position: u32,
    pub(crate) sectors: u32,
    pub(crate) tokens: u32,
    pub(crate) flags: u16,
    pub(crate) codec: u16,
}

/// The index at the end of a finished segment. A hint: records are checked when they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) id: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) entries: Vec<FooterEntry>,
}

impl Footer {
    /// The footer's bytes, to be written at a sector border, padded so that the trailer ends one.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_HEAD + self.entries.len() * ENTRY_BYTES + 16);
        out.extend(FOOTER_MAGIC);
        out.extend(self.id.to_le_bytes());
        out.extend(self.uuid);
        out.extend((self.entries.len() as u64).to_le_bytes());
        out.extend([0; 8]);
        for e in &self.entries {
            out.extend(e.key.0);
            out.extend(e.tenant);
            out.extend(e.sequence.to_le_bytes());
            out.extend(e.position.to_le_bytes());
            out.extend(e.sectors.to_le_bytes());
            out.extend(e.tokens.to_le_bytes());
            out.extend(e.flags.to_le_bytes());
            out.extend(e.codec.to_le_bytes());
        }
        let hash = twox_hash::XxHash3_128::oneshot_with_seed(self.id, &out);
        out.extend(hash.to_le_bytes());
        out
    }

    /// Reads a footer of segment `id` with records below sector `end`.
    pub(crate) fn decode(raw: &[u8], uuid: &[u8; 16], id: u64, end: u32) -> Result<Footer, Bad> {
        if raw.len() < FOOTER_HEAD + 16 {
            return Err(Bad::Short);
        }
        let (body, hash) = raw.split_at(raw.len() - 16);
        if !body.starts_with(&FOOTER_MAGIC) {
            return Err(Bad::Magic);
        }
        let expected = twox_hash::XxHash3_128::oneshot_with_seed(id, body);
        let right = expected == u128::from_le_bytes(field(hash, 0));
        if !right && !bug!("footer_not_checked") {
            return Err(Bad::Checksum);
        }
        let count = u64::from_le_bytes(field(body, 32));
        let entries = &body[FOOTER_HEAD..];
        let fits = count.checked_mul(ENTRY_BYTES as u64) == Some(entries.len() as u64);
        if !fits || field::<16>(body, 16) != *uuid || u64::from_le_bytes(field(body, 8)) != id {
            return Err(Bad::Field);
        }
        let entry = |raw: &[u8]| FooterEntry {
            key: BlockKey(field(raw, 0)),
            tenant: field(raw, 32),
            sequence: u64::from_le_bytes(field(raw, 48)),
            position: u32::from_le_bytes(field(raw, 56)),
            sectors: u32::from_le_bytes(field(raw, 60)),
            tokens: u32::from_le_bytes(field(raw, 64)),
            flags: u16::from_le_bytes(field(raw, 68)),
            codec: u16::from_le_bytes(field(raw, 70)),
        };
        let entries: Vec<FooterEntry> = entries.chunks_exact(ENTRY_BYTES).map(entry).collect();
        let mut from = (HEAD_BYTES / SECTOR) as u32;
        for e in &entries {
            // In order of position, without overlap: two records never share bytes.
            let to = e.position.checked_add(e.sectors).ok_or(Bad::Field)?;
            if e.position < from || e.sectors == 0 || to > end || e.sequence > SEQUENCE_MAX {
                return Err(Bad::Field);
            }
            from = to;
        }
        Ok(Footer { id, uuid: *uuid, entries })
    }
}

/// Whether a footer may start here.
pub(crate) fn is_footer(bytes: &[u8]) -> bool {
    bytes.starts_with(&FOOTER_MAGIC)
}

/// Where a finished segment's footer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) id: u64,
    /// Offset and length in bytes.
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Trailer {
    pub(crate) fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        out[..8].copy_from_slice(&TRAILER_MAGIC);
        out[8..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..24].copy_from_slice(&self.offset.to_le_bytes());
        out[24..32].copy_from_slice(&self.len.to_le_bytes());
        let crc = crc32c::crc32c(&out[..TRAILER_BYTES - 4]);
        out[TRAILER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the trailer of a file of `file_len` bytes.
    pub(crate) fn decode(raw: &[u8], id: u64, file_len: u64) -> Result<Trailer, Bad> {
        let Some(raw) = raw.first_chunk::<TRAILER_BYTES>() else { return Err(Bad::Short) };
        if !raw.starts_with(&TRAILER_MAGIC) {
            return Err(Bad::Magic);
        }
        if crc32c::crc32c(&raw[..TRAILER_BYTES - 4]) != u32::from_le_bytes(field(raw, 60)) {
            return Err(Bad::Checksum);
        }
        let trailer = Trailer {
            id: u64::from_le_bytes(field(raw, 8)),
            offset: u64::from_le_bytes(field(raw, 16)),
            len: u64::from_le_bytes(field(raw, 24)),
        };
        let end = trailer.offset.checked_add(trailer.len).and_then(|e| e.checked_add(64));
        let inside = end.is_some_and(|e| e <= file_len) && trailer.offset >= HEAD_BYTES as u64;
        let aligned = trailer.offset.is_multiple_of(SECTOR as u64);
        if inside && aligned && trailer.id == id { Ok(trailer) } else { Err(Bad::Field) }
    }
}
