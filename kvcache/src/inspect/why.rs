//! Why a block would miss: every copy of it that is left, and what became of each.

use std::io;
use std::ops::Range;

use serde::Serialize;

use super::inventory::codec_name;
use super::json::{self, hex};
use super::report::Note;
use super::segment::{check_record, flawed, text};
use super::{Listed, StoreView, threads_default};
use crate::MissReason;
use crate::codec::Part;
use crate::disk::reason;
use crate::disk::scan::{Depth, Found, Scanner, Seen};
use crate::format::{
    BlockKey, FLAG_SEALED, FLAG_TOMBSTONE, FooterEntry, HEAD_BYTES, Header, SECTOR,
};

/// What a reader of a block would get.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Why {
    /// The directory.
    pub path: String,
    /// The block.
    pub key: String,
    /// What a reader of this model and layout would get.
    pub answer: Answer,
    /// Every copy that is left, the newest first.
    pub copies: Vec<Copy>,
    /// What else there is to know.
    pub notes: Vec<Note>,
}

/// What a reader would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "reason")]
#[non_exhaustive]
pub enum Answer {
    /// The block: every check passed.
    Hit,
    /// The block, if the key opens it: what is sealed can be checked with the key alone.
    Sealed,
    /// A miss.
    #[serde(serialize_with = "json::reason")]
    Miss(MissReason),
}

/// One record of a block.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Copy {
    /// The segment's file.
    pub file: String,
    /// First byte in it, and length.
    pub offset: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// What became of it.
    pub state: State,
    /// Rises with each record of the directory.
    pub sequence: u64,
    /// When it was written, in seconds since 1970.
    pub written: u32,
    /// Tokens of the block.
    pub tokens: u32,
    /// Bytes when decoded.
    pub decoded_bytes: u32,
    /// Codec.
    pub codec: String,
    /// What the codec lost: 0 nothing, to 3. A reader that allows less gets a miss.
    pub loss_class: u8,
    /// Model fingerprint. A reader of another model gets a miss.
    pub model: String,
    /// Layout fingerprint. A reader of another layout gets a miss.
    pub layout: String,
    /// What stands for the tenant.
    pub tenant: String,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
#[non_exhaustive]
pub enum State {
    /// Readers get it.
    Served,
    /// It is sealed, and right as far as can be told without the key.
    Sealed,
    /// A newer record took its place.
    Superseded,
    /// Its tenant was erased after it was written.
    Erased,
    /// Its segment was put aside after failed reads.
    Aside,
    /// A check failed.
    Damaged {
        /// What a reader is told.
        #[serde(serialize_with = "json::reason")]
        reason: MissReason,
        /// The check.
        check: String,
        /// First byte that the check covers, in the file.
        offset: u64,
        /// How many bytes it covers.
        bytes: u64,
    },
}

/// A record of the block, or what is left of one.
struct Candidate {
    listed: Listed,
    place: u64,
    header: Header,
    flaw: Option<State>,
    /// The index of its segment names it.
    indexed: bool,
    aside: bool,
}

#[derive(Default)]
struct Hunt {
    candidates: Vec<Candidate>,
    erased: Vec<([u8; 16], u64)>,
    notes: Vec<Note>,
}

impl StoreView {
    /// Finds every record of a block and says what a reader would get.
    #[must_use]
    pub fn why(&self, key: &BlockKey) -> Why {
        let threads = threads_default();
        let hunt = |aside: bool| move |listed: &Listed| self.hunt(listed, key, aside);
        let mut found = Hunt::default();
        let hunts = self.each_segment(&self.segments, threads, hunt(false));
        let aside = self.each_segment(&self.aside, threads, hunt(true));
        for hunt in hunts.into_iter().chain(aside) {
            found.candidates.extend(hunt.candidates);
            found.erased.extend(hunt.erased);
            found.notes.extend(hunt.notes);
        }
        found.candidates.sort_by_key(|c| std::cmp::Reverse(c.header.sequence));
        let mut served = false;
        let erased = &found.erased;
        let copies: Vec<Copy> =
            found.candidates.into_iter().map(|c| c.judged(erased, &mut served)).collect();
        if copies.is_empty() {
            let segments = self.segments.len();
            let text = format!("no record of this block in {segments} segments");
            found.notes.push(Note::new("", text));
        }
        let answer = answer(&copies);
        let path = self.path.display().to_string();
        Why { path, key: key.to_string(), answer, copies, notes: found.notes }
    }

    /// Looks for a block in a segment.
    fn hunt(&self, listed: &Listed, key: &BlockKey, aside: bool) -> Hunt {
        let mut hunt = Hunt::default();
        if let Err(e) = self.hunt_in(listed, key, aside, &mut hunt)
            && e.kind() != io::ErrorKind::NotFound
        {
            let text = format!("cannot be read, its blocks are misses: {e}");
            hunt.notes.push(Note::new(listed.name(), text));
        }
        hunt
    }

    fn hunt_in(
        &self,
        listed: &Listed,
        key: &BlockKey,
        aside: bool,
        hunt: &mut Hunt,
    ) -> io::Result<()> {
        let scanner = self.scanner(listed)?;
        if scanner.len < HEAD_BYTES as u64 {
            return Ok(());
        }
        self.check_head(&scanner)?;
        let places = match entries_in_footer(&scanner, &self.meta.uuid, key)? {
            Some(entries) => entries,
            None => places_by_scan(&scanner, key)?,
        };
        for (place, entry) in places {
            scanner.record_at(place, Depth::Records, |found| {
                let Some(mut header) = believed(&found) else { return };
                if header.flags & FLAG_TOMBSTONE != 0 {
                    hunt.erased.push(header.erasure());
                    return;
                }
                let flaw = flaw_of(&found, key);
                if let Some(entry) = &entry {
                    // What the index says is checked; what the header says may not be.
                    (header.sequence, header.tenant) = (entry.sequence, entry.tenant);
                }
                let (listed, indexed) = (listed.clone(), entry.is_some());
                hunt.candidates.push(Candidate { listed, place, header, flaw, indexed, aside });
            })?;
        }
        Ok(())
    }
}

fn flaw_of(found: &Found, key: &BlockKey) -> Option<State> {
    let damaged = |reason, check, bytes: Range<u64>| State::Damaged {
        reason,
        check,
        offset: bytes.start,
        bytes: bytes.end - bytes.start,
    };
    match check_record(found) {
        // No reader looks at it.
        Err(flaw) if flaw.part == Part::Padding => None,
        Err(flaw) => {
            let bytes = flawed(found.place, &flaw);
            Some(damaged(reason(flaw.bad), text(&flaw), bytes))
        }
        Ok(header) if header.key != *key => {
            let whole = found.place..found.place + found.bytes.len() as u64;
            let check = "a record of another key lies here".to_owned();
            Some(damaged(MissReason::KeyMismatch, check, whole))
        }
        Ok(_) => None,
    }
}

/// Where a block's records and tombstones are.
type Places = Vec<(u64, Option<FooterEntry>)>;

/// By the index; `None` without one.
fn entries_in_footer(
    scanner: &Scanner,
    uuid: &[u8; 16],
    key: &BlockKey,
) -> io::Result<Option<Places>> {
    let Ok(trailer) = scanner.trailer()? else { return Ok(None) };
    let Ok(footer) = scanner.footer(&trailer, uuid)? else { return Ok(None) };
    let entries = footer.entries.into_iter();
    let wanted = entries.filter(|e| e.key == *key || e.flags & FLAG_TOMBSTONE != 0);
    Ok(Some(wanted.map(|e| (u64::from(e.position) * SECTOR as u64, Some(e))).collect()))
}

/// Without an index: also what only says that it is a record of the block.
fn places_by_scan(scanner: &Scanner, key: &BlockKey) -> io::Result<Places> {
    let mut places = Vec::new();
    scanner.each(Depth::Headers, HEAD_BYTES as u64, scanner.len, |seen| {
        let Seen::Record(found) = seen else { return false };
        let wanted = |h: Header| h.key == *key || h.flags & FLAG_TOMBSTONE != 0;
        if believed(&found).is_some_and(wanted) {
            places.push((found.place, None));
        }
        found.header.is_ok()
    })?;
    Ok(places)
}

/// The header as it stands there, right or not.
fn believed(found: &Found) -> Option<Header> {
    found.header.ok().or_else(|| Header::decode_unchecked(found.bytes))
}

impl Candidate {
    /// What became of it, given that newer ones were judged before.
    fn judged(self, erased: &[([u8; 16], u64)], served: &mut bool) -> Copy {
        let header = &self.header;
        let gone = |&(tenant, before): &([u8; 16], u64)| {
            tenant == header.tenant && header.sequence < before
        };
        let counts = self.flaw.is_none() || self.indexed;
        let state = if self.aside {
            State::Aside
        } else if erased.iter().any(gone) {
            State::Erased
        } else if *served {
            State::Superseded
        } else {
            // Without an index a damaged record is not found at all, and an older one may be.
            *served = counts;
            match self.flaw {
                Some(flaw) => flaw,
                None if header.flags & FLAG_SEALED != 0 => State::Sealed,
                None => State::Served,
            }
        };
        Copy {
            file: self.listed.name(),
            offset: self.place,
            bytes: u64::from(header.sectors()) * SECTOR as u64,
            state,
            sequence: header.sequence,
            written: header.written,
            tokens: header.tokens,
            decoded_bytes: header.decoded_len,
            codec: codec_name(header.codec),
            loss_class: header.loss_class,
            model: hex(&header.model),
            layout: hex(&header.layout),
            tenant: hex(&header.tenant),
        }
    }
}

/// What a reader gets: the newest copy that counts decides.
fn answer(copies: &[Copy]) -> Answer {
    let mut answer = Answer::Miss(MissReason::Absent);
    for copy in copies {
        match &copy.state {
            State::Served => return Answer::Hit,
            State::Sealed => return Answer::Sealed,
            State::Superseded | State::Aside => {}
            State::Erased if answer == Answer::Miss(MissReason::Absent) => {
                answer = Answer::Miss(MissReason::Erased);
            }
            State::Erased => {}
            State::Damaged { reason, .. } => {
                if matches!(answer, Answer::Miss(MissReason::Absent | MissReason::Erased)) {
                    answer = Answer::Miss(*reason);
                }
            }
        }
    }
    answer
}
