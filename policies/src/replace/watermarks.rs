//! When room is made before it is needed.

use crate::Error;

/// Parts of a tier's room at which blocks begin to leave, and cease to. The first is Mooncake Store's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watermarks {
    /// Above it blocks leave. Default 0.9.
    pub high: f64,
    /// Down to it. Default 0.85.
    pub low: f64,
    /// Kept free: who takes of it waits until blocks have left. Default 0.01.
    pub reserve: f64,
}

impl Default for Watermarks {
    fn default() -> Watermarks {
        Watermarks { high: 0.9, low: 0.85, reserve: 0.01 }
    }
}

impl Watermarks {
    /// # Errors
    /// [`Error::Setting`] if it is not `0 < low <= high <= 1 - reserve <= 1`.
    pub fn check(&self) -> Result<(), Error> {
        let Watermarks { high, low, reserve } = *self;
        match 0.0 < low && low <= high && high <= 1.0 - reserve && reserve >= 0.0 {
            true => Ok(()),
            false => Err(Error::setting(
                "watermarks",
                "low, high and reserve",
                "0 < low <= high <= 1 - reserve <= 1",
                format!("{low}, {high} and {reserve}"),
            )),
        }
    }

    /// What should leave while `used` of `limit` are in use.
    #[must_use]
    pub fn excess(&self, used: u64, limit: u64) -> u64 {
        let part = |share: f64| (share * limit as f64) as u64;
        if used > part(self.high) { used - part(self.low).min(used) } else { 0 }
    }

    /// Whether so much more may be taken at once, without waiting for others to leave.
    #[must_use]
    pub fn admits(&self, more: u64, used: u64, limit: u64) -> bool {
        let free = limit.saturating_sub((self.reserve * limit as f64) as u64);
        used.saturating_add(more) <= free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_between_the_marks() {
        let marks = Watermarks::default();
        assert_eq!([0, 850, 900].map(|used| marks.excess(used, 1000)), [0, 0, 0]);
        assert_eq!([901, 1000].map(|used| marks.excess(used, 1000)), [51, 150]);
        assert_eq!([989, 990, 991].map(|used| marks.admits(1, used, 1000)), [true, false, false]);
        assert!(!marks.admits(u64::MAX, 5, 1000) && marks.excess(10, 0) == 10);
        marks.check().unwrap();
        let wrong = Watermarks { low: 0.95, ..marks }.check().unwrap_err().to_string();
        assert!(wrong.contains("0.95, 0.9 and 0.01"), "{wrong}");
        assert!(Watermarks { high: f64::NAN, ..marks }.check().is_err());
    }
}
