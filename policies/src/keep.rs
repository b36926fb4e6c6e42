//! The tokens that are read whatever the query says.

use std::ops::Range;

/// Sinks (first tokens) and window (most recent tokens).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// First tokens kept.
    pub sinks: usize,
    /// Most recent tokens kept.
    pub recent: usize,
}

impl Keep {
    /// The kept tokens of a sequence of `len` tokens whose tokens from `sealed` on have no summary
    /// yet and must be kept too: two disjoint ascending ranges.
    ///
    /// Everything between them is a candidate: each token is in exactly one of the three.
    #[must_use]
    pub fn ranges(&self, len: usize, sealed: usize) -> [Range<usize>; 2] {
        let recent = len.saturating_sub(self.recent).min(sealed.min(len));
        let sinks = self.sinks.min(recent);
        [0..sinks, recent..len]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_token_is_kept_or_a_candidate(
            sinks in 0usize..50, recent in 0usize..50, len in 0usize..200, sealed in 0usize..200,
        ) {
            let [a, b] = Keep { sinks, recent }.ranges(len, sealed);
            prop_assert!(a.end <= b.start && b.end == len);
            prop_assert!(a.len() + b.len() >= (sinks + recent).min(len));
            prop_assert!(b.start <= sealed);
        }
    }
}
