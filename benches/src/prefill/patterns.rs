//! From a prompt to lists, with every score that the pattern needs.

use half::bf16;
use kvist::policies::prefill::{
    AShape, BlockLists, BlockSparse, Grid, Nsa, Proxy, VerticalSlash, choose, combine,
};
use kvist_kernels::attend::{Listed, Params, Queries};
use kvist_kernels::score::prefill::{Blocks, Pool, blocks, lines, means};
use kvist_kernels::{Executor, KvPool, PageLists, SlotLists, Tensor3, Tensor3Mut};

use super::prompt::Prompt;
use crate::Error;

/// Queries of a block, and keys of a block.
const BLOCK: usize = 64;
/// Last queries whose attention is looked at.
const LAST: usize = 64;
/// Of the keys that a share stands for, as many distances are read by vertical-slash on real attention.
pub(super) const SLASH: f32 = 0.1;
/// First keys that patterns always read.
const SINKS: usize = 30;

/// How blocks are chosen. A share is that of the prompt's keys that the last queries shall read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pattern {
    AShape(f32),
    /// Its second number: distances of a share that are not among the nearest.
    VerticalSlash(f32, f32),
    BlockSparse(f32),
    /// The best of the three for each head.
    Choice(f32),
    /// So many proxy heads, so much of the mass.
    Proxy(usize, f32),
    Nsa,
    /// The blocks with the highest true mass.
    Oracle(f32),
}

/// Lists and the grid that they are on.
pub(super) struct Lists {
    pub(super) lists: BlockLists,
    pub(super) grid: Grid,
    pub(super) query_block: usize,
    pub(super) key_block: usize,
    pub(super) per_query_head: bool,
}

impl Pattern {
    pub(super) fn name(self) -> String {
        match self {
            Pattern::AShape(share) => format!("a-shape {share}"),
            Pattern::VerticalSlash(share, 0.0) => format!("vertical and nearest {share}"),
            Pattern::VerticalSlash(share, _) => format!("vertical-slash {share}"),
            Pattern::BlockSparse(share) => format!("block-sparse {share}"),
            Pattern::Choice(share) => format!("choice {share}"),
            Pattern::Proxy(1, mass) => format!("1 proxy, mass {mass}"),
            Pattern::Proxy(n, mass) => format!("{n} proxies, mass {mass}"),
            Pattern::Nsa => "nsa".to_owned(),
            Pattern::Oracle(share) => format!("oracle blocks {share}"),
        }
    }

    /// Scores the prompt and builds the lists.
    pub(super) fn build(self, prompt: &Prompt, exec: &Executor) -> Result<Lists, Error> {
        let grid = Grid::causal(prompt.queries, prompt.keys, BLOCK, BLOCK)?;
        let job = Job { prompt, exec, grid, heads: prompt.shape.q_heads };
        let lists = match self {
            Pattern::AShape(share) => job.a_shape(share)?,
            Pattern::VerticalSlash(share, slash) => {
                job.vertical_slash(share, slash, &job.lines()?)?
            }
            Pattern::BlockSparse(share) => job.block_sparse(share)?,
            Pattern::Choice(share) => job.choice(share)?,
            Pattern::Proxy(proxies, mass) => job.proxy(proxies, mass)?,
            Pattern::Nsa => job.nsa()?,
            Pattern::Oracle(share) => job.oracle(share)?,
        };
        let per_query_head = self != Pattern::Nsa;
        Ok(Lists { lists, grid, query_block: BLOCK, key_block: BLOCK, per_query_head })
    }
}

struct Job<'a> {
    prompt: &'a Prompt,
    exec: &'a Executor,
    grid: Grid,
    /// Query heads.
    heads: usize,
}

/// Sums over columns and diagonals.
struct Lines {
    columns: Vec<f32>,
    diagonals: Vec<f32>,
}

/// Rows of bf16 with their shape.
struct Rows {
    data: Vec<bf16>,
    shape: [usize; 3],
}

impl Rows {
    fn tensor(&self) -> Result<Tensor3<'_>, Error> {
        Ok(Tensor3::contiguous(&self.data, self.shape)?)
    }
}

impl Job<'_> {
    fn tokens(&self, share: f32) -> usize {
        (share * self.prompt.keys as f32) as usize
    }

    fn blocks(&self, share: f32) -> usize {
        (share * self.grid.key_blocks() as f32).ceil().max(1.0) as usize
    }

    fn a_shape(&self, share: f32) -> Result<BlockLists, Error> {
        let local = self.tokens(share).saturating_sub(BLOCK).max(BLOCK);
        Ok(AShape { sinks: SINKS, local }.lists(&self.grid, self.heads)?)
    }

    fn lines(&self) -> Result<Lines, Error> {
        let mut columns = vec![0f32; self.heads * self.prompt.keys];
        let mut diagonals = columns.clone();
        self.prompt.with(LAST.min(self.prompt.queries), |queries, keys, params| {
            Ok(lines(queries, keys, params, self.exec, &mut columns, &mut diagonals)?)
        })?;
        Ok(Lines { columns, diagonals })
    }

    /// Half of the keys as lines, the nearest distances, and others for so much of a share: whole blocks
    /// make more of them.
    fn vertical_slash(&self, share: f32, slash: f32, lines: &Lines) -> Result<BlockLists, Error> {
        let tokens = self.tokens(share);
        let default = VerticalSlash::default();
        let slash = default.recent.max((tokens as f32 * slash) as usize);
        let policy = VerticalSlash { vertical: (tokens / 2).max(SINKS), slash, ..default };
        Ok(policy.lists(&self.grid, self.heads, &lines.columns, &lines.diagonals)?)
    }

    /// Mean queries against mean keys.
    fn block_sparse(&self, share: f32) -> Result<BlockLists, Error> {
        let (rows, width) = (self.grid.query_blocks(), self.grid.key_blocks());
        let mut scores = vec![0f32; self.heads * rows * width];
        self.prompt.with(self.prompt.queries, |queries, keys, params| {
            let q = self.query_means(queries, rows, BLOCK, self.heads)?;
            let k = self.key_means(keys, width, BLOCK, BLOCK, self.prompt.shape.kv_heads)?;
            // A block of queries sees the blocks of keys up to its own.
            let positions: Vec<u32> =
                (0..rows).map(|row| self.grid.visible(row) as u32 - 1).collect();
            let pooled = Blocks { query_block: 1, key_block: 1, pool: Pool::Mass };
            let places: Vec<u32> = (0..width as u32).collect();
            self.score(&q, &positions, &k, &places, params, &pooled, &mut scores)
        })?;
        Ok(BlockSparse { blocks: self.blocks(share) }.lists(&self.grid, self.heads, &scores)?)
    }

    fn choice(&self, share: f32) -> Result<BlockLists, Error> {
        let lines = self.lines()?;
        let candidates = [
            self.a_shape(share)?,
            self.block_sparse(share)?,
            self.vertical_slash(share, SLASH, &lines)?,
        ];
        let candidates: Vec<&BlockLists> = candidates.iter().collect();
        let chosen = choose(&self.grid, &candidates, self.heads, &lines.columns)?;
        Ok(combine(&self.grid, &candidates, &chosen)?)
    }

    fn proxy(&self, proxies: usize, mass: f32) -> Result<BlockLists, Error> {
        let (rows, width) = (self.grid.query_blocks(), self.grid.key_blocks());
        let mut scores = vec![0f32; proxies * rows * width];
        self.prompt.with(self.prompt.queries, |queries, keys, params| {
            let q = self.query_means(queries, self.prompt.queries, 1, proxies)?;
            let k = self.key_means(keys, self.prompt.keys, 1, 1, proxies)?;
            let pooled = Blocks { query_block: BLOCK, key_block: BLOCK, pool: Pool::Max };
            let positions = queries.positions.unwrap_or(&[]);
            let places: Vec<u32> = (0..self.prompt.keys as u32).collect();
            self.score(&q, positions, &k, &places, params, &pooled, &mut scores)
        })?;
        let columns = self.lines()?.columns;
        let last: Vec<f32> = columns
            .chunks(self.prompt.keys)
            .flat_map(|head| head.chunks(BLOCK))
            .map(|block| block.iter().sum())
            .collect();
        let policy = Proxy { mass, ..Proxy::default() };
        Ok(policy.lists(&self.grid, self.heads, proxies, &scores, &last)?)
    }

    fn nsa(&self) -> Result<BlockLists, Error> {
        let policy = Nsa::default();
        let places = policy.positions(self.prompt.keys);
        let kv_heads = self.prompt.shape.kv_heads;
        let mut compressed = vec![0f32; self.heads * self.grid.query_blocks() * places.len()];
        self.prompt.with(self.prompt.queries, |queries, keys, params| {
            let k = self.key_means(keys, places.len(), policy.window, policy.stride, kv_heads)?;
            let lists = SlotLists {
                indptr: &[0, places.len() as u32],
                slots: &(0..places.len() as u32).collect::<Vec<u32>>(),
                positions: Some(&places),
                per_head: false,
            };
            let (rows, pooled) =
                (k.tensor()?, Blocks { query_block: BLOCK, key_block: 1, pool: Pool::Mass });
            let pool = KvPool::from_rows(&rows, &rows)?;
            let keys = Listed::Slots(&pool, &lists);
            Ok(blocks(queries, &keys, params, &pooled, self.exec, &mut compressed)?)
        })?;
        Ok(policy.lists(&self.grid, self.heads, kv_heads, &compressed)?)
    }

    fn oracle(&self, share: f32) -> Result<BlockLists, Error> {
        let mut scores = vec![0f32; self.heads * self.grid.query_blocks() * self.grid.key_blocks()];
        self.prompt.with(self.prompt.queries, |queries, keys, params| {
            let pooled = Blocks { query_block: BLOCK, key_block: BLOCK, pool: Pool::Mass };
            Ok(blocks(queries, keys, params, &pooled, self.exec, &mut scores)?)
        })?;
        Ok(BlockSparse { blocks: self.blocks(share) }.lists(&self.grid, self.heads, &scores)?)
    }

    /// Scores of rows against rows, pooled.
    #[expect(clippy::too_many_arguments, reason = "two sets of rows with their places")]
    fn score(
        &self,
        q: &Rows,
        positions: &[u32],
        k: &Rows,
        places: &[u32],
        params: &Params,
        pooled: &Blocks,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let rows = k.tensor()?;
        let pool = KvPool::from_rows(&rows, &rows)?;
        let slots: Vec<u32> = (0..k.shape[0] as u32).collect();
        let indptr = [0, slots.len() as u32];
        let lists =
            SlotLists { indptr: &indptr, slots: &slots, positions: Some(places), per_head: false };
        let indptr = [0, q.shape[0] as u32];
        let queries = Queries { q: q.tensor()?, indptr: &indptr, positions: Some(positions) };
        let keys = Listed::Slots(&pool, &lists);
        Ok(blocks(&queries, &keys, params, pooled, self.exec, out)?)
    }

    fn key_means(
        &self,
        keys: &Listed,
        n: usize,
        window: usize,
        stride: usize,
        groups: usize,
    ) -> Result<Rows, Error> {
        let shape = [n, groups, self.prompt.shape.head_dim];
        let mut data = vec![bf16::ZERO; shape.iter().product()];
        let mut out = Tensor3Mut::contiguous(&mut data, shape)?;
        means(keys, window, stride, self.exec, &mut out)?;
        Ok(Rows { data, shape })
    }

    fn query_means(
        &self,
        queries: &Queries,
        n: usize,
        window: usize,
        groups: usize,
    ) -> Result<Rows, Error> {
        let pool = KvPool::from_rows(&queries.q, &queries.q)?;
        let lens = [queries.q.shape()[0] as u32];
        let pages = PageLists {
            indptr: &[0, 1],
            frames: &[0],
            lens: &lens,
            first_pos: None,
            per_head: false,
        };
        self.key_means(&Listed::Pages(&pool, &pages), n, window, window, groups)
    }
}
