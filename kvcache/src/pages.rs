//! The pages of one sequence: per layer and KV head a list of shared cells, copied when written.

use std::sync::Arc;

use kvist_kernels::{Tensor3, convert, write};

use crate::arena::{Arena, Cell};
use crate::summaries::{Selector, TILE};
use crate::{Error, Geometry};

/// Pages and summaries of one (layer, KV head).
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pages: Vec<Arc<Cell>>,
    /// Numbers of `pages`, so that a list for a kernel is a copy of a slice.
    ids: Vec<u32>,
    cells: Vec<Arc<Cell>>,
    cell_ids: Vec<u32>,
    /// Upper bound of the keys' norms, for the rounding slack of certificates.
    norm_max: f32,
}

/// One layer of a sequence.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) heads: Vec<Head>,
    pub(crate) len: usize,
    /// Whether this layer keeps summaries (dense layers do not).
    pub(crate) summarised: bool,
}

/// New tokens of all KV heads.
pub(crate) struct Rows<'a> {
    pub(crate) k: &'a Tensor3<'a>,
    pub(crate) v: &'a Tensor3<'a>,
}

/// What an append takes before it writes anything.
pub(crate) struct Room {
    pages: Vec<Arc<Cell>>,
    cells: Vec<Arc<Cell>>,
    /// The first new page or cell replaces the last one, which others share.
    copy_page: bool,
    copy_cell: bool,
}

/// Moves a cell's contents into a fresh one.
fn copy(from: &Arc<Cell>, to: &mut Arc<Cell>) {
    let Some(bytes) = to.bytes_mut() else { unreachable!("a fresh cell has one holder") };
    // SAFETY: both cells have the arena's cell size; `from` is held, so its bytes stay.
    unsafe { std::ptr::copy_nonoverlapping(from.ptr(), bytes.as_mut_ptr(), bytes.len()) }
}

impl Head {
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(crate) fn cell_ids(&self) -> &[u32] {
        &self.cell_ids
    }

    pub(crate) fn norm_max(&self) -> f32 {
        self.norm_max
    }

    /// Takes the cells that `tokens` more tokens need, without changing the head.
    pub(crate) fn room(
        &self,
        len: usize,
        tokens: usize,
        page_tokens: usize,
        pages: &Arc<Arena>,
        selector: Option<&Selector>,
    ) -> Result<Room, Error> {
        let shared = |list: &[Arc<Cell>], partial: bool| {
            partial && list.last().is_some_and(|c| Arc::strong_count(c) > 1)
        };
        let copy_page = shared(&self.pages, !len.is_multiple_of(page_tokens));
        let new_pages = (len + tokens).div_ceil(page_tokens) - self.pages.len();
        let pages = pages.take(new_pages + usize::from(copy_page))?;
        let Some(store) = selector.and_then(|s| s.store.as_ref()) else {
            return Ok(Room { pages, cells: Vec::new(), copy_page, copy_cell: false });
        };
        let open = self.cells.len() * TILE > len;
        let copy_cell = shared(&self.cells, open);
        let new_cells = store.spec.cells(len + tokens) - self.cells.len();
        let cells = store.arena.take(new_cells + usize::from(copy_cell))?;
        Ok(Room { pages, cells, copy_page, copy_cell })
    }

    /// Writes rows `0..` of head `head` behind the first `len` tokens. Cannot fail: shapes were
    /// checked and the room was taken.
    pub(crate) fn grow(
        &mut self,
        mut room: Room,
        len: usize,
        head: usize,
        rows: &Rows,
        geometry: &Geometry,
        selector: Option<&Selector>,
    ) -> Result<(), Error> {
        if room.copy_page {
            let at = self.pages.len() - 1;
            copy(&self.pages[at], &mut room.pages[0]);
            self.pages.truncate(at);
        }
        self.pages.append(&mut room.pages);
        self.ids.truncate(0);
        self.ids.extend(self.pages.iter().map(|p| p.id()));
        self.write(len, head, rows, geometry)?;
        let Some(selector) = selector else { return Ok(()) };
        if room.copy_cell {
            let at = self.cells.len() - 1;
            copy(&self.cells[at], &mut room.cells[0]);
            self.cells.truncate(at);
        }
        self.cells.append(&mut room.cells);
        let norm = norm_max(rows.k, head);
        self.norm_max = if norm > self.norm_max || norm.is_nan() { norm } else { self.norm_max };
        self.summarise(len, len + rows.k.shape()[0], geometry, selector);
        Ok(())
    }

    fn write(
        &mut self,
        len: usize,
        head: usize,
        rows: &Rows,
        geometry: &Geometry,
    ) -> Result<(), Error> {
        let Rows { k, v } = rows;
        let (page, size) = (geometry.page_tokens, geometry.dtype.size());
        let (k_row, v_row) = (geometry.dim_k * size, geometry.dim_v * size);
        let tokens = k.shape()[0];
        let mut done = 0;
        while done < tokens {
            let (i, offset) = ((len + done) / page, (len + done) % page);
            let run = done..(done + page - offset).min(tokens);
            let Some(bytes) = self.pages[i].bytes_mut() else {
                unreachable!("a shared page is copied before it is written")
            };
            let (keys, values) = bytes.split_at_mut(page * k_row);
            let to = offset * k_row..(offset + run.len()) * k_row;
            write::append(k, head, run.clone(), geometry.dtype, &mut keys[to])?;
            let to = offset * v_row..(offset + run.len()) * v_row;
            write::append(v, head, run.clone(), geometry.dtype, &mut values[to])?;
            done = run.end;
        }
        Ok(())
    }

    /// Brings the summaries from `had` to `len` tokens; the cells are there.
    fn summarise(&mut self, had: usize, len: usize, geometry: &Geometry, selector: &Selector) {
        let Some(store) = &selector.store else { return };
        let row_bytes = geometry.dim_k * geometry.dtype.size();
        let page = geometry.page_tokens;
        let pages = &self.pages;
        let row = |t: usize| pages[t / page].ptr().wrapping_add(t % page * row_bytes).cast_const();
        let cells = self.cells.len();
        for (tile, cell) in self.cells.iter_mut().enumerate().take(cells).skip(had / TILE) {
            // SAFETY: rows below `len` were written and their pages are held by this head.
            unsafe { store.update(cell, geometry.dtype, tile, had, len, row) }
        }
        self.cell_ids.truncate(0);
        self.cell_ids.extend(self.cells.iter().map(|c| c.id()));
    }

    /// Forgets the tokens from `len` on. `fresh` replaces a cell that is cut and shared.
    pub(crate) fn truncate(
        &mut self,
        len: usize,
        geometry: &Geometry,
        selector: Option<&Selector>,
        fresh: Option<Arc<Cell>>,
    ) {
        let pages = len.div_ceil(geometry.page_tokens);
        self.pages.truncate(pages);
        self.ids.truncate(pages);
        let Some(selector) = selector else { return };
        let Some(store) = &selector.store else { return };
        self.cells.truncate(store.spec.cells(len));
        if let (Some(fresh), Some(last)) = (fresh, self.cells.last_mut()) {
            *last = fresh;
        }
        self.cell_ids.truncate(0);
        self.cell_ids.extend(self.cells.iter().map(|c| c.id()));
        // A cut cell of units still speaks of forgotten keys: build it again.
        if self.cells.len() * TILE > len {
            self.summarise((self.cells.len() - 1) * TILE, len, geometry, selector);
        }
    }

    /// Whether cutting at `len` rewrites a summary cell that others share.
    pub(crate) fn cut_is_shared(&self, len: usize, selector: &Selector) -> bool {
        let Some(store) = &selector.store else { return false };
        let cells = store.spec.cells(len);
        cells * TILE > len
            && cells <= self.cells.len()
            && Arc::strong_count(&self.cells[cells - 1]) > 1
    }

    /// The same pages with summaries of another selector.
    pub(crate) fn resummarised(
        &self,
        len: usize,
        geometry: &Geometry,
        selector: &Selector,
    ) -> Result<Head, Error> {
        let mut head = Head { pages: self.pages.clone(), ids: self.ids.clone(), ..Head::default() };
        if let Some(store) = &selector.store {
            head.cells = store.arena.take(store.spec.cells(len))?;
            head.norm_max = head.stored_norm_max(len, geometry);
            head.summarise(0, len, geometry, selector);
        }
        Ok(head)
    }

    fn stored_norm_max(&self, len: usize, geometry: &Geometry) -> f32 {
        let mut row = vec![0f32; geometry.dim_k];
        let bytes = geometry.dim_k * geometry.dtype.size();
        let mut norms = (0..len).map(|t| {
            let page = &self.pages[t / geometry.page_tokens];
            let at = page.ptr().wrapping_add(t % geometry.page_tokens * bytes);
            // SAFETY: rows below `len` were written and their pages are held by this head.
            unsafe { convert::widen(geometry.dtype, at, &mut row) }
            norm(&row)
        });
        norms.by_ref().fold(0.0, |m: f32, n| if n > m || n.is_nan() { n } else { m })
    }

    /// Gives the summaries up.
    pub(crate) fn drop_summaries(&mut self) {
        self.cells.clear();
        self.cell_ids.clear();
    }

    /// Pages and summary cells.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.pages.len(), self.cells.len())
    }
}

/// Norm of a row, rounded up.
fn norm(row: &[f32]) -> f32 {
    let sum: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (sum.sqrt() * 1.000_001) as f32
}

fn norm_max(k: &Tensor3, head: usize) -> f32 {
    let [tokens, _, dim] = k.shape();
    let mut row = vec![0f32; dim];
    let mut highest = 0f32;
    for t in 0..tokens {
        k.read_f32(t, head, &mut row);
        let n = norm(&row);
        if n > highest || n.is_nan() {
            highest = n;
        }
    }
    highest
}
