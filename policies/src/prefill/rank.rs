//! Order among scores.

use std::cmp::Ordering;

/// Larger scores first, equal ones by their number. No NaN.
fn before(scores: &[f32], a: u32, b: u32) -> Ordering {
    let (x, y) = (scores[a as usize], scores[b as usize]);
    y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

/// Numbers of the best scores, ascending: those that are `always` taken, all that are NaN, and of the
/// others as many as bring the count to `k`.
pub(super) fn best(scores: &[f32], k: usize, always: impl Fn(u32) -> bool) -> Vec<u32> {
    let is_kept = |&i: &u32| scores[i as usize].is_nan() || always(i);
    let (mut kept, mut rest): (Vec<u32>, Vec<u32>) = (0..scores.len() as u32).partition(is_kept);
    let more = k.saturating_sub(kept.len()).min(rest.len());
    if (1..rest.len()).contains(&more) {
        rest.select_nth_unstable_by(more - 1, |&a, &b| before(scores, a, b));
    }
    kept.extend(&rest[..more]);
    kept.sort_unstable();
    kept
}

/// All numbers, best score first; NaN before all others.
pub(super) fn order(scores: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..scores.len() as u32).collect();
    let nan = |&i: &u32| scores[i as usize].is_nan();
    ids.sort_unstable_by(|a, b| match (nan(a), nan(b)) {
        (false, false) => before(scores, *a, *b),
        (a_nan, b_nan) => b_nan.cmp(&a_nan).then(a.cmp(b)),
    });
    ids
}

/// The fewest scores whose sum is `share` of that of all; those that are NaN are taken first and count
/// nothing. Scores are not negative.
pub(super) fn fewest(scores: &[f32], share: f32) -> usize {
    let value = |&i: &u32| f64::from(scores[i as usize]);
    let order = order(scores);
    let known = |i: &&u32| !value(i).is_nan();
    let target = f64::from(share) * order.iter().filter(known).map(value).sum::<f64>();
    let mut left = target;
    let mut taken = order.iter().filter(|i| value(i).is_nan()).count();
    for i in order.iter().filter(known) {
        if left <= 0.0 {
            break;
        }
        left -= value(i);
        taken += 1;
    }
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::numbers;
    use super::*;

    #[test]
    fn ties_go_to_the_lower_number() {
        let scores = [1.0, 3.0, 1.0, f32::NAN, 3.0, -0.0, 0.0];
        assert_eq!(order(&scores), [3, 1, 4, 0, 2, 5, 6]);
        assert_eq!(best(&scores, 3, |_| false), [1, 3, 4]);
        assert_eq!(best(&scores, 4, |i| i >= 5), [1, 3, 5, 6]);
        assert_eq!(best(&scores, 2, |i| i < 3 || i == 5), [0, 1, 2, 3, 5]);
        assert_eq!((fewest(&scores, 0.75), fewest(&scores, 1.0), fewest(&[], 0.5)), (3, 5, 0));
    }

    proptest! {
        #[test]
        fn best_is_the_head_of_the_order(len in 0usize..200, seed in any::<u64>(), k in 0usize..210) {
            let scores = numbers(len, seed, true);
            let nans = scores.iter().filter(|x| x.is_nan()).count();
            let mut want = order(&scores)[..k.max(nans).min(len)].to_vec();
            want.sort_unstable();
            prop_assert_eq!(best(&scores, k, |_| false), want);
        }

        #[test]
        fn fewest_reaches_its_share_and_no_earlier(len in 1usize..100, seed in any::<u64>(), share in 0.01f32..1.0) {
            let scores = numbers(len, seed, false);
            let order = order(&scores);
            let sum = |n: usize| order[..n].iter().map(|&i| f64::from(scores[i as usize])).sum::<f64>();
            let (n, target) = (fewest(&scores, share), f64::from(share) * sum(len));
            prop_assert!(sum(n) >= target - 1e-9);
            prop_assert!(n == 0 || sum(n - 1) < target + 1e-9);
        }
    }
}
