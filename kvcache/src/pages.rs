//! The pages and summaries of one (layer, KV head): lists of shared cells, copied when written.

use std::ops::Range;
use std::sync::Arc;

use kvist_kernels::{Tensor3, convert, write};

use crate::Geometry;
use crate::arena::Cell;
use crate::summaries::{Store, TILE};

mod saved;

/// Bytes of a page's entries in the lists below, and of a summary cell's.
pub(crate) const PAGE_ENTRY: usize = size_of::<Arc<Cell>>() + size_of::<u32>() + size_of::<f32>();
pub(crate) const CELL_ENTRY: usize = size_of::<Arc<Cell>>() + size_of::<u32>();

/// Pages and summaries of one (layer, KV head).
#[derive(Debug)]
pub(crate) struct Head {
    /// Whether its keys are summarised.
    summarised: bool,
    /// Sealed pages in front of those below; the layer holds them. None without a lower tier.
    sealed: usize,
    /// The open pages.
    pages: Vec<Arc<Cell>>,
    /// Numbers of `pages`, so that a list for a kernel is a copy of a slice.
    ids: Vec<u32>,
    /// Upper bound of the key norms of each page, for the rounding slack of certificates. Only kept
    /// where there are summaries. Keys that are not finite do not count.
    norms: Vec<f32>,
    cells: Vec<Arc<Cell>>,
    cell_ids: Vec<u32>,
}

/// What is appended.
#[derive(Clone, Copy)]
pub(crate) enum New<'a> {
    /// Keys and values of some tokens, all heads.
    Rows(&'a Tensor3<'a>, &'a Tensor3<'a>),
    /// A page that was written in full already, one cell per head. Only behind full pages.
    Page(&'a [Arc<Cell>]),
}

impl New<'_> {
    pub(crate) fn tokens(&self, page_tokens: usize) -> usize {
        match self {
            New::Rows(k, _) => k.shape()[0],
            New::Page(_) => page_tokens,
        }
    }
}

/// What an append takes before it writes anything.
#[derive(Default)]
pub(crate) struct Room {
    pub(crate) pages: Vec<Arc<Cell>>,
    pub(crate) cells: Vec<Arc<Cell>>,
    /// The first new page or cell replaces the last one, which others share.
    pub(crate) copy_page: bool,
    pub(crate) copy_cell: bool,
}

/// Copies a cell's contents into a fresh one.
fn copy(from: &Arc<Cell>, to: &mut Arc<Cell>) {
    let Some(bytes) = to.bytes_mut() else { unreachable!("a fresh cell has one holder") };
    // SAFETY: both cells have the arena's cell size; `from` is held, so its bytes stay.
    unsafe { std::ptr::copy_nonoverlapping(from.ptr(), bytes.as_mut_ptr(), bytes.len()) }
}

/// Appends cells to a list and their numbers to another; the first may replace the last one held.
fn extend(list: &mut Vec<Arc<Cell>>, ids: &mut Vec<u32>, mut fresh: Vec<Arc<Cell>>, replace: bool) {
    if replace && let (Some(old), Some(new)) = (list.last(), fresh.first_mut()) {
        copy(old, new);
        list.pop();
        ids.pop();
    }
    ids.extend(fresh.iter().map(|c| c.id()));
    list.append(&mut fresh);
}

impl Head {
    /// Empty lists.
    pub(crate) fn new(summarised: bool) -> Head {
        Head {
            summarised,
            sealed: 0,
            pages: Vec::new(),
            ids: Vec::new(),
            norms: Vec::new(),
            cells: Vec::new(),
            cell_ids: Vec::new(),
        }
    }

    /// Whether its keys are summarised.
    pub(crate) fn summarised(&self) -> bool {
        self.summarised
    }

    /// The summary cells it uses of a store.
    pub(crate) fn store<'a>(&self, store: Option<&'a Store>) -> Option<&'a Store> {
        store.filter(|_| self.summarised)
    }

    /// Frames of the open pages: of all pages where there is no lower tier.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(crate) fn cell_ids(&self) -> &[u32] {
        &self.cell_ids
    }

    /// Upper bound of the norms of all finite keys.
    pub(crate) fn norm_max(&self) -> f32 {
        self.norms.iter().fold(0.0, |m, &n| m.max(n))
    }

    /// Pages, sealed ones included, and summary cells.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.sealed + self.pages.len(), self.cells.len())
    }

    /// The cell of an open page.
    pub(crate) fn cell(&self, page: usize) -> Arc<Cell> {
        self.pages[page - self.sealed].clone()
    }

    /// Whether someone else holds the last page or summary cell too.
    pub(crate) fn shares_last(&self) -> (bool, bool) {
        let shared = |list: &[Arc<Cell>]| list.last().is_some_and(|c| Arc::strong_count(c) > 1);
        (shared(&self.pages), shared(&self.cells))
    }

    /// Makes the lists hold this many entries without growing again.
    pub(crate) fn reserve(&mut self, pages: usize, cells: usize) {
        let more = |have: usize, want: usize| want.saturating_sub(have);
        let open = pages.saturating_sub(self.sealed);
        self.pages.reserve_exact(more(self.pages.len(), open));
        self.ids.reserve_exact(more(self.ids.len(), open));
        self.norms.reserve_exact(more(self.norms.len(), pages));
        self.cells.reserve_exact(more(self.cells.len(), cells));
        self.cell_ids.reserve_exact(more(self.cell_ids.len(), cells));
    }

    /// Copies the first pages of `from` to these empty lists; where both have summaries, the first cells, too.
    pub(crate) fn copy_lists(&mut self, from: &Head, pages: usize, cells: usize) {
        // Norms are kept up to date only where there are summaries.
        let norms = self.summarised && from.summarised;
        let cells = if norms { cells } else { 0 };
        self.sealed = from.sealed.min(pages);
        self.pages.extend_from_slice(&from.pages[..pages - self.sealed]);
        self.ids.extend_from_slice(&from.ids[..pages - self.sealed]);
        self.norms.extend(from.norms.iter().take(if norms { pages } else { 0 }));
        self.cells.extend_from_slice(&from.cells[..cells]);
        self.cell_ids.extend_from_slice(&from.cell_ids[..cells]);
    }

    /// Takes what is new for head `head` behind the first `len` tokens and summarises it. Shapes
    /// were checked, the room was taken and the lists have the space: nothing can fail.
    pub(crate) fn grow(
        &mut self,
        room: Room,
        len: usize,
        new: New,
        head: usize,
        geometry: &Geometry,
        store: Option<&Store>,
    ) {
        extend(&mut self.pages, &mut self.ids, room.pages, room.copy_page);
        if let New::Rows(k, v) = new {
            self.write(len, (k, v), head, geometry);
        }
        let Some(store) = store else { return };
        extend(&mut self.cells, &mut self.cell_ids, room.cells, room.copy_cell);
        let end = len + new.tokens(geometry.page_tokens);
        match new {
            New::Rows(k, _) => self.note_norms(len, k, head, geometry),
            New::Page(_) => self.read_norms(len, end, geometry),
        }
        self.summarise(len, end, geometry, store);
    }

    fn write(&mut self, len: usize, (k, v): (&Tensor3, &Tensor3), head: usize, g: &Geometry) {
        let (page, size) = (g.page_tokens, g.dtype.size());
        let (k_row, v_row) = (g.dim_k * size, g.dim_v * size);
        let tokens = k.shape()[0];
        let mut done = 0;
        while done < tokens {
            let (i, offset) = ((len + done) / page - self.sealed, (len + done) % page);
            let run = done..(done + page - offset).min(tokens);
            let Some(bytes) = self.pages[i].bytes_from(offset) else {
                unreachable!("a shared page is copied before it is written")
            };
            let (keys, values) = bytes.split_at_mut(page * k_row);
            for (rows, tile, row) in [(k, keys, k_row), (v, values, v_row)] {
                let to = &mut tile[offset * row..(offset + run.len()) * row];
                write::append(rows, head, run.clone(), g.dtype, to)
                    .expect("shape and dtype were checked before room was taken");
            }
            done = run.end;
        }
    }

    fn note_norms(&mut self, len: usize, k: &Tensor3, head: usize, geometry: &Geometry) {
        let mut row = vec![0f32; geometry.dim_k];
        for t in 0..k.shape()[0] {
            k.read_f32(t, head, &mut row);
            self.note_norm((len + t) / geometry.page_tokens, norm(&row));
        }
    }

    fn note_norm(&mut self, page: usize, norm: f32) {
        if self.norms.len() <= page {
            self.norms.resize(page + 1, 0.0);
        }
        self.norms[page] = self.norms[page].max(norm);
    }

    /// Brings the summaries from `had` to `len` tokens; the cells are there.
    fn summarise(&mut self, had: usize, len: usize, geometry: &Geometry, store: &Store) {
        let row_bytes = geometry.dim_k * geometry.dtype.size();
        let page = geometry.page_tokens;
        // Sealed pages end where a finished tile does, so what is still summarised is open.
        let (pages, sealed) = (&self.pages, self.sealed);
        let row = |t: usize| {
            pages[t / page - sealed].ptr().wrapping_add(t % page * row_bytes).cast_const()
        };
        for (tile, cell) in self.cells.iter_mut().enumerate().skip(had / TILE) {
            // SAFETY: rows below `len` were written and their pages are held by this head.
            unsafe { store.update(cell, geometry.dtype, tile, had, len, row) }
        }
    }

    /// Takes fresh summary cells instead of those there are.
    pub(crate) fn replace_cells(&mut self, cells: Vec<Arc<Cell>>) {
        self.cells.clear();
        self.cell_ids.clear();
        extend(&mut self.cells, &mut self.cell_ids, cells, false);
    }

    /// Summarises the tokens of `tiles` from the keys that `row` finds, and notes their norms if they
    /// are not known. Ascending calls must cover all tokens.
    ///
    /// # Safety
    /// `row(t)` must be readable as a key for every token of the tiles below `len`.
    pub(crate) unsafe fn resummarise(
        &mut self,
        tiles: Range<usize>,
        len: usize,
        norms: bool,
        geometry: &Geometry,
        store: &Store,
        row: impl Fn(usize) -> *const u8,
    ) {
        if norms {
            let mut key = vec![0f32; geometry.dim_k];
            for t in tiles.start * TILE..(tiles.end * TILE).min(len) {
                // SAFETY: readable, by the caller.
                unsafe { convert::widen(geometry.dtype, row(t), &mut key) }
                self.note_norm(t / geometry.page_tokens, norm(&key));
            }
        }
        let end = tiles.end.min(self.cells.len());
        for tile in tiles.start.min(end)..end {
            // SAFETY: readable, by the caller.
            unsafe { store.update(&mut self.cells[tile], geometry.dtype, tile, 0, len, &row) }
        }
    }

    /// Whether the norms of all pages are known.
    pub(crate) fn has_norms(&self) -> bool {
        self.norms.len() == self.sealed + self.pages.len()
    }

    /// Takes the first `n` open pages out: they are sealed from now on.
    pub(crate) fn seal(&mut self, n: usize) -> std::vec::Drain<'_, Arc<Cell>> {
        self.sealed += n;
        self.ids.drain(..n);
        self.pages.drain(..n)
    }

    /// Opens sealed pages from `first` on: `pages` are copies of those that stay.
    pub(crate) fn open(&mut self, first: usize, pages: Vec<Arc<Cell>>) {
        self.sealed = first;
        self.ids.splice(0..0, pages.iter().map(|c| c.id()));
        self.pages.splice(0..0, pages);
    }

    /// Notes the norms of stored keys.
    fn read_norms(&mut self, from: usize, to: usize, geometry: &Geometry) {
        let mut row = vec![0f32; geometry.dim_k];
        let bytes = geometry.dim_k * geometry.dtype.size();
        for t in from..to {
            let page = t / geometry.page_tokens;
            let at =
                self.pages[page - self.sealed].ptr().wrapping_add(t % geometry.page_tokens * bytes);
            // SAFETY: rows below `to` were written and their pages are held by this head.
            unsafe { convert::widen(geometry.dtype, at, &mut row) }
            self.note_norm(page, norm(&row));
        }
    }

    /// Forgets the tokens from `len` on. `fresh` replaces a summary cell that is cut and shared.
    pub(crate) fn cut(
        &mut self,
        len: usize,
        geometry: &Geometry,
        store: Option<&Store>,
        fresh: Option<Arc<Cell>>,
    ) {
        let pages = len.div_ceil(geometry.page_tokens) - self.sealed;
        self.pages.truncate(pages);
        self.ids.truncate(pages);
        let Some(store) = store else { return };
        let whole = len / geometry.page_tokens;
        self.norms.truncate(whole);
        self.read_norms(whole * geometry.page_tokens, len, geometry);
        let cells = store.spec.cells(len);
        self.cells.truncate(cells);
        self.cell_ids.truncate(cells);
        if let Some(fresh) = fresh {
            extend(&mut self.cells, &mut self.cell_ids, vec![fresh], true);
        }
        // A cut cell of units still speaks of forgotten keys: build it again.
        if cells * TILE > len {
            self.summarise((cells - 1) * TILE, len, geometry, store);
        }
    }

    /// Whether cutting at `len` rewrites a summary cell that others share.
    pub(crate) fn cut_is_shared(&self, len: usize, store: &Store) -> bool {
        let cells = store.spec.cells(len);
        let cut = cells * TILE > len;
        cut && self.cells.get(cells - 1).is_some_and(|c| Arc::strong_count(c) > 1)
    }
}

/// Norm of a row, rounded up; 0 for one that is not finite.
pub(crate) fn norm(row: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0f64; LANES];
    let (body, tail) = row.as_chunks::<LANES>();
    for x in body {
        sums.iter_mut().zip(x).for_each(|(s, &x)| *s += f64::from(x) * f64::from(x));
    }
    let sum = sums.iter().sum::<f64>() + tail.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    // The largest finite keys have a norm that f32 cannot hold.
    let norm = (sum.sqrt() * 1.000_001) as f32;
    if sum.is_finite() { norm.min(f32::MAX) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_are_upper_bounds_of_finite_rows() {
        assert!((norm(&[3.0, 4.0]) - 5.0).abs() < 1e-4 && norm(&[3.0, 4.0]) >= 5.0);
        assert_eq!(norm(&[f32::NAN, 1.0]), 0.0);
        assert_eq!(norm(&[f32::INFINITY; 20]), 0.0);
        assert_eq!(norm(&[f32::MAX; 20]), f32::MAX);
        assert_eq!(norm(&[]), 0.0);
    }
}
