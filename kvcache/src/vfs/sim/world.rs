//! The machine around the disk: clock, processes, faults, counters, one lock over all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::batch::Parked;
use super::disk::{Disk, Ino};
use super::errno::{Errno, error};
use super::fault::{Attempt, Call, Fault, Injected};
use super::log::Log;
use super::rng::Rng;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// What a slow call takes.
pub(super) const SLOW: Duration = Duration::from_secs(2);
/// After this, a stuck call that is not part of a batch fails.
const STUCK: Duration = Duration::from_secs(3600);

/// A file or directory that a process holds open.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) ino: Ino,
    pub(super) pid: u32,
    pub(super) path: Arc<str>,
    pub(super) alignment: usize,
    pub(super) writable: bool,
}

impl Handle {
    /// The last component.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// Sums over all processes since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes that reads returned.
    pub bytes_read: u64,
    /// Bytes that writes took.
    pub bytes_written: u64,
    /// Paths of every `fdatasync` and `fsync` that returned success, in order.
    pub syncs: Vec<String>,
    calls: [u64; Call::COUNT],
}

impl Totals {
    /// Calls of a kind, failed ones included.
    #[must_use]
    pub fn calls(&self, call: Call) -> u64 {
        self.calls[call as usize]
    }
}

/// How the disk differs from an endless local one.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Bytes of the whole disk.
    pub(super) disk: Option<u64>,
    /// Bytes of one file.
    pub(super) file: u64,
    /// What direct transfers must be a multiple of; 1 where there are none.
    pub(super) alignment: usize,
    /// Whether room can be asked for in advance.
    pub(super) allocate: bool,
    /// Whether stuck calls block their thread.
    pub(super) block: bool,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) disk: Arc<Disk>,
    pub(super) clock: Duration,
    pub(super) rng: Rng,
    pub(super) log: Option<Log>,
    pub(super) faults: Vec<Injected>,
    pub(super) next_fault: u64,
    /// Living processes and their users.
    pub(super) processes: BTreeMap<u32, u32>,
    pub(super) next_pid: u32,
    pub(super) handles: Vec<Weak<Handle>>,
    pub(super) locks: Vec<(Ino, Weak<Handle>)>,
    pub(super) parked: Vec<Parked>,
    /// How often stuck operations were released.
    pub(super) releases: u64,
    pub(super) totals: Totals,
    pub(super) limits: Limits,
}

impl State {
    /// For changes; a state that the log keeps is copied first.
    pub(super) fn disk(&mut self) -> &mut Disk {
        Arc::make_mut(&mut self.disk)
    }

    /// Handles of living processes.
    pub(super) fn open(&self) -> impl Iterator<Item = Arc<Handle>> {
        let handles = self.handles.iter().filter_map(Weak::upgrade);
        handles.filter(|handle| self.processes.contains_key(&handle.pid))
    }

    pub(super) fn open_inos(&self) -> BTreeSet<Ino> {
        self.open().map(|handle| handle.ino).collect()
    }

    pub(super) fn add_handle(&mut self, handle: Handle) -> Arc<Handle> {
        if self.handles.len() == self.handles.capacity() {
            self.handles.retain(|handle| handle.strong_count() > 0);
        }
        let handle = Arc::new(handle);
        self.handles.push(Arc::downgrade(&handle));
        handle
    }

    pub(super) fn locked(&self, ino: Ino) -> bool {
        self.locks.iter().filter(|(locked, _)| *locked == ino).any(|(_, holder)| {
            holder.upgrade().is_some_and(|handle| self.processes.contains_key(&handle.pid))
        })
    }

    /// Counts a call and finds the fault that strikes it: of several that are due, the first put in
    /// place.
    pub(super) fn strike(&mut self, attempt: Attempt) -> Option<Fault> {
        self.totals.calls[attempt.call as usize] += 1;
        let rng = &mut self.rng;
        let mut chosen = None;
        for injected in &mut self.faults {
            if injected.due(attempt, |p| rng.chance(p)) && chosen.is_none() {
                injected.fired += 1;
                chosen = Some(injected.fault);
            }
        }
        chosen
    }

    /// Ends a call: a place where the machine may crash.
    pub(super) fn point(&mut self, call: Call, name: &str) {
        if let Some(log) = &mut self.log {
            log.push(call, name, &self.disk);
        }
    }
}

/// Everything that simulated processes share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) state: Mutex<State>,
    pub(super) released: Condvar,
}

/// The state during one call; the end of it is a crash point.
pub(super) struct Turn<'a> {
    pub(super) state: MutexGuard<'a, State>,
    /// A fault that is more than an error and for the call to act out.
    pub(super) fault: Option<Fault>,
    call: Call,
    name: &'a str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.state.point(self.call, self.name);
    }
}

impl World {
    pub(super) fn new(disk: Arc<Disk>, seed: u64) -> World {
        let state = State {
            disk,
            clock: Duration::ZERO,
            rng: Rng::new(seed),
            log: None,
            faults: Vec::new(),
            next_fault: 0,
            processes: BTreeMap::new(),
            next_pid: 1000,
            handles: Vec::new(),
            locks: Vec::new(),
            parked: Vec::new(),
            releases: 0,
            totals: Totals::default(),
            limits: Limits {
                disk: None,
                file: 1 << 40,
                alignment: 512,
                allocate: true,
                block: false,
            },
        };
        World { state: Mutex::new(state), released: Condvar::new() }
    }

    /// Begins a call of process `pid`.
    pub(super) fn enter<'a>(&'a self, pid: u32, attempt: Attempt<'a>) -> io::Result<Turn<'a>> {
        let mut state = self.state.lock();
        if !state.processes.contains_key(&pid) {
            return Err(error(Errno::BadFile));
        }
        let Attempt { call, name, .. } = attempt;
        let mut fault = state.strike(attempt);
        let mut failure = fault.and_then(|fault| fault.errno(call));
        match fault {
            Some(Fault::Slow) => {
                state.clock += SLOW;
                fault = None;
            }
            Some(Fault::Stuck) if state.limits.block => {
                let releases = state.releases;
                self.released.wait_while(&mut state, |state| state.releases == releases);
                fault = None;
            }
            Some(Fault::Stuck) => {
                state.clock += STUCK;
                failure = Some(Errno::Io);
            }
            _ => {}
        }
        let turn = Turn { state, fault, call, name };
        failure.map_or(Ok(turn), |errno| Err(error(errno)))
    }
}
