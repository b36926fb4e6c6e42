//! Where the elements of a tile are, where its rows are not runs of bytes: keys transposed, or in the
//! small tiles that matrix units read.

/// One dimension of a tile, cut into pieces of equal length; strides in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Elements of a piece; all of them, if the dimension is not cut.
    pub piece: usize,
    /// From an element to the next in the same piece.
    pub inner: usize,
    /// From a piece to the next.
    pub outer: usize,
}

impl Axis {
    /// A dimension that is not cut.
    #[must_use]
    pub fn plain(count: usize, stride: usize) -> Axis {
        Axis { piece: count, inner: stride, outer: 0 }
    }

    fn at(&self, index: usize) -> usize {
        let (piece, inner) = (index / self.piece, index % self.piece);
        piece.wrapping_mul(self.outer).wrapping_add(inner.wrapping_mul(self.inner))
    }
}

/// The elements of a tile `[token][channel]`: each lies at the sum of its two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Tokens.
    pub token: Axis,
    /// Channels of a row.
    pub channel: Axis,
}

impl Tiling {
    /// Runs `copy` for each element of a tile of `len` bytes in canonical order, rows of `row` bytes:
    /// its index in the tile, and its place, in elements of `S` bytes.
    fn each<const S: usize>(&self, row: usize, len: usize, mut copy: impl FnMut(usize, usize)) {
        let (channels, mut index) = (row / S, 0);
        for token in 0..len / row {
            let token = self.token.at(token);
            for first in (0..channels).step_by(self.channel.piece) {
                let at = token.wrapping_add(self.channel.at(first));
                for i in 0..self.channel.piece.min(channels - first) {
                    copy(index, at.wrapping_add(i.wrapping_mul(self.channel.inner)));
                    index += 1;
                }
            }
        }
    }

    /// # Safety
    /// `tile.len()` bytes, in rows of `row` bytes of elements of `size`, must be readable where this
    /// says, counted from `from`.
    pub(super) unsafe fn gather(&self, from: *const u8, size: usize, row: usize, tile: &mut [u8]) {
        // SAFETY: by the caller.
        unsafe {
            match size {
                1 => self.gather_of::<1>(from, row, tile),
                2 => self.gather_of::<2>(from, row, tile),
                _ => self.gather_of::<4>(from, row, tile),
            }
        }
    }

    /// # Safety
    /// As [`Tiling::gather`], with elements of `S` bytes.
    unsafe fn gather_of<const S: usize>(&self, from: *const u8, row: usize, tile: &mut [u8]) {
        let len = tile.len();
        let (out, _) = tile.as_chunks_mut::<S>();
        self.each::<S>(row, len, |index, at| {
            // SAFETY: by the caller; bytes need no alignment.
            out[index] = unsafe { *from.wrapping_add(at).cast::<[u8; S]>() };
        });
    }

    /// # Safety
    /// As [`Tiling::gather`], writable from `to` on.
    pub(super) unsafe fn scatter(&self, tile: &[u8], size: usize, row: usize, to: *mut u8) {
        // SAFETY: by the caller.
        unsafe {
            match size {
                1 => self.scatter_of::<1>(tile, row, to),
                2 => self.scatter_of::<2>(tile, row, to),
                _ => self.scatter_of::<4>(tile, row, to),
            }
        }
    }

    /// # Safety
    /// As [`Tiling::scatter`], with elements of `S` bytes.
    unsafe fn scatter_of<const S: usize>(&self, tile: &[u8], row: usize, to: *mut u8) {
        let (from, _) = tile.as_chunks::<S>();
        self.each::<S>(row, tile.len(), |index, at| {
            // SAFETY: by the caller; bytes need no alignment.
            unsafe { *to.wrapping_add(at).cast::<[u8; S]>() = from[index] };
        });
    }
}
