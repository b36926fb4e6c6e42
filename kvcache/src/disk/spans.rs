//! Reading many ranges of segments: neighbours are read together, rounded to what the file wants,
//! with a bounded number of bytes in flight.

use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::Duration;

use super::{Disk, Segment};
use crate::format::SECTOR;
use crate::vfs::{Buf, INSERTS_MAX, Insert, Op, Outcome, Whole};

/// Ranges this close to each other are read together: a gap costs less than another request.
const GAP: u64 = 8 << 10;
/// Ranges are joined up to this many bytes.
pub(super) const RUN: u64 = 1 << 20;
/// Bytes in flight at once, at most, where more than one run is.
pub(super) const WINDOW: usize = 8 << 20;

/// A range of a segment that somebody wants.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) segment: Arc<Segment>,
    pub(crate) bytes: Range<u64>,
    /// The caller's name for it.
    pub(crate) tag: usize,
    /// Where a part of it goes, without a detour.
    pub(crate) into: Option<Into>,
}

/// Memory for a part of a span.
#[derive(Debug)]
pub(crate) struct Into {
    /// Where in the segment it begins.
    pub(crate) from: u64,
    pub(crate) buf: Buf,
}

impl Into {
    /// Whether the segment can be read into it.
    pub(crate) fn suits(&self, segment: &Segment) -> bool {
        let align = segment.file.alignment().max(SECTOR);
        segment.file.gathers()
            && self.from.is_multiple_of(align as u64)
            && self.buf.len().is_multiple_of(align)
            && self.buf.as_ptr().addr().is_multiple_of(align)
    }
}

/// Neighbouring spans of one segment.
#[derive(Debug)]
struct Run {
    segment: Arc<Segment>,
    bytes: Range<u64>,
    spans: Vec<Span>,
}

/// A span that was read.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) tag: usize,
    /// The span.
    pub(crate) bytes: Range<u64>,
    /// Where in the run's buffer it is, but for what went elsewhere.
    pub(crate) range: Range<usize>,
    /// What went elsewhere.
    pub(crate) into: Option<Buf>,
    /// Whether something does.
    lent: bool,
}

/// A run on its way.
#[derive(Debug)]
struct Started {
    segment: Arc<Segment>,
    parts: Vec<Part>,
    len: usize,
}

impl Run {
    /// Bytes that go elsewhere.
    fn elsewhere(&self) -> usize {
        self.spans.iter().filter_map(|s| s.into.as_ref()).map(|into| into.buf.len()).sum()
    }

    /// Its spans in a buffer that begins with byte `from` of the segment, and what goes elsewhere.
    fn parts(&mut self, from: u64) -> (Vec<Part>, Vec<Insert>) {
        let (mut parts, mut inserts, mut elsewhere) = (Vec::new(), Vec::new(), 0);
        for Span { bytes, tag, into, .. } in self.spans.drain(..) {
            let start = (bytes.start - from) as usize - elsewhere;
            let (mut len, lent) = ((bytes.end - bytes.start) as usize, into.is_some());
            if let Some(Into { from: at, buf }) = into {
                let at = (at - from) as usize - elsewhere;
                (elsewhere, len) = (elsewhere + buf.len(), len - buf.len());
                inserts.push(Insert { at, buf });
            }
            parts.push(Part { tag, bytes, range: start..start + len, into: None, lent });
        }
        (parts, inserts)
    }
}

/// What a run's read came to.
pub(crate) struct RunDone {
    pub(crate) segment: Arc<Segment>,
    pub(crate) parts: Vec<Part>,
    pub(crate) result: io::Result<()>,
    pub(crate) buf: Option<Buf>,
}

/// What [`SpanReads::next`] found.
pub(crate) enum SpanNext {
    Done(RunDone),
    TimedOut,
    Empty,
}

/// Reads in flight and to come.
#[derive(Debug)]
pub(crate) struct SpanReads<D> {
    disk: D,
    flight: Whole,
    /// Runs by the index of their operation.
    started: Vec<Option<Started>>,
    waiting: Vec<Run>,
    /// Those for which there was no memory.
    refused: Vec<Run>,
    in_flight: usize,
    read: u64,
}

impl<D: Deref<Target = Disk>> SpanReads<D> {
    /// Starts reading.
    pub(crate) fn start(disk: D, spans: Vec<Span>) -> SpanReads<D> {
        let mut reads = SpanReads {
            flight: Whole::start(&disk.vfs, Vec::new()),
            disk,
            started: Vec::new(),
            waiting: Vec::new(),
            refused: Vec::new(),
            in_flight: 0,
            read: 0,
        };
        reads.add(spans);
        reads
    }

    /// Reads these too.
    pub(crate) fn add(&mut self, spans: Vec<Span>) {
        self.queue(join(spans));
    }

    /// Reads these too, each by itself.
    pub(crate) fn add_alone(&mut self, spans: Vec<Span>) {
        self.queue(spans.into_iter().flat_map(|span| join(vec![span])).collect());
    }

    fn queue(&mut self, mut runs: Vec<Run>) {
        // The last of the list goes first.
        runs.reverse();
        runs.append(&mut self.waiting);
        self.waiting = runs;
        self.submit();
    }

    /// Bytes asked from the disk so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read
    }

    /// Keeps the window full.
    fn submit(&mut self) {
        while let Some(run) = self.waiting.last() {
            let align = run.segment.file.alignment().max(SECTOR) as u64;
            let from = run.bytes.start / align * align;
            let len = (run.bytes.end.next_multiple_of(align) - from) as usize;
            if self.in_flight > 0 && self.in_flight + len > WINDOW {
                return;
            }
            let Some(mut run) = self.waiting.pop() else { return };
            let elsewhere = run.elsewhere();
            let Some(buf) = self.disk.buffers.take(len - elsewhere) else {
                self.refused.push(run);
                continue;
            };
            let (parts, inserts) = run.parts(from);
            let op = Op { inserts, ..Op::read(run.segment.file.clone(), from, buf) };
            let index = self.flight.push(op);
            debug_assert_eq!(index, self.started.len());
            self.started.push(Some(Started { segment: run.segment, parts, len }));
            self.in_flight += len;
            self.read += len as u64;
        }
    }

    /// Waits for a run.
    pub(crate) fn next(&mut self, deadline: Option<Duration>) -> SpanNext {
        if let Some(mut run) = self.refused.pop() {
            let (mut parts, inserts) = run.parts(run.bytes.start);
            give_back(&mut parts, inserts);
            let (segment, result) = (run.segment, Err(io::ErrorKind::OutOfMemory.into()));
            return SpanNext::Done(RunDone { segment, parts, result, buf: None });
        }
        match self.flight.next(deadline) {
            Outcome::Empty => SpanNext::Empty,
            Outcome::TimedOut => SpanNext::TimedOut,
            Outcome::Done { index, result, buf, inserts } => {
                let Some(run) = self.started[index].take() else { return SpanNext::Empty };
                let Started { segment, mut parts, len } = run;
                self.in_flight -= len;
                self.submit();
                give_back(&mut parts, inserts);
                SpanNext::Done(RunDone { segment, parts, result, buf: Some(buf) })
            }
        }
    }
}

/// Hands the memory that parts went to back to them.
fn give_back(parts: &mut [Part], inserts: Vec<Insert>) {
    let elsewhere = parts.iter_mut().filter(|part| part.lent);
    elsewhere.zip(inserts).for_each(|(part, insert)| part.into = Some(insert.buf));
}

/// Spans in order of place, neighbours joined; what goes elsewhere is no part of two of them.
fn join(mut spans: Vec<Span>) -> Vec<Run> {
    spans.sort_by_key(|s| (s.segment.id, s.bytes.start));
    let mut runs: Vec<Run> = Vec::with_capacity(spans.len());
    for span in spans {
        let bytes = &span.bytes;
        let joins = |run: &Run| {
            let end = run.bytes.end.max(bytes.end);
            let plain = span.into.is_none() && run.elsewhere() == 0;
            run.segment.id == span.segment.id
                && bytes.start <= run.bytes.end + GAP
                && end - run.bytes.start <= RUN
                && (plain || bytes.start >= run.bytes.end)
                && run.spans.len() < INSERTS_MAX
        };
        match runs.last_mut().filter(|run| joins(run)) {
            Some(run) => {
                run.bytes.end = run.bytes.end.max(bytes.end);
                run.spans.push(span);
            }
            None => runs.push(Run {
                segment: span.segment.clone(),
                bytes: bytes.clone(),
                spans: vec![span],
            }),
        }
    }
    runs
}
