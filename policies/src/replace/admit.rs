//! Which blocks are written to a tier that writing wears out.

use super::ghosts::{Ghosts, fingerprint};
use crate::Error;

/// When a block is let in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admit {
    /// Times that a block must have been offered, this one included. Default 2: three quarters of all blocks are
    /// never used again. 1 lets all in.
    pub sightings: u32,
    /// Blocks whose offers are remembered. Default a million, 12 MB.
    pub memory: usize,
    /// Bytes that may be written for each tick on average; `None` for any number. Default `None`.
    pub bytes_per_tick: Option<f64>,
    /// Bytes that may be written at once after a time without any. Default 1 GiB.
    pub burst: u64,
}

impl Default for Admit {
    fn default() -> Admit {
        Admit { sightings: 2, memory: 1 << 20, bytes_per_tick: None, burst: 1 << 30 }
    }
}

impl Admit {
    /// # Errors
    /// [`Error::Setting`] for no sightings or a rate that is none.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |setting, expected, found: String| {
            Err(Error::setting("admission", setting, expected, found))
        };
        match (self.sightings, self.bytes_per_tick) {
            (0, _) => wrong("sightings", "at least 1", "0".to_owned()),
            (_, Some(rate)) if !(rate.is_finite() && rate > 0.0) => {
                wrong("bytes_per_tick", "above 0", rate.to_string())
            }
            _ => Ok(()),
        }
    }
}

/// Lets blocks in that are offered again and again, or that are known to be wanted, as fast as may be written.
#[derive(Clone, Debug)]
pub struct Admission {
    rule: Admit,
    /// Blocks offered once, twice and so on, and not let in yet.
    offered: Vec<Ghosts>,
    /// Bytes that may be written now.
    credit: f64,
    last: u32,
    admitted: u64,
    refused: u64,
}

impl Admission {
    /// # Errors
    /// As [`Admit::check`].
    pub fn new(rule: Admit) -> Result<Admission, Error> {
        rule.check()?;
        let offered = vec![Ghosts::default(); rule.sightings.saturating_sub(1) as usize];
        let credit = rule.burst as f64;
        Ok(Admission { rule, offered, credit, last: 0, admitted: 0, refused: 0 })
    }

    /// Whether a block of `bytes` is to be written at tick `now`; `wanted` says that it is known to be used again.
    pub fn offer(&mut self, key: u64, bytes: u64, wanted: bool, now: u32) -> bool {
        self.refill(now);
        let known = self.seen(key) || wanted;
        let admitted = known && (self.rule.bytes_per_tick.is_none() || self.credit >= bytes as f64);
        if admitted {
            self.credit -= bytes as f64;
            self.admitted += 1;
        } else {
            self.refused += 1;
        }
        admitted
    }

    /// Blocks let in and refused so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.admitted, self.refused)
    }

    fn refill(&mut self, now: u32) {
        let Some(rate) = self.rule.bytes_per_tick else { return };
        let ticks = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        self.credit = (self.credit + rate * f64::from(ticks)).min(self.rule.burst as f64);
    }

    /// Notes an offer; whether there were enough.
    fn seen(&mut self, key: u64) -> bool {
        let print = fingerprint(key);
        let before = self.offered.iter_mut().position(|offered| offered.take(print));
        let next = before.map_or(0, |times| times + 1);
        match self.offered.get_mut(next) {
            Some(offered) => {
                offered.add(print, self.rule.memory);
                false
            }
            None => {
                // What was seen often enough is let in each time while it is remembered.
                if let Some(last) = self.offered.last_mut() {
                    last.add(print, self.rule.memory);
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_let_in_when_they_come_again() {
        let mut admission = Admission::new(Admit { memory: 4, ..Admit::default() }).unwrap();
        let each = [1, 2, 1, 1, 3, 4, 5, 6, 2, 2].map(|key| admission.offer(key, 10, false, 0));
        let expected = [false, false, true, true, false, false, false, false, false, true];
        assert_eq!((each, admission.counts()), (expected, (3, 7)));
        assert!(admission.offer(99, 10, true, 0));
        let mut all = Admission::new(Admit { sightings: 1, ..Admit::default() }).unwrap();
        assert!(all.offer(7, 1, false, 0));
        let mut thrice = Admission::new(Admit { sightings: 3, ..Admit::default() }).unwrap();
        let each = [0; 5].map(|_| thrice.offer(7, 1, false, 0));
        assert_eq!(each, [false, false, true, true, true]);
    }

    #[test]
    fn writing_is_no_faster_than_said() {
        let rule =
            Admit { sightings: 1, bytes_per_tick: Some(10.0), burst: 25, ..Admit::default() };
        let mut admission = Admission::new(rule).unwrap();
        let ticks = [0, 0, 0, 1, 2, 2, 100, 100, 100, 50];
        let each = ticks.map(|now| admission.offer(u64::from(now), 10, true, now));
        let expected = [true, true, false, true, true, false, true, true, false, false];
        assert_eq!(each, expected);
        let error = Admission::new(Admit { sightings: 0, ..rule }).unwrap_err().to_string();
        assert!(error.contains("sightings must be at least 1, found 0"), "{error}");
        assert!(Admission::new(Admit { bytes_per_tick: Some(f64::NAN), ..rule }).is_err());
    }
}
