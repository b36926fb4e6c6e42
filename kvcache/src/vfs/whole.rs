//! Whole transfers over a thin [`Vfs`]: short ones are continued, interrupted ones repeated, and
//! what cannot go on ends with an error. One rule serves batches ([`Whole`]) and the blocking
//! helpers. It knows nothing of checksums, retirement or retries at a higher level.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Batch, Buf, Done, File, Insert, MEMORY_ALIGN, Next, Op, Transfer, Vfs};

/// Interruptions (`EINTR`, `EAGAIN`) in a row after which a transfer gives up.
const REPEATS: u32 = 1000;

/// Refusals (`EAGAIN`) in a row that are only yielded to; later ones sleep.
const YIELDS: u32 = 16;

/// How long a later refusal sleeps; with the timer's slack all [`REPEATS`] take about 0.1 s.
const PAUSE: Duration = Duration::from_micros(50);

/// Transfers in a row that end before the first aligned offset: the end of a file whose length is
/// not aligned answers so for ever, a hiccup does not.
const STUCK: u32 = 16;

/// What [`Whole::next`] found.
#[derive(Debug)]
pub enum Outcome {
    /// An operation ended; each is handed back once.
    Done {
        /// Its place in the list given to [`Whole::start`].
        index: usize,
        /// `Ok` if every byte was moved.
        result: io::Result<()>,
        /// Its memory.
        buf: Buf,
        /// The rest of its memory.
        inserts: Vec<Insert>,
    },
    /// None ended before the deadline; they go on.
    TimedOut,
    /// All operations have been handed back.
    Empty,
}

/// Operations in flight, each run to its full length. Dropping it parks what is in use, as
/// [`Batch`] says.
#[derive(Debug)]
pub struct Whole {
    vfs: Arc<dyn Vfs>,
    batch: Box<dyn Batch>,
    jobs: Vec<Job>,
    /// The job behind each index of the batch: a continued transfer has a new one.
    owner: Vec<usize>,
    pending: usize,
}

/// What is needed to continue an operation while the batch has its memory.
#[derive(Debug)]
struct Job {
    file: Arc<dyn File>,
    transfer: Transfer,
    left: Left,
}

impl Whole {
    /// Submits operations; see [`Vfs::start`].
    #[must_use]
    pub fn start(vfs: &Arc<dyn Vfs>, ops: Vec<Op>) -> Whole {
        let jobs: Vec<Job> = ops.iter().map(Job::new).collect();
        Whole {
            vfs: Arc::clone(vfs),
            batch: vfs.start(ops),
            owner: (0..jobs.len()).collect(),
            pending: jobs.len(),
            jobs,
        }
    }

    /// Adds an operation and returns its index.
    pub fn push(&mut self, op: Op) -> usize {
        self.jobs.push(Job::new(&op));
        self.pending += 1;
        self.send(self.jobs.len() - 1, op);
        self.jobs.len() - 1
    }

    /// Waits for an operation to end until `deadline` on [`Vfs::now`]'s clock; `None` waits for
    /// ever, a past deadline only looks.
    pub fn next(&mut self, deadline: Option<Duration>) -> Outcome {
        loop {
            let done = match self.batch.next(deadline) {
                Next::Done(done) => done,
                Next::TimedOut => return Outcome::TimedOut,
                Next::Empty => return Outcome::Empty,
            };
            if let Some(outcome) = self.settle(done, deadline) {
                return outcome;
            }
        }
    }

    /// Operations not yet handed back.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Ends the operation behind `done`, or sends it on its way again.
    fn settle(&mut self, done: Done, deadline: Option<Duration>) -> Option<Outcome> {
        let index = self.owner[done.index];
        let job = &mut self.jobs[index];
        match job.left.after(job.transfer, done.result) {
            Verdict::End(result) => {
                self.pending -= 1;
                Some(Outcome::Done { index, result, buf: done.buf, inserts: done.inserts })
            }
            Verdict::Go => {
                self.resume(index, done.buf, done.inserts);
                None
            }
            Verdict::Repeat { pause } => {
                self.resume(index, done.buf, done.inserts);
                // A file that only ever interrupts must not outlast the deadline.
                if deadline.is_some_and(|d| self.vfs.now() >= d) {
                    return Some(Outcome::TimedOut);
                }
                rest(pause);
                None
            }
        }
    }

    fn resume(&mut self, index: usize, buf: Buf, inserts: Vec<Insert>) {
        let Job { file, transfer, left } = &self.jobs[index];
        let op = Op {
            file: Arc::clone(file),
            transfer: *transfer,
            offset: left.offset,
            buf,
            inserts,
            skip: left.skip,
        };
        self.send(index, op);
    }

    fn send(&mut self, job: usize, op: Op) {
        let place = self.batch.push(op);
        assert_eq!(place, self.owner.len(), "a batch numbers its operations in order");
        self.owner.push(job);
    }
}

/// Writes all of `buf` through the engine and waits for it until `deadline`; a buffer that is still in
/// use then is parked.
///
/// # Errors
/// `TimedOut`, `WriteZero`, or what the file system says.
pub fn write_all(
    vfs: &Arc<dyn Vfs>,
    file: &Arc<dyn File>,
    offset: u64,
    buf: Buf,
    deadline: Duration,
) -> io::Result<()> {
    let op = Op::write(Arc::clone(file), offset, buf);
    match Whole::start(vfs, vec![op]).next(Some(deadline)) {
        Outcome::Done { result, .. } => result,
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Fills `buf` through the engine, as [`write_all`].
///
/// # Errors
/// `TimedOut`, `UnexpectedEof`, or what the file system says.
pub fn read_exact(
    vfs: &Arc<dyn Vfs>,
    file: &Arc<dyn File>,
    offset: u64,
    buf: Buf,
    deadline: Duration,
) -> io::Result<Buf> {
    let op = Op::read(Arc::clone(file), offset, buf);
    match Whole::start(vfs, vec![op]).next(Some(deadline)) {
        Outcome::Done { result, buf, .. } => result.map(|()| buf),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

impl Job {
    fn new(op: &Op) -> Job {
        let left = Left::new(&*op.file, op.offset, op.skip, op.len());
        Job { file: Arc::clone(&op.file), transfer: op.transfer, left }
    }
}

/// Reads all of `out`. Aligned as [`File::read_at`] says.
///
/// # Errors
/// `UnexpectedEof` if the file ends first, else what the file system says.
pub fn read_exact_at(file: &dyn File, out: &mut [u8], offset: u64) -> io::Result<()> {
    let mut left = Left::new(file, offset, 0, out.len());
    while left.skip < left.end {
        let result = file.read_at(&mut out[left.skip..], left.offset);
        if let Some(end) = left.blocking(Transfer::Read, result) {
            return end;
        }
    }
    Ok(())
}

/// Writes all of `data`. Aligned as [`File::write_at`] says.
///
/// # Errors
/// `WriteZero` if the file takes no more, else what the file system says.
pub fn write_all_at(file: &dyn File, data: &[u8], offset: u64) -> io::Result<()> {
    let mut left = Left::new(file, offset, 0, data.len());
    while left.skip < left.end {
        let result = file.write_at(&data[left.skip..], left.offset);
        if let Some(end) = left.blocking(Transfer::Write, result) {
            return end;
        }
    }
    Ok(())
}

/// What is left of a transfer.
#[derive(Debug)]
struct Left {
    offset: u64,
    skip: usize,
    end: usize,
    /// A continued transfer starts at a multiple of this after its predecessor.
    step: usize,
    repeats: u32,
    stuck: u32,
}

/// What to do after one transfer.
enum Verdict {
    Go,
    Repeat { pause: Option<Pause> },
    End(io::Result<()>),
}

enum Pause {
    Yield,
    Sleep,
}

impl Left {
    fn new(file: &dyn File, offset: u64, skip: usize, end: usize) -> Left {
        // Direct transfers also need aligned memory.
        let step = match file.alignment() {
            1 => 1,
            align => align.max(MEMORY_ALIGN),
        };
        Left { offset, skip, end, step, repeats: 0, stuck: 0 }
    }

    fn after(&mut self, transfer: Transfer, result: io::Result<usize>) -> Verdict {
        match result {
            Ok(n) => self.moved(transfer, n),
            Err(error) => self.failed(error),
        }
    }

    fn moved(&mut self, transfer: Transfer, n: usize) -> Verdict {
        let left = self.end.saturating_sub(self.skip);
        assert!(n <= left, "moved {n} bytes of {left}");
        let lost = transfer == Transfer::Write && bug!("short_write_ignored");
        if n == left || lost {
            self.advance(n);
            return Verdict::End(Ok(()));
        }
        let whole_steps = n - n % self.step;
        self.advance(whole_steps);
        self.repeats = 0;
        self.stuck = if whole_steps == 0 { self.stuck + 1 } else { 0 };
        if n == 0 || self.stuck == STUCK {
            return Verdict::End(Err(match transfer {
                Transfer::Read => io::ErrorKind::UnexpectedEof.into(),
                Transfer::Write => io::ErrorKind::WriteZero.into(),
            }));
        }
        Verdict::Go
    }

    fn failed(&mut self, error: io::Error) -> Verdict {
        let busy = match error.kind() {
            io::ErrorKind::Interrupted => false,
            io::ErrorKind::WouldBlock => true,
            _ => return Verdict::End(Err(error)),
        };
        self.repeats += 1;
        if self.repeats > REPEATS {
            return Verdict::End(Err(error));
        }
        let pause = if self.repeats > YIELDS { Pause::Sleep } else { Pause::Yield };
        Verdict::Repeat { pause: busy.then_some(pause) }
    }

    fn advance(&mut self, n: usize) {
        self.skip += n;
        self.offset += n as u64;
    }

    /// `Some` ends a blocking transfer.
    fn blocking(
        &mut self,
        transfer: Transfer,
        result: io::Result<usize>,
    ) -> Option<io::Result<()>> {
        match self.after(transfer, result) {
            Verdict::Go => None,
            Verdict::Repeat { pause } => {
                rest(pause);
                None
            }
            Verdict::End(end) => Some(end),
        }
    }
}

fn rest(pause: Option<Pause>) {
    match pause {
        None => {}
        Some(Pause::Yield) => std::thread::yield_now(),
        Some(Pause::Sleep) => std::thread::sleep(PAUSE),
    }
}

#[cfg(test)]
#[path = "whole_tests.rs"]
mod tests;
