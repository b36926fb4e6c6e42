//! Reading many ranges of segments: neighbours are read together, rounded to what the file wants,
//! with a bounded number of bytes in flight.

use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::Duration;

use super::{Disk, Segment};
use crate::format::SECTOR;
use crate::vfs::{Buf, Op, Outcome, Whole};

/// Ranges this close to each other are read together: a gap costs less than another request.
const GAP: u64 = 8 << 10;
/// Ranges are joined up to this many bytes.
pub(super) const RUN: u64 = 1 << 20;
/// Bytes in flight at once, at most, where more than one run is.
pub(super) const WINDOW: usize = 8 << 20;

/// A range of a segment that somebody wants.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) segment: Arc<Segment>,
    pub(crate) bytes: Range<u64>,
    /// The caller's name for it.
    pub(crate) tag: usize,
}

/// Neighbouring spans of one segment.
#[derive(Debug)]
struct Run {
    segment: Arc<Segment>,
    bytes: Range<u64>,
    /// Tags and their ranges, from the run's first byte.
    parts: Vec<(usize, Range<usize>)>,
}

/// What a run's read came to.
pub(crate) struct RunDone {
    pub(crate) segment: Arc<Segment>,
    /// Where it was read from.
    pub(crate) start: u64,
    pub(crate) parts: Vec<(usize, Range<usize>)>,
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
    started: Vec<Option<Run>>,
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
            let Some(buf) = self.disk.buffers.take(len) else {
                self.refused.push(run);
                continue;
            };
            let shift = (run.bytes.start - from) as usize;
            run.parts.iter_mut().for_each(|(_, r)| *r = r.start + shift..r.end + shift);
            let index = self.flight.push(Op::read(run.segment.file.clone(), from, buf));
            debug_assert_eq!(index, self.started.len());
            run.bytes = from..from + len as u64;
            self.started.push(Some(run));
            self.in_flight += len;
            self.read += len as u64;
        }
    }

    /// Waits for a run.
    pub(crate) fn next(&mut self, deadline: Option<Duration>) -> SpanNext {
        if let Some(Run { segment, bytes, parts }) = self.refused.pop() {
            let (start, result) = (bytes.start, Err(io::ErrorKind::OutOfMemory.into()));
            return SpanNext::Done(RunDone { segment, start, parts, result, buf: None });
        }
        match self.flight.next(deadline) {
            Outcome::Empty => SpanNext::Empty,
            Outcome::TimedOut => SpanNext::TimedOut,
            Outcome::Done { index, result, buf, .. } => {
                let Some(run) = self.started[index].take() else { return SpanNext::Empty };
                self.in_flight -= (run.bytes.end - run.bytes.start) as usize;
                self.submit();
                let Run { segment, bytes, parts } = run;
                let start = bytes.start;
                SpanNext::Done(RunDone { segment, start, parts, result, buf: Some(buf) })
            }
        }
    }
}

/// Spans in order of place, neighbours joined.
fn join(mut spans: Vec<Span>) -> Vec<Run> {
    spans.sort_by_key(|s| (s.segment.id, s.bytes.start));
    let mut runs: Vec<Run> = Vec::with_capacity(spans.len());
    for Span { segment, bytes, tag } in spans {
        let len = (bytes.end - bytes.start) as usize;
        let joins = |run: &Run| {
            let end = run.bytes.end.max(bytes.end);
            run.segment.id == segment.id
                && bytes.start <= run.bytes.end + GAP
                && end - run.bytes.start <= RUN
        };
        match runs.last_mut().filter(|run| joins(run)) {
            Some(run) => {
                let from = (bytes.start - run.bytes.start) as usize;
                run.bytes.end = run.bytes.end.max(bytes.end);
                run.parts.push((tag, from..from + len));
            }
            None => runs.push(Run { segment, bytes, parts: vec![(tag, 0..len)] }),
        }
    }
    runs
}
