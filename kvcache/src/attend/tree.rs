//! Which tiles of a long sequence are scored token by token: those whose mean key promises most.

use std::sync::Arc;

use kvist_kernels::score::{self, BoxedQuery, CellList};
use kvist_kernels::summary::BoxedSpec;
use kvist_kernels::{Isa, select};
use kvist_policies::{Boxed, Method};

use super::boxed::keep;
use super::head::Work;
use super::{Call, Run};
use crate::Error;
use crate::means::{self, Means};
use crate::selector::Reads;
use crate::summaries::TILE;

/// Tokens scored for each that is read, at least and at most: where between, follows from the mass that
/// the means promise. Measured on SmolLM2-135M: see `docs/papers.md`.
const OVER: (usize, usize) = (8, 16);
/// Share of the promised mass that the scored tiles hold.
const PROMISED: f64 = 0.98;
/// Bytes of summaries that one KV head reads at most for it.
const BYTES_MOST: usize = 4_000_000;

/// The tiles that are scored, ascending.
pub(super) struct Tiles {
    /// Their numbers; `None` if they are all.
    opened: Option<Vec<u32>>,
    /// Their cells.
    ids: Vec<u32>,
    /// Planes that they are scored with.
    pub(super) planes: u32,
    /// Base-2 log-sum-exp of what the others promise, by head.
    pub(super) rest: Vec<f32>,
    /// Bytes read to tell.
    pub(super) bytes: usize,
}

impl Tiles {
    /// All of them.
    pub(super) fn all(work: &Work, planes: u32) -> Tiles {
        let rest = vec![f32::NEG_INFINITY; work.group];
        Tiles { opened: None, ids: work.head.cell_ids().to_vec(), planes, rest, bytes: 0 }
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Cells of these tiles.
    pub(super) fn cells<'a>(&'a self, work: &'a Work) -> CellList<'a> {
        work.boxed_of(&self.ids)
    }

    /// The position of the `i`-th token of these tiles.
    pub(super) fn position(&self, i: usize) -> u32 {
        match &self.opened {
            None => i as u32,
            Some(opened) => opened[i / TILE] * TILE as u32 + (i % TILE) as u32,
        }
    }

    /// How many tokens of these tiles lie in front of a position, whose tile is one of them or the end.
    pub(super) fn index(&self, position: usize) -> usize {
        match &self.opened {
            None => position,
            Some(opened) => {
                let tile = opened.partition_point(|&t| (t as usize) < position / TILE);
                let inside = opened.get(tile).is_some_and(|&t| t as usize == position / TILE);
                tile * TILE + if inside { position % TILE } else { 0 }
            }
        }
    }
}

impl Call<'_> {
    /// Makes the means that long sequences are searched by.
    pub(super) fn prepare(&self, run: &Run) -> Result<(), Error> {
        for sequence in run.sequences {
            let (layer, selector) = (&sequence.layers[self.layer], &sequence.selector);
            let searched = |reads: &Arc<Reads>| match &reads.method {
                Method::Boxed(boxed) => layer.len >= boxed.tree_from,
                Method::Full | Method::Parts(_) => false,
            };
            let searched: Vec<bool> = selector.layer(self.layer).iter().map(searched).collect();
            let Some(store) = selector.store.as_ref().filter(|_| searched.contains(&true)) else {
                continue;
            };
            let heads = layer.heads.len();
            let known = {
                let mut memory = sequence.memories.of(self.layer);
                memory.means.resize_with(heads, Default::default);
                memory.means.clone()
            };
            let tiles = layer.len / TILE;
            let mut each = known.iter().zip(&searched);
            if !each.any(|(means, searched)| *searched && means.lack(tiles)) {
                continue;
            }
            let more =
                || extended(self, &known, |head, means| store.means(&layer.heads[head], means));
            let means = self.cache.with_room(more)?;
            sequence.memories.of(self.layer).means = means;
        }
        Ok(())
    }
}

/// What each head has, with what it lacks added, on all threads.
pub(super) fn extended<T: Clone + Send + Sync>(
    call: &Call,
    known: &[Arc<T>],
    extend: impl Fn(usize, &mut T) -> Result<(), Error> + Sync,
) -> Result<Vec<Arc<T>>, Error> {
    let slots: Vec<_> =
        known.iter().map(|m| parking_lot::Mutex::new((m.clone(), Ok(())))).collect();
    call.cache.shared.exec.run(known.len(), |head| {
        let (all, done) = &mut *slots[head].lock();
        *done = extend(head, Arc::make_mut(all));
    });
    let each = slots.into_iter().map(|slot| slot.into_inner());
    each.map(|(all, done)| done.map(|()| all)).collect()
}

/// Chooses the tiles to score, with `planes` planes.
pub(super) fn open(work: &Work, boxed: &Boxed, planes: u32) -> Result<Tiles, Error> {
    let means = match &work.means {
        Some(means) if work.len >= boxed.tree_from => means,
        _ => return Ok(Tiles::all(work, planes)),
    };
    let keep = keep(work, boxed);
    let tiles = keep[0].end / TILE..keep[1].start.div_ceil(TILE);
    // Behind the last whole cell of means, all tiles are scored.
    let known = tiles.start..means.tiles().min(tiles.end).max(tiles.start);
    let spec = means::spec(work.call.cache.geometry().dim_k)?;
    let bytes = means.ids.len() * spec.cell_bytes();
    let wanted = boxed.floor_tokens().div_ceil(TILE);
    let affordable = BYTES_MOST.saturating_sub(bytes) / work.boxed().0.bytes_read(planes);
    let (least, most) = (OVER.0 * wanted, (OVER.1 * wanted).min(affordable));
    if most >= known.len() {
        return Ok(Tiles::all(work, planes));
    }
    let raw = promises(work, spec, means);
    let (stride, n, scale) = (means.tiles(), known.len(), work.scale_log2());
    let raw = &raw[known.start..];
    let mut lse = vec![f32::NEG_INFINITY; work.group];
    select::lse2_strided(raw, stride, n, scale, &mut lse);
    let mut weights = vec![0f32; n];
    select::fold_mass_strided(raw, stride, n, scale, &lse, &mut weights);
    let open = means.open.iter().map(|&t| t as usize).filter(|t| known.contains(t));
    open.for_each(|t| weights[t - known.start] = f32::NAN);
    // The first and the last hold kept tokens, too: where the candidates begin and end.
    (weights[0], weights[n - 1]) = (f32::INFINITY, f32::INFINITY);
    let mut chosen = Vec::new();
    select::top_p(&weights, PROMISED * work.group as f64, least.min(most), most, &mut chosen);
    let rest = rest(raw, stride, n, &chosen, scale);
    chosen.iter_mut().for_each(|t| *t += known.start as u32);
    chosen.extend(known.end as u32..tiles.end as u32);
    let ids = chosen.iter().map(|&t| work.head.cell_ids()[t as usize]).collect();
    Ok(Tiles { opened: Some(chosen), ids, planes, rest, bytes })
}

/// Scores of the tiles' mean keys, `[group][tiles]`.
fn promises(work: &Work, spec: BoxedSpec, means: &Means) -> Vec<f32> {
    let query = BoxedQuery::new(Isa::level(), spec, work.q, work.group);
    let mut raw = vec![0f32; work.group * means.tiles()];
    score::boxed(&query, &work.mean_cells(&means.ids), spec.planes(), &mut raw, None, None);
    if work.call.params.soft_cap > 0.0 {
        work.cap(&mut raw);
    }
    raw
}

/// Base-2 log-sum-exp by head of what tiles promise that were not chosen: not more than they hold, as the
/// mean of exponentials is at least the exponential of the mean.
fn rest(raw: &[f32], stride: usize, n: usize, chosen: &[u32], scale: f32) -> Vec<f32> {
    let mut left = vec![true; n];
    chosen.iter().for_each(|&t| left[t as usize] = false);
    let of_head = |row: &[f32]| {
        let others: Vec<f32> =
            row.iter().zip(&left).filter(|(_, left)| **left).map(|(x, _)| *x).collect();
        let mut lse = [f32::NEG_INFINITY];
        select::lse2(&others, others.len(), scale, &mut lse);
        lse[0] + (TILE as f32).log2()
    };
    raw.chunks(stride).map(of_head).collect()
}
