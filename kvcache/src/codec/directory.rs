//! The payload's directory: where each section is, and what it holds.

#![deny(clippy::indexing_slicing)]

use std::ops::Range;

use super::encode::put_entry;
use super::plan::{CODED_ALIGN, RAW_ALIGN};
use super::profile::Entropy;
use super::{Kind, Plan, Stages, hash};
use crate::format::{Bad, BlockKey, FLAG_SEALED, FLAG_TOMBSTONE, HEADER_BYTES, Header};

/// Bytes of the directory's head.
pub(super) const HEAD_BYTES: usize = 16;
/// Bytes of one of its entries.
pub(super) const ENTRY_BYTES: usize = 24;
pub(super) const MAGIC: [u8; 4] = *b"KVD1";
/// Version of the payload, also the codec version in record headers.
pub(crate) const VERSION: u16 = 1;

/// One section as its directory entry tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    /// From the record's first byte.
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
    pub(crate) hash: u64,
    /// Its place in the directory.
    pub(crate) index: u32,
    /// Layer and head count from the starts of the layout's ranges; 0xFFFF is all heads.
    pub(crate) layer: u16,
    pub(crate) head: u16,
    pub(crate) kind: Kind,
    pub(crate) stages: Stages,
}

impl Section {
    /// The section's bytes, counted from the record's first.
    pub(crate) fn range(&self) -> Range<u32> {
        self.offset..self.offset + self.bytes
    }

    fn get(mut raw: &[u8], index: u32) -> Result<Section, Bad> {
        let raw = &mut raw;
        let (offset, bytes) = (u32::from_le_bytes(take(raw)?), u32::from_le_bytes(take(raw)?));
        let hash = u64::from_le_bytes(take(raw)?);
        let (layer, head) = (u16::from_le_bytes(take(raw)?), u16::from_le_bytes(take(raw)?));
        let [kind, transform, quantise, entropy] = take(raw)?;
        let kind = Kind::from_code(kind).ok_or(Bad::Unsupported)?;
        let stages = Stages::from_codes([transform, quantise, entropy]).ok_or(Bad::Unsupported)?;
        Ok(Section { offset, bytes, hash, index, layer, head, kind, stages })
    }

    /// Order of sections in directory and file.
    fn place(&self) -> (u16, u16, Kind) {
        (self.layer, self.head, self.kind)
    }

    fn align(&self) -> usize {
        if self.stages.is_raw() && self.kind != Kind::Side { RAW_ALIGN } else { CODED_ALIGN }
    }

    /// Whether these are the section's bytes.
    pub(crate) fn check(&self, seed: u64, stored: &[u8]) -> Result<(), Bad> {
        if stored.len() != self.bytes as usize {
            return Err(Bad::Short);
        }
        let right = hash::section(seed, self.index, stored) == self.hash;
        if right || bug!("section_not_checked") { Ok(()) } else { Err(Bad::Checksum) }
    }
}

/// The first bytes of a directory.
struct Head {
    flags: u16,
    entries: u32,
    reserved: u32,
}

impl Head {
    fn get(mut raw: &[u8]) -> Result<Head, Bad> {
        let raw = &mut raw;
        let (magic, version): ([u8; 4], _) = (take(raw)?, take(raw)?);
        let (flags, entries, reserved) = (take(raw)?, take(raw)?, take(raw)?);
        if magic != MAGIC {
            return Err(Bad::Magic);
        }
        if u16::from_le_bytes(version) != VERSION {
            return Err(Bad::Version);
        }
        Ok(Head {
            flags: u16::from_le_bytes(flags),
            entries: u32::from_le_bytes(entries),
            reserved: u32::from_le_bytes(reserved),
        })
    }
}

/// A block's directory, checked: every page of the layout has its sections, they lie inside the
/// record, in order, and have lengths that their stages can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    sections: Vec<Section>,
    seed: u64,
    heads: usize,
    values: bool,
}

impl Directory {
    /// Bytes from the record's start to the directory's end, told by its head. `bytes` starts with
    /// the record and reaches at least [`HEAD_BYTES`] into the payload.
    ///
    /// # Errors
    /// [`Bad`] if there is no directory, or it is longer than the payload.
    pub(crate) fn end(bytes: &[u8], header: &Header) -> Result<usize, Bad> {
        if header.flags & FLAG_TOMBSTONE != 0 {
            return Err(Bad::Field);
        }
        let at = HEADER_BYTES + header.token_bytes();
        let head = Head::get(bytes.get(at..).ok_or(Bad::Short)?)?;
        let len = HEAD_BYTES as u64 + u64::from(head.entries) * ENTRY_BYTES as u64;
        if len > u64::from(header.stored_len) {
            return Err(Bad::Field);
        }
        Ok(at + len as usize)
    }

    /// Reads and checks the directory of a record; `bytes` starts with the record and reaches at
    /// least to the directory's end. Token ids in front of it are checked too.
    ///
    /// # Errors
    /// [`Bad`] says which check failed: nothing of the payload may be used then.
    /// [`Bad::Unsupported`] for stages of a later version, and for a sealed payload, which has to be
    /// opened first.
    pub(crate) fn parse(bytes: &[u8], header: &Header, plan: &Plan) -> Result<Directory, Bad> {
        let decoded = header.decoded_len as usize == plan.layout.bytes();
        if header.layout != plan.fingerprint || !decoded {
            return Err(Bad::Field);
        }
        Directory::of(sections(bytes, header)?, header.key.seed(), plan)
    }

    fn of(sections: Vec<Section>, seed: u64, plan: &Plan) -> Result<Directory, Bad> {
        let mut found = 0;
        for section in sections.iter().filter(|s| s.kind != Kind::Side) {
            fits(section, found, plan)?;
            found += 1;
        }
        if found != plan.sections() {
            return Err(Bad::Field);
        }
        let (heads, values) = (plan.layout.num_heads(), plan.kinds().contains(&Kind::V));
        Ok(Directory { sections, seed, heads, values })
    }

    /// Bytes of [`Directory::entries`] of a record without side sections.
    pub(crate) fn entries_bytes(plan: &Plan) -> usize {
        plan.sections() * ENTRY_BYTES
    }

    /// The entries as they stand in the record, to be kept elsewhere too.
    pub(crate) fn entries(&self, out: &mut Vec<u8>) {
        for section in &self.sections {
            let at = out.len();
            out.resize(at + ENTRY_BYTES, 0);
            put_entry(section, out.get_mut(at..).unwrap_or_default());
        }
    }

    /// The directory of the record under this key, from entries that were kept.
    ///
    /// # Errors
    /// [`Bad::Field`] if they cannot be those of such a record.
    pub(crate) fn of_entries(raw: &[u8], key: &BlockKey, plan: &Plan) -> Result<Directory, Bad> {
        let (sections, end) = read_entries(raw, plan.prefix_bytes(0) as u64)?;
        let fits = raw.len() == Directory::entries_bytes(plan) && end <= plan.max_encoded(0) as u64;
        if fits { Directory::of(sections, key.seed(), plan) } else { Err(Bad::Field) }
    }

    /// A page's section. There is none of kind V if the layout's values are part of its keys.
    pub(crate) fn section(&self, page: usize, kind: Kind) -> &Section {
        let place = ((page / self.heads) as u16, (page % self.heads) as u16, kind);
        // Without side sections the place is known.
        let kinds = if self.values { 2 } else { 1 };
        let known = page * kinds + usize::from(kind == Kind::V);
        if let Some(section) = self.sections.get(known).filter(|s| s.place() == place) {
            return section;
        }
        let at = self.sections.binary_search_by_key(&place, Section::place).ok();
        at.and_then(|at| self.sections.get(at)).expect("a page and kind of the layout")
    }

    /// The bytes of a page, K and V, counted from the record's first: one read.
    pub(crate) fn page_range(&self, page: usize) -> Range<u32> {
        let k = self.section(page, Kind::K).range();
        let end = if self.values { self.section(page, Kind::V).range().end } else { k.end };
        k.start..end
    }

    /// Whether a page is stored as it is, so that it can be read into place and checked there with
    /// [`Directory::check_page`].
    pub(crate) fn is_plain(&self, page: usize) -> bool {
        let k = self.section(page, Kind::K);
        let v = self.values.then(|| self.section(page, Kind::V));
        k.stages.is_raw() && v.is_none_or(|v| v.stages.is_raw() && v.offset == k.range().end)
    }

    /// Whether these are the tiles of a page that [`Directory::is_plain`].
    ///
    /// # Errors
    /// [`Bad::Short`], [`Bad::Checksum`].
    pub(crate) fn check_page(&self, page: usize, bytes: &[u8]) -> Result<(), Bad> {
        let k = self.section(page, Kind::K);
        let (tile, rest) = bytes.split_at_checked(k.bytes as usize).ok_or(Bad::Short)?;
        k.check(self.seed, tile)?;
        match self.values {
            true => self.section(page, Kind::V).check(self.seed, rest),
            false if rest.is_empty() => Ok(()),
            false => Err(Bad::Short),
        }
    }

    /// What the sections' checksums start from.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// All sections, in order.
    pub(super) fn sections(&self) -> &[Section] {
        &self.sections
    }
}

/// The sections of a record, whatever its layout: checksum, order, bounds and alignment are right.
pub(super) fn sections(bytes: &[u8], header: &Header) -> Result<Vec<Section>, Bad> {
    if header.flags & FLAG_SEALED != 0 {
        return Err(Bad::Unsupported);
    }
    let end = Directory::end(bytes, header)?;
    let hashed = bytes.get(HEADER_BYTES..end).ok_or(Bad::Short)?;
    if hash::prefix(header.key.seed(), hashed) != header.payload_hash {
        return Err(Bad::Checksum);
    }
    let directory = hashed.get(header.token_bytes()..).ok_or(Bad::Short)?;
    let head = Head::get(directory)?;
    if head.flags != 0 {
        return Err(Bad::Unsupported);
    }
    if head.reserved != 0 {
        return Err(Bad::Field);
    }
    let entries = directory.get(HEAD_BYTES..).unwrap_or_default();
    let (sections, end) = read_entries(entries, end as u64)?;
    // Also bounds every section, since they ascend.
    if end == header.used_bytes() as u64 { Ok(sections) } else { Err(Bad::Field) }
}

/// The sections that entries speak of, in order from byte `from` of the record on, and where they end.
fn read_entries(entries: &[u8], mut from: u64) -> Result<(Vec<Section>, u64), Bad> {
    let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
    let mut sections: Vec<Section> = Vec::with_capacity(entries.len());
    for (index, raw) in entries.iter().enumerate() {
        let section = Section::get(raw, index as u32)?;
        let ascending = sections.last().is_none_or(|last| last.place() < section.place());
        let aligned = (section.offset as usize).is_multiple_of(section.align());
        if !ascending || !aligned || u64::from(section.offset) < from || section.bytes == 0 {
            return Err(Bad::Field);
        }
        from = u64::from(section.offset) + u64::from(section.bytes);
        sections.push(section);
    }
    Ok((sections, from))
}

/// Checks that a section is the `nth` of kind K or V that the layout has, and has a length that its
/// stages can make of a tile.
fn fits(section: &Section, nth: usize, plan: &Plan) -> Result<(), Bad> {
    let (kinds, heads) = (plan.kinds(), plan.layout.num_heads());
    let page = nth / kinds.len();
    let kind = *kinds.get(nth % kinds.len()).ok_or(Bad::Field)?;
    let here = (usize::from(section.layer), usize::from(section.head), section.kind);
    let tile = plan.tile(kind);
    let bytes = section.bytes as usize;
    let len = match section.stages.entropy {
        Entropy::Raw => bytes == tile.bytes,
        Entropy::Expw => tile.expw.is_some() && bytes < tile.bytes,
    };
    if here == (page / heads, page % heads, kind) && len { Ok(()) } else { Err(Bad::Field) }
}

/// The next `N` bytes.
fn take<const N: usize>(raw: &mut &[u8]) -> Result<[u8; N], Bad> {
    let (head, rest) = raw.split_first_chunk().ok_or(Bad::Short)?;
    *raw = rest;
    Ok(*head)
}
