//! Where the parts of an encoded tile lie; `docs/formats.md` has the same in words.

use super::planes::{CHUNK, padded, planes_len};
use super::symbols::{exponent_max, rest_bytes, rest_planes};
use crate::view::DIM_MAX;
use crate::{DType, Error};

/// Values of a band: a part of the tile that has its own streams.
pub(crate) const BAND: usize = 4096;

pub(crate) fn corrupt(what: &'static str) -> Error {
    Error::Corrupt { what }
}

/// One base per channel, repeated so that any 64 neighbouring values find theirs side by side.
#[derive(Clone, Debug)]
pub(crate) struct Bases {
    of: [u8; Bases::LEN],
    dim: usize,
}

impl Bases {
    pub(crate) const LEN: usize = DIM_MAX + CHUNK;

    /// Zeros, to be filled.
    #[inline(always)]
    pub(crate) fn new(dim: usize) -> Bases {
        Bases { of: [0; Bases::LEN], dim }
    }

    /// Sets the bases one by one.
    pub(crate) fn fill(&mut self, mut base: impl FnMut(usize) -> u8) {
        self.of[..self.dim].iter_mut().enumerate().for_each(|(c, of)| *of = base(c));
        self.repeat();
    }

    /// Room for the 64 bases from channel `channel` on, of which those below the dimension count.
    /// [`Bases::repeat`] comes last.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn block_mut(&mut self, channel: usize) -> &mut [u8; CHUNK] {
        &mut self.of.as_chunks_mut().0[channel / CHUNK]
    }

    /// Repeats the bases behind the last one.
    pub(crate) fn repeat(&mut self) {
        if self.dim >= CHUNK {
            self.of.copy_within(..CHUNK, self.dim);
        } else {
            (self.dim..self.dim + CHUNK).for_each(|i| self.of[i] = self.of[i - self.dim]);
        }
    }

    /// 64 bases from channel `channel < dim` on.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn from(&self, channel: usize) -> &[u8] {
        &self.of[channel..channel + CHUNK]
    }

    /// The base of value `i` of the tile.
    pub(crate) fn of_value(&self, i: usize) -> u8 {
        self.of[i % self.dim]
    }

    /// Writes smallest base, width and the bases' distances from the smallest as that many bit planes;
    /// returns the length, or none if `out` is shorter.
    pub(crate) fn write(&self, out: &mut [u8]) -> Option<usize> {
        let of = &self.of[..self.dim];
        let min = of.iter().copied().fold(255, u8::min);
        let max = of.iter().copied().fold(0, u8::max);
        let width = (u8::BITS - (max - min).leading_zeros()) as usize;
        let len = 2 + planes_len(self.dim, width);
        let (head, planes) = out.get_mut(..len)?.split_at_mut(2);
        head.copy_from_slice(&[min, width as u8]);
        for (block, of) in of.chunks(CHUNK).enumerate() {
            let (planes, stride) = (&mut planes[8 * width * block..], of.len().div_ceil(8));
            for (i, of) in of.chunks(8).enumerate() {
                let above = distances(of, min);
                (0..width).for_each(|j| planes[j * stride + i] = gather(above >> j));
            }
        }
        Some(len)
    }
}

/// Up to eight bases less the smallest, as the bytes of a word.
fn distances(bases: &[u8], min: u8) -> u64 {
    let mut above = [0; 8];
    above.iter_mut().zip(bases).for_each(|(above, base)| *above = base - min);
    u64::from_le_bytes(above)
}

/// The lowest bits of the bytes of a word.
fn gather(word: u64) -> u8 {
    // Multiplication moves the bit of byte i to bit 56 + i; no two meet on the way.
    ((word & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

/// What an encoded tile begins with.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) min: u8,
    /// Planes of the bases' distances from `min`.
    pub(crate) width: usize,
    /// The planes, and all that comes after them.
    pub(crate) planes: &'a [u8],
    /// What comes after them.
    pub(crate) bands: &'a [u8],
}

impl<'a> Head<'a> {
    #[inline(always)]
    pub(crate) fn read(dtype: DType, dim: usize, coded: &'a [u8]) -> Result<Head<'a>, Error> {
        let (&[min, width], planes) = coded.split_first_chunk().ok_or(corrupt("length"))?;
        let limit = u32::from(exponent_max(dtype));
        if u32::from(min) > limit || width > 8 || 1 << width > limit + 1 {
            return Err(corrupt("bases"));
        }
        let width = usize::from(width);
        let bands = planes.get(planes_len(dim, width)..).ok_or(corrupt("length"))?;
        Ok(Head { min, width, planes, bands })
    }
}

/// How many values of a band each level passes on: codes of the second level, codes of the third, and
/// escapes.
pub(crate) type Counts = [usize; 3];

/// Bytes of the counts.
pub(crate) const COUNT_BYTES: usize = 6;

/// Bytes of a band without its second and third level and its escapes.
pub(crate) const fn fixed_bytes(dtype: DType, values: usize) -> usize {
    COUNT_BYTES
        + planes_len(values, 2)
        + planes_len(values, rest_planes(dtype))
        + rest_bytes(dtype) * values
}

/// The parts of a band of `values` values, in order. Their lengths and their padding have been checked.
pub(crate) struct Band<'a> {
    /// The codes of each level, and how many there are. The slices reach to the end of the tile.
    pub(crate) levels: [(&'a [u8], usize); 3],
    pub(crate) escapes: &'a [u8],
    pub(crate) rest_planes: &'a [u8],
    /// One byte per value.
    pub(crate) rest: &'a [u8],
    /// Low halves of f32, two bytes per value.
    pub(crate) low: &'a [u8],
}

impl<'a> Band<'a> {
    /// Takes a band off the front; returns what comes after it.
    pub(crate) fn read(
        dtype: DType,
        values: usize,
        coded: &'a [u8],
    ) -> Result<(Band<'a>, &'a [u8]), Error> {
        let counts = coded.first_chunk::<COUNT_BYTES>().ok_or(corrupt("length"))?;
        let count = |i: usize| usize::from(u16::from_le_bytes([counts[2 * i], counts[2 * i + 1]]));
        let counts = [values, count(0), count(1), count(2)];
        if !counts.is_sorted_by(|a, b| a >= b) {
            return Err(corrupt("counts"));
        }
        let first = COUNT_BYTES;
        let second = first + planes_len(counts[0], 2);
        let third = second + planes_len(counts[1], 2);
        let escapes = third + planes_len(counts[2], 2);
        let rest_at = escapes + counts[3];
        let (band, after) = coded
            .split_at_checked(fixed_bytes(dtype, values) + rest_at - second)
            .ok_or(corrupt("length"))?;
        let levels = [
            (&coded[first..], counts[0]),
            (&coded[second..], counts[1]),
            (&coded[third..], counts[2]),
        ];
        let (rest_planes, bytes) = band[rest_at..].split_at(planes_len(values, rest_planes(dtype)));
        let (rest, low) = bytes.split_at(values);
        let band = Band { levels, escapes: &band[escapes..rest_at], rest_planes, rest, low };
        let rest_padded = dtype != DType::F16 || padded(band.rest_planes, values, 3);
        if !rest_padded || !levels.iter().all(|(planes, len)| padded(planes, *len, 2)) {
            return Err(corrupt("padding"));
        }
        let limit = exponent_max(dtype);
        if limit < 255 && band.escapes.iter().any(|&e| e > limit) {
            return Err(corrupt("escapes"));
        }
        Ok((band, after))
    }
}

/// Writes the counts.
pub(crate) fn write_counts(counts: Counts, out: &mut [u8]) {
    for (bytes, count) in out.as_chunks_mut::<2>().0.iter_mut().zip(counts) {
        *bytes = (count as u16).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::super::planes::entry;
    use super::*;

    #[test]
    fn bases_are_planes_of_distances() {
        for dim in [1, 7, 8, 63, 64, 65, 100, DIM_MAX] {
            for step in [0usize, 1, 3, 37] {
                let mut bases = Bases::new(dim);
                bases.fill(|i| (i * step % 256) as u8);
                let mut out = [0u8; 2 + 8 * DIM_MAX];
                let len = bases.write(&mut out).unwrap();
                assert!(bases.write(&mut out[..len - 1]).is_none());
                let head = Head::read(DType::Bf16, dim, &out[..len]).unwrap();
                assert!(head.bands.is_empty());
                let base = |c| head.min + entry(head.planes, dim, head.width, c);
                assert!((0..dim + CHUNK).all(|c| base(c % dim) == bases.of[c]));
            }
        }
    }
}
