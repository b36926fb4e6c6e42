//! Which pages stay near: replacement of frames, and when to write ahead.

/// Uses that a frame is credited with at most.
const USES_MAX: u8 = 3;
/// In place of a counter: named already in this call.
const NAMED: u8 = u8::MAX;

/// Replacement by a clock with small counters (GCLOCK): a use raises a frame's counter, the passing
/// hand lowers it, and what it finds at 0 leaves. Pages that many steps select outlast those that
/// one step selected; a step costs as much as it used. Deterministic.
///
/// Source: Smith, "Sequentiality and prefetching in database systems" (1978); Corbató's clock.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    uses: Vec<u8>,
    hand: usize,
}

impl Clock {
    /// Notes that a frame was used.
    pub fn used(&mut self, frame: usize) {
        if self.uses.len() <= frame {
            self.uses.resize(frame + 1, 0);
        }
        self.uses[frame] = (self.uses[frame] + 1).min(USES_MAX);
    }

    /// A frame holds something new: earlier uses were not of it.
    pub fn fresh(&mut self, frame: usize) {
        self.used(frame);
        self.uses[frame] = 1;
    }

    /// Up to `n` frames to leave, in the order found, each named once; only those that `may`.
    pub fn victims(&mut self, n: usize, mut may: impl FnMut(usize) -> bool) -> Vec<usize> {
        let mut victims = Vec::new();
        // Frames passed since the last that may leave: after a whole turn there is none.
        let mut idle = 0;
        while victims.len() < n && idle < self.uses.len() {
            let frame = self.hand;
            self.hand = (self.hand + 1) % self.uses.len();
            idle += 1;
            if self.uses[frame] == NAMED || !may(frame) {
                continue;
            }
            idle = 0;
            match self.uses[frame] {
                0 => {
                    self.uses[frame] = NAMED;
                    victims.push(frame);
                }
                uses => self.uses[frame] = uses - 1,
            }
        }
        victims.iter().for_each(|&frame| self.uses[frame] = 0);
        victims
    }
}

/// Whether finished pages should be written to the tier below before they must leave: when less than an
/// eighth of the budget is free. All of them then, not only as many as will leave next: a page that is
/// not written cannot give way to one that is used more.
#[must_use]
pub fn write_ahead(free: u64, budget: u64) -> bool {
    free < budget / 8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_used_often_outlasts_what_was_used_once() {
        let mut clock = Clock::default();
        (0..4).for_each(|f| clock.fresh(f));
        (0..3).for_each(|_| clock.used(2));
        assert_eq!(clock.victims(3, |_| true), [0, 1, 3]);
        assert_eq!(clock.victims(1, |f| f == 2), [2]);
        assert!(clock.victims(1, |_| false).is_empty());
        assert!(Clock::default().victims(1, |_| true).is_empty());
    }

    #[test]
    fn writing_ahead_starts_at_an_eighth() {
        assert!(write_ahead(124, 1000));
        assert!(!write_ahead(125, 1000));
    }

    proptest! {
        #[test]
        fn victims_are_allowed_distinct_and_as_many_as_there_are(
            uses in prop::collection::vec(0usize..60, 0..200), n in 0usize..70, odd in any::<bool>(),
        ) {
            let mut clock = Clock::default();
            uses.iter().for_each(|&f| clock.used(f));
            let mut twin = clock.clone();
            let may = |f: usize| !odd || f % 2 == 1;
            let victims = clock.victims(n, may);
            prop_assert_eq!(&victims, &twin.victims(n, may));
            let known = uses.iter().max().map_or(0, |m| m + 1);
            let allowed = (0..known).filter(|&f| may(f)).count();
            prop_assert_eq!(victims.len(), n.min(allowed));
            prop_assert!(victims.iter().all(|&f| may(f)));
            let mut sorted = victims.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), victims.len());
        }
    }
}
