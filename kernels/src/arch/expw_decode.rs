//! EXPW: decoding.
//!
//! A level is decoded block by block: its two planes give codes to 64 lanes, and those that both planes
//! mark are filled from the level below by an expansion. The level below lies in a buffer on the stack,
//! seldom more than a kilobyte of it.

use super::expw_lanes::{Bytes, Cycle, Dense, Room, extended, passed};
use crate::entropy::Expw;
use crate::entropy::layout::{BAND, Band, Bases, Head, corrupt};
use crate::entropy::planes::{CHUNK, last_word, padded};
use crate::entropy::symbols::LEVELS;
use crate::{DType, Error};

/// Distance of the prefetch of rests, three quarters of what is read. From 8 MiB of tiles it brought
/// 16 to 22 GB/s, from 64 MiB 9 to 10.5; prefetching the output as well brought nothing. Near the end of
/// a tile it reaches into what comes behind it, most likely the next one.
const AHEAD: usize = 2048;

/// Where the rests of 64 values are.
struct Rests {
    planes: *const u8,
    bytes: *const u8,
    low: *const u8,
}

/// Puts 64 elements together.
///
/// # Safety
/// The CPU must have the features of `B`; `to` must be writable for 64 elements of `dtype`, and the
/// rests readable: `bytes` for 64 bytes, with f16 `planes` for 24 and with f32 `low` for 128.
#[inline(always)]
unsafe fn join<B: Bytes>(dtype: DType, e: B::V, rests: &Rests, to: *mut u8) {
    // SAFETY: as above, writable; `rests` are those of 64 values.
    unsafe {
        let rest = B::load(rests.bytes);
        if dtype == DType::F16 {
            let plane = |i| rests.planes.cast::<u64>().add(i).read_unaligned().to_le();
            let mut high = B::shl2(B::and(e, B::splat(31)));
            high = B::add_at(high, plane(0), 1);
            high = B::add_at(high, plane(1), 2);
            high = B::add_at(high, plane(2), 0x80);
            return B::store_words(B::zip(rest, high), to);
        }
        let words = B::rotate_right(B::zip(rest, e));
        match dtype {
            DType::F32 => B::store_wide(B::load_words(rests.low), words, to),
            DType::F16 | DType::Bf16 => B::store_words(words, to),
        }
    }
}

/// The next 64 distances; none if the level below has not as many as this one passes on.
///
/// # Safety
/// The CPU must have the features of `B`; `planes` must be readable for 16 bytes and `below` be
/// closed.
#[inline(always)]
unsafe fn next<B: Bytes>(
    level: usize,
    planes: *const u8,
    below: &Dense,
    at: &mut usize,
) -> Option<B::V> {
    if *at > below.len {
        return None;
    }
    // SAFETY: 64 bytes from `at` on are in the buffer below; the caller vouches for two words.
    unsafe {
        let d = B::decode(LEVELS[level], planes, below.ptr().add(*at));
        *at += passed(planes);
        Some(d)
    }
}

/// Decodes one level from the level below it.
///
/// # Safety
/// The CPU must have the features of `B`; `planes` must hold the two planes of `len <= BAND` codes,
/// and `below` be closed.
#[inline(always)]
unsafe fn take_level<B: Bytes>(
    level: usize,
    (planes, len): (&[u8], usize),
    below: &Dense,
    out: &mut Dense,
) -> Option<()> {
    let (mut at, whole) = (0, len / CHUNK);
    for (i, planes) in planes.chunks_exact(16).take(whole).enumerate() {
        // SAFETY: passed on from the caller; `out` has room for a band.
        unsafe {
            let d = next::<B>(level, planes.as_ptr(), below, &mut at)?;
            B::store(d, out.ptr_mut().add(i * CHUNK));
        }
    }
    if !len.is_multiple_of(CHUNK) {
        let words = last_words::<2>(planes, len);
        // SAFETY: as above.
        unsafe {
            let d = next::<B>(level, words.as_ptr().cast(), below, &mut at)?;
            B::store(d, out.ptr_mut().add(whole * CHUNK));
        }
    }
    // SAFETY: `len` is at most a band's.
    unsafe { out.close::<B>(len) };
    (at == below.len).then_some(())
}

/// The words of a short last block, as the bytes that they are in whole ones.
#[inline(always)]
fn last_words<const N: usize>(planes: &[u8], len: usize) -> [u64; N] {
    std::array::from_fn(|j| last_word(planes, len, N, j).to_le())
}

/// What the first level needs to know.
struct First<'a, 'b> {
    dtype: DType,
    band: &'a Band<'b>,
    below: &'a Dense<'a>,
    at: usize,
}

impl First<'_, '_> {
    /// Decodes chunk `i` of the band, a whole one.
    ///
    /// # Safety
    /// The CPU must have the features of `B`; the band must have a whole chunk `i`, and the level
    /// below be closed; `bases` must be readable for 64 bytes, `to` writable for 64 elements of the
    /// dtype.
    #[inline(always)]
    unsafe fn whole<B: Bytes>(&mut self, i: usize, bases: *const u8, to: *mut u8) -> Option<()> {
        let rests = Rests {
            planes: self.band.rest_planes.as_ptr().wrapping_add(24 * i),
            bytes: self.band.rest.as_ptr().wrapping_add(CHUNK * i),
            low: self.band.low.as_ptr().wrapping_add(2 * CHUNK * i),
        };
        // SAFETY: planes and rests are as long as `Band::read` found; the caller vouches for the chunk,
        // 64 bases and 64 elements of output.
        unsafe {
            B::prefetch(rests.bytes.wrapping_add(AHEAD));
            let planes = self.band.levels[0].0.as_ptr().add(16 * i);
            let d = next::<B>(0, planes, self.below, &mut self.at)?;
            join::<B>(self.dtype, B::sub(B::load(bases), d), &rests, to);
        }
        Some(())
    }

    /// Decodes the short last chunk; what comes out is 64 elements long nevertheless.
    ///
    /// # Safety
    /// The CPU must have the features of `B`; the level below must be closed, and `bases` readable
    /// for 64 bytes.
    #[inline(always)]
    unsafe fn last<B: Bytes>(&mut self, bases: *const u8) -> Option<[u8; 4 * CHUNK]> {
        let (planes, len) = self.band.levels[0];
        let from = len / CHUNK * CHUNK;
        let words = last_words::<2>(planes, len);
        let rest_planes = match self.dtype {
            DType::F16 => last_words::<3>(self.band.rest_planes, len),
            DType::F32 | DType::Bf16 => [0; 3],
        };
        let bytes: [u8; CHUNK] = extended(&self.band.rest[from..]);
        let low: [u8; 2 * CHUNK] = extended(self.band.low.get(2 * from..).unwrap_or(&[]));
        let rests =
            Rests { planes: rest_planes.as_ptr().cast(), bytes: bytes.as_ptr(), low: low.as_ptr() };
        let mut values = [0u8; 4 * CHUNK];
        // SAFETY: copies of full length; the caller vouches for 64 bases.
        unsafe {
            let d = next::<B>(0, words.as_ptr().cast(), self.below, &mut self.at)?;
            let e = B::sub(B::load(bases), d);
            join::<B>(self.dtype, e, &rests, values.as_mut_ptr());
        }
        Some(values)
    }
}

/// Decodes one band; none if its counts are not those of its levels.
///
/// # Safety
/// The CPU must have the features of `B`; `band` must be what [`Band::read`] gives for `dtype` and
/// the number of `values`, at most `BAND`.
#[inline(always)]
unsafe fn take_band<B: Bytes>(
    dtype: DType,
    band: &Band,
    cycle: &mut Cycle,
    values: &mut [u8],
) -> Option<()> {
    let mut rooms = [Room::uninit(); 3];
    let [mut escapes, mut third, mut second] = rooms.each_mut().map(Dense::new);
    let from = band.escapes;
    // SAFETY: a band has at most `BAND` escapes; the rest is passed on.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), escapes.ptr_mut(), from.len());
        escapes.close::<B>(from.len());
        take_level::<B>(2, band.levels[2], &escapes, &mut third)?;
        take_level::<B>(1, band.levels[1], &third, &mut second)?;
    }
    let mut first = First { dtype, band, below: &second, at: 0 };
    let mut chunks = values.chunks_exact_mut(CHUNK * dtype.size());
    for (i, values) in (&mut chunks).enumerate() {
        // SAFETY: a whole chunk of the band and of its values.
        unsafe { first.whole::<B>(i, cycle.next(), values.as_mut_ptr()) }?;
    }
    let last = chunks.into_remainder();
    if !last.is_empty() {
        // SAFETY: 64 bases.
        let values = unsafe { first.last::<B>(cycle.next()) }?;
        last.copy_from_slice(&values[..last.len()]);
    }
    (first.at == second.len).then_some(())
}

/// The bases of all channels.
///
/// # Safety
/// The CPU must have the features of `B`.
#[inline(always)]
unsafe fn take_bases<B: Bytes>(dim: usize, head: &Head) -> Result<Bases, Error> {
    if !padded(head.planes, dim, head.width) {
        return Err(corrupt("padding"));
    }
    let mut bases = Bases::new(dim);
    for channel in (0..dim).step_by(CHUNK) {
        // SAFETY: passed on from the caller; a block has 64 bytes.
        unsafe {
            let mut of = B::splat(head.min);
            for j in 0..head.width {
                let word = if dim - channel >= CHUNK {
                    word(head.planes, channel / CHUNK * head.width + j)
                } else {
                    last_word(head.planes, dim, head.width, j)
                };
                of = B::add_at(of, word, 1 << j);
            }
            B::store(of, bases.block_mut(channel).as_mut_ptr());
        }
    }
    bases.repeat();
    Ok(bases)
}

/// The `i`-th word.
fn word(planes: &[u8], i: usize) -> u64 {
    planes.as_chunks().0.get(i).map_or(0, |&bytes| u64::from_le_bytes(bytes))
}

/// # Safety
/// The CPU must have the features of `B`.
#[inline(always)]
pub(super) unsafe fn decode<B: Bytes>(
    plan: &Expw,
    dtype: DType,
    coded: &[u8],
    tile: &mut [u8],
) -> Result<(), Error> {
    let head = Head::read(dtype, plan.dim(), coded)?;
    // SAFETY: passed on from the caller.
    let bases = unsafe { take_bases::<B>(plan.dim(), &head) }?;
    let mut coded = head.bands;
    let mut cycle = Cycle::new(&bases, plan.dim());
    for values in tile.chunks_mut(BAND * dtype.size()) {
        let (band, after) = Band::read(dtype, values.len() / dtype.size(), coded)?;
        // SAFETY: passed on from the caller; the band is that of these values.
        unsafe { take_band::<B>(dtype, &band, &mut cycle, values) }.ok_or(corrupt("counts"))?;
        coded = after;
    }
    if coded.is_empty() { Ok(()) } else { Err(corrupt("length")) }
}
