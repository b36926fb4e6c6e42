//! Reading records: found by key, read with their neighbours, checked in full before anybody sees
//! them. A check that fails is a miss, and the record is not served again.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::direct::Direct;
use super::expect::{Expect, Want, extent, pages_of, whole};
use super::pieces::{PIECE, Pieces};
use super::spans::{Part, RunDone, Span, SpanNext, SpanReads};
use super::{Disk, Entry, Segment};
use crate::codec::{Directory, PageSink, Plan};
use crate::format::{Bad, BlockKey, FLAG_SEALED, Header, SECTOR};
use crate::miss::MissReason;
use crate::vfs::Buf;

/// A record's place, held open.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) segment: Arc<Segment>,
    pub(crate) entry: Entry,
    pub(crate) key: BlockKey,
}

/// How far a block is.
enum Stage {
    /// Waiting for the whole record.
    Whole,
    /// Waiting for header and directory.
    Prefix,
    /// Waiting for its pages.
    Pages(Directory),
    /// Waiting for the pieces of a large record, decoded in their order.
    Pieces(Box<Pieces>),
    /// Waiting for pieces that go to their place.
    Direct(Box<Direct>),
    Over,
}

struct Job<'a, S> {
    /// Taken when it is over.
    want: Option<Want<'a, S>>,
    place: Option<Place>,
    stage: Stage,
    hash: u64,
}

/// Blocks being read.
pub(crate) struct BlockReads<'a, S> {
    disk: &'a Disk,
    expect: Expect<'a>,
    jobs: Vec<Job<'a, S>>,
    spans: SpanReads<&'a Disk>,
    ready: Vec<(usize, Result<(), MissReason>)>,
    pending: usize,
}

/// A block's result.
pub(crate) struct BlockDone<S> {
    /// Its place in the list given to [`Disk::read`].
    pub(crate) index: usize,
    pub(crate) result: Result<(), MissReason>,
    /// Checksum of the whole block, if all of it was read.
    pub(crate) hash: u64,
    pub(crate) sink: S,
}

impl Disk {
    /// A record's place. It counts as read.
    pub(crate) fn find(&self, key: &BlockKey) -> Option<Place> {
        self.find_of(key, None)
    }

    /// [`Disk::find`], of a tenant if one is given.
    fn find_of(&self, key: &BlockKey, tenant: Option<&[u8; 16]>) -> Option<Place> {
        let mut state = self.state.lock();
        let entry = *state.index.get(key)?;
        if tenant.is_some_and(|tag| !state.is_of(&entry, tag)) {
            return None;
        }
        state.index.get_mut(key)?.hit = true;
        let segment = state.segments.get(&entry.segment)?.segment.clone();
        Some(Place { segment, entry, key: *key })
    }

    /// Starts reading blocks. Results come in any order.
    pub(crate) fn read<'a, S: PageSink>(
        &'a self,
        expect: Expect<'a>,
        wants: Vec<Want<'a, S>>,
    ) -> BlockReads<'a, S> {
        let mut reads = BlockReads {
            disk: self,
            expect,
            jobs: Vec::with_capacity(wants.len()),
            spans: SpanReads::start(self, Vec::new()),
            ready: Vec::new(),
            pending: wants.len(),
        };
        let refused = self.check_readable().err();
        let (mut spans, mut alone) = (Vec::with_capacity(wants.len()), Vec::new());
        for (index, mut want) in wants.into_iter().enumerate() {
            let place = match refused {
                Some(_) => None,
                None => self.find_of(&want.key, Some(&expect.tenant)),
            };
            let stage = match &place {
                None => {
                    reads.ready.push((index, Err(refused.unwrap_or(MissReason::Absent))));
                    Stage::Over
                }
                Some(place) => {
                    let (stage, wanted) = begin(expect.plan, place, index, &mut want);
                    // Pieces are not joined again.
                    if wanted.len() > 1 { &mut alone } else { &mut spans }.extend(wanted);
                    stage
                }
            };
            reads.jobs.push(Job { want: Some(want), place, stage, hash: 0 });
        }
        reads.spans.add_alone(alone);
        reads.spans.add(spans);
        reads
    }

    /// A record failed a check: it is not served again, in the same step that says so.
    pub(crate) fn failed(&self, place: &Place, reason: MissReason) {
        use MissReason::{Checksum, Codec, Decrypt, Gone, Io, KeyMismatch, Torn, Version};
        let damaged = matches!(reason, Checksum | Gone | Io | KeyMismatch | Torn);
        // Maybe right for another version or key, but this process has only one of each.
        let unreadable = matches!(reason, Codec | Decrypt | Version);
        // Other reasons speak of the reader: the record may be right for others.
        if !(damaged || unreadable) || bug!("failed_stays_visible") {
            return;
        }
        let untrusted = reason == Io && place.segment.read_failed();
        self.state.lock().quarantine(&place.key, place.entry.sequence);
        if untrusted {
            self.quarantine_segment(place.segment.id);
        }
    }
}

/// What is to be read first of a block.
fn begin<S: PageSink>(
    plan: &Plan,
    place: &Place,
    tag: usize,
    want: &mut Want<S>,
) -> (Stage, Vec<Span>) {
    let (entry, bytes) = (&place.entry, place.entry.bytes());
    let prefix = plan.prefix_bytes(entry.tokens as usize);
    let all = want.pages.len() == plan.layout().pages();
    if !all && entry.flags & FLAG_SEALED == 0 {
        return (Stage::Prefix, vec![place.span(0..bytes.min(prefix as u64), tag)]);
    }
    if all && let Some((direct, spans)) = Direct::start(plan, place, tag, &mut want.sink) {
        return (Stage::Direct(Box::new(direct)), spans);
    }
    if Pieces::suit(entry, prefix) {
        let cut = (0..bytes).step_by(PIECE as usize);
        let spans = cut.map(|at| place.span(at..bytes.min(at + PIECE), tag)).collect();
        return (Stage::Pieces(Box::default()), spans);
    }
    (Stage::Whole, vec![place.span(0..bytes, tag)])
}

impl Place {
    fn start(&self) -> u64 {
        u64::from(self.entry.position) * SECTOR as u64
    }

    /// A range of the record.
    pub(crate) fn span(&self, bytes: Range<u64>, tag: usize) -> Span {
        let start = self.start();
        let bytes = start + bytes.start..start + bytes.end;
        Span { segment: self.segment.clone(), bytes, tag, into: None }
    }

    /// Reads the header and checks that it is this record's.
    pub(super) fn header(&self, disk: &Disk, raw: &[u8]) -> Result<Header, MissReason> {
        let header = Header::decode(raw, &disk.options.limits).map_err(reason)?;
        let here = header.segment == self.segment.id && header.position == self.entry.position;
        if bug!("place_not_compared") {
            return Ok(header);
        }
        if header.key != self.key && !bug!("key_not_compared") {
            return Err(MissReason::KeyMismatch);
        }
        match here
            && header.sequence == self.entry.sequence
            && header.sectors() == self.entry.sectors
        {
            true => Ok(header),
            false => Err(MissReason::Checksum),
        }
    }
}

/// What a failed check means for whoever asked.
pub(crate) fn reason(bad: Bad) -> MissReason {
    match bad {
        Bad::Magic | Bad::Short => MissReason::Torn,
        Bad::Version => MissReason::Version,
        Bad::Unsupported => MissReason::Codec,
        Bad::Decrypt => MissReason::Decrypt,
        _ => MissReason::Checksum,
    }
}

/// What a failed read means.
pub(crate) fn reason_of_error(e: &io::Error) -> MissReason {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => MissReason::Torn,
        io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle => MissReason::Gone,
        // Not for want of the record: it may be there the next time.
        io::ErrorKind::OutOfMemory | io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {
            MissReason::Busy
        }
        io::ErrorKind::TimedOut => MissReason::Timeout,
        _ => MissReason::Io,
    }
}

/// Whether an error may speak of another part of what was read together.
fn may_be_neighbour(e: &io::Error) -> bool {
    !matches!(e.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::TimedOut)
}

impl<S: PageSink> BlockReads<'_, S> {
    /// Blocks without a result yet.
    #[cfg(test)]
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    /// Waits for a block until `deadline`; what is missing then is a miss. `None` when every block
    /// has its result.
    pub(crate) fn next(&mut self, deadline: Duration) -> Option<BlockDone<S>> {
        while self.ready.is_empty() && self.pending > 0 {
            match self.spans.next(Some(deadline)) {
                SpanNext::Done(run) => self.arrived(run),
                SpanNext::TimedOut => {
                    self.disk.health.lock().stuck(self.disk.vfs.now());
                    self.give_up(MissReason::Timeout);
                }
                SpanNext::Empty => self.give_up(MissReason::Io),
            }
        }
        let (index, result) = self.ready.pop()?;
        self.pending -= 1;
        if self.pending == 0 {
            self.disk.state.lock().counts.read_bytes += self.spans.read_bytes();
        }
        let want = self.jobs[index].want.take()?;
        let hash = self.jobs[index].hash;
        Some(BlockDone { index, result, hash, sink: want.sink })
    }

    fn give_up(&mut self, reason: MissReason) {
        for (index, job) in self.jobs.iter_mut().enumerate() {
            if !matches!(job.stage, Stage::Over) {
                job.stage = Stage::Over;
                self.ready.push((index, Err(reason)));
            }
        }
    }

    fn arrived(&mut self, run: RunDone) {
        let RunDone { segment, mut parts, result, buf } = run;
        if result.as_ref().is_err_and(may_be_neighbour) && parts.len() > 1 {
            // One bad place is not to cost its neighbours.
            let alone = parts.into_iter().map(|Part { tag, bytes, .. }| {
                if let stage @ Stage::Direct(_) = &mut self.jobs[tag].stage {
                    *stage = Stage::Whole;
                }
                Span { segment: segment.clone(), bytes, tag, into: None }
            });
            self.spans.add_alone(alone.collect());
            return;
        }
        if let (Ok(()), [part], Some(_)) = (&result, &*parts, &buf)
            && matches!(self.jobs[part.tag].stage, Stage::Pieces(_))
        {
            return self.piece(parts.swap_remove(0), buf);
        }
        let mut more = Vec::new();
        for part in parts {
            let index = part.tag;
            if matches!(self.jobs[index].stage, Stage::Over) {
                // Another piece of it failed.
                continue;
            }
            let outcome = match (&result, &buf) {
                (Ok(()), Some(buf)) => self.advance(part, buf, &mut more),
                (Err(e), _) => Err(reason_of_error(e)),
                (Ok(()), None) => Err(MissReason::Busy),
            };
            let over = match outcome {
                Ok(over) => over.then_some(Ok(())),
                Err(reason) => Some(Err(reason)),
            };
            if let Some(result) = over {
                self.over(index, result);
            }
        }
        buf.into_iter().for_each(|buf| self.disk.buffers.give(buf));
        if !more.is_empty() {
            self.spans.add(more);
        }
    }

    fn over(&mut self, index: usize, result: Result<(), MissReason>) {
        let job = &mut self.jobs[index];
        job.stage = Stage::Over;
        if let (Err(reason), Some(place)) = (&result, &job.place) {
            self.disk.failed(place, *reason);
        }
        self.ready.push((index, result));
    }

    /// Takes a piece of a large record.
    fn piece(&mut self, part: Part, buf: Option<Buf>) {
        let Part { tag: index, bytes, range, .. } = part;
        let (disk, expect, job) = (self.disk, self.expect, &mut self.jobs[index]);
        let (Some(place), Some(want), Stage::Pieces(pieces), Some(buf)) =
            (&job.place, &mut job.want, &mut job.stage, buf)
        else {
            return;
        };
        let at = bytes.start - place.start();
        pieces.add(at, buf, range);
        let mut result = Ok(false);
        while let (Ok(false), Some((buf, range))) = (result, pieces.take()) {
            let head = |raw: &[u8]| expect.header(disk, place, want.tokens, raw);
            result = pieces.feed(expect.plan, &buf[range], head, &mut want.sink);
            disk.buffers.give(buf);
        }
        match result {
            Ok(false) => {}
            Ok(true) => {
                job.hash = pieces.hash();
                self.over(index, Ok(()));
            }
            Err(reason) => self.over(index, Err(reason)),
        }
    }

    /// Takes what arrived for a block. `true` if that was all.
    fn advance(
        &mut self,
        part: Part,
        buf: &[u8],
        more: &mut Vec<Span>,
    ) -> Result<bool, MissReason> {
        let (index, stored) = (part.tag, &buf[part.range]);
        let (disk, expect, job) = (self.disk, self.expect, &mut self.jobs[index]);
        let (Some(place), Some(want)) = (&job.place, &mut job.want) else {
            return Err(MissReason::Gone);
        };
        match std::mem::replace(&mut job.stage, Stage::Over) {
            Stage::Whole => {
                let header = expect.header(disk, place, want.tokens, stored)?;
                whole(expect, place, want, &header, stored)?;
                job.hash = header.decoded_hash;
                Ok(true)
            }
            Stage::Prefix => {
                let header = expect.header(disk, place, want.tokens, stored)?;
                let end = Directory::end(stored, &header).map_err(reason)?;
                if end > stored.len() {
                    // More sections than the layout alone needs.
                    job.stage = Stage::Prefix;
                    more.push(place.span(0..end as u64, index));
                    return Ok(false);
                }
                let directory = Directory::parse(stored, &header, expect.plan).map_err(reason)?;
                more.push(place.span(extent(&directory, &want.pages), index));
                job.stage = Stage::Pages(directory);
                Ok(false)
            }
            Stage::Pages(directory) => {
                pages_of(expect.plan, &directory, want, stored).map_err(reason)?;
                Ok(true)
            }
            Stage::Direct(mut direct) => {
                let head = |raw: &[u8]| expect.header(disk, place, want.tokens, raw);
                let placed = part.into.ok_or(MissReason::Io)?;
                let at = part.bytes.start - place.start();
                if direct.arrived(expect.plan, at, (stored, placed), head)? {
                    job.hash = direct.hash();
                    return Ok(true);
                }
                job.stage = Stage::Direct(direct);
                Ok(false)
            }
            Stage::Pieces(_) | Stage::Over => Err(MissReason::Io),
        }
    }
}
