//! What a saved session keeps of a head beside its sealed pages, and taking it back.

use std::sync::Arc;

use super::{Head, extend};
use crate::Geometry;
use crate::arena::Cell;
use crate::summaries::{Store, TILE};

/// Bytes of `tokens` rows of keys and of values.
fn row_bytes(tokens: usize, g: &Geometry) -> [usize; 2] {
    [g.dim_k, g.dim_v].map(|dim| tokens * dim * g.dtype.size())
}

impl Head {
    /// Upper bounds of the key norms of the sealed pages.
    pub(crate) fn sealed_norms(&self) -> &[f32] {
        &self.norms[..self.sealed.min(self.norms.len())]
    }

    /// The summary of a finished tile.
    pub(crate) fn summary(&self, tile: usize) -> &[u8] {
        self.cells[tile].bytes()
    }

    /// Adds the rows of open pages up to token `len`, page by page, keys before values.
    pub(crate) fn open_rows(&self, len: usize, g: &Geometry, out: &mut Vec<u8>) {
        let open = len - self.sealed * g.page_tokens;
        for i in 0..self.pages.len() {
            let tokens = (open - i * g.page_tokens).min(g.page_tokens);
            self.page_rows(self.sealed + i, tokens, g, out);
        }
    }

    /// Adds the first rows of an open page, keys before values.
    pub(crate) fn page_rows(&self, page: usize, tokens: usize, g: &Geometry, out: &mut Vec<u8>) {
        let page = &self.pages[page - self.sealed];
        let (k, v) = page.bytes().split_at(row_bytes(g.page_tokens, g)[0]);
        let [k_bytes, v_bytes] = row_bytes(tokens, g);
        out.extend_from_slice(&k[..k_bytes]);
        out.extend_from_slice(&v[..v_bytes]);
    }

    /// Takes fresh pages and summary cells behind `sealed` pages, to be filled.
    pub(crate) fn fill(&mut self, sealed: usize, pages: Vec<Arc<Cell>>, cells: Vec<Arc<Cell>>) {
        self.sealed = sealed;
        extend(&mut self.pages, &mut self.ids, pages, false);
        extend(&mut self.cells, &mut self.cell_ids, cells, false);
    }

    /// [`Head::open_rows`] back into fresh pages; what follows of `raw`.
    pub(crate) fn take_rows<'a>(
        &mut self,
        len: usize,
        g: &Geometry,
        mut raw: &'a [u8],
    ) -> Option<&'a [u8]> {
        let open = len - self.sealed * g.page_tokens;
        for (i, page) in self.pages.iter_mut().enumerate() {
            let tokens = (open - i * g.page_tokens).min(g.page_tokens);
            let (k, v) = page.bytes_mut()?.split_at_mut(row_bytes(g.page_tokens, g)[0]);
            for (tile, bytes) in [k, v].into_iter().zip(row_bytes(tokens, g)) {
                let (rows, rest) = raw.split_at_checked(bytes)?;
                tile[..bytes].copy_from_slice(rows);
                raw = rest;
            }
        }
        Some(raw)
    }

    /// Takes the summary of a finished tile into its fresh cell.
    pub(crate) fn take_cell(&mut self, tile: usize, raw: &[u8]) {
        let Some(bytes) = self.cells[tile].bytes_mut() else {
            unreachable!("a fresh cell has one holder")
        };
        bytes.copy_from_slice(raw);
    }

    /// Takes the norms of the sealed pages, and works out what is not saved: those of open pages, and
    /// the summary of the unfinished tile.
    pub(crate) fn complete(
        &mut self,
        len: usize,
        norms: impl Iterator<Item = f32>,
        g: &Geometry,
        store: &Store,
    ) {
        self.norms.extend(norms.take(self.sealed));
        self.read_norms(self.sealed * g.page_tokens, len, g);
        self.summarise(len / TILE * TILE, len, g, store);
    }
}
