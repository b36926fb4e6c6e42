//! Reading a segment file from front to back: one scanner for opening a directory, which wants what
//! it can serve, and for looking at one, which wants to say what is wrong.
//!
//! Bytes pass through a [`Window`] that slides over the file, so that each is read once, and no more
//! memory is taken than the window or the largest record that is really there.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::verify_stored;
use crate::format::{
    Bad, FLAG_SEALED, FLAG_TOMBSTONE, Footer, HEAD_BYTES, Head, Header, Limits, SECTOR,
    TRAILER_BYTES, Trailer,
};
use crate::vfs::{Buf, BufPool, File, MEMORY_ALIGN, Next, Op, Outcome, Vfs, Whole};

/// A footer is not longer than this, however many records there are.
const FOOTER_MAX: u64 = 64 << 20;
/// Bytes that are passed over where reading fails.
const UNREAD: u64 = 4096;
/// Failures after which the rest of a segment is given up.
const ERRORS: u32 = 64;

/// How much of the records is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// All of it.
    Records,
    /// Headers alone.
    Headers,
}

impl Depth {
    /// Bytes of the first read at a place, and the most of later ones that go on from there.
    fn steps(self) -> (usize, usize) {
        match self {
            Depth::Records => (4 << 20, 4 << 20),
            Depth::Headers => (4 << 10, 4 << 20),
        }
    }
}

/// A segment file to read.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    pub(crate) vfs: &'a Arc<dyn Vfs>,
    pub(crate) buffers: &'a BufPool,
    pub(crate) file: Arc<dyn File>,
    pub(crate) id: u64,
    /// Bytes of the file, as they were when it was listed.
    pub(crate) len: u64,
    pub(crate) limits: Limits,
    /// How long a read may take.
    pub(crate) patience: Duration,
}

/// Something in a segment that starts like a record.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    /// Its first byte in the segment.
    pub(crate) place: u64,
    /// The header, if it is right, belongs here, and the segment is long enough for its record.
    pub(crate) header: Result<Header, Bad>,
    /// All of the record's sectors if it was read ([`Depth::Records`]), else its first.
    pub(crate) bytes: &'a [u8],
}

impl Found<'_> {
    /// Checks all that can be checked of it. What is sealed has only a header without its key.
    pub(crate) fn check(&self) -> Result<Header, Bad> {
        let header = self.header?;
        let opaque = header.flags & (FLAG_TOMBSTONE | FLAG_SEALED) != 0;
        if !opaque && !bug!("torn_accepted") {
            verify_stored(self.bytes, &header, false)?;
        }
        Ok(header)
    }
}

/// What stands at a place of a segment.
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    Record(Found<'a>),
    /// A sector that starts no record.
    Other(u64, &'a [u8]),
    /// Bytes that could not be read; or, if that happened too often, all from there on.
    Unread(u64, io::Error),
}

impl Scanner<'_> {
    /// The head, if it is right; [`Scanner::owns`] says whether it is this one's.
    pub(crate) fn head(&self) -> io::Result<Result<Head, Bad>> {
        let mut window = self.window(Depth::Headers);
        Ok(Head::decode(window.at(0, HEAD_BYTES)?))
    }

    /// Whether a head is of this place and directory.
    pub(crate) fn owns(&self, head: &Head, uuid: &[u8; 16]) -> bool {
        head.id == self.id && head.uuid == *uuid
    }

    /// Where the footer is. [`Bad::Magic`] if the segment was not finished.
    pub(crate) fn trailer(&self) -> io::Result<Result<Trailer, Bad>> {
        let Some(at) = self.len.checked_sub(TRAILER_BYTES as u64) else {
            return Ok(Err(Bad::Short));
        };
        let mut window = self.window(Depth::Headers);
        let trailer = Trailer::decode(window.at(at, TRAILER_BYTES)?, self.id, self.len);
        Ok(trailer.and_then(|t| if t.len > FOOTER_MAX { Err(Bad::Field) } else { Ok(t) }))
    }

    /// The index that a finished segment ends with.
    pub(crate) fn footer(&self, t: &Trailer, uuid: &[u8; 16]) -> io::Result<Result<Footer, Bad>> {
        let mut window = self.window(Depth::Headers);
        let raw = window.at(t.offset, t.len as usize)?;
        let Ok(sectors) = u32::try_from(t.offset / SECTOR as u64) else {
            return Ok(Err(Bad::Field));
        };
        let raw = raw.get(..t.len as usize).ok_or(Bad::Short);
        Ok(raw.and_then(|raw| Footer::decode(raw, uuid, self.id, sectors)))
    }

    /// The record at a place, whatever is there.
    pub(crate) fn record_at<T>(
        &self,
        place: u64,
        depth: Depth,
        look: impl FnOnce(Found) -> T,
    ) -> io::Result<T> {
        let mut window = self.window(depth);
        Ok(look(self.found(&mut window, place, depth)?))
    }

    /// Looks at every sector of `from..end`: `look` says whether a record is to be believed; behind
    /// one that is, the search goes on at its end, else at the next sector. What cannot be read is
    /// passed over, up to a limit; a file that was cut meanwhile ends there.
    ///
    /// # Errors
    /// `TimedOut`.
    pub(crate) fn each(
        &self,
        depth: Depth,
        from: u64,
        end: u64,
        mut look: impl FnMut(Seen) -> bool,
    ) -> io::Result<()> {
        let mut window = self.window(depth);
        let (mut at, end, mut errors) = (from, end.min(self.len), 0);
        while at + SECTOR as u64 <= end {
            match self.step(&mut window, depth, at, &mut look) {
                Ok(0) => return Ok(()),
                Ok(bytes) => at += bytes,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(e),
                // Closer in on what is bad, then past it.
                Err(_) if window.narrow() => {}
                Err(e) => {
                    look(Seen::Unread(at, e));
                    errors += 1;
                    at = if errors > ERRORS { end } else { at / UNREAD * UNREAD + UNREAD };
                }
            }
        }
        Ok(())
    }

    /// Looks at one place. Returns how far it is to the next; 0 at the file's end.
    fn step(
        &self,
        window: &mut Window,
        depth: Depth,
        at: u64,
        look: &mut impl FnMut(Seen) -> bool,
    ) -> io::Result<u64> {
        let Some(sector) = window.at(at, SECTOR)?.get(..SECTOR) else { return Ok(0) };
        if !Header::may_start(sector) {
            look(Seen::Other(at, sector));
            return Ok(SECTOR as u64);
        }
        let sectors = self.header(at, sector).map_or(1, |header| header.sectors());
        let whole = if depth == Depth::Records { sectors as usize * SECTOR } else { SECTOR };
        let mut read = window.at(at, whole).map(drop);
        if read.is_err() && window.narrow() {
            // Around what cannot be read: only the record itself is asked for.
            read = window.at(at, whole).map(drop);
        }
        let unread = match read {
            Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(e),
            read => read.is_err(),
        };
        let depth = if unread { Depth::Headers } else { depth };
        let mut found = self.found(window, at, depth)?;
        if unread {
            // Its end cannot be read: for whoever looks it is not there.
            found.header = Err(Bad::Short);
        }
        let sectors = found.header.map_or(1, |header| header.sectors());
        let taken = if look(Seen::Record(found)) { sectors } else { 1 };
        Ok(u64::from(taken) * SECTOR as u64)
    }

    /// What starts like a record at a place, seen through a window of this depth.
    pub(crate) fn found<'w>(
        &self,
        window: &'w mut Window,
        place: u64,
        depth: Depth,
    ) -> io::Result<Found<'w>> {
        let header = self.header(place, window.at(place, SECTOR)?);
        let need = match (header, depth) {
            (Ok(header), Depth::Records) => header.sectors() as usize * SECTOR,
            _ => SECTOR,
        };
        let bytes = window.at(place, need)?;
        Ok(Found { place, header, bytes: bytes.get(..need).unwrap_or(bytes) })
    }

    fn header(&self, place: u64, raw: &[u8]) -> Result<Header, Bad> {
        let header = Header::decode(raw, &self.limits)?;
        let here = u64::from(header.position) * SECTOR as u64 == place;
        let mine = here && u64::from(header.segment) == self.id & 0xFFFF_FFFF;
        if !mine && !bug!("place_not_compared") {
            return Err(Bad::Field);
        }
        let end = place + u64::from(header.sectors()) * SECTOR as u64;
        if end > self.len { Err(Bad::Short) } else { Ok(header) }
    }

    pub(crate) fn window(&self, depth: Depth) -> Window<'_> {
        let (first, most) = depth.steps();
        Window {
            scanner: self,
            buf: None,
            base: 0,
            filled: 0,
            first,
            most,
            step: first,
            ahead: true,
        }
    }

    /// Reads into `buf[skip..]` from `offset` on, up to its end or the file's.
    fn fill(&self, buf: Buf, skip: usize, offset: u64) -> io::Result<(Buf, usize)> {
        let align = self.file.alignment() as u64;
        let left = self.len.saturating_sub(offset).min((buf.len() - skip) as u64);
        let aligned = (left / align * align) as usize;
        let buf = self.fill_aligned(buf, skip, offset, aligned)?;
        if aligned as u64 == left {
            return Ok((buf, skip + aligned));
        }
        let (buf, tail) = self.fill_tail(buf, skip + aligned, offset + aligned as u64)?;
        let want = (left - aligned as u64) as usize;
        if tail < want {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((buf, skip + aligned + want))
    }

    fn fill_aligned(&self, mut buf: Buf, skip: usize, offset: u64, len: usize) -> io::Result<Buf> {
        if len == 0 {
            return Ok(buf);
        }
        buf.set_len(skip + len);
        let file = Arc::clone(&self.file);
        let op = Op { skip, ..Op::read(file, offset, buf) };
        match Whole::start(self.vfs, vec![op]).next(Some(self.vfs.now() + self.patience)) {
            Outcome::Done { result, buf, .. } => result.map(|()| buf),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// One read of the last bytes of a file whose length is not aligned: it comes back short.
    fn fill_tail(&self, mut buf: Buf, skip: usize, offset: u64) -> io::Result<(Buf, usize)> {
        buf.set_len(skip + self.file.alignment());
        let file = Arc::clone(&self.file);
        let op = Op { skip, ..Op::read(file, offset, buf) };
        match self.vfs.start(vec![op]).next(Some(self.vfs.now() + self.patience)) {
            Next::Done(done) => Ok((done.buf, done.result?)),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// A part of a file in memory, which slides forward.
#[derive(Debug)]
pub(crate) struct Window<'a> {
    scanner: &'a Scanner<'a>,
    buf: Option<Buf>,
    /// Place of the buffer's first byte, and bytes that are in it.
    base: u64,
    filled: usize,
    first: usize,
    most: usize,
    step: usize,
    /// Whether more is read than is asked for.
    ahead: bool,
}

impl Window<'_> {
    /// The bytes from `from` on: at least `len`, unless the file ends before.
    pub(crate) fn at(&mut self, from: u64, len: usize) -> io::Result<&[u8]> {
        let end = from.saturating_add(len as u64).min(self.scanner.len);
        if from < self.base || end > self.base + self.filled as u64 {
            self.slide(from, end)?;
        }
        let skip = from.saturating_sub(self.base) as usize;
        let bytes = self.buf.as_deref().and_then(|buf| buf.get(skip..self.filled));
        Ok(bytes.unwrap_or_default())
    }

    /// After a failure: the next read asks for no more than it must. `false` if the last did not either.
    fn narrow(&mut self) -> bool {
        std::mem::replace(&mut self.ahead, false)
    }

    fn slide(&mut self, from: u64, end: u64) -> io::Result<()> {
        let align = self.scanner.file.alignment().max(MEMORY_ALIGN) as u64;
        let base = from / align * align;
        let kept = self.base..self.base + self.filled as u64;
        // Where it goes on from what is there, the next read is larger.
        let goes_on = kept.contains(&base) || (base == kept.end && self.filled > 0);
        self.step = if goes_on { (self.step * 2).min(self.most) } else { self.first };
        let keep = if kept.contains(&base) { (kept.end - base) as usize } else { 0 };
        // What is kept ends where the file does or at an aligned place.
        let keep = keep / align as usize * align as usize;
        let ahead = if self.ahead { self.step } else { 0 };
        let need = (end.saturating_sub(base) as usize).max(keep + ahead).max(1);
        // No more memory than there are bytes.
        let left = self.scanner.len.saturating_sub(base).max(1);
        let need = need.min(usize::try_from(left).unwrap_or(usize::MAX));
        let need = need.next_multiple_of(align as usize);
        let buf = self.moved(base, keep, need)?;
        (self.base, self.filled) = (base, 0);
        let (buf, filled) = self.scanner.fill(buf, keep, base + keep as u64)?;
        (self.buf, self.filled, self.ahead) = (Some(buf), filled, true);
        Ok(())
    }

    /// A buffer of `need` bytes that starts with the `keep` bytes that are at `base`.
    fn moved(&mut self, base: u64, keep: usize, need: usize) -> io::Result<Buf> {
        let skip = base.saturating_sub(self.base) as usize;
        if let Some(mut buf) = self.buf.take_if(|buf| buf.capacity() >= need) {
            buf.set_len(buf.capacity());
            buf.copy_within(skip..skip + keep, 0);
            buf.set_len(need);
            return Ok(buf);
        }
        let fresh = self.scanner.buffers.take(need);
        let mut fresh = fresh.ok_or(io::ErrorKind::OutOfMemory)?;
        if let Some(old) = self.buf.take() {
            fresh[..keep].copy_from_slice(&old[skip..skip + keep]);
            self.scanner.buffers.give(old);
        }
        Ok(fresh)
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if let Some(buf) = self.buf.take() {
            self.scanner.buffers.give(buf);
        }
    }
}
