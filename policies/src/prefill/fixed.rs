//! Patterns that are the same for every head, and the one by pooled scores.

use serde::{Deserialize, Serialize};

use super::{BlockLists, Grid, rank};
use crate::Error;

/// MInference's A-shape: the first keys and the nearest ones (as StreamingLLM, arXiv 2309.17453), in
/// whole blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AShape {
    /// First keys (code: 128).
    pub sinks: usize,
    /// Keys before each query, its own included (code: 3968).
    pub local: usize,
}

/// MInference's block-sparse pattern: the key blocks whose mean key suits the block's mean query best.
///
/// Differences from the published code: the query block's own blocks are always read, and scores are
/// those of pooled queries and keys of any block size (code: 64).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockSparse {
    /// Key blocks per query block, its own included (code: 100 of 64 keys).
    pub blocks: usize,
}

impl Default for AShape {
    fn default() -> Self {
        AShape { sinks: 128, local: 3968 }
    }
}

impl Default for BlockSparse {
    fn default() -> Self {
        BlockSparse { blocks: 100 }
    }
}

impl AShape {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        match self.local {
            0 => Err(Error::setting("a_shape", "local", "at least 1", 0)),
            _ => Ok(()),
        }
    }

    /// Lists for a causal prompt.
    ///
    /// # Errors
    /// [`Error::Setting`] if `local` is 0 or the grid is not causal.
    pub fn lists(&self, grid: &Grid, heads: usize) -> Result<BlockLists, Error> {
        self.validate()?;
        if !grid.causal {
            return Err(Error::setting("a_shape", "grid", "causal", "bidirectional"));
        }
        let mut lists = BlockLists::new();
        for row in (0..heads).flat_map(|_| 0..grid.query_blocks()) {
            let visible = grid.visible(row) as u32;
            let first = (grid.tokens(row).start + 1).saturating_sub(self.local) / grid.key_block;
            let sinks = (self.sinks.div_ceil(grid.key_block) as u32).min(first as u32);
            lists.push((0..sinks).chain(first as u32..visible));
        }
        Ok(lists)
    }
}

impl BlockSparse {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        match self.blocks {
            0 => Err(Error::setting("block_sparse", "blocks", "at least 1", 0)),
            _ => Ok(()),
        }
    }

    /// Lists from scores `[heads, query blocks, key blocks]` of mean queries and mean keys
    /// (`score::prefill::means` and `blocks` of `kvist-kernels`).
    ///
    /// # Errors
    /// [`Error::Setting`] if `blocks` is 0 or there are not as many scores as that.
    pub fn lists(&self, grid: &Grid, heads: usize, scores: &[f32]) -> Result<BlockLists, Error> {
        self.validate()?;
        let width = grid.key_blocks();
        grid.expect("block_sparse", "scores", scores.len(), heads, width)?;
        let mut lists = BlockLists::new();
        for (i, scores) in scores.chunks_exact(width.max(1)).enumerate() {
            let row = i % grid.query_blocks();
            let own = grid.own(row);
            lists.push(rank::best(&scores[..grid.visible(row)], self.blocks, |b| own.contains(&b)));
        }
        Ok(lists)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{check, grids, numbers, within};
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let grid = Grid::causal(8, 8, 4, 4).unwrap();
        let text = AShape { sinks: 1, local: 0 }.lists(&grid, 1).unwrap_err().to_string();
        assert_eq!(text, "a_shape: local must be at least 1, found 0");
        let text = BlockSparse { blocks: 0 }.lists(&grid, 1, &[]).unwrap_err().to_string();
        assert_eq!(text, "block_sparse: blocks must be at least 1, found 0");
        let text = BlockSparse::default().lists(&grid, 3, &[0.0; 8]).unwrap_err().to_string();
        assert_eq!(text, "block_sparse: scores must be 3 x 2 x 2 = 12 numbers, found 8");
        let both = Grid::bidirectional(8, 8, 4, 4).unwrap();
        assert!(AShape::default().lists(&both, 1).unwrap_err().to_string().contains("causal"));
    }

    proptest! {
        #[test]
        fn a_shapes_hold_every_sink_and_local_key(
            grid in grids(), heads in 1usize..3, sinks in 0usize..100, local in 1usize..200,
        ) {
            prop_assume!(grid.causal);
            let policy = AShape { sinks, local };
            let lists = policy.lists(&grid, heads).unwrap();
            check(&lists, &grid, heads);
            for number in 0..lists.len() {
                let tokens = grid.tokens(number % grid.query_blocks());
                let wanted = |key: usize| tokens.clone().any(|q| key <= q && (key < sinks || q - key < local));
                for block in 0..grid.key_blocks() {
                    let keys = block * grid.key_block..((block + 1) * grid.key_block).min(grid.keys);
                    let has = lists.list(number).contains(&(block as u32));
                    prop_assert_eq!(has, keys.clone().any(wanted));
                }
            }
            let more = AShape { sinks: sinks + 9, local: local + 9 };
            prop_assert!(within(&lists, &more.lists(&grid, heads).unwrap()));
        }

        #[test]
        fn pooled_blocks_are_the_best(
            grid in grids(), heads in 1usize..3, blocks in 1usize..9, seed in any::<u64>(),
        ) {
            let scores = numbers(heads * grid.query_blocks() * grid.key_blocks(), seed, true);
            let policy = BlockSparse { blocks };
            let lists = policy.lists(&grid, heads, &scores).unwrap();
            check(&lists, &grid, heads);
            for number in 0..lists.len() {
                let row = number % grid.query_blocks();
                let scores = &scores[number * grid.key_blocks()..][..grid.visible(row)];
                let list = lists.list(number);
                let forced = |b: usize| scores[b].is_nan() || grid.own(row).contains(&(b as u32));
                let kept = (0..scores.len()).filter(|&b| forced(b)).count();
                prop_assert_eq!(list.len(), blocks.max(kept).min(scores.len()));
                let least = list.iter().map(|&b| b as usize).filter(|&b| !forced(b)).map(|b| scores[b]);
                let least = least.fold(f32::INFINITY, f32::min);
                for b in (0..scores.len()).filter(|&b| !list.contains(&(b as u32))) {
                    prop_assert!(!forced(b) && scores[b] <= least);
                }
            }
            let more = BlockSparse { blocks: blocks + 3 };
            prop_assert!(within(&lists, &more.lists(&grid, heads, &scores).unwrap()));
        }
    }
}
