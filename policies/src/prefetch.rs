//! Which pages the next layer and the next step will want.
//!
//! What a layer selected at one step it mostly selects again at the next; what came close may come
//! in. How far to trust the second is learned from how much of it was used.

/// What a head selected at its last step, by page number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recent {
    /// The pages read, ascending.
    pub selected: Vec<u32>,
    /// The best of those not read, best first.
    pub runners: Vec<u32>,
}

/// Pages worth bringing near, the most likely first: `(head, page)`.
///
/// `again` is the layer that attends next: what it selected last and no longer has, then the runners
/// of its heads in turn. Pages of which `near` says that they are there, or on their way, are left
/// out. `runners` bounds the guesses, `most` all.
#[must_use]
pub fn plan(
    heads: &[Recent],
    again: bool,
    runners: usize,
    most: usize,
    mut near: impl FnMut(usize, u32) -> bool,
) -> Vec<(usize, u32)> {
    let mut plan = Vec::new();
    if again {
        let all = heads.iter().enumerate();
        let missing = all.flat_map(|(h, r)| r.selected.iter().map(move |&p| (h, p)));
        plan.extend(missing.filter(|&(h, p)| !near(h, p)).take(most));
    }
    let depth = heads.iter().map(|r| r.runners.len()).max().unwrap_or(0);
    let guesses = (0..depth)
        .flat_map(|i| {
            heads.iter().enumerate().filter_map(move |(h, r)| Some((h, *r.runners.get(i)?)))
        })
        .filter(|&(h, p)| !near(h, p));
    let room = runners.min(most - plan.len());
    plan.extend(guesses.take(room));
    plan
}

/// How many guesses a step may make: more while they are mostly used, fewer while they are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    limit: usize,
    most: usize,
    used: u64,
    wasted: u64,
}

/// Outcomes after which the limit is set anew.
const WINDOW: u64 = 32;

impl Throttle {
    /// Starts with few; never more than `most`.
    #[must_use]
    pub fn new(most: usize) -> Throttle {
        Throttle { limit: most.min(4), most, used: 0, wasted: 0 }
    }

    /// Guesses allowed per step. At least one as long as any are allowed, so that it can learn.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Learns from the totals of what was used and what left unused.
    pub fn learn(&mut self, used: u64, wasted: u64) {
        let (good, bad) = (used.saturating_sub(self.used), wasted.saturating_sub(self.wasted));
        if good + bad < WINDOW {
            return;
        }
        (self.used, self.wasted) = (used, wasted);
        // A page read for nothing costs as much as one read in time gains, and room besides.
        if good >= 2 * bad {
            self.limit = (2 * self.limit).min(self.most);
        } else if good < bad {
            self.limit = (self.limit / 2).max(self.most.min(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recent(selected: &[u32], runners: &[u32]) -> Recent {
        Recent { selected: selected.to_vec(), runners: runners.to_vec() }
    }

    #[test]
    fn what_was_selected_comes_first_then_the_best_guesses_of_every_head() {
        let heads = [recent(&[0, 4, 9], &[7, 3]), recent(&[0, 5], &[2])];
        let near = |h: usize, p: u32| p == 0 || (h, p) == (0, 7);
        assert_eq!(plan(&heads, true, 9, 9, near), [(0, 4), (0, 9), (1, 5), (1, 2), (0, 3)]);
        assert_eq!(plan(&heads, false, 1, 9, near), [(1, 2)]);
        assert_eq!(plan(&heads, true, 9, 2, near), [(0, 4), (0, 9)]);
        assert!(plan(&[], true, 9, 9, near).is_empty());
    }

    #[test]
    fn guesses_grow_while_they_are_used_and_shrink_while_not() {
        let mut throttle = Throttle::new(64);
        assert_eq!(throttle.limit(), 4);
        throttle.learn(20, 0);
        assert_eq!(throttle.limit(), 4);
        throttle.learn(30, 2);
        assert_eq!(throttle.limit(), 8);
        (1..20).for_each(|i| throttle.learn(30, 2 + i * WINDOW));
        assert_eq!(throttle.limit(), 1);
        (1..20).for_each(|i| throttle.learn(30 + i * WINDOW, 1000));
        assert_eq!(throttle.limit(), 64);
        assert_eq!(Throttle::new(0).limit(), 0);
    }
}
