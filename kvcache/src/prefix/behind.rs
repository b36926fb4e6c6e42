//! What happens behind the callers' backs: blocks are written to disk, blocks are fetched ahead.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::commit::commit;
use super::host::Body;
use super::space::Inner;
use crate::cache;
use crate::disk::{Disk, Refused};
use crate::format::BlockKey;
use crate::sync::{Condvar, Mutex};

/// Bytes that one sync covers, at most.
const COMMIT: usize = 64 << 20;
/// The writer waits for so many bytes, but not for long: a sync costs as much as writing them.
const COMPANY: usize = 4 << 20;
const LINGER: Duration = Duration::from_millis(2);

/// A block to write.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) space: Arc<Inner>,
    pub(super) key: BlockKey,
    pub(super) tokens: Option<Box<[u32]>>,
    pub(super) body: Body,
    /// xxh3-64 of the block's tiles, if they are known.
    pub(super) tiles: Option<Box<[u64]>>,
}

impl Write {
    pub(super) fn bytes(&self) -> usize {
        self.space.plan.layout().bytes()
    }

    /// Number of the cache that lends it.
    fn lender(&self) -> Option<usize> {
        self.body.lent().map(|lent| number_of(lent.cache()))
    }
}

/// Tells caches apart that are there.
fn number_of(cache: &Arc<cache::Shared>) -> usize {
    Arc::as_ptr(cache).addr()
}

/// A block that is being written.
struct Writing {
    tenant: u32,
    lender: Option<usize>,
}

/// Blocks to fetch, for whoever wants them; given up when dropped.
type Fetch = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    writes: VecDeque<Write>,
    /// Bytes of what waits or is being written, and is limited.
    bytes: usize,
    /// The same of what caches lend: they pay, and take it back when they need it.
    lent_bytes: usize,
    /// What is being written. Several threads may write.
    writing: HashMap<BlockKey, Writing>,
    /// Those of them that nobody wants any more.
    unwanted: HashSet<BlockKey>,
    fetches: VecDeque<Fetch>,
    /// What is to be fetched later, and when.
    later: Vec<(Instant, Fetch)>,
    /// Callers that wait until everything is written.
    flushing: usize,
    /// Puts that wait for room.
    crowded: usize,
    closed: bool,
}

impl State {
    /// Whether it is worth waiting for more to write.
    fn is_lonely(&self) -> bool {
        let alone = !self.writes.is_empty() && self.bytes + self.lent_bytes < COMPANY;
        alone && self.flushing == 0 && self.crowded == 0 && !self.closed
    }

    fn bytes_of(&mut self, write: &Write) -> &mut usize {
        match write.body {
            Body::Own(_) => &mut self.bytes,
            Body::Lent(_) => &mut self.lent_bytes,
        }
    }

    /// Lets what is due be fetched; when the next will be.
    fn wake(&mut self, now: Instant) -> Option<Instant> {
        let due = self.later.extract_if(.., |(at, _)| *at <= now);
        self.fetches.extend(due.map(|(_, fetch)| fetch));
        self.later.iter().map(|(at, _)| *at).min()
    }

    /// Takes out the waiting writes that nobody wants any more, to be dropped without the lock.
    fn drop_waiting(&mut self, unwanted: impl FnMut(&Write) -> bool) -> VecDeque<Write> {
        let waiting = std::mem::take(&mut self.writes).into_iter();
        let (dropped, kept): (VecDeque<Write>, _) = waiting.partition(unwanted);
        dropped.iter().for_each(|w| *self.bytes_of(w) -= w.bytes());
        self.writes = kept;
        dropped
    }
}

/// Work that waits, bounded in bytes.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    bytes_max: usize,
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
        Queue { state, changed, bytes_max, patience }
    }

    /// Bytes of blocks that wait to be written.
    pub(super) fn bytes(&self) -> usize {
        let state = self.state.lock();
        state.bytes + state.lent_bytes
    }

    /// Waits until there may be room.
    fn wait(&self, bytes: usize) {
        let full = |s: &mut State| !s.closed && s.bytes > 0 && s.bytes + bytes > self.bytes_max;
        let mut state = self.state.lock();
        if full(&mut state) && !self.patience.is_zero() {
            // The writer waits for no more company then.
            state.crowded += 1;
            self.changed.notify_all();
            self.changed.wait_while_for(&mut state, full, self.patience);
            state.crowded -= 1;
        }
    }

    fn push(&self, write: Write) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let bytes = write.bytes();
        if state.closed {
            return Err(Refused::Closed);
        }
        let limited = matches!(write.body, Body::Own(_));
        if limited && state.bytes > 0 && state.bytes + bytes > self.bytes_max {
            return Err(Refused::Throttled);
        }
        let lonely = state.is_lonely();
        *state.bytes_of(&write) += bytes;
        state.writes.push_back(write);
        // Waking the writer for each block would cost more than putting it.
        if state.writes.len() == 1 || (lonely && !state.is_lonely()) {
            drop(state);
            self.changed.notify_all();
        }
        Ok(())
    }

    /// The next blocks to write, of at most so many bytes, or one.
    fn pop(&self, state: &mut State, most: usize) -> Vec<Write> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(write) = state.writes.front() {
            let len = write.bytes();
            if !taken.is_empty() && bytes + len > most {
                break;
            }
            bytes += len;
            taken.extend(state.writes.pop_front());
        }
        let writing = |w: &Write| Writing { tenant: w.space.tenant, lender: w.lender() };
        state.writing.extend(taken.iter().map(|w| (w.key, writing(w))));
        taken
    }

    /// Drops waiting writes, and waits for those that are under way: afterwards none of these keys
    /// comes to disk any more by an earlier put. A writer that is stuck for longer than `patience`
    /// takes them back when it is done.
    fn forget(&self, unwanted: impl Fn(&BlockKey, u32) -> bool, patience: Duration) {
        let mut state = self.state.lock();
        let dropped = state.drop_waiting(|w| unwanted(&w.key, w.space.tenant));
        let of = |(key, w): (&BlockKey, &Writing)| unwanted(key, w.tenant).then_some(*key);
        let waiting: Vec<BlockKey> = state.writing.iter().filter_map(of).collect();
        let under_way = |s: &mut State| waiting.iter().any(|key| s.writing.contains_key(key));
        self.changed.wait_while_for(&mut state, under_way, patience);
        let late: Vec<BlockKey> =
            waiting.into_iter().filter(|key| state.writing.contains_key(key)).collect();
        state.unwanted.extend(late);
        drop(state);
        drop(dropped);
        self.changed.notify_all();
    }

    /// Keys of the waiting writes of what a cache lends.
    pub(super) fn waiting(&self, cache: &Arc<cache::Shared>) -> HashSet<BlockKey> {
        let lender = Some(number_of(cache));
        let state = self.state.lock();
        state.writes.iter().filter(|w| w.lender() == lender).map(|w| w.key).collect()
    }

    /// Drops the waiting writes of these blocks; how many there were.
    pub(super) fn give_up(&self, keys: &[BlockKey]) -> usize {
        let keys: HashSet<&BlockKey> = keys.iter().collect();
        let dropped = self.state.lock().drop_waiting(|w| keys.contains(&w.key));
        self.changed.notify_all();
        dropped.len()
    }

    /// Waits for a write of what a cache lends; `false` if none is under way, or it takes too long.
    pub(super) fn await_write(&self, cache: &Arc<cache::Shared>, patience: Duration) -> bool {
        let lender = Some(number_of(cache));
        let mut state = self.state.lock();
        let of = |s: &State| s.writing.values().filter(|w| w.lender == lender).count();
        let before = of(&state);
        self.changed.wait_while_for(&mut state, |s| before > 0 && of(s) == before, patience);
        of(&state) < before
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
        state.flushing += 1;
        self.changed.notify_all();
        self.changed.wait_while_for(&mut state, busy, patience);
        state.flushing -= 1;
        !busy(&mut state)
    }

    /// Takes nothing more. What was to be fetched is given up; it also holds the store itself.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let given_up = (std::mem::take(&mut state.fetches), std::mem::take(&mut state.later));
        drop(state);
        drop(given_up);
        self.changed.notify_all();
    }
}

/// Blocks that are being written; over when dropped, whatever came of it.
pub(super) struct UnderWay<'a> {
    queue: &'a Queue,
    disk: &'a Disk,
    writes: Vec<Write>,
    bytes: usize,
}

impl<'a> UnderWay<'a> {
    fn new(queue: &'a Queue, disk: &'a Disk) -> UnderWay<'a> {
        UnderWay { queue, disk, writes: Vec::new(), bytes: 0 }
    }

    pub(super) fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// Whether these are as many as go together.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= COMMIT
    }

    /// Takes more from the queue; `false` if nothing waits, or these are enough.
    pub(super) fn pull(&mut self) -> bool {
        if self.is_full() {
            return false;
        }
        let taken = self.queue.pop(&mut self.queue.state.lock(), COMMIT - self.bytes);
        self.bytes += taken.iter().map(Write::bytes).sum::<usize>();
        let any = !taken.is_empty();
        self.writes.extend(taken);
        any
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let keys: Vec<BlockKey> = self.writes.iter().map(|w| w.key).collect();
        let mut state = self.queue.state.lock();
        self.writes.iter().for_each(|w| *state.bytes_of(w) -= w.bytes());
        drop(state);
        // Let go of first: who waits for the writes may want the memory.
        self.writes.clear();
        let mut state = self.queue.state.lock();
        let mut unwanted = Vec::new();
        for key in &keys {
            state.writing.remove(key);
            unwanted.extend(state.unwanted.take(key));
        }
        drop(state);
        for key in &unwanted {
            self.disk.remove(key);
        }
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

    /// Hands a block to the writer, if it is let in to the disk; `wanted` says that it is known to be used again. It
    /// stays in memory whatever comes of that.
    pub(super) fn behind(
        &self,
        space: &Arc<Inner>,
        key: BlockKey,
        tokens: Option<&[u32]>,
        (body, tiles): (Body, Option<Box<[u64]>>),
        wanted: bool,
    ) -> Result<(), Refused> {
        if self.disk.is_none() || !self.admits(&key, space.plan.layout().bytes(), wanted) {
            return Ok(());
        }
        // What is sealed says nothing in the clear.
        let tokens = tokens.filter(|_| space.seal.is_none()).map(Box::from);
        let result = self.queue.push(Write { space: space.clone(), key, tokens, body, tiles });
        if result == Err(Refused::Throttled) {
            self.counters.throttled();
            return Ok(());
        }
        result
    }

    /// Hands work to the fetcher, which does it in the order in which it came. Given up if the store
    /// is closed, or if so many wait already.
    pub(super) fn fetch(&self, most: usize, fetch: Fetch) {
        let mut state = self.queue.state.lock();
        if state.closed || state.fetches.len() >= most {
            drop(state);
            return;
        }
        state.fetches.push_back(fetch);
        drop(state);
        self.queue.changed.notify_all();
    }

    /// [`Shared::fetch`], after a while.
    pub(super) fn fetch_later(&self, at: Instant, most: usize, fetch: Fetch) {
        let mut state = self.queue.state.lock();
        if state.closed || state.later.len() >= most {
            drop(state);
            return;
        }
        state.later.push((at, fetch));
        drop(state);
        self.queue.changed.notify_all();
    }

    /// Writes what waits, once. `false` if nothing did.
    pub(super) fn write_some(&self) -> bool {
        let Some(disk) = &self.disk else { return false };
        let mut under_way = UnderWay::new(&self.queue, disk);
        if !under_way.pull() {
            return false;
        }
        commit(self, disk, &mut under_way);
        true
    }

    /// [`Queue::forget`], for as long as an operation on disk may take.
    pub(super) fn forget(&self, unwanted: impl Fn(&BlockKey, u32) -> bool) {
        let patience = self.disk.as_ref().map(|disk| disk.patience()).unwrap_or_default();
        self.queue.forget(unwanted, patience);
    }

    /// Fetches what waits, once. `false` if nothing did.
    pub(super) fn fetch_some(&self) -> bool {
        let mut state = self.queue.state.lock();
        let _ = state.wake(Instant::now());
        let fetch = state.fetches.pop_front();
        drop(state);
        fetch.map(|fetch| fetch()).is_some()
    }

    /// The writer's thread: writes until the store is closed and nothing waits any more.
    pub(super) fn write_all(&self) {
        loop {
            let mut state = self.queue.state.lock();
            if state.writes.is_empty() {
                if state.closed {
                    return;
                }
                self.queue.changed.wait(&mut state);
            }
            self.queue.changed.wait_while_for(&mut state, |s| s.is_lonely(), LINGER);
            drop(state);
            self.write_some();
        }
    }

    /// The fetcher's thread: fetches until the store is closed.
    pub(super) fn fetch_all(&self) {
        loop {
            let mut state = self.queue.state.lock();
            if state.closed {
                return;
            }
            let now = Instant::now();
            let next = state.wake(now);
            if state.fetches.is_empty() {
                let idle = |s: &mut State| {
                    let sooner = s.later.iter().any(|(at, _)| Some(*at) < next);
                    !s.closed && s.fetches.is_empty() && !sooner
                };
                match next {
                    None => self.queue.changed.wait(&mut state),
                    Some(at) => {
                        self.queue.changed.wait_while_for(&mut state, idle, at - now);
                    }
                }
                continue;
            }
            drop(state);
            self.fetch_some();
        }
    }
}
