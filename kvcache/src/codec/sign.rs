//! Makes a payload's checksums right again, for tests of what is behind them.

use super::directory::{Directory, ENTRY_BYTES, HEAD_BYTES};
use super::hash;
use crate::format::{HEADER_BYTES, Header};

/// Sets the checksums of sections and directory as the record has them, if there is a directory.
pub(crate) fn sign(record: &mut [u8], header: &Header) {
    let Ok(end) = Directory::end(record, header) else { return };
    if end > record.len() {
        return;
    }
    let (seed, first) = (header.key.seed(), HEADER_BYTES + header.token_bytes() + HEAD_BYTES);
    for (index, entry) in (first..end).step_by(ENTRY_BYTES).enumerate() {
        let number = |at: usize| {
            let raw = record[entry + at..].first_chunk().copied().unwrap_or_default();
            u32::from_le_bytes(raw) as usize
        };
        let (offset, bytes) = (number(0), number(4));
        if let Some(section) = record.get(offset..offset.saturating_add(bytes)) {
            let hash = hash::section(seed, index as u32, section);
            record[entry + 8..entry + 16].copy_from_slice(&hash.to_le_bytes());
        }
    }
    let hash = hash::prefix(seed, &record[HEADER_BYTES..end]);
    record[128..144].copy_from_slice(&hash);
}
