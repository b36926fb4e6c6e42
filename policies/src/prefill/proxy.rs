//! Proxy heads.

use serde::{Deserialize, Serialize};

use super::{BlockLists, Grid, rank};
use crate::Error;

/// ProxyAttn (ICLR 2026, arXiv 2509.24745): a few proxy heads, means of neighbouring heads, rank the
/// key blocks by their best token; every head reads as many of its proxy's best as it needs.
///
/// A head's need is the fewest blocks that hold `mass` of its attention at the last query block, as a
/// share of the blocks seen there; earlier query blocks read the same share. Differences from the
/// paper: the first key block is always read; the default of `mass` is ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxy {
    /// Share of the attention that a head's budget must cover, above 0 and at most 1.
    pub mass: f32,
    /// Key blocks per query block at least.
    pub blocks_min: usize,
}

const NAME: &str = "proxy";

impl Default for Proxy {
    fn default() -> Self {
        Proxy { mass: 0.95, blocks_min: 2 }
    }
}

impl Proxy {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        if !(self.mass > 0.0 && self.mass <= 1.0) {
            return Err(Error::setting(NAME, "mass", "above 0 and at most 1", self.mass));
        }
        Ok(())
    }

    /// Share of the key blocks that each head reads. `last` `[heads, key blocks]` is the attention of the
    /// last query block by key block.
    ///
    /// # Errors
    /// [`Error::Setting`] if a setting is out of range or there are not as many numbers.
    pub fn budgets(&self, grid: &Grid, heads: usize, last: &[f32]) -> Result<Vec<f64>, Error> {
        self.validate()?;
        let width = grid.key_blocks();
        if last.len() != heads * width {
            let expected = format!("{heads} x {width} = {} numbers", heads * width);
            return Err(Error::setting(NAME, "last", expected, last.len()));
        }
        let share = |masses: &[f32]| rank::fewest(masses, self.mass) as f64 / width as f64;
        Ok(last.chunks_exact(width.max(1)).map(share).collect())
    }

    /// Lists from the proxies' scores `[proxies, query blocks, key blocks]` (the largest probability of
    /// any token, `score::prefill::blocks` of `kvist-kernels`) and the heads' own `last` attention as for
    /// [`Proxy::budgets`]. Proxy `p` stands for the heads of its share: head `h` follows proxy
    /// `h * proxies / heads`.
    ///
    /// # Errors
    /// As [`Proxy::budgets`]; also if the proxies do not divide the heads.
    pub fn lists(
        &self,
        grid: &Grid,
        heads: usize,
        proxies: usize,
        scores: &[f32],
        last: &[f32],
    ) -> Result<BlockLists, Error> {
        let budgets = self.budgets(grid, heads, last)?;
        if proxies == 0 || !heads.is_multiple_of(proxies) {
            return Err(Error::setting(NAME, "proxies", format!("a divisor of {heads}"), proxies));
        }
        let (rows, width) = (grid.query_blocks(), grid.key_blocks());
        grid.expect(NAME, "scores", scores.len(), proxies, width)?;
        let mut lists = BlockLists::new();
        if rows * width == 0 {
            return Ok(lists);
        }
        for (proxy, scores) in scores.chunks(rows * width).enumerate() {
            let ranked: Vec<Vec<u32>> =
                (0..rows).map(|row| ranked(grid, row, &scores[row * width..])).collect();
            let of = heads / proxies;
            for budget in &budgets[proxy * of..(proxy + 1) * of] {
                for (row, ranked) in ranked.iter().enumerate() {
                    let visible = grid.visible(row);
                    let k = (budget * visible as f64).ceil() as usize;
                    let always = always(grid, row, &scores[row * width..][..visible]);
                    let k = k.max(self.blocks_min).max(always).min(visible);
                    let mut list = ranked[..k].to_vec();
                    list.sort_unstable();
                    lists.push(list);
                }
            }
        }
        Ok(lists)
    }
}

/// Blocks that are read whatever a head's budget is: the first, the query block's own, and those whose
/// score is NaN.
fn is_kept(grid: &Grid, row: usize, block: u32, score: f32) -> bool {
    block == 0 || grid.own(row).contains(&block) || score.is_nan()
}

fn always(grid: &Grid, row: usize, scores: &[f32]) -> usize {
    (0..).zip(scores).filter(|(b, s)| is_kept(grid, row, *b, **s)).count()
}

/// The blocks that a query block sees, those that are always read first, then the best.
fn ranked(grid: &Grid, row: usize, scores: &[f32]) -> Vec<u32> {
    let scores = &scores[..grid.visible(row)];
    let order = rank::order(scores);
    let (mut kept, rest): (Vec<u32>, Vec<u32>) =
        order.into_iter().partition(|&b| is_kept(grid, row, b, scores[b as usize]));
    kept.extend(rest);
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{check, grids, numbers, within};
    use super::*;

    #[test]
    fn heads_share_a_ranking_and_not_a_budget() {
        let grid = Grid::causal(64, 64, 16, 16).unwrap();
        // One proxy; its last query block ranks 0 (always), 3 (its own), then 2, 1.
        let mut scores = vec![0f32; 16];
        scores[12..].copy_from_slice(&[0.1, 0.2, 0.3, 0.1]);
        let last = [1.0, 0.0, 0.0, 0.0, 0.4, 0.3, 0.2, 0.1];
        let policy = Proxy { mass: 0.85, blocks_min: 1 };
        assert_eq!(policy.budgets(&grid, 2, &last).unwrap(), [0.25, 0.75]);
        let lists = policy.lists(&grid, 2, 1, &scores, &last).unwrap();
        assert_eq!((lists.list(3), lists.list(7)), (&[0, 3][..], &[0, 2, 3][..]));
        assert_eq!((lists.list(0), lists.list(4)), (&[0][..], &[0][..]));
    }

    #[test]
    fn misuse_is_named() {
        let grid = Grid::causal(64, 64, 16, 16).unwrap();
        for mass in [0.0, -1.0, 1.5, f32::NAN] {
            let text = Proxy { mass, ..Proxy::default() }.validate().unwrap_err().to_string();
            assert!(text.starts_with("proxy: mass must be above 0 and at most 1"), "{text}");
        }
        let text = |proxies, scores: &[f32], last: &[f32]| {
            Proxy::default().lists(&grid, 4, proxies, scores, last).unwrap_err().to_string()
        };
        assert_eq!(text(2, &[], &[]), "proxy: last must be 4 x 4 = 16 numbers, found 0");
        assert_eq!(text(3, &[], &[0.0; 16]), "proxy: proxies must be a divisor of 4, found 3");
        assert_eq!(
            text(2, &[], &[0.0; 16]),
            "proxy: scores must be 2 x 4 x 4 = 32 numbers, found 0"
        );
    }

    proptest! {
        #[test]
        fn lists_are_in_order_and_grow_with_the_mass(
            grid in grids(), of in 1usize..4, proxies in 1usize..3, seed in any::<u64>(),
            mass in 0.05f32..1.0, blocks_min in 0usize..5,
        ) {
            let (heads, width) = (of * proxies, grid.key_blocks());
            let scores = numbers(proxies * grid.query_blocks() * width, seed, true);
            let last = numbers(heads * width, seed ^ 1, false);
            let policy = Proxy { mass, blocks_min };
            let lists = policy.lists(&grid, heads, proxies, &scores, &last).unwrap();
            check(&lists, &grid, heads);
            let budgets = policy.budgets(&grid, heads, &last).unwrap();
            for number in 0..lists.len() {
                let (head, row) = (number / grid.query_blocks(), number % grid.query_blocks());
                let own = &scores[(head / of * grid.query_blocks() + row) * width..][..grid.visible(row)];
                let list = lists.list(number);
                prop_assert!(list.contains(&0));
                prop_assert!((0..own.len()).all(|b| !own[b].is_nan() || list.contains(&(b as u32))));
                let k = (budgets[head] * own.len() as f64).ceil() as usize;
                let kept = always(&grid, row, own);
                prop_assert_eq!(list.len(), k.max(blocks_min).max(kept).min(own.len()));
            }
            let more = Proxy { mass: (mass + 0.2).min(1.0), blocks_min };
            prop_assert!(within(&lists, &more.lists(&grid, heads, proxies, &scores, &last).unwrap()));
        }
    }
}
