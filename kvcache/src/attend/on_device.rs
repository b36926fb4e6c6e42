//! Queries that choose on the GPU what they read.

use std::ops::Range;
use std::sync::Arc;

use kvist_kernels::attend::Out;
use kvist_kernels::cuda::{StepChoice, StepRow, params};
use kvist_kernels::{Tensor3, Tensor3Mut};
use kvist_policies::{Boxed, Digest, Fold, Method, Parts, Reuse, Row, Scope};

use super::compose::{Weighed, keep_of};
use super::{AttendInfo, BytesRead, Call, Run};
use crate::device::{Selected, Selection, SelectionRow};
use crate::summaries::{Spec, Store, TILE};
use crate::{Error, Sequence};

/// Attends where the GPU can choose: units by their boxes, or tokens by their codes, by each KV head for itself. None if
/// the CPU has to.
pub(super) fn attend(
    call: &Call,
    run: &Run,
    q: &Tensor3,
    out: &mut Tensor3Mut,
) -> Result<Option<Vec<AttendInfo>>, Error> {
    let Some(device) = &call.cache.shared.device else { return Ok(None) };
    let Some((store, rule)) = alike(call, run) else { return Ok(None) };
    let plain = call.params.soft_cap == 0.0;
    let Some(choice) = rule.choice(plain, store) else { return Ok(None) };
    let heads = call.cache.geometry().kv_heads;
    let row = |i: usize| {
        let layer = &run.sequences[i / heads].layers[call.layer];
        SelectionRow {
            pages: run.ids(call, i / heads, i % heads),
            cells: layer.heads[i % heads].cell_ids(),
            reads: rule.reads(layer.len),
        }
    };
    let rows: Vec<SelectionRow> = (0..run.sequences.len() * heads).map(row).collect();
    let (scale, soft_cap) = (call.params.scale, call.params.soft_cap);
    let selection = Selection { layer: call.layer, q, rows: &rows, store, choice, scale, soft_cap };
    let mut to = Out { o: out.rows_mut(0, q.shape()[0]), lse2: None };
    let Some(selected) = device.select(&selection, &mut to)? else { return Ok(None) };
    Ok(Some(infos(call, &selection, &selected)))
}

/// What a head goes by.
#[derive(Clone, Copy, PartialEq)]
enum Rule<'a> {
    Units(&'a Parts),
    Tokens(&'a Boxed),
}

/// What all heads of all sequences go by, if it is one thing that the GPU can do.
fn alike<'a>(call: &Call, run: &Run<'a>) -> Option<(&'a Store, Rule<'a>)> {
    if call.options.bound || call.params.sinks.is_some() {
        return None;
    }
    let heads = call.cache.geometry().kv_heads;
    let of = |sequence: &'a Sequence, head: usize| {
        let layer = &sequence.layers[call.layer];
        let store = layer.heads[head].store(sequence.selector.store.as_ref())?;
        Some((store, Rule::of(sequence.selector.method(call.layer, head, layer.len))?))
    };
    let (store, rule) = of(run.sequences.first()?, 0)?;
    let same =
        |(other, own): (&Store, Rule)| Arc::ptr_eq(&other.arena, &store.arena) && own == rule;
    let mut all = run.sequences.iter().flat_map(|s| (0..heads).map(move |head| (s, head)));
    all.all(|(s, head)| of(s, head).is_some_and(same)).then_some((store, rule))
}

/// What the GPU can choose for a selector with these summaries, if there is no soft-cap.
pub(crate) fn choice(method: &Method, store: &Store) -> Option<StepChoice> {
    Rule::of(method)?.choice(true, store)
}

impl<'a> Rule<'a> {
    fn of(method: &'a Method) -> Option<Rule<'a>> {
        match method {
            Method::Parts(parts) => Some(Rule::Units(parts)),
            Method::Boxed(boxed) => Some(Rule::Tokens(boxed)),
            Method::Full => None,
        }
    }

    /// What the GPU is told of it, if it can do it; `plain` without a soft-cap.
    fn choice(&self, plain: bool, store: &Store) -> Option<StepChoice> {
        match (self, &store.spec) {
            (Rule::Units(parts), Spec::Units(_)) => {
                let fold = match parts.fold {
                    Fold::Max => params::Fold::Max,
                    // A mean of bent scores is not that of the scores.
                    Fold::Mean if plain => params::Fold::Mean,
                    _ => return None,
                };
                let boxes =
                    matches!(parts.digest, Digest::Units { row: Row::Box | Row::MeanBox, .. });
                let alone = parts.scope == Scope::KvHead && parts.reuse == Reuse::Never;
                let tokens = parts.unit_tokens();
                let choice = StepChoice::Units { tokens, cell: TILE / tokens, fold };
                (boxes && alone && parts.refine.is_none()).then_some(choice)
            }
            (Rule::Tokens(boxed), Spec::Boxed(spec)) => {
                let fixed = boxed.top_p.is_none() && boxed.max_missed_mass.is_none();
                let choice = StepChoice::Tokens { planes: spec.planes() as usize };
                let anew = boxed.reuse.is_none() && boxed.residency == 0.0;
                (fixed && plain && anew).then_some(choice)
            }
            _ => None,
        }
    }

    /// What a head of a sequence of `len` tokens reads.
    fn reads(&self, len: usize) -> StepRow {
        match self {
            Rule::Units(parts) => {
                let unit = parts.unit_tokens();
                let weighed = Weighed::new(keep_of(parts, len, len), unit);
                let units = len.div_ceil(unit);
                let first = weighed.keep[0].end.div_ceil(unit);
                let last = units - (weighed.keep[1].start / unit).clamp(first, units);
                let picked = weighed.count(parts.rule, len).min(weighed.len());
                StepRow { tokens: len, keep: [first, last], wanted: first + last + picked }
            }
            Rule::Tokens(boxed) => {
                let keep = boxed.keep().ranges(len, len / TILE * TILE).map(|range| range.len());
                let wanted = boxed.floor_tokens().max(keep[0] + keep[1]).min(len);
                StepRow { tokens: len, keep, wanted }
            }
        }
    }
}

/// Bytes of summaries that tell of a sequence of `tokens` tokens, for one head.
fn summary_bytes(store: &Store, tokens: usize) -> u64 {
    let bytes = match &store.spec {
        Spec::Units(spec) | Spec::Pruned(spec, _) => {
            tokens.div_ceil(spec.unit_tokens()) * spec.row_bytes()
        }
        Spec::Boxed(spec) => tokens / TILE * spec.cell_bytes(),
    };
    bytes as u64
}

fn infos(call: &Call, selection: &Selection, selected: &Selected) -> Vec<AttendInfo> {
    let g = call.cache.geometry();
    let (unit, by_keys) = match selection.choice {
        StepChoice::Units { tokens, .. } => (tokens, false),
        StepChoice::Tokens { .. } => (1, true),
    };
    let tokens = |row: usize, u: u32| -> Range<u32> {
        let first = u as usize * unit;
        first as u32..(first + unit).min(selection.rows[row].reads.tokens) as u32
    };
    let count = |row: usize| -> u32 {
        selected.units[row].iter().map(|&u| tokens(row, u).len() as u32).sum()
    };
    let positions =
        |row: usize| selected.units[row].iter().flat_map(|&u| tokens(row, u)).collect::<Vec<u32>>();
    let of = |i: usize| {
        let rows = i * g.kv_heads..(i + 1) * g.kv_heads;
        let tokens_read: Vec<u32> = rows.clone().map(count).collect();
        let sum = |of: &dyn Fn(&SelectionRow) -> u64| -> u64 {
            selection.rows[rows.clone()].iter().map(of).sum()
        };
        let key = (g.dim_k * g.dtype.size()) as u64;
        // Candidates that were looked at and not read.
        let spared = |row: &SelectionRow| (row.reads.candidates() - row.reads.wanted) as u64 * key;
        AttendInfo {
            lse2: selected.lse2[i * g.q_heads..(i + 1) * g.q_heads].to_vec(),
            missed_mass_bound: None,
            selected: call.options.selected.then(|| rows.clone().map(positions).collect()),
            bytes: BytesRead {
                summary: sum(&|row| summary_bytes(selection.store, row.reads.tokens)),
                keys: if by_keys { sum(&spared) } else { 0 },
                kv: tokens_read.iter().map(|&n| u64::from(n)).sum::<u64>() * g.token_bytes() as u64,
            },
            tokens_read,
        }
    };
    (0..selected.units.len() / g.kv_heads).map(of).collect()
}
