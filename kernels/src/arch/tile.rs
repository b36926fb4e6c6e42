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

/// Dot products: `out[r * stride + t] = q[r] . keys[t]`.
pub(crate) struct Dots<'a> {
    /// Query rows as [`Step::q`].
    pub(crate) q: *const u8,
    pub(crate) q_stride: usize,
    /// Query rows.
    pub(crate) rows: usize,
    pub(crate) dim: usize,
    /// Rows readable for `dim` elements.
    pub(crate) keys: &'a [*const u8],
    /// What will be read in this order: `keys` first. The others are only prefetched.
    pub(crate) later: &'a [*const u8],
    /// Writable for `rows` rows of `keys.len()` numbers.
    pub(crate) out: *mut f32,
    pub(crate) stride: usize,
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
    /// Valid tokens of the tile, at most [`TILE`].
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

impl Step<'_> {
    /// The tile's tokens, as bits.
    #[inline(always)]
    pub(crate) fn there(&self) -> u64 {
        if self.n == TILE { u64::MAX } else { (1 << self.n) - 1 }
    }

    /// Tokens of the tile that any row of the block of rows from `row` sees.
    #[inline(always)]
    pub(crate) fn seen(&self, row: usize) -> u64 {
        let Some(masks) = self.masks else { return self.there() };
        let rows = &masks[row..self.rows.min(row + BLOCK)];
        rows.iter().fold(0, |seen, mask| seen | mask) & self.there()
    }
}

/// Asks for the lines of rows ahead of their use, in the order in which the rows lie: a tile ahead,
/// and again a quarter of a tile ahead; for f32 also half a tile ahead.
///
/// What the attention loops gain by it on Zen 4, in fractions of the read bandwidth: 0.3 without
/// asking; 0.45 when asking for L1, whose few miss buffers also serve the loads; 0.8 when asking L2
/// for each line once, at an even rate, because requests that find all buffers taken are dropped;
/// 0.9 when asking a second time shortly before the use, which costs little where the first request
/// went through. The arithmetic of f32 outruns the memory so far that a third time pays (0.75 to
/// 0.9).
pub(crate) struct Ahead<'a> {
    /// All rows, from the first that is read now.
    rows: &'a [*const u8],
    /// Bytes of a row, and how many of the current ones were asked for.
    bytes: usize,
    at: usize,
    current: usize,
    far: *const u8,
    middle: *const u8,
    near: *const u8,
    /// Elements are f32.
    f32: bool,
}

impl<'a> Ahead<'a> {
    /// For rows of `dim` elements of `size` bytes that are read in this order. Behind the last row
    /// there is nothing to ask for.
    #[inline(always)]
    pub(crate) fn new(rows: &'a [*const u8], dim: usize, size: usize) -> Ahead<'a> {
        let none = zero_row();
        let mut ahead = Ahead {
            rows,
            bytes: dim * size,
            at: 0,
            current: 0,
            far: none,
            middle: none,
            near: none,
            f32: size == 4,
        };
        ahead.point();
        ahead
    }

    #[inline(always)]
    fn point(&mut self) {
        let row = |distance| self.rows.get(self.current + distance).copied().unwrap_or(zero_row());
        (self.far, self.middle, self.near) = (row(TILE), row(TILE / 2), row(TILE / 4));
    }

    /// Asks for the next lines; call it for as many as are read meanwhile.
    #[inline(always)]
    pub(crate) fn touch(&mut self, lines: usize) {
        for _ in 0..lines {
            touch(self.far, self.at);
            touch(self.near, self.at);
            if self.f32 {
                touch(self.middle, self.at);
            }
            self.at += 64;
            if self.at >= self.bytes {
                self.at = 0;
                self.current += 1;
                self.point();
            }
        }
    }
}

/// Asks the second-level cache for a line.
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
