//! What the loops of every instruction set share: the tile they work on and the state they
//! advance.

/// Tokens of a tile; a row of the score buffer is this long.
pub(crate) const TILE: usize = 64;
/// Query rows are worked on in blocks of this many; buffers per row are padded to whole blocks.
pub(crate) const BLOCK: usize = 4;

/// Row pointers of a tile and of the tile behind it. Every pointer is valid for a whole row:
/// where there is no token, it leads to a row of zeros.
pub(crate) type Window = [*const u8; 2 * TILE];

/// Rows a pointer without a token leads to.
static ZEROS: [u64; (crate::DIM_MAX + 32) / 2] = [0; (crate::DIM_MAX + 32) / 2];

/// A row of zeros of any dtype, as long as the longest row.
pub(crate) fn zero_row() -> *const u8 {
    ZEROS.as_ptr().cast()
}

/// One tile of attention: the rows to read and the state to advance.
pub(crate) struct Step<'a> {
    /// Query rows as the loops' element type, `[rows][q_stride]`, zero-padded to whole blocks and
    /// to a multiple of 32 elements.
    pub(crate) q: *const u8,
    pub(crate) q_stride: usize,
    /// Query rows.
    pub(crate) rows: usize,
    pub(crate) dim_k: usize,
    pub(crate) dim_v: usize,
    pub(crate) k: &'a Window,
    pub(crate) v: &'a Window,
    /// Valid tokens of the tile.
    pub(crate) n: usize,
    /// Multiplies the raw dot product.
    pub(crate) scale: f32,
    /// `cap * tanh(s / cap)` of the scaled dot product; 0 is off.
    pub(crate) cap: f32,
    /// Visible tokens of each row as bits, or none if all are visible to all.
    pub(crate) masks: Option<&'a [u64]>,
    /// Running maximum (base 2) and sum, `[rows]`.
    pub(crate) m: &'a mut [f32],
    pub(crate) l: &'a mut [f32],
    /// Running output `[rows][o_stride]`, not divided by the sum; rows padded to 32 channels.
    pub(crate) o: &'a mut [f32],
    pub(crate) o_stride: usize,
    /// Room for scores `[rows][TILE]` and rescale factors `[rows]`.
    pub(crate) s: &'a mut [f32],
    pub(crate) alpha: &'a mut [f32],
}

/// Asks for the line at `row + at` ahead of its use.
///
/// How the attention loops ask was measured on Zen 4, in fractions of the read bandwidth: 0.3
/// without asking; 0.45 when asking for L1, whose few miss buffers also serve the loads; 0.8 when
/// asking L2 for each line once, at an even rate, because requests that find all buffers taken are
/// dropped; 0.87 when asking a second time shortly before the use, which costs little where the
/// first request went through.
#[inline(always)]
pub(crate) fn touch(row: *const u8, at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (row, at);
}
