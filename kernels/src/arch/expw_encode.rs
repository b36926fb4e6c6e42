//! EXPW: encoding, level by level: the planes of a level go to the output, what it passes on into a buffer
//! on the stack, from which the next level is coded.

use super::expw_bases::bases;
use super::expw_lanes::{Bytes, Cycle, Dense, Room, extended, passed, split};
use crate::DType;
use crate::entropy::Expw;
use crate::entropy::layout::{BAND, COUNT_BYTES, fixed_bytes, write_counts};
use crate::entropy::plain::put_escapes;
use crate::entropy::planes::{CHUNK, planes_len, put_last_words};
use crate::entropy::symbols::{CODES, rest_planes};

/// Codes of 64 distances.
///
/// # Safety
/// The CPU must have the features of `B`.
#[inline(always)]
unsafe fn codes<B: Bytes>(level: usize, distances: B::V) -> B::V {
    // SAFETY: as above.
    unsafe {
        let index = B::min(B::add(distances, B::splat(1)), B::splat(15));
        B::lookup(&CODES[level], index)
    }
}

/// Lane numbers, to tell lanes beyond the end.
static LANES: [u8; CHUNK] = {
    let mut lanes = [0; CHUNK];
    let mut i = 0;
    while i < CHUNK {
        lanes[i] = i as u8;
        i += 1;
    }
    lanes
};

/// The first `len < 64` codes, then zeros.
///
/// # Safety
/// The CPU must have the features of `B`.
#[inline(always)]
unsafe fn cut<B: Bytes>(codes: B::V, len: usize) -> B::V {
    // SAFETY: as above.
    unsafe {
        let lanes = B::load(LANES.as_ptr());
        // 0 up to `len`, then more: the smaller of a code and 3 - min(3 * that, 3) is as wanted.
        let beyond = B::sub(B::max(lanes, B::splat(len as u8 - 1)), B::splat(len as u8 - 1));
        let beyond = B::min(beyond, B::splat(1));
        let keep = B::sub(B::splat(3), B::add(B::add(beyond, beyond), beyond));
        B::and(codes, keep)
    }
}

/// Codes of one level after the first: planes into `out`, what is passed on into `next`.
///
/// # Safety
/// The CPU must have the features of `B`; `from` must be closed.
#[inline(always)]
unsafe fn put_level<B: Bytes>(level: usize, from: &Dense, out: &mut [u8], next: &mut Dense) {
    let mut at = 0;
    let whole = from.len / CHUNK;
    for (i, planes) in out.chunks_exact_mut(16).take(whole).enumerate() {
        // SAFETY: a whole block; what has been passed on is no more than what has been read.
        unsafe {
            let d = B::load(from.ptr().add(i * CHUNK));
            B::encode(codes::<B>(level, d), d, planes.as_mut_ptr(), next.ptr_mut().add(at));
            at += passed(planes.as_ptr());
        }
    }
    let len = from.len % CHUNK;
    if len > 0 {
        let mut words = [0u64; 2];
        // SAFETY: as above; behind the last distance 64 bytes are readable.
        unsafe {
            let d = B::load(from.ptr().add(whole * CHUNK));
            let codes = cut::<B>(codes::<B>(level, d), len);
            B::encode(codes, d, words.as_mut_ptr().cast(), next.ptr_mut().add(at));
            at += passed(words.as_ptr().cast());
        }
        put_last_words(out, from.len, words.map(u64::from_le));
    }
    // SAFETY: no more than a band.
    unsafe { next.close::<B>(at) }
}

/// Codes of the first level.
///
/// # Safety
/// The CPU must have the features of `B`; `values` must be at most `BAND` elements of `dtype`.
#[inline(always)]
unsafe fn put_first<B: Bytes>(
    dtype: DType,
    cycle: &mut Cycle,
    values: &[u8],
    out: &mut [u8],
    next: &mut Dense,
) {
    let mut at = 0;
    let chunks = values.chunks_exact(CHUNK * dtype.size());
    let last = chunks.remainder();
    for (values, planes) in chunks.zip(out.chunks_exact_mut(16)) {
        // SAFETY: 64 elements, and as in `put_level`.
        unsafe {
            let [e, ..] = split::<B>(dtype, values.as_ptr());
            let d = B::sub(B::load(cycle.next()), e);
            B::encode(codes::<B>(0, d), d, planes.as_mut_ptr(), next.ptr_mut().add(at));
            at += passed(planes.as_ptr());
        }
    }
    if !last.is_empty() {
        let values_len = values.len() / dtype.size();
        let last: [u8; 4 * CHUNK] = extended(last);
        let mut words = [0u64; 2];
        // SAFETY: a copy of 64 elements.
        unsafe {
            let [e, ..] = split::<B>(dtype, last.as_ptr());
            let d = B::sub(B::load(cycle.next()), e);
            let codes = cut::<B>(codes::<B>(0, d), values_len % CHUNK);
            B::encode(codes, d, words.as_mut_ptr().cast(), next.ptr_mut().add(at));
            at += passed(words.as_ptr().cast());
        }
        put_last_words(out, values_len, words.map(u64::from_le));
    }
    // SAFETY: no more than a band.
    unsafe { next.close::<B>(at) }
}

/// The rests of 64 elements, to `planes` (f16) and `low` (f32) as well as to `bytes`.
///
/// # Safety
/// The CPU must have the features of `B`; `values` must be readable for 64 elements of `dtype`,
/// `bytes` writable for 64 bytes and, with f32, `low` for 128.
#[inline(always)]
unsafe fn put_chunk_rests<B: Bytes>(
    dtype: DType,
    values: *const u8,
    planes: &mut [u64; 3],
    bytes: *mut u8,
    low: *mut u8,
) {
    // SAFETY: as above.
    unsafe {
        let [_, rest, high] = split::<B>(dtype, values);
        B::store(rest, bytes);
        match dtype {
            DType::Bf16 => {}
            DType::F16 => *planes = [B::bit::<0>(high), B::bit::<1>(high), B::bit::<7>(high)],
            DType::F32 => B::store_words(B::load_lower(values), low),
        }
    }
}

/// The rests of a band.
///
/// # Safety
/// The CPU must have the features of `B`.
#[inline(always)]
unsafe fn put_rests<B: Bytes>(dtype: DType, n: usize, values: &[u8], out: &mut [u8]) {
    let (planes, bytes) = out.split_at_mut(planes_len(n, rest_planes(dtype)));
    let (rest, low) = bytes.split_at_mut(n);
    let chunks = values.chunks_exact(CHUNK * dtype.size());
    let last = chunks.remainder();
    for (i, values) in chunks.enumerate() {
        let rest = &mut rest[i * CHUNK..][..CHUNK];
        let low: &mut [u8] = match dtype {
            DType::F32 => &mut low[2 * i * CHUNK..][..2 * CHUNK],
            DType::F16 | DType::Bf16 => &mut [],
        };
        let mut words = [0; 3];
        // SAFETY: 64 elements; the slices are as long as needed.
        unsafe {
            let (rest, low) = (rest.as_mut_ptr(), low.as_mut_ptr());
            put_chunk_rests::<B>(dtype, values.as_ptr(), &mut words, rest, low);
        }
        if dtype == DType::F16 {
            for (to, word) in planes[24 * i..][..24].as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *to = word.to_le_bytes();
            }
        }
    }
    if !last.is_empty() {
        let from = n / CHUNK * CHUNK;
        let last: [u8; 4 * CHUNK] = extended(last);
        let (mut words, mut bytes, mut lows) = ([0; 3], [0u8; CHUNK], [0u8; 2 * CHUNK]);
        // SAFETY: buffers of full length.
        unsafe {
            let (bytes, lows) = (bytes.as_mut_ptr(), lows.as_mut_ptr());
            put_chunk_rests::<B>(dtype, last.as_ptr(), &mut words, bytes, lows);
        }
        rest[from..].copy_from_slice(&bytes[..n - from]);
        match dtype {
            DType::Bf16 => {}
            // The zeros behind the last element have no bits.
            DType::F16 => put_last_words(planes, n, words),
            DType::F32 => low[2 * from..].copy_from_slice(&lows[..2 * (n - from)]),
        }
    }
}

/// Appends a band at `start`; none if the tile would not shrink.
///
/// # Safety
/// The CPU must have the features of `B`; `values` must be at most `BAND` elements of `dtype`.
#[inline(always)]
unsafe fn put_band<B: Bytes>(
    plan: &Expw,
    dtype: DType,
    cycle: &mut Cycle,
    (start, values): (usize, &[u8]),
    out: &mut [u8],
) -> Option<usize> {
    let n = values.len() / dtype.size();
    let (mut at, mut end) = (start + COUNT_BYTES, start + fixed_bytes(dtype, n));
    let mut rooms = [Room::uninit(); 3];
    let [mut second, mut third, mut escapes] = rooms.each_mut().map(Dense::new);
    // The parts are written as long as the whole fits, with room for the rests.
    let mut part = |len: usize, extra: bool| {
        end += if extra { len } else { 0 };
        at += len;
        (end < plan.decoded_len()).then_some((at - len, end))
    };
    let len = planes_len(n, 2);
    let (from, _) = part(len, false)?;
    // SAFETY: passed on from the caller.
    unsafe { put_first::<B>(dtype, cycle, values, &mut out[from..from + len], &mut second) };
    let len = planes_len(second.len, 2);
    let (from, _) = part(len, true)?;
    // SAFETY: as above.
    unsafe { put_level::<B>(1, &second, &mut out[from..from + len], &mut third) };
    let len = planes_len(third.len, 2);
    let (from, _) = part(len, true)?;
    // SAFETY: as above.
    unsafe { put_level::<B>(2, &third, &mut out[from..from + len], &mut escapes) };
    let (from, end) = part(escapes.len, true)?;
    write_counts([second.len, third.len, escapes.len], &mut out[start..start + COUNT_BYTES]);
    put_escapes(dtype, escapes.get(), &mut out[from..]);
    // SAFETY: as above.
    unsafe { put_rests::<B>(dtype, n, values, &mut out[from + escapes.len..end]) };
    Some(end)
}

/// Encodes a tile; none if it would not shrink.
///
/// # Safety
/// The CPU must have the features of `B`.
#[inline(always)]
pub(super) unsafe fn encode<B: Bytes>(
    plan: &Expw,
    dtype: DType,
    tile: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    // SAFETY: passed on from the caller (so below).
    let bases = unsafe { bases::<B>(plan, dtype, tile) };
    let mut cycle = Cycle::new(&bases, plan.dim());
    let mut at = bases.write(out)?;
    for values in tile.chunks(BAND * dtype.size()) {
        // SAFETY: as above.
        at = unsafe { put_band::<B>(plan, dtype, &mut cycle, (at, values), out) }?;
    }
    Some(at)
}
