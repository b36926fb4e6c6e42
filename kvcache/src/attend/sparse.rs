//! Attention over what selectors pick: one choice per (sequence, KV head), then one kernel call.

use std::sync::{Arc, Mutex};

use kvist_kernels::attend::{self, Listed, Out, Queries};
use kvist_kernels::{Tensor3, Tensor3Mut};
use kvist_policies::{Method, Scope};

use super::compose::{self, Weighed};
use super::head::{Choice, Estimate, Work};
#[cfg(feature = "cuda")]
use super::on_device;
use super::slots::Slots;
use super::{AttendInfo, Call, Run, boxed, share};
use crate::live::Copies;
use crate::selector::Reads;
use crate::{Error, Sequence};

pub(super) fn attend(
    call: &Call,
    run: &Run,
    q: &Tensor3,
    out: &mut Tensor3Mut,
) -> Result<Vec<AttendInfo>, Error> {
    let g = call.cache.geometry();
    #[cfg(feature = "cuda")]
    if let Some(infos) = on_device::attend(call, run, q, out)? {
        return Ok(infos);
    }
    call.prepare(run)?;
    call.derive(run, q)?;
    call.grow_trees(run)?;
    let measured = call.measure(run, q)?;
    let votes = votes(call, run, q)?;
    let led = share::lead(call, run, q)?;
    let choices =
        each_head(call, run, q, |i, work, method| match led.choice(i, work, method)? {
            Some(choice) => Ok(choice),
            None => choose(work, method, votes[i / g.kv_heads].as_ref()),
        })?;
    call.remember(run, &choices);
    let _busy = call.copies().map(Copies::busy);
    let mut read = Slots::default();
    for (i, choice) in choices.iter().enumerate() {
        read.add(call, run, (i / g.kv_heads, i % g.kv_heads), choice);
    }
    let rows = q.shape()[0];
    let row_ptr: Vec<u32> = (0..=rows as u32).collect();
    let queries = Queries { q: *q, indptr: &row_ptr, positions: None };
    let lists = read.lists();
    let mut lse = vec![0f32; rows * g.q_heads];
    let pool = call.cache.pool()?;
    let listed = Listed::Slots(&pool, &lists);
    let read = |to: &mut Out| call.kernel(&queries, listed, &call.params, to);
    if choices.iter().any(|choice| choice.estimate.is_some()) {
        let mut o = vec![0f32; rows * g.q_heads * g.dim_v];
        let shape = [rows, g.q_heads, g.dim_v];
        read(&mut Out { o: Tensor3Mut::contiguous(&mut o, shape)?, lse2: Some(&mut lse) })?;
        let each = choices.iter().map(|choice| choice.estimate.as_ref());
        let (rest, rest_lse) = estimates(each, g.group(), g.dim_v);
        let parts = [
            (Tensor3::contiguous(&o, shape)?, &lse[..]),
            (Tensor3::contiguous(&rest, shape)?, &rest_lse[..]),
        ];
        attend::merge(&parts, &mut Out { o: out.rows_mut(0, rows), lse2: None })?;
    } else {
        read(&mut Out { o: out.rows_mut(0, rows), lse2: Some(&mut lse) })?;
    }
    call.check(run, &choices, &lse);
    let each = |(row, choices): (usize, &[Choice])| {
        let mut info = info(call, choices, &lse[row * g.q_heads..(row + 1) * g.q_heads]);
        info.bytes.keys += measured[row];
        info
    };
    Ok(choices.chunks(g.kv_heads).enumerate().map(each).collect())
}

/// What stands for tokens that are not read, `[rows, q_heads, dim_v]` and `[rows, q_heads]`.
pub(super) fn estimates<'a>(
    each: impl Iterator<Item = Option<&'a Estimate>>,
    group: usize,
    dim: usize,
) -> (Vec<f32>, Vec<f32>) {
    let mut all = (Vec::new(), Vec::new());
    for estimate in each {
        match estimate {
            Some(Estimate { o, lse2 }) => {
                all.0.extend_from_slice(o);
                all.1.extend_from_slice(lse2);
            }
            None => {
                all.0.resize(all.0.len() + group * dim, 0.0);
                all.1.resize(all.1.len() + group, f32::NEG_INFINITY);
            }
        }
    }
    all
}

/// One result per (sequence, KV head), in that order; `choose` gets its number.
pub(super) fn each_head<T: Default + Send>(
    call: &Call,
    run: &Run,
    q: &Tensor3,
    choose: impl Fn(usize, &Work, &Method) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let heads = call.cache.geometry().kv_heads;
    let tasks = run.sequences.len() * heads;
    let slots: Vec<Mutex<Option<Result<T, Error>>>> =
        (0..tasks).map(|_| Mutex::new(None)).collect();
    call.cache.shared.exec.run(tasks, |i| {
        let sequence = run.sequences[i / heads];
        let len = sequence.layers[call.layer].len;
        let method = sequence.selector.method(call.layer, i % heads, len);
        let choice = with_work(call, run, q, i, |work| choose(i, work, method));
        if let Ok(mut slot) = slots[i].lock() {
            *slot = Some(choice);
        }
    });
    let taken = slots.into_iter().map(|s| s.into_inner().ok().flatten());
    taken.map(|c| c.unwrap_or_else(|| Ok(T::default()))).collect()
}

/// Does something with the query group of a (sequence, KV head).
pub(super) fn with_work<T>(
    call: &Call,
    run: &Run,
    q: &Tensor3,
    i: usize,
    f: impl FnOnce(&Work) -> T,
) -> T {
    let g = call.cache.geometry();
    let (row, number) = (i / g.kv_heads, i % g.kv_heads);
    let sequence = run.sequences[row];
    let layer = &sequence.layers[call.layer];
    let store = layer.heads[number].store(sequence.selector.store.as_ref());
    let group = g.group();
    let mut rows = vec![0f32; group * g.dim_k];
    for (i, row_of) in rows.chunks_mut(g.dim_k).enumerate() {
        q.read_f32(row, number * group + i, row_of);
    }
    let first = if run.whole.is_empty() { layer.sealed.len() } else { 0 };
    let (coarse, index) = {
        let memory = sequence.memories.of(call.layer);
        (memory.coarse.get(number).cloned(), memory.index.get(number).cloned().unwrap_or_default())
    };
    f(&Work {
        call,
        head: &layer.heads[number],
        ids: run.ids(call, row, number),
        first,
        store,
        len: layer.len,
        q: &rows,
        group,
        sequence,
        number,
        row: run.rows.start + row,
        all: q,
        row_of_run: row,
        coarse,
        index,
    })
}

/// What the heads of a layer think together, by sequence, where they choose together and anew.
pub(super) fn votes(call: &Call, run: &Run, q: &Tensor3) -> Result<Vec<Option<Weighed>>, Error> {
    let of_layer = |reads: &Arc<Reads>| match &reads.method {
        Method::Parts(parts) => parts.scope == Scope::Layer,
        Method::Full | Method::Boxed(_) => false,
    };
    // With a profile heads never choose together, so that it is all heads or none.
    let together = |s: &&Sequence| s.selector.layer(call.layer).iter().any(of_layer);
    if !run.sequences.iter().any(together) {
        return Ok(run.sequences.iter().map(|_| None).collect());
    }
    let own = each_head(call, run, q, |_, work, method| match method {
        Method::Parts(parts) if parts.scope == Scope::Layer => compose::vote(work, parts),
        _ => Ok(None),
    })?;
    let mut votes: Vec<Option<Weighed>> = Vec::new();
    for (i, own) in own.into_iter().enumerate() {
        match (votes.last_mut(), own) {
            (Some(Some(sum)), Some(own)) if i % call.cache.geometry().kv_heads > 0 => {
                sum.join(&own)
            }
            (_, own) if i % call.cache.geometry().kv_heads == 0 => votes.push(own),
            _ => {}
        }
    }
    Ok(votes)
}

/// The choice of a head; by `vote` where the heads of its layer choose together.
pub(super) fn choose(
    work: &Work,
    method: &Method,
    vote: Option<&Weighed>,
) -> Result<Choice, Error> {
    let mut choice = match method {
        Method::Full => {
            let positions = (0..work.len as u32).collect();
            Choice { positions, bound: Some(vec![0.0; work.group]), ..Choice::default() }
        }
        Method::Boxed(boxed) => boxed::choose(work, boxed)?,
        Method::Parts(parts) => compose::choose(work, parts, vote)?,
    };
    choice.bytes.kv = choice.positions.len() as u64 * work.token_bytes();
    Ok(choice)
}

fn info(call: &Call, choices: &[Choice], lse: &[f32]) -> AttendInfo {
    let mut info = AttendInfo { lse2: lse.to_vec(), ..AttendInfo::default() };
    let bounds: Option<Vec<&Vec<f32>>> = choices.iter().map(|c| c.bound.as_ref()).collect();
    info.missed_mass_bound = bounds.map(|b| b.into_iter().flatten().copied().collect());
    info.tokens_read = choices.iter().map(|c| c.positions.len() as u32).collect();
    if call.options.selected {
        info.selected = Some(choices.iter().map(|c| c.positions.clone()).collect());
    }
    for choice in choices {
        info.bytes.summary += choice.bytes.summary;
        info.bytes.keys += choice.bytes.keys;
        info.bytes.kv += choice.bytes.kv;
    }
    info
}
