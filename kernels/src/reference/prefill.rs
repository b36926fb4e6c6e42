//! Attention probabilities of every query and key, and what prefill chooses by.

use super::{Tokens, logits, visible};
use crate::KvPool;
use crate::attend::{Params, Queries};
use crate::score::prefill::{Blocks, Pool};

/// Probabilities of one sequence's queries, `[q_heads][rows][tokens]`; `tokens` has one list, or one
/// for each KV head. Where a score is NaN so is the probability, and the others are those without it.
///
/// # Panics
/// If lists and queries do not fit.
#[must_use]
pub fn probabilities(
    queries: &Queries,
    pool: &KvPool,
    tokens: &[Tokens],
    kv_heads: usize,
    params: &Params,
) -> Vec<Vec<Vec<f64>>> {
    let [rows, q_heads, dim] = queries.q.shape();
    let one = |head: usize, row: usize| {
        let kv_head = head / (q_heads / kv_heads);
        let list = &tokens[if tokens.len() > 1 { kv_head } else { 0 }];
        let mut q = vec![0f32; dim];
        queries.q.read_f32(row, head, &mut q);
        let pool_head = if pool.layout().kv_heads == 1 { 0 } else { kv_head };
        let sees = visible(queries.positions.map(|p| p[row]), params);
        let hide =
            |(s, t): (f64, &(usize, usize, u32))| if sees(t.2) { s } else { f64::NEG_INFINITY };
        let scores: Vec<f64> =
            logits(&q, pool, pool_head, list, params).into_iter().zip(list).map(hide).collect();
        let sink = params.sinks.map(|s| f64::from(s[head]));
        let known = || scores.iter().copied().filter(|s| !s.is_nan()).chain(sink);
        let top = known().fold(f64::NEG_INFINITY, f64::max);
        let top = if top == f64::NEG_INFINITY { 0.0 } else { top };
        let sum: f64 = known().map(|s| (s - top).exp()).sum();
        let share = |s: &f64| if *s == f64::NEG_INFINITY { 0.0 } else { (s - top).exp() / sum };
        scores.iter().map(share).collect()
    };
    (0..q_heads).map(|head| (0..rows).map(|row| one(head, row)).collect()).collect()
}

/// Sums over rows, `[q_heads][tokens]`.
#[must_use]
pub fn sum_columns(p: &[Vec<Vec<f64>>]) -> Vec<Vec<f64>> {
    let tokens = |head: &[Vec<f64>]| head.first().map_or(0, Vec::len);
    let sum = |head: &Vec<Vec<f64>>| {
        (0..tokens(head)).map(|t| head.iter().map(|row| row[t]).sum()).collect()
    };
    p.iter().map(sum).collect()
}

/// Sums over pairs at each distance, `[q_heads][distances]`: row `r` is at `positions[r]`, token `t` at
/// `keys[t]`.
#[must_use]
pub fn sum_diagonals(
    p: &[Vec<Vec<f64>>],
    positions: &[u32],
    keys: &[u32],
    distances: usize,
) -> Vec<Vec<f64>> {
    let sum = |head: &Vec<Vec<f64>>| {
        let mut out = vec![0f64; distances];
        for (row, &at) in head.iter().zip(positions) {
            for (&p, &key) in row.iter().zip(keys) {
                if key <= at && ((at - key) as usize) < distances {
                    out[(at - key) as usize] += p;
                }
            }
        }
        out
    };
    p.iter().map(sum).collect()
}

/// Pooled over a grid, `[q_heads][query blocks][key blocks]`.
#[must_use]
pub fn pool_blocks(p: &[Vec<Vec<f64>>], grid: &Blocks) -> Vec<Vec<Vec<f64>>> {
    let block = |rows: &[Vec<f64>], from: usize| -> f64 {
        let cells = || rows.iter().flat_map(|row| &row[from..row.len().min(from + grid.key_block)]);
        match grid.pool {
            Pool::Max if cells().any(|p| p.is_nan()) => f64::NAN,
            Pool::Max => cells().copied().fold(0.0, f64::max),
            Pool::Mass => cells().sum::<f64>() / rows.len() as f64,
        }
    };
    let of_rows = |rows: &[Vec<f64>]| {
        (0..rows[0].len()).step_by(grid.key_block).map(|from| block(rows, from)).collect()
    };
    p.iter().map(|head| head.chunks(grid.query_block).map(of_rows).collect()).collect()
}
