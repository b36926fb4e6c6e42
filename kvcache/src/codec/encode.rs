//! Pages to payload.

use std::ops::Range;

use super::directory::{ENTRY_BYTES, HEAD_BYTES, MAGIC, Section, VERSION};
use super::plan::{CODED_ALIGN, RAW_ALIGN};
use super::profile::Entropy;
use super::{Kind, PageSource, Plan, Stages, hash};
use crate::format::{BlockKey, HEADER_BYTES, SECTOR};

/// An encoded record; the header is still to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// Bytes of the record: all that has to be written, a multiple of a sector.
    pub(crate) used: usize,
    /// Bytes of the payload, for the header.
    pub(crate) stored_len: u32,
    /// Checksum of token ids and directory, for the header.
    pub(crate) payload_hash: [u8; 16],
    /// Checksum of the block in canonical order, for the header.
    pub(crate) decoded_hash: u64,
}

impl Plan {
    /// Encodes a block into `out`, all of the record but its first [`HEADER_BYTES`], which are left
    /// as they are. `tokens` are stored if given. Bytes of `out` behind the record are undefined.
    ///
    /// Allocates nothing. `out` must hold [`Plan::max_encoded`] bytes, and tiles must have the
    /// layout's length.
    pub(crate) fn encode(
        &self,
        key: &BlockKey,
        tokens: Option<&[u32]>,
        pages: &dyn PageSource,
        out: &mut [u8],
    ) -> Encoded {
        let tokens = tokens.unwrap_or_default();
        let most = self.max_encoded(tokens.len());
        assert!(out.len() >= most, "a record needs up to {most} bytes, found {}", out.len());
        let head = HEADER_BYTES + put_tokens(tokens, &mut out[HEADER_BYTES..]);
        put_head(&mut out[head..], self.sections() as u32);
        let sections = head + HEAD_BYTES + self.sections() * ENTRY_BYTES;
        let hash = pages.hash();
        let mut writer = Writer {
            plan: self,
            seed: key.seed(),
            entry: head + HEAD_BYTES,
            end: sections,
            index: 0,
            decoded: hash.is_none().then(hash::Decoded::new),
        };
        for page in 0..self.layout.pages() {
            writer.put_page(page, pages.page(page), out);
        }
        let decoded_hash =
            hash.or_else(|| Some(writer.decoded.as_ref()?.finish())).unwrap_or_default();
        let end = writer.end;
        let used = end.next_multiple_of(SECTOR);
        out[end..used].fill(0);
        Encoded {
            used,
            stored_len: (end - head) as u32,
            payload_hash: hash::prefix(key.seed(), &out[HEADER_BYTES..sections]),
            decoded_hash,
        }
    }

    /// Stores a tile behind `end`: coded if that makes it smaller, else as it is.
    fn put_tile(
        &self,
        kind: Kind,
        tile: &[u8],
        end: usize,
        out: &mut [u8],
    ) -> (usize, usize, Stages) {
        let stages = if kind == Kind::K { self.codec.k } else { self.codec.v };
        if let (Entropy::Expw, Some(expw)) = (stages.entropy, self.tile(kind).expw) {
            let start = end.next_multiple_of(CODED_ALIGN);
            let room = &mut out[start..][..expw.max_encoded()];
            if let Some(bytes) = expw.encode(self.isa, tile, room) {
                return (start, bytes, Stages::EXPW);
            }
        }
        let start = end.next_multiple_of(RAW_ALIGN);
        out[start..][..tile.len()].copy_from_slice(tile);
        (start, tile.len(), Stages::RAW)
    }
}

/// Writes sections and their directory entries, front to back.
struct Writer<'a> {
    plan: &'a Plan,
    seed: u64,
    /// Where the next directory entry goes.
    entry: usize,
    /// End of the last section.
    end: usize,
    index: u32,
    /// Unless the source knows it.
    decoded: Option<hash::Decoded>,
}

impl Writer<'_> {
    fn put_page(&mut self, page: usize, (k, v): (&[u8], &[u8]), out: &mut [u8]) {
        for &kind in self.plan.kinds() {
            let tile = if kind == Kind::K { k } else { v };
            assert_eq!(tile.len(), self.plan.tile(kind).bytes, "bytes of a {kind:?} tile");
            self.decoded.iter_mut().for_each(|hash| hash.update(tile));
            self.put_section(page, kind, tile, out);
        }
    }

    fn put_section(&mut self, page: usize, kind: Kind, tile: &[u8], out: &mut [u8]) {
        let (start, bytes, stages) = self.plan.put_tile(kind, tile, self.end, out);
        // Only now, since a coder that gave up may have written into the gap.
        out[self.end..start].fill(0);
        let stored: Range<usize> = start..start + bytes;
        let heads = self.plan.layout.num_heads();
        let section = Section {
            offset: start as u32,
            bytes: bytes as u32,
            hash: hash::section(self.seed, self.index, &out[stored.clone()]),
            index: self.index,
            layer: (page / heads) as u16,
            head: (page % heads) as u16,
            kind,
            stages,
        };
        put_entry(&section, &mut out[self.entry..]);
        self.entry += ENTRY_BYTES;
        self.index += 1;
        self.end = stored.end;
    }
}

/// Writes token ids; returns the bytes they take.
fn put_tokens(tokens: &[u32], out: &mut [u8]) -> usize {
    for (slot, token) in out.chunks_exact_mut(4).zip(tokens) {
        slot.copy_from_slice(&token.to_le_bytes());
    }
    tokens.len() * 4
}

/// Writes the directory's head.
fn put_head(out: &mut [u8], entries: u32) {
    out[..HEAD_BYTES].fill(0);
    out[..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[8..12].copy_from_slice(&entries.to_le_bytes());
}

/// Writes a section's directory entry.
pub(super) fn put_entry(section: &Section, out: &mut [u8]) {
    let [transform, quantise, entropy] = section.stages.codes();
    out[..4].copy_from_slice(&section.offset.to_le_bytes());
    out[4..8].copy_from_slice(&section.bytes.to_le_bytes());
    out[8..16].copy_from_slice(&section.hash.to_le_bytes());
    out[16..18].copy_from_slice(&section.layer.to_le_bytes());
    out[18..20].copy_from_slice(&section.head.to_le_bytes());
    out[20..24].copy_from_slice(&[section.kind.code(), transform, quantise, entropy]);
}
