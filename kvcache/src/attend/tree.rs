//! Which tiles of a long sequence are scored token by token: those whose box promises most.

use std::sync::Arc;

use kvist_kernels::score::{self, BoxedQuery, CellList};
use kvist_kernels::summary::BoxedSpec;
use kvist_kernels::{Isa, select};
use kvist_policies::{Boxed, Method};

use super::boxed::keep;
use super::head::Work;
use super::{Call, Run};
use crate::Error;
use crate::coarse::{Coarse, CoarseSpec};
use crate::selector::Reads;
use crate::summaries::TILE;

/// Tokens scored for each that is read. Measured on SmolLM2-135M and Gemma 3 270M: see `docs/selection.md`.
const OVER: usize = 12;
/// Deviations by which a tile's best key is taken to lie above the middle of its box, a quarter of the box being
/// one. What the means of keys promise instead finds far less: a key that is worth reading is seldom like the others.
const DEVIATIONS: f32 = 3.0;
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

    /// Whether no tile of the sequence is left out.
    pub(super) fn are_all(&self) -> bool {
        self.opened.is_none()
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
    /// Takes the boxes that long sequences are searched by.
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
                memory.coarse.resize_with(heads, Default::default);
                memory.coarse.clone()
            };
            let tiles = layer.len / TILE;
            let mut each = known.iter().zip(&searched);
            if !each.any(|(coarse, searched)| *searched && coarse.lack(tiles)) {
                continue;
            }
            let more =
                || extended(self, &known, |head, coarse| store.coarse(&layer.heads[head], coarse));
            let coarse = self.cache.with_room(more)?;
            sequence.memories.of(self.layer).coarse = coarse;
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
    let coarse = match &work.coarse {
        Some(coarse) if work.len >= boxed.tree_from => coarse,
        _ => return Ok(Tiles::all(work, planes)),
    };
    let keep = keep(work, boxed);
    let tiles = keep[0].end / TILE..keep[1].start.div_ceil(TILE);
    // Behind the last whole cell of boxes, all tiles are scored.
    let known = tiles.start..coarse.tiles().min(tiles.end).max(tiles.start);
    let spec = CoarseSpec::new(work.call.cache.geometry().dim_k)?;
    let bytes = coarse.ids.len() * spec.cell_bytes();
    let affordable = BYTES_MOST.saturating_sub(bytes) / work.boxed().0.bytes_read(planes);
    let most = (OVER * boxed.floor_tokens().div_ceil(TILE)).min(affordable);
    if most >= known.len() {
        return Ok(Tiles::all(work, planes));
    }
    let mut promises = Promises::new(work, &spec, coarse);
    let (stride, n, scale) = (coarse.tiles(), known.len(), work.scale_log2());
    let best = &promises.best[known.start..];
    let mut lse = vec![f32::NEG_INFINITY; work.group];
    select::lse2_strided(best, stride, n, scale, &mut lse);
    let mut weights = vec![0f32; n];
    select::fold_mass_strided(best, stride, n, scale, &lse, &mut weights);
    let open = coarse.open.iter().map(|&t| t as usize).filter(|t| known.contains(t));
    let unknown = open.map(|t| weights[t - known.start] = f32::NAN).count();
    // The first and the last hold kept tokens, too: where the candidates begin and end.
    (weights[0], weights[n - 1]) = (f32::INFINITY, f32::INFINITY);
    let mut chosen = Vec::new();
    select::top_k(&weights, most + unknown, &mut chosen);
    let rest = rest(&mut promises.all[known.start..], stride, n, &chosen, scale);
    chosen.iter_mut().for_each(|t| *t += known.start as u32);
    chosen.extend(known.end as u32..tiles.end as u32);
    let ids = chosen.iter().map(|&t| work.head.cell_ids()[t as usize]).collect();
    Ok(Tiles { opened: Some(chosen), ids, planes, rest, bytes })
}

/// What the boxes of tiles promise, as raw scores `[group][tiles]`.
struct Promises {
    /// Of the best key of each.
    best: Vec<f32>,
    /// What each of the keys would score if all were alike and weighed together what they do.
    all: Vec<f32>,
}

impl Promises {
    fn new(work: &Work, spec: &CoarseSpec, coarse: &Coarse) -> Promises {
        let squared: Vec<f32> = work.q.iter().map(|x| x * x).collect();
        let [middles, squares] = spec.parts(&work.coarse_cells(&coarse.ids));
        let score = |spec: BoxedSpec, q: &[f32], cells: &CellList| {
            let query = BoxedQuery::new(Isa::level(), spec, q, work.group);
            let mut raw = vec![0f32; work.group * coarse.tiles()];
            score::boxed(&query, cells, spec.planes(), &mut raw, None, None);
            raw
        };
        let mut best = score(spec.0[0], work.q, &middles);
        let mut all = score(spec.0[1], &squared, &squares);
        // Logits that are normally distributed weigh together as if each had half a variance more.
        let half = 0.5 * work.call.params.scale;
        for (best, all) in best.iter_mut().zip(&mut all) {
            let (middle, variance) = (*best, all.max(0.0));
            *best = middle + DEVIATIONS * variance.sqrt();
            *all = (middle + half * variance).min(*best);
        }
        if work.call.params.soft_cap > 0.0 {
            work.cap(&mut best);
            work.cap(&mut all);
        }
        Promises { best, all }
    }
}

/// Base-2 log-sum-exp by head of what tiles promise that were not chosen; those that were are overwritten.
fn rest(raw: &mut [f32], stride: usize, n: usize, chosen: &[u32], scale: f32) -> Vec<f32> {
    let of_head = |row: &mut [f32]| {
        chosen.iter().for_each(|&tile| row[tile as usize] = f32::NEG_INFINITY);
        let mut lse = [f32::NEG_INFINITY];
        select::lse2(&row[..n], n, scale, &mut lse);
        lse[0] + (TILE as f32).log2()
    };
    raw.chunks_mut(stride).map(of_head).collect()
}
