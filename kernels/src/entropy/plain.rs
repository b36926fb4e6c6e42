//! The codec in plain Rust, value by value: what the other instruction sets must do too.

use super::Expw;
use super::layout::{BAND, Band, Bases, COUNT_BYTES, Head, corrupt, fixed_bytes, write_counts};
use super::planes::{entry, padded, planes_len, set_entry};
use super::symbols::{
    CANDIDATES, CODES, COSTS, LEVELS, exponent_max, index, join, rest_planes, saved, split,
};
use crate::view::DIM_MAX;
use crate::{DType, Error};

/// The largest exponent of each channel and the second largest, a repeated one counting as often as it
/// occurs. The second is the top that bases are tried from: one outlier cannot move it.
fn tops(plan: &Expw, tile: &[u8]) -> [u8; DIM_MAX] {
    let (mut first, mut second) = ([0u8; DIM_MAX], [0u8; DIM_MAX]);
    for row in tile.chunks_exact(plan.row_bytes()) {
        for (c, element) in row.chunks_exact(plan.dtype().size()).enumerate() {
            let (e, _) = split(plan.dtype(), element);
            second[c] = second[c].max(first[c].min(e));
            first[c] = first[c].max(e);
        }
    }
    if plan.tokens() == 1 { first } else { second }
}

fn bases(plan: &Expw, tile: &[u8]) -> Bases {
    let tops = tops(plan, tile);
    let mut bases = Bases::new(plan.dim());
    bases.fill(|c| {
        let mut costs = [0u32; CANDIDATES];
        for row in tile.chunks_exact(plan.row_bytes()) {
            let (e, _) = split(plan.dtype(), &row[c * plan.dtype().size()..]);
            for (cost, table) in costs.iter_mut().zip(COSTS) {
                *cost += u32::from(table[index(tops[c].wrapping_sub(e))]);
            }
        }
        choose(plan, tile, c, tops[c], costs)
    });
    bases
}

/// The base of a channel, from the costs of the candidates below its top: the first of the cheapest.
fn choose(plan: &Expw, tile: &[u8], channel: usize, top: u8, costs: [u32; CANDIDATES]) -> u8 {
    let best = (1..CANDIDATES).fold(0, |best, i| if costs[i] < costs[best] { i } else { best });
    if too_dear(plan, costs[best]) {
        return search(plan, tile, channel);
    }
    top.wrapping_sub(best as u8)
}

/// Whether a channel costs more than four bits per exponent; ordinary ones cost 2.5. Then its top was no
/// guide (several outliers, say), and all bases are tried.
#[inline(always)]
pub(crate) fn too_dear(plan: &Expw, cost: u32) -> bool {
    cost > 2 * plan.tokens
}

/// The cheapest of all bases, of equal ones the lowest.
#[cold]
#[inline(never)]
pub(crate) fn search(plan: &Expw, tile: &[u8], channel: usize) -> u8 {
    let mut gains = [0u32; 256];
    let mut times = [0u32; 256];
    for row in tile.chunks_exact(plan.row_bytes()) {
        let (e, _) = split(plan.dtype(), &row[channel * plan.dtype().size()..]);
        times[usize::from(e)] += 1;
    }
    let limit = exponent_max(plan.dtype());
    for (e, &times) in (0..=limit).zip(&times).filter(|(_, times)| **times > 0) {
        for distance in LEVELS.into_iter().flatten() {
            if let Some(base) = e.checked_add_signed(distance).filter(|&base| base <= limit) {
                gains[usize::from(base)] += times * saved(distance as u8);
            }
        }
    }
    (1..=limit).fold(0, |best, base| {
        if gains[usize::from(base)] > gains[usize::from(best)] { base } else { best }
    })
}

/// Codes of one level: planes into `out`, which must be zero, what is passed on into `next`; how many.
fn put_level(level: usize, distances: &[u8], out: &mut [u8], next: &mut [u8; BAND]) -> usize {
    let mut passed = 0;
    for (i, &distance) in distances.iter().enumerate() {
        let code = CODES[level][index(distance)];
        set_entry(out, distances.len(), 2, i, code);
        if code == 3 {
            next[passed] = distance;
            passed += 1;
        }
    }
    passed
}

/// Appends a band at `start`; none if the tile would not shrink.
fn put_band(
    plan: &Expw,
    bases: &Bases,
    (first, values): (usize, &[u8]),
    start: usize,
    out: &mut [u8],
) -> Option<usize> {
    let (dtype, size) = (plan.dtype(), plan.dtype().size());
    let n = values.len() / size;
    let mut distances = [0u8; BAND];
    for (i, element) in values.chunks_exact(size).enumerate() {
        distances[i] = bases.of_value(first + i).wrapping_sub(split(dtype, element).0);
    }
    let (mut counts, mut len) = ([0; 3], n);
    let (mut at, mut end) = (start + COUNT_BYTES, start + fixed_bytes(dtype, n));
    for (level, count) in counts.iter_mut().enumerate() {
        let bytes = planes_len(len, 2);
        end += if level > 0 { bytes } else { 0 };
        if end >= plan.decoded_len() {
            return None;
        }
        let planes = &mut out[at..at + bytes];
        planes.fill(0);
        let mut next = [0u8; BAND];
        len = put_level(level, &distances[..len], planes, &mut next);
        (distances, *count) = (next, len);
        at += bytes;
    }
    end += len;
    if end >= plan.decoded_len() {
        return None;
    }
    write_counts(counts, &mut out[start..]);
    put_escapes(dtype, &distances[..len], &mut out[at..]);
    put_rests(dtype, n, values, &mut out[at + len..end]);
    Some(end)
}

/// Escapes are distances, of f16 modulo 32.
pub(crate) fn put_escapes(dtype: DType, distances: &[u8], out: &mut [u8]) {
    for (out, &distance) in out.iter_mut().zip(distances) {
        *out = distance & exponent_max(dtype);
    }
}

/// The rests of a band.
fn put_rests(dtype: DType, n: usize, values: &[u8], out: &mut [u8]) {
    let (planes, bytes) = out.split_at_mut(planes_len(n, rest_planes(dtype)));
    planes.fill(0);
    let (rest, low) = bytes.split_at_mut(n);
    for (i, element) in values.chunks_exact(dtype.size()).enumerate() {
        put_rest(dtype, element, &mut rest[i], low.get_mut(2 * i..2 * i + 2));
        if dtype == DType::F16 {
            set_entry(planes, n, 3, i, (split(dtype, element).1 >> 8) as u8);
        }
    }
}

/// The whole bytes of one rest.
pub(crate) fn put_rest(dtype: DType, element: &[u8], rest: &mut u8, low: Option<&mut [u8]>) {
    let (_, bits) = split(dtype, element);
    match low {
        Some(low) => {
            *rest = (bits >> 16) as u8;
            low.copy_from_slice(&(bits as u16).to_le_bytes());
        }
        None => *rest = bits as u8,
    }
}

/// Encodes a tile; none if it would not shrink.
pub(crate) fn encode(plan: &Expw, tile: &[u8], out: &mut [u8]) -> Option<usize> {
    let bases = bases(plan, tile);
    let mut at = bases.write(out)?;
    for (band, values) in tile.chunks(BAND * plan.dtype().size()).enumerate() {
        at = put_band(plan, &bases, (band * BAND, values), at, out)?;
    }
    Some(at)
}

/// Inverse of [`put_level`]; `next` are the distances of the level below. None if they are not as many
/// as this level passes on.
fn take_level(
    level: usize,
    (planes, len): (&[u8], usize),
    next: &[u8],
    out: &mut [u8],
) -> Option<()> {
    let mut next = next.iter();
    for (i, out) in out[..len].iter_mut().enumerate() {
        *out = match entry(planes, len, 2, i) {
            3 => *next.next()?,
            code => LEVELS[level][usize::from(code)] as u8,
        };
    }
    next.next().is_none().then_some(())
}

/// Decodes one band.
fn take_band(
    dtype: DType,
    band: &Band,
    bases: &Bases,
    first: usize,
    values: &mut [u8],
) -> Option<()> {
    let [levels @ .., third] = band.levels;
    let mut distances = [0u8; BAND];
    take_level(2, third, band.escapes, &mut distances)?;
    let mut len = third.1;
    for (level, planes) in levels.into_iter().enumerate().rev() {
        let next = distances;
        take_level(level, planes, &next[..len], &mut distances)?;
        len = planes.1;
    }
    for (i, element) in values.chunks_exact_mut(dtype.size()).enumerate() {
        let e = bases.of_value(first + i).wrapping_sub(distances[i]);
        join(dtype, e, take_rest(dtype, band, i), element);
    }
    Some(())
}

fn take_rest(dtype: DType, band: &Band, i: usize) -> u32 {
    let byte = u32::from(band.rest[i]);
    match dtype {
        DType::Bf16 => byte,
        DType::F16 => byte | u32::from(entry(band.rest_planes, band.rest.len(), 3, i)) << 8,
        DType::F32 => {
            byte << 16 | u32::from(u16::from_le_bytes([band.low[2 * i], band.low[2 * i + 1]]))
        }
    }
}

/// Decodes a tile.
pub(crate) fn decode(plan: &Expw, coded: &[u8], tile: &mut [u8]) -> Result<(), Error> {
    let (dtype, size) = (plan.dtype(), plan.dtype().size());
    let head = Head::read(dtype, plan.dim(), coded)?;
    if !padded(head.planes, plan.dim(), head.width) {
        return Err(corrupt("padding"));
    }
    let mut bases = Bases::new(plan.dim());
    bases.fill(|c| head.min.wrapping_add(entry(head.planes, plan.dim(), head.width, c)));
    let mut coded = head.bands;
    for (i, values) in tile.chunks_mut(BAND * size).enumerate() {
        let (band, after) = Band::read(dtype, values.len() / size, coded)?;
        take_band(dtype, &band, &bases, i * BAND, values).ok_or(corrupt("counts"))?;
        coded = after;
    }
    if coded.is_empty() { Ok(()) } else { Err(corrupt("length")) }
}
