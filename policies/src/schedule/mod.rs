//! Which sequences have memory: whom to preempt first, whom to bring back first, and whether to bring back
//! what was computed or compute it again.
//!
//! One order decides both ([`Schedule::rank`]): memory goes to its first, and leaves its last first.
//!
//! 1. Who runs before who does not: a sequence whose next step is known to come later (a tool call, a user
//!    who reads) needs no memory until then, and of those who have some, who wakes last gives it first: Belady
//!    by schedule (ALISE, arXiv 2410.23537, §4).
//! 2. Among those who run, by priority, strictly. Who waits ages: every so many ticks count as one more of
//!    priority, for as long as a turn lasts once it runs. So nobody starves.
//! 3. Who has memory before who has none, then who was admitted first (vLLM's order of preemption).
//!
//! Nothing here reads a clock: a tick is whatever the caller counts, a step or a millisecond.

mod cost;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

pub use cost::{Again, Rates, again};

/// Whether a sequence has memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It has.
    In {
        /// Since when.
        since: u64,
        /// [`Schedule::level`] when it came in.
        level: i64,
    },
    /// It has not.
    Out {
        /// Since when.
        since: u64,
    },
}

/// A sequence that wants to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name: different from all others.
    pub id: u64,
    /// Higher goes first.
    pub priority: i32,
    /// Where it stands.
    pub stand: Stand,
    /// When its next step comes, if that is known; else it is now.
    pub wake: Option<u64>,
    /// When it was admitted, or any other number by which equals are ordered.
    pub admitted: u64,
    /// Bytes that it needs to run.
    pub bytes: u64,
}

/// How sequences take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Ticks of waiting that count as one more of priority; 0 for never. Default 1000.
    pub ageing: u64,
    /// Ticks for which a sequence keeps what it had gained by waiting. Default 200.
    pub turn: u64,
    /// Ticks that bringing one back takes: it counts as running so long before it wakes. Default 0.
    pub lead: u64,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule { ageing: 1000, turn: 200, lead: 0 }
    }
}

/// Who gets memory and who gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be preempted, in this order.
    pub out: Vec<u64>,
    /// To be brought back once these are out, in this order.
    pub back: Vec<u64>,
}

/// A candidate's place in the order; the least is the first.
type Rank = (bool, bool, u64, Reverse<i64>, bool, u64, u64);

impl Schedule {
    /// A candidate's priority with what it gained by waiting.
    #[must_use]
    pub fn level(&self, now: u64, c: &Candidate) -> i64 {
        let own = i64::from(c.priority);
        match c.stand {
            Stand::Out { since } => {
                // Who sleeps does not wait.
                let from = since.max(c.wake.unwrap_or(0));
                let gained = now.saturating_sub(from).checked_div(self.ageing).unwrap_or(0);
                own.saturating_add(i64::try_from(gained).unwrap_or(i64::MAX))
            }
            Stand::In { since, level } if now.saturating_sub(since) < self.turn => own.max(level),
            Stand::In { .. } => own,
        }
    }

    fn key(&self, now: u64, c: &Candidate) -> Rank {
        let due = c.wake.unwrap_or(0).saturating_sub(self.lead).max(now);
        let (sleeps, is_out) = (due > now, matches!(c.stand, Stand::Out { .. }));
        (sleeps, sleeps && is_out, due, Reverse(self.level(now, c)), is_out, c.admitted, c.id)
    }

    /// The candidates in the order in which they get memory, by their places in the list.
    #[must_use]
    pub fn rank(&self, now: u64, candidates: &[Candidate]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by_key(|&i| self.key(now, &candidates[i]));
        order
    }

    /// Shares `room` bytes out: each candidate that fits into what those before it left gets memory. One
    /// that is larger than what is left waits without holding up the others; the further it ages the
    /// fewer come before it.
    #[must_use]
    pub fn plan(&self, now: u64, room: u64, candidates: &[Candidate]) -> Plan {
        let (mut free, mut plan) = (room, Plan::default());
        for i in self.rank(now, candidates) {
            let c = &candidates[i];
            let fits = c.bytes <= free;
            if fits {
                free -= c.bytes;
            }
            match (c.stand, fits) {
                (Stand::Out { .. }, true) => plan.back.push(c.id),
                (Stand::In { .. }, false) => plan.out.push(c.id),
                _ => {}
            }
        }
        plan.out.reverse();
        plan
    }
}
