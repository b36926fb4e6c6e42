//! The engine for every kernel: a few threads that call `pread` and `pwrite`.
//!
//! A queued operation belongs to the queue, a running one to its worker's stack: dropping a batch
//! frees the first at once and leaves the second, parked, to the worker.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::super::{Batch, Done, Next, Op};
use super::moment;
use super::parked::Parked;

/// Workers at most; started as they are needed.
const WORKERS: usize = 4;

/// The queue and its workers, which live until it is closed and empty.
#[derive(Debug)]
pub(super) struct Pool {
    base: Instant,
    parked: Arc<Parked>,
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    workers: usize,
    idle: usize,
    closed: bool,
}

#[derive(Debug)]
struct Job {
    batch: Arc<Shared>,
    index: usize,
    op: Op,
}

/// What a batch shares with the workers.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    finished: Condvar,
}

#[derive(Debug, Default)]
struct State {
    done: VecDeque<Done>,
    /// Bytes of buffers that workers hold.
    running: usize,
    dropped: bool,
}

#[derive(Debug)]
pub(super) struct ThreadBatch {
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    issued: usize,
    pending: usize,
}

impl Pool {
    pub(super) fn new(base: Instant, parked: &Arc<Parked>) -> Arc<Pool> {
        Arc::new(Pool {
            base,
            parked: Arc::clone(parked),
            queue: Mutex::default(),
            more: Condvar::new(),
        })
    }

    pub(super) fn start(self: &Arc<Pool>, ops: Vec<Op>) -> ThreadBatch {
        let mut batch =
            ThreadBatch { pool: Arc::clone(self), shared: Arc::default(), issued: 0, pending: 0 };
        batch.submit(ops);
        batch
    }

    /// Workers end when there is nothing left to do.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.more.notify_all();
    }

    /// Queues jobs and sees to it that somebody works on them.
    fn enqueue(self: &Arc<Pool>, jobs: impl Iterator<Item = Job>) -> io::Result<()> {
        let mut queue = self.queue.lock();
        queue.jobs.extend(jobs);
        let wanted = queue.jobs.len().min(WORKERS);
        for _ in 0..wanted.min(queue.idle) {
            self.more.notify_one();
        }
        while queue.workers < WORKERS && queue.idle < queue.jobs.len() {
            if let Err(error) = self.spawn(queue.workers) {
                // With any worker left the jobs get done, only later.
                return if queue.workers > 0 { Ok(()) } else { Err(error) };
            }
            queue.workers += 1;
            queue.idle += 1;
        }
        Ok(())
    }

    fn spawn(self: &Arc<Pool>, number: usize) -> io::Result<()> {
        let pool = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("kvist-io-{number}"));
        thread.spawn(move || pool.work()).map(drop)
    }

    /// A worker's life. It counts as idle from its start, so that no job asks for a second one.
    fn work(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                queue.idle -= 1;
                job.begin();
                drop(queue);
                job.run(&self.parked);
                queue = self.queue.lock();
                queue.idle += 1;
            } else if queue.closed {
                queue.idle -= 1;
                queue.workers -= 1;
                return;
            } else {
                self.more.wait(&mut queue);
            }
        }
    }

    /// Takes back what no worker has begun.
    fn withdraw(&self, batch: &Arc<Shared>) -> Vec<Job> {
        let mut queue = self.queue.lock();
        let (gone, kept) =
            queue.jobs.drain(..).partition::<Vec<Job>, _>(|job| Arc::ptr_eq(&job.batch, batch));
        queue.jobs.extend(kept);
        gone
    }
}

impl Job {
    /// A worker has it. To be called under the queue's lock: whoever drops the batch finds it either there or here.
    fn begin(&self) {
        self.batch.state.lock().running += self.op.len();
    }

    fn run(self, parked: &Parked) {
        let Job { batch, index, mut op } = self;
        let bytes = op.len();
        if batch.state.lock().dropped {
            drop(op);
            parked.sub(bytes);
            return;
        }
        let result = match op.refusal() {
            Some(error) => Err(error),
            None => op.file.clone().transfer(&mut op),
        };
        let Op { file, buf, inserts, .. } = op;
        // The file may close before anybody learns that the operation is done.
        drop(file);
        let mut state = batch.state.lock();
        state.running -= bytes;
        if state.dropped {
            drop(state);
            drop((buf, inserts));
            parked.sub(bytes);
        } else {
            state.done.push_back(Done { index, result, buf, inserts });
            batch.finished.notify_one();
        }
    }
}

impl ThreadBatch {
    fn submit(&mut self, ops: Vec<Op>) {
        let (first, count) = (self.issued, ops.len());
        self.issued += count;
        self.pending += count;
        let jobs = ops.into_iter().enumerate().map(|(i, op)| Job {
            batch: Arc::clone(&self.shared),
            index: first + i,
            op,
        });
        let Err(error) = self.pool.enqueue(jobs) else { return };
        // No thread at all: the operations fail as the thread did (`EAGAIN`).
        let kind = error.raw_os_error();
        // The queue's lock is never asked for with a batch's in hand.
        let withdrawn = self.pool.withdraw(&self.shared);
        let mut state = self.shared.state.lock();
        state.done.extend(withdrawn.into_iter().map(|job| Done {
            index: job.index,
            result: Err(
                kind.map_or(io::ErrorKind::WouldBlock.into(), io::Error::from_raw_os_error),
            ),
            buf: job.op.buf,
            inserts: job.op.inserts,
        }));
    }
}

impl Batch for ThreadBatch {
    fn push(&mut self, op: Op) -> usize {
        self.submit(vec![op]);
        self.issued - 1
    }

    fn next(&mut self, deadline: Option<Duration>) -> Next {
        if self.pending == 0 {
            return Next::Empty;
        }
        let end = moment(self.pool.base, deadline);
        let mut state = self.shared.state.lock();
        loop {
            if let Some(done) = state.done.pop_front() {
                self.pending -= 1;
                return Next::Done(done);
            }
            match end {
                None => self.shared.finished.wait(&mut state),
                Some(end) if end <= Instant::now() => return Next::TimedOut,
                Some(end) => drop(self.shared.finished.wait_until(&mut state, end)),
            }
        }
    }

    fn pending(&self) -> usize {
        self.pending
    }
}

impl Drop for ThreadBatch {
    fn drop(&mut self) {
        if self.pending == 0 {
            return;
        }
        drop(self.pool.withdraw(&self.shared));
        let mut state = self.shared.state.lock();
        state.dropped = true;
        self.pool.parked.add(state.running);
        let done = std::mem::take(&mut state.done);
        drop(state);
        // Owners of memory may run code of their own when they go.
        drop(done);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::stuck::{Gate, eventually, read};
    use super::super::{Engine, OsVfs};
    use super::*;
    use crate::vfs::{File, Vfs};

    #[test]
    fn a_wait_ends_at_its_deadline_and_the_read_goes_on() {
        let vfs = OsVfs::new(Engine::Threads).unwrap();
        let gate = Arc::new(Gate::default());
        let file: Arc<dyn File> = gate.clone();
        let gone = Arc::default();
        let mut batch = vfs.start(vec![read(&file, 10, &gone)]);
        for _ in 0..3 {
            let deadline = Some(vfs.now() + Duration::from_millis(5));
            assert!(matches!(batch.next(deadline), Next::TimedOut));
            assert!(Some(vfs.now()) >= deadline);
            assert!(matches!(batch.next(Some(Duration::ZERO)), Next::TimedOut));
        }
        gate.open();
        let Next::Done(done) = batch.next(None) else { panic!() };
        assert_eq!((done.result.unwrap(), &done.buf[..]), (10, &[7; 10][..]));
        assert!(matches!(batch.next(None), Next::Empty));
    }

    #[test]
    fn a_dropped_batch_leaves_workers_what_they_hold() {
        let vfs = OsVfs::new(Engine::Threads).unwrap();
        let gate = Arc::new(Gate::default());
        let file: Arc<dyn File> = gate.clone();
        let gone = Arc::new(AtomicUsize::new(0));
        let batch = vfs.start((0..50).map(|_| read(&file, 10, &gone)).collect());
        let mut other = vfs.start(vec![read(&file, 10, &Arc::default())]);
        eventually("four workers wait", || gate.waiting() == WORKERS);
        drop(batch);
        assert_eq!(gone.load(Ordering::SeqCst), 50 - WORKERS, "queued ones are free at once");
        assert_eq!(vfs.parked_bytes(), 10 * WORKERS as u64);
        gate.open();
        eventually("the rest", || vfs.parked_bytes() == 0);
        assert_eq!(gone.load(Ordering::SeqCst), 50);
        assert!(matches!(other.next(None), Next::Done(_)), "others' jobs stay queued");
    }
}
