//! Single structures: what is accepted says the same when it is written again, and nothing impossible
//! is accepted.

use super::{Input, UUID, sign};
use crate::format::{
    Footer, HEADER_BYTES, Header, Limits, Meta, SECTOR, SecretFile, TRAILER_BYTES, Trailer,
};

/// The first byte's lowest bit: whether checksums are to be made right; then the rest.
fn flagged(data: &[u8]) -> (bool, Vec<u8>) {
    let mut input = Input(data);
    (input.byte() & 1 == 1, input.0.to_vec())
}

/// A record's header.
pub fn record(data: &[u8]) {
    let (signed, mut bytes) = flagged(data);
    if signed {
        sign::crc(&mut bytes, 0..HEADER_BYTES - 4);
    }
    let limits = Limits::default();
    let Ok(header) = Header::decode(&bytes, &limits) else { return };
    assert_eq!(header.encode()[..], bytes[..HEADER_BYTES], "{header:?}");
    assert!(header.stored_len.max(header.decoded_len) <= limits.record_bytes_max);
    assert!(header.sectors() as usize * SECTOR >= header.used_bytes());
    assert!(header.erasure().1 <= header.sequence);
}

/// A footer.
pub fn footer(data: &[u8]) {
    let (signed, mut bytes) = flagged(data);
    if signed {
        sign::footer(&mut bytes, 1);
    }
    let end = 1 << 16;
    let Ok(footer) = Footer::decode(&bytes, &UUID, 1, end) else { return };
    let mut from = 8;
    for entry in &footer.entries {
        assert!(entry.position >= from && entry.position + entry.sectors <= end, "{entry:?}");
        from = entry.position + entry.sectors;
    }
    // What is written is padded; its checksum stands where its entries end.
    let mut again = footer.encode();
    again.truncate(bytes.len());
    assert_eq!(Footer::decode(&again, &UUID, 1, end), Ok(footer));
}

/// A trailer; the length of its file stands in front.
pub fn trailer(data: &[u8]) {
    let (signed, bytes) = flagged(data);
    let mut input = Input(&bytes);
    let len = u64::from_le_bytes(input.array());
    let mut raw = input.0.to_vec();
    if signed {
        sign::crc(&mut raw, 0..TRAILER_BYTES - 4);
    }
    let Ok(trailer) = Trailer::decode(&raw, 1, len) else { return };
    assert!(trailer.offset >= 4096 && trailer.offset.is_multiple_of(SECTOR as u64));
    assert!(trailer.offset + trailer.len + TRAILER_BYTES as u64 <= len, "{trailer:?}");
    assert_eq!(Trailer::decode(&trailer.encode(), 1, len), Ok(trailer));
}

/// The directory's own two files.
pub fn meta(data: &[u8]) {
    let (signed, mut bytes) = flagged(data);
    if signed && let Some(at) = bytes.windows(7).rposition(|w| w == b"crc32c ") {
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes.truncate(at);
        bytes.extend(format!("crc32c {crc:08x}\n").into_bytes());
    }
    if let Ok(meta) = Meta::decode(&bytes) {
        assert_eq!(Meta::decode(meta.encode().as_bytes()), Ok(meta));
    }
    if signed {
        sign::crc(&mut bytes, 0..SecretFile::BYTES - 4);
    }
    if let Ok(secret) = SecretFile::decode(&bytes) {
        assert_eq!(SecretFile::encode(&secret)[..], bytes[..]);
    }
}
