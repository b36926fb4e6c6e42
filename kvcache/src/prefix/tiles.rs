//! A block's checksums, made of its tiles in the order of a record's sections: a block that is copied
//! in is read once, and what is written to disk later need not be read again for them.

use kvist_kernels::copy;

use super::rows::BlockRows;
use crate::codec::{Decoded, tile_hash};
use crate::format::BlockLayout;

/// Bytes copied between two steps of the checksum: they stay in the first-level cache.
const COPY: usize = 16 << 10;

/// Copies a block into canonical order; xxh3-64 of each of its tiles.
pub(super) fn gather(layout: &BlockLayout, rows: &BlockRows, bytes: &mut [u8]) -> Box<[u64]> {
    let page = layout.page_bytes();
    let mut hashes = Vec::with_capacity(2 * layout.pages());
    if let Some(block) = rows.as_canonical(layout) {
        let chunk = (COPY / page).max(1) * page;
        for (out, from) in bytes.chunks_mut(chunk).zip(block.chunks(chunk)) {
            hashes.extend(of(layout, from));
            copy::streaming(from, out);
        }
        return hashes.into();
    }
    for (index, out) in bytes.chunks_exact_mut(page).enumerate() {
        rows.copy_page(layout, index, out);
        hashes.extend(of(layout, out));
    }
    hashes.into()
}

/// Checksum of a block by those of its tiles.
pub(super) fn block_hash(tiles: &[u64]) -> u64 {
    let mut hash = Decoded::new();
    tiles.iter().for_each(|&tile| hash.add(tile));
    hash.finish()
}

/// Checksum of a block in canonical order.
pub(super) fn hash(layout: &BlockLayout, bytes: &[u8]) -> u64 {
    let mut hash = Decoded::new();
    of(layout, bytes).for_each(|tile| hash.add(tile));
    hash.finish()
}

/// xxh3-64 of the tiles of some pages.
fn of<'a>(layout: &BlockLayout, pages: &'a [u8]) -> impl Iterator<Item = u64> + use<'a> {
    let (page, k) = (layout.page_bytes(), layout.k_bytes());
    pages.chunks_exact(page).flat_map(move |page| {
        let (k, v) = page.split_at(k);
        [Some(k), (!v.is_empty()).then_some(v)].into_iter().flatten().map(tile_hash)
    })
}
