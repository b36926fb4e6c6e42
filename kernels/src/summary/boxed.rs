//! Boxed cells: a box per channel around 64 keys, and the position of each key inside it as nested
//! bit planes.
//!
//! **Box**: one u16 per channel, `middle << 7 | width`. `width` is a 7-bit float W (5 exponent bits, 2
//! mantissa bits; 0 means zero width, else 2^-13 ..= 1.75 * 2^17, rounded up); `middle` counts the box's
//! middle in `W / 8`, signed, 9 bits. Every key of the channel lies in `[lo, lo + W]`, `lo = middle - W / 2`;
//! both ends are exact in f32.
//!
//! **Codes**: plane j halves the cell of plane j - 1. With b planes the estimate is the middle of
//! the cell, `lo + (code + 1/2) W / 2^b`, off by at most `W / 2^(b+1)` (plus f32 rounding).
//!
//! **Layout** for D = dim rounded up to 16, channels in groups of 4, tokens in 4 fields of 16:
//! box `[D] u16`, padded to 64 bytes; planes 1+2 `[D/4][64]` bytes, where byte p of a group is token
//! p / 4 of each field, channel p % 4, and bits 2f, 2f+1 belong to field f; then planes 3 and 4, each
//! `[D/8][64]` bytes in the same order, the bits of group 2j at positions 0, 1, 4, 5 (fields 0, 1, 2,
//! 3) and those of group 2j+1 at 2, 3, 6, 7. These positions let two shifts and two selects assemble
//! 3-bit codes of a group (see `arch::boxed_avx512`).

use crate::convert::widen;
use crate::{DIM_MAX, DType, Error, Isa};

use super::TILE;

/// Box word of channel 0 that marks an open tile: zero width around a middle other than zero does not
/// exist otherwise.
pub(crate) const OPEN: u16 = 0x8000;
/// `(code + WIDTH_BIAS) << 21` are the f32 bits of a width. Without the bias, `code << 21` are those of the
/// width times 2^-[`WIDTH_SHIFT`].
pub(crate) const WIDTH_BIAS: u32 = 4 * WIDTH_SHIFT;
pub(crate) const WIDTH_SHIFT: u32 = 113;
/// Smaller codes but 0 stay unused: without the bias they would be subnormal.
const WIDTH_MIN: u32 = 4;
const WIDTH_MAX: u32 = 127;
/// Channels that are coded together: one cache line of f32.
const LANES: usize = 16;

/// Shape of boxed cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoxedSpec {
    dim: usize,
    planes: u32,
}

impl BoxedSpec {
    /// Cells for keys of `dim` channels with 2, 3 or 4 planes.
    ///
    /// # Errors
    /// [`Error::Range`] if `dim` or `planes` is outside its range.
    pub fn new(dim: usize, planes: u32) -> Result<BoxedSpec, Error> {
        if dim == 0 || dim > DIM_MAX {
            return Err(Error::range("dim", format!("1..={DIM_MAX}"), dim));
        }
        if !(2..=4).contains(&planes) {
            return Err(Error::range("planes", "2..=4", planes));
        }
        Ok(BoxedSpec { dim, planes })
    }

    /// Channels of a key.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// Stored planes.
    #[must_use]
    pub const fn planes(&self) -> u32 {
        self.planes
    }

    /// Channels with padding.
    pub(crate) const fn padded(&self) -> usize {
        self.dim.next_multiple_of(LANES)
    }

    /// Bytes of the box part of a cell.
    #[must_use]
    pub const fn box_bytes(&self) -> usize {
        (2 * self.padded()).next_multiple_of(64)
    }

    /// Bytes of plane 3 or 4.
    #[must_use]
    pub const fn plane_bytes(&self) -> usize {
        8 * self.padded()
    }

    /// Bytes of a cell that scoring with `planes` planes reads.
    #[must_use]
    pub const fn bytes_read(&self, planes: u32) -> usize {
        self.box_bytes() + self.plane_bytes() * planes as usize
    }

    /// Bytes of a cell, a multiple of 64.
    #[must_use]
    pub const fn cell_bytes(&self) -> usize {
        self.bytes_read(self.planes)
    }
}

/// Width of a 7-bit code.
fn width(code: u32) -> f32 {
    if code == 0 { 0.0 } else { f32::from_bits((code + WIDTH_BIAS) << 21) }
}

/// The box word of `[min, max]`, both finite, or `None` if no box is wide enough.
fn box_word(min: f32, max: f32) -> Option<u16> {
    if min == 0.0 && max == 0.0 {
        return Some(0);
    }
    // Wide enough for the range, and for the middle to fit its 9 bits: lo in -260 ..= 251 eighths.
    let need = (max - min).max(-min / 32.5).max(min / 31.375);
    let code = (need.to_bits().saturating_add((1 << 21) - 1) >> 21).saturating_sub(WIDTH_BIAS);
    // Rounding `lo` down loses less than W / 8, at most two steps of the width.
    (code.max(WIDTH_MIN)..=WIDTH_MAX).take(4).find_map(|code| {
        let w = width(code);
        let lo = (min * (8.0 / w)).floor().clamp(-260.0, 251.0);
        let low = lo * (w * 0.125);
        // The quotient is rounded, so `low` may lie above `min`: step down once.
        let (lo, low) = if low > min { (lo - 1.0, (lo - 1.0) * (w * 0.125)) } else { (lo, low) };
        let fits = lo >= -260.0 && low <= min && low + w >= max;
        fits.then(|| ((lo as i16 + 4) << 7) as u16 | code as u16)
    })
}

/// Lower end and width of a box word.
pub(crate) fn unpack(word: u16) -> (f32, f32) {
    let w = width(u32::from(word & 0x7f));
    (f32::from(((word as i16) >> 7) - 4) * (w * 0.125), w)
}

/// Smallest and largest key of each channel, and whether all of them are finite.
#[inline(always)]
fn extremes(keys: &[[f32; LANES]; TILE]) -> ([f32; LANES], [f32; LANES], bool) {
    let (mut min, mut max, mut size) = (keys[0], keys[0], [0u32; LANES]);
    for row in keys {
        for i in 0..LANES {
            min[i] = if row[i] < min[i] { row[i] } else { min[i] };
            max[i] = if row[i] > max[i] { row[i] } else { max[i] };
            size[i] = size[i].max(row[i].to_bits() & 0x7fff_ffff);
        }
    }
    let finite = size.iter().all(|&s| s < 0x7f80_0000);
    (min, max, finite)
}

/// Codes of 16 channels with `planes` bits; `out[group][token]` holds 4 channels, one per byte.
#[inline(always)]
fn encode(
    keys: &[[f32; LANES]; TILE],
    low: &[f32; LANES],
    inverse: &[f32; LANES],
    planes: u32,
    out: &mut [[u32; TILE]; 4],
) {
    let top = ((1u32 << planes) - 1) as f32;
    for (t, row) in keys.iter().enumerate() {
        let mut code = [0u8; LANES];
        for i in 0..LANES {
            let x = (row[i] - low[i]) * inverse[i];
            let x = if x < top { x } else { top };
            let x = if x > 0.0 { x } else { 0.0 };
            // SAFETY: x lies in 0..=15, and a NaN has become 0 or `top`.
            code[i] = unsafe { x.to_int_unchecked::<i32>() } as u8;
        }
        for (g, group) in out.iter_mut().enumerate() {
            group[t] = u32::from_le_bytes([
                code[4 * g],
                code[4 * g + 1],
                code[4 * g + 2],
                code[4 * g + 3],
            ]);
        }
    }
}

/// Bit positions of the fields in planes 3 and 4, for even channel groups.
pub(crate) const FIELD_BITS: [u32; 4] = [0, 1, 4, 5];

/// Packs the codes of group `group` into the planes (`cell` without the box).
#[inline(always)]
fn pack(codes: &[u32; TILE], group: usize, planes: u32, padded: usize, cell: &mut [u8]) {
    let mut pair = [0u32; LANES];
    let (mut third, mut fourth) = ([0u32; LANES], [0u32; LANES]);
    let side = 2 * (group as u32 % 2);
    for f in 0..4 {
        let at = FIELD_BITS[f] + side;
        for l in 0..LANES {
            let c = codes[LANES * f + l] << (4 - planes);
            pair[l] |= (c >> 2 & 0x0303_0303) << (2 * f);
            third[l] |= (c >> 1 & 0x0101_0101) << at;
            fourth[l] |= (c & 0x0101_0101) << at;
        }
    }
    let (first, rest) = cell.split_at_mut(16 * padded);
    for (b, c) in first[64 * group..][..64].chunks_exact_mut(4).zip(pair) {
        b.copy_from_slice(&c.to_le_bytes());
    }
    for (plane, bits) in rest.chunks_exact_mut(8 * padded).zip([third, fourth]) {
        for (b, c) in plane[64 * (group / 2)..][..64].chunks_exact_mut(4).zip(bits) {
            // The even group comes first and clears what the cell held before.
            let old = if side == 0 { 0 } else { u32::from_le_bytes([b[0], b[1], b[2], b[3]]) };
            b.copy_from_slice(&(old | c).to_le_bytes());
        }
    }
}

/// Boxes and codes of channels `at..at + 16`; false if the tile must stay open.
#[inline(always)]
fn build_block(spec: &BoxedSpec, keys: &[[f32; LANES]; TILE], at: usize, cell: &mut [u8]) -> bool {
    let (min, max, finite) = extremes(keys);
    if !finite {
        return false;
    }
    let (boxes, planes) = cell.split_at_mut(spec.box_bytes());
    let (mut low, mut inverse) = ([0f32; LANES], [0f32; LANES]);
    for i in 0..LANES {
        let Some(word) = box_word(min[i], max[i]) else { return false };
        boxes[2 * (at + i)..][..2].copy_from_slice(&word.to_le_bytes());
        let (lo, w) = unpack(word);
        low[i] = lo;
        inverse[i] = if w > 0.0 { (1u32 << spec.planes) as f32 / w } else { 0.0 };
    }
    let mut codes = [[0u32; TILE]; 4];
    encode(keys, &low, &inverse, spec.planes, &mut codes);
    for (g, codes) in codes.iter().enumerate() {
        pack(codes, at / 4 + g, spec.planes, spec.padded(), planes);
    }
    true
}

/// Channels `at..at + n` of a row of `dtype` as f32, zero-padded to 16.
///
/// # Safety
/// The row must be readable up to channel `at + n`; `n <= 16`.
#[inline(always)]
unsafe fn load(dtype: DType, row: *const u8, at: usize, n: usize, out: &mut [f32; LANES]) {
    if n < LANES {
        out.fill(0.0);
        let src = row.wrapping_add(at * dtype.size());
        // SAFETY: passed on from the caller.
        return unsafe { widen(dtype, src, &mut out[..n]) };
    }
    if dtype == DType::F32 {
        // SAFETY: passed on from the caller; unaligned reads are allowed.
        *out = unsafe { row.cast::<f32>().add(at).cast::<[f32; LANES]>().read_unaligned() };
        return;
    }
    // SAFETY: passed on from the caller; unaligned reads are allowed.
    let half = unsafe { row.cast::<u16>().add(at).cast::<[u16; LANES]>().read_unaligned() };
    for (o, h) in out.iter_mut().zip(half) {
        *o = if dtype == DType::Bf16 { f32::from_bits(u32::from(h) << 16) } else { widen_f16(h) };
    }
}

/// Exact and branch-free, so that it vectorises.
#[inline(always)]
fn widen_f16(h: u16) -> f32 {
    let h = u32::from(h);
    // As a number with a too small exponent; subnormals come out right by the multiplication.
    let size = f32::from_bits((h & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(size.to_bits() | special | (h & 0x8000) << 16)
}

/// # Safety
/// As for [`build_boxed`].
#[inline(always)]
unsafe fn build(spec: &BoxedSpec, dtype: DType, rows: &[*const u8], cell: &mut [u8]) {
    let mut keys = [[0f32; LANES]; TILE];
    for at in (0..spec.padded()).step_by(LANES) {
        let n = LANES.min(spec.dim - at);
        for (key, &row) in keys.iter_mut().zip(rows) {
            // SAFETY: passed on from the caller.
            unsafe { load(dtype, row, at, n, key) }
        }
        if !build_block(spec, &keys, at, cell) {
            cell.fill(0);
            cell[..2].copy_from_slice(&OPEN.to_le_bytes());
            return;
        }
    }
    cell[2 * spec.padded()..spec.box_bytes()].fill(0);
}

/// # Safety
/// As for [`build_boxed`].
#[inline(always)]
unsafe fn build_typed(spec: &BoxedSpec, dtype: DType, rows: &[*const u8], cell: &mut [u8]) {
    // SAFETY: passed on from the caller.
    unsafe {
        // Constant arguments: one specialised copy of the loops per type.
        match dtype {
            DType::F32 => build(spec, DType::F32, rows, cell),
            DType::F16 => build(spec, DType::F16, rows, cell),
            DType::Bf16 => build(spec, DType::Bf16, rows, cell),
        }
    }
}

/// The same plain loops, compiled for wider vectors.
#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{BoxedSpec, DType, build_typed};

    /// # Safety
    /// As for [`super::build_boxed`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(spec: &BoxedSpec, dtype: DType, rows: &[*const u8], cell: &mut [u8]) {
        // SAFETY: passed on from the caller.
        unsafe { build_typed(spec, dtype, rows, cell) }
    }

    /// # Safety
    /// As for [`super::build_boxed`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn avx512(
        spec: &BoxedSpec,
        dtype: DType,
        rows: &[*const u8],
        cell: &mut [u8],
    ) {
        // SAFETY: passed on from the caller.
        unsafe { build_typed(spec, dtype, rows, cell) }
    }
}

/// Writes the cell of a tile of 64 keys. Keys that are not finite, or channels wider than 1.75 * 2^17,
/// leave the tile *open*: its estimates are NaN (always selected) and its bounds infinite.
///
/// # Panics
/// If there are not 64 rows or the cell has the wrong length.
///
/// # Safety
/// Every row must be readable for `spec.dim()` elements of `dtype`.
pub unsafe fn build_boxed(spec: &BoxedSpec, dtype: DType, rows: &[*const u8], cell: &mut [u8]) {
    // SAFETY: passed on from the caller; the level is the CPU's.
    unsafe { build_boxed_at(Isa::level(), spec, dtype, rows, cell) }
}

/// [`build_boxed`] at a given instruction-set level; all levels write the same bytes.
///
/// # Panics
/// If there are not 64 rows or the cell has the wrong length.
///
/// # Safety
/// As for [`build_boxed`], and the CPU must have the level.
pub unsafe fn build_boxed_at(
    isa: Isa,
    spec: &BoxedSpec,
    dtype: DType,
    rows: &[*const u8],
    cell: &mut [u8],
) {
    assert_eq!(rows.len(), TILE, "a tile has 64 rows");
    assert_eq!(cell.len(), spec.cell_bytes(), "cell of {spec:?}");
    // SAFETY: passed on from the caller.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => wide::avx512(spec, dtype, rows, cell),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => wide::avx2(spec, dtype, rows, cell),
            _ => build_typed(spec, dtype, rows, cell),
        }
    }
}

/// Whether a cell's tile is open: too wide or not finite, to be treated as unknown.
#[must_use]
pub fn is_open(cell: &[u8]) -> bool {
    cell[..2] == OPEN.to_le_bytes()
}

/// The level-`planes` code of one token and channel.
fn code(spec: &BoxedSpec, cell: &[u8], planes: u32, token: usize, channel: usize) -> u32 {
    let (field, l) = (token / LANES, token % LANES);
    let (group, p) = (channel / 4, 4 * l + channel % 4);
    let codes = &cell[spec.box_bytes()..];
    let mut code = u32::from(codes[64 * group + p]) >> (2 * field) & 3;
    for plane in 0..planes as usize - 2 {
        let byte = codes[spec.plane_bytes() * (2 + plane) + 64 * (group / 2) + p];
        let at = FIELD_BITS[field] + 2 * (group as u32 % 2);
        code = 2 * code + ((u32::from(byte) >> at) & 1);
    }
    code
}

/// Lower end and width of a channel's box.
fn channel_box(cell: &[u8], channel: usize) -> (f32, f32) {
    unpack(u16::from_le_bytes([cell[2 * channel], cell[2 * channel + 1]]))
}

/// The key of one token as the first `planes` planes tell it: the middle of its cell.
///
/// # Panics
/// If an argument does not fit the spec.
pub fn decode_boxed(spec: &BoxedSpec, cell: &[u8], planes: u32, token: usize, out: &mut [f32]) {
    assert_eq!(cell.len(), spec.cell_bytes(), "cell of {spec:?}");
    assert_eq!(out.len(), spec.dim, "dim");
    assert!((2..=spec.planes).contains(&planes), "planes {planes} of {}", spec.planes);
    assert!(token < TILE, "token {token} of a tile");
    for (channel, o) in out.iter_mut().enumerate() {
        let (low, w) = channel_box(cell, channel);
        let code = code(spec, cell, planes, token, channel);
        *o = low + (code as f32 + 0.5) * (w / (1u32 << planes) as f32);
    }
}
