//! Selections of `boxed` that serve several steps, and the check that ends them.

use std::sync::Arc;

use kvist_kernels::score::{self, BoxedQuery};
use kvist_kernels::{Isa, select};
use kvist_policies::{Boxed, Method};

use super::boxed::{PLANES_FIRST, keep};
use super::head::{Choice, Origin, Work};
use super::{Call, Run};
use crate::Error;
use crate::selector::Reads;
use crate::summaries::TILE;

/// One of so many tiles is looked at when a selection is used again, another one every step.
const SAMPLED: usize = 16;

/// The earlier selection, if it may be used, and what a sample of the other tokens holds.
pub(super) fn choose(work: &Work, boxed: &Boxed) -> Result<Option<Choice>, Error> {
    if boxed.reuse.is_none() {
        return Ok(None);
    }
    let last = {
        let memory = work.sequence.memories.of(work.call.layer);
        memory.last.get(work.number).cloned().flatten()
    };
    let usable = last.filter(|last| last.len < work.len && last.steps < boxed.reuse_steps);
    let Some(last) = usable else { return Ok(None) };
    let sinks = boxed.sinks.min(last.from);
    let mut choice = Choice { origin: Origin::Again, ..Choice::default() };
    choice.set(&[0..sinks, last.from..work.len], &last.chosen);
    let (rest, bytes) = rest(work, boxed, &choice.positions, last.steps);
    choice.rest = Some(rest);
    choice.bytes.summary = bytes;
    Ok(Some(choice))
}

/// Base-2 log-sum-exp by head of the candidates that are not read, as a sample of their tiles tells, and the bytes
/// read for it.
fn rest(work: &Work, boxed: &Boxed, positions: &[u32], step: usize) -> (Vec<f32>, u64) {
    let (spec, _) = work.boxed();
    let keep = keep(work, boxed);
    let tiles = keep[0].end.div_ceil(TILE)..(keep[1].start / TILE).min(work.head.cell_ids().len());
    let sample: Vec<u32> =
        tiles.clone().skip(step % SAMPLED).step_by(SAMPLED).map(|t| t as u32).collect();
    let mut lse = vec![f32::NEG_INFINITY; work.group];
    if sample.is_empty() {
        return (lse, 0);
    }
    let ids: Vec<u32> = sample.iter().map(|&t| work.head.cell_ids()[t as usize]).collect();
    let planes = boxed.planes.min(PLANES_FIRST);
    let query = BoxedQuery::new(Isa::level(), spec, work.q, work.group);
    let stride = sample.len() * TILE;
    let mut estimates = vec![0f32; work.group * stride];
    score::boxed(&query, &work.boxed_of(&ids), planes, &mut estimates, None, None);
    if work.call.params.soft_cap > 0.0 {
        work.cap(&mut estimates);
    }
    for (i, &tile) in sample.iter().enumerate() {
        let first = tile as usize * TILE;
        let from = positions.partition_point(|&p| (p as usize) < first);
        let read = positions[from..].iter().take_while(|&&p| (p as usize) < first + TILE);
        for &position in read {
            let at = i * TILE + position as usize - first;
            (0..work.group).for_each(|head| estimates[head * stride + at] = f32::NEG_INFINITY);
        }
    }
    select::lse2_strided(&estimates, stride, stride, work.scale_log2(), &mut lse);
    let factor = (tiles.len() as f32 / sample.len() as f32).log2();
    lse.iter_mut().for_each(|lse| *lse += factor);
    (lse, (sample.len() * spec.bytes_read(planes)) as u64)
}

impl Call<'_> {
    /// Ends the selections that hold too little of the mass now: the next step selects anew. `lse` is that of what
    /// was read, `[rows, q_heads]`.
    pub(super) fn check(&self, run: &Run, choices: &[Choice], lse: &[f32]) {
        let g = self.cache.geometry();
        for (i, (choice, lse)) in choices.iter().zip(lse.chunks(g.group())).enumerate() {
            let Some(rest) = &choice.rest else { continue };
            let sequence = run.sequences[i / g.kv_heads];
            let reads: &Arc<Reads> = &sequence.selector.layer(self.layer)[i % g.kv_heads];
            let Method::Boxed(Boxed { reuse: Some(least), .. }) = &reads.method else { continue };
            let share = |(read, rest): (&f32, &f32)| 1.0 / (1.0 + (rest - read).exp2());
            let held = lse.iter().zip(rest).map(share).sum::<f32>() / g.group() as f32;
            if held < *least || held.is_nan() {
                sequence.memories.of(self.layer).last[i % g.kv_heads] = None;
            }
        }
    }
}
