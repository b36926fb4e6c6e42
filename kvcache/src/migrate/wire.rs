//! Messages as bytes (`docs/formats.md`, "Migration"). What comes from the other side is hostile: every
//! length is checked before memory is taken for it, every sum before its bytes are used.

#![deny(clippy::indexing_slicing)]

use std::io;

use std::hash::Hasher;

use twox_hash::XxHash3_64;

use super::{Ended, Link, MigrationId};
use crate::format::take;

/// Bytes in front of every body.
pub(super) const HEAD: usize = 64;
const MAGIC: [u8; 8] = *b"KVISTMG1";
/// Version of the protocol.
pub(super) const VERSION: u16 = 1;
/// Bodies that are read whole are no longer.
const BODY_MAX: usize = 512;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    /// To the destination: a sequence to come.
    Offer = 1,
    /// Full pages of a layer.
    Pages = 2,
    /// Pages from here on are not the sequence's any more.
    Cut = 3,
    /// The rows of a layer's unfinished page.
    Tail = 4,
    /// A round is over.
    Round = 5,
    /// All is there: take over.
    Commit = 6,
    /// The source has heard who owns the sequence.
    Release = 7,
    /// The source keeps it.
    Abort = 8,
    /// Who owns the sequence?
    Settle = 9,
    /// To the source: go on.
    Ready = 16,
    /// The destination does not take it.
    Refused = 17,
    /// The destination owns the sequence.
    Committed = 18,
    /// The destination does not, and never will under this epoch.
    Void = 19,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::Offer,
        Kind::Pages,
        Kind::Cut,
        Kind::Tail,
        Kind::Round,
        Kind::Commit,
        Kind::Release,
        Kind::Abort,
        Kind::Settle,
        Kind::Ready,
        Kind::Refused,
        Kind::Committed,
        Kind::Void,
    ];
}

/// What stands in front of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) id: MigrationId,
    /// Bytes of the body.
    pub(super) len: usize,
    /// xxh3-64 of the body.
    pub(super) sum: u64,
}

impl Head {
    fn encode(&self) -> [u8; HEAD] {
        let mut out = Vec::with_capacity(HEAD);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((self.kind as u16).to_le_bytes());
        out.extend((self.len as u32).to_le_bytes());
        out.extend(self.id.sequence);
        out.extend(self.id.epoch.to_le_bytes());
        out.extend([0; 8]);
        out.extend(self.sum.to_le_bytes());
        out.extend(XxHash3_64::oneshot(&out).to_le_bytes());
        let mut head = [0; HEAD];
        head.copy_from_slice(&out);
        head
    }

    pub(super) fn decode(raw: &[u8; HEAD]) -> Result<Head, Ended> {
        let bad = |_| Ended::Protocol("a message's head is too short");
        let (front, sum) = raw.split_last_chunk::<8>().ok_or(Ended::Protocol("no sum"))?;
        let raw = &mut &raw[..];
        if take::<8>(raw).map_err(bad)? != MAGIC {
            return Err(Ended::Protocol("not a message of a migration"));
        }
        let version = u16::from_le_bytes(take(raw).map_err(bad)?);
        if version != VERSION {
            return Err(Ended::Version { found: version, supported: VERSION });
        }
        if XxHash3_64::oneshot(front) != u64::from_le_bytes(*sum) {
            return Err(Ended::Protocol("a message's head does not match its checksum"));
        }
        let kind = u16::from_le_bytes(take(raw).map_err(bad)?);
        let kind = Kind::ALL.into_iter().find(|k| *k as u16 == kind);
        let kind = kind.ok_or(Ended::Protocol("an unknown kind of message"))?;
        let len = u32::from_le_bytes(take(raw).map_err(bad)?) as usize;
        let sequence = take(raw).map_err(bad)?;
        let epoch = u64::from_le_bytes(take(raw).map_err(bad)?);
        let zeros: [u8; 8] = take(raw).map_err(bad)?;
        if zeros != [0; 8] {
            return Err(Ended::Protocol("a message's head has more than this version knows"));
        }
        let sum = u64::from_le_bytes(take(raw).map_err(bad)?);
        Ok(Head { kind, id: MigrationId { sequence, epoch }, len, sum })
    }
}

/// Sends and receives messages over a link.
#[derive(Debug)]
pub(super) struct Wire<L> {
    link: L,
    message: Vec<u8>,
}

fn broken(e: io::Error) -> Ended {
    match e.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => Ended::Closed,
        _ => Ended::Link(e.to_string()),
    }
}

impl<L: Link> Wire<L> {
    pub(super) fn new(link: L) -> Wire<L> {
        Wire { link, message: Vec::new() }
    }

    pub(super) fn into_link(self) -> L {
        self.link
    }

    /// Sends a message; `fill` adds its body.
    pub(super) fn say<E>(
        &mut self,
        kind: Kind,
        id: MigrationId,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<usize, E>
    where
        E: From<Ended>,
    {
        self.message.clear();
        self.message.resize(HEAD, 0);
        fill(&mut self.message)?;
        let (head, body) = self.message.split_at_mut(HEAD);
        let too_long = || Ended::Protocol("a message of more than 4 GiB");
        let len = u32::try_from(body.len()).map_err(|_| too_long())? as usize;
        head.copy_from_slice(&Head { kind, id, len, sum: XxHash3_64::oneshot(body) }.encode());
        self.link.send(&mut self.message).map_err(broken)?;
        Ok(HEAD + len)
    }

    /// Sends a message without a body.
    pub(super) fn tell(&mut self, kind: Kind, id: MigrationId) -> Result<(), Ended> {
        self.say::<Ended>(kind, id, |_| Ok(())).map(drop)
    }

    /// The next message's head; its body must be read next.
    pub(super) fn next(&mut self) -> Result<Head, Ended> {
        let mut head = [0; HEAD];
        self.link.receive(&mut head).map_err(broken)?;
        Head::decode(&head)
    }

    /// A short body.
    pub(super) fn body(&mut self, head: &Head) -> Result<Vec<u8>, Ended> {
        self.body_of(head, BODY_MAX)
    }

    /// A body of at most `most` bytes.
    pub(super) fn body_of(&mut self, head: &Head, most: usize) -> Result<Vec<u8>, Ended> {
        if head.len > most {
            return Err(Ended::Protocol("a body longer than its kind can be"));
        }
        let mut body = vec![0; head.len];
        let mut reader = self.reader(head);
        reader.fill(&mut body)?;
        reader.finish()?;
        Ok(body)
    }

    /// Reads a body piece by piece.
    pub(super) fn reader(&mut self, head: &Head) -> BodyReader<'_, L> {
        BodyReader { wire: self, left: head.len, sum: head.sum, hash: XxHash3_64::new() }
    }
}

/// A body on its way. Nothing of it may be used before [`BodyReader::finish`] said so.
pub(super) struct BodyReader<'a, L> {
    wire: &'a mut Wire<L>,
    left: usize,
    sum: u64,
    hash: XxHash3_64,
}

impl<L: Link> BodyReader<'_, L> {
    pub(super) fn fill(&mut self, into: &mut [u8]) -> Result<(), Ended> {
        let left = self.left.checked_sub(into.len());
        self.left = left.ok_or(Ended::Protocol("a body shorter than its kind is"))?;
        self.wire.link.receive(into).map_err(broken)?;
        self.hash.write(into);
        Ok(())
    }

    /// Takes the next number.
    pub(super) fn number(&mut self) -> Result<usize, Ended> {
        let mut raw = [0; 4];
        self.fill(&mut raw)?;
        Ok(u32::from_le_bytes(raw) as usize)
    }

    /// Bytes still to come.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Reads what is left and forgets it.
    pub(super) fn skip(mut self) -> Result<(), Ended> {
        let mut scrap = [0; 4096];
        while self.left > 0 {
            let n = self.left.min(scrap.len());
            self.fill(scrap.get_mut(..n).unwrap_or_default())?;
        }
        self.finish()
    }

    /// Whether the body was as it was sent, to its end.
    pub(super) fn finish(self) -> Result<(), Ended> {
        if self.left > 0 {
            return Err(Ended::Protocol("a body longer than its kind is"));
        }
        match self.hash.finish() == self.sum {
            true => Ok(()),
            false => Err(Ended::Protocol("a body does not match its checksum")),
        }
    }
}
