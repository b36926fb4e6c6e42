//! Sharing a number of tokens over heads.

/// Splits `total` over heads in proportion to their `shares`, none below `least`, to the token: the sum is
/// `total` exactly. `total` must be at least `least` for every head, and shares finite and above 0.
pub(super) fn apportion(total: usize, shares: &[f64], least: usize) -> Vec<usize> {
    if shares.is_empty() {
        return Vec::new();
    }
    // Heads that would get less than the least get that; the others share what is left, less than before.
    let mut floored = vec![false; shares.len()];
    let scale = loop {
        let (mut sum, mut left) = (0.0, total as f64);
        for (share, floored) in shares.iter().zip(&floored) {
            if *floored {
                left -= least as f64;
            } else {
                sum += share;
            }
        }
        let scale = left / sum;
        let mut settled = true;
        for (share, floored) in shares.iter().zip(&mut floored) {
            if !*floored && share * scale < least as f64 {
                (*floored, settled) = (true, false);
            }
        }
        // With all at the least there is nothing left to share.
        if settled || floored.iter().all(|f| *f) {
            break scale;
        }
    };
    let want = |i: usize| if floored[i] { least as f64 } else { shares[i] * scale };
    let mut tokens: Vec<usize> = (0..shares.len()).map(|i| (want(i) as usize).max(least)).collect();
    settle(&mut tokens, total, least, want);
    tokens
}

/// Gives out or takes back, token by token, what rounding down has left or left over: to those who got
/// least of what they want first, the lower number among equals.
fn settle(tokens: &mut [usize], total: usize, least: usize, want: impl Fn(usize) -> f64) {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    let short: Vec<f64> = order.iter().map(|&i| want(i) - tokens[i] as f64).collect();
    order.sort_by(|&a, &b| short[b].total_cmp(&short[a]).then(a.cmp(&b)));
    let sum: usize = tokens.iter().sum();
    for i in order.iter().cycle().take(total.saturating_sub(sum)) {
        tokens[*i] += 1;
    }
    let mut over = sum.saturating_sub(total);
    for &i in order.iter().rev() {
        let back = over.min(tokens[i] - least);
        tokens[i] -= back;
        over -= back;
    }
}

/// What a head misses by the tokens it reads: falling and convex from point to point.
#[derive(Clone, Debug)]
pub(super) struct Curve(Vec<(usize, f64)>);

impl Curve {
    /// The lower convex hull of measured points, which must ascend in tokens; at least one.
    pub(super) fn hull(points: &[(usize, f64)]) -> Curve {
        let mut hull: Vec<(usize, f64)> = Vec::new();
        for &(tokens, missed) in points {
            // More tokens never miss more: what looks so is noise of the measurement.
            let missed = hull.last().map_or(missed, |last| missed.min(last.1));
            let next = (tokens, missed);
            while let [.., a, b] = hull[..]
                && gain(a, b) <= gain(b, next)
            {
                hull.pop();
            }
            hull.push(next);
        }
        Curve(hull)
    }

    fn first(&self) -> usize {
        self.0.first().map_or(0, |p| p.0)
    }
}

/// Mass gained per token between two points.
fn gain(a: (usize, f64), b: (usize, f64)) -> f64 {
    (a.1 - b.1) / (b.0 - a.0) as f64
}

/// Splits `total` tokens over heads so that the mass missed in all is least: each token goes where it gains
/// most (water-filling; optimal since the curves are convex), the lower number among equals. Every head gets
/// at least its curve's first point; `None` if `total` does not pay for these. The sum is `total` exactly.
pub(super) fn fill(curves: &[Curve], total: usize) -> Option<Vec<usize>> {
    let mut tokens: Vec<usize> = curves.iter().map(Curve::first).collect();
    let mut left = total.checked_sub(tokens.iter().sum())?;
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (head, curve) in curves.iter().enumerate() {
        let of_head = curve.0.windows(2).map(|p| (gain(p[0], p[1]), head, p[1].0 - p[0].0));
        steps.extend(of_head);
    }
    // Stable: a head's own steps stay in order, as their gains fall.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    for (_, head, wide) in steps {
        let taken = wide.min(left);
        tokens[head] += taken;
        left -= taken;
    }
    // Everything is read: what is left changes nothing, and belongs to all.
    let n = tokens.len().max(1);
    for (i, t) in tokens.iter_mut().enumerate() {
        *t += left / n + usize::from(i < left % n);
    }
    (!curves.is_empty() || total == 0).then_some(tokens)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_shares_are_equal_budgets() {
        assert_eq!(apportion(30, &[1.0, 1.0, 1.0], 5), [10, 10, 10]);
        assert_eq!(apportion(31, &[1.0, 1.0, 1.0], 5), [11, 10, 10]);
        assert_eq!(apportion(30, &[0.01, 1.0, 1.0], 5), [5, 13, 12]);
        assert_eq!(apportion(15, &[9.0, 1.0, 1.0], 5), [5, 5, 5]);
        assert!(apportion(15, &[], 5).is_empty());
    }

    #[test]
    fn noise_and_dents_are_smoothed() {
        let points = |p: &[(usize, f64)]| Curve::hull(p).0;
        assert_eq!(points(&[(1, 0.5), (2, 0.6), (3, 0.1)]), [(1, 0.5), (3, 0.1)]);
        assert_eq!(points(&[(1, 0.5), (2, 0.4), (3, 0.3)]), [(1, 0.5), (3, 0.3)]);
        assert_eq!(points(&[(7, 0.5)]), [(7, 0.5)]);
        assert_eq!(fill(&[Curve::hull(&[(7, 0.5)])], 9), Some(vec![9]));
        assert_eq!(fill(&[Curve::hull(&[(7, 0.5)])], 6), None);
        assert_eq!(fill(&[], 0), Some(vec![]));
        assert_eq!(fill(&[], 1), None);
    }

    /// Heads with a falling, convex curve from 10 tokens on.
    fn curves() -> impl Strategy<Value = Vec<Curve>> {
        let curve = prop::collection::vec((1usize..40, 0.0f64..1.0), 1..8).prop_map(|steps| {
            let mut points = vec![(10, 8.0)];
            for (wide, drop) in steps {
                let last = points[points.len() - 1];
                points.push((last.0 + wide, last.1 - drop));
            }
            Curve::hull(&points)
        });
        prop::collection::vec(curve, 1..12)
    }

    fn missed(curve: &Curve, tokens: usize) -> f64 {
        let points = &curve.0;
        let last = points[points.len() - 1];
        let pair = points.windows(2).find(|p| tokens <= p[1].0);
        pair.map_or(last.1, |p| p[0].1 - gain(p[0], p[1]) * (tokens - p[0].0) as f64)
    }

    proptest! {
        #[test]
        fn apportioned_tokens_sum_up_and_follow_the_shares(
            shares in prop::collection::vec(1e-6f64..1e6, 1..60),
            least in 0usize..100,
            more in 0usize..10_000,
        ) {
            let total = least * shares.len() + more;
            let tokens = apportion(total, &shares, least);
            prop_assert_eq!(tokens.iter().sum::<usize>(), total);
            prop_assert!(tokens.iter().all(|&t| t >= least));
            for (a, x) in shares.iter().zip(&tokens) {
                for (b, y) in shares.iter().zip(&tokens) {
                    prop_assert!(a <= b || x + 1 >= *y, "a larger share never gets less, but for rounding");
                }
            }
            prop_assert_eq!(apportion(total, &shares, least), tokens);
        }

        /// No token could gain more elsewhere; a larger budget takes nothing away from anybody.
        #[test]
        fn water_fills_where_it_gains_most(curves in curves(), more in 0usize..600) {
            let total = 10 * curves.len() + more;
            let tokens = fill(&curves, total).unwrap();
            prop_assert_eq!(tokens.iter().sum::<usize>(), total);
            prop_assert!(tokens.iter().all(|&t| t >= 10));
            let larger = fill(&curves, total + 7).unwrap();
            prop_assert!(tokens.iter().zip(&larger).all(|(a, b)| a <= b));
            for (i, from) in curves.iter().enumerate().filter(|(i, _)| tokens[*i] > 10) {
                let lost = missed(from, tokens[i] - 1) - missed(from, tokens[i]);
                for (to, &has) in curves.iter().zip(&tokens) {
                    let won = missed(to, has) - missed(to, has + 1);
                    prop_assert!(won <= lost + 1e-9, "{won} could be had for {lost}");
                }
            }
        }
    }
}
