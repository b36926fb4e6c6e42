//! Which blocks of keys the queries of a prompt read: from queries and keys, anyone's tensors, to lists.
//!
//! [`lists`] scores a prompt with the kernels and lets a [`Prefill`] pattern choose;
//! `kernels::attend::blocks` attends by the result ([`Lists::view`]). Sequences of a cache do both with
//! [`AttendOptions::prefill`](crate::AttendOptions::prefill).

use half::bf16;
use kvist_kernels::attend::{self, Listed, Params, Queries};
use kvist_kernels::score::prefill::{self, Blocks, Pool};
use kvist_kernels::{Executor, KvPool, PageLists, SlotLists, Tensor3, Tensor3Mut};
use kvist_policies::prefill::{
    AShape, BlockLists, BlockSparse, Grid, MInference, Nsa, ProxyAttn, VerticalSlash, choose,
    combine,
};

pub use kvist_policies::prefill::Prefill;

use crate::Error;

/// Queries of a block, and keys of a block.
pub const BLOCK: usize = 64;
/// Last queries whose attention lines and budgets are taken from.
const LAST: usize = 64;

/// Lists of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Lists {
    /// The blocks, and single keys besides.
    pub lists: BlockLists,
    /// How queries and keys are cut into blocks.
    pub grid: Grid,
    /// One list per query head; else one per KV head.
    pub per_query_head: bool,
}

impl Lists {
    /// As attention takes them.
    #[must_use]
    pub fn view(&self) -> attend::BlockLists<'_> {
        let columns = self.lists.columns.as_ref();
        attend::BlockLists {
            query_block: BLOCK,
            key_block: self.grid.key_block(),
            indptr: &self.lists.indptr,
            blocks: &self.lists.blocks,
            per_query_head: self.per_query_head,
            columns: columns.map(|c| attend::Columns { indptr: &c.indptr, tokens: &c.tokens }),
        }
    }
}

/// The blocks that the queries of one sequence read by a pattern; none for [`Prefill::Dense`].
///
/// `queries` are the last of the `keys` tokens, causal, with their positions; `params` as for attention.
///
/// # Errors
/// [`Error::Kernel`] if queries and keys do not fit together, [`Error::Select`] for settings that are impossible,
/// or that do not fit the model (proxies that do not divide its heads).
pub fn lists(
    pattern: &Prefill,
    queries: &Queries,
    keys: &Listed,
    tokens: usize,
    params: &Params,
    exec: &Executor,
) -> Result<Option<Lists>, Error> {
    pattern.validate()?;
    let [rows, heads, dim] = queries.q.shape();
    let block = if let Prefill::Nsa(nsa) = pattern { nsa.block } else { BLOCK };
    let grid = Grid::causal(rows, tokens, BLOCK, block)?;
    let job = Job { queries, keys, params, exec, grid, heads, dim };
    let found = match pattern {
        Prefill::Dense => return Ok(None),
        Prefill::AShape(shape) => shape.lists(&grid, heads)?,
        Prefill::VerticalSlash(lines) => job.vertical_slash(lines, &job.lines()?)?,
        Prefill::BlockSparse(sparse) => job.block_sparse(sparse)?,
        Prefill::MInference(all) => job.best(all)?,
        Prefill::ProxyAttn(proxies) => job.proxies(proxies)?,
        Prefill::Nsa(nsa) => job.nsa(nsa)?,
        other => unreachable!("{other:?} is not known here"),
    };
    let per_query_head = !matches!(pattern, Prefill::Nsa(_));
    Ok(Some(Lists { lists: found, grid, per_query_head }))
}

/// Attention probabilities pooled over blocks by true attention, `[q_heads, query blocks, key blocks]`: what an oracle
/// would choose by.
///
/// # Errors
/// As [`lists`].
pub fn block_masses(
    queries: &Queries,
    keys: &Listed,
    params: &Params,
    grid: &Grid,
    exec: &Executor,
) -> Result<Vec<f32>, Error> {
    let heads = queries.q.shape()[1];
    let mut scores = vec![0f32; heads * grid.query_blocks() * grid.key_blocks()];
    let pooled = Blocks { query_block: BLOCK, key_block: grid.key_block(), pool: Pool::Mass };
    prefill::blocks(queries, keys, params, &pooled, exec, &mut scores)?;
    Ok(scores)
}

struct Job<'a> {
    queries: &'a Queries<'a>,
    keys: &'a Listed<'a>,
    params: &'a Params<'a>,
    exec: &'a Executor,
    grid: Grid,
    /// Query heads.
    heads: usize,
    dim: usize,
}

/// Sums of the last queries' attention over keys and over distances, `[heads, keys]` each.
struct Lines {
    columns: Vec<f32>,
    diagonals: Vec<f32>,
}

/// Rows of bf16 with their shape: means are for choosing only.
struct Means {
    data: Vec<bf16>,
    shape: [usize; 3],
}

impl Means {
    fn tensor(&self) -> Result<Tensor3<'_>, Error> {
        Ok(Tensor3::contiguous(&self.data, self.shape)?)
    }
}

impl Job<'_> {
    fn kv_heads(&self) -> usize {
        match self.keys {
            Listed::Pages(pool, lists) if lists.per_head => {
                (lists.indptr.len() - 1).max(pool.layout().kv_heads)
            }
            Listed::Pages(pool, _) | Listed::Slots(pool, _) => pool.layout().kv_heads,
        }
    }

    fn lines(&self) -> Result<Lines, Error> {
        let rows = self.queries.q.shape()[0];
        let last = rows.min(LAST);
        let positions = self.queries.positions.map(|p| &p[rows - last..]);
        let indptr = [0, last as u32];
        let queries =
            Queries { q: self.queries.q.rows(rows - last, rows), indptr: &indptr, positions };
        let mut columns = vec![0f32; self.heads * self.grid.keys()];
        let mut diagonals = columns.clone();
        let (keys, exec) = (self.keys, self.exec);
        prefill::lines(&queries, keys, self.params, exec, &mut columns, &mut diagonals)?;
        Ok(Lines { columns, diagonals })
    }

    fn vertical_slash(&self, policy: &VerticalSlash, lines: &Lines) -> Result<BlockLists, Error> {
        Ok(policy.lists(&self.grid, self.heads, &lines.columns, &lines.diagonals)?)
    }

    /// Mean queries against mean keys.
    fn block_sparse(&self, policy: &BlockSparse) -> Result<BlockLists, Error> {
        let (rows, width) = (self.grid.query_blocks(), self.grid.key_blocks());
        let q = self.query_means(rows, BLOCK, self.heads)?;
        let k = self.key_means(self.keys, width, BLOCK, BLOCK, self.kv_heads())?;
        // A block of queries sees the blocks of keys up to its own.
        let positions: Vec<u32> = (0..rows).map(|row| self.grid.visible(row) as u32 - 1).collect();
        let places: Vec<u32> = (0..width as u32).collect();
        let pooled = Blocks { query_block: 1, key_block: 1, pool: Pool::Mass };
        let mut scores = vec![0f32; self.heads * rows * width];
        self.score(&q, &positions, &k, &places, &pooled, &mut scores)?;
        Ok(policy.lists(&self.grid, self.heads, &scores)?)
    }

    /// For each head the pattern that covers most of what its last queries look at.
    fn best(&self, all: &MInference) -> Result<BlockLists, Error> {
        let (shape, sparse, lines): (AShape, BlockSparse, VerticalSlash) =
            all.patterns(self.grid.keys(), BLOCK);
        let sums = self.lines()?;
        let candidates = [
            shape.lists(&self.grid, self.heads)?,
            self.block_sparse(&sparse)?,
            self.vertical_slash(&lines, &sums)?,
        ];
        let candidates: Vec<&BlockLists> = candidates.iter().collect();
        let chosen = choose(&self.grid, &candidates, self.heads, &sums.columns)?;
        Ok(combine(&self.grid, &candidates, &chosen)?)
    }

    fn proxies(&self, policy: &ProxyAttn) -> Result<BlockLists, Error> {
        let (rows, width) = (self.grid.query_blocks(), self.grid.key_blocks());
        let (queries, keys) = (self.queries.q.shape()[0], self.grid.keys());
        let proxies = policy.proxies;
        if !self.kv_heads().is_multiple_of(proxies) {
            let expected = format!("a divisor of {} KV heads", self.kv_heads());
            return Err(Error::setting("proxies", expected, proxies));
        }
        let q = self.query_means(queries, 1, proxies)?;
        let k = self.key_means(self.keys, keys, 1, 1, proxies)?;
        let places: Vec<u32> = (0..keys as u32).collect();
        let pooled = Blocks { query_block: BLOCK, key_block: BLOCK, pool: Pool::Max };
        let mut scores = vec![0f32; proxies * rows * width];
        let positions = self.queries.positions.unwrap_or(&[]);
        self.score(&q, positions, &k, &places, &pooled, &mut scores)?;
        let columns = self.lines()?.columns;
        let blocks = columns.chunks(keys.max(1)).flat_map(|head| head.chunks(BLOCK));
        let last: Vec<f32> = blocks.map(|block| block.iter().sum()).collect();
        Ok(policy.policy().lists(&self.grid, self.heads, proxies, &scores, &last)?)
    }

    fn nsa(&self, policy: &Nsa) -> Result<BlockLists, Error> {
        let places = policy.positions(self.grid.keys());
        let kv_heads = self.kv_heads();
        let mut compressed = vec![0f32; self.heads * self.grid.query_blocks() * places.len()];
        let k = self.key_means(self.keys, places.len(), policy.window, policy.stride, kv_heads)?;
        let slots: Vec<u32> = (0..places.len() as u32).collect();
        let lists = SlotLists {
            indptr: &[0, places.len() as u32],
            slots: &slots,
            positions: Some(&places),
            per_head: false,
        };
        let rows = k.tensor()?;
        let pool = KvPool::from_rows(&rows, &rows)?;
        let pooled = Blocks { query_block: BLOCK, key_block: 1, pool: Pool::Mass };
        let keys = Listed::Slots(&pool, &lists);
        let (queries, exec) = (self.queries, self.exec);
        prefill::blocks(queries, &keys, self.params, &pooled, exec, &mut compressed)?;
        Ok(policy.lists(&self.grid, self.heads, kv_heads, &compressed)?)
    }

    /// Scores of rows against rows, pooled.
    fn score(
        &self,
        q: &Means,
        positions: &[u32],
        k: &Means,
        places: &[u32],
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
        Ok(prefill::blocks(&queries, &keys, self.params, pooled, self.exec, out)?)
    }

    fn key_means(
        &self,
        keys: &Listed,
        n: usize,
        window: usize,
        stride: usize,
        groups: usize,
    ) -> Result<Means, Error> {
        let shape = [n, groups, self.dim];
        let mut data = vec![bf16::ZERO; shape.iter().product()];
        let mut out = Tensor3Mut::contiguous(&mut data, shape)?;
        prefill::means(keys, window, stride, self.exec, &mut out)?;
        Ok(Means { data, shape })
    }

    fn query_means(&self, n: usize, window: usize, groups: usize) -> Result<Means, Error> {
        let pool = KvPool::from_rows(&self.queries.q, &self.queries.q)?;
        let lens = [self.queries.q.shape()[0] as u32];
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
