//! The choice among patterns, head by head.

use super::{BlockLists, Columns, Grid};
use crate::Error;

const NAME: &str = "pattern choice";

/// Share of the last query block's attention that a head's lists cover. `columns` are the attention
/// sums over keys of that block's queries, `[keys]`: all its queries read the same list, so that the
/// share is exact. Keys whose sum is NaN count nothing; without attention the share is 0.
///
/// # Panics
/// If the lists are not those of this grid, or there is not one sum per key.
#[must_use]
pub fn recall(grid: &Grid, lists: &BlockLists, head: usize, columns: &[f32]) -> f64 {
    assert_eq!(columns.len(), grid.keys(), "one sum per key");
    let Some(last) = grid.query_blocks().checked_sub(1) else { return 0.0 };
    let list = lists.list(head * grid.query_blocks() + last);
    let sum = |keys: &mut dyn Iterator<Item = usize>| -> f64 {
        keys.map(|key| f64::from(columns[key])).filter(|x| !x.is_nan()).sum()
    };
    let keys = |&b: &u32| {
        let first = b as usize * grid.key_block();
        first..(first + grid.key_block()).min(grid.keys())
    };
    let in_list = |&t: &usize| list.binary_search(&((t / grid.key_block()) as u32)).is_ok();
    let single = lists.columns(head).iter().map(|&t| t as usize).filter(|t| !in_list(t));
    let covered = sum(&mut list.iter().flat_map(keys).chain(single));
    let all = sum(&mut (0..columns.len()));
    if all > 0.0 { covered / all } else { 0.0 }
}

/// For each head the candidate that covers most of the last query block's attention; of several that
/// cover equally much the first. `columns` `[heads, keys]` as for [`recall`].
///
/// MInference (NeurIPS 2024, arXiv 2407.02490, algorithm 1) makes this choice once per head and model
/// among candidates of equal cost; give it candidates of equal cost, or the dearer ones last.
///
/// # Errors
/// [`Error::Setting`] if there is no candidate, or shapes differ.
pub fn choose(
    grid: &Grid,
    candidates: &[&BlockLists],
    heads: usize,
    columns: &[f32],
) -> Result<Vec<usize>, Error> {
    check(grid, candidates, heads)?;
    if columns.len() != heads * grid.keys() {
        let expected = format!("{heads} x {} numbers", grid.keys());
        return Err(Error::setting(NAME, "columns", expected, columns.len()));
    }
    let best = |head: usize| {
        let own = &columns[head * grid.keys()..(head + 1) * grid.keys()];
        let mut best = (0, f64::NEG_INFINITY);
        for (i, lists) in candidates.iter().enumerate() {
            let share = recall(grid, lists, head, own);
            if share > best.1 {
                best = (i, share);
            }
        }
        best.0
    };
    Ok((0..heads).map(best).collect())
}

/// The lists of a different candidate for each head: `chosen[head]` is its number.
///
/// # Errors
/// [`Error::Setting`] if shapes differ or there is no such candidate.
pub fn combine(
    grid: &Grid,
    candidates: &[&BlockLists],
    chosen: &[usize],
) -> Result<BlockLists, Error> {
    check(grid, candidates, chosen.len())?;
    if let Some(bad) = chosen.iter().find(|&&c| c >= candidates.len()) {
        return Err(Error::setting(NAME, "chosen", format!("below {}", candidates.len()), bad));
    }
    let mut lists = BlockLists::new();
    let (mut indptr, mut tokens) = (vec![0], Vec::new());
    for (head, &c) in chosen.iter().enumerate() {
        for row in 0..grid.query_blocks() {
            let own = candidates[c].list(head * grid.query_blocks() + row);
            lists.push(own.iter().copied());
        }
        tokens.extend_from_slice(candidates[c].columns(head));
        indptr.push(tokens.len() as u32);
    }
    if !tokens.is_empty() {
        lists.columns = Some(Columns { indptr, tokens });
    }
    Ok(lists)
}

/// Every candidate has lists for these heads.
fn check(grid: &Grid, candidates: &[&BlockLists], heads: usize) -> Result<(), Error> {
    if candidates.is_empty() {
        return Err(Error::setting(NAME, "candidates", "at least 1", 0));
    }
    let want = heads * grid.query_blocks();
    match candidates.iter().find(|c| c.len() != want) {
        Some(c) => Err(Error::setting(NAME, "candidates", format!("{want} lists each"), c.len())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{check as check_lists, grids, numbers};
    use super::super::{AShape, BlockSparse, VerticalSlash};
    use super::*;

    #[test]
    fn each_head_takes_what_covers_its_needle() {
        let grid = Grid::causal(64, 64, 16, 16).unwrap();
        let shape = AShape { sinks: 16, local: 16 }.lists(&grid, 2).unwrap();
        let mut scores = vec![0f32; 2 * 16];
        // Of both heads the last query block likes key block 1 best.
        (scores[13], scores[29]) = (1.0, 1.0);
        let sparse = BlockSparse { blocks: 2 }.lists(&grid, 2, &scores).unwrap();
        let mut columns = vec![0f32; 128];
        // Head 0 looks at key 3, head 1 at key 20.
        (columns[3], columns[64 + 20]) = (64.0, 64.0);
        let candidates = [&shape, &sparse];
        let chosen = choose(&grid, &candidates, 2, &columns).unwrap();
        assert_eq!(chosen, [0, 1]);
        let lists = combine(&grid, &candidates, &chosen).unwrap();
        assert_eq!((lists.list(3), lists.list(7)), (shape.list(3), sparse.list(7)));
        assert!((recall(&grid, &lists, 0, &columns[..64]) - 1.0).abs() < 1e-12);
        assert!((recall(&grid, &lists, 1, &columns[64..]) - 1.0).abs() < 1e-12);
        assert_eq!(recall(&grid, &shape, 1, &columns[64..]), 0.0);
    }

    #[test]
    fn misuse_is_named() {
        let grid = Grid::causal(64, 64, 16, 16).unwrap();
        let text = |done: Result<Vec<usize>, Error>| done.unwrap_err().to_string();
        assert!(text(choose(&grid, &[], 1, &[])).contains("candidates must be at least 1"));
        let lists = AShape::default().lists(&grid, 2).unwrap();
        assert!(text(choose(&grid, &[&lists], 1, &[])).contains("4 lists each, found 8"));
        assert!(text(choose(&grid, &[&lists], 2, &[])).contains("2 x 64 numbers, found 0"));
        let text = combine(&grid, &[&lists], &[0, 1]).unwrap_err().to_string();
        assert_eq!(text, "pattern choice: chosen must be below 1, found 1");
    }

    proptest! {
        #[test]
        fn no_candidate_covers_more_than_the_chosen(grid in grids(), seed in any::<u64>()) {
            prop_assume!(grid.causal && grid.query_blocks() > 0);
            let heads = 2;
            let columns = numbers(heads * grid.keys(), seed, true);
            let diagonals = numbers(heads * 50, seed ^ 1, false);
            let scores = numbers(heads * grid.query_blocks() * grid.key_blocks(), seed ^ 2, false);
            let lines = VerticalSlash { vertical: 9, slash: 9, sinks: 2, recent: 2 };
            let candidates = [
                lines.lists(&grid, heads, &columns, &diagonals).unwrap(),
                AShape { sinks: 9, local: 30 }.lists(&grid, heads).unwrap(),
                BlockSparse { blocks: 3 }.lists(&grid, heads, &scores).unwrap(),
            ];
            let candidates: Vec<&BlockLists> = candidates.iter().collect();
            let chosen = choose(&grid, &candidates, heads, &columns).unwrap();
            let lists = combine(&grid, &candidates, &chosen).unwrap();
            check_lists(&lists, &grid, heads);
            for head in 0..heads {
                let own = &columns[head * grid.keys()..(head + 1) * grid.keys()];
                let share = recall(&grid, &lists, head, own);
                prop_assert!((0.0..=1.0 + 1e-9).contains(&share));
                for c in &candidates {
                    prop_assert!(recall(&grid, c, head, own) <= share);
                }
            }
        }
    }
}
