//! Large records are read in pieces, all in flight at once, and decoded in order as they arrive: the
//! processor works while the disk does.

use std::ops::Range;

use super::Entry;
use super::read::reason;
use crate::codec::{Directory, PageSink, Plan, Stream};
use crate::format::{FLAG_SEALED, Header};
use crate::miss::MissReason;
use crate::vfs::Buf;

/// Bytes of a piece: reads of this size run at the disk's full rate.
pub(super) const PIECE: u64 = 512 << 10;

/// What has arrived of a record.
#[derive(Default)]
pub(super) struct Pieces {
    /// Pieces that arrived before one in front of them, by their place in the record.
    early: Vec<(u64, Buf, Range<usize>)>,
    /// Bytes that were decoded, from the record's first.
    at: u64,
    stream: Option<Stream>,
    hash: u64,
    bytes: u64,
}

impl Pieces {
    /// Whether a record with a prefix of so many bytes is to be read in pieces: a large one, whose
    /// directory is in the first. What is sealed is opened as a whole.
    pub(super) fn suit(entry: &Entry, prefix: usize) -> bool {
        entry.flags & FLAG_SEALED == 0 && entry.bytes() > 2 * PIECE && (prefix as u64) < PIECE
    }

    pub(super) fn add(&mut self, at: u64, buf: Buf, range: Range<usize>) {
        self.early.push((at, buf, range));
    }

    /// The piece that is to be decoded next, if it is there.
    pub(super) fn take(&mut self) -> Option<(Buf, Range<usize>)> {
        let next = self.early.iter().position(|(at, ..)| *at == self.at)?;
        let (_, buf, range) = self.early.swap_remove(next);
        Some((buf, range))
    }

    /// Decodes the next piece. `head` checks the header, from the record's first bytes. `true` if the
    /// block is complete, and right.
    pub(super) fn feed(
        &mut self,
        plan: &Plan,
        piece: &[u8],
        head: impl FnOnce(&[u8]) -> Result<Header, MissReason>,
        sink: &mut dyn PageSink,
    ) -> Result<bool, MissReason> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let header = head(piece)?;
                let directory = Directory::parse(piece, &header, plan).map_err(reason)?;
                self.hash = header.decoded_hash;
                self.bytes = header.used_bytes() as u64;
                Stream::new(directory, &header, false)
            }
        };
        stream.feed(plan, piece, sink).map_err(reason)?;
        self.at += piece.len() as u64;
        if self.at < self.bytes {
            self.stream = Some(stream);
            return Ok(false);
        }
        stream.finish().map_err(reason)?;
        Ok(true)
    }

    /// Checksum of the block, as its header tells.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}
