//! Queries that choose on the GPU what they read.

use kvist_kernels::attend::Out;
use kvist_kernels::cuda::StepRow;
use kvist_kernels::cuda::params;
use kvist_kernels::{Tensor3, Tensor3Mut};
use kvist_policies::{Digest, Fold, Method, Parts, Reuse, Row, Scope};

use super::compose::{Weighed, keep_of};
use super::{AttendInfo, BytesRead, Call, Run};
use crate::device::{Selected, Selection, SelectionRow};
use crate::summaries::{Spec, Store};
use crate::{Error, Sequence};

/// Attends where the GPU can choose: units picked by their boxes, by each KV head for itself. None if the CPU has to.
pub(super) fn attend(
    call: &Call,
    run: &Run,
    q: &Tensor3,
    out: &mut Tensor3Mut,
) -> Result<Option<Vec<AttendInfo>>, Error> {
    let Some(device) = &call.cache.shared.device else { return Ok(None) };
    let Some((store, parts)) = alike(call, run) else { return Ok(None) };
    let fold = match parts.fold {
        Fold::Max => params::Fold::Max,
        // A mean of bent scores is not that of the scores.
        Fold::Mean if call.params.soft_cap == 0.0 => params::Fold::Mean,
        _ => return Ok(None),
    };
    let heads = call.cache.geometry().kv_heads;
    let row = |i: usize| {
        let layer = &run.sequences[i / heads].layers[call.layer];
        SelectionRow {
            pages: run.ids(call, i / heads, i % heads),
            cells: layer.heads[i % heads].cell_ids(),
            reads: reads(parts, layer.len),
        }
    };
    let rows: Vec<SelectionRow> = (0..run.sequences.len() * heads).map(row).collect();
    let selection = Selection {
        layer: call.layer,
        q,
        rows: &rows,
        store,
        fold,
        scale: call.params.scale,
        soft_cap: call.params.soft_cap,
    };
    let mut to = Out { o: out.rows_mut(0, q.shape()[0]), lse2: None };
    let Some(selected) = device.select(&selection, &mut to)? else { return Ok(None) };
    Ok(Some(infos(call, run, &selection, parts, &selected)))
}

/// What all heads of all sequences go by, if it is one thing that the GPU can do.
fn alike<'a>(call: &Call, run: &Run<'a>) -> Option<(&'a Store, &'a Parts)> {
    if call.options.bound || call.params.sinks.is_some() {
        return None;
    }
    let heads = call.cache.geometry().kv_heads;
    let of = |sequence: &'a Sequence, head: usize| {
        let layer = &sequence.layers[call.layer];
        let store = layer.heads[head].store(sequence.selector.store.as_ref())?;
        match sequence.selector.method(call.layer, head, layer.len) {
            Method::Parts(parts) if picks_boxes(parts) => Some((store, parts)),
            _ => None,
        }
    };
    let (store, parts) = of(run.sequences.first()?, 0)?;
    let same = |(other, own): (&Store, &Parts)| {
        std::sync::Arc::ptr_eq(&other.arena, &store.arena) && own == parts
    };
    let mut all = run.sequences.iter().flat_map(|s| (0..heads).map(move |head| (s, head)));
    all.all(|(s, head)| of(s, head).is_some_and(same)).then_some((store, parts))
}

fn picks_boxes(parts: &Parts) -> bool {
    let boxes = matches!(parts.digest, Digest::Units { row: Row::Box | Row::MeanBox, .. });
    let alone = parts.scope == Scope::KvHead && parts.reuse == Reuse::Never;
    boxes && alone && parts.refine.is_none()
}

/// What a head of a sequence of `len` tokens reads.
fn reads(parts: &Parts, len: usize) -> StepRow {
    let unit = parts.unit_tokens();
    let weighed = Weighed::new(keep_of(parts, len, len), unit);
    let units = len.div_ceil(unit);
    let first = weighed.keep[0].end.div_ceil(unit);
    let last = units - (weighed.keep[1].start / unit).clamp(first, units);
    let picked = weighed.count(parts.rule, len).min(weighed.len());
    StepRow { tokens: len, keep: [first, last], wanted: first + last + picked }
}

fn infos(
    call: &Call,
    run: &Run,
    selection: &Selection,
    parts: &Parts,
    selected: &Selected,
) -> Vec<AttendInfo> {
    let g = call.cache.geometry();
    let unit = parts.unit_tokens();
    let Spec::Units(spec) = selection.store.spec else { unreachable!("boxes are of units") };
    let tokens = |row: usize, u: u32| {
        let first = u as usize * unit;
        first as u32..(first + unit).min(selection.rows[row].reads.tokens) as u32
    };
    let of = |i: usize| {
        let rows = i * g.kv_heads..(i + 1) * g.kv_heads;
        let count = |row: usize| -> u32 {
            selected.units[row].iter().map(|&u| tokens(row, u).len() as u32).sum()
        };
        let tokens_read: Vec<u32> = rows.clone().map(count).collect();
        let kv = tokens_read.iter().map(|&n| u64::from(n)).sum::<u64>() * g.token_bytes() as u64;
        let units = |row: usize| selection.rows[row].reads.tokens.div_ceil(unit);
        let summary = rows.clone().map(|row| (units(row) * spec.row_bytes()) as u64).sum();
        let positions = |row: usize| {
            selected.units[row].iter().flat_map(|&u| tokens(row, u)).collect::<Vec<u32>>()
        };
        AttendInfo {
            lse2: selected.lse2[i * g.q_heads..(i + 1) * g.q_heads].to_vec(),
            tokens_read,
            missed_mass_bound: None,
            selected: call.options.selected.then(|| rows.map(positions).collect()),
            bytes: BytesRead { summary, keys: 0, kv },
        }
    };
    (0..run.sequences.len()).map(of).collect()
}
