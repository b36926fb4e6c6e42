//! Where the elements of a tile are, where its rows are not runs of bytes: keys transposed, or in the
//! small tiles that matrix units read.

use kvist_kernels::copy::{streaming_raw, transpose_raw};

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

/// A tile whose tokens lie side by side, in units of one channel or a few.
struct Transposed {
    /// Bytes that a token and the next are apart.
    unit: usize,
    /// Channels, in units.
    channel: Axis,
}

/// A part of a tile that is one matrix: its byte in canonical order, its place, and its rows (tokens) and
/// columns (units).
struct Piece {
    index: usize,
    at: usize,
    tokens: usize,
    units: usize,
}

impl Transposed {
    fn pieces(&self, token: Axis, row: usize, len: usize) -> impl Iterator<Item = Piece> + use<'_> {
        let (rows, units) = (len / row, row / self.unit);
        (0..rows).step_by(token.piece).flat_map(move |t| {
            (0..units).step_by(self.channel.piece).map(move |c| Piece {
                index: t * row + c * self.unit,
                at: token.at(t).wrapping_add(self.channel.at(c)),
                tokens: token.piece.min(rows - t),
                units: self.channel.piece.min(units - c),
            })
        })
    }
}

impl Tiling {
    /// This as a transposed tile with elements of `size` bytes and rows of `row`, if it is one.
    fn transposed(&self, size: usize, row: usize) -> Option<Transposed> {
        let run = self.channel.piece * size;
        let paired = self.channel.inner == size && run <= 8 && run.is_power_of_two();
        let (unit, channel) = match paired && row.is_multiple_of(run) {
            true => (run, Axis::plain(row / run, self.channel.outer)),
            false => (size, self.channel),
        };
        (self.token.inner == unit).then_some(Transposed { unit, channel })
    }

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
        if let Some(matrix) = self.transposed(size, row) {
            for piece in matrix.pieces(self.token, row, tile.len()) {
                let from = (from.wrapping_add(piece.at), matrix.channel.inner);
                let to = (tile[piece.index..].as_mut_ptr(), row);
                // SAFETY: a part of the tile, on both sides.
                unsafe { transpose_raw(matrix.unit, (piece.units, piece.tokens), from, to) }
            }
            return;
        }
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

    /// Whether a tile of `len` bytes, in rows of `row` bytes of elements of `size`, fills the memory from
    /// its start on.
    fn is_one_run(&self, size: usize, row: usize, len: usize) -> bool {
        let last = |axis: Axis, count: usize| {
            let forward = axis.inner <= len && axis.outer <= len;
            let whole = count > 0 && count.is_multiple_of(axis.piece);
            (forward && whole).then(|| axis.at(count - 1))
        };
        // No two elements share a place, so that as many as there are places fill them.
        let (token, channel) = (last(self.token, len / row), last(self.channel, row / size));
        token.zip(channel).is_some_and(|(token, channel)| token + channel == len - size)
    }

    /// [`Tiling::scatter`] by way of a tile in the caches, where the tile in memory is one run: long
    /// copies run at the memory's speed, short ones do not.
    ///
    /// # Safety
    /// As [`Tiling::scatter`].
    pub(super) unsafe fn write(
        &self,
        tile: &[u8],
        (size, row): (usize, usize),
        to: *mut u8,
        scratch: &mut Vec<u8>,
    ) {
        // SAFETY: by the caller; the scratch is as long as the tile.
        unsafe {
            if self.is_one_run(size, row, tile.len()) {
                scratch.resize(tile.len(), 0);
                self.scatter(tile, size, row, scratch.as_mut_ptr());
                streaming_raw(scratch.as_ptr(), to, tile.len());
            } else {
                self.scatter(tile, size, row, to);
            }
        }
    }

    /// # Safety
    /// As [`Tiling::gather`], writable from `to` on.
    pub(super) unsafe fn scatter(&self, tile: &[u8], size: usize, row: usize, to: *mut u8) {
        if let Some(matrix) = self.transposed(size, row) {
            for piece in matrix.pieces(self.token, row, tile.len()) {
                let from = (tile[piece.index..].as_ptr(), row);
                let to = (to.wrapping_add(piece.at), matrix.channel.inner);
                // SAFETY: a part of the tile, on both sides.
                unsafe { transpose_raw(matrix.unit, (piece.tokens, piece.units), from, to) }
            }
            return;
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An axis of `count` elements cut into pieces, the inner stride first.
    fn axis(piece: usize, inner: usize, outer: usize) -> Axis {
        Axis { piece, inner, outer }
    }

    #[test]
    fn a_tile_with_gaps_is_no_run() {
        let tiling = |token, channel| Tiling { token, channel };
        let rows = tiling(Axis::plain(6, 2), Axis::plain(8, 12));
        assert!(rows.is_one_run(2, 16, 96));
        // Room after each channel; tokens from the last to the first; a piece that is not full.
        for (token, channel) in [
            (Axis::plain(6, 2), Axis::plain(8, 14)),
            (Axis::plain(6, 2usize.wrapping_neg()), Axis::plain(8, 12)),
            (axis(4, 2, 8), Axis::plain(8, 12)),
        ] {
            assert!(!tiling(token, channel).is_one_run(2, 16, 96), "{token:?} {channel:?}");
        }
    }

    proptest! {
        /// What goes by matrices goes where each element for itself would.
        #[test]
        fn pieces_are_the_elements(
            (pieces, piece) in (1usize..4, 1usize..20),
            (groups, group) in (1usize..5, 1usize..20),
            log in 0u32..3,
            paired in any::<bool>(),
        ) {
            let (size, tokens, channels) = (1usize << log, pieces * piece, groups * group);
            let (token, channel) = if paired {
                // `[token piece][channel group][token][channel]`, as matrix units read keys.
                (axis(piece, group * size, channels * piece * size),
                 axis(group, size, piece * group * size))
            } else {
                // `[token piece][channel group][channel][token]`.
                (axis(piece, size, channels * piece * size),
                 axis(group, piece * size, piece * group * size))
            };
            let tiling = Tiling { token, channel };
            let (row, len) = (channels * size, tokens * channels * size);
            let tile: Vec<u8> = (0..len).map(|i| (i * 37 % 251) as u8).collect();
            let (mut fast, mut plain, mut back) = (vec![0; len], vec![1; len], vec![2; len]);
            // SAFETY: both axes together reach each element of `len` bytes once.
            unsafe {
                tiling.scatter(&tile, size, row, fast.as_mut_ptr());
                match size {
                    1 => tiling.scatter_of::<1>(&tile, row, plain.as_mut_ptr()),
                    2 => tiling.scatter_of::<2>(&tile, row, plain.as_mut_ptr()),
                    _ => tiling.scatter_of::<4>(&tile, row, plain.as_mut_ptr()),
                }
                tiling.gather(fast.as_ptr(), size, row, &mut back);
            }
            prop_assert_eq!(&fast, &plain);
            prop_assert!(tiling.is_one_run(size, row, len));
            let mut written = vec![3; len];
            // SAFETY: as above.
            unsafe { tiling.write(&tile, (size, row), written.as_mut_ptr(), &mut Vec::new()) };
            prop_assert_eq!(&written, &plain);
            prop_assert_eq!(back, tile);
        }
    }
}
