//! What can be checked of a stored record without its layout, and where it is wrong if it is.

#![deny(clippy::indexing_slicing)]

use std::ops::Range;

use super::directory::{self, Section};
use super::{Directory, Kind};
use crate::format::{Bad, HEADER_BYTES, Header, SECTOR};

/// A part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Header,
    /// Token ids and directory, which one checksum covers.
    Directory,
    /// A section: layer, KV head, kind.
    Section(u16, u16, Kind),
    /// Zeros between sections and behind the last.
    Padding,
    /// What should be there and is not.
    End,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Header => f.write_str("header"),
            Part::Directory => f.write_str("token ids and directory"),
            Part::Section(layer, head, kind) => {
                write!(f, "{kind:?} section of layer {layer}, KV head {head}")
            }
            Part::Padding => f.write_str("padding"),
            Part::End => f.write_str("end"),
        }
    }
}

/// A check that failed, and the bytes of the record that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) bad: Bad,
    pub(crate) part: Part,
    pub(crate) bytes: Range<u64>,
}

impl Flaw {
    pub(crate) fn new(bad: Bad, part: Part, bytes: Range<usize>) -> Flaw {
        Flaw { bad, part, bytes: bytes.start as u64..bytes.end as u64 }
    }
}

/// Checks directory, every section's checksum and, if `strict`, that `record` reaches to the end of
/// its last sector and padding is zeros.
///
/// # Errors
/// The first flaw.
pub(crate) fn check_stored(record: &[u8], header: &Header, strict: bool) -> Result<(), Flaw> {
    let (used, padded) = (header.used_bytes(), header.sectors() as usize * SECTOR);
    let sections = directory::sections(record, header).map_err(|bad| {
        let end = Directory::end(record, header).unwrap_or(used);
        Flaw::new(bad, Part::Directory, HEADER_BYTES..end)
    })?;
    let whole = if strict { padded } else { used };
    if record.len() < whole {
        return Err(Flaw::new(Bad::Short, Part::End, record.len()..whole));
    }
    for section in &sections {
        let range = section.offset as usize..section.range().end as usize;
        let stored = record.get(range.clone()).unwrap_or_default();
        section.check(header.key.seed(), stored).map_err(|bad| {
            Flaw::new(bad, Part::Section(section.layer, section.head, section.kind), range)
        })?;
    }
    if strict { check_padding(record, header, &sections) } else { Ok(()) }
}

/// Checks that what is between sections and behind the last is zeros.
pub(super) fn check_padding(
    record: &[u8],
    header: &Header,
    sections: &[Section],
) -> Result<(), Flaw> {
    let padded = header.sectors() as usize * SECTOR;
    let bad = |bad, gap| Flaw::new(bad, Part::Padding, gap);
    let mut from = Directory::end(record, header).map_err(|e| bad(e, HEADER_BYTES..padded))?;
    let ends = sections.iter().map(|s| (s.offset as usize, s.range().end as usize));
    for (start, end) in ends.chain([(padded, padded)]) {
        let gap = record.get(from..start).ok_or_else(|| bad(Bad::Short, from..start))?;
        if gap.iter().any(|&b| b != 0) {
            return Err(bad(Bad::Field, from..start));
        }
        from = end;
    }
    Ok(())
}
