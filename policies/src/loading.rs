//! Which of the stored blocks of a prompt are loaded, from rates that are learned while they are.
//!
//! What is not known yet is tried. A tier that is found too slow is left alone, and tried again from time to
//! time in the background, so that it comes back when it has recovered.

use crate::gain::{Gain, Load, Rate, Rates, TIERS, Tier, gain};

/// Seconds between two trials of a tier, at least and at most.
const TRIAL_EVERY: [f64; 2] = [0.5, 60.0];
/// A trial took at most one of so many seconds.
const TRIAL_SHARE: f64 = 8.0;

/// The leading blocks of a prompt that are stored, in host memory or on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Tokens of a block.
    pub block_tokens: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// Those of them that are in host memory.
    pub near: u64,
    /// Those before the first that is not.
    pub near_first: u64,
}

impl Found {
    fn load(&self, blocks: u64, near: u64, lookup: f64) -> Load {
        let bytes = |blocks: u64| blocks.saturating_mul(self.block_bytes);
        let far = blocks.saturating_sub(near);
        let tokens = blocks.saturating_mul(self.block_tokens);
        Load { tokens, bytes: [bytes(near), bytes(far), 0], lookup }
    }
}

/// What is done with the blocks that were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All are loaded.
    Load,
    /// All are loaded, since a rate is not known: it will be then.
    Learn,
    /// Those in memory that come first are loaded, the others computed.
    Near,
    /// All are computed.
    Compute,
}

impl Verdict {
    /// Its name in counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Load => "load",
            Verdict::Learn => "learn",
            Verdict::Near => "near",
            Verdict::Compute => "compute",
        }
    }
}

/// A decision and what it was made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What is done.
    pub verdict: Verdict,
    /// Leading blocks to load.
    pub blocks: u64,
    /// What loading all of them would gain, if that is known.
    pub gain: Option<Gain>,
}

/// Learns rates, and decides by them.
#[derive(Clone, Debug)]
pub struct Loading {
    margin: f64,
    rates: Rates,
    /// Loads, and the seconds of theirs in which nothing was moved.
    lookup: Rate,
    /// When the next trial may begin.
    next_trial: f64,
}

impl Loading {
    /// Loads what gains more than `margin` seconds; below 0, what loses less.
    #[must_use]
    pub fn new(margin: f64) -> Loading {
        let (rates, lookup) = (Rates::default(), Rate::default());
        Loading { margin, rates, lookup, next_trial: f64::NEG_INFINITY }
    }

    /// The rates so far.
    #[must_use]
    pub fn rates(&self) -> &Rates {
        &self.rates
    }

    /// Seconds of a load in which nothing is moved; 0 before the first.
    #[must_use]
    pub fn lookup(&self) -> f64 {
        self.lookup.seconds(1).unwrap_or(0.0)
    }

    /// The engine computed tokens of prompts.
    pub fn computed(&mut self, tokens: u64, seconds: f64) {
        self.rates.prefill.learn(tokens, seconds);
    }

    /// A load moved bytes from each tier in `seconds`, and was asked for and noticed in `lookup` more.
    pub fn loaded(&mut self, bytes: [u64; TIERS.len()], seconds: f64, lookup: f64) {
        if bytes.iter().any(|&b| b > 0) {
            self.rates.learn_load(bytes, seconds);
        }
        self.lookup.learn(1, lookup);
    }

    /// A load from a tier gave nothing in `seconds`.
    pub fn stuck(&mut self, tier: Tier, seconds: f64) {
        self.rates.tier_mut(tier).learn(0, seconds);
    }

    /// What to do with blocks that were found. `waiting` is for how many seconds the oldest load that is not
    /// over has been under way: a new one waits behind it, for as long again as far as one can tell.
    #[must_use]
    pub fn choose(&self, found: &Found, waiting: f64) -> Choice {
        let lookup = self.lookup() + waiting.max(0.0);
        let of = |blocks, near| gain(&self.rates, &found.load(blocks, near, lookup));
        let all = of(found.blocks, found.near);
        let chosen = |verdict, blocks| Choice { verdict, blocks, gain: all };
        let worth = |gain: Option<Gain>| gain.is_none_or(|g| g.above(self.margin));
        match all {
            None => chosen(Verdict::Learn, found.blocks),
            Some(gain) if gain.above(self.margin) => chosen(Verdict::Load, found.blocks),
            Some(_) if found.near_first > 0 && worth(of(found.near_first, found.near_first)) => {
                chosen(Verdict::Near, found.near_first)
            }
            Some(_) => chosen(Verdict::Compute, 0),
        }
    }

    /// Whether blocks that were not loaded are to be read for trial at `now` (seconds of any clock). If so,
    /// [`Loading::tried`] is told of it.
    #[must_use]
    pub fn try_now(&mut self, now: f64) -> bool {
        let due = now >= self.next_trial;
        if due {
            // If nothing is ever heard of it.
            self.next_trial = now + TRIAL_EVERY[1];
        }
        due
    }

    /// A trial read `bytes` from a tier in `seconds`. What was known of the tier is old, and forgotten;
    /// with no seconds the trial says nothing. The next one may begin after a multiple of its time.
    pub fn tried(&mut self, tier: Tier, bytes: u64, seconds: f64, now: f64) {
        let rate = Rate::of(bytes, seconds);
        if rate.samples() > 0 {
            *self.rates.tier_mut(tier) = rate;
            self.lookup = Rate::default();
        }
        let [least, most] = TRIAL_EVERY;
        self.next_trial = now + (seconds * TRIAL_SHARE).clamp(least, most);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn found(blocks: u64, near: u64, near_first: u64) -> Found {
        Found { block_tokens: 100, block_bytes: MIB, blocks, near, near_first }
    }

    /// Computes 1,000 tokens a second, moves 100 MiB from memory and 20 from disk: 100, 10 and 50 ms a block.
    fn learned(margin: f64) -> Loading {
        let mut loading = Loading::new(margin);
        loading.computed(1000, 1.0);
        loading.loaded([100 * MIB, 0, 0], 1.0, 0.02);
        loading.loaded([0, 20 * MIB, 0], 1.0, 0.02);
        loading
    }

    fn choice(loading: &Loading, found: &Found) -> (Verdict, u64) {
        let choice = loading.choose(found, 0.0);
        (choice.verdict, choice.blocks)
    }

    #[test]
    fn what_is_not_known_is_tried() {
        let mut loading = Loading::new(0.0);
        assert_eq!(choice(&loading, &found(4, 4, 4)), (Verdict::Learn, 4));
        loading.computed(1000, 1.0);
        loading.loaded([MIB, 0, 0], 10.0, 0.0);
        assert_eq!(choice(&loading, &found(4, 4, 4)), (Verdict::Compute, 0));
        assert_eq!(choice(&loading, &found(4, 3, 3)), (Verdict::Learn, 4), "the disk is not known");
        assert_eq!(loading.lookup(), 0.0);
    }

    #[test]
    fn what_is_loaded_sooner_is_loaded() {
        let loading = learned(0.0);
        assert_eq!(choice(&loading, &found(4, 4, 4)), (Verdict::Load, 4));
        assert_eq!(choice(&loading, &found(4, 0, 0)), (Verdict::Load, 4));
        let gain = loading.choose(&found(4, 1, 0), 0.0).gain.unwrap();
        assert!((gain.compute - 0.4).abs() < 1e-9 && (gain.lookup - 0.02).abs() < 1e-9);
        assert!((gain.transfer - 0.16).abs() < 1e-9);
        // 200 ms are gained from disk, less 20.
        assert_eq!(choice(&learned(0.17), &found(4, 0, 0)), (Verdict::Load, 4));
        assert_eq!(choice(&learned(0.19), &found(4, 0, 0)), (Verdict::Compute, 0));
        assert_eq!(choice(&learned(0.15), &found(4, 2, 2)).0, Verdict::Load);
        assert_eq!(loading.choose(&found(4, 0, 0), 0.1).verdict, Verdict::Load);
        assert_eq!(loading.choose(&found(4, 0, 0), 0.2).verdict, Verdict::Compute, "one is stuck");
    }

    #[test]
    fn of_a_slow_disk_only_what_is_in_memory_before_it_is_loaded() {
        let mut loading = learned(0.0);
        loading.loaded([0, MIB, 0], 10.0, 0.02);
        assert_eq!(choice(&loading, &found(4, 2, 2)), (Verdict::Near, 2));
        assert_eq!(choice(&loading, &found(4, 2, 0)), (Verdict::Compute, 0));
        assert_eq!(choice(&loading, &found(4, 4, 4)), (Verdict::Load, 4));
    }

    #[test]
    fn a_tier_that_gives_nothing_is_left_alone_until_a_trial_shows_otherwise() {
        let mut loading = learned(0.0);
        (0..3).for_each(|_| loading.stuck(Tier::Disk, 10.0));
        assert_eq!(choice(&loading, &found(4, 0, 0)), (Verdict::Compute, 0));
        assert!(loading.try_now(5.0), "the first trial is at once");
        assert!(!loading.try_now(64.9), "one at a time");
        loading.tried(Tier::Disk, 0, 2.0, 7.0);
        assert_eq!(choice(&loading, &found(4, 0, 0)), (Verdict::Compute, 0));
        assert!(!loading.try_now(22.9) && loading.try_now(23.0), "eight times as long as it took");
        loading.tried(Tier::Disk, 0, 0.0, 23.1);
        assert_eq!(choice(&loading, &found(4, 0, 0)), (Verdict::Compute, 0), "it says nothing");
        assert!(!loading.try_now(23.5) && loading.try_now(23.6));
        loading.tried(Tier::Disk, MIB, 0.05, 23.7);
        assert_eq!(
            choice(&loading, &found(4, 0, 0)),
            (Verdict::Load, 4),
            "one good trial is enough"
        );
        assert!(loading.try_now(1000.0) && loading.try_now(1060.0), "it was never heard of again");
    }

    proptest! {
        /// As every choice compared by its seconds.
        #[test]
        fn the_choice_is_the_one_that_takes_least_time(
            prefill in 1u64..100_000, host in 1u64..1 << 36, disk in 1u64..1 << 36, lookup in 0.0..1.0f64,
            blocks in 1u64..50, near in 0u64..50, first in 0u64..50,
        ) {
            let near = near.min(blocks);
            let first = if near == blocks { near } else { first.min(near) };
            let mut loading = Loading::new(0.0);
            loading.computed(prefill, 1.0);
            loading.loaded([host, 0, 0], 1.0, lookup);
            loading.loaded([0, disk, 0], 1.0, lookup);
            let lookup = loading.lookup();
            let compute = |n: u64| (n * 100) as f64 / prefill as f64;
            let move_ = |n: u64, rate: u64| (n * MIB) as f64 / rate as f64;
            let all = lookup + move_(near, host) + move_(blocks - near, disk);
            let near_only = lookup + move_(first, host) + compute(blocks - first);
            let none = compute(blocks);
            let close = |a: f64, b: f64| (a - b).abs() < 1e-9 * (a + b + lookup);
            prop_assume!(!close(all, none) && !close(near_only, none));
            let want = if all < none {
                Verdict::Load
            } else if first > 0 && near_only < none {
                Verdict::Near
            } else {
                Verdict::Compute
            };
            let choice = loading.choose(&found(blocks, near, first), 0.0);
            prop_assert_eq!(choice.verdict, want);
            let loaded = match want { Verdict::Near => first, Verdict::Compute => 0, _ => blocks };
            prop_assert_eq!(choice.blocks, loaded);
        }
    }
}
