//! Block-sparse attention: each block of query rows reads a list of key blocks.

use std::ops::Range;

use super::engine::{Job, Unit};
use super::pick::Pick;
use super::reach::Reach;
use super::source::Source;
use super::{Listed, Out, Params, Queries};
use crate::lists::{ascending, check_indptr};
use crate::{Error, Executor, Isa, KvPool, PageLists};

/// Which blocks of a sequence's keys each block of its query rows reads.
///
/// List after list: sequences, in a sequence heads, in a head query blocks. A sequence of `n` query
/// rows has `ceil(n / query_block)` query blocks, counted from its first row in the call.
#[derive(Clone, Copy, Debug)]
pub struct BlockLists<'a> {
    /// Query rows of a block, at least 1; the last block of a sequence may be shorter.
    pub query_block: usize,
    /// Tokens of a key block: a multiple of 16, or the tokens of a page. Block `b` holds tokens
    /// `b * key_block ..` of the sequence's pages; the last one may be shorter.
    pub key_block: usize,
    /// Offsets into `blocks`, one more than there are lists.
    pub indptr: &'a [u32],
    /// Key blocks, strictly ascending in a list.
    pub blocks: &'a [u32],
    /// One list per query head; else one per KV head, which its whole group reads.
    pub per_query_head: bool,
    /// Single tokens that are read besides the blocks.
    pub columns: Option<Columns<'a>>,
}

/// Single tokens that every query block of a head reads, such as the vertical lines of
/// vertical-slash patterns. One list per (sequence, head), heads as in [`BlockLists`]. A token that
/// is in a listed block too is read once.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Offsets into `tokens`, one more than there are lists.
    pub indptr: &'a [u32],
    /// Tokens of the sequence's pages, strictly ascending in a list.
    pub tokens: &'a [u32],
}

/// Attention of blocks of query rows over listed blocks of keys, causal or not.
///
/// A block that lies across the diagonal is masked token by token. An empty list gives o = 0 and
/// lse = -inf. Rows that read the same list go through its keys together; where lists are short of
/// rows, neighbours walk over the union of theirs, and each skips what it does not want, so that
/// keys are read once for all of them (Flash Sparse Attention, arXiv 2508.18224, gathers the queries
/// of a key block in the same way).
///
/// # Errors
/// [`Error`] if shapes, lists or parameters do not fit; nothing is written then.
pub fn blocks(
    queries: &Queries,
    pool: &KvPool,
    lists: &PageLists,
    blocks: &BlockLists,
    params: &Params,
    exec: &Executor,
    out: &mut Out,
) -> Result<(), Error> {
    blocks_at(Isa::level(), queries, pool, lists, blocks, params, exec, out)
}

/// [`blocks`] at a given instruction-set level (lowered to what the CPU has).
///
/// # Errors
/// As [`blocks`].
#[expect(clippy::too_many_arguments, reason = "`blocks` with a level")]
pub fn blocks_at(
    isa: Isa,
    queries: &Queries,
    pool: &KvPool,
    lists: &PageLists,
    blocks: &BlockLists,
    params: &Params,
    exec: &Executor,
    out: &mut Out,
) -> Result<(), Error> {
    let kv_heads = Listed::Pages(pool, lists).check_for(queries, params, out)?;
    blocks.check(queries, pool, lists, kv_heads)?;
    let source = Source::Pages(lists);
    let pick = Pick::Blocks(Picked::new(blocks, queries, kv_heads));
    Job::new(isa, queries, pool, &source, &pick, params).run(exec, out);
    Ok(())
}

impl BlockLists<'_> {
    /// Query blocks of each sequence, and the heads that have lists.
    fn shape(&self, queries: &Queries, kv_heads: usize) -> (Vec<usize>, usize) {
        let rows = queries.indptr.windows(2).map(|w| (w[1] - w[0]) as usize);
        let blocks = rows.map(|n| n.div_ceil(self.query_block)).collect();
        (blocks, if self.per_query_head { queries.q.shape()[1] } else { kv_heads })
    }

    /// Checks every offset, block and column.
    pub(crate) fn check(
        &self,
        queries: &Queries,
        pool: &KvPool,
        pages: &PageLists,
        kv_heads: usize,
    ) -> Result<(), Error> {
        if self.query_block == 0 {
            return Err(Error::range("query_block", "at least 1", 0));
        }
        let page = pool.layout().page_tokens;
        if self.key_block == 0 || !(self.key_block.is_multiple_of(16) || self.key_block == page) {
            let expected = format!("a multiple of 16, or a page of {page}");
            return Err(Error::range("key_block", expected, self.key_block));
        }
        let (blocks, heads) = self.shape(queries, kv_heads);
        let lists: usize = blocks.iter().sum::<usize>() * heads;
        check_indptr("block lists indptr", self.indptr, lists, self.blocks.len())?;
        if let Some(c) = self.columns {
            check_indptr("columns indptr", c.indptr, blocks.len() * heads, c.tokens.len())?;
        }
        let group = heads / kv_heads;
        let mut list = 0;
        for (sequence, &n) in blocks.iter().enumerate() {
            for head in 0..heads {
                let own =
                    if pages.per_head { sequence * kv_heads + head / group } else { sequence };
                let len = pages.lens[own] as usize;
                for w in self.indptr[list..=list + n].windows(2) {
                    let ids = &self.blocks[w[0] as usize..w[1] as usize];
                    ascending("block list", ids, len.div_ceil(self.key_block))?;
                }
                if let Some(c) = self.columns {
                    ascending("columns", c.of(sequence * heads + head), len)?;
                }
                list += n;
            }
        }
        Ok(())
    }
}

impl<'a> Columns<'a> {
    fn of(&self, list: usize) -> &'a [u32] {
        &self.tokens[self.indptr[list] as usize..self.indptr[list + 1] as usize]
    }
}

/// Block lists and where those of each sequence begin.
#[derive(Debug)]
pub(super) struct Picked<'a> {
    lists: &'a BlockLists<'a>,
    /// Heads that have lists.
    heads: usize,
    /// Query blocks of each sequence, its first query row, and the query blocks before it.
    sequences: Vec<(usize, usize, usize)>,
}

/// The lists of a unit: `[query blocks][heads]`, at most 64.
#[derive(Clone, Debug)]
pub(super) struct Members {
    first_row: usize,
    query_block: usize,
    blocks: Range<usize>,
    heads: Range<usize>,
    /// Query heads that share a list.
    sharing: usize,
}

impl Members {
    /// A list for each query token of a unit, shared by its heads.
    pub(super) fn each_row(unit: &Unit) -> Members {
        Members {
            first_row: unit.tokens.start,
            query_block: 1,
            blocks: 0..unit.tokens.len(),
            heads: unit.head..unit.head + 1,
            sharing: unit.heads.len(),
        }
    }

    /// The query tokens, if each has a list.
    pub(super) fn rows(&self) -> Range<usize> {
        self.first_row..self.first_row + self.blocks.len()
    }

    /// Number of lists.
    pub(super) fn len(&self) -> usize {
        self.blocks.len() * self.heads.len()
    }

    /// Which of them a query row and head reads.
    pub(super) fn of(&self, row: usize, head: usize) -> usize {
        let block = (row - self.first_row) / self.query_block - self.blocks.start;
        block * self.heads.len() + head / self.sharing - self.heads.start
    }

    /// Query heads that share a list.
    pub(super) fn sharing(&self) -> usize {
        self.sharing
    }
}

impl<'a> Picked<'a> {
    pub(super) fn new(lists: &'a BlockLists<'a>, queries: &Queries, kv_heads: usize) -> Picked<'a> {
        let (blocks, heads) = lists.shape(queries, kv_heads);
        let mut before = 0;
        let starts = queries.indptr.iter().map(|&row| row as usize);
        let sequence = |(n, row)| {
            before += n;
            (n, row, before - n)
        };
        let sequences = blocks.into_iter().zip(starts).map(sequence).collect();
        Picked { lists, heads, sequences }
    }

    /// Query rows and query heads of a unit that shall have about `rows` rows, given the query rows
    /// of the sequence and the heads of a group.
    pub(super) fn unit_shape(&self, rows: usize, queries: usize, group: usize) -> (usize, usize) {
        if self.lists.per_query_head {
            // Rows of one head first: they have lists in common, or at least most of them.
            let tokens = queries.clamp(1, rows);
            (tokens, (rows / tokens).clamp(1, group))
        } else {
            ((rows / group).max(1), group)
        }
    }

    /// Where units may begin: at multiples of this many rows from the sequence's first.
    pub(super) fn step(&self) -> usize {
        self.lists.query_block
    }

    pub(super) fn members(&self, unit: &Unit) -> Members {
        let (_, first_row, _) = self.sequences[unit.sequence];
        let block = |row: usize| (row - first_row) / self.lists.query_block;
        let blocks = block(unit.tokens.start)..block(unit.tokens.end - 1) + 1;
        let (heads, sharing) = match self.lists.per_query_head {
            true => (unit.heads.clone(), 1),
            false => (unit.head..unit.head + 1, unit.heads.len()),
        };
        Members { first_row, query_block: self.lists.query_block, blocks, heads, sharing }
    }

    /// The key blocks of one query block and head.
    fn list(&self, sequence: usize, head: usize, block: usize) -> &'a [u32] {
        let (n, _, before) = self.sequences[sequence];
        let at = before * self.heads + head * n + block;
        &self.lists.blocks[self.lists.indptr[at] as usize..self.lists.indptr[at + 1] as usize]
    }

    /// The single tokens of a head.
    fn columns(&self, sequence: usize, head: usize) -> &'a [u32] {
        self.lists.columns.map_or(&[], |c| c.of(sequence * self.heads + head))
    }

    /// The union of a unit's lists. `len`: tokens of its pages; `buffers`: scratch.
    pub(super) fn reach(
        &self,
        unit: &Unit,
        members: &Members,
        len: usize,
        buffers: &mut [Vec<u64>; 2],
        reach: &mut Reach,
    ) {
        let [blocks, columns] = buffers;
        let lists = members.blocks.len();
        collect(blocks, members.len(), |i| {
            let (block, head) = (i / members.heads.len(), i % members.heads.len());
            self.list(unit.sequence, members.heads.start + head, members.blocks.start + block)
        });
        collect(columns, members.heads.len(), |i| {
            self.columns(unit.sequence, members.heads.start + i)
        });
        let columns = joined(columns).map(|(token, heads)| {
            // A head's columns belong to all of its lists.
            (token, (0..lists).fold(0, |who, b| who | heads << (b * members.heads.len())))
        });
        sweep(joined(blocks), columns, self.lists.key_block, len, reach);
    }
}

/// Bits of an entry that say which list it is from.
const LIST_BITS: u32 = 6;

/// Gathers the ids of `n` lists, sorted, each with the number of its list.
fn collect<'a>(entries: &mut Vec<u64>, n: usize, list: impl Fn(usize) -> &'a [u32]) {
    entries.clear();
    for i in 0..n {
        entries.extend(list(i).iter().map(|&id| u64::from(id) << LIST_BITS | i as u64));
    }
    if n > 1 {
        entries.sort_unstable();
    }
}

/// Equal ids as one, with a bit for each list they are from.
fn joined(entries: &[u64]) -> impl Iterator<Item = (usize, u64)> + '_ {
    let same = |a: &u64, b: &u64| a >> LIST_BITS == b >> LIST_BITS;
    entries.chunk_by(same).map(|same| {
        let who = same.iter().fold(0, |who, e| who | 1 << (e & ((1 << LIST_BITS) - 1)));
        ((same[0] >> LIST_BITS) as usize, who)
    })
}

/// Turns blocks and single tokens, both ascending, into runs; a token that its reader also has in a
/// block is read once.
fn sweep(
    blocks: impl Iterator<Item = (usize, u64)>,
    columns: impl Iterator<Item = (usize, u64)>,
    key_block: usize,
    len: usize,
    reach: &mut Reach,
) {
    reach.clear();
    let mut columns = columns.peekable();
    for (block, who) in blocks {
        let (mut at, end) = (block * key_block, ((block + 1) * key_block).min(len));
        while let Some((token, also)) = columns.next_if(|c| c.0 < end) {
            if token < at {
                reach.push(token..token + 1, also);
            } else {
                reach.push(at..token, who);
                reach.push(token..token + 1, who | also);
                at = token + 1;
            }
        }
        reach.push(at..end, who);
    }
    columns.for_each(|(token, who)| reach.push(token..token + 1, who));
}
