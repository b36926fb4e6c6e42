//! What a check of a whole directory found.

use std::fmt;

use serde::Serialize;

use super::json;
use crate::format::BlockKey;

/// What a check of a directory found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The directory.
    pub path: String,
    /// Whether nothing is damaged.
    pub clean: bool,
    /// Whether some process has the store open; `None` if the system does not tell.
    pub in_use: Option<bool>,
    /// Segments, and how many of them were finished with an index.
    pub segments: u64,
    /// Segments with an index at their end. The others are still written, or were when their process
    /// ended: opening the store scans them.
    pub finished: u64,
    /// Records that are right, those below included.
    pub records: u64,
    /// Sealed ones: their headers are right, the rest needs the key.
    pub sealed: u64,
    /// Notes that a tenant was erased.
    pub tombstones: u64,
    /// Saved sessions.
    pub sessions: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// Unfinished segments whose last record is cut.
    pub torn: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
    /// What is not wrong, and may be of interest.
    pub notes: Vec<Note>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Damage {
    /// What.
    pub what: What,
    /// The file.
    pub file: String,
    /// First byte of what is wrong, in the file.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// The block it belongs to, if that is known.
    #[serde(serialize_with = "json::key")]
    pub key: Option<BlockKey>,
    /// The check that failed.
    pub check: String,
    /// What follows for the user of the store.
    pub means: &'static str,
}

/// Kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum What {
    /// The secret that keys the hashes.
    Secret,
    /// A whole segment: its head is damaged, or belongs elsewhere.
    Segment,
    /// A segment that cannot be read.
    Unreadable,
    /// The index of a segment.
    Footer,
    /// A record.
    Record,
    /// What should be zeros beside a record's bytes.
    Padding,
    /// A note that a tenant was erased.
    Tombstone,
    /// A saved session: its file, or records that it needs.
    Session,
    /// Bytes that are neither record nor zeros.
    Unknown,
}

impl What {
    /// What follows for the user of the store.
    #[must_use]
    pub const fn means(self) -> &'static str {
        match self {
            What::Secret => "every stored block is a miss, unless its secret is given on opening",
            What::Segment => "every block in the segment is a miss",
            What::Unreadable => "its blocks are misses while it cannot be read",
            What::Footer => "nothing is lost: opening the store scans the segment instead",
            What::Record => "the block is a miss, and can be stored again",
            What::Padding => "nothing is lost: no reader looks at it",
            What::Tombstone => {
                "blocks of an erased tenant may come back if copies of them are left"
            }
            What::Session => "it cannot be opened; other sessions are not concerned",
            What::Unknown => "a block may have been here; it is a miss",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Secret => "secret",
            What::Segment => "segment",
            What::Unreadable => "unreadable",
            What::Footer => "index",
            What::Record => "record",
            What::Padding => "padding",
            What::Tombstone => "tombstone",
            What::Session => "session",
            What::Unknown => "unknown bytes",
        })
    }
}

/// Something worth knowing that is no damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Note {
    /// The file.
    pub file: String,
    /// What there is to know.
    pub text: String,
}

impl Note {
    pub(super) fn new(file: impl Into<String>, text: impl Into<String>) -> Note {
        Note { file: file.into(), text: text.into() }
    }
}
