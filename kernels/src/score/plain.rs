//! Boxed scores in plain Rust: the oracle of the vector code, and, compiled for AVX2 with its own
//! dot product, the path of CPUs without int8 dot products.

use super::boxed::{Job, Stage, slot, step};
use crate::DIM_MAX;
use crate::summary::{BoxedSpec, FIELD_BITS, OPEN, TILE, unpack};

/// Lanes of f32 sums; fixes their order.
const LANES: usize = 16;
/// Codes of a tile: `[groups of 4 channels][64 tokens][4]`.
pub(crate) type Codes = [u8; DIM_MAX * TILE];

/// `dot(codes, q~, out)`: `out[t] = sum over groups and channels of code * q~`.
pub(crate) trait Dot: Fn(&[u8], &[i8], &mut [i32; TILE]) + Copy {}
impl<F: Fn(&[u8], &[i8], &mut [i32; TILE]) + Copy> Dot for F {}

/// The plain dot product.
#[inline(always)]
pub(crate) fn dot(codes: &[u8], q: &[i8], out: &mut [i32; TILE]) {
    out.fill(0);
    for (group, q) in codes.chunks_exact(4 * TILE).zip(q.chunks_exact(4)) {
        for (o, c) in out.iter_mut().zip(group.chunks_exact(4)) {
            for i in 0..4 {
                *o += i32::from(c[i]) * i32::from(q[i]);
            }
        }
    }
}

/// A tile's cell as slices.
pub(crate) struct Cell<'a> {
    boxes: &'a [u8],
    planes: &'a [u8],
}

impl<'a> Cell<'a> {
    /// # Safety
    /// `cell` must be readable for a cell of `spec`, unchanged for `'a`.
    pub(crate) unsafe fn new(spec: &BoxedSpec, cell: *const u8) -> Cell<'a> {
        // SAFETY: passed on from the caller.
        let bytes = unsafe { std::slice::from_raw_parts(cell, spec.cell_bytes()) };
        let (boxes, planes) = bytes.split_at(spec.box_bytes());
        Cell { boxes, planes }
    }

    pub(crate) fn word(&self, channel: usize) -> u16 {
        u16::from_le_bytes([self.boxes[2 * channel], self.boxes[2 * channel + 1]])
    }
}

/// Assembles the codes of `planes` bits.
#[inline(always)]
pub(crate) fn unpack_codes(spec: &BoxedSpec, cell: &Cell, planes: u32, codes: &mut Codes) {
    let groups = spec.padded() / 4;
    let (first, rest) = cell.planes.split_at(2 * spec.plane_bytes());
    for (g, out) in codes.chunks_exact_mut(4 * TILE).take(groups).enumerate() {
        let pairs = &first[64 * g..][..64];
        for (f, out) in out.chunks_exact_mut(64).enumerate() {
            for (o, p) in out.iter_mut().zip(pairs) {
                *o = p >> (2 * f) & 3;
            }
        }
    }
    for bits in rest.chunks_exact(spec.plane_bytes()).take(planes as usize - 2) {
        add_bits(spec, bits, 2, codes);
    }
}

/// `code = code * keep + bit` for one of the later planes.
#[inline(always)]
fn add_bits(spec: &BoxedSpec, plane: &[u8], keep: u8, codes: &mut Codes) {
    for (g, out) in codes.chunks_exact_mut(4 * TILE).take(spec.padded() / 4).enumerate() {
        let bits = &plane[64 * (g / 2)..][..64];
        for (out, at) in out.chunks_exact_mut(64).zip(FIELD_BITS) {
            let at = at + 2 * (g as u32 % 2);
            for (o, b) in out.iter_mut().zip(bits) {
                *o = *o * keep + (b >> at & 1);
            }
        }
    }
}

/// Box widths and middles.
#[inline(always)]
pub(crate) fn boxes(spec: &BoxedSpec, cell: &Cell, width: &mut [f32], middle: &mut [f32]) {
    for i in 0..spec.padded() {
        let (low, w) = unpack(cell.word(i));
        width[i] = w;
        middle[i] = low + 0.5 * w;
    }
}

/// Rounds `|x| <= 127` to the nearest integer, ties to even.
#[inline(always)]
fn round(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: the sum's low bits are the integer
    ((x + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32)
}

/// Sum in the order of the vector code: per lane, then pairwise.
#[inline(always)]
fn lanes_sum(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// Rounds one query head for one tile.
#[inline(always)]
fn stage(
    q: &[f32],
    (step, inverse): (f32, f32),
    width: &[f32],
    middle: &[f32],
    open: bool,
    rounded: &mut [i8],
) -> Stage {
    let mut sums = [[0f32; LANES]; 4];
    let blocks = || q.chunks_exact(LANES).zip(width.chunks_exact(LANES));
    for ((q, w), m) in blocks().zip(middle.chunks_exact(LANES)) {
        for i in 0..LANES {
            let (t, c) = (q[i] * w[i], q[i] * m[i]);
            sums[0][i] += c;
            sums[1][i] += t.abs();
            sums[2][i] += c.abs();
            sums[3][i] += t * t;
        }
    }
    let (mut sum, mut rounding) = ([0i32; LANES], [0f32; LANES]);
    for ((q, w), r) in blocks().zip(rounded.chunks_exact_mut(LANES)) {
        for i in 0..LANES {
            let t = q[i] * w[i];
            let n = round(t * inverse);
            r[i] = n as i8;
            sum[i] += i32::from(r[i]);
            rounding[i] += (t - step * n as f32).abs();
        }
    }
    let [base, spread, size, square] = sums.map(lanes_sum);
    let (sum, rounding) = (sum.into_iter().sum(), lanes_sum(rounding));
    let mut stage = Stage { base, step, sum, spread, rounding, size, square };
    stage.close(open);
    stage
}

/// Scores one tile whose codes are assembled. `first`: write the estimates; else add to them.
///
/// # Safety
/// The job's outputs must be writable for the tile, by nobody else; unless `first`, its estimates must be
/// initialised.
#[inline(always)]
unsafe fn tile(
    job: &Job,
    index: usize,
    cell: &Cell,
    codes: &Codes,
    planes: u32,
    first: bool,
    dot: impl Dot,
) {
    let n = job.spec.padded();
    let (mut width, mut middle) = ([0f32; DIM_MAX], [0f32; DIM_MAX]);
    boxes(&job.spec, cell, &mut width, &mut middle);
    let open = cell.word(0) == OPEN;
    let mut codes_of_width = [0u8; DIM_MAX];
    (0..n).for_each(|i| codes_of_width[slot(i)] = (cell.word(i) & 0x7f) as u8);
    let mut rounded = [0i8; DIM_MAX];
    for (head, q) in job.q.chunks_exact(job.q_stride).enumerate() {
        let sizes = &job.codes.relative[head * job.q_stride..][..job.q_stride];
        let largest = sizes.iter().zip(&codes_of_width).fold(0, |top, (a, b)| top.max(a + b));
        let steps = step(largest, job.codes.offset[head]);
        let s = stage(&q[..n], steps, &width[..n], &middle[..n], open, &mut rounded[..n]);
        let mut dots = [0i32; TILE];
        dot(&codes[..n * TILE], &rounded[..n], &mut dots);
        let (factor, offset) = if first { s.affine(planes) } else { s.affine_bit(planes) };
        // SAFETY: passed on from the caller.
        let est = unsafe { std::slice::from_raw_parts_mut(job.est(index, head), TILE) };
        for (e, d) in est.iter_mut().zip(dots) {
            let old = if first { 0.0 } else { *e };
            *e = old + (offset + factor * d as f32);
        }
        // SAFETY: passed on from the caller.
        unsafe { job.write_stats(index, head, &[s.bound(&job.spec, planes)], &[s.sigma(planes)]) }
    }
}

/// Estimates of all tiles.
///
/// # Safety
/// Every cell of the job must be readable as one of the spec, with all its planes, and its outputs
/// writable, by nobody else.
#[inline(always)]
pub(crate) unsafe fn score(job: &Job, planes: u32, dot: impl Dot) {
    let mut codes = [0u8; DIM_MAX * TILE];
    for index in 0..job.cells.len() {
        // SAFETY: passed on from the caller.
        unsafe {
            let cell = Cell::new(&job.spec, job.cells.cell(index));
            unpack_codes(&job.spec, &cell, planes, &mut codes);
            tile(job, index, &cell, &codes, planes, true, dot);
        }
    }
}

/// Adds one plane to the listed tiles.
///
/// # Safety
/// As for [`score`], for the listed tiles, whose estimates must be initialised.
#[inline(always)]
pub(crate) unsafe fn refine(job: &Job, tiles: &[u32], plane: u32, dot: impl Dot) {
    let mut codes = [0u8; DIM_MAX * TILE];
    let size = job.spec.plane_bytes();
    for &index in tiles {
        let index = index as usize;
        // SAFETY: passed on from the caller.
        unsafe {
            let cell = Cell::new(&job.spec, job.cells.cell(index));
            add_bits(&job.spec, &cell.planes[size * (plane as usize - 1)..][..size], 0, &mut codes);
            tile(job, index, &cell, &codes, plane, false, dot);
        }
    }
}
