//! One `io_uring`, and the operations it holds.
//!
//! What makes it sound: an operation given to [`Ring::push`] is owned by the ring, and comes out
//! again only through [`Ring::reap`], once the kernel has posted its completion or has provably
//! never seen it. A ring dropped with operations inside leaks their memory.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::Errno;

use super::super::op::Stretch;
use super::super::{Done, Op, Transfer};
use super::file::OsFile;

/// Operations that a ring holds at most.
pub(super) const DEPTH: usize = 64;

/// Marks the completion of a cancellation; no slot has this number.
const CANCEL: u64 = u64::MAX;

/// A longer transfer is a short one, to be continued: the kernel's own limit is just below 2 GiB.
const LONGEST: usize = 1 << 30;

/// How long to leave a kernel alone that has no memory for a request just now.
const BREATH: Duration = Duration::from_micros(50);

pub(super) struct Ring {
    io: IoUring,
    /// By slot number, which is the `user_data` that the kernel hands back.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// What the kernel has not taken yet, oldest first: it takes entries in order, and only during
    /// [`Ring::enter`].
    queued: VecDeque<u64>,
    /// Ended without the kernel.
    failed: VecDeque<Done>,
    /// The error after which the ring is not entered any more.
    broken: Option<i32>,
}

/// An operation in a slot.
struct Flight {
    index: usize,
    op: Op,
    /// Its memory, if it has inserts, as the kernel reads it.
    _stretches: Vec<Stretch>,
}

impl Ring {
    /// # Errors
    /// What the kernel says; `Unsupported` if it is too old to wait with a timeout (before 5.11).
    pub(super) fn new() -> io::Result<Ring> {
        let io = IoUring::new(DEPTH as u32)?;
        if !io.params().is_feature_ext_arg() || !io.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Ring {
            io,
            flights: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            queued: VecDeque::with_capacity(DEPTH),
            failed: VecDeque::new(),
            broken: None,
        })
    }

    /// How many operations fit in.
    pub(super) fn room(&self) -> usize {
        // A cancellation may take a place in the queue, too.
        self.free.len().min(DEPTH - self.queued.len())
    }

    /// Operations that the kernel has or will get.
    pub(super) fn in_flight(&self) -> usize {
        DEPTH - self.free.len()
    }

    /// Bytes of their buffers.
    pub(super) fn bytes(&self) -> usize {
        self.flights.iter().flatten().map(|flight| flight.op.len()).sum()
    }

    /// Whether it holds nothing and works.
    pub(super) fn is_clean(&self) -> bool {
        self.in_flight() == 0
            && self.queued.is_empty()
            && self.failed.is_empty()
            && self.broken.is_none()
    }

    /// Takes an operation, for which there must be room. The kernel gets it with the next
    /// [`Ring::submit`] or [`Ring::wait`].
    pub(super) fn push(&mut self, index: usize, mut op: Op) {
        let entry = match self.broken {
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None => entry(&mut op),
        };
        let (entry, stretches) = match entry {
            Ok(entry) => entry,
            Err(error) => {
                self.failed.push_back(over(index, Err(error), op));
                return;
            }
        };
        let slot = self.free.pop().expect("the caller saw room");
        // The operation lies in its slot before the kernel can know of it.
        self.flights[slot] = Some(Flight { index, op, _stretches: stretches });
        self.enqueue(entry, slot as u64);
    }

    /// Asks the kernel to end what it can; completions arrive as ever.
    pub(super) fn cancel(&mut self) {
        if self.queued.len() < DEPTH && self.broken.is_none() {
            self.enqueue(opcode::AsyncCancel2::new(CancelBuilder::any()).build(), CANCEL);
        }
    }

    fn enqueue(&mut self, entry: squeue::Entry, user_data: u64) {
        // SAFETY: a transfer's descriptor and memory belong to the flight in its slot, which stays
        // there until `reap` sees its completion or `give_up` knows that the kernel never saw it;
        // `Drop` leaks it otherwise. A cancellation refers to no memory.
        let pushed = unsafe { self.io.submission().push(&entry.user_data(user_data)) };
        pushed.expect("`queued` is shorter than the queue");
        self.queued.push_back(user_data);
    }

    /// The next finished operation, without a system call.
    pub(super) fn reap(&mut self) -> Option<Done> {
        if let Some(done) = self.failed.pop_front() {
            return Some(done);
        }
        loop {
            let completion = self.io.completion().next()?;
            if completion.user_data() == CANCEL {
                continue;
            }
            let slot = completion.user_data() as usize;
            let flight = self.flights.get_mut(slot).and_then(Option::take);
            let Flight { index, op, .. } = flight.expect("one completion for each operation");
            self.free.push(slot);
            return Some(over(index, moved(completion.result()), op));
        }
    }

    /// Gives the kernel what is queued, as far as it takes it.
    pub(super) fn submit(&mut self) {
        if !self.queued.is_empty() {
            self.enter(0, None);
        }
    }

    /// Also waits for a completion, at most for `limit`. May return early.
    pub(super) fn wait(&mut self, limit: Option<Duration>) {
        if self.in_flight() > 0 && self.failed.is_empty() && !self.enter(1, limit) {
            // Polls where waiting does not work.
            std::thread::sleep(limit.map_or(BREATH, |limit| limit.min(BREATH)));
        }
    }

    /// One `io_uring_enter`; false if it did not do its work.
    fn enter(&mut self, want: usize, limit: Option<Duration>) -> bool {
        if self.broken.is_some() {
            return false;
        }
        let entered = match limit {
            None => self.io.submit_and_wait(want),
            Some(limit) => {
                let limit = Timespec::from(limit);
                let args = SubmitArgs::new().timespec(&limit);
                self.io.submitter().submit_with_args(want, &args)
            }
        };
        let left = self.io.submission().len();
        self.queued.drain(..self.queued.len() - left);
        let Err(error) = entered else { return true };
        match Errno::from_io_error(&error) {
            // The limit has passed, or a signal came: the caller looks at the clock.
            Some(Errno::TIME | Errno::INTR) => true,
            // No memory for requests or completions: reap, then try again.
            Some(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => false,
            // A sandbox closed in, for one.
            code => {
                self.give_up(code.unwrap_or(Errno::IO));
                false
            }
        }
    }

    /// Never enters the ring again. What the kernel has not taken it will not take, and ends here;
    /// what it has taken goes on, and its completions are still read.
    fn give_up(&mut self, code: Errno) {
        self.broken = Some(code.raw_os_error());
        for slot in self.queued.drain(..).filter(|&user_data| user_data != CANCEL) {
            let slot = slot as usize;
            if let Some(Flight { index, op, .. }) = self.flights[slot].take() {
                self.free.push(slot);
                self.failed.push_back(over(index, Err(code.into()), op));
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for flight in self.flights.drain(..).flatten() {
            std::mem::forget(flight);
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

/// What the kernel is told of an operation.
fn entry(op: &mut Op) -> io::Result<(squeue::Entry, Vec<Stretch>)> {
    if let Some(error) = op.refusal() {
        return Err(error);
    }
    let Some(file) = op.file.as_any().downcast_ref::<OsFile>() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "another file system's file"));
    };
    let (fd, offset) = (Fd(file.raw()), op.offset);
    if !op.inserts.is_empty() {
        let stretches = op.stretches();
        let (list, count) = (stretches.as_ptr().cast(), stretches.len() as u32);
        let entry = match op.transfer {
            Transfer::Read => opcode::Readv::new(fd, list, count).offset(offset).build(),
            Transfer::Write => opcode::Writev::new(fd, list, count).offset(offset).build(),
        };
        return Ok((entry, stretches));
    }
    let (start, len) = (op.buf.ptr().wrapping_add(op.skip), op.buf.len() - op.skip);
    let len = len.min(LONGEST) as u32;
    let entry = match op.transfer {
        Transfer::Read => opcode::Read::new(fd, start, len).offset(offset).build(),
        Transfer::Write => opcode::Write::new(fd, start, len).offset(offset).build(),
    };
    Ok((entry, Vec::new()))
}

fn over(index: usize, result: io::Result<usize>, op: Op) -> Done {
    Done { index, result, buf: op.buf, inserts: op.inserts }
}

/// A completion's result as `pread` would have it.
fn moved(result: i32) -> io::Result<usize> {
    const CANCELED: i32 = -Errno::CANCELED.raw_os_error();
    match result {
        // The thread that submitted it has ended. Nobody asked for that: it is an interruption.
        CANCELED => Err(Errno::INTR.into()),
        n => usize::try_from(n).map_err(|_| io::Error::from_raw_os_error(-n)),
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
