//! Which blocks of keys each block of a prompt's queries reads, from scores that kernels computed.
//!
//! A [`Grid`] says how queries and keys are cut into blocks, a builder turns scores into
//! [`BlockLists`]: [`VerticalSlash`], [`AShape`] and [`BlockSparse`] with the choice among them per
//! head ([`choose`]), [`Proxy`], [`Nsa`], [`SparseD`], [`Slim`]. All are pure and deterministic: ties
//! go to the lower block, a score that is NaN is unknown and its block is always read, and a causal
//! query block always reads the blocks that hold its own tokens.

mod choose;
mod fixed;
mod grid;
mod nsa;
mod preset;
mod proxy;
mod rank;
mod slim;
mod sparsed;
mod vertical_slash;

pub use choose::{choose, combine, recall};
pub use fixed::{AShape, BlockSparse};
pub use grid::Grid;
pub use nsa::Nsa;
pub use preset::{MInference, PATTERNS, Prefill, ProxyAttn};
pub use proxy::Proxy;
pub use slim::{Kept, Slim, Stage};
pub use sparsed::{Phase, SparseD};
pub use vertical_slash::VerticalSlash;

/// Lists of key blocks, one for each head and query block, as `attend::blocks` of `kvist-kernels`
/// takes them for one sequence: head after head, in a head one list per query block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockLists {
    /// Offsets into `blocks`, one more than there are lists.
    pub indptr: Vec<u32>,
    /// Key blocks, ascending in a list.
    pub blocks: Vec<u32>,
    /// Single tokens that all query blocks of a head read besides, if any head has some.
    pub columns: Option<Columns>,
}

/// Single tokens, one list per head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Offsets into `tokens`, one more than there are heads.
    pub indptr: Vec<u32>,
    /// Tokens, ascending in a list.
    pub tokens: Vec<u32>,
}

impl BlockLists {
    /// No lists yet.
    #[must_use]
    pub fn new() -> BlockLists {
        BlockLists { indptr: vec![0], blocks: Vec::new(), columns: None }
    }

    /// Adds the next list.
    pub fn push(&mut self, blocks: impl IntoIterator<Item = u32>) {
        self.blocks.extend(blocks);
        self.indptr.push(self.blocks.len() as u32);
    }

    /// Number of lists.
    #[must_use]
    pub fn len(&self) -> usize {
        self.indptr.len().saturating_sub(1)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A list by its number.
    ///
    /// # Panics
    /// If there is no such list.
    #[must_use]
    pub fn list(&self, number: usize) -> &[u32] {
        &self.blocks[self.indptr[number] as usize..self.indptr[number + 1] as usize]
    }

    /// The single tokens of a head.
    ///
    /// # Panics
    /// If there are columns, but not for such a head.
    #[must_use]
    pub fn columns(&self, head: usize) -> &[u32] {
        self.columns
            .as_ref()
            .map_or(&[], |c| &c.tokens[c.indptr[head] as usize..c.indptr[head + 1] as usize])
    }

    /// Share of the visible query-key pairs that the lists read, blocks counted whole: 1 is dense.
    ///
    /// # Panics
    /// If the lists are not those of a whole number of heads on this grid.
    #[must_use]
    pub fn density(&self, grid: &Grid) -> f64 {
        let rows = grid.query_blocks();
        if rows == 0 || self.is_empty() {
            return 0.0;
        }
        assert!(self.len().is_multiple_of(rows), "{} lists of {rows} query blocks", self.len());
        let (mut read, mut all) = (0, 0);
        for list in 0..self.len() {
            let (head, row) = (list / rows, list % rows);
            let queries = grid.tokens(row).len();
            let visible = grid.visible(row) * grid.key_block;
            let blocks = self.list(list);
            let single = self.columns(head).iter().filter(|&&t| {
                (t as usize) < visible
                    && blocks.binary_search(&(t / grid.key_block as u32)).is_err()
            });
            read += queries * (blocks.len() * grid.key_block + single.count());
            all += queries * visible;
        }
        read as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A list is in order, in range, and holds the query block's own tokens.
    pub(super) fn check(lists: &BlockLists, grid: &Grid, heads: usize) {
        let rows = grid.query_blocks();
        assert_eq!(lists.len(), heads * rows);
        assert_eq!(lists.indptr[lists.len()] as usize, lists.blocks.len());
        for number in 0..lists.len() {
            let (list, row) = (lists.list(number), number % rows);
            assert!(list.windows(2).all(|w| w[0] < w[1]), "{list:?}");
            assert!(list.iter().all(|&b| (b as usize) < grid.visible(row)), "{list:?} {grid:?}");
            assert!(grid.own(row).all(|b| list.contains(&b)), "{list:?} {:?}", grid.own(row));
        }
        for head in 0..heads {
            let columns = lists.columns(head);
            assert!(columns.windows(2).all(|w| w[0] < w[1]));
            assert!(columns.iter().all(|&t| (t as usize) < grid.keys()));
        }
    }

    /// Every list of the one is part of that of the other.
    pub(super) fn within(small: &BlockLists, large: &BlockLists) -> bool {
        let part = |a: &[u32], b: &[u32]| a.iter().all(|x| b.binary_search(x).is_ok());
        let heads = |l: &BlockLists| l.columns.as_ref().map_or(0, |c| c.indptr.len() - 1);
        small.len() == large.len()
            && (0..small.len()).all(|i| part(small.list(i), large.list(i)))
            && (0..heads(small)).all(|h| part(small.columns(h), large.columns(h)))
    }

    /// Grids of all kinds.
    pub(super) fn grids() -> impl Strategy<Value = Grid> {
        (0usize..300, 0usize..300, 1usize..80, 1usize..80, any::<bool>()).prop_map(
            |(queries, before, query_block, key_block, causal)| {
                let make = if causal { Grid::causal } else { Grid::bidirectional };
                make(queries, before + queries, query_block, key_block).unwrap()
            },
        )
    }

    /// Numbers of `len` from a seed, a few of them NaN if wanted, with ties.
    pub(super) fn numbers(len: usize, seed: u64, nan: bool) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 40
        };
        let number = |bits: u64| {
            if nan && bits % 50 == 7 { f32::NAN } else { (bits % 1000) as f32 / 1000.0 }
        };
        (0..len).map(|_| number(next())).collect()
    }

    #[test]
    fn density_counts_pairs() {
        let grid = Grid::causal(128, 256, 64, 64).unwrap();
        let mut lists = BlockLists::new();
        lists.push([0, 2]);
        lists.push([3]);
        // 2 of 3 and 1 of 4 blocks.
        assert!((lists.density(&grid) - 3.0 / 7.0).abs() < 1e-12);
        let columns = Columns { indptr: vec![0, 3], tokens: vec![0, 64, 200] };
        lists.columns = Some(columns);
        // The first list has block 0 and not yet token 200; the second has block 3.
        assert!((lists.density(&grid) - (3.0 * 64.0 + 1.0 + 2.0) / (7.0 * 64.0)).abs() < 1e-12);
    }
}
