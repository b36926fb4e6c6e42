//! What happens behind the callers' backs: blocks are written to disk, blocks are fetched ahead.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Shared;
use super::load::Wave;
use super::space::{Inner, Prefix, Space};
use super::ticket::Promise;
use crate::arena::Cell;
use crate::codec::Canonical;
use crate::disk::{Disk, NewRecord, Refused};
use crate::format::BlockKey;

/// Bytes that one sync covers, at most.
const COMMIT: usize = 64 << 20;

/// A block to write.
#[derive(Debug)]
pub(super) struct Write {
    space: Arc<Inner>,
    key: BlockKey,
    tokens: Option<Box<[u32]>>,
    cell: Arc<Cell>,
}

/// Blocks to fetch.
struct Fetch {
    space: Space,
    prefix: Prefix,
    promise: Promise<usize>,
}

#[derive(Default)]
struct State {
    writes: VecDeque<Write>,
    bytes: usize,
    /// Keys that are being written, with their tenants. Several threads may write.
    writing: HashMap<BlockKey, u32>,
    /// Those of them that nobody wants any more.
    unwanted: HashSet<BlockKey>,
    fetches: VecDeque<Fetch>,
    closed: bool,
}

/// Work that waits, bounded in bytes.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    bytes_max: usize,
    fetches_max: usize,
    /// How long a put waits for room.
    patience: Duration,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn new(bytes_max: usize, patience: Duration) -> Queue {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Queue { state, changed, bytes_max, fetches_max: 64, patience }
    }

    /// Bytes of blocks that wait to be written.
    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// Waits until there may be room.
    fn wait(&self, bytes: usize) {
        let full = |s: &mut State| !s.closed && s.bytes > 0 && s.bytes + bytes > self.bytes_max;
        let mut state = self.state.lock();
        if full(&mut state) && !self.patience.is_zero() {
            self.changed.wait_while_for(&mut state, full, self.patience);
        }
    }

    fn push(&self, write: Write) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let bytes = write.cell.bytes().len();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.bytes > 0 && state.bytes + bytes > self.bytes_max {
            return Err(Refused::Throttled);
        }
        state.bytes += bytes;
        state.writes.push_back(write);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// The next blocks to write, of at most [`COMMIT`] bytes.
    fn pop(&self, state: &mut State) -> Vec<Write> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(write) = state.writes.front() {
            let len = write.cell.bytes().len();
            if !taken.is_empty() && bytes + len > COMMIT {
                break;
            }
            bytes += len;
            taken.extend(state.writes.pop_front());
        }
        state.writing.extend(taken.iter().map(|w| (w.key, w.space.tenant)));
        taken
    }

    /// Drops waiting writes, and waits for those that are under way: afterwards none of these keys
    /// comes to disk any more by an earlier put. A writer that is stuck for longer than `patience`
    /// takes them back when it is done.
    fn forget(&self, unwanted: impl Fn(&BlockKey, u32) -> bool, patience: Duration) {
        let mut state = self.state.lock();
        let mut kept = VecDeque::with_capacity(state.writes.len());
        for write in std::mem::take(&mut state.writes) {
            if unwanted(&write.key, write.space.tenant) {
                state.bytes -= write.cell.bytes().len();
            } else {
                kept.push_back(write);
            }
        }
        state.writes = kept;
        let of = |(key, tenant): (&BlockKey, &u32)| unwanted(key, *tenant).then_some(*key);
        let waiting: Vec<BlockKey> = state.writing.iter().filter_map(of).collect();
        let under_way = |s: &mut State| waiting.iter().any(|key| s.writing.contains_key(key));
        self.changed.wait_while_for(&mut state, under_way, patience);
        let late: Vec<BlockKey> =
            waiting.into_iter().filter(|key| state.writing.contains_key(key)).collect();
        state.unwanted.extend(late);
        drop(state);
        self.changed.notify_all();
    }

    /// Keys that will come to disk.
    pub(super) fn pending(&self) -> HashSet<BlockKey> {
        let state = self.state.lock();
        let wanted = state.writing.keys().filter(|key| !state.unwanted.contains(*key));
        wanted.copied().chain(state.writes.iter().map(|w| w.key)).collect()
    }

    /// Waits until everything was written or refused.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let busy = |s: &mut State| !s.writes.is_empty() || !s.writing.is_empty();
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, busy, patience);
        !busy(&mut state)
    }

    /// Takes nothing more. What was to be fetched is given up; it also holds the store itself.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let given_up = std::mem::take(&mut state.fetches);
        drop(state);
        drop(given_up);
        self.changed.notify_all();
    }
}

/// Blocks that are being written; over when dropped, whatever came of it.
struct UnderWay<'a> {
    queue: &'a Queue,
    disk: &'a Disk,
    writes: Vec<Write>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.bytes -= self.writes.iter().map(|w| w.cell.bytes().len()).sum::<usize>();
        let mut unwanted = Vec::new();
        for Write { key, .. } in &self.writes {
            state.writing.remove(key);
            unwanted.extend(state.unwanted.take(key));
        }
        drop(state);
        for key in unwanted {
            self.disk.remove(&key);
        }
        self.writes.clear();
        self.queue.changed.notify_all();
    }
}

impl Shared {
    /// Waits for the writer, as long as the store is set to.
    pub(super) fn wait_for_writer(&self, bytes: usize) {
        if self.disk.is_some() {
            self.queue.wait(bytes);
        }
    }

    /// Hands a block to the writer. It stays in memory whatever comes of that.
    pub(super) fn behind(
        &self,
        space: &Arc<Inner>,
        key: BlockKey,
        tokens: Option<&[u32]>,
        cell: Arc<Cell>,
    ) -> Result<(), Refused> {
        if self.disk.is_none() {
            return Ok(());
        }
        // What is sealed says nothing in the clear.
        let tokens = tokens.filter(|_| space.seal.is_none()).map(Box::from);
        let result = self.queue.push(Write { space: space.clone(), key, tokens, cell });
        if result == Err(Refused::Throttled) {
            self.counters.throttled();
            return Ok(());
        }
        result
    }

    pub(super) fn prefetch(&self, space: &Space, prefix: Prefix, promise: Promise<usize>) {
        let mut state = self.queue.state.lock();
        if state.closed || state.fetches.len() >= self.queue.fetches_max {
            return;
        }
        state.fetches.push_back(Fetch { space: space.clone(), prefix, promise });
        drop(state);
        self.queue.changed.notify_all();
    }

    /// Writes what waits, once. `false` if nothing did.
    pub(super) fn write_some(&self) -> bool {
        let Some(disk) = &self.disk else { return false };
        let writes = self.queue.pop(&mut self.queue.state.lock());
        if writes.is_empty() {
            return false;
        }
        let under_way = UnderWay { queue: &self.queue, disk, writes };
        commit(self, disk, &under_way.writes);
        true
    }

    /// [`Queue::forget`], for as long as an operation on disk may take.
    pub(super) fn forget(&self, unwanted: impl Fn(&BlockKey, u32) -> bool) {
        let patience = self.disk.as_ref().map(|disk| disk.patience()).unwrap_or_default();
        self.queue.forget(unwanted, patience);
    }

    /// Fetches what waits, once. `false` if nothing did.
    pub(super) fn fetch_some(&self) -> bool {
        let Some(Fetch { space, prefix, promise }) = self.queue.state.lock().fetches.pop_front()
        else {
            return false;
        };
        let mut there = 0;
        let mut wave = Wave::new(&space, &prefix, 0..space.layout().pages());
        for block in 0..prefix.len() {
            if promise.is_cancelled() || wave.next(block, prefix.len()).is_err() {
                break;
            }
            there += 1;
        }
        drop(wave);
        promise.keep(there);
        true
    }

    /// The writer's thread: writes until the store is closed and nothing waits any more.
    pub(super) fn write_all(&self) {
        loop {
            while self.write_some() {}
            let mut state = self.queue.state.lock();
            if !state.writes.is_empty() {
                continue;
            }
            if state.closed {
                return;
            }
            self.queue.changed.wait(&mut state);
        }
    }

    /// The fetcher's thread: fetches until the store is closed.
    pub(super) fn fetch_all(&self) {
        loop {
            let mut state = self.queue.state.lock();
            if state.closed {
                return;
            }
            if state.fetches.is_empty() {
                self.queue.changed.wait(&mut state);
                continue;
            }
            drop(state);
            self.fetch_some();
        }
    }
}

fn commit(shared: &Shared, disk: &Disk, writes: &[Write]) {
    let sources: Vec<Canonical> =
        writes.iter().map(|w| Canonical::new(w.space.plan.layout(), w.cell.bytes())).collect();
    let mut records = Vec::with_capacity(writes.len());
    for (w, pages) in writes.iter().zip(&sources) {
        records.push(NewRecord {
            key: w.key,
            model: w.space.parts.model,
            tenant: w.space.tag,
            seal: w.space.seal.as_ref(),
            tokens: w.tokens.as_deref(),
            num_tokens: w.space.plan.layout().block_tokens,
            plan: &w.space.plan,
            pages,
            live: None,
        });
    }
    let started = Instant::now();
    let results = disk.commit(&records);
    shared.counters.committed(&results, started.elapsed());
}
