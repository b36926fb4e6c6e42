//! The arithmetic of the certificate: which tokens to read so that every query head's missed
//! softmax mass is provably small. Masses are relative to one reference per head, sums in f64.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Upper bound of the missed share: `unread / (unread + read)`, where `unread` bounds the mass not
/// read from above and `read` the mass read from below. 0 where nothing is unread; 1 where that
/// cannot be said (a NaN or infinite bound).
#[must_use]
pub fn missed_share(unread: f64, read: f64) -> f64 {
    if unread == 0.0 {
        return 0.0;
    }
    let share = unread / (unread + read);
    // A hair upwards: the quotient itself is rounded.
    if share.is_finite() { (share * (1.0 + 4.0 * f64::EPSILON)).min(1.0) } else { 1.0 }
}

/// Chooses few tokens that together bring every head's coverage to its need.
///
/// `mass` is `[heads][tokens]`; `need[h]` is the mass head `h` still wants (at most 0: nothing).
/// Tokens are taken by their worth to the heads not yet satisfied (each head's need weighs the
/// same), and those that turn out superfluous are put back. At most `max` tokens. Returns ascending
/// token numbers. Tokens with a NaN mass are taken first.
#[must_use]
pub fn fewest(mass: &[Vec<f64>], need: &[f64], max: usize) -> Vec<u32> {
    let tokens = mass.first().map_or(0, Vec::len);
    let mut left = need.to_vec();
    let mut chosen: Vec<u32> = Vec::new();
    let mut open: Vec<u32> = (0..tokens as u32).collect();
    while left.iter().any(|&n| n > 0.0) && chosen.len() < max && !open.is_empty() {
        let worth = |t: u32| -> f64 {
            let of_head =
                |(m, &n): (&Vec<f64>, &f64)| if n > 0.0 { m[t as usize] / n } else { 0.0 };
            let w: f64 = mass.iter().zip(&left).map(of_head).sum();
            if w.is_nan() { f64::INFINITY } else { w }
        };
        let mut ranked: BinaryHeap<Ranked> = open.iter().map(|&t| Ranked(worth(t), t)).collect();
        // Until the first head is satisfied; then the rest are ranked anew.
        let satisfied = left.iter().filter(|&&n| n <= 0.0).count();
        while chosen.len() < max && left.iter().filter(|&&n| n <= 0.0).count() == satisfied {
            let Some(Ranked(_, t)) = ranked.pop() else { break };
            chosen.push(t);
            for (n, m) in left.iter_mut().zip(mass) {
                *n -= if m[t as usize].is_nan() { 0.0 } else { m[t as usize] };
            }
        }
        open = ranked.into_iter().map(|r| r.1).collect();
    }
    put_back(mass, &mut left, &mut chosen);
    chosen.sort_unstable();
    chosen
}

/// A token by its worth, then by its number, lower ones first.
#[derive(PartialEq)]
struct Ranked(f64, u32);

impl Eq for Ranked {}

impl Ord for Ranked {
    fn cmp(&self, other: &Ranked) -> Ordering {
        self.0.total_cmp(&other.0).then(other.1.cmp(&self.1))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Ranked) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Drops chosen tokens, the last first, whose mass no head needs.
fn put_back(mass: &[Vec<f64>], left: &mut [f64], chosen: &mut Vec<u32>) {
    for i in (0..chosen.len()).rev() {
        let t = chosen[i] as usize;
        if left.iter().zip(mass).all(|(&n, m)| n + m[t] <= 0.0) {
            left.iter_mut().zip(mass).for_each(|(n, m)| *n += m[t]);
            chosen.swap_remove(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_at_the_edges() {
        assert_eq!(missed_share(0.0, 0.0), 0.0);
        assert_eq!(missed_share(1.0, 0.0), 1.0);
        assert_eq!(missed_share(f64::NAN, 1.0), 1.0);
        assert_eq!(missed_share(f64::INFINITY, 1.0), 1.0);
        assert!(missed_share(1.0, 3.0) >= 0.25);
    }

    proptest! {
        #[test]
        fn needs_are_met_and_nothing_chosen_is_superfluous(
            mass in prop::collection::vec(prop::collection::vec(0.0f64..1.0, 30), 1..5),
            share in 0.0f64..1.0,
        ) {
            let need: Vec<f64> = mass.iter().map(|m| share * m.iter().sum::<f64>() * 0.999).collect();
            let chosen = fewest(&mass, &need, usize::MAX);
            prop_assert!(chosen.windows(2).all(|w| w[0] < w[1]));
            let covered = |skip: Option<u32>| mass.iter().zip(&need).all(|(m, &n)| {
                let sum: f64 = chosen.iter().filter(|&&t| Some(t) != skip).map(|&t| m[t as usize]).sum();
                sum >= n - 1e-9
            });
            prop_assert!(covered(None));
            for &t in &chosen {
                let slack = mass.iter().zip(&need).all(|(m, &n)| {
                    let sum: f64 = chosen.iter().filter(|&&x| x != t).map(|&x| m[x as usize]).sum();
                    sum >= n + 1e-9
                });
                prop_assert!(!slack, "token {t} could be put back");
            }
        }
    }
}
