//! Makes checksums right again, as somebody would who wants to be believed.

use std::ops::Range;

use super::UUID;
use crate::codec;
use crate::format::{
    HEAD_BYTES, HEADER_BYTES, Header, RECORD_MAGIC, SECTOR, TRAILER_BYTES, Trailer, is_footer,
};

/// Every checksum of a segment with this number, from the inside out; places and owners too.
pub(super) fn sign(bytes: &mut [u8], id: u64) {
    head(bytes, id);
    for start in (HEAD_BYTES..bytes.len()).step_by(SECTOR) {
        if bytes[start..].starts_with(&RECORD_MAGIC) {
            place(&mut bytes[start..], id, (start / SECTOR) as u32);
            record(&mut bytes[start..]);
        }
    }
    trailer(bytes, id);
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(room) = bytes.get_mut(at..at + value.len()) {
        room.copy_from_slice(value);
    }
}

/// A CRC-32C behind what it covers.
pub(super) fn crc(bytes: &mut [u8], covered: Range<usize>) {
    if let Some(data) = bytes.get(covered.clone()) {
        let crc = crc32c::crc32c(data);
        put(bytes, covered.end, &crc.to_le_bytes());
    }
}

fn head(bytes: &mut [u8], id: u64) {
    put(bytes, 16, &UUID);
    put(bytes, 32, &id.to_le_bytes());
    crc(bytes, 0..96);
}

fn place(record: &mut [u8], id: u64, position: u32) {
    put(record, 152, &(id as u32).to_le_bytes());
    put(record, 156, &position.to_le_bytes());
}

/// Checksums of sections, directory and header of the record that `bytes` starts with.
pub(super) fn record(bytes: &mut [u8]) {
    if let Some(header) = Header::decode_unchecked(bytes) {
        codec::sign(bytes, &header);
    }
    crc(bytes, 0..HEADER_BYTES - 4);
}

/// The trailer of a file, and the footer that it speaks of.
fn trailer(bytes: &mut [u8], id: u64) {
    let len = bytes.len();
    let Some(at) = len.checked_sub(TRAILER_BYTES) else { return };
    put(bytes, at + 8, &id.to_le_bytes());
    crc(bytes, at..len - 4);
    let Ok(trailer) = Trailer::decode(&bytes[at..], id, len as u64) else { return };
    footer(&mut bytes[trailer.offset as usize..][..trailer.len as usize], id);
}

/// A footer's owner and checksum.
pub(super) fn footer(bytes: &mut [u8], id: u64) {
    let Some(body) = bytes.len().checked_sub(16).filter(|_| is_footer(bytes)) else { return };
    put(&mut bytes[..body], 8, &id.to_le_bytes());
    put(&mut bytes[..body], 16, &UUID);
    let hash = twox_hash::XxHash3_128::oneshot_with_seed(id, &bytes[..body]);
    put(bytes, body, &hash.to_le_bytes());
}
