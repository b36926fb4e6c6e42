//! Whether stripes are compressed below, by what reading them back was seen to cost.

use std::time::Duration;

use kvist_policies::compress::{self, Chunk, Mean, Offer};
use parking_lot::Mutex;

/// What the reads of a shelf cost.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Rates>);

#[derive(Debug, Default)]
struct Rates {
    /// Bytes that arrived, by the seconds that somebody waited for them.
    link: Mean,
    /// Raw bytes decoded, by seconds.
    decode: Mean,
    /// Raw bytes of what was compressed, by those stored.
    ratio: Mean,
}

impl Pace {
    pub(super) fn arrived(&self, bytes: u64, waited: Duration) {
        self.0.lock().link.saw(bytes, waited.as_secs_f64());
    }

    pub(super) fn decoded(&self, bytes: u64, took: Duration) {
        self.0.lock().decode.saw(bytes, took.as_secs_f64());
    }

    pub(super) fn compressed(&self, bytes: u64, stored: u64) {
        self.0.lock().ratio.saw(bytes, stored as f64);
    }

    /// Which stripes of so many bytes each are to be compressed: all of them until something was read back.
    pub(super) fn choose(&self, stripes: usize, bytes: u64) -> Vec<bool> {
        let rates = self.0.lock();
        let means = (rates.link.rate(), rates.decode.rate(), rates.ratio.rate());
        let (Some(link), Some(decode), Some(ratio)) = means else { return vec![true; stripes] };
        let raw = Offer { ratio: 1.0, decode: f64::INFINITY, loss: 0.0 };
        let offers = [raw, Offer { ratio, decode, loss: 0.0 }];
        // What will be computed meanwhile is not known yet, nor what attention they get: the sooner the better.
        let chunks = vec![Chunk { bytes, weight: 0.0 }; stripes];
        let chosen = compress::choose(&offers, &chunks, link, 0.0);
        chosen
            .map_or_else(|| vec![true; stripes], |chosen| chosen.iter().map(|&i| i == 1).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn compressed_until_something_was_seen_and_then_what_is_sooner_back() {
        let pace = Pace::default();
        assert_eq!(pace.choose(3, 4096), [true; 3]);
        pace.compressed(3000, 2000);
        pace.decoded(2_000_000_000, SECOND);
        assert_eq!(pace.choose(2, 4096), [true; 2]);
        // A byte less saves a nanosecond; decoding takes half a nanosecond for each, a third is saved.
        pace.arrived(1_000_000_000, SECOND);
        assert_eq!(pace.choose(2, 4096), [false; 2]);
        (0..20).for_each(|_| pace.arrived(500_000_000, SECOND));
        assert_eq!(pace.choose(2, 4096), [true; 2]);
        // Nobody waits any more.
        (0..20).for_each(|_| pace.arrived(1_000_000_000, Duration::ZERO));
        assert_eq!(pace.choose(2, 4096), [false; 2]);
    }

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let pace = Pace::default();
        pace.compressed(1000, 1000);
        pace.decoded(1 << 30, Duration::from_millis(1));
        pace.arrived(1 << 20, SECOND);
        assert_eq!(pace.choose(1, 4096), [false]);
    }
}
