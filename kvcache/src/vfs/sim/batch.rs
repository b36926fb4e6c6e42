//! Operations in flight, on the virtual clock.
//!
//! Each operation happens either when it is submitted or when it is handed back, as the seed has it;
//! both are orders that a kernel may choose. So a `sync_data` between the two covers it or does not.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::errno::{Errno, error};
use super::fault::{Attempt, Call, Fault};
use super::handle::SimFile;
use super::world::{SLOW, State, World};
use crate::vfs::{Batch, Done, Next, Op, Transfer};

/// When an operation ends.
#[derive(Clone, Copy, Debug)]
enum Ready {
    At(Duration),
    /// At the release after this many.
    Released(u64),
}

/// An operation that has not been handed back.
#[derive(Debug)]
struct Flight {
    index: usize,
    op: Op,
    fault: Option<Fault>,
    ready: Ready,
    /// What came of it, if it has happened already.
    early: Option<io::Result<usize>>,
}

/// An operation whose batch was dropped.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) pid: u32,
    flight: Flight,
}

impl Parked {
    pub(super) fn bytes(&self) -> u64 {
        self.flight.op.len() as u64
    }
}

impl State {
    fn is_ready(&self, ready: Ready) -> bool {
        match ready {
            Ready::At(time) => time <= self.clock,
            Ready::Released(before) => self.releases > before,
        }
    }

    /// Takes out the parked operations that have ended. The caller drops them without the lock:
    /// memory may have an owner with locks of its own.
    #[must_use]
    pub(super) fn unpark(&mut self) -> Vec<Parked> {
        let (mut ended, parked) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition::<Vec<_>, _>(|parked| self.is_ready(parked.flight.ready));
        self.parked = parked;
        for parked in &mut ended {
            // Nobody is left to hear what came of it.
            let _unheard = self.finish(&mut parked.flight);
        }
        ended
    }

    /// What came of an operation that is due.
    fn finish(&mut self, flight: &mut Flight) -> io::Result<usize> {
        flight.early.take().unwrap_or_else(|| self.perform(&mut flight.op, flight.fault))
    }

    /// Lets an operation happen.
    fn perform(&mut self, op: &mut Op, fault: Option<Fault>) -> io::Result<usize> {
        let Some(file) = op.file.as_any().downcast_ref::<SimFile>() else {
            return Err(error(Errno::Inval));
        };
        let handle = file.handle.clone();
        if !self.processes.contains_key(&handle.pid) {
            return Err(error(Errno::BadFile));
        }
        let result = self.transfer(&handle, op, fault);
        self.point(call(op.transfer), handle.name());
        result
    }

    fn submit(&mut self, world: &Arc<World>, index: usize, mut op: Op) -> Flight {
        let mut ready = Ready::At(self.clock);
        let mut fault = None;
        let early = match admit(world, &op) {
            Err(refused) => Some(Err(refused)),
            Ok(attempt) => {
                fault = self.strike(attempt);
                match fault {
                    Some(Fault::Slow) => ready = Ready::At(self.clock + SLOW),
                    Some(Fault::Stuck) => ready = Ready::Released(self.releases),
                    _ => {}
                }
                match fault.and_then(|fault| fault.errno(attempt.call)) {
                    Some(errno) => {
                        self.point(attempt.call, attempt.name);
                        Some(Err(error(errno)))
                    }
                    None if self.rng.coin() => Some(self.perform(&mut op, fault)),
                    None => None,
                }
            }
        };
        Flight { index, op, fault, ready, early }
    }
}

fn call(transfer: Transfer) -> Call {
    match transfer {
        Transfer::Read => Call::Read,
        Transfer::Write => Call::Write,
    }
}

/// Checks an operation as the kernel would.
fn admit<'a>(world: &Arc<World>, op: &'a Op) -> io::Result<Attempt<'a>> {
    let file = op.file.as_any().downcast_ref::<SimFile>();
    let Some(file) = file.filter(|file| Arc::ptr_eq(&file.world, world)) else {
        return Err(error(Errno::Inval));
    };
    if op.refusal().is_some() {
        return Err(error(Errno::Inval));
    }
    file.check_op(op)?;
    let divisible = op.len() - op.skip > file.handle.alignment;
    Ok(Attempt { call: call(op.transfer), name: file.handle.name(), divisible })
}

/// A batch of the simulated disk.
#[derive(Debug)]
pub(super) struct SimBatch {
    world: Arc<World>,
    pid: u32,
    flights: Vec<Flight>,
    submitted: usize,
}

impl SimBatch {
    pub(super) fn start(world: &Arc<World>, pid: u32, ops: Vec<Op>) -> SimBatch {
        let mut state = world.state.lock();
        let submitted = ops.len();
        let mut waiting: Vec<(usize, Op)> = ops.into_iter().enumerate().collect();
        let mut flights = Vec::with_capacity(submitted);
        while !waiting.is_empty() {
            let chosen = state.rng.below(waiting.len() as u64) as usize;
            let (index, op) = waiting.swap_remove(chosen);
            flights.push(state.submit(world, index, op));
        }
        SimBatch { world: world.clone(), pid, flights, submitted }
    }
}

impl Batch for SimBatch {
    fn push(&mut self, op: Op) -> usize {
        let index = self.submitted;
        self.submitted += 1;
        let flight = self.world.state.lock().submit(&self.world, index, op);
        self.flights.push(flight);
        index
    }

    fn next(&mut self, deadline: Option<Duration>) -> Next {
        if self.flights.is_empty() {
            return Next::Empty;
        }
        let mut state = self.world.state.lock();
        loop {
            let ended = |&i: &usize| state.is_ready(self.flights[i].ready);
            let ended: Vec<usize> = (0..self.flights.len()).filter(ended).collect();
            if !ended.is_empty() {
                let chosen = ended[state.rng.below(ended.len() as u64) as usize];
                let mut flight = self.flights.swap_remove(chosen);
                let result = state.finish(&mut flight);
                let Flight { index, op: Op { buf, inserts, .. }, .. } = flight;
                return Next::Done(Done { index, result, buf, inserts });
            }
            let times = self.flights.iter().filter_map(|flight| match flight.ready {
                Ready::At(time) => Some(time),
                Ready::Released(_) => None,
            });
            match (times.min(), deadline) {
                (Some(time), None) => state.clock = time,
                (Some(time), Some(deadline)) if time <= deadline => state.clock = time,
                (_, Some(deadline)) => {
                    state.clock = state.clock.max(deadline);
                    return Next::TimedOut;
                }
                (None, None) => {
                    assert!(state.limits.block, "waits without a deadline for a stuck operation");
                    self.world.released.wait(&mut state);
                }
            }
        }
    }

    fn pending(&self) -> usize {
        self.flights.len()
    }
}

impl Drop for SimBatch {
    fn drop(&mut self) {
        let mut state = self.world.state.lock();
        let pid = self.pid;
        let flights = self.flights.drain(..);
        state.parked.extend(flights.map(|flight| Parked { pid, flight }));
        let ended = state.unpark();
        let dead = !state.processes.contains_key(&pid);
        let orphans = if dead { state.take_parked(pid) } else { Vec::new() };
        drop(state);
        drop((ended, orphans));
    }
}

impl State {
    /// Takes out what a dead process left.
    #[must_use]
    pub(super) fn take_parked(&mut self, pid: u32) -> Vec<Parked> {
        let (taken, kept) =
            std::mem::take(&mut self.parked).into_iter().partition(|parked| parked.pid == pid);
        self.parked = kept;
        taken
    }
}
