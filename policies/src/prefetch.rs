//! Which pages the next layer and the next step will want.
//!
//! What a layer selected at one step it mostly selects again at the next; what came close may come
//! in. How much is read on such guesses follows from how many of them were right.

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

/// Guesses used for each that may be wasted: below that, reading ahead drives out more than it brings.
pub const USED_PER_WASTED: u64 = 5;
/// Pages read because they were asked for, for each guess that may be wasted, so that times in which
/// guesses are right are noticed.
pub const ASKED_PER_WASTED: u64 = 50;

/// What a page that was asked for pays, what a used guess pays more than its price, and the price.
const ASKED: u64 = USED_PER_WASTED;
const USED: u64 = ASKED_PER_WASTED;
const PRICE: u64 = USED_PER_WASTED * ASKED_PER_WASTED;

/// What guesses may cost, as an account. A guess is paid when it is sent, and paid back with a little
/// more when it is used; pages that were asked for pay a little. So the guesses that were not used,
/// whether they left or are still there, are at most one for [`USED_PER_WASTED`] that were and one for
/// [`ASKED_PER_WASTED`] pages asked for, ever; and those that are right go on without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// A guess costs `PRICE`.
    credit: u64,
    /// Guesses that credit is kept for.
    most: u64,
    asked: u64,
    used: u64,
}

impl Account {
    /// Empty; never holds more than `most` pages, so that good times do not pay for many bad guesses.
    #[must_use]
    pub fn new(most: usize) -> Account {
        Account { credit: 0, most: most as u64, asked: 0, used: 0 }
    }

    /// Pages that may be sent for now.
    #[must_use]
    pub fn pages(&self) -> usize {
        (self.credit / PRICE) as usize
    }

    /// Those of them that may be mere guesses: half of what it can hold is for what was selected before.
    #[must_use]
    pub fn guesses(&self) -> usize {
        self.pages().saturating_sub(self.most as usize / 2)
    }

    /// Pays for pages that are sent for, at most [`Account::pages`].
    pub fn send(&mut self, pages: usize) {
        self.credit = self.credit.saturating_sub(pages as u64 * PRICE);
    }

    /// Learns the totals so far: pages read because they were asked for, and guessed ones used.
    pub fn learn(&mut self, asked: u64, used: u64) {
        let new = |now: u64, then: &mut u64| now.saturating_sub(std::mem::replace(then, now));
        let (asked, used) = (new(asked, &mut self.asked), new(used, &mut self.used));
        let credit = self.credit + asked * ASKED + used * (PRICE + USED);
        self.credit = credit.min(self.most * PRICE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn right_guesses_go_on_for_ever_and_wrong_ones_are_few() {
        let mut account = Account::new(10);
        assert_eq!((account.pages(), account.guesses()), (0, 0));
        account.learn(300, 0);
        assert_eq!((account.pages(), account.guesses()), (6, 1));
        let mut used = 0;
        for _ in 0..100 {
            account.send(6);
            used += 5;
            account.learn(300, used);
            assert_eq!(account.pages(), 6, "paid back, the wasted one too");
        }
        let mut sent = 0;
        for asked in 300..1300 {
            account.learn(asked, used);
            sent += account.pages();
            account.send(account.pages());
        }
        assert_eq!(sent, 6 + 1000 / 50 - 1, "what was kept, and what was earned");
        assert_eq!(Account::new(0).pages(), 0);
    }

    proptest! {
        /// Steps: pages asked for, guesses wished for, and how many of those on their way get used.
        #[test]
        fn what_is_not_used_stays_below_its_share(
            steps in prop::collection::vec((0u64..40, 0usize..40, 0u64..40), 0..100), most in 0usize..50,
        ) {
            let mut account = Account::new(most);
            let (mut asked, mut used, mut sent) = (0, 0, 0);
            for (ask, wish, hit) in steps {
                asked += ask;
                used += hit.min(sent - used);
                account.learn(asked, used);
                let n = wish.min(account.pages());
                account.send(n);
                sent += n as u64;
                prop_assert!((sent - used) * PRICE <= asked * ASKED + used * USED);
                prop_assert!(account.guesses() <= account.pages() && account.pages() <= most);
            }
        }

        /// While nothing is lost to the bound, an account is what came in less what went out.
        #[test]
        fn an_account_is_a_sum(steps in prop::collection::vec((0u64..9, 0usize..9, 0u64..9), 0..50)) {
            let mut account = Account::new(1 << 20);
            let (mut asked, mut used, mut sent) = (0, 0, 0);
            for (ask, wish, hit) in steps {
                (asked, used) = (asked + ask, used + hit.min(sent - used));
                account.learn(asked, used);
                let sum = asked * ASKED + used * (USED + PRICE) - sent * PRICE;
                prop_assert_eq!(account.pages() as u64, sum / PRICE);
                let n = wish.min(account.pages());
                account.send(n);
                sent += n as u64;
            }
        }
    }
}
