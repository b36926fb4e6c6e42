//! Where pages come from and go to: one slice in canonical order, or tiles anywhere.

use std::ops::Range;
use std::sync::Arc;

use crate::arena::Cell;
use crate::format::BlockLayout;
use crate::vfs::Buf;

/// Gives the tiles of a block's pages, in canonical order of pages.
pub(crate) trait PageSource {
    /// K tile and V tile of page `index`; the V tile is empty if the layout has none.
    fn page(&self, index: usize) -> (&[u8], &[u8]);

    /// xxh3-64 of each tile, in the order of sections, if somebody has worked them out.
    fn hashes(&self) -> Option<&[u64]> {
        None
    }

    /// What holds the page's tiles, K directly in front of V; it can be written to disk from there.
    fn cell(&self, _index: usize) -> Option<&Arc<Cell>> {
        None
    }
}

/// Takes the tiles of a block's pages.
pub(crate) trait PageSink {
    /// Room for K tile and V tile of page `index`.
    fn page(&mut self, index: usize) -> (&mut [u8], &mut [u8]);

    /// Room for a range of the block in canonical order, to be read into; the sink has no other use
    /// until it is dropped. `None` if there is none in one piece.
    fn lend(&mut self, _bytes: Range<usize>) -> Option<Buf> {
        None
    }
}

/// Tiles anywhere.
#[cfg(test)]
pub(crate) struct Tiles<'a>(pub(crate) &'a [(&'a [u8], &'a [u8])]);

#[cfg(test)]
impl PageSource for Tiles<'_> {
    fn page(&self, index: usize) -> (&[u8], &[u8]) {
        self.0[index]
    }
}

/// Room for tiles anywhere.
#[cfg(test)]
pub(crate) struct TilesMut<'a, 'b>(pub(crate) &'a mut [(&'b mut [u8], &'b mut [u8])]);

#[cfg(test)]
impl PageSink for TilesMut<'_, '_> {
    fn page(&mut self, index: usize) -> (&mut [u8], &mut [u8]) {
        let (k, v) = &mut self.0[index];
        (k, v)
    }
}

/// A block in canonical order.
pub(crate) struct Canonical<'a> {
    bytes: &'a [u8],
    cell: Option<&'a Arc<Cell>>,
    hashes: Option<&'a [u64]>,
    k: usize,
    page: usize,
}

impl<'a> Canonical<'a> {
    /// `bytes` must be as long as the layout says.
    pub(crate) fn new(layout: &BlockLayout, bytes: &'a [u8]) -> Canonical<'a> {
        assert_eq!(bytes.len(), layout.bytes(), "bytes of a block");
        let (k, page) = (layout.k_bytes(), layout.page_bytes());
        Canonical { bytes, cell: None, hashes: None, k, page }
    }

    /// A block that fills a cell. `hashes` as [`PageSource::hashes`].
    pub(crate) fn of_cell(
        layout: &BlockLayout,
        cell: &'a Arc<Cell>,
        hashes: Option<&'a [u64]>,
    ) -> Canonical<'a> {
        Canonical { cell: Some(cell), hashes, ..Canonical::new(layout, cell.bytes()) }
    }
}

impl PageSource for Canonical<'_> {
    fn page(&self, index: usize) -> (&[u8], &[u8]) {
        self.bytes[index * self.page..][..self.page].split_at(self.k)
    }

    fn hashes(&self) -> Option<&[u64]> {
        self.hashes
    }

    fn cell(&self, _index: usize) -> Option<&Arc<Cell>> {
        self.cell
    }
}

/// Room for a block in canonical order.
#[cfg(any(test, feature = "testing"))]
pub(crate) struct CanonicalMut<'a> {
    bytes: &'a mut [u8],
    k: usize,
    page: usize,
}

#[cfg(any(test, feature = "testing"))]
impl<'a> CanonicalMut<'a> {
    /// `bytes` must be as long as the layout says.
    pub(crate) fn new(layout: &BlockLayout, bytes: &'a mut [u8]) -> CanonicalMut<'a> {
        assert_eq!(bytes.len(), layout.bytes(), "bytes of a block");
        CanonicalMut { bytes, k: layout.k_bytes(), page: layout.page_bytes() }
    }
}

#[cfg(any(test, feature = "testing"))]
impl PageSink for CanonicalMut<'_> {
    fn page(&mut self, index: usize) -> (&mut [u8], &mut [u8]) {
        self.bytes[index * self.page..][..self.page].split_at_mut(self.k)
    }
}
