//! Checking one segment: along its index if it has one, else sector by sector.

use std::io;
use std::ops::Range;

use super::report::{Damage, Note, What};
use crate::codec::{Flaw, Part, check_stored};
use crate::disk::entry_of;
use crate::disk::scan::{Depth, Found, Scanner, Seen};
use crate::format::{
    Bad, BlockKey, FLAG_SEALED, FLAG_TOMBSTONE, Footer, FooterEntry, HEAD_BYTES, HEADER_BYTES,
    Head, Header, SECTOR, TRAILER_BYTES, Trailer, is_footer, segment_name,
};

/// What a check of one segment found.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) finished: bool,
    pub(super) records: u64,
    pub(super) sealed: u64,
    pub(super) tombstones: u64,
    /// Its end is not there: it was being written.
    pub(super) torn: Option<Damage>,
    pub(super) damage: Vec<Damage>,
    pub(super) notes: Vec<Note>,
}

/// Checks a segment of the directory `uuid`; `progress` hears how many more bytes were checked.
pub(super) fn check(
    scanner: &Scanner,
    uuid: &[u8; 16],
    progress: &dyn Fn(u64),
) -> io::Result<Checked> {
    let file = segment_name(scanner.id);
    let mut walk = Walk { file, progress, out: Checked::default(), sequence: 0 };
    if scanner.len < HEAD_BYTES as u64 {
        walk.note("its making was cut short; it holds nothing");
        return Ok(walk.out);
    }
    let head = 0..HEAD_BYTES as u64;
    match scanner.head()? {
        Ok(found) if scanner.owns(&found, uuid) => walk.records(scanner, uuid, &found)?,
        Ok(_) => walk.report(What::Segment, head, "head of another directory or place"),
        Err(_) if is_blank(scanner)? => walk.note("its making was cut short; it holds nothing"),
        Err(bad) => walk.report(What::Segment, head, format!("head: {bad}")),
    }
    Ok(walk.out)
}

/// Whether there are only zeros where the head should be.
fn is_blank(scanner: &Scanner) -> io::Result<bool> {
    let mut window = scanner.window(Depth::Headers);
    Ok(is_zero(window.at(0, HEAD_BYTES)?.get(..HEAD_BYTES).unwrap_or_default()))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

/// All checks of a record: `Err` says which failed first.
pub(super) fn check_record(found: &Found) -> Result<Header, Flaw> {
    let header = found.header.map_err(|bad| match bad {
        Bad::Short => Flaw::new(bad, Part::End, 0..found.bytes.len()),
        _ => Flaw::new(bad, Part::Header, 0..HEADER_BYTES),
    })?;
    if header.flags & (FLAG_TOMBSTONE | FLAG_SEALED) == 0 {
        check_stored(found.bytes, &header, true)?;
        return Ok(header);
    }
    let (used, end) = (header.used_bytes(), found.bytes.len());
    match is_zero(found.bytes.get(used..).unwrap_or_default()) {
        true => Ok(header),
        false => Err(Flaw::new(Bad::Field, Part::Padding, used..end)),
    }
}

struct Walk<'a> {
    file: String,
    progress: &'a dyn Fn(u64),
    out: Checked,
    /// Sequence numbers are at least this from here on.
    sequence: u64,
}

impl Walk<'_> {
    fn note(&mut self, text: &str) {
        self.out.notes.push(Note::new(&self.file, text));
    }

    fn damage(&self, what: What, bytes: Range<u64>, check: impl Into<String>) -> Damage {
        let (file, check, means) = (self.file.clone(), check.into(), what.means());
        let (offset, bytes) = (bytes.start, bytes.end - bytes.start);
        Damage { what, file, offset, bytes, key: None, check, means }
    }

    fn report(&mut self, what: What, bytes: Range<u64>, check: impl Into<String>) {
        let damage = self.damage(what, bytes, check);
        self.out.damage.push(damage);
    }

    fn records(&mut self, scanner: &Scanner, uuid: &[u8; 16], head: &Head) -> io::Result<()> {
        (self.progress)(HEAD_BYTES as u64);
        self.sequence = head.sequence;
        let trailer_at = scanner.len - TRAILER_BYTES as u64;
        let trailer = match scanner.trailer()? {
            Ok(trailer) => trailer,
            Err(Bad::Magic) => return self.by_scan(scanner, scanner.len, false),
            Err(bad) => {
                self.report(What::Footer, trailer_at..scanner.len, format!("trailer: {bad}"));
                return self.by_scan(scanner, scanner.len, false);
            }
        };
        match scanner.footer(&trailer, uuid)? {
            Ok(footer) => self.by_footer(scanner, &trailer, &footer),
            Err(bad) => {
                let bytes = trailer.offset..trailer.offset + trailer.len;
                self.report(What::Footer, bytes, format!("index: {bad}"));
                self.by_scan(scanner, trailer.offset, true)
            }
        }
    }

    /// Counts a record that is right.
    fn right(&mut self, header: &Header) {
        self.out.records += 1;
        self.out.sealed += u64::from(header.flags & FLAG_SEALED != 0);
        self.out.tombstones += u64::from(header.flags & FLAG_TOMBSTONE != 0);
        (self.progress)(u64::from(header.sectors()) * SECTOR as u64);
    }

    /// Checks each record that the index names, and that nothing else is between them.
    fn by_footer(
        &mut self,
        scanner: &Scanner,
        trailer: &Trailer,
        footer: &Footer,
    ) -> io::Result<()> {
        self.out.finished = true;
        let mut window = scanner.window(Depth::Records);
        let mut from = HEAD_BYTES as u64;
        for entry in &footer.entries {
            let place = u64::from(entry.position) * SECTOR as u64;
            self.gap(window.at(from, (place - from) as usize)?, from..place);
            let found = scanner.found(&mut window, place, Depth::Records)?;
            self.indexed(entry, &found);
            from = place + u64::from(entry.sectors) * SECTOR as u64;
        }
        self.gap(window.at(from, (trailer.offset - from) as usize)?, from..trailer.offset);
        let end = trailer.offset + trailer.len;
        let rest = end..scanner.len - TRAILER_BYTES as u64;
        self.gap(window.at(end, (rest.end - end) as usize)?, rest);
        (self.progress)(scanner.len - trailer.offset);
        Ok(())
    }

    /// Checks that there are zeros between two records. `bytes` may reach farther.
    fn gap(&mut self, bytes: &[u8], range: Range<u64>) {
        let len = (range.end - range.start) as usize;
        if !is_zero(bytes.get(..len).unwrap_or(bytes)) {
            self.report(What::Unknown, range, "no record of the index is here, and no zeros");
        }
    }

    /// Checks the record that an entry of the index names.
    fn indexed(&mut self, entry: &FooterEntry, found: &Found) {
        let at = found.place;
        let whole = at..at + u64::from(entry.sectors) * SECTOR as u64;
        let mut what = What::Record;
        let (bytes, check) = match check_record(found) {
            Err(flaw) => {
                what = what_is(&flaw);
                (flawed(at, &flaw), text(&flaw))
            }
            Ok(header) if header.key != entry.key => (whole, "a record of another key".to_owned()),
            Ok(header) if entry_of(&header) != *entry => {
                (whole, "not as the index says".to_owned())
            }
            Ok(header) if header.sequence < self.sequence => {
                (whole, "sequence numbers do not rise".to_owned())
            }
            Ok(header) => {
                self.sequence = header.sequence + 1;
                return self.right(&header);
            }
        };
        let erases = entry.flags & FLAG_TOMBSTONE != 0;
        if erases && what == What::Record {
            what = What::Tombstone;
        }
        let mut damage = self.damage(what, bytes, check);
        damage.key = (!erases).then_some(entry.key);
        self.out.damage.push(damage);
    }

    /// Looks at every sector up to `end` where the index cannot be used. What is wrong with nothing
    /// right behind it, and no `index`, is the end of what was being written.
    fn by_scan(&mut self, scanner: &Scanner, end: u64, index: bool) -> io::Result<()> {
        let mut tail: Vec<Damage> = Vec::new();
        let mut over = false;
        scanner.each(Depth::Records, HEAD_BYTES as u64, end, |seen| match seen {
            _ if over => false,
            Seen::Record(found) => match check_record(&found) {
                Ok(header) => {
                    self.out.damage.append(&mut tail);
                    self.right(&header);
                    true
                }
                Err(flaw) => {
                    let bytes = flawed(found.place, &flaw);
                    let mut damage = self.damage(what_is(&flaw), bytes, text(&flaw));
                    damage.key = found.header.ok().map(|header| header.key);
                    tail.push(damage);
                    false
                }
            },
            Seen::Unread(at, e) => {
                let bytes = at..(at + SECTOR as u64).min(end);
                let damage = self.damage(What::Unreadable, bytes, e.to_string());
                self.out.damage.push(damage);
                false
            }
            Seen::Other(at, sector) => {
                if is_footer(sector) {
                    over = true;
                } else if let Some(key) = key_without_magic(sector) {
                    let mut damage = self.damage(What::Record, at..at + 8, "header: no magic");
                    damage.key = Some(key);
                    tail.push(damage);
                } else if tail.is_empty() && !is_zero(sector) {
                    let bytes = at..at + SECTOR as u64;
                    tail.push(self.damage(What::Unknown, bytes, "neither a record nor zeros"));
                }
                false
            }
        })?;
        (self.progress)(0);
        self.end(scanner, tail, index || over)
    }

    /// Judges what nothing right came after. `index` says that the start of an index was found.
    fn end(&mut self, scanner: &Scanner, mut tail: Vec<Damage>, index: bool) -> io::Result<()> {
        let unaligned = scanner.len % SECTOR as u64;
        if index && self.out.damage.iter().all(|d| d.what != What::Footer) {
            let at = scanner.len - TRAILER_BYTES as u64;
            let mut window = scanner.window(Depth::Headers);
            if unaligned == 0 && !is_zero(window.at(at, TRAILER_BYTES)?) {
                self.report(What::Footer, at..scanner.len, "trailer: no magic");
            }
        }
        if unaligned != 0 {
            let end = scanner.len;
            let text = "the file is cut: its length is no multiple of 512";
            tail.push(self.damage(What::Unknown, end - unaligned..end, text));
        }
        if index || unaligned != 0 {
            self.out.damage.append(&mut tail);
        }
        self.out.torn = tail.into_iter().next();
        Ok(())
    }
}

/// The key of a header that is right but for its magic.
fn key_without_magic(sector: &[u8]) -> Option<BlockKey> {
    let mut raw = *sector.first_chunk::<HEADER_BYTES>()?;
    raw[..8].copy_from_slice(&crate::format::RECORD_MAGIC);
    let limits = crate::format::Limits::default();
    Header::decode(&raw, &limits).ok().map(|header| header.key)
}

fn what_is(flaw: &Flaw) -> What {
    if flaw.part == Part::Padding { What::Padding } else { What::Record }
}

/// Where a flaw is in the file.
pub(super) fn flawed(at: u64, flaw: &Flaw) -> Range<u64> {
    at + flaw.bytes.start..at + flaw.bytes.end
}

pub(super) fn text(flaw: &Flaw) -> String {
    format!("{}: {}", flaw.part, flaw.bad)
}
