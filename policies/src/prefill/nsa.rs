//! Native Sparse Attention's selected blocks.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{BlockLists, Grid, rank};
use crate::Error;

/// NSA (arXiv 2502.11089): the attention that queries pay to compressed keys ranks the blocks to read,
/// one list per KV head for its whole group.
///
/// The compressed keys are means of `window` keys every `stride` (published kernels use means where the
/// paper trains a small network).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nsa {
    /// Keys of a block that is read (l').
    pub block: usize,
    /// Keys that a compressed key stands for (l), a multiple of `stride`.
    pub window: usize,
    /// Keys from one compressed key to the next (d).
    pub stride: usize,
    /// Blocks read (n), the first and the nearest ones included.
    pub blocks: usize,
    /// First blocks always read.
    pub initial: usize,
    /// Nearest blocks always read, the query's own included.
    pub local: usize,
}

const NAME: &str = "nsa";

impl Default for Nsa {
    fn default() -> Self {
        Nsa { block: 64, window: 32, stride: 16, blocks: 16, initial: 1, local: 2 }
    }
}

impl Nsa {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        if self.stride == 0 {
            return Err(Error::setting(NAME, "stride", "at least 1", 0));
        }
        for (setting, n) in [("block", self.block), ("window", self.window)] {
            if n == 0 || !n.is_multiple_of(self.stride) {
                let expected = format!("a multiple of the stride, {}", self.stride);
                return Err(Error::setting(NAME, setting, expected, n));
            }
        }
        if self.local == 0 {
            return Err(Error::setting(NAME, "local", "at least 1", 0));
        }
        if self.blocks < self.initial + self.local {
            let expected = format!("at least initial + local = {}", self.initial + self.local);
            return Err(Error::setting(NAME, "blocks", expected, self.blocks));
        }
        Ok(())
    }

    /// Compressed keys of so many keys: those whose window is full.
    #[must_use]
    pub fn compressed(&self, keys: usize) -> usize {
        if keys < self.window { 0 } else { (keys - self.window) / self.stride + 1 }
    }

    /// The last key of each compressed key's window: a query sees it from there on. These are the
    /// positions to score compressed keys with.
    #[must_use]
    pub fn positions(&self, keys: usize) -> Vec<u32> {
        (0..self.compressed(keys)).map(|c| (c * self.stride + self.window - 1) as u32).collect()
    }

    /// Adds a query head's `p` over compressed keys to the scores of the blocks to read:
    /// `p_slc[j] += sum_{m < l'/d} sum_{n < l/d} p_cmp[(l'/d) j - m - n]`, blocks and compressed keys
    /// counted from 1. Each compressed key so counts once for every stride that
    /// its window and the block have in common.
    pub fn add_scores(&self, p: &[f32], scores: &mut [f32]) {
        let (per_block, per_window) = (self.block / self.stride, self.window / self.stride);
        for (j, score) in scores.iter_mut().enumerate() {
            // From 0 the last compressed key of the sum is (l'/d) (j + 1) - 1.
            let end = per_block * (j + 1);
            for m in 0..per_block {
                for n in 0..per_window {
                    if let Some(x) = end.checked_sub(1 + m + n).and_then(|c| p.get(c)) {
                        *score += x;
                    }
                }
            }
        }
    }

    /// Lists per KV head from the compressed attention `[q_heads, query blocks, compressed keys]`, summed
    /// over each KV head's group. The paper has query blocks of one query; with longer ones give the mean
    /// over the block's queries.
    ///
    /// # Errors
    /// [`Error::Setting`] if a setting is out of range, the grid is not causal or has other key blocks, or
    /// there are not as many numbers.
    pub fn lists(
        &self,
        grid: &Grid,
        q_heads: usize,
        kv_heads: usize,
        compressed: &[f32],
    ) -> Result<BlockLists, Error> {
        self.validate()?;
        if !grid.causal || grid.key_block != self.block {
            let expected = format!("causal with key blocks of {}", self.block);
            let found = if grid.causal { "others" } else { "bidirectional" };
            return Err(Error::setting(NAME, "grid", expected, found));
        }
        if kv_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            return Err(Error::setting(
                NAME,
                "kv_heads",
                format!("a divisor of {q_heads}"),
                kv_heads,
            ));
        }
        let width = self.compressed(grid.keys);
        grid.expect(NAME, "compressed", compressed.len(), q_heads, width)?;
        let rows = grid.query_blocks();
        let mut lists = BlockLists::new();
        let mut scores = Vec::new();
        for kv_head in 0..kv_heads {
            let group = kv_head * q_heads / kv_heads..(kv_head + 1) * q_heads / kv_heads;
            for row in 0..rows {
                scores.clear();
                scores.resize(grid.visible(row), 0.0);
                for head in group.clone() {
                    self.add_scores(
                        &compressed[(head * rows + row) * width..][..width],
                        &mut scores,
                    );
                }
                let nearest = self.nearest(grid, row);
                let always = |b: u32| (b as usize) < self.initial || nearest.contains(&b);
                lists.push(rank::best(&scores, self.blocks, always));
            }
        }
        Ok(lists)
    }

    /// The query block's own blocks and, with `local` 2, the one before them.
    fn nearest(&self, grid: &Grid, row: usize) -> Range<u32> {
        let first = grid.own(row).start.saturating_sub(self.local as u32 - 1);
        first..grid.visible(row) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{check, grids, numbers, within};
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let text = |n: Nsa| n.validate().unwrap_err().to_string();
        let nsa = Nsa::default;
        assert_eq!(text(Nsa { stride: 0, ..nsa() }), "nsa: stride must be at least 1, found 0");
        let odd = text(Nsa { window: 40, ..nsa() });
        assert_eq!(odd, "nsa: window must be a multiple of the stride, 16, found 40");
        assert!(text(Nsa { block: 0, ..nsa() }).contains("block"));
        assert!(text(Nsa { local: 0, ..nsa() }).contains("local"));
        let few = text(Nsa { blocks: 2, ..nsa() });
        assert_eq!(few, "nsa: blocks must be at least initial + local = 3, found 2");
        nsa().validate().unwrap();
        let grid = Grid::causal(64, 128, 1, 32).unwrap();
        let text = nsa().lists(&grid, 2, 1, &[]).unwrap_err().to_string();
        assert_eq!(text, "nsa: grid must be causal with key blocks of 64, found others");
        let grid = Grid::causal(2, 128, 1, 64).unwrap();
        let text = nsa().lists(&grid, 2, 1, &[0.0; 3]).unwrap_err().to_string();
        assert_eq!(text, "nsa: compressed must be 2 x 2 x 7 = 28 numbers, found 3");
        let text = nsa().lists(&grid, 3, 2, &[]).unwrap_err().to_string();
        assert_eq!(text, "nsa: kv_heads must be a divisor of 3, found 2");
    }

    #[test]
    fn positions_are_the_ends_of_full_windows() {
        let nsa = Nsa::default();
        assert_eq!((nsa.compressed(31), nsa.compressed(32), nsa.compressed(47)), (0, 1, 1));
        assert_eq!(nsa.positions(64), [31, 47, 63]);
    }

    proptest! {
        /// The formula counts strides: each key of a block gives it the attention of every compressed key
        /// over it, divided by the keys of a stride.
        #[test]
        fn scores_are_attention_spread_over_strides(
            keys in 1usize..400, per_block in 1usize..6, per_window in 1usize..5, stride in 1usize..20,
            seed in any::<u64>(),
        ) {
            let nsa = Nsa {
                block: per_block * stride, window: per_window * stride, stride, ..Nsa::default()
            };
            let p = numbers(nsa.compressed(keys), seed, false);
            let mut scores = vec![0f32; keys.div_ceil(nsa.block)];
            nsa.add_scores(&p, &mut scores);
            let mut of_key = vec![0f64; keys];
            for (c, &p) in p.iter().enumerate() {
                of_key[c * stride..c * stride + nsa.window].iter_mut().for_each(|x| *x += f64::from(p));
            }
            for (j, keys) in of_key.chunks(nsa.block).enumerate() {
                let want = keys.iter().sum::<f64>() / stride as f64;
                prop_assert!((f64::from(scores[j]) - want).abs() < 1e-4 * (1.0 + want));
            }
        }

        #[test]
        fn lists_hold_the_first_and_the_nearest_blocks(
            grid in grids(), group in 1usize..4, kv_heads in 1usize..3, blocks in 4usize..9,
            (initial, local) in (0usize..3, 1usize..3), seed in any::<u64>(),
        ) {
            prop_assume!(grid.causal);
            let grid = Grid { key_block: 16, ..grid };
            let nsa = Nsa { block: 16, window: 8, stride: 4, blocks: blocks + initial, initial, local };
            let width = nsa.compressed(grid.keys);
            let heads = group * kv_heads;
            let p = numbers(heads * grid.query_blocks() * width, seed, true);
            let lists = nsa.lists(&grid, heads, kv_heads, &p).unwrap();
            check(&lists, &grid, kv_heads);
            for number in 0..lists.len() {
                let (head, row) = (number / grid.query_blocks(), number % grid.query_blocks());
                let (list, visible) = (lists.list(number), grid.visible(row));
                prop_assert!((0..initial.min(visible)).all(|b| list.contains(&(b as u32))));
                let nearest = nsa.nearest(&grid, row);
                prop_assert!(nearest.len() >= local.min(visible) && nearest.end as usize == visible);
                prop_assert!(nearest.clone().all(|b| list.contains(&b)));
                let mut scores = vec![0f32; visible];
                for h in head * group..(head + 1) * group {
                    let at = (h * grid.query_blocks() + row) * width;
                    nsa.add_scores(&p[at..at + width], &mut scores);
                }
                let nans = (0..visible).filter(|&b| scores[b].is_nan());
                prop_assert!(nans.clone().all(|b| list.contains(&(b as u32))));
                let most = nsa.blocks.max(nans.count() + initial + nearest.len());
                prop_assert!(list.len() <= most && list.len() >= nsa.blocks.min(visible));
            }
            let more = Nsa { blocks: nsa.blocks + 2, ..nsa };
            prop_assert!(within(&lists, &more.lists(&grid, heads, kv_heads, &p).unwrap()));
        }
    }
}
