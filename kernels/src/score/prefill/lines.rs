//! Probabilities summed over columns and diagonals.

use std::sync::Mutex;

use super::{CHUNK, Call, ROWS, Strip};
use crate::attend::{Listed, Params, Queries};
use crate::select::{fold_mass, lse2_strided};
use crate::{Error, Executor, Isa};

/// Sums of attention probabilities over the query rows, for each key (`columns`, `[q_heads, tokens]`)
/// and for each distance from query to key (`diagonals`, `[q_heads, distances]`): element `n` of a
/// head's diagonals is the sum over all pairs whose key lies `n` positions before the query; longer
/// distances than there is room for are left out. Both are overwritten.
///
/// With the last 64 queries of a prompt these are the estimates of MInference (NeurIPS 2024, arXiv
/// 2407.02490); columns alone rank the tokens for SlimInfer (arXiv 2508.06447) and give
/// ProxyAttn's budgets (arXiv 2509.24745).
///
/// # Errors
/// [`Error`] if shapes, lists or parameters do not fit, if there is more than one sequence, or if
/// diagonals are wanted without [`Params::causal`].
pub fn lines(
    queries: &Queries,
    keys: &Listed,
    params: &Params,
    exec: &Executor,
    columns: &mut [f32],
    diagonals: &mut [f32],
) -> Result<(), Error> {
    lines_at(Isa::level(), queries, keys, params, exec, columns, diagonals)
}

/// [`lines`] at a given instruction-set level (lowered to what the CPU has).
///
/// # Errors
/// As [`lines`].
pub fn lines_at(
    isa: Isa,
    queries: &Queries,
    keys: &Listed,
    params: &Params,
    exec: &Executor,
    columns: &mut [f32],
    diagonals: &mut [f32],
) -> Result<(), Error> {
    let call = Call::new(isa, queries, keys, params)?;
    let heads = call.q_heads();
    if columns.len() != heads * call.len {
        return Err(Error::shape("columns", heads * call.len, columns.len()));
    }
    if !diagonals.len().is_multiple_of(heads.max(1)) {
        return Err(Error::shape("diagonals", format!("rows of {heads} heads"), diagonals.len()));
    }
    if !diagonals.is_empty() && !params.causal {
        return Err(Error::shape("diagonals", "none without a causal mask", diagonals.len()));
    }
    columns.fill(0.0);
    diagonals.fill(0.0);
    let distances = diagonals.len() / heads.max(1);
    let mut rest = diagonals;
    let mut parts = Vec::new();
    for columns in columns.chunks_mut(call.len.max(1)) {
        let (own, after) = rest.split_at_mut(distances);
        parts.push(Mutex::new((columns, own)));
        rest = after;
    }
    exec.run(parts.len(), |head| {
        if let Ok(mut part) = parts[head].lock() {
            let (columns, diagonals) = &mut *part;
            one(&call, head, columns, diagonals);
        }
    });
    Ok(())
}

/// All query rows of one head.
fn one(call: &Call, head: usize, columns: &mut [f32], diagonals: &mut [f32]) {
    let mut strip = call.strip();
    for from in (0..call.rows()).step_by(ROWS) {
        let rows = from..(from + ROWS).min(call.rows());
        let mut lse = call.start(head, rows.len());
        call.walk(&mut strip, head, rows.clone(), |_, n, s| {
            lse2_strided(s, CHUNK, n, 1.0, &mut lse)
        });
        add(call, &mut strip, head, from, &lse, columns, diagonals);
    }
}

/// Adds the probabilities of a strip's rows, now that their sums are known.
fn add(
    call: &Call,
    strip: &mut Strip,
    head: usize,
    from: usize,
    lse: &[f32],
    columns: &mut [f32],
    diagonals: &mut [f32],
) {
    let list = call.list(head).1;
    let mut p = [0f32; CHUNK];
    call.walk(strip, head, from..from + lse.len(), |first, n, s| {
        for (r, (s, lse)) in s.chunks_exact(CHUNK).zip(lse).enumerate() {
            let p = &mut p[..n];
            fold_mass(&s[..n], n, 1.0, std::slice::from_ref(lse), p);
            columns[first..first + n].iter_mut().zip(&*p).for_each(|(c, p)| *c += p);
            let Some(at) = call.queries.positions.map(|p| p[from + r]) else { continue };
            for (i, &p) in p.iter().enumerate() {
                // A key behind the query has no probability.
                let distance = at.wrapping_sub(call.source.position(list, first + i)) as usize;
                if let Some(d) = diagonals.get_mut(distance) {
                    *d += p;
                }
            }
        }
    });
}
