//! Pages to payload.

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
    /// With tiles `outside`, only what stands in front of them is encoded, for a plan that
    /// [`Plan::is_plain`]: they follow as they are, in canonical order.
    ///
    /// Allocates nothing. `out` must hold [`Plan::max_encoded`] bytes, or [`Plan::plain_prefix`], and
    /// tiles must have the layout's length.
    pub(crate) fn encode(
        &self,
        key: &BlockKey,
        tokens: Option<&[u32]>,
        pages: &dyn PageSource,
        out: &mut [u8],
        outside: bool,
    ) -> Encoded {
        assert!(!outside || self.is_plain(self.codec.id()), "a plan that codes nothing");
        let count = tokens.map_or(0, <[u32]>::len);
        let most = if outside { self.plain_prefix(count) } else { self.max_encoded(count) };
        assert!(out.len() >= most, "a record needs up to {most} bytes, found {}", out.len());
        let head = HEADER_BYTES + put_tokens(tokens.unwrap_or_default(), &mut out[HEADER_BYTES..]);
        put_head(&mut out[head..], self.sections() as u32);
        let sections = head + HEAD_BYTES + self.sections() * ENTRY_BYTES;
        let mut writer = Writer {
            plan: self,
            seed: key.seed(),
            hashes: pages.hashes(),
            outside,
            entry: head + HEAD_BYTES,
            end: sections,
            index: 0,
            decoded: hash::Decoded::new(),
        };
        for page in 0..self.layout.pages() {
            writer.put_page(page, pages.page(page), out);
        }
        let Writer { end, decoded, .. } = writer;
        let used = end.next_multiple_of(SECTOR);
        if let Some(padding) = out.get_mut(end..used) {
            padding.fill(0);
        }
        Encoded {
            used,
            stored_len: (end - head) as u32,
            payload_hash: hash::prefix(key.seed(), &out[HEADER_BYTES..sections]),
            decoded_hash: decoded.finish(),
        }
    }

    /// Codes a tile behind `end`, if that makes it smaller; where it begins, and its bytes.
    fn put_coded(
        &self,
        kind: Kind,
        tile: &[u8],
        end: usize,
        out: &mut [u8],
    ) -> Option<(usize, usize)> {
        let stages = if kind == Kind::K { self.codec.k } else { self.codec.v };
        let expw = self.tile(kind).expw.filter(|_| stages.entropy == Entropy::Expw)?;
        let start = end.next_multiple_of(CODED_ALIGN);
        let bytes = expw.encode(self.isa, tile, &mut out[start..][..expw.max_encoded()])?;
        Some((start, bytes))
    }
}

/// Writes sections and their directory entries, front to back.
struct Writer<'a> {
    plan: &'a Plan,
    seed: u64,
    /// Of the tiles, if the source knows them.
    hashes: Option<&'a [u64]>,
    /// Whether raw tiles are left out.
    outside: bool,
    /// Where the next directory entry goes.
    entry: usize,
    /// End of the last section.
    end: usize,
    index: u32,
    decoded: hash::Decoded,
}

impl Writer<'_> {
    fn put_page(&mut self, page: usize, (k, v): (&[u8], &[u8]), out: &mut [u8]) {
        for &kind in self.plan.kinds() {
            let tile = if kind == Kind::K { k } else { v };
            assert_eq!(tile.len(), self.plan.tile(kind).bytes, "bytes of a {kind:?} tile");
            self.put_section(page, kind, tile, out);
        }
    }

    fn put_section(&mut self, page: usize, kind: Kind, tile: &[u8], out: &mut [u8]) {
        let known = self.hashes.and_then(|hashes| hashes.get(self.index as usize).copied());
        let coded = self.plan.put_coded(kind, tile, self.end, out);
        let (start, bytes, hash, stages) = match coded {
            Some((start, bytes)) => {
                self.decoded.add(known.unwrap_or_else(|| hash::tile(tile)));
                let stored = &out[start..start + bytes];
                (start, bytes, hash::section(self.seed, self.index, stored), Stages::EXPW)
            }
            None => {
                let start = self.end.next_multiple_of(RAW_ALIGN);
                if !self.outside {
                    out[start..][..tile.len()].copy_from_slice(tile);
                }
                let hash = known.unwrap_or_else(|| hash::tile(tile));
                self.decoded.add(hash);
                let hash = hash::placed(self.seed, self.index, hash);
                (start, tile.len(), hash, Stages::RAW)
            }
        };
        // Only now, since a coder that gave up may have written into the gap.
        if let Some(gap) = out.get_mut(self.end..start) {
            gap.fill(0);
        }
        let heads = self.plan.layout.num_heads();
        let section = Section {
            offset: start as u32,
            bytes: bytes as u32,
            hash,
            index: self.index,
            layer: (page / heads) as u16,
            head: (page % heads) as u16,
            kind,
            stages,
        };
        put_entry(&section, &mut out[self.entry..]);
        self.entry += ENTRY_BYTES;
        self.index += 1;
        self.end = start + bytes;
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
