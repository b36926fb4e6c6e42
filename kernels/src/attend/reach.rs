//! The tokens that a unit reads out of its list, as ascending runs.
//!
//! Rows of a unit may want different tokens. The unit then walks over the union, and each run says
//! who wants it.

use std::ops::Range;

use crate::arch::TILE;

/// Consecutive tokens of a list that the same rows want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// First token, as an index into the list.
    token: u32,
    /// Tokens of the runs before this one.
    at: u32,
    /// One bit for each of the unit's lists.
    who: u64,
}

/// Runs in ascending order, and one more that marks the end.
#[derive(Debug)]
pub(super) struct Reach {
    runs: Vec<Run>,
}

/// The part of a run that lies in a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// First token, as an index into the list.
    pub(super) token: usize,
    pub(super) len: usize,
    pub(super) who: u64,
}

impl Reach {
    /// Reads nothing.
    pub(super) fn new() -> Reach {
        let mut reach = Reach { runs: Vec::new() };
        reach.clear();
        reach
    }

    /// Forgets all runs.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.runs.push(Run { token: u32::MAX, at: 0, who: 0 });
    }

    /// The first `len` tokens of the list, for everybody.
    pub(super) fn all(&mut self, len: usize) {
        self.clear();
        self.push(0..len, u64::MAX);
    }

    /// Adds tokens behind those there are.
    pub(super) fn push(&mut self, tokens: Range<usize>, who: u64) {
        if tokens.is_empty() || who == 0 {
            return;
        }
        let Some(end) = self.runs.pop() else { return };
        let joins =
            |run: &Run| run.who == who && (run.token + (end.at - run.at)) as usize == tokens.start;
        if !self.runs.last().is_some_and(joins) {
            self.runs.push(Run { token: tokens.start as u32, at: end.at, who });
        }
        self.runs.push(Run { at: end.at + tokens.len() as u32, ..end });
    }

    /// Tokens read.
    pub(super) fn len(&self) -> usize {
        self.runs.last().map_or(0, |end| end.at as usize)
    }

    /// How many tokens are read that lie before token `index` of the list.
    pub(super) fn rank(&self, index: usize) -> usize {
        let after = self.runs.partition_point(|run| (run.token as usize) < index);
        let Some(run) = after.checked_sub(1).map(|i| self.runs[i]) else { return 0 };
        let end = self.runs.get(after).map_or(run.at, |next| next.at);
        (run.at as usize + index - run.token as usize).min(end as usize)
    }

    /// The pieces of tile `index`, in order.
    pub(super) fn pieces(&self, index: usize) -> impl Iterator<Item = Piece> + '_ {
        let tile = index * TILE..((index + 1) * TILE).min(self.len());
        let after = self.runs.partition_point(|run| run.at as usize <= tile.start);
        let from = after.saturating_sub(1);
        let pairs = self.runs[from..].windows(2).take_while(move |w| (w[0].at as usize) < tile.end);
        pairs.map(move |w| {
            let (at, end) = ((w[0].at as usize).max(tile.start), (w[1].at as usize).min(tile.end));
            let token = w[0].token as usize + at - w[0].at as usize;
            Piece { token, len: end - at, who: w[0].who }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The tokens of all tiles with who wants them.
    fn tokens(reach: &Reach) -> Vec<(usize, u64)> {
        let tiles = 0..reach.len().div_ceil(TILE);
        let pieces = tiles.flat_map(|i| reach.pieces(i).collect::<Vec<_>>());
        pieces.flat_map(|p| (p.token..p.token + p.len).map(move |t| (t, p.who))).collect()
    }

    #[test]
    fn nothing_has_no_pieces() {
        let reach = Reach::new();
        assert_eq!((reach.len(), reach.rank(7), reach.pieces(0).count()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn pieces_are_the_runs_in_order(
            parts in prop::collection::vec((0usize..90, 0usize..90, 0u64..4), 0..30),
        ) {
            let mut reach = Reach::new();
            let (mut at, mut want) = (0, Vec::new());
            for (gap, len, who) in parts {
                at += gap;
                reach.push(at..at + len, who);
                want.extend((at..at + len).filter(|_| who != 0).map(|t| (t, who)));
                at += len;
            }
            prop_assert_eq!(reach.len(), want.len());
            for i in 0..=at {
                prop_assert_eq!(reach.rank(i), want.iter().filter(|w| w.0 < i).count());
            }
            for i in 0..reach.len().div_ceil(TILE) {
                let n: usize = reach.pieces(i).map(|p| p.len).sum();
                prop_assert_eq!(n, (want.len() - i * TILE).min(TILE));
            }
            prop_assert_eq!(tokens(&reach), want);
        }
    }
}
