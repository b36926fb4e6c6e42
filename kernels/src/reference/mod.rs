//! Attention in f64, token by token: the oracle of every kernel. Slow and plain on purpose.

mod prefill;
mod quant;

use crate::attend::{BlockLists, Params, Queries, ROOT};
use crate::{KvPool, PageLists, SlotLists};
pub use prefill::{pool_blocks, probabilities, sum_columns, sum_diagonals};
pub use quant::{dequantised, rotated};

/// Frame, offset and position of each token of a list.
type Tokens = Vec<(usize, usize, u32)>;

/// Output `[rows, q_heads, dim_v]` and base-2 log-sum-exp `[rows, q_heads]`, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Attended {
    /// `[rows, q_heads, dim_v]`
    pub o: Vec<f64>,
    /// `[rows, q_heads]`
    pub lse2: Vec<f64>,
}

/// Tokens of each page list.
#[must_use]
pub fn page_tokens(pool: &KvPool, lists: &PageLists) -> Vec<Tokens> {
    let page = pool.layout().page_tokens;
    (0..lists.lens.len())
        .map(|i| {
            let frames = &lists.frames[lists.indptr[i] as usize..];
            let first = lists.first_pos.map_or(0, |f| f[i]);
            (0..lists.lens[i] as usize)
                .map(|t| (frames[t / page] as usize, t % page, first + t as u32))
                .collect()
        })
        .collect()
}

/// Tokens of each slot list.
#[must_use]
pub fn slot_tokens(pool: &KvPool, lists: &SlotLists) -> Vec<Tokens> {
    let page = pool.layout().page_tokens;
    (0..lists.indptr.len() - 1)
        .map(|i| {
            (lists.indptr[i] as usize..lists.indptr[i + 1] as usize)
                .map(|at| {
                    let slot = lists.slots[at] as usize;
                    (slot / page, slot % page, lists.positions.map_or(0, |p| p[at]))
                })
                .collect()
        })
        .collect()
}

/// Softmax attention over the tokens of each list, all arithmetic in f64.
///
/// # Panics
/// If lists and queries do not fit (the kernels check; the oracle trusts).
#[must_use]
pub fn attend(
    queries: &Queries,
    pool: &KvPool,
    tokens: &[Tokens],
    per_head: bool,
    params: &Params,
) -> Attended {
    attend_where(queries, pool, tokens, per_head, params, |_, _, _| true)
}

/// Attention over listed blocks and columns, all arithmetic in f64.
///
/// # Panics
/// As [`attend`].
#[must_use]
pub fn attend_blocks(
    queries: &Queries,
    pool: &KvPool,
    pages: &PageLists,
    lists: &BlockLists,
    params: &Params,
) -> Attended {
    let tokens = page_tokens(pool, pages);
    let rows: Vec<usize> = queries.indptr.windows(2).map(|w| (w[1] - w[0]) as usize).collect();
    let q_heads = queries.q.shape()[1];
    let kv_heads = kv_heads(pool, tokens.len(), pages.per_head, rows.len());
    let heads = if lists.per_query_head { q_heads } else { kv_heads };
    let has = |indptr: &[u32], ids: &[u32], list: usize, id: usize| {
        ids[indptr[list] as usize..indptr[list + 1] as usize].contains(&(id as u32))
    };
    let wanted = |row: usize, q_head: usize, token: usize| {
        let sequence = sequence_of(queries, row);
        let head = q_head * heads / q_heads;
        let blocks = |s: usize| rows[s].div_ceil(lists.query_block);
        let before: usize = (0..sequence).map(blocks).sum();
        let block = (row - queries.indptr[sequence] as usize) / lists.query_block;
        let list = before * heads + head * blocks(sequence) + block;
        has(lists.indptr, lists.blocks, list, token / lists.key_block)
            || lists
                .columns
                .is_some_and(|c| has(c.indptr, c.tokens, sequence * heads + head, token))
    };
    attend_where(queries, pool, &tokens, pages.per_head, params, wanted)
}

/// Attention of draft trees, all arithmetic in f64. `context` and `own` are a pool, its tokens and
/// whether there is a list for each KV head; `parents[row]` as in
/// [`Trees::new`](crate::attend::Trees::new).
///
/// # Panics
/// As [`attend`].
#[must_use]
pub fn attend_tree(
    queries: &Queries,
    context: (&KvPool, &[Tokens], bool),
    own: (&KvPool, &[Tokens], bool),
    parents: &[u32],
    params: &Params,
) -> Attended {
    let params = Params { causal: false, ..*params };
    let below = Params { sinks: None, window: 0, ..params };
    let most = if params.window == 0 { usize::MAX } else { params.window as usize };
    let wanted = |row: usize, _: usize, token: usize| {
        let first = queries.indptr[sequence_of(queries, row)] as usize;
        let mut at = (row - first) as u32;
        for _ in 0..most {
            if at as usize == token {
                return true;
            }
            match parents[first + at as usize] {
                ROOT => return false,
                parent => at = parent,
            }
        }
        false
    };
    let above = attend(queries, context.0, context.1, context.2, &params);
    let tree = attend_where(queries, own.0, own.1, own.2, &below, wanted);
    merge(&above, &tree)
}

/// Joins two results over disjoint tokens.
fn merge(a: &Attended, b: &Attended) -> Attended {
    let dim = a.o.len() / a.lse2.len().max(1);
    let mut out = Attended { o: Vec::new(), lse2: Vec::new() };
    for (row, (&x, &y)) in a.lse2.iter().zip(&b.lse2).enumerate() {
        let top = if x > y || x.is_nan() { x } else { y };
        let weigh = |lse: f64| if lse == f64::NEG_INFINITY { 0.0 } else { (lse - top).exp2() };
        let sum = weigh(x) + weigh(y);
        let (p, q) = if sum == 0.0 { (0.0, 0.0) } else { (weigh(x) / sum, weigh(y) / sum) };
        // A part without weight does not count, whatever it holds.
        let times = |p: f64, x: f64| if p == 0.0 { 0.0 } else { p * x };
        let rows = a.o[row * dim..(row + 1) * dim].iter().zip(&b.o[row * dim..]);
        out.o.extend(rows.map(|(&a, &b)| times(p, a) + times(q, b)));
        out.lse2.push(if sum == 0.0 { f64::NEG_INFINITY } else { top + sum.log2() });
    }
    out
}

fn kv_heads(pool: &KvPool, lists: usize, per_head: bool, sequences: usize) -> usize {
    if per_head { lists / sequences.max(1) } else { pool.layout().kv_heads }
}

fn sequence_of(queries: &Queries, row: usize) -> usize {
    queries.indptr[1..].iter().take_while(|&&n| n as usize <= row).count()
}

/// [`attend`] over those tokens of a list for which `wanted(row, query head, index)` holds.
///
/// # Panics
/// As [`attend`].
#[must_use]
pub fn attend_where(
    queries: &Queries,
    pool: &KvPool,
    tokens: &[Tokens],
    per_head: bool,
    params: &Params,
    wanted: impl Fn(usize, usize, usize) -> bool,
) -> Attended {
    let [rows, q_heads, dim_k] = queries.q.shape();
    let kv_heads = kv_heads(pool, tokens.len(), per_head, queries.indptr.len() - 1);
    let group = q_heads / kv_heads.max(1);
    let mut out = Attended { o: Vec::new(), lse2: Vec::new() };
    for row in 0..rows {
        let sequence = sequence_of(queries, row);
        for head in 0..q_heads {
            let kv_head = head / group;
            let list = if per_head { sequence * kv_heads + kv_head } else { sequence };
            let mut q = vec![0f32; dim_k];
            queries.q.read_f32(row, head, &mut q);
            let pool_head = if pool.layout().kv_heads == 1 { 0 } else { kv_head };
            let sees = visible(queries.positions.map(|p| p[row]), params);
            let all = tokens[list].iter().enumerate();
            let seen = all.filter(|(i, t)| sees(t.2) && wanted(row, head, *i)).map(|(_, &t)| t);
            let sink = params.sinks.map(|s| f64::from(s[head]));
            one(&q, pool, pool_head, &seen.collect(), params, sink, &mut out);
        }
    }
    out
}

/// Whether a query at `position` sees a token at another.
fn visible(position: Option<u32>, params: &Params) -> impl Fn(u32) -> bool {
    let (causal, window) = (params.causal, u64::from(params.window));
    move |p: u32| {
        let Some(at) = position else { return true };
        let in_window = window == 0 || u64::from(p) + window > u64::from(at);
        in_window && (!causal || p <= at)
    }
}

fn read(pool: &KvPool, ptr: *const u8, dim: usize) -> Vec<f32> {
    let mut row = vec![0f32; dim];
    // SAFETY: the pool vouches for the rows of listed tokens.
    unsafe { crate::convert::widen(pool.dtype(), ptr, &mut row) }
    row
}

/// Scaled and capped scores of one query row.
fn logits(q: &[f32], pool: &KvPool, head: usize, tokens: &Tokens, params: &Params) -> Vec<f64> {
    let logit = |&(frame, offset, _): &(usize, usize, u32)| {
        let k = read(pool, pool.k_row(frame, head, offset), pool.layout().dim_k);
        let dot: f64 = q.iter().zip(&k).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        let s = dot * f64::from(params.scale);
        let cap = f64::from(params.soft_cap);
        if cap > 0.0 { cap * (s / cap).tanh() } else { s }
    };
    tokens.iter().map(logit).collect()
}

fn one(
    q: &[f32],
    pool: &KvPool,
    head: usize,
    tokens: &Tokens,
    params: &Params,
    sink: Option<f64>,
    out: &mut Attended,
) {
    let layout = pool.layout();
    let scores = logits(q, pool, head, tokens, params);
    let top = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let reference = if top == f64::NEG_INFINITY { 0.0 } else { top };
    let mut sum = sink.map_or(0.0, |s| (s - reference).exp());
    let mut o = vec![0f64; layout.dim_v];
    for (score, &(frame, offset, _)) in scores.iter().zip(tokens) {
        let p = (score - reference).exp();
        sum += p;
        let v = read(pool, pool.v_row(frame, head, offset), layout.dim_v);
        o.iter_mut().zip(&v).for_each(|(o, &x)| *o += p * f64::from(x));
    }
    let empty = sum == 0.0;
    out.o.extend(o.iter().map(|x| if empty { 0.0 } else { x / sum }));
    let lse = (reference + sum.ln()) * std::f64::consts::LOG2_E;
    out.lse2.push(if empty { f64::NEG_INFINITY } else { lse });
}
