//! Blocks in the caller's memory: any strides, K and V apart or together, tokens or heads first.

use std::marker::PhantomData;
use std::ops::Range;

use super::strides::Strides;
use super::tiling::Tiling;
use kvist_kernels::copy;

use crate::Error;
use crate::format::BlockLayout;

/// Bytes of a row of K and of V.
fn row_bytes(layout: &BlockLayout) -> (usize, usize) {
    let size = layout.dtype.size();
    (layout.dim_k as usize * size, layout.dim_v as usize * size)
}

fn check(layout: &BlockLayout, k: Strides, v: Strides, len: usize) -> Result<(), Error> {
    layout.validate()?;
    let (k_row, v_row) = row_bytes(layout);
    for (what, strides, row) in [("keys", k, k_row), ("values", v, v_row)] {
        if row == 0 {
            continue;
        }
        let end = strides.end(layout, row).unwrap_or(usize::MAX);
        if end > len {
            let expected = format!("strides that stay inside {len} bytes");
            return Err(Error::setting(what, expected, format!("{strides:?} up to byte {end}")));
        }
    }
    Ok(())
}

/// A block to read from. Borrowed memory; strides may also repeat rows (broadcasting).
#[derive(Clone, Copy, Debug)]
pub struct BlockRows<'a> {
    base: *const u8,
    k: Strides,
    v: Strides,
    layers: Option<&'a [(*const u8, *const u8)]>,
    tilings: (Option<Tiling>, Option<Tiling>),
    _life: PhantomData<&'a [u8]>,
}

/// A block to write to. No byte is reached twice.
#[derive(Debug)]
pub struct BlockRowsMut<'a> {
    base: *mut u8,
    k: Strides,
    v: Strides,
    layers: Option<&'a [(*mut u8, *mut u8)]>,
    tilings: (Option<Tiling>, Option<Tiling>),
    _life: PhantomData<&'a mut [u8]>,
}

// SAFETY: a shared borrow of plain numbers.
unsafe impl Send for BlockRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for BlockRows<'_> {}
// SAFETY: a unique borrow of plain numbers.
unsafe impl Send for BlockRowsMut<'_> {}
// SAFETY: `&BlockRowsMut` gives no access.
unsafe impl Sync for BlockRowsMut<'_> {}

impl<'a> BlockRows<'a> {
    /// Rows inside a slice, `(K, V)` strides in bytes.
    ///
    /// # Errors
    /// [`Error::Setting`] if a row would lie outside, or the layout is impossible.
    pub fn new(
        layout: &BlockLayout,
        data: &'a [u8],
        (k, v): (Strides, Strides),
    ) -> Result<BlockRows<'a>, Error> {
        check(layout, k, v, data.len())?;
        Ok(BlockRows {
            base: data.as_ptr(),
            k,
            v,
            layers: None,
            tilings: (None, None),
            _life: PhantomData,
        })
    }

    /// Rows anywhere; offsets count from `base` and may wrap around.
    ///
    /// # Safety
    /// Every row that the strides reach for the layout must be readable and unchanged for `'a`.
    #[must_use]
    pub unsafe fn from_raw(base: *const u8, (k, v): (Strides, Strides)) -> BlockRows<'a> {
        BlockRows { base, k, v, layers: None, tilings: (None, None), _life: PhantomData }
    }

    /// [`BlockRows::from_raw`] where layers are not equally far apart, such as one tensor per layer:
    /// offsets count from where each layer's keys and values start, and [`Strides::layer`] is not
    /// used.
    ///
    /// # Safety
    /// As [`BlockRows::from_raw`].
    #[must_use]
    pub unsafe fn from_raw_layers(
        layers: &'a [(*const u8, *const u8)],
        (k, v): (Strides, Strides),
    ) -> BlockRows<'a> {
        let base = std::ptr::null();
        BlockRows { base, k, v, layers: Some(layers), tilings: (None, None), _life: PhantomData }
    }

    /// These rows with the elements of K's and V's tiles where a [`Tiling`] says, counted from where
    /// the block's layer and head start; [`Strides::token`] is then not used.
    ///
    /// # Safety
    /// Every element that the tilings reach for the layout must be readable and unchanged for `'a`.
    #[must_use]
    pub unsafe fn tiled(self, k: Option<Tiling>, v: Option<Tiling>) -> BlockRows<'a> {
        BlockRows { tilings: (k, v), ..self }
    }

    /// The block's bytes, if they lie in canonical order already.
    pub(crate) fn as_canonical(&self, layout: &BlockLayout) -> Option<&'a [u8]> {
        let base = self.base.wrapping_add(self.k.offset);
        // SAFETY: canonical strides reach every byte from the first on, in bounds by construction.
        self.is_one_run(layout).then(|| unsafe { std::slice::from_raw_parts(base, layout.bytes()) })
    }

    /// Whether the block is one run of bytes in canonical order.
    fn is_one_run(&self, layout: &BlockLayout) -> bool {
        let plain = self.layers.is_none() && self.tilings == (None, None);
        plain && is_canonical(layout, self.k, self.v)
    }

    /// A page's first rows, of K and of V.
    fn starts(&self, layout: &BlockLayout, page: usize) -> (*const u8, *const u8) {
        let (layer, head) = (page / layout.num_heads(), page % layout.num_heads());
        let ((k, v), layer) = match self.layers {
            Some(layers) => (layers[layer], 0),
            None => ((self.base, self.base), layer),
        };
        (k.wrapping_add(self.k.at(layer, head)), v.wrapping_add(self.v.at(layer, head)))
    }

    /// Copies a page's tiles, in canonical order. `page` is of the layout, `out` a page long.
    pub(crate) fn copy_page(&self, layout: &BlockLayout, page: usize, out: &mut [u8]) {
        assert_eq!(out.len(), layout.page_bytes(), "bytes of a page");
        let (k_row, v_row) = row_bytes(layout);
        let (k, v) = out.split_at_mut(layout.k_bytes());
        let (from_k, from_v) = self.starts(layout, page);
        let (size, tilings) = (layout.dtype.size(), self.tilings);
        let sides = [(from_k, self.k, tilings.0, k_row, k), (from_v, self.v, tilings.1, v_row, v)];
        for (from, strides, tiling, row, tile) in sides.into_iter().filter(|side| side.3 > 0) {
            // SAFETY: in bounds by construction; a tile is `block_tokens` rows long.
            unsafe {
                match tiling {
                    Some(tiling) => tiling.gather(from, size, row, tile),
                    None => gather(from, strides.token, row, tile),
                }
            }
        }
    }
}

impl<'a> BlockRowsMut<'a> {
    /// Rows inside a slice, `(K, V)` strides in bytes.
    ///
    /// # Errors
    /// [`Error::Setting`] if a row would lie outside, two rows would overlap, or the layout is
    /// impossible.
    pub fn new(
        layout: &BlockLayout,
        data: &'a mut [u8],
        (k, v): (Strides, Strides),
    ) -> Result<BlockRowsMut<'a>, Error> {
        check(layout, k, v, data.len())?;
        let (k_row, v_row) = row_bytes(layout);
        for (what, strides, row) in [("keys", k, k_row), ("values", v, v_row)] {
            if row > 0 && !strides.is_injective(layout, row) {
                return Err(Error::setting(
                    what,
                    "rows that do not overlap",
                    format!("{strides:?}"),
                ));
            }
        }
        Ok(BlockRowsMut {
            base: data.as_mut_ptr(),
            k,
            v,
            layers: None,
            tilings: (None, None),
            _life: PhantomData,
        })
    }

    /// Rows anywhere; offsets count from `base` and may wrap around.
    ///
    /// # Safety
    /// Every row that the strides reach for the layout must be writable, reached once, and borrowed
    /// by nobody else for `'a`.
    #[must_use]
    pub unsafe fn from_raw(base: *mut u8, (k, v): (Strides, Strides)) -> BlockRowsMut<'a> {
        BlockRowsMut { base, k, v, layers: None, tilings: (None, None), _life: PhantomData }
    }

    /// [`BlockRowsMut::from_raw`] where layers are not equally far apart; see
    /// [`BlockRows::from_raw_layers`].
    ///
    /// # Safety
    /// As [`BlockRowsMut::from_raw`].
    #[must_use]
    pub unsafe fn from_raw_layers(
        layers: &'a [(*mut u8, *mut u8)],
        (k, v): (Strides, Strides),
    ) -> BlockRowsMut<'a> {
        let base = std::ptr::null_mut();
        BlockRowsMut { base, k, v, layers: Some(layers), tilings: (None, None), _life: PhantomData }
    }

    /// These rows with the elements of K's and V's tiles where a [`Tiling`] says, counted from where
    /// the block's layer and head start; [`Strides::token`] is then not used.
    ///
    /// # Safety
    /// Every element that the tilings reach for the layout must be writable, reached
    /// once, and borrowed by nobody else for `'a`.
    #[must_use]
    pub unsafe fn tiled(self, k: Option<Tiling>, v: Option<Tiling>) -> BlockRowsMut<'a> {
        BlockRowsMut { tilings: (k, v), ..self }
    }

    /// Writes pages from a block in canonical order.
    pub(crate) fn write(&mut self, layout: &BlockLayout, pages: Range<usize>, block: &[u8]) {
        let page = layout.page_bytes();
        let bytes = pages.start * page..pages.end * page;
        if self.is_one_run(layout) {
            let to = self.base.wrapping_add(self.k.offset).wrapping_add(bytes.start);
            let from = &block[bytes];
            // SAFETY: canonical strides reach every byte from the first on, in bounds and not shared
            // by construction. One long copy runs at the memory's speed, many short ones do not.
            unsafe { copy::streaming_raw(from.as_ptr(), to, from.len()) }
            return;
        }
        let mut scratch = Vec::new();
        for i in pages {
            self.write_page(layout, i, &block[i * page..(i + 1) * page], &mut scratch);
        }
    }

    /// Whether the block is one run of bytes in canonical order.
    fn is_one_run(&self, layout: &BlockLayout) -> bool {
        let plain = self.layers.is_none() && self.tilings == (None, None);
        plain && is_canonical(layout, self.k, self.v)
    }

    /// A page's first rows, of K and of V.
    fn starts(&self, layout: &BlockLayout, page: usize) -> (*mut u8, *mut u8) {
        let (layer, head) = (page / layout.num_heads(), page % layout.num_heads());
        let ((k, v), layer) = match self.layers {
            Some(layers) => (layers[layer], 0),
            None => ((self.base, self.base), layer),
        };
        (k.wrapping_add(self.k.at(layer, head)), v.wrapping_add(self.v.at(layer, head)))
    }

    /// Whether a page is one run of bytes where each token's row of V follows its row of K.
    fn is_side_by_side(&self, k_row: usize, v_row: usize, k: *mut u8, v: *mut u8) -> bool {
        let token = k_row + v_row;
        let follows = v == k.wrapping_add(k_row) && self.k.token == token && self.v.token == token;
        follows && self.tilings == (None, None)
    }

    /// Writes a page's tiles from canonical order. `scratch` is room that the next page may use, too.
    pub(super) fn write_page(
        &mut self,
        layout: &BlockLayout,
        page: usize,
        data: &[u8],
        scratch: &mut Vec<u8>,
    ) {
        assert_eq!(data.len(), layout.page_bytes(), "bytes of a page");
        let (k_row, v_row) = row_bytes(layout);
        let (k, v) = data.split_at(layout.k_bytes());
        let (to_k, to_v) = self.starts(layout, page);
        if k_row > 0 && v_row > 0 && self.is_side_by_side(k_row, v_row, to_k, to_v) {
            scratch.clear();
            for (k, v) in k.chunks_exact(k_row).zip(v.chunks_exact(v_row)) {
                scratch.extend_from_slice(k);
                scratch.extend_from_slice(v);
            }
            // SAFETY: all rows in their order are one run, in bounds and not shared by construction.
            return unsafe { copy::streaming_raw(scratch.as_ptr(), to_k, scratch.len()) };
        }
        let (size, tilings) = (layout.dtype.size(), self.tilings);
        let sides = [(to_k, self.k, tilings.0, k_row, k), (to_v, self.v, tilings.1, v_row, v)];
        for (to, strides, tiling, row, tile) in sides.into_iter().filter(|side| side.3 > 0) {
            // SAFETY: in bounds and not shared by construction; a tile is `block_tokens` rows long.
            unsafe {
                match tiling {
                    Some(tiling) => tiling.write(tile, (size, row), to, scratch),
                    None => scatter(tile, row, to, strides.token),
                }
            }
        }
    }
}

/// Whether a block with these strides is one run of bytes in canonical order.
fn is_canonical(layout: &BlockLayout, k: Strides, v: Strides) -> bool {
    let (canonical_k, canonical_v) = Strides::canonical(layout);
    let at = |s: Strides| Strides { offset: s.offset.wrapping_add(k.offset), ..s };
    k == at(canonical_k) && (layout.dim_v == 0 || v == at(canonical_v))
}

/// # Safety
/// `tile.len() / row` rows of `row` bytes, `stride` apart, must be readable from `from` on.
unsafe fn gather(from: *const u8, stride: usize, row: usize, tile: &mut [u8]) {
    if stride == row {
        // SAFETY: the rows are one run.
        unsafe { std::ptr::copy_nonoverlapping(from, tile.as_mut_ptr(), tile.len()) }
        return;
    }
    for (token, out) in tile.chunks_exact_mut(row).enumerate() {
        // SAFETY: by the caller.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.wrapping_add(token.wrapping_mul(stride)),
                out.as_mut_ptr(),
                row,
            );
        }
    }
}

/// # Safety
/// `tile.len() / row` rows of `row` bytes, `stride` apart, must be writable from `to` on.
unsafe fn scatter(tile: &[u8], row: usize, to: *mut u8, stride: usize) {
    if stride == row {
        // SAFETY: the rows are one run.
        unsafe { copy::streaming_raw(tile.as_ptr(), to, tile.len()) }
        return;
    }
    for (token, data) in tile.chunks_exact(row).enumerate() {
        // SAFETY: by the caller.
        unsafe {
            std::ptr::copy_nonoverlapping(
                data.as_ptr(),
                to.wrapping_add(token.wrapping_mul(stride)),
                row,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tiling::Axis;
    use super::*;
    use crate::format::BlockDType;

    fn layout() -> BlockLayout {
        BlockLayout { dim_v: 3, ..BlockLayout::new(BlockDType::F16, 5, 2, 3, 4) }
    }

    fn canonical(rows: &BlockRows, layout: &BlockLayout) -> Vec<u8> {
        let mut out = vec![0; layout.bytes()];
        for (page, out) in out.chunks_exact_mut(layout.page_bytes()).enumerate() {
            rows.copy_page(layout, page, out);
        }
        out
    }

    #[test]
    fn every_layout_comes_back_as_it_was() {
        let layout = layout();
        let block: Vec<u8> = (0..layout.bytes()).map(|i| i as u8).collect();
        let (k_row, v_row) = row_bytes(&layout);
        let paired = |offset| Strides {
            offset,
            layer: layout.num_heads() * layout.page_bytes(),
            head: layout.page_bytes(),
            token: k_row + v_row,
        };
        let paired = (paired(0), paired(k_row));
        let orders = [Strides::canonical(&layout), Strides::nhd(&layout), Strides::hnd(&layout)];
        for strides in orders.into_iter().chain([paired]) {
            let mut memory = vec![0; layout.bytes()];
            let mut rows = BlockRowsMut::new(&layout, &mut memory, strides).unwrap();
            for (page, data) in block.chunks_exact(layout.page_bytes()).enumerate() {
                rows.write_page(&layout, page, data, &mut Vec::new());
            }
            let rows = BlockRows::new(&layout, &memory, strides).unwrap();
            assert_eq!(canonical(&rows, &layout), block);
        }
    }

    #[test]
    fn a_block_in_canonical_order_is_copied_whole() {
        let layout = layout();
        let mut memory: Vec<u8> = (0..layout.bytes() + 7).map(|i| i as u8).collect();
        let shifted = |(k, v): (Strides, Strides)| {
            let by = |s: Strides| Strides { offset: s.offset + 7, ..s };
            (by(k), by(v))
        };
        let strides = shifted(Strides::canonical(&layout));
        let block = memory[7..].to_vec();
        let rows = BlockRows::new(&layout, &memory, strides).unwrap();
        assert_eq!(rows.as_canonical(&layout), Some(&block[..]));
        let nhd = BlockRows::new(&layout, &memory, Strides::nhd(&layout)).unwrap();
        assert_eq!(nhd.as_canonical(&layout), None);
        let mut rows = BlockRowsMut::new(&layout, &mut memory, strides).unwrap();
        rows.write(&layout, 1..3, &vec![9; layout.bytes()]);
        let page = layout.page_bytes();
        assert!(memory[7 + page..7 + 3 * page].iter().all(|&b| b == 9));
        assert_eq!((memory[6 + page], memory[7 + 3 * page]), (block[page - 1], block[3 * page]));
    }

    #[test]
    fn tiled_elements_come_back_as_they_were() {
        // Keys transposed, values in pairs of tokens by halves of a row, as matrix units read them.
        let layout = BlockLayout { dim_v: 4, ..BlockLayout::new(BlockDType::F16, 6, 2, 3, 8) };
        let block: Vec<u8> = (0..layout.bytes()).map(|i| (i % 251) as u8).collect();
        let k = Tiling { token: Axis::plain(6, 2), channel: Axis::plain(8, 6 * 2) };
        let v = Tiling {
            token: Axis { piece: 2, inner: 2, outer: 4 * 2 },
            channel: Axis { piece: 2, inner: 2 * 2, outer: 3 * 4 * 2 },
        };
        let mut memory = vec![0; layout.bytes()];
        let strides = Strides::canonical(&layout);
        // SAFETY: each tile is permuted in place.
        let mut rows = unsafe {
            BlockRowsMut::new(&layout, &mut memory, strides).unwrap().tiled(Some(k), Some(v))
        };
        rows.write(&layout, 0..layout.pages(), &block);
        // SAFETY: as above.
        let rows =
            unsafe { BlockRows::new(&layout, &memory, strides).unwrap().tiled(Some(k), Some(v)) };
        assert_eq!(canonical(&rows, &layout), block);
        assert_eq!(rows.as_canonical(&layout), None);
        // Token 5, channel 3 of K, then token 3, channel 2 of V, in the first page.
        assert_eq!(memory[(3 * 6 + 5) * 2], block[(5 * 8 + 3) * 2]);
        let v_at = layout.k_bytes();
        assert_eq!(memory[v_at + (12 + 4 + 1) * 2], block[v_at + (3 * 4 + 2) * 2]);
    }

    #[test]
    fn tokens_and_heads_first_differ() {
        // Two heads of two tokens of one element: NHD is t0h0 t0h1 t1h0 t1h1, HND is the transpose.
        let layout = BlockLayout::new(BlockDType::U8, 2, 1, 2, 1);
        let data = [1, 2, 3, 4, 5, 6, 7, 8];
        let of = |strides| canonical(&BlockRows::new(&layout, &data, strides).unwrap(), &layout);
        assert_eq!(of(Strides::nhd(&layout)), [1, 3, 5, 7, 2, 4, 6, 8]);
        assert_eq!(of(Strides::hnd(&layout)), [1, 2, 5, 6, 3, 4, 7, 8]);
    }

    #[test]
    fn layers_may_lie_anywhere_and_rows_may_run_backwards() {
        let layout = layout();
        let block: Vec<u8> = (0..layout.bytes()).map(|i| i as u8).collect();
        // Keys and values of each layer in memory of their own, tokens from the last to the first.
        let (heads, tokens) = (layout.num_heads(), layout.block_tokens as usize);
        let (k_row, v_row) = row_bytes(&layout);
        let mut memory: Vec<Vec<u8>> = vec![vec![0; 4096]; 4];
        let at: Vec<*mut u8> = memory.iter_mut().map(|m| m.as_mut_ptr()).collect();
        let layers = [(at[3], at[0]), (at[2], at[1])];
        let backwards = |row: usize| Strides {
            offset: (tokens - 1) * heads * row,
            layer: 0,
            token: (heads * row).wrapping_neg(),
            head: row,
        };
        let strides = (backwards(k_row), backwards(v_row));
        // SAFETY: every row lies in one of the vectors, which nobody else uses.
        let mut rows = unsafe { BlockRowsMut::from_raw_layers(&layers, strides) };
        rows.write(&layout, 0..layout.pages(), &block);
        let layers = layers.map(|(k, v)| (k.cast_const(), v.cast_const()));
        // SAFETY: as above.
        let rows = unsafe { BlockRows::from_raw_layers(&layers, strides) };
        assert_eq!(canonical(&rows, &layout), block);
        assert_eq!(memory[3][(tokens - 1) * heads * k_row..][..k_row], block[..k_row]);
    }

    #[test]
    fn rows_outside_or_on_top_of_each_other_are_refused() {
        let layout = layout();
        let (k, v) = Strides::nhd(&layout);
        let mut data = vec![0; layout.bytes()];
        assert!(BlockRows::new(&layout, &data[1..], (k, v)).is_err());
        let huge = Strides { layer: usize::MAX, ..k };
        assert!(BlockRows::new(&layout, &data, (huge, v)).is_err());
        let broadcast = Strides { token: 0, ..k };
        assert!(BlockRows::new(&layout, &data, (broadcast, v)).is_ok());
        let text = BlockRowsMut::new(&layout, &mut data, (broadcast, v)).unwrap_err().to_string();
        assert!(text.contains("overlap"), "{text}");
    }
}
