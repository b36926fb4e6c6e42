//! The record: one block's envelope (`docs/formats.md`, "Record").

use super::BlockKey;

/// Records start at multiples of this many bytes.
pub const SECTOR: usize = 512;
/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 192;
pub(crate) const MAGIC: [u8; 8] = *b"KVISTPG1";
const VERSION: u16 = 1;

/// Flag: the payload is encrypted and authenticated.
pub const FLAG_SEALED: u16 = 1;
/// Flag: token ids stand between header and payload.
pub const FLAG_TOKENS: u16 = 2;
/// Flag: the tenant was erased; the payload is empty.
pub const FLAG_TOMBSTONE: u16 = 4;
const FLAGS_KNOWN: u16 = FLAG_SEALED | FLAG_TOKENS | FLAG_TOMBSTONE;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Bad {
    /// Not there at all.
    #[error("no magic")]
    Magic,
    /// Written by a version that this one does not read.
    #[error("unknown version")]
    Version,
    /// A checksum does not match.
    #[error("checksum mismatch")]
    Checksum,
    /// A field has an impossible value, though the checksum matches.
    #[error("impossible field")]
    Field,
    /// Made with something that this version does not know, or cannot read as it is.
    #[error("unsupported")]
    Unsupported,
    /// Sealed, and the key does not open it.
    #[error("cannot be opened")]
    Decrypt,
    /// Cut short.
    #[error("truncated")]
    Short,
}

/// What a reader accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest stored and largest decoded length of a record.
    pub record_bytes_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { record_bytes_max: 64 << 20 }
    }
}

impl Limits {
    /// No setting goes above this.
    pub const RECORD_BYTES_HARD: u32 = 256 << 20;
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`FLAG_SEALED`], [`FLAG_TOKENS`], [`FLAG_TOMBSTONE`].
    pub flags: u16,
    /// How much the codec may have changed: 0 nothing, 3 most.
    pub loss_class: u8,
    /// Rises strictly over the life of the directory; of two records with one key the higher counts.
    pub sequence: u64,
    /// Bytes of the payload as stored.
    pub stored_len: u32,
    /// Bytes of the block in canonical order.
    pub decoded_len: u32,
    /// The block.
    pub key: BlockKey,
    /// Model fingerprint.
    pub model: [u8; 32],
    /// Layout fingerprint.
    pub layout: [u8; 32],
    /// xxh3-128 of token ids and payload directory, seeded by the key; the directory has a checksum
    /// of every section. A sealed record has its AEAD tag here instead.
    pub payload_hash: [u8; 16],
    /// xxh3-64 of the xxh3-64 of the block's tiles, in canonical order.
    pub decoded_hash: u64,
    /// Low half of the segment's number.
    pub segment: u32,
    /// Offset in the segment in sectors.
    pub position: u32,
    /// Codec.
    pub codec: u16,
    /// Its version.
    pub codec_version: u16,
    /// Tokens of the block.
    pub tokens: u32,
    /// First half of what stands for the tenant.
    pub tenant: [u8; 16],
    /// When it was written, in seconds since 1970; for people, nothing depends on it.
    pub written: u32,
}

impl Header {
    /// The header's bytes, checksum included.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(10, &(self.flags | u16::from(self.loss_class) << 8).to_le_bytes());
        put(12, &(HEADER_BYTES as u32).to_le_bytes());
        put(16, &self.sequence.to_le_bytes());
        put(24, &self.stored_len.to_le_bytes());
        put(28, &self.decoded_len.to_le_bytes());
        put(32, &self.key.0);
        put(64, &self.model);
        put(96, &self.layout);
        put(128, &self.payload_hash);
        put(144, &self.decoded_hash.to_le_bytes());
        put(152, &self.segment.to_le_bytes());
        put(156, &self.position.to_le_bytes());
        put(160, &self.codec.to_le_bytes());
        put(162, &self.codec_version.to_le_bytes());
        put(164, &self.tokens.to_le_bytes());
        put(168, &self.tenant);
        put(184, &self.written.to_le_bytes());
        let crc = crc32c::crc32c(&out[..HEADER_BYTES - 4]);
        out[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Whether a record may start here; cheap, for scanning.
    #[must_use]
    pub fn may_start(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// [`Bad`] says which check failed. Nothing of the header may be used then.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Header, Bad> {
        let Some(raw) = bytes.first_chunk::<HEADER_BYTES>() else { return Err(Bad::Short) };
        if !Header::may_start(raw) {
            return Err(Bad::Magic);
        }
        if u16::from_le_bytes(field(raw, 8)) != VERSION {
            return Err(Bad::Version);
        }
        if crc32c::crc32c(&raw[..HEADER_BYTES - 4]) != u32::from_le_bytes(field(raw, 188)) {
            return Err(Bad::Checksum);
        }
        let header = Header::fields(raw);
        let most = limits.record_bytes_max.min(Limits::RECORD_BYTES_HARD);
        let tombstone = header.flags & FLAG_TOMBSTONE != 0;
        let sane = u32::from_le_bytes(field(raw, 12)) as usize == HEADER_BYTES
            && header.flags & !FLAGS_KNOWN == 0
            && header.loss_class <= 3
            && header.sequence <= SEQUENCE_MAX
            && header.stored_len <= most
            && header.decoded_len <= most
            && header.tokens <= TOKENS_MAX
            && (!tombstone || (header.stored_len == 0 && header.flags == FLAG_TOMBSTONE));
        if sane { Ok(header) } else { Err(Bad::Field) }
    }

    /// The fields as they stand there, for people who want to know what a damaged record was: nothing
    /// of them may be relied on. `None` if there is no room for a header.
    pub(crate) fn decode_unchecked(bytes: &[u8]) -> Option<Header> {
        bytes.first_chunk().map(Header::fields)
    }

    fn fields(raw: &[u8; HEADER_BYTES]) -> Header {
        let flags = u16::from_le_bytes(field(raw, 10));
        Header {
            flags: flags & 0xFF,
            loss_class: (flags >> 8) as u8,
            sequence: u64::from_le_bytes(field(raw, 16)),
            stored_len: u32::from_le_bytes(field(raw, 24)),
            decoded_len: u32::from_le_bytes(field(raw, 28)),
            key: BlockKey(field(raw, 32)),
            model: field(raw, 64),
            layout: field(raw, 96),
            payload_hash: field(raw, 128),
            decoded_hash: u64::from_le_bytes(field(raw, 144)),
            segment: u32::from_le_bytes(field(raw, 152)),
            position: u32::from_le_bytes(field(raw, 156)),
            codec: u16::from_le_bytes(field(raw, 160)),
            codec_version: u16::from_le_bytes(field(raw, 162)),
            tokens: u32::from_le_bytes(field(raw, 164)),
            tenant: field(raw, 168),
            written: u32::from_le_bytes(field(raw, 184)),
        }
    }

    /// What a tombstone says: a tenant, and the sequence number below which its records are gone. Never
    /// more than what was there when it was written.
    pub(crate) fn erasure(&self) -> ([u8; 16], u64) {
        (self.tenant, self.decoded_hash.min(self.sequence))
    }

    /// Bytes of the token ids behind the header.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        if self.flags & FLAG_TOKENS != 0 { self.tokens as usize * 4 } else { 0 }
    }

    /// Bytes from the record's start to its end, padding left out.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        HEADER_BYTES + self.token_bytes() + self.stored_len as usize
    }

    /// Sectors that the record takes.
    #[must_use]
    pub fn sectors(&self) -> u32 {
        self.used_bytes().div_ceil(SECTOR) as u32
    }
}

/// No sequence number is above this: there is always a next one.
pub(crate) const SEQUENCE_MAX: u64 = 1 << 62;

/// Tokens of a record: as many as a block may have, and some room for sessions.
const TOKENS_MAX: u32 = 1 << 24;

/// `N` bytes of a header at `at`, which is a constant below.
pub(super) fn field<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&raw[at..at + N]);
    out
}
