//! Which pages that attention reads from afar get a frame near it.

/// A page that is read and has no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Tokens of it that are read.
    pub tokens: u32,
    /// In how many steps in a row it has been read, this one included.
    pub steps: u32,
}

/// Which candidates to copy into frames; the others are read where they are.
///
/// As long as frames are free, all of them. A frame that is taken from a page which was not read lately goes
/// to one that will pay for its copy: at least half of whose `page_tokens` are read now, or that is read in
/// the second step in a row. Those that were read for longest come first, then those of which most is
/// read, then the earlier ones.
#[must_use]
pub fn admit(candidates: &[Candidate], page_tokens: u32, free: usize, idle: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    let rank = |&i: &usize| (candidates[i].steps, candidates[i].tokens);
    order.sort_by(|a, b| rank(b).cmp(&rank(a)).then(a.cmp(b)));
    let pays = |c: &Candidate| c.steps > 1 || 2 * u64::from(c.tokens) >= u64::from(page_tokens);
    let mut admitted = vec![false; candidates.len()];
    let (free_for, rest) = order.split_at(free.min(order.len()));
    let paying = rest.iter().filter(|&&i| pays(&candidates[i])).take(idle);
    free_for.iter().chain(paying).for_each(|&i| admitted[i] = true);
    admitted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(tokens: u32, steps: u32) -> Candidate {
        Candidate { tokens, steps }
    }

    #[test]
    fn free_frames_are_for_all_and_others_for_what_pays() {
        let candidates = [of(1, 1), of(40, 1), of(1, 3), of(32, 1), of(31, 1)];
        assert_eq!(admit(&candidates, 64, 5, 0), [true; 5]);
        assert_eq!(admit(&candidates, 64, 0, 0), [false; 5]);
        assert_eq!(admit(&candidates, 64, 0, 9), [false, true, true, true, false]);
        assert_eq!(admit(&candidates, 64, 0, 2), [false, true, true, false, false]);
        assert_eq!(admit(&candidates, 64, 1, 1), [false, true, true, false, false]);
        assert_eq!(admit(&[], 64, 1, 1), [false; 0]);
        assert_eq!(admit(&[of(0, 0)], 0, 0, 1), [true], "half of nothing");
    }

    proptest! {
        #[test]
        fn never_more_than_there_is_room_for(
            candidates in prop::collection::vec((0u32..70, 1u32..4), 0..40),
            free in 0usize..50, idle in 0usize..50,
        ) {
            let candidates: Vec<Candidate> = candidates.into_iter().map(|(t, s)| of(t, s)).collect();
            let admitted = admit(&candidates, 64, free, idle);
            let n = admitted.iter().filter(|&&a| a).count();
            prop_assert!(n <= free + idle && n >= free.min(candidates.len()));
            // What would pay stays out only where there is no room.
            for (admitted, c) in admitted.iter().zip(&candidates) {
                let pays = c.steps > 1 || c.tokens >= 32;
                prop_assert!(*admitted || !pays || n == free + idle);
            }
        }
    }
}
