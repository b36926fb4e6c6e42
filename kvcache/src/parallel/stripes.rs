//! Where the tokens of a sequence are that lie in several caches: in stripes, dealt out in turns.

use std::ops::Range;

/// How positions are dealt out: stripe `s` of `tokens` positions belongs to part `s % parts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stripes {
    pub(super) parts: usize,
    pub(super) tokens: usize,
}

impl Stripes {
    /// The part that has a position.
    pub(super) fn part_of(&self, position: usize) -> usize {
        position / self.tokens % self.parts
    }

    /// How many of the first `len` positions a part has.
    pub(super) fn count(&self, part: usize, len: usize) -> usize {
        let (full, rest) = (len / self.tokens, len % self.tokens);
        let whole = full / self.parts + usize::from(full % self.parts > part);
        whole * self.tokens + if full % self.parts == part { rest } else { 0 }
    }

    /// The position of a part's `local`-th token.
    pub(super) fn position(&self, part: usize, local: usize) -> usize {
        let (stripe, offset) = (local / self.tokens, local % self.tokens);
        (stripe * self.parts + part) * self.tokens + offset
    }

    /// A range of positions, cut where stripes end.
    pub(super) fn cut(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (stripes, mut from) = (*self, range.start);
        std::iter::from_fn(move || {
            let end = range.end.min((from / stripes.tokens + 1) * stripes.tokens);
            let piece = from..end;
            from = end;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_position_is_in_one_part_in_order(
            parts in 1usize..6,
            tokens in 1usize..9,
            len in 0usize..200,
        ) {
            let stripes = Stripes { parts, tokens };
            let mut counts = vec![0; parts];
            for position in 0..len {
                let part = stripes.part_of(position);
                prop_assert_eq!(stripes.position(part, counts[part]), position);
                counts[part] += 1;
            }
            let counted: Vec<usize> = (0..parts).map(|part| stripes.count(part, len)).collect();
            prop_assert_eq!(counted, counts);
        }

        #[test]
        fn pieces_follow_each_other_and_stay_in_a_stripe(
            parts in 1usize..6,
            tokens in 1usize..9,
            from in 0usize..50,
            len in 0usize..50,
        ) {
            let stripes = Stripes { parts, tokens };
            let mut at = from;
            for piece in stripes.cut(from..from + len) {
                prop_assert_eq!(piece.start, at);
                prop_assert!(!piece.is_empty());
                prop_assert_eq!(piece.start / tokens, (piece.end - 1) / tokens);
                at = piece.end;
            }
            prop_assert_eq!(at, from + len);
        }
    }
}
