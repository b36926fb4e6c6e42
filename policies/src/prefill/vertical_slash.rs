//! Vertical lines and slashes.

use serde::{Deserialize, Serialize};

use super::{BlockLists, Columns, Grid, rank};
use crate::Error;

/// MInference's vertical-slash pattern (NeurIPS 2024, arXiv 2407.02490): the keys that the last queries
/// look at most, and the distances at which they look most, are read by all queries.
///
/// Distances become the key blocks that a query block finds at them; keys are read one by one.
/// Difference from the published code: key blocks lie at multiples of their size, there they begin
/// anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerticalSlash {
    /// Keys per head, sinks included (most heads of Llama 3: 1000).
    pub vertical: usize,
    /// Distances per head, the nearest included (most heads of Llama 3: 6096).
    pub slash: usize,
    /// First keys that are always read (code: 30).
    pub sinks: usize,
    /// Shortest distances that are always read, from 0 (code: 100).
    pub recent: usize,
}

const NAME: &str = "vertical_slash";

impl Default for VerticalSlash {
    fn default() -> Self {
        VerticalSlash { vertical: 1000, slash: 6096, sinks: 30, recent: 100 }
    }
}

impl VerticalSlash {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        if self.vertical < self.sinks {
            let expected = format!("at least the {} sinks", self.sinks);
            return Err(Error::setting(NAME, "vertical", expected, self.vertical));
        }
        if self.recent == 0 {
            return Err(Error::setting(NAME, "recent", "at least 1", 0));
        }
        if self.slash < self.recent {
            let expected = format!("at least the {} nearest distances", self.recent);
            return Err(Error::setting(NAME, "slash", expected, self.slash));
        }
        Ok(())
    }

    /// Lists for a causal prompt. `columns` `[heads, keys]` and `diagonals` `[heads, distances]` are the
    /// sums of the last queries' attention over keys and distances (`score::prefill::lines` of
    /// `kvist-kernels`; the paper: 64 queries).
    ///
    /// # Errors
    /// [`Error::Setting`] if a setting is out of range, the grid is not causal, or there are not as many
    /// numbers as heads and keys say.
    pub fn lists(
        &self,
        grid: &Grid,
        heads: usize,
        columns: &[f32],
        diagonals: &[f32],
    ) -> Result<BlockLists, Error> {
        self.validate()?;
        if !grid.causal {
            return Err(Error::setting(NAME, "grid", "causal", "bidirectional"));
        }
        if columns.len() != heads * grid.keys {
            let expected = format!("{heads} x {} = {} numbers", grid.keys, heads * grid.keys);
            return Err(Error::setting(NAME, "columns", expected, columns.len()));
        }
        if !diagonals.len().is_multiple_of(heads.max(1)) {
            let expected = format!("rows of {heads} heads");
            return Err(Error::setting(NAME, "diagonals", expected, diagonals.len()));
        }
        let distances = diagonals.len() / heads.max(1);
        let mut lists = BlockLists::new();
        let (mut indptr, mut tokens) = (vec![0], Vec::new());
        for head in 0..heads {
            let own = &columns[head * grid.keys..(head + 1) * grid.keys];
            tokens.extend(rank::best(own, self.vertical, |key| (key as usize) < self.sinks));
            indptr.push(tokens.len() as u32);
            self.slashes(grid, &diagonals[head * distances..(head + 1) * distances], &mut lists);
        }
        lists.columns = Some(Columns { indptr, tokens });
        Ok(lists)
    }

    /// The lists of one head.
    fn slashes(&self, grid: &Grid, diagonals: &[f32], lists: &mut BlockLists) {
        let near = |distance: u32| (distance as usize) < self.recent;
        let mut chosen = rank::best(diagonals, self.slash, near);
        // Distance 0 is a query's own key, whatever was measured.
        if chosen.first() != Some(&0) {
            chosen.insert(0, 0);
        }
        let whole = runs(&chosen, grid.query_block);
        for row in 0..grid.query_blocks() {
            let tokens = grid.tokens(row);
            let short = tokens.len() < grid.query_block;
            let runs = if short { &runs(&chosen, tokens.len()) } else { &whole };
            let mut blocks: Vec<u32> = Vec::new();
            // Long distances lead to early keys.
            for &(nearest, farthest) in runs.iter().rev() {
                if nearest >= tokens.end {
                    continue;
                }
                let first = tokens.start.saturating_sub(farthest) / grid.key_block;
                let last = (tokens.end - 1 - nearest) / grid.key_block;
                let after = blocks.last().map_or(0, |&b| b + 1);
                blocks.extend(after.max(first as u32)..=last as u32);
            }
            lists.push(blocks);
        }
    }
}

/// Joins distances into runs: those at most a query block apart lead to keys without a gap.
fn runs(distances: &[u32], query_block: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &d in distances {
        let d = d as usize;
        match runs.last_mut() {
            Some(run) if d - run.1 <= query_block => run.1 = d,
            _ => runs.push((d, d)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{check, grids, numbers, within};
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let text = |v: VerticalSlash| v.validate().unwrap_err().to_string();
        let default = VerticalSlash::default;
        assert_eq!(
            text(VerticalSlash { vertical: 20, ..default() }),
            "vertical_slash: vertical must be at least the 30 sinks, found 20"
        );
        assert_eq!(
            text(VerticalSlash { slash: 99, ..default() }),
            "vertical_slash: slash must be at least the 100 nearest distances, found 99"
        );
        assert!(text(VerticalSlash { recent: 0, ..default() }).contains("recent"));
        default().validate().unwrap();
        let grid = Grid::bidirectional(8, 8, 4, 4).unwrap();
        let text = default().lists(&grid, 1, &[0.0; 8], &[]).unwrap_err().to_string();
        assert_eq!(text, "vertical_slash: grid must be causal, found bidirectional");
        let grid = Grid::causal(8, 8, 4, 4).unwrap();
        let text = default().lists(&grid, 2, &[0.0; 8], &[]).unwrap_err().to_string();
        assert_eq!(text, "vertical_slash: columns must be 2 x 8 = 16 numbers, found 8");
        let text = default().lists(&grid, 2, &[0.0; 16], &[0.0]).unwrap_err().to_string();
        assert_eq!(text, "vertical_slash: diagonals must be rows of 2 heads, found 1");
    }

    proptest! {
        #[test]
        fn every_query_finds_its_lines(
            grid in grids(), heads in 1usize..3, seed in any::<u64>(), sinks in 0usize..5,
            vertical in 5usize..40, recent in 1usize..5, slash in 5usize..60, distances in 0usize..400,
        ) {
            prop_assume!(grid.causal);
            let policy = VerticalSlash { vertical, slash, sinks, recent };
            let columns = numbers(heads * grid.keys, seed, true);
            let diagonals = numbers(heads * distances, seed ^ 1, true);
            let lists = policy.lists(&grid, heads, &columns, &diagonals).unwrap();
            check(&lists, &grid, heads);
            for head in 0..heads {
                let own = &columns[head * grid.keys..(head + 1) * grid.keys];
                let tokens = lists.columns(head);
                let nans = own.iter().filter(|x| x.is_nan()).count();
                prop_assert!(tokens.len() <= vertical.max(nans + sinks));
                prop_assert!((0..sinks.min(grid.keys)).all(|t| tokens.contains(&(t as u32))));
                prop_assert!((0..grid.keys).all(|t| !own[t].is_nan() || tokens.contains(&(t as u32))));
                let diagonals = &diagonals[head * distances..(head + 1) * distances];
                let mut chosen = rank::best(diagonals, slash, |d| (d as usize) < recent);
                chosen.push(0);
                for row in 0..grid.query_blocks() {
                    let list = lists.list(head * grid.query_blocks() + row);
                    let mut want: Vec<u32> = grid.tokens(row)
                        .flat_map(|q| chosen.iter().filter_map(move |&d| q.checked_sub(d as usize)))
                        .map(|key| (key / grid.key_block) as u32)
                        .collect();
                    want.sort_unstable();
                    want.dedup();
                    prop_assert_eq!(list, want);
                }
            }
            let more = VerticalSlash { vertical: vertical + 7, slash: slash + 9, ..policy };
            prop_assert!(within(&lists, &more.lists(&grid, heads, &columns, &diagonals).unwrap()));
        }
    }
}
