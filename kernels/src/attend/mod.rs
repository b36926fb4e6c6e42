//! Exact attention of a few or many query rows over listed pages, slots or blocks of keys, with
//! log-sum-exp out, and the merge of partial results.
//!
//! One core operation: everything else (prefix sharing, tiers, KV-parallel) is a list builder in
//! front of it or a [`merge`] behind it. The query heads of a KV head are rows of one block, so K
//! and V are read once per KV head. Scores and sums are f32; the log-sum-exp is base 2. An empty
//! list gives o = 0 and lse = -inf. A NaN or infinite key reaches only the rows that see it.
//!
//! Sources: FlashAttention (online softmax), FlashInfer (arXiv 2501.01005, page lists and
//! composable (o, lse) states), LeanAttention (arXiv 2405.10480, stream-K).

mod blocks;
mod engine;
mod listed;
mod merge;
mod pick;
mod reach;
pub(crate) mod sink;
pub(crate) mod source;
mod tree;
mod walk;

use crate::{Error, Executor, Isa, KvPool, PageLists, SlotLists, Tensor3, Tensor3Mut};
pub use blocks::{BlockLists, Columns, blocks, blocks_at};
use engine::Job;
pub use listed::Listed;
pub use merge::merge;
use pick::Pick;
use source::Source;
pub use tree::{DraftKeys, ROOT, Trees, tree, tree_at};

/// Ragged queries: sequence `b` owns rows `indptr[b]..indptr[b + 1]` of `q`.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[rows, q_heads, dim_k]`, any dtype. Query head `h` reads KV head `h / (q_heads / kv_heads)`.
    pub q: Tensor3<'a>,
    /// Row offsets, one more than there are sequences.
    pub indptr: &'a [u32],
    /// Absolute position of each row; needed when [`Params::causal`] or [`Params::window`] is set.
    pub positions: Option<&'a [u32]>,
}

/// How scores become weights.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    /// Multiplies q.k; finite and above 0 (usually 1/sqrt(dim_k)).
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`; 0 is off.
    pub soft_cap: f32,
    /// A token is visible if its position is above `query position - window`; 0 is off.
    pub window: u32,
    /// A token is visible if its position is at most the query's.
    pub causal: bool,
    /// One learned logit per query head that joins the softmax (and the lse) without a value.
    pub sinks: Option<&'a [f32]>,
    /// Keep queries and weights in f32 where the CPU level would round them to bf16.
    pub precise: bool,
}

impl Params<'_> {
    /// Plain softmax attention with this scale: no cap, window, mask or sinks.
    #[must_use]
    pub fn new(scale: f32) -> Self {
        Params { scale, soft_cap: 0.0, window: 0, causal: false, sinks: None, precise: false }
    }
}

/// Where results go.
#[derive(Debug)]
pub struct Out<'a> {
    /// `[rows, q_heads, dim_v]`, any dtype, rounded to nearest even.
    pub o: Tensor3Mut<'a>,
    /// Base-2 log-sum-exp of the scaled logits, `[rows, q_heads]`; -inf where nothing was visible.
    pub lse2: Option<&'a mut [f32]>,
}

/// Attention over page lists.
///
/// # Errors
/// [`Error`] if shapes, lists or parameters do not fit; nothing is written then.
pub fn pages(
    queries: &Queries,
    pool: &KvPool,
    lists: &PageLists,
    params: &Params,
    exec: &Executor,
    out: &mut Out,
) -> Result<(), Error> {
    pages_at(Isa::level(), queries, pool, lists, params, exec, out)
}

/// [`pages`] at a given instruction-set level (lowered to what the CPU has).
///
/// # Errors
/// As [`pages`].
pub fn pages_at(
    isa: Isa,
    queries: &Queries,
    pool: &KvPool,
    lists: &PageLists,
    params: &Params,
    exec: &Executor,
    out: &mut Out,
) -> Result<(), Error> {
    Listed::Pages(pool, lists).check_for(queries, params, out)?;
    Job::new(isa, queries, pool, &Source::Pages(lists), &Pick::All, params).run(exec, out);
    Ok(())
}

/// Attention over listed tokens.
///
/// # Errors
/// [`Error`] if shapes, lists or parameters do not fit; nothing is written then.
pub fn slots(
    queries: &Queries,
    pool: &KvPool,
    lists: &SlotLists,
    params: &Params,
    exec: &Executor,
    out: &mut Out,
) -> Result<(), Error> {
    slots_at(Isa::level(), queries, pool, lists, params, exec, out)
}

/// [`slots`] at a given instruction-set level (lowered to what the CPU has).
///
/// # Errors
/// As [`slots`].
pub fn slots_at(
    isa: Isa,
    queries: &Queries,
    pool: &KvPool,
    lists: &SlotLists,
    params: &Params,
    exec: &Executor,
    out: &mut Out,
) -> Result<(), Error> {
    Listed::Slots(pool, lists).check_for(queries, params, out)?;
    Job::new(isa, queries, pool, &Source::Slots(lists), &Pick::All, params).run(exec, out);
    Ok(())
}

/// Chunked prefill: many causal query rows over pages that already hold their keys.
///
/// The same operation as [`pages`] with [`Params::causal`] set, whatever `params` says.
///
/// # Errors
/// As [`pages`].
pub fn prefill(
    queries: &Queries,
    pool: &KvPool,
    lists: &PageLists,
    params: &Params,
    exec: &Executor,
    out: &mut Out,
) -> Result<(), Error> {
    pages(queries, pool, lists, &Params { causal: true, ..*params }, exec, out)
}

/// KV heads the lists cover. A pool of one-head frames serves any number of KV heads through
/// per-head lists; the number of lists then says how many.
fn pool_heads(
    queries: &Queries,
    pool: &KvPool,
    per_head: bool,
    sequences: usize,
    lists: usize,
) -> Result<usize, Error> {
    let heads = match (per_head, pool.layout().kv_heads) {
        (true, 1) if sequences > 0 => lists / sequences,
        (_, heads) => heads,
    };
    let q_heads = queries.q.shape()[1];
    if heads == 0 || !q_heads.is_multiple_of(heads) {
        return Err(Error::shape("q heads", format!("a multiple of {heads} KV heads"), q_heads));
    }
    Ok(heads)
}

/// Checks that the output has room for every row.
fn check_out(queries: &Queries, pool: &KvPool, out: &Out) -> Result<(), Error> {
    let [rows, heads, _] = queries.q.shape();
    let want = [rows, heads, pool.layout().dim_v];
    if out.o.shape() != want {
        return Err(Error::shape("out", format!("{want:?}"), format!("{:?}", out.o.shape())));
    }
    match &out.lse2 {
        Some(lse) if lse.len() != rows * heads => {
            Err(Error::shape("lse2", rows * heads, lse.len()))
        }
        _ => Ok(()),
    }
}

/// Checks queries and parameters against the pool; returns the number of sequences.
fn check_queries(queries: &Queries, pool: &KvPool, params: &Params) -> Result<usize, Error> {
    let [rows, heads, dim] = queries.q.shape();
    let layout = pool.layout();
    if dim != layout.dim_k {
        return Err(Error::shape("q", format!("dim_k {}", layout.dim_k), dim));
    }
    let indptr = queries.indptr;
    let ordered = indptr.first() == Some(&0) && indptr.windows(2).all(|w| w[0] <= w[1]);
    if !ordered || indptr.last().map(|&n| n as usize) != Some(rows) {
        let found = format!("{indptr:?}");
        return Err(Error::shape("query indptr", format!("offsets from 0 up to {rows}"), found));
    }
    match queries.positions {
        Some(p) if p.len() != rows => return Err(Error::shape("query positions", rows, p.len())),
        None if params.causal || params.window > 0 => {
            return Err(Error::shape("query positions", "one per row for a mask", "none"));
        }
        _ => {}
    }
    if !(params.scale.is_finite() && params.scale > 0.0) {
        return Err(Error::range("scale", "finite and above 0", params.scale));
    }
    if !(params.soft_cap.is_finite() && params.soft_cap >= 0.0) {
        return Err(Error::range("soft_cap", "finite and at least 0", params.soft_cap));
    }
    if let Some(s) = params.sinks {
        if s.len() != heads {
            return Err(Error::shape("sinks", format!("{heads} logits"), s.len()));
        }
        if let Some(x) = s.iter().find(|x| x.is_nan() || **x == f32::INFINITY) {
            return Err(Error::range("sinks", "finite logits or -inf", x));
        }
    }
    Ok(indptr.len() - 1)
}
