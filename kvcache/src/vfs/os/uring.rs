//! The `io_uring` engine: a batch takes a ring from a pool of idle ones, and the thread that waits
//! is the thread that submits and reaps. Only parked operations need a thread.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::{Access, Batch, Buf, Done, Next, Op};
use super::file::OsFile;
use super::moment;
use super::parked::Parked;
use super::ring::{DEPTH, Ring};

/// Rings kept for later batches: a new one costs some 50 us.
const IDLE_RINGS: usize = 16;

/// A waiting operation is submitted once so many places are free: fewer system calls, and a queue
/// that is never less than three quarters full.
const REFILL: usize = DEPTH / 4;

/// How long the reaper waits for one ring before it looks at the others.
const TURN: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Uring {
    base: Instant,
    parked: Arc<Parked>,
    idle: Mutex<Vec<Ring>>,
    lot: Mutex<Lot>,
}

/// Rings whose batch was dropped, on their way to the reaper.
#[derive(Debug, Default)]
struct Lot {
    rings: Vec<Ring>,
    /// Whether a reaper runs.
    watched: bool,
}

#[derive(Debug)]
pub(super) struct UringBatch {
    home: Arc<Uring>,
    /// Held while operations are in flight.
    ring: Option<Ring>,
    /// Not yet in the ring.
    backlog: VecDeque<(usize, Op)>,
    /// Ended without a ring.
    failed: VecDeque<Done>,
    issued: usize,
    pending: usize,
}

impl Uring {
    /// # Errors
    /// If the kernel, or a sandbox, has no rings for us, or a trial read fails.
    pub(super) fn new(base: Instant, parked: &Arc<Parked>) -> io::Result<Arc<Uring>> {
        let uring = Arc::new(Uring {
            base,
            parked: Arc::clone(parked),
            idle: Mutex::default(),
            lot: Mutex::default(),
        });
        uring.probe()?;
        Ok(uring)
    }

    /// Reads a few bytes from memory through a ring, which then waits for the first batch.
    fn probe(self: &Arc<Uring>) -> io::Result<()> {
        const TEXT: &[u8] = b"kvist";
        self.give_back(Ring::new()?);
        let fd = rustix::fs::memfd_create("kvist", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::io::pwrite(&fd, TEXT, 0)?;
        let file = Arc::new(OsFile::new(fd, Access::Buffered)?);
        let buf = Buf::alloc(TEXT.len()).ok_or(io::ErrorKind::OutOfMemory)?;
        let op = Op::read(file, 0, buf);
        let deadline = self.base.elapsed() + Duration::from_secs(1);
        let Next::Done(done) = Uring::start(self, vec![op]).next(Some(deadline)) else {
            return Err(io::ErrorKind::TimedOut.into());
        };
        if done.result? == TEXT.len() && *done.buf == *TEXT {
            return Ok(());
        }
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn start(self: &Arc<Uring>, ops: Vec<Op>) -> UringBatch {
        let count = ops.len();
        let mut batch = UringBatch {
            home: Arc::clone(self),
            ring: None,
            backlog: ops.into_iter().enumerate().collect(),
            failed: VecDeque::new(),
            issued: count,
            pending: count,
        };
        batch.refill();
        self.watch();
        batch
    }

    fn take(&self) -> io::Result<Ring> {
        let idle = self.idle.lock().pop();
        idle.map_or_else(Ring::new, Ok)
    }

    fn give_back(&self, ring: Ring) {
        if ring.is_clean() {
            let mut idle = self.idle.lock();
            if idle.len() < IDLE_RINGS {
                idle.push(ring);
            }
        }
    }

    /// Keeps a ring whose batch is gone until the kernel has let go of everything in it.
    fn park(self: &Arc<Uring>, mut ring: Ring) {
        while ring.reap().is_some() {}
        if ring.in_flight() == 0 {
            return self.give_back(ring);
        }
        self.parked.add(ring.bytes());
        ring.cancel();
        ring.submit();
        self.lot.lock().rings.push(ring);
        self.watch();
    }

    /// Starts the reaper if it is needed. Should that fail, the next batch tries again.
    pub(super) fn watch(self: &Arc<Uring>) {
        let mut lot = self.lot.lock();
        if lot.watched || lot.rings.is_empty() {
            return;
        }
        let uring = Arc::clone(self);
        let thread = std::thread::Builder::new().name("kvist-io-reap".to_owned());
        lot.watched = thread.spawn(move || uring.watch_over_parked()).is_ok();
    }

    /// The reaper's life, which ends when nothing is parked. A kernel that never lets go keeps it
    /// and the memory for ever, at a few wake-ups a second.
    fn watch_over_parked(&self) {
        let mut rings = Vec::new();
        loop {
            {
                let mut lot = self.lot.lock();
                rings.append(&mut lot.rings);
                lot.watched = !rings.is_empty();
                if rings.is_empty() {
                    return;
                }
            }
            for ring in &mut rings {
                ring.wait(Some(TURN));
                while let Some(done) = ring.reap() {
                    let bytes = done.buf.len();
                    drop(done);
                    self.parked.sub(bytes);
                }
            }
            for ring in rings.extract_if(.., |ring| ring.in_flight() == 0) {
                self.give_back(ring);
            }
        }
    }
}

impl UringBatch {
    /// Moves waiting operations into the ring and gives them to the kernel.
    fn refill(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        let ring = match &mut self.ring {
            Some(ring) => ring,
            None => match self.home.take() {
                Ok(ring) => self.ring.insert(ring),
                Err(error) => return self.fail(&error),
            },
        };
        while ring.room() > 0
            && let Some((index, op)) = self.backlog.pop_front()
        {
            ring.push(index, op);
        }
        ring.submit();
    }

    /// Without a ring (no descriptors, no memory) operations end as it did.
    fn fail(&mut self, error: &io::Error) {
        let again = || match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => error.kind().into(),
        };
        let backlog = self.backlog.drain(..);
        self.failed.extend(backlog.map(|(index, op)| Done {
            index,
            result: Err(again()),
            buf: op.buf,
            inserts: op.inserts,
        }));
    }

    /// A finished operation, without waiting.
    fn reap(&mut self) -> Option<Next> {
        let done = match self.failed.pop_front() {
            Some(done) => done,
            None => self.ring.as_mut()?.reap()?,
        };
        self.pending -= 1;
        if !self.backlog.is_empty() && self.ring.as_ref().is_none_or(|r| r.room() >= REFILL) {
            self.refill();
        }
        if let Some(ring) = self.ring.take_if(|ring| ring.is_clean()) {
            self.home.give_back(ring);
        }
        Some(Next::Done(done))
    }

    /// Time until `end`; zero if it is past, `None` if there is no end.
    fn left(end: Option<Instant>) -> Option<Duration> {
        end.map(|end| end.saturating_duration_since(Instant::now()))
    }
}

impl Batch for UringBatch {
    fn push(&mut self, op: Op) -> usize {
        self.backlog.push_back((self.issued, op));
        self.issued += 1;
        self.pending += 1;
        self.issued - 1
    }

    fn next(&mut self, deadline: Option<Duration>) -> Next {
        let end = moment(self.home.base, deadline);
        loop {
            if let Some(next) = self.reap() {
                return next;
            }
            if self.pending == 0 {
                return Next::Empty;
            }
            self.refill();
            let Some(ring) = &mut self.ring else { continue };
            match UringBatch::left(end) {
                Some(Duration::ZERO) => {
                    ring.submit();
                    return self.reap().unwrap_or(Next::TimedOut);
                }
                limit => ring.wait(limit),
            }
        }
    }

    fn pending(&self) -> usize {
        self.pending
    }
}

impl Drop for UringBatch {
    fn drop(&mut self) {
        // What the kernel never saw is free at once.
        self.backlog.clear();
        if let Some(ring) = self.ring.take() {
            self.home.park(ring);
        }
    }
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
