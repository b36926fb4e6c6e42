//! Tokens of a prompt that later layers do without.

use super::{BlockLists, Grid, rank};
use crate::{Error, Keep};

/// SlimInfer (AAAI 2026, arXiv 2508.06447): at a few layers the prompt's hidden states are thinned out;
/// all deeper layers go on with fewer tokens. Information has spread by then, so that even tokens that
/// mattered may go.
///
/// The stages are the paper's for 32 layers (10, 21, 30), given as shares of the depth; how many first
/// and last tokens stay is ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Slim {
    /// Where tokens go, and how many stay; depths rise, tokens fall.
    pub stages: Vec<Stage>,
    /// Tokens of a block that goes or stays as a whole.
    pub block: usize,
    /// First and last tokens of the prompt that always stay.
    pub keep: Keep,
}

/// A layer at which tokens go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Share of the layers before it.
    pub depth: f32,
    /// Tokens that stay, the kept ones included.
    pub tokens: usize,
}

/// The blocks of a prompt that are still there. It can only be made smaller: what a deeper layer has is
/// part of what the layers above it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    tokens: usize,
    block: usize,
    blocks: Vec<u32>,
}

const NAME: &str = "slim";

impl Default for Slim {
    fn default() -> Self {
        let stage = |depth, tokens| Stage { depth, tokens };
        Slim {
            stages: vec![stage(1.0 / 3.0, 8192), stage(2.0 / 3.0, 4096), stage(15.0 / 16.0, 2048)],
            block: 64,
            keep: Keep { sinks: 64, recent: 256 },
        }
    }
}

impl Slim {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        if self.block == 0 {
            return Err(Error::setting(NAME, "block", "at least 1", 0));
        }
        let mut above: Option<Stage> = None;
        for stage in &self.stages {
            let low = above.map_or(0.0, |s| s.depth);
            let rises = above.is_none_or(|s| stage.depth > s.depth);
            if !(stage.depth >= 0.0 && stage.depth < 1.0 && rises) {
                let expected = format!("above that of the stage before, {low}, and below 1");
                return Err(Error::setting(NAME, "depth", expected, stage.depth));
            }
            if above.is_some_and(|s| stage.tokens > s.tokens) {
                let expected = "at most those of the stage before";
                return Err(Error::setting(NAME, "tokens", expected, stage.tokens));
            }
            above = Some(*stage);
        }
        Ok(())
    }

    /// Tokens that stay from `layer` of `layers` on, if tokens go there. Where several stages fall on one
    /// layer of a shallow model the deepest counts.
    #[must_use]
    pub fn budget(&self, layer: usize, layers: usize) -> Option<usize> {
        let at = |s: &&Stage| (f64::from(s.depth) * layers as f64) as usize == layer;
        self.stages.iter().rfind(at).map(|s| s.tokens)
    }

    /// The whole prompt.
    ///
    /// # Errors
    /// [`Error::Setting`] if a setting is out of range.
    pub fn start(&self, tokens: usize) -> Result<Kept, Error> {
        self.validate()?;
        let blocks = (0..tokens.div_ceil(self.block) as u32).collect();
        Ok(Kept { tokens, block: self.block, blocks })
    }

    /// What stays at a stage: the blocks of the first and last tokens, and those with the highest scores
    /// while they fit into `budget` tokens. `scores` has one number for each block still there: the
    /// attention that the prompt's last queries pay it, over all heads (`score::prefill::lines` of
    /// `kvist-kernels`). A block whose score is NaN stays.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is not one score per block.
    pub fn narrow(&self, kept: &Kept, scores: &[f32], budget: usize) -> Result<Kept, Error> {
        if scores.len() != kept.blocks.len() {
            let expected = format!("one for each of {} blocks", kept.blocks.len());
            return Err(Error::setting(NAME, "scores", expected, scores.len()));
        }
        let [sinks, recent] = self.keep.ranges(kept.tokens, kept.tokens);
        let always = |b: u32| {
            let first = b as usize * kept.block;
            first < sinks.end || first + kept.block > recent.start && !recent.is_empty()
        };
        // The last block may be shorter; it counts as a whole one.
        let best = rank::best(scores, budget / kept.block, |i| always(kept.blocks[i as usize]));
        let blocks = best.into_iter().map(|i| kept.blocks[i as usize]).collect();
        Ok(Kept { blocks, ..*kept })
    }
}

impl Kept {
    /// Blocks still there, ascending.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Tokens still there, as ascending ranges.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let range = |&b: &u32| {
            let first = b as usize * self.block;
            first..(first + self.block).min(self.tokens)
        };
        self.blocks.iter().map(range)
    }

    /// Lists by which later queries read what is still there, one for each head and query block. The
    /// grid's key blocks are those of the prompt's blocks; keys behind the prompt are all read.
    ///
    /// # Errors
    /// [`Error::Setting`] if the grid has other key blocks or fewer keys than the prompt has tokens.
    pub fn lists(&self, grid: &Grid, heads: usize) -> Result<BlockLists, Error> {
        if grid.key_block != self.block {
            return Err(Error::setting(NAME, "key_block", self.block, grid.key_block));
        }
        if grid.keys < self.tokens {
            let expected = format!("at least the prompt's {} tokens", self.tokens);
            return Err(Error::setting(NAME, "keys", expected, grid.keys));
        }
        // A block that the prompt fills only in part goes on behind it.
        let behind = (self.tokens / self.block) as u32;
        let mut lists = BlockLists::new();
        for row in (0..heads).flat_map(|_| 0..grid.query_blocks()) {
            let (own, visible) = (grid.own(row), grid.visible(row) as u32);
            let read =
                |b: &u32| *b >= behind || own.contains(b) || self.blocks.binary_search(b).is_ok();
            lists.push((0..visible).filter(read));
        }
        Ok(lists)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{check, numbers};
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let text = |s: Slim| s.validate().unwrap_err().to_string();
        let with = |stages: &[(f32, usize)]| Slim {
            stages: stages.iter().map(|&(depth, tokens)| Stage { depth, tokens }).collect(),
            ..Slim::default()
        };
        assert_eq!(
            text(Slim { block: 0, ..Slim::default() }),
            "slim: block must be at least 1, found 0"
        );
        let falls = text(with(&[(0.5, 9), (0.5, 9)]));
        assert_eq!(
            falls,
            "slim: depth must be above that of the stage before, 0.5, and below 1, found 0.5"
        );
        assert!(text(with(&[(1.0, 9)])).contains("depth"));
        assert!(text(with(&[(f32::NAN, 9)])).contains("depth"));
        let grows = text(with(&[(0.1, 9), (0.2, 10)]));
        assert_eq!(grows, "slim: tokens must be at most those of the stage before, found 10");
        Slim::default().validate().unwrap();
    }

    #[test]
    fn stages_of_32_layers() {
        let slim = Slim::default();
        let stages: Vec<_> = (0..32).filter_map(|l| slim.budget(l, 32).map(|b| (l, b))).collect();
        assert_eq!(stages, [(10, 8192), (21, 4096), (30, 2048)]);
        // A model of one layer has all stages on it.
        assert_eq!(slim.budget(0, 1), Some(2048));
    }

    proptest! {
        #[test]
        fn deeper_layers_have_part_of_what_was_there(
            tokens in 0usize..2000, block in 1usize..80, sinks in 0usize..100, recent in 0usize..100,
            budgets in prop::collection::vec(0usize..2000, 1..4), seed in any::<u64>(), nan in any::<bool>(),
        ) {
            let slim = Slim { block, keep: Keep { sinks, recent }, ..Slim::default() };
            let mut kept = slim.start(tokens).unwrap();
            prop_assert_eq!(kept.ranges().map(|r| r.len()).sum::<usize>(), tokens);
            for budget in budgets {
                let scores = numbers(kept.blocks().len(), seed ^ budget as u64, nan);
                let less = slim.narrow(&kept, &scores, budget).unwrap();
                prop_assert!(less.blocks().windows(2).all(|w| w[0] < w[1]));
                prop_assert!(less.blocks().iter().all(|b| kept.blocks().contains(b)));
                let has = |t: usize| less.ranges().any(|r| r.contains(&t));
                prop_assert!((0..sinks.min(tokens)).chain(tokens.saturating_sub(recent)..tokens).all(has));
                let unknown = kept.blocks().iter().zip(&scores).filter(|(_, s)| s.is_nan());
                prop_assert!(unknown.clone().all(|(b, _)| less.blocks().contains(b)));
                let always = sinks.div_ceil(block) + recent.div_ceil(block) + 1 + unknown.count();
                prop_assert!(less.blocks().len() <= (budget / block).max(always));
                let more = slim.narrow(&kept, &scores, budget + 3 * block).unwrap();
                prop_assert!(less.blocks().iter().all(|b| more.blocks().contains(b)));
                kept = less;
            }
            let grid = Grid::causal(70.min(tokens), tokens + 30, 16, block).unwrap();
            let lists = kept.lists(&grid, 2).unwrap();
            check(&lists, &grid, 2);
            for number in 0..lists.len() {
                let row = number % grid.query_blocks();
                for b in 0..grid.visible(row) as u32 {
                    let wanted = kept.blocks().contains(&b) || grid.own(row).contains(&b)
                        || (b as usize + 1) * block > tokens;
                    prop_assert_eq!(lists.list(number).contains(&b), wanted);
                }
            }
        }
    }

    #[test]
    fn misuse_is_named() {
        let slim = Slim::default();
        let kept = slim.start(1000).unwrap();
        let text = slim.narrow(&kept, &[0.0; 3], 100).unwrap_err().to_string();
        assert_eq!(text, "slim: scores must be one for each of 16 blocks, found 3");
        let text = kept.lists(&Grid::causal(9, 999, 4, 64).unwrap(), 1).unwrap_err().to_string();
        assert_eq!(text, "slim: keys must be at least the prompt's 1000 tokens, found 999");
        let text = kept.lists(&Grid::causal(9, 1000, 4, 16).unwrap(), 1).unwrap_err().to_string();
        assert_eq!(text, "slim: key_block must be 64, found 16");
    }
}
