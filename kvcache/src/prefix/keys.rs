//! A prefix: the chained keys of a token stream's full blocks.

use std::ops::Range;

use crate::Error;
use crate::format::BlockKey;

/// The blocks of a token stream, in order: their keys, and the tokens to compare.
#[derive(Clone)]
pub struct Prefix {
    /// The space that it belongs to.
    pub(super) space: BlockKey,
    /// The block before these, if it is known.
    pub(super) before: Option<BlockKey>,
    /// The second block of the whole chain, as far as it is known: chains are told apart by it.
    pub(super) chain: BlockKey,
    pub(super) keys: Vec<BlockKey>,
    /// Token ids of all blocks; empty if only keys were given.
    pub(super) tokens: Vec<u32>,
    pub(super) block_tokens: usize,
}

impl std::fmt::Debug for Prefix {
    /// Never the tokens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefix").field("blocks", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Prefix {
    pub(super) fn new(
        space: BlockKey,
        before: Option<BlockKey>,
        (keys, tokens): (Vec<BlockKey>, Vec<u32>),
        block_tokens: usize,
    ) -> Prefix {
        let chain = *keys.get(1).or(keys.first()).unwrap_or(&BlockKey::ROOT);
        Prefix { space, before, chain, keys, tokens, block_tokens }
    }

    /// The block before one of these, if it is known.
    pub(super) fn before(&self, block: usize) -> Option<BlockKey> {
        match block.checked_sub(1) {
            None => self.before,
            Some(before) => self.keys.get(before).copied(),
        }
    }

    /// Number of full blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the stream is shorter than a block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Their keys.
    #[must_use]
    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// Tokens of a block, if they are known.
    pub(super) fn tokens(&self, block: usize) -> Option<&[u32]> {
        let range = block * self.block_tokens..(block + 1) * self.block_tokens;
        self.tokens.get(range).filter(|t| !t.is_empty())
    }

    /// Those of the blocks that exist.
    pub(super) fn part(&self, range: Range<usize>) -> Prefix {
        let end = range.end.min(self.len());
        let keys = self.keys.get(range.start..end).unwrap_or_default().to_vec();
        let tokens = range.start.saturating_mul(self.block_tokens)..end * self.block_tokens;
        let tokens = self.tokens.get(tokens).unwrap_or_default().to_vec();
        Prefix { before: self.before(range.start), keys, tokens, ..*self }
    }

    pub(super) fn check(&self, range: &Range<usize>, rows: usize) -> Result<(), Error> {
        if range.start > range.end || range.end > self.len() {
            let expected = format!("inside 0..{}", self.len());
            return Err(Error::setting("blocks", expected, format!("{range:?}")));
        }
        if rows != range.len() {
            let what = "blocks of rows";
            return Err(Error::Count { what, expected: range.len(), found: rows });
        }
        Ok(())
    }
}
