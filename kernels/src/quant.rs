//! K and V in eight or four bits a number, with scales for groups of neighbouring elements of one token: KIVI's
//! layout of values (arXiv 2402.02750), used for both.
//!
//! A group of eight bits has a scale: `x = scale * code`, codes -127 to 127. One of four bits has a scale and a
//! low end: `x = low + scale * code`, codes 0 to 15. Scales are f16, rounded up, low ends down, so that no
//! element is out of reach and none is off by more than half a scale (and what the element type rounds). All
//! arithmetic is f32 in one order: every build and the CUDA kernel (`quant.cu`) write the same bits.

use half::f16;

use crate::convert::narrow;
use crate::view::DIM_MAX;
use crate::{DType, Error, Tensor3, Tensor3Mut};

/// Largest finite f16.
const F16_MAX: f32 = 65504.0;
/// 1.5 * 2^23: added and taken off again, it rounds small numbers to whole ones, ties to even.
const WHOLE: f32 = 12_582_912.0;

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    /// A signed byte.
    Eight,
    /// Half a byte, the even element's the lower one.
    Four,
}

/// A way to write rows of `dim` elements: per row codes, and f16 scales (with four bits pairs of scale and low end)
/// of each group of elements; the last group may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quant {
    bits: Bits,
    dim: u32,
    group: u32,
}

impl Quant {
    /// Elements that may share a scale.
    pub const GROUPS: [usize; 4] = [16, 32, 64, 128];

    /// Codes of `bits` for rows of `dim` elements in groups of `group`.
    ///
    /// # Errors
    /// [`Error::Range`] unless `dim` is in `1..=576` and `group` one of [`Quant::GROUPS`].
    pub fn new(bits: Bits, dim: usize, group: usize) -> Result<Quant, Error> {
        if !(1..=DIM_MAX).contains(&dim) {
            return Err(Error::range("dim", format!("1..={DIM_MAX}"), dim));
        }
        if !Quant::GROUPS.contains(&group) {
            return Err(Error::range("group", format!("one of {:?}", Quant::GROUPS), group));
        }
        Ok(Quant { bits, dim: dim as u32, group: group as u32 })
    }

    /// Bits of a code.
    #[must_use]
    pub const fn bits(&self) -> Bits {
        self.bits
    }

    /// Elements of a row.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.dim as usize
    }

    /// Elements that share a scale.
    #[must_use]
    pub const fn group(&self) -> usize {
        self.group as usize
    }

    /// Bytes of a row's codes.
    #[must_use]
    pub const fn code_bytes(&self) -> usize {
        match self.bits {
            Bits::Eight => self.dim(),
            Bits::Four => self.dim().div_ceil(2),
        }
    }

    /// Numbers of a row's scales.
    #[must_use]
    pub const fn scales(&self) -> usize {
        self.dim().div_ceil(self.group()) * self.per_group()
    }

    /// Numbers of a group: the scale, or the scale and the low end.
    #[must_use]
    pub const fn per_group(&self) -> usize {
        match self.bits {
            Bits::Eight => 1,
            Bits::Four => 2,
        }
    }

    /// Encodes `rows`, `[tokens, heads, dim]`, to `codes` `[tokens, heads, code_bytes]` and `scales`
    /// `[tokens, heads, scales]`. A group with an element that is not finite has a scale of NaN and decodes to
    /// NaN. Scales end at the largest f16, so that elements beyond 127 (above the low end 15) times 65504 are cut
    /// off, as are low ends beyond it.
    ///
    /// # Errors
    /// [`Error::Shape`] if anything has another shape; nothing is written then.
    pub fn encode(
        &self,
        rows: &Tensor3,
        codes: &mut [u8],
        scales: &mut [f16],
    ) -> Result<(), Error> {
        self.check(rows.shape(), codes.len(), scales.len())?;
        let heads = rows.shape()[1].max(1);
        let codes = codes.chunks_exact_mut(self.code_bytes());
        let mut row = [0f32; DIM_MAX];
        for (i, (codes, scales)) in codes.zip(scales.chunks_exact_mut(self.scales())).enumerate() {
            let row = &mut row[..self.dim()];
            rows.read_f32(i / heads, i % heads, row);
            self.encode_row(row, codes, scales);
        }
        Ok(())
    }

    /// Inverse of [`encode`](Quant::encode). Numbers that f16 has no room for become its largest.
    ///
    /// # Errors
    /// [`Error::Shape`] if anything has another shape; nothing is written then.
    pub fn decode(&self, codes: &[u8], scales: &[f16], rows: &mut Tensor3Mut) -> Result<(), Error> {
        self.check(rows.shape(), codes.len(), scales.len())?;
        let (heads, dtype) = (rows.shape()[1].max(1), rows.dtype());
        let codes = codes.chunks_exact(self.code_bytes());
        let mut row = [0f32; DIM_MAX];
        for (i, (codes, scales)) in codes.zip(scales.chunks_exact(self.scales())).enumerate() {
            let row = &mut row[..self.dim()];
            self.decode_row(codes, scales, row);
            if dtype == DType::F16 {
                row.iter_mut().for_each(|x| *x = x.clamp(-F16_MAX, F16_MAX));
            }
            // SAFETY: the view is writable, and the index was counted off its shape.
            unsafe { narrow(dtype, row, rows.row_ptr_mut(i / heads, i % heads)) }
        }
        Ok(())
    }

    fn check(&self, shape: [usize; 3], codes: usize, scales: usize) -> Result<(), Error> {
        let rows = shape[0] * shape[1];
        let wanted = (self.dim(), rows * self.code_bytes(), rows * self.scales());
        let found = (shape[2], codes, scales);
        if wanted == found {
            return Ok(());
        }
        Err(Error::shape(
            "dim, bytes of codes, scales",
            format!("{wanted:?}"),
            format!("{found:?}"),
        ))
    }

    fn encode_row(&self, row: &[f32], codes: &mut [u8], scales: &mut [f16]) {
        let per_byte = self.dim().div_ceil(self.code_bytes());
        let scales = scales.chunks_exact_mut(self.per_group());
        let codes = codes.chunks_mut(self.group() / per_byte);
        for ((x, codes), scales) in row.chunks(self.group()).zip(codes).zip(scales) {
            if !x.iter().all(|x| x.is_finite()) {
                codes.fill(0);
                scales.fill(f16::NAN);
                continue;
            }
            match self.bits {
                Bits::Eight => scales[0] = eight(x, codes),
                Bits::Four => [scales[0], scales[1]] = four(x, codes),
            }
        }
    }

    fn decode_row(&self, codes: &[u8], scales: &[f16], row: &mut [f32]) {
        let scales = scales.chunks_exact(self.per_group()).map(|s| s.iter().map(|s| s.to_f32()));
        for (g, (x, mut scales)) in row.chunks_mut(self.group()).zip(scales).enumerate() {
            let (first, scale) = (g * self.group(), scales.next().unwrap_or(0.0));
            match self.bits {
                Bits::Eight => {
                    let codes = &codes[first..];
                    x.iter_mut().zip(codes).for_each(|(x, &c)| *x = scale * f32::from(c as i8));
                }
                Bits::Four => {
                    let (low, codes) = (scales.next().unwrap_or(0.0), &codes[first / 2..]);
                    for (pair, c) in x.chunks_mut(2).zip(codes) {
                        let halves = [c & 15, c >> 4];
                        pair.iter_mut()
                            .zip(halves)
                            .for_each(|(x, c)| *x = low + scale * f32::from(c));
                    }
                }
            }
        }
    }
}

/// The smallest f16 that is not below `x >= 0`, up to the largest.
fn up(x: f32) -> f16 {
    let x = x.min(F16_MAX);
    let nearest = f16::from_f32(x);
    if nearest.to_f32() < x { f16::from_bits(nearest.to_bits() + 1) } else { nearest }
}

/// The largest finite f16 that is not above `x`, or the smallest one.
fn down(x: f32) -> f16 {
    let x = x.clamp(-F16_MAX, F16_MAX);
    let nearest = f16::from_f32(x);
    match nearest.to_bits() {
        _ if nearest.to_f32() <= x => nearest,
        0 => f16::from_bits(0x8001),
        bits if bits >> 15 == 1 => f16::from_bits(bits + 1),
        bits => f16::from_bits(bits - 1),
    }
}

/// `1 / scale`; 0 for 0, whose group is all zeros above its low end.
fn inverse(scale: f16) -> f32 {
    if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 }
}

/// The whole number nearest to `x` from `least` to `most`.
fn whole(x: f32, least: f32, most: f32) -> f32 {
    (x.clamp(least, most) + WHOLE) - WHOLE
}

/// Writes the codes of a finite group; its scale.
fn eight(x: &[f32], codes: &mut [u8]) -> f16 {
    let top = x.iter().fold(0f32, |top, x| top.max(x.abs()));
    let scale = up(top / 127.0);
    let inverse = inverse(scale);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = whole(x * inverse, -127.0, 127.0) as i8 as u8;
    }
    scale
}

/// Writes the codes of a finite group; its scale and low end.
fn four(x: &[f32], codes: &mut [u8]) -> [f16; 2] {
    let least = x.iter().copied().fold(f32::INFINITY, f32::min);
    let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let low = down(least);
    let scale = up((most - low.to_f32()).max(0.0) / 15.0);
    let (low_end, inverse) = (low.to_f32(), inverse(scale));
    let code = |x: f32| whole((x - low_end) * inverse, 0.0, 15.0) as u8;
    for (byte, x) in codes.iter_mut().zip(x.chunks(2)) {
        *byte = code(x[0]) | x.get(1).map_or(0, |&x| code(x) << 4);
    }
    [scale, low]
}
