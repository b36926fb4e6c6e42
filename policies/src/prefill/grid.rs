//! How queries and keys are cut into blocks.

use std::ops::Range;

use crate::Error;

/// How a sequence's queries and keys are cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub(super) queries: usize,
    pub(super) keys: usize,
    /// The key that stands where the first query stands.
    pub(super) first: usize,
    pub(super) query_block: usize,
    pub(super) key_block: usize,
    pub(super) causal: bool,
}

impl Grid {
    /// A prompt whose `queries` are the last of its `keys`: each sees the keys up to its own.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are more queries than keys, or a block is empty.
    pub fn causal(
        queries: usize,
        keys: usize,
        query_block: usize,
        key_block: usize,
    ) -> Result<Grid, Error> {
        if queries > keys {
            return Err(Error::setting(
                "prefill",
                "queries",
                format!("at most {keys} keys"),
                queries,
            ));
        }
        let first = keys - queries;
        Grid { queries, keys, first, query_block, key_block, causal: true }.checked()
    }

    /// Queries that all see all keys, as in diffusion language models. The queries are the last of the
    /// keys, too.
    ///
    /// # Errors
    /// As [`Grid::causal`].
    pub fn bidirectional(
        queries: usize,
        keys: usize,
        query_block: usize,
        key_block: usize,
    ) -> Result<Grid, Error> {
        Ok(Grid { causal: false, ..Grid::causal(queries, keys, query_block, key_block)? })
    }

    fn checked(self) -> Result<Grid, Error> {
        for (setting, n) in [("query_block", self.query_block), ("key_block", self.key_block)] {
            if n == 0 {
                return Err(Error::setting("prefill", setting, "at least 1", n));
            }
        }
        if u32::try_from(self.keys).is_err() {
            return Err(Error::setting("prefill", "keys", "below 2^32", self.keys));
        }
        Ok(self)
    }

    /// Query blocks; the last one may be shorter.
    #[must_use]
    pub fn query_blocks(&self) -> usize {
        self.queries.div_ceil(self.query_block)
    }

    /// Key blocks; the last one may be shorter.
    #[must_use]
    pub fn key_blocks(&self) -> usize {
        self.keys.div_ceil(self.key_block)
    }

    /// Tokens of a key block.
    #[must_use]
    pub fn key_block(&self) -> usize {
        self.key_block
    }

    /// Keys.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// The keys that stand where the queries of a block stand.
    #[must_use]
    pub fn tokens(&self, query_block: usize) -> Range<usize> {
        let at = |q: usize| self.first + q.min(self.queries);
        at(query_block * self.query_block)..at((query_block + 1) * self.query_block)
    }

    /// Key blocks of which any query of a block sees a token: the first so many.
    #[must_use]
    pub fn visible(&self, query_block: usize) -> usize {
        let end = if self.causal { self.tokens(query_block).end } else { self.keys };
        end.div_ceil(self.key_block)
    }

    /// The key blocks that hold a query block's own tokens; none without a causal mask, where they are
    /// nothing special.
    #[must_use]
    pub fn own(&self, query_block: usize) -> Range<u32> {
        let tokens = self.tokens(query_block);
        if !self.causal || tokens.is_empty() {
            return 0..0;
        }
        (tokens.start / self.key_block) as u32..tokens.end.div_ceil(self.key_block) as u32
    }

    /// Checks that there are as many numbers as `rows` times the query blocks times `width`.
    pub(super) fn expect(
        &self,
        policy: &'static str,
        what: &'static str,
        len: usize,
        rows: usize,
        width: usize,
    ) -> Result<(), Error> {
        let want = rows * self.query_blocks() * width;
        if len == want {
            return Ok(());
        }
        let blocks = self.query_blocks();
        let expected = format!("{rows} x {blocks} x {width} = {want} numbers");
        Err(Error::setting(policy, what, expected, len))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::grids;
    use super::*;

    #[test]
    fn grids_that_make_no_sense_are_named() {
        let text = |grid: Result<Grid, Error>| grid.unwrap_err().to_string();
        assert_eq!(
            text(Grid::causal(5, 4, 1, 1)),
            "prefill: queries must be at most 4 keys, found 5"
        );
        assert_eq!(
            text(Grid::causal(4, 4, 0, 1)),
            "prefill: query_block must be at least 1, found 0"
        );
        let zero = Grid::bidirectional(4, 4, 1, 0);
        assert_eq!(text(zero), "prefill: key_block must be at least 1, found 0");
    }

    proptest! {
        #[test]
        fn query_blocks_see_their_own_keys_and_no_later_ones(grid in grids()) {
            let mut at = grid.first;
            for row in 0..grid.query_blocks() {
                let tokens = grid.tokens(row);
                prop_assert_eq!(tokens.start, at);
                prop_assert!(!tokens.is_empty());
                at = tokens.end;
                let (own, visible) = (grid.own(row), grid.visible(row));
                prop_assert!(visible <= grid.key_blocks());
                if grid.causal {
                    prop_assert!(own.start as usize * grid.key_block <= tokens.start);
                    prop_assert_eq!(own.end as usize, visible);
                    prop_assert!((visible - 1) * grid.key_block < tokens.end);
                } else {
                    prop_assert_eq!((own.len(), visible), (0, grid.key_blocks()));
                }
            }
            prop_assert_eq!(at, grid.keys);
        }
    }
}
