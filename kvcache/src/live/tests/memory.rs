//! A lower tier in memory, with a clock of its own, delays, failures and completion out of order.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::MissReason;
use crate::live::below::{Below, PageIn, PageNext, PageReads, Stored, StripeOut};
use crate::vfs::Buf;

/// How it behaves. Shares are of 1000.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) read_fails: u64,
    /// The same for what is smaller than any page of consecutive tokens.
    pub(super) small_fails: u64,
    pub(super) write_fails: u64,
    /// Reads that take longer than any deadline.
    pub(super) read_hangs: u64,
    /// Milliseconds that a read takes at most.
    pub(super) delay: u64,
    /// Calls to read that are quick in any case.
    pub(super) quick: u64,
}

/// Bytes of a page of 64 tokens.
const SMALL: usize = 4 * super::common::DIM * 64;

#[derive(Debug)]
pub(super) struct Memory {
    state: Mutex<State>,
    /// Stripes that are stored.
    pub(super) live: Arc<AtomicUsize>,
    pub(super) reads: AtomicUsize,
    pub(super) writes: AtomicUsize,
}

#[derive(Debug)]
struct State {
    faults: Faults,
    seed: u64,
    now: Duration,
    parked: Vec<Buf>,
}

impl State {
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed >> 33
    }

    fn chance(&mut self, of_1000: u64) -> bool {
        self.random() % 1000 < of_1000
    }
}

#[derive(Debug)]
struct Copy {
    pages: Vec<Vec<u8>>,
    live: Arc<AtomicUsize>,
}

impl Stored for Copy {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Memory {
    pub(super) fn new(faults: Faults, seed: u64) -> Arc<Memory> {
        let state = State { faults, seed, now: Duration::ZERO, parked: Vec::new() };
        Arc::new(Memory {
            state: Mutex::new(state),
            live: Arc::default(),
            reads: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
        })
    }

    pub(super) fn set(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// The kernel lets go of what was abandoned.
    pub(super) fn settle(&self) -> usize {
        let parked = std::mem::take(&mut self.state.lock().parked);
        parked.len()
    }
}

/// A handle of the tier for reads in flight.
struct Reads {
    memory: Arc<Memory>,
    /// When, which, and its page: in the order of completion, last first.
    waiting: Vec<(Duration, usize, PageIn)>,
}

/// What the cache holds: the tier needs itself for reads in flight.
#[derive(Debug)]
pub(super) struct Handle(pub(super) Arc<Memory>);

impl Below for Handle {
    fn write(&self, stripes: &[StripeOut]) -> Vec<Result<Arc<dyn Stored>, MissReason>> {
        let store = |stripe: &StripeOut| {
            self.0.writes.fetch_add(1, Ordering::Relaxed);
            let mut state = self.0.state.lock();
            let share = state.faults.write_fails;
            if state.chance(share) {
                return Err(MissReason::Io);
            }
            assert!(stripe.layer < crate::live::tests::LAYERS.max(4) && stripe.page < 1 << 20);
            let pages = stripe.pages.iter().map(|p| p.to_vec()).collect();
            self.0.live.fetch_add(1, Ordering::Relaxed);
            let stored: Arc<dyn Stored> = Arc::new(Copy { pages, live: self.0.live.clone() });
            Ok(stored)
        };
        stripes.iter().map(store).collect()
    }

    fn read(&self, wants: Vec<PageIn>) -> Box<dyn PageReads> {
        self.0.reads.fetch_add(wants.len(), Ordering::Relaxed);
        let mut state = self.0.state.lock();
        let mut faults = state.faults;
        if faults.quick > 0 {
            state.faults.quick -= 1;
            faults = Faults::default();
        }
        let when = |(index, want)| {
            let hangs = state.chance(faults.read_hangs);
            let delay = if hangs { 1 << 40 } else { state.random() % (faults.delay + 1) };
            (state.now + Duration::from_millis(delay), index, want)
        };
        let mut waiting: Vec<_> = wants.into_iter().enumerate().map(when).collect();
        waiting.sort_by_key(|w| std::cmp::Reverse(w.0));
        Box::new(Reads { memory: self.0.clone(), waiting })
    }

    fn now(&self) -> Duration {
        self.0.state.lock().now
    }
}

impl PageReads for Reads {
    fn next(&mut self, deadline: Option<Duration>) -> PageNext {
        let mut state = self.memory.state.lock();
        let Some(&(when, ..)) = self.waiting.last() else { return PageNext::Empty };
        let until = deadline.unwrap_or(Duration::MAX);
        if when > until.max(state.now) {
            state.now = state.now.max(until);
            return PageNext::TimedOut;
        }
        state.now = state.now.max(when);
        let Some((_, index, mut want)) = self.waiting.pop() else { return PageNext::Empty };
        let small = want.into.len() < SMALL;
        let share = state.faults.read_fails + if small { state.faults.small_fails } else { 0 };
        if state.chance(share) {
            // Garbage in the frame must never be seen.
            want.into.fill(0xEE);
            return PageNext::Done { index, result: Err(MissReason::Checksum), buf: want.into };
        }
        let stored = want.stripe.as_any().downcast_ref::<Copy>().unwrap();
        want.into.copy_from_slice(&stored.pages[want.head]);
        PageNext::Done { index, result: Ok(()), buf: want.into }
    }

    fn pending(&self) -> usize {
        self.waiting.len()
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        assert_eq!(self.pending(), self.waiting.len());
        let parked = self.waiting.drain(..).map(|(_, _, want)| want.into);
        self.memory.state.lock().parked.extend(parked);
    }
}
