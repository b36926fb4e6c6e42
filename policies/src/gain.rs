//! Whether a stored prefix is worth loading, or is computed sooner.
//!
//! Loading wins while `tokens / prefill rate` is more than the look-up, the transfer and the decoding together.
//! The rates are measured by the caller, who also knows the time; nothing here reads a clock.

/// What the newest sample leaves of those before it.
const KEEP: f64 = 7.0 / 8.0;
/// Seconds of a sample that can have been measured.
const SECONDS: std::ops::RangeInclusive<f64> = 1e-9..=1e9;

/// How much is done in a second: an exponential average over the samples, in which each counts by the
/// time it took. So one long wait shows at once, and many short samples do not hide it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    amount: f64,
    seconds: f64,
    samples: u64,
}

impl Rate {
    /// The rate that one sample shows.
    #[must_use]
    pub fn of(amount: u64, seconds: f64) -> Rate {
        let mut rate = Rate::default();
        rate.learn(amount, seconds);
        rate
    }

    /// Learns that `amount` (bytes or tokens) took `seconds`; nothing in some seconds is a sample too.
    /// What cannot have been measured is left out: no time, less than none, NaN, more than a lifetime.
    pub fn learn(&mut self, amount: u64, seconds: f64) {
        if SECONDS.contains(&seconds) {
            self.amount = self.amount * KEEP + amount as f64;
            self.seconds = self.seconds * KEEP + seconds;
            self.samples += 1;
        }
    }

    /// Samples learned.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The amount of a second; `None` before the first sample.
    #[must_use]
    pub fn per_second(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.amount / self.seconds)
    }

    /// Seconds that `amount` takes, infinite at a rate of 0; `None` before the first sample, except that
    /// nothing takes no time.
    #[must_use]
    pub fn seconds(&self, amount: u64) -> Option<f64> {
        match amount {
            0 => Some(0.0),
            _ => self.per_second().map(|rate| amount as f64 / rate),
        }
    }
}

/// Where a block can be loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Host memory.
    Host,
    /// Disk.
    Disk,
    /// A remote store.
    Remote,
}

/// All tiers, near to far.
pub const TIERS: [Tier; 3] = [Tier::Host, Tier::Disk, Tier::Remote];

/// The measured rates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Tokens that the engine computes in a second of prefill.
    pub prefill: Rate,
    /// Bytes that come from each tier in a second, in the order of [`TIERS`].
    pub tiers: [Rate; TIERS.len()],
    /// Raw bytes decoded in a second, of blocks that do not come from host memory. Stays empty where the
    /// tiers' rates were measured to the end of the decoding.
    pub decode: Rate,
}

impl Rates {
    /// A tier's rate.
    #[must_use]
    pub fn tier(&self, tier: Tier) -> &Rate {
        &self.tiers[tier as usize]
    }

    /// A tier's rate, to learn.
    pub fn tier_mut(&mut self, tier: Tier) -> &mut Rate {
        &mut self.tiers[tier as usize]
    }

    /// Learns from a load that took `seconds` altogether. Time is the farthest tier's, less what the
    /// nearer ones are known to take.
    pub fn learn_load(&mut self, bytes: [u64; TIERS.len()], seconds: f64) {
        let Some(far) = bytes.iter().rposition(|&b| b > 0) else { return };
        let near = (0..far).map(|i| self.tiers[i].seconds(bytes[i]).unwrap_or(0.0)).sum::<f64>();
        self.tiers[far].learn(bytes[far], seconds - near);
    }
}

/// A prefix that could be loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Tokens that need not be computed then.
    pub tokens: u64,
    /// Bytes from each tier, in the order of [`TIERS`].
    pub bytes: [u64; TIERS.len()],
    /// Seconds that pass before the first byte: the look-up, and what a load costs whatever its size.
    pub lookup: f64,
}

/// What loading saves and what it costs, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gain {
    /// To compute the tokens.
    pub compute: f64,
    /// Before the first byte.
    pub lookup: f64,
    /// To move the bytes.
    pub transfer: f64,
    /// To decode them.
    pub decode: f64,
}

impl Gain {
    /// To load: look-up, transfer and decoding.
    #[must_use]
    pub fn load(&self) -> f64 {
        self.lookup + self.transfer + self.decode
    }

    /// Saved by loading; below 0 if computing is sooner, NaN if neither ever ends.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.compute - self.load()
    }

    /// Whether more than `margin` seconds are saved.
    #[must_use]
    pub fn above(&self, margin: f64) -> bool {
        self.seconds() > margin
    }
}

/// What loading gains; `None` while a rate that it depends on is not known.
#[must_use]
pub fn gain(rates: &Rates, load: &Load) -> Option<Gain> {
    let compute = rates.prefill.seconds(load.tokens)?;
    let mut transfer = 0.0;
    for (rate, &bytes) in rates.tiers.iter().zip(&load.bytes) {
        transfer += rate.seconds(bytes)?;
    }
    let coded = load.bytes[1..].iter().fold(0, |sum: u64, &b| sum.saturating_add(b));
    let decode = rates.decode.seconds(coded).unwrap_or(0.0);
    Some(Gain { compute, lookup: load.lookup, transfer, decode })
}

/// The fewest tokens that are worth loading from a tier: those from which on more than `margin` seconds are
/// saved, at `bytes_per_token`, with `lookup` seconds before the first byte. `None` while a rate is not
/// known, and where loading is never sooner.
#[must_use]
pub fn break_even_tokens(
    rates: &Rates,
    tier: Tier,
    bytes_per_token: f64,
    lookup: f64,
    margin: f64,
) -> Option<u64> {
    let per_byte = |rate: &Rate| rate.per_second().map(f64::recip);
    let decode = if tier == Tier::Host { 0.0 } else { per_byte(&rates.decode).unwrap_or(0.0) };
    let load = bytes_per_token * (per_byte(rates.tier(tier))? + decode);
    let saved = per_byte(&rates.prefill)? - load;
    let tokens = ((lookup + margin).max(0.0) / saved).floor() + 1.0;
    (saved > 0.0 && tokens < u64::MAX as f64).then_some(tokens as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates(prefill: u64, host: u64, disk: u64) -> Rates {
        let tiers = [Rate::of(host, 1.0), Rate::of(disk, 1.0), Rate::default()];
        Rates { prefill: Rate::of(prefill, 1.0), tiers, decode: Rate::default() }
    }

    #[test]
    fn a_prefix_is_loaded_where_that_is_sooner() {
        let rates = rates(1000, 1_000_000, 100_000);
        let load = |bytes, lookup| gain(&rates, &Load { tokens: 500, bytes, lookup }).unwrap();
        let near = load([50_000, 0, 0], 0.01);
        assert_eq!((near.compute, near.lookup, near.transfer, near.decode), (0.5, 0.01, 0.05, 0.0));
        assert!(near.above(0.4) && !near.above(0.45));
        assert!(
            !load([0, 50_000, 0], 0.01).above(0.0),
            "from disk it takes as long, and the look-up"
        );
        assert!(load([0, 40_000, 0], 0.01).above(0.0));
    }

    #[test]
    fn decoding_counts_for_what_is_not_in_memory() {
        let rates = Rates { decode: Rate::of(1000, 1.0), ..rates(1, 1, 1) };
        let decode = |bytes| gain(&rates, &Load { tokens: 1, bytes, lookup: 0.0 }).unwrap().decode;
        assert_eq!((decode([9, 0, 0]), decode([9, 500, 0])), (0.0, 0.5));
    }

    #[test]
    fn what_is_not_known_has_no_gain() {
        let load = |bytes| Load { tokens: 1, bytes, lookup: 0.0 };
        assert_eq!(gain(&Rates::default(), &load([1, 0, 0])), None);
        assert_eq!(gain(&rates(1, 1, 1), &load([0, 0, 1])), None);
        assert!(gain(&rates(1, 1, 1), &load([1, 1, 0])).is_some());
        assert_eq!(break_even_tokens(&Rates::default(), Tier::Host, 1.0, 0.0, 0.0), None);
    }

    #[test]
    fn nothing_for_a_while_is_a_rate_of_0() {
        let stalled = Rates { tiers: [Rate::of(0, 10.0); 3], ..rates(1000, 0, 0) };
        let load = Load { tokens: 1 << 40, bytes: [0, 1, 0], lookup: 0.0 };
        assert_eq!(gain(&stalled, &load).unwrap().seconds(), f64::NEG_INFINITY);
        assert_eq!(break_even_tokens(&stalled, Tier::Disk, 1.0, 0.0, 0.0), None);
    }

    #[test]
    fn a_stall_shows_at_once() {
        let mut disk = Rate::default();
        (0..100).for_each(|_| disk.learn(1000, 0.001));
        assert!((disk.per_second().unwrap() / 1e6 - 1.0).abs() < 1e-9);
        disk.learn(1000, 1.0);
        assert!(disk.per_second().unwrap() < 1e4);
    }

    #[test]
    fn time_that_cannot_have_passed_is_left_out() {
        let mut rate = Rate::of(10, 2.0);
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, 1e300] {
            rate.learn(u64::MAX, seconds);
        }
        assert_eq!((rate.samples(), rate.per_second()), (1, Some(5.0)));
        assert_eq!((Rate::default().per_second(), Rate::default().seconds(1)), (None, None));
    }

    #[test]
    fn a_load_teaches_the_farthest_tier() {
        let mut r = rates(1, 1000, 1);
        r.tiers[1] = Rate::default();
        r.learn_load([500, 300, 0], 1.0);
        assert_eq!(r.tier(Tier::Disk).per_second(), Some(600.0), "half a second was memory's");
        r.learn_load([0; 3], 1.0);
        r.learn_load([9_000, 300, 0], 1.0);
        assert_eq!(r.tier(Tier::Disk).samples(), 1, "nothing was left for the disk");
        r.learn_load([3000, 0, 0], 1.0);
        assert!(r.tier(Tier::Host).per_second().unwrap() > 1000.0);
    }

    proptest! {
        #[test]
        fn a_rate_is_a_weighted_mean(
            samples in prop::collection::vec((0u64..1 << 40, 1e-6..1e3f64), 1..60),
        ) {
            let mut rate = Rate::default();
            samples.iter().for_each(|&(amount, seconds)| rate.learn(amount, seconds));
            let age = |i: usize| KEEP.powi((samples.len() - 1 - i) as i32);
            let sum = |of: &dyn Fn(usize) -> f64| (0..samples.len()).map(|i| age(i) * of(i)).sum::<f64>();
            let naive = sum(&|i| samples[i].0 as f64) / sum(&|i| samples[i].1);
            let found = rate.per_second().unwrap();
            prop_assert!((found - naive).abs() <= 1e-9 * naive, "{} is not {}", found, naive);
            prop_assert_eq!(rate.samples(), samples.len() as u64);
        }

        #[test]
        fn a_gain_is_the_sum_of_its_parts(
            tokens in 0u64..1 << 20, bytes in prop::array::uniform3(0u64..1 << 40), lookup in 0.0..1.0f64,
            speed in prop::array::uniform5(1u64..1 << 40),
        ) {
            let [prefill, host, disk, remote, decode] = speed.map(|s| Rate::of(s, 1.0));
            let rates = Rates { prefill, tiers: [host, disk, remote], decode };
            let [p, h, d, r, c] = speed.map(|s| s as f64);
            let [a, b, e] = bytes.map(|b| b as f64);
            let compute = tokens as f64 / p;
            let load = lookup + a / h + b / d + e / r + (b + e) / c;
            let found = gain(&rates, &Load { tokens, bytes, lookup }).unwrap();
            prop_assert!((found.seconds() - (compute - load)).abs() <= 1e-9 * (compute + load));
        }

        /// One token fewer is not worth it.
        #[test]
        fn break_even_is_where_the_gain_turns(
            prefill in 1u64..100_000, speed in 1u64..1 << 40, decode in prop::option::of(1u64..1 << 40),
            per_token in 1u32..1 << 22, lookup in 0.0..0.1f64, margin in 0.0..0.1f64, far in any::<bool>(),
        ) {
            let mut rates = rates(prefill, speed, speed);
            rates.decode = decode.map(|d| Rate::of(d, 1.0)).unwrap_or_default();
            let tier = if far { Tier::Disk } else { Tier::Host };
            let at = |tokens: u64| {
                let mut bytes = [0; 3];
                bytes[tier as usize] = tokens * u64::from(per_token);
                gain(&rates, &Load { tokens, bytes, lookup }).unwrap()
            };
            match break_even_tokens(&rates, tier, f64::from(per_token), lookup, margin) {
                Some(n) if n < 1 << 30 => {
                    // Rounding may be off by as much as this.
                    let slack = 1e-9 * at(n).load().max(1.0);
                    prop_assert!(at(n).seconds() > margin - slack, "{:?} at {}", at(n), n);
                    prop_assert!(at(n - 1).seconds() <= margin + slack, "{:?} below {}", at(n), n);
                }
                Some(_) => {}
                None => prop_assert!(at(1 << 30).seconds() <= 1e-3, "{:?}", at(1 << 30)),
            }
        }
    }
}
