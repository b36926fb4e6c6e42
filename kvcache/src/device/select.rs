//! Queries that choose on the GPU what they read: no score comes to the host, and of the choice what is read
//! anyway.

use kvist_kernels::Tensor3;
use kvist_kernels::attend::{self, Out};
use kvist_kernels::cuda::{StepChoice, StepRow, StepShape, TrialError};
use kvist_kernels::summary::UnitKind;

use super::frames::Arrangement;
use super::gpu::Gpu;
use super::mirror::Missing;
use super::outputs::packed;
use super::steps::Places;
use super::wanted::Want;
use crate::Geometry;
use crate::summaries::{Spec, Store, TILE};

impl SelectionRow<'_> {
    /// Rows of its summaries that are scored.
    fn known(&self, choice: &StepChoice) -> usize {
        match choice {
            StepChoice::Units { tokens, .. } => self.reads.tokens.div_ceil(*tokens),
            StepChoice::Tokens { .. } => self.reads.tokens / TILE,
        }
    }
}

/// The share of the bytes for frames that steps have beside those at most: scores of a large batch of long sequences
/// are large.
const STEP_SHARE: u64 = 8;
/// Rows of keys and values that a marked number of a slot can name.
const ROWS_MOST: usize = 1 << 31;

/// One query of each of some sequences, which reads what boxes and codes promise most of.
pub(crate) struct Selection<'a> {
    pub(crate) layer: usize,
    /// `[sequences, q_heads, dim]`
    pub(crate) q: &'a Tensor3<'a>,
    /// `[sequences][kv_heads]`
    pub(crate) rows: &'a [SelectionRow<'a>],
    /// The boxes, or codes.
    pub(crate) store: &'a Store,
    pub(crate) choice: StepChoice,
    pub(crate) scale: f32,
    pub(crate) soft_cap: f32,
}

/// A KV head of a sequence: frames of its pages and cells of its summaries in the host tier, and how much is read.
pub(crate) struct SelectionRow<'a> {
    pub(crate) pages: &'a [u32],
    pub(crate) cells: &'a [u32],
    pub(crate) reads: StepRow,
}

/// What was read: log-sum-exps `[sequences, q_heads]` of base 2, and units, or tokens, of each row, ascending.
pub(crate) struct Selected {
    pub(crate) lse2: Vec<f32>,
    pub(crate) units: Vec<Vec<u32>>,
}

/// Rows of a cell and bytes of a row, where the GPU can choose by what a store holds.
pub(super) fn rows(store: &Store) -> Option<(usize, usize)> {
    match store.spec {
        Spec::Units(units) if matches!(units.kind(), UnitKind::Box | UnitKind::MeanBox) => {
            Some((units.units(), units.row_bytes()))
        }
        // Codes are written once for a whole tile.
        Spec::Boxed(boxed) => Some((1, boxed.cell_bytes())),
        _ => None,
    }
}

/// A small step of this kind: whether there are kernels for it, and which.
pub(super) fn probe(g: &Geometry, choice: StepChoice) -> StepShape {
    StepShape {
        sequences: 1,
        kv_heads: g.kv_heads,
        group: g.group(),
        dim: g.dim_k,
        dtype: g.dtype,
        q_dtype: g.dtype,
        choice,
        page_tokens: g.page_tokens,
        pages_max: 1,
        wanted_max: 1,
        scale: 1.0,
        soft_cap: 0.0,
    }
}

impl Gpu {
    /// The step that a selection needs; none if there is none for it.
    fn shape(&self, selection: &Selection) -> Option<StepShape> {
        let (g, summaries) = (&self.geometry, self.summaries.as_ref()?);
        let rows = self.pages.places() * 2 * g.page_tokens;
        if !std::sync::Arc::ptr_eq(&summaries.arena, &selection.store.arena) || rows > ROWS_MOST {
            return None;
        }
        let has_all = |row: &SelectionRow| {
            let cells = row.known(&selection.choice).div_ceil(summaries.rows as usize);
            row.cells.len() >= cells && row.pages.len() * g.page_tokens >= row.reads.tokens
        };
        if !selection.rows.iter().all(has_all) {
            return None;
        }
        let most = |of: &dyn Fn(&SelectionRow) -> usize| {
            selection.rows.iter().map(of).max().unwrap_or(0).max(1).next_power_of_two()
        };
        let shape = StepShape {
            // So that batches that grow and shrink have few shapes.
            sequences: selection.q.shape()[0].next_power_of_two(),
            q_dtype: selection.q.dtype(),
            pages_max: most(&|row| row.pages.len()),
            wanted_max: most(&|row| row.reads.wanted),
            scale: selection.scale,
            soft_cap: selection.soft_cap,
            ..probe(g, selection.choice)
        };
        (shape.check().is_ok() && !self.steps.refuses(&shape)).then_some(shape)
    }

    /// Bytes of host memory that it needs, with all that is there.
    pub(super) fn selection_bytes(&self, selection: &Selection) -> u64 {
        let steps = self.shape(selection).map_or(0, |shape| self.steps.bytes_with(&shape));
        self.call_bytes + steps.max(self.steps.bytes())
    }

    /// Does it and waits for it; writes outputs. None if the GPU cannot: boxes or pages have no frame and no
    /// place where it could read them.
    pub(super) fn select(
        &mut self,
        selection: &Selection,
        out: &mut Out,
    ) -> Result<Option<Selected>, TrialError> {
        let Some(shape) = self.shape(selection) else { return Ok(None) };
        self.begin(selection.layer);
        let selected = self.select_by(shape, selection, out)?;
        if selected.is_none() {
            self.pending = Some(selection.layer);
        }
        Ok(selected)
    }

    fn select_by(
        &mut self,
        shape: StepShape,
        selection: &Selection,
        out: &mut Out,
    ) -> Result<Option<Selected>, TrialError> {
        let copies = self.arrival.queued + 1;
        let limit = self.bytes()[0] / STEP_SHARE;
        let Gpu { pages, summaries: Some(summaries), steps, .. } = self else { return Ok(None) };
        let (base, far) = (pages.base, pages.copies.mapped());
        let far = far.map_or(0, |(address, _)| address.wrapping_sub(base) as i64);
        let places = Places { pages: base, far, cells: summaries.base };
        let ready = steps.of(&self.device, &self.compute, (shape, limit), places)?;
        let Some(ready) = ready else { return Ok(None) };
        let mut reads: Vec<StepRow> = selection.rows.iter().map(|row| row.reads).collect();
        // Of sequences that are not there.
        reads.resize(shape.rows(), StepRow::default());
        ready.step.set_rows(&reads)?;
        let lists = ready.step.lists()?;
        let (mut boxes, mut rows) = (Missing::default(), Missing::default());
        for (i, row) in selection.rows.iter().enumerate() {
            let cells = (row.cells, row.known(&shape.choice));
            summaries.locate(cells, (i * shape.cells_max(), lists.cells), &mut boxes);
            let own = (row.pages, row.reads.tokens);
            pages.locate(own, (i * shape.pages_max, lists.frames), &mut rows);
        }
        // All summaries are read at each step; pages only where the GPU cannot read them in place.
        selection.rows.iter().for_each(|row| summaries.frames.touch(row.cells));
        if boxes.is_beyond(summaries.cells)
            || !summaries.has_room(&boxes, &mut std::iter::empty())
            || !pages.has_room(&rows, &mut selection.rows.iter().map(|row| row.pages))
        {
            return Ok(None);
        }
        let (of_boxes, boxes_there) = summaries.bring(&boxes, lists.cells, copies);
        let (of_pages, pages_there) = pages.bring(&rows, lists.frames, copies);
        packed(selection.q, ready.queries.bytes_mut());
        self.copy(&of_pages, &of_boxes)?;
        if !(boxes_there && pages_there) {
            return Ok(None);
        }
        self.arrival.wait(&self.compute, self.arrival.queued)?;
        let ready = self.steps.of(&self.device, &self.compute, (shape, limit), places)?;
        let Some(ready) = ready else { return Ok(None) };
        // SAFETY: the lists name frames, which are there once copies are, and mapped pages; sequences hold what
        // is named.
        let results = unsafe { ready.replay(&self.compute)? };
        let [sequences, heads, dim] = selection.q.shape();
        let (o, lse2) = (&results.o[..sequences * heads * dim], &results.lse2[..sequences * heads]);
        let selected = Selected {
            lse2: lse2.to_vec(),
            units: (0..selection.rows.len()).map(|row| results.chosen(row)).collect(),
        };
        attend::merge(&[(Tensor3::contiguous(o, selection.q.shape())?, lse2)], out)?;
        self.read(selection, &selected, shape.unit_tokens())?;
        Ok(Some(selected))
    }

    /// Takes account of the pages that were read, and has those copied that get a frame by that.
    fn read(
        &mut self,
        selection: &Selection,
        selected: &Selected,
        unit: usize,
    ) -> Result<(), TrialError> {
        let page = self.geometry.page_tokens;
        let wants = selection.rows.iter().zip(&selected.units).flat_map(|(row, units)| {
            let pages =
                units.chunk_by(move |a, b| *a as usize * unit / page == *b as usize * unit / page);
            pages.map(move |units| {
                let number = units[0] as usize * unit / page;
                let end = (row.reads.tokens - number * page).min(page) as u32;
                let tokens = ((units.len() * unit) as u32).min(end);
                Want { host: row.pages[number], end, tokens }
            })
        });
        self.pages.named.name(wants);
        let plan = self.pages.arrange(self.arrival.queued + 1);
        self.copy(&plan, &Arrangement::default())?;
        self.counts.hits += plan.hits;
        self.counts.misses += plan.misses;
        self.counts.in_place += plan.misses;
        (self.counts.calls, self.counts.selections) =
            (self.counts.calls + 1, self.counts.selections + 1);
        Ok(())
    }
}

/// Frames for boxes: as many as may be needed, in a quarter of so many bytes at most.
pub(super) fn cells_within(store: &Store, needed: usize, bytes: u64) -> usize {
    needed.min((bytes / 4 / store.arena.cell_bytes() as u64) as usize)
}

/// Cells of boxes that the pages of the host tier need at most.
pub(super) fn cells(store: &Store, pages: usize, page_tokens: usize) -> usize {
    let full = (pages * page_tokens).div_ceil(TILE);
    // Each head's last one is not full.
    (full + full / 8 + 64).min(store.arena.cells())
}
