//! Lists that are made once and used for the rest of a denoising.

use std::ops::Range;

use super::{BlockLists, Grid, rank};
use crate::Error;

/// SparseD (arXiv 2509.24014), for diffusion language models: full attention for the first steps of a
/// denoising, then, for all the others, the key blocks that got most attention at one of them. Each head
/// and query block has its own; blocks of the prompt and of what is being written are ranked apart, so
/// that neither crowds out the other.
///
/// Differences from the published code: scores are scaled by 1/sqrt(d) (there by 1/sqrt(heads)), and the
/// prompt's blocks are ranked among themselves (there among all, and what was chosen of the others is
/// dropped), so that as many are read as `select` says.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseD {
    /// Share of the steps with full attention (code: 0.2).
    pub skip: f32,
    /// Share of the key blocks that is read, of each part: `int(select * blocks) + 1` (code: 0.3).
    pub select: f32,
}

/// What a denoising step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Full attention.
    Dense,
    /// Full attention, and the lists are made from it.
    Choose,
    /// Attention over the lists.
    Sparse,
}

const NAME: &str = "sparsed";

impl Default for SparseD {
    fn default() -> Self {
        SparseD { skip: 0.2, select: 0.3 }
    }
}

impl SparseD {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        for (setting, x) in [("skip", self.skip), ("select", self.select)] {
            if !(0.0..=1.0).contains(&x) {
                return Err(Error::setting(NAME, setting, "from 0 to 1", x));
            }
        }
        Ok(())
    }

    /// What step `step` of `steps` does, counted from 0.
    #[must_use]
    pub fn phase(&self, step: usize, steps: usize) -> Phase {
        let choose = (self.skip * steps as f32) as usize + 1;
        match step.cmp(&choose) {
            std::cmp::Ordering::Less => Phase::Dense,
            std::cmp::Ordering::Equal => Phase::Choose,
            std::cmp::Ordering::Greater => Phase::Sparse,
        }
    }

    /// Lists from the attention that each key block got from each query block, `[heads, query blocks, key
    /// blocks]` (`score::prefill::blocks` of `kvist-kernels`, bidirectional). The first `prompt` keys are
    /// the prompt; a block that holds some of it and more is the prompt's.
    ///
    /// # Errors
    /// [`Error::Setting`] if a setting is out of range, the grid is causal, or there are not as many
    /// numbers.
    pub fn lists(
        &self,
        grid: &Grid,
        heads: usize,
        prompt: usize,
        attention: &[f32],
    ) -> Result<BlockLists, Error> {
        self.validate()?;
        if grid.causal {
            return Err(Error::setting(NAME, "grid", "bidirectional", "causal"));
        }
        let width = grid.key_blocks();
        grid.expect(NAME, "attention", attention.len(), heads, width)?;
        let border = prompt.div_ceil(grid.key_block).min(width);
        let mut lists = BlockLists::new();
        for attention in attention.chunks_exact(width.max(1)) {
            let part = |blocks: Range<usize>| {
                let k = (self.select * blocks.len() as f32) as usize + 1;
                let first = blocks.start as u32;
                rank::best(&attention[blocks], k, |_| false).into_iter().map(move |b| b + first)
            };
            lists.push(part(0..border).chain(part(border..width)));
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
    fn a_fifth_of_the_steps_is_dense() {
        let phases: Vec<Phase> = (0..10).map(|step| SparseD::default().phase(step, 10)).collect();
        assert_eq!(phases[..3], [Phase::Dense; 3]);
        assert_eq!(phases[3], Phase::Choose);
        assert_eq!(phases[4..], [Phase::Sparse; 6]);
    }

    #[test]
    fn misuse_is_named() {
        let text = |s: SparseD| s.validate().unwrap_err().to_string();
        let high = text(SparseD { select: 1.5, ..SparseD::default() });
        assert_eq!(high, "sparsed: select must be from 0 to 1, found 1.5");
        assert!(text(SparseD { skip: f32::NAN, ..SparseD::default() }).contains("skip"));
        let grid = Grid::causal(8, 8, 4, 4).unwrap();
        let text = SparseD::default().lists(&grid, 1, 4, &[0.0; 4]).unwrap_err().to_string();
        assert_eq!(text, "sparsed: grid must be bidirectional, found causal");
        let grid = Grid::bidirectional(8, 8, 4, 4).unwrap();
        let text = SparseD::default().lists(&grid, 1, 4, &[0.0; 3]).unwrap_err().to_string();
        assert_eq!(text, "sparsed: attention must be 1 x 2 x 2 = 4 numbers, found 3");
    }

    proptest! {
        #[test]
        fn each_part_has_its_share(
            grid in grids(), heads in 1usize..3, prompt in 0usize..700, select in 0.0f32..1.0,
            seed in any::<u64>(),
        ) {
            prop_assume!(!grid.causal);
            let width = grid.key_blocks();
            let scores = numbers(heads * grid.query_blocks() * width, seed, true);
            let policy = SparseD { select, ..SparseD::default() };
            let lists = policy.lists(&grid, heads, prompt, &scores).unwrap();
            check(&lists, &grid, heads);
            let border = prompt.div_ceil(grid.key_block).min(width);
            for number in 0..lists.len() {
                let scores = &scores[number * width..][..width];
                let list = lists.list(number);
                prop_assert!((0..width).all(|b| !scores[b].is_nan() || list.contains(&(b as u32))));
                for part in [0..border, border..width] {
                    let has = list.iter().filter(|&&b| part.contains(&(b as usize))).count();
                    let nans = scores[part.clone()].iter().filter(|x| x.is_nan()).count();
                    let want = (select * part.len() as f32) as usize + 1;
                    prop_assert_eq!(has, want.max(nans).min(part.len()));
                }
            }
            let more = SparseD { select: (select + 0.2).min(1.0), ..policy };
            prop_assert!(within(&lists, &more.lists(&grid, heads, prompt, &scores).unwrap()));
        }
    }
}
