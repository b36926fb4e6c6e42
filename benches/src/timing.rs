//! Repeating a measurement and saying how sure it is.

use std::time::Instant;

/// How often to repeat.
#[derive(Clone, Copy, Debug)]
pub struct Repeats {
    /// Exactly this many, if given.
    pub exact: Option<usize>,
    /// Else at least this many...
    pub least: usize,
    /// ...and more until this many seconds have passed.
    pub seconds: f64,
}

impl Default for Repeats {
    fn default() -> Self {
        Repeats { exact: None, least: 7, seconds: 1.0 }
    }
}

impl Repeats {
    pub(crate) fn done(self, runs: usize, since: Instant) -> bool {
        match self.exact {
            Some(n) => runs >= n.max(1),
            None => runs >= self.least && since.elapsed().as_secs_f64() >= self.seconds,
        }
    }
}

/// Repeats of one measurement, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Median.
    pub median: f64,
    /// Fastest repeat.
    pub best: f64,
    /// Distance between the quartiles over the median.
    pub spread: f64,
    /// Number of repeats.
    pub repeats: usize,
}

impl Sample {
    /// Summary of a set of times.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn of(mut times: Vec<f64>) -> Sample {
        assert!(!times.is_empty(), "a sample needs at least one time");
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        let median = at(0.5);
        let spread = if median > 0.0 { (at(0.75) - at(0.25)) / median } else { 0.0 };
        Sample { median, best: times[0], spread, repeats: times.len() }
    }
}

/// Seconds that one call takes.
pub(crate) fn time(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// Times `f` after one unmeasured call.
pub fn repeat(how: Repeats, mut f: impl FnMut()) -> Sample {
    f();
    let since = Instant::now();
    let mut times = Vec::new();
    while times.is_empty() || !how.done(times.len(), since) {
        times.push(time(&mut f));
    }
    Sample::of(times)
}

/// As [`repeat`], for work that can fail and may take long: the first call counts if it alone takes
/// longer than all repeats shall.
pub(crate) fn repeat_slow<E>(
    how: Repeats,
    mut f: impl FnMut() -> Result<(), E>,
) -> Result<Sample, E> {
    let mut timed = || {
        let mut done = Ok(());
        let seconds = time(|| done = f());
        done.map(|()| seconds)
    };
    let first = timed()?;
    if how.exact.is_none() && first >= how.seconds {
        return Ok(Sample::of(vec![first]));
    }
    repeat_result(how, timed)
}

/// As [`repeat`], for work that times itself and can fail.
pub(crate) fn repeat_result<E>(
    how: Repeats,
    mut f: impl FnMut() -> Result<f64, E>,
) -> Result<Sample, E> {
    f()?;
    let since = Instant::now();
    let mut times = Vec::new();
    while times.is_empty() || !how.done(times.len(), since) {
        times.push(f()?);
    }
    Ok(Sample::of(times))
}

/// Times the floor and the work alternately, so that both see the same machine: floor, work,
/// floor, work, ..., floor. `floor` returns its own seconds.
pub fn interleave(
    how: Repeats,
    mut floor: impl FnMut() -> f64,
    mut work: impl FnMut(),
) -> (Sample, Sample) {
    work();
    let since = Instant::now();
    let (mut floors, mut times) = (vec![floor()], Vec::new());
    while times.is_empty() || !how.done(times.len(), since) {
        times.push(time(&mut work));
        floors.push(floor());
    }
    (Sample::of(floors), Sample::of(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_reports_median_best_and_quartile_distance() {
        let s = Sample::of(vec![5.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!((s.median, s.best, s.repeats), (3.0, 1.0, 5));
        assert!((s.spread - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn an_exact_count_is_kept() {
        let how = Repeats { exact: Some(3), ..Repeats::default() };
        let mut calls = 0;
        assert_eq!(repeat(how, || calls += 1).repeats, 3);
        assert_eq!(calls, 4);
    }
}
