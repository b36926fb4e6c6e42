//! One query and one KV head: what a selector works on.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use kvist_kernels::rows::QueryRows;
use kvist_kernels::score::CellList;
use kvist_kernels::summary::{BoxedSpec, LowBitSpec, UnitSpec};
use kvist_kernels::{Isa, Tensor3, convert};

use super::{BytesRead, Call};
use crate::coarse::Coarse;
use crate::index::Index;
use crate::pages::{self, Head};
use crate::summaries::{Spec, Store};
use crate::{Error, Sequence};

/// A query group over one KV head of one sequence.
pub(super) struct Work<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) head: &'a Head,
    /// Frames of the pages from `first` on: of all of them, or of the open ones only.
    pub(super) ids: &'a [u32],
    pub(super) first: usize,
    /// None where the selector needs no summaries.
    pub(super) store: Option<&'a Store>,
    pub(super) len: usize,
    /// `[group, dim_k]`, unscaled.
    pub(super) q: &'a [f32],
    pub(super) group: usize,
    pub(super) sequence: &'a Sequence,
    /// The KV head's number.
    pub(super) number: usize,
    /// The query's number among those of the call.
    pub(super) row: usize,
    /// All heads of all queries of the run, and the query's number among them.
    pub(super) all: &'a Tensor3<'a>,
    pub(super) row_of_run: usize,
    /// What a long sequence is searched by.
    pub(super) coarse: Option<Arc<Coarse>>,
    /// What was derived from the keys.
    pub(super) index: Index,
}

/// What the query group reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Choice {
    /// Ascending positions.
    pub(super) positions: Vec<u32>,
    /// Those of them that were picked, by index; the others are kept anyway.
    pub(super) picked: Range<usize>,
    /// Where the kept recent tokens begin.
    pub(super) from: usize,
    /// The queries it was made for, where similar ones may use it again.
    pub(super) q: Vec<f32>,
    pub(super) origin: Origin,
    /// Proven missed mass per query head of the group.
    pub(super) bound: Option<Vec<f32>>,
    pub(super) bytes: BytesRead,
    /// Of a selection that is used again: base-2 log-sum-exp by head of what it leaves out, estimated.
    pub(super) rest: Option<Vec<f32>>,
    /// What stands for tokens that are not read.
    pub(super) estimate: Option<Estimate>,
    /// Where clusters were picked: these.
    pub(super) clusters: Vec<Members>,
}

/// The first members of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Members {
    /// Position of the first token of the cluster's part.
    pub(super) first: usize,
    /// Its number there.
    pub(super) cluster: usize,
    pub(super) tokens: usize,
}

/// Attention over means that stand for tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Estimate {
    /// `[group, dim_v]`
    pub(super) o: Vec<f32>,
    /// `[group]`
    pub(super) lse2: Vec<f32>,
}

/// Where a choice comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// This query.
    #[default]
    Fresh,
    /// An earlier query of this layer.
    Again,
    /// Another layer.
    Borrowed,
}

impl Choice {
    /// Sets the positions: kept ones in front of and behind those picked.
    pub(super) fn set(&mut self, keep: &[Range<usize>; 2], chosen: &[u32]) {
        self.positions.extend(keep[0].clone().map(|p| p as u32));
        self.positions.extend(chosen);
        self.picked = keep[0].len()..self.positions.len();
        self.from = keep[1].start;
        self.positions.extend(keep[1].clone().map(|p| p as u32));
    }
}

/// Buffers of a thread, reused between calls.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) estimates: Vec<f32>,
    pub(super) weights: Vec<f32>,
    pub(super) bounds: Vec<f32>,
    pub(super) sigma: Vec<f32>,
    pub(super) chosen: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

impl Scratch {
    pub(super) fn with<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
        SCRATCH.with_borrow_mut(f)
    }
}

/// A buffer of that length with whatever it held before.
pub(super) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Work<'_> {
    /// Factor from raw q.k to base-2 logits.
    pub(super) fn scale_log2(&self) -> f32 {
        self.call.params.scale * std::f32::consts::LOG2_E
    }

    /// The head's summary cells; none without summaries.
    fn all_cells(&self) -> CellList<'_> {
        let Some(store) = self.store else {
            // SAFETY: nothing is listed.
            return unsafe { CellList::new(std::ptr::null(), 0, &[]) };
        };
        let arena = &store.arena;
        // SAFETY: the ids are those of cells the sequence holds, written when they were made and
        // changed only under a unique borrow of the sequence.
        unsafe { CellList::new(arena.base(), arena.cell_bytes(), self.head.cell_ids()) }
    }

    /// Shape of the cells' boxes and planes, and the cells.
    pub(super) fn boxed(&self) -> (BoxedSpec, CellList<'_>) {
        match self.store.map(|s| s.spec) {
            Some(Spec::Boxed(spec)) => (spec, self.all_cells()),
            _ => unreachable!("a sequence's store is made for its selector"),
        }
    }

    /// Some of those cells.
    pub(super) fn boxed_of<'b>(&'b self, ids: &'b [u32]) -> CellList<'b> {
        // SAFETY: as for all cells; callers list some of the head's.
        unsafe { self.all_cells().listed(ids) }
    }

    /// Cells of coarse boxes.
    pub(super) fn coarse_cells<'b>(&'b self, ids: &'b [u32]) -> CellList<'b> {
        let arena = self.store.and_then(|s| s.above.as_ref());
        let (base, bytes) = arena.map_or((std::ptr::null(), 0), |a| (a.at(0), a.cell_bytes()));
        // SAFETY: the ids are those of cells that are held and not written to while others hold them.
        unsafe { CellList::new(base, bytes, ids) }
    }

    /// Shape of the cells' unit rows, and those parts of the cells.
    pub(super) fn units(&self) -> (UnitSpec, CellList<'_>) {
        match self.store.map(|s| s.spec) {
            Some(Spec::Units(spec)) => (spec, self.all_cells()),
            Some(Spec::Pruned(spec, _)) => (spec, self.all_cells().part(0, spec.cell_bytes())),
            _ => unreachable!("a sequence's store is made for its selector"),
        }
    }

    /// Address of a unit's row.
    pub(super) fn unit_row(&self, unit: usize) -> *const u8 {
        let (spec, _) = self.units();
        let (cell, row) = (unit / spec.units(), unit % spec.units() * spec.row_bytes());
        let arena = self.store.map(|s| s.arena.at(self.head.cell_ids()[cell]));
        arena.map_or(std::ptr::null(), |cell| cell.wrapping_add(row))
    }

    /// Shape of the cells' keys of a few bits, and those parts of the cells.
    pub(super) fn low_bit(&self) -> (LowBitSpec, CellList<'_>) {
        match self.store.map(|s| s.spec) {
            Some(Spec::Pruned(units, spec)) => {
                (spec, self.all_cells().part(units.cell_bytes(), spec.cell_bytes()))
            }
            _ => unreachable!("a sequence's store is made for its selector"),
        }
    }

    /// Upper bound of the norms of some tokens' finite keys, from the keys themselves.
    pub(super) fn key_norm(&self, tokens: impl Iterator<Item = u32>) -> Result<f32, Error> {
        let g = self.call.cache.geometry();
        let pool = self.call.cache.pool()?;
        let row = |t: u32| {
            let (page, offset) = (t as usize / g.page_tokens, t as usize % g.page_tokens);
            pool.k_row(self.ids[page - self.first] as usize, 0, offset)
        };
        let rows: Vec<*const u8> = tokens.map(row).collect();
        // SAFETY: the tokens are below the layer's length; their pages are held by the sequence.
        Ok(unsafe { self.norm_at(&rows) })
    }

    /// Upper bound of the norms of finite keys.
    ///
    /// # Safety
    /// Every row must be readable as a key.
    pub(super) unsafe fn norm_at(&self, rows: &[*const u8]) -> f32 {
        let g = self.call.cache.geometry();
        let (mut key, mut most) = (vec![0f32; g.dim_k], 0f32);
        for &row in rows {
            // SAFETY: the caller's promise.
            unsafe { convert::widen(g.dtype, row, &mut key) }
            most = most.max(pages::norm(&key));
        }
        most
    }

    /// Query rows for exact logits. `precise` keeps the query in f32.
    pub(super) fn exact_query(&self, precise: bool) -> QueryRows {
        self.query_rows(self.q, precise)
    }

    /// Rows of other queries of the group.
    pub(super) fn query_rows(&self, q: &[f32], precise: bool) -> QueryRows {
        let g = self.call.cache.geometry();
        QueryRows::new(Isa::level(), g.dtype, q, g.dim_k, precise)
    }

    /// Exact raw q.k of tokens at ascending positions, `[group, positions]`.
    pub(super) fn logits(
        &self,
        query: &QueryRows,
        positions: impl Iterator<Item = u32>,
    ) -> Result<Vec<f32>, Error> {
        let g = self.call.cache.geometry();
        let pool = self.call.cache.pool()?;
        let row = |p: u32| {
            let (page, offset) = (p as usize / g.page_tokens, p as usize % g.page_tokens);
            pool.k_row(self.ids[page - self.first] as usize, 0, offset)
        };
        let rows: Vec<*const u8> = positions.map(row).collect();
        // SAFETY: positions are below the layer's length; their pages are held by the sequence and,
        // where they are sealed, leased by the caller.
        Ok(unsafe { self.logits_at(query, &rows) })
    }

    /// Exact raw q.k of keys, `[group, rows]`.
    ///
    /// # Safety
    /// Every row must be readable as a key.
    pub(super) unsafe fn logits_at(&self, query: &QueryRows, rows: &[*const u8]) -> Vec<f32> {
        let mut out = vec![0f32; self.group * rows.len()];
        // SAFETY: the caller's promise.
        unsafe { query.dots(rows, &mut out, rows.len()) }
        if self.call.params.soft_cap > 0.0 {
            self.cap(&mut out);
        }
        out
    }

    /// Applies the soft-cap to raw logits, leaving them raw (before the scale). The cap's slope is
    /// at most 1, so error bounds of the input hold for the output.
    pub(super) fn cap(&self, raw: &mut [f32]) {
        let (scale, cap) = (self.call.params.scale, self.call.params.soft_cap);
        raw.iter_mut().for_each(|x| *x = cap * (*x * scale / cap).tanh() / scale);
    }

    /// Bytes of one token's key and value.
    pub(super) fn token_bytes(&self) -> u64 {
        self.call.cache.geometry().token_bytes() as u64
    }

    /// Bytes of one key.
    pub(super) fn key_bytes(&self) -> u64 {
        let g = self.call.cache.geometry();
        (g.dim_k * g.dtype.size()) as u64
    }
}
