//! When the tier is not to be used: after failures it rests, each time longer.

use std::collections::VecDeque;
use std::time::Duration;

use super::options::{FAILURES, REST_FIRST, REST_LONGEST, WINDOW};

/// Why the tier rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// `fdatasync` failed too often.
    Sync,
    /// An operation did not end in time.
    Stuck,
    /// The disk is full, or the system says so.
    Full,
    /// The directory could not be opened for writing.
    ReadOnly,
}

/// A resting tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Degraded {
    /// Since when, on the store's monotonic clock.
    pub since: Duration,
    /// Why.
    pub cause: Cause,
}

/// What went wrong lately.
#[derive(Debug, Default)]
pub(crate) struct Health {
    poisoned: VecDeque<Duration>,
    rest: Option<(Degraded, Duration)>,
    /// How long the last rest was.
    last: Duration,
    seconds: f64,
}

impl Health {
    fn rest_until(&mut self, now: Duration, cause: Cause, rest: Duration) {
        self.last = rest;
        self.seconds += rest.as_secs_f64();
        self.rest = Some((Degraded { since: now, cause }, now + rest));
        tracing::warn!(?cause, seconds = rest.as_secs(), "the disk tier rests");
    }

    fn longer(&self) -> Duration {
        (self.last * 2).clamp(REST_FIRST, REST_LONGEST)
    }

    /// A segment was poisoned by a failed `fdatasync`.
    pub(crate) fn poisoned(&mut self, now: Duration) {
        self.poisoned.push_back(now);
        while self.poisoned.front().is_some_and(|&t| t + WINDOW < now) {
            self.poisoned.pop_front();
        }
        if self.poisoned.len() >= FAILURES {
            self.poisoned.clear();
            self.rest_until(now, Cause::Sync, self.longer());
        }
    }

    /// An operation did not end before its deadline.
    pub(crate) fn stuck(&mut self, now: Duration) {
        self.rest_until(now, Cause::Stuck, self.longer());
    }

    /// The disk has no room: writes are tried again after 5 s or when a segment was freed.
    pub(crate) fn full(&mut self, now: Duration) {
        self.rest_until(now, Cause::Full, Duration::from_secs(5));
    }

    /// A segment was freed.
    pub(crate) fn freed(&mut self) {
        self.rest.take_if(|(d, _)| d.cause == Cause::Full);
    }

    /// A commit went well.
    pub(crate) fn recovered(&mut self) {
        self.last = Duration::ZERO;
    }

    /// The state, if the tier rests now.
    pub(crate) fn degraded(&mut self, now: Duration) -> Option<Degraded> {
        self.rest.take_if(|(_, until)| *until <= now);
        self.rest.map(|(degraded, _)| degraded)
    }

    /// Whether writes are refused now.
    pub(crate) fn refuses_writes(&mut self, now: Duration) -> Option<Cause> {
        self.degraded(now).map(|d| d.cause)
    }

    /// Whether reads are refused now: only of a disk that does not answer.
    pub(crate) fn refuses_reads(&mut self, now: Duration) -> bool {
        self.degraded(now).is_some_and(|d| d.cause == Cause::Stuck)
    }

    /// Seconds of rest so far.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_poisoned_segments_in_a_minute_make_it_rest_each_time_longer() {
        let at = Duration::from_secs;
        let mut health = Health::default();
        health.poisoned(at(0));
        health.poisoned(at(1));
        health.poisoned(at(62));
        assert_eq!(health.degraded(at(62)), None);
        health.poisoned(at(63));
        health.poisoned(at(64));
        let rests = Degraded { since: at(64), cause: Cause::Sync };
        assert_eq!(health.degraded(at(93)), Some(rests));
        assert!(!health.refuses_reads(at(93)));
        assert_eq!(health.degraded(at(94)), None);
        (0..3).for_each(|_| health.poisoned(at(100)));
        assert!(health.degraded(at(159)).is_some() && health.degraded(at(160)).is_none());
        health.stuck(at(200));
        assert!(health.refuses_reads(at(319)) && !health.refuses_reads(at(320)));
        assert_eq!(health.seconds(), 210.0);
    }

    #[test]
    fn a_full_disk_is_tried_again_when_something_was_freed() {
        let at = Duration::from_secs;
        let mut health = Health::default();
        health.full(at(0));
        assert_eq!(health.refuses_writes(at(4)), Some(Cause::Full));
        health.freed();
        assert_eq!(health.refuses_writes(at(4)), None);
        health.full(at(10));
        assert_eq!(health.refuses_writes(at(15)), None);
    }
}
