//! Token scores from boxed codes.
//!
//! For one tile and query head: `t_i = q_i W_i` is rounded to int8 with one step `s` per tile and
//! head, `t_i = s (q~_i + delta_i)`. The step comes from an upper bound of `max |t_i|` that only takes
//! small integers, [`step`]. With codes c of b bits the estimate of q.k is
//!
//! `sum q_i (lo_i + W_i / 2) + s / 2^b * sum q~_i (c_i - c_mid)`, `c_mid = (2^b - 1) / 2`,
//!
//! so the rounding of q only acts on the distance from the box's middle. Its error is at most
//! `sum |t_i| / 2^(b+1) + sum |s delta_i| (1/2 - 1/2^(b+1))` plus f32 rounding; [`boxed`] reports that
//! bound on request. The next plane adds `s / 2^(b+1) * sum q~_i (bit_i - 1/2)`: refinement is in place.

use super::{CellList, plain};
use crate::Isa;
use crate::summary::{BoxedSpec, TILE, WIDTH_BIAS};

/// The queries of one KV head's group, ready for scoring boxed cells.
#[derive(Clone, Debug)]
pub struct BoxedQuery {
    isa: Isa,
    spec: BoxedSpec,
    heads: usize,
    /// `[heads][stride]`, zero-padded.
    q: Vec<f32>,
    /// The same times 2^[`QUERY_SHIFT`].
    scaled: Vec<f32>,
    codes: SizeCodes,
}

/// Scale of the queries that meet widths without their bias.
pub(crate) const QUERY_SHIFT: u32 = 60;

/// Sizes of the query's channels on a coarse logarithmic scale.
#[derive(Clone, Debug)]
pub(crate) struct SizeCodes {
    /// `[heads][stride]` at [`slot`]s: a quarter octave per step, 128 for the head's largest channel.
    pub(crate) relative: Vec<u8>,
    /// `[heads]`, padded to four more: code of the largest channel, less 128 and the bias of width codes.
    pub(crate) offset: Vec<i32>,
}

/// Where the size code of a channel lies: words of two vectors of 32 channels are merged into bytes.
pub(crate) const fn slot(channel: usize) -> usize {
    channel / 64 * 64 + channel % 32 * 2 + channel % 64 / 32
}

impl SizeCodes {
    fn new(q: &[f32], stride: usize) -> SizeCodes {
        // Exponent and two mantissa bits, rounded up.
        let code = |x: f32| (x.abs().to_bits().saturating_add((1 << 21) - 1) >> 21) as i32;
        let mut relative = vec![0u8; q.len()];
        let mut offset = Vec::new();
        for (q, out) in q.chunks_exact(stride).zip(relative.chunks_exact_mut(stride)) {
            let top = q.iter().map(|&x| code(x)).max().unwrap_or(0);
            for (i, &x) in q.iter().enumerate() {
                out[slot(i)] = (code(x) - top + 128).max(0) as u8;
            }
            offset.push(top - 128 - ONE + WIDTH_BIAS as i32);
        }
        offset.extend([0; 4]);
        SizeCodes { relative, offset }
    }
}

/// Code of 1.0.
const ONE: i32 = 127 * 4;
/// Codes of the smallest bound of |t_i| (2^-60, far below any score that matters) and of infinity.
pub(crate) const STEP_CODES: (i32, i32) = (67 * 4, 255 * 4);
/// `(1 + a/4)(1 + b/4)` exceeds the number whose code is the sum of their codes by at most this factor.
pub(crate) const CODE_SLACK: f32 = 1.125;

/// Rounding step of q and its inverse for a tile, from the largest sum of width code and size code.
pub(crate) fn step(sum: u8, offset: i32) -> (f32, f32) {
    let code = (i32::from(sum) + offset).clamp(STEP_CODES.0, STEP_CODES.1);
    let largest = f32::from_bits((code as u32) << 21) * CODE_SLACK;
    (largest / 127.0, 127.0 / largest)
}

impl BoxedQuery {
    /// Prepares `q`, `[heads, dim]`, unscaled. Levels above the CPU's are lowered to it.
    ///
    /// # Panics
    /// If `q` does not hold `heads >= 1` rows.
    #[must_use]
    pub fn new(isa: Isa, spec: BoxedSpec, q: &[f32], heads: usize) -> BoxedQuery {
        assert!(
            heads > 0 && q.len() == heads * spec.dim(),
            "{} of {heads} x {}",
            q.len(),
            spec.dim()
        );
        let stride = BoxedQuery::stride(&spec);
        let mut rows = vec![0f32; heads * stride];
        for (row, q) in rows.chunks_exact_mut(stride).zip(q.chunks_exact(spec.dim())) {
            row[..q.len()].copy_from_slice(q);
        }
        let codes = SizeCodes::new(&rows, stride);
        let scaled = rows.iter().map(|x| x * 2f32.powi(QUERY_SHIFT as i32)).collect();
        BoxedQuery { isa: isa.min(Isa::detected()), spec, heads, q: rows, scaled, codes }
    }

    fn stride(spec: &BoxedSpec) -> usize {
        spec.dim().next_multiple_of(64)
    }

    /// Query heads of the group.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Shape of the cells.
    #[must_use]
    pub fn spec(&self) -> &BoxedSpec {
        &self.spec
    }

    /// The level it was prepared for.
    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// The query heads, each padded with zeros.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.q.chunks_exact(BoxedQuery::stride(&self.spec))
    }
}

/// Where scores go: head h of tile t to `est[h * est_stride + 64 t ..]`, its bound to
/// `bounds[h * bounds_stride + t]`, the tile's rms error to `sigma[t]`.
#[derive(Clone, Copy, Debug)]
pub struct RawScores {
    /// Estimates of q.k, unscaled.
    pub est: *mut f32,
    /// Elements between heads.
    pub est_stride: usize,
    /// Largest possible error of the tile's estimates.
    pub bounds: Option<*mut f32>,
    /// Elements between heads.
    pub bounds_stride: usize,
    /// Typical error of the tile's estimates, the largest over the heads.
    pub sigma: Option<*mut f32>,
}

/// One call, as the loops see it.
pub(crate) struct Job<'a> {
    pub(crate) spec: BoxedSpec,
    pub(crate) q: &'a [f32],
    pub(crate) scaled: &'a [f32],
    pub(crate) codes: &'a SizeCodes,
    pub(crate) q_stride: usize,
    pub(crate) heads: usize,
    pub(crate) cells: CellList<'a>,
    pub(crate) out: RawScores,
}

/// What a tile's scores need per head, besides the codes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stage {
    /// `sum q_i (lo_i + W_i / 2)`.
    pub(crate) base: f32,
    /// `s`.
    pub(crate) step: f32,
    /// `sum q~_i`.
    pub(crate) sum: i32,
    /// `sum |t_i|`.
    pub(crate) spread: f32,
    /// `sum |s delta_i|`.
    pub(crate) rounding: f32,
    /// `sum |q_i (lo_i + W_i / 2)|`.
    pub(crate) size: f32,
    /// `sum t_i^2`.
    pub(crate) square: f32,
}

impl Stage {
    /// Makes estimates NaN where the box or the query is not finite.
    #[inline(always)]
    pub(crate) fn close(&mut self, open: bool) {
        if open || !(self.step < f32::INFINITY && self.base.abs() < f32::INFINITY) {
            self.base = f32::NAN;
        }
    }

    /// `(factor, offset)` of the dot product with codes of `planes` bits.
    #[inline(always)]
    pub(crate) fn affine(&self, planes: u32) -> (f32, f32) {
        let cells = (1u32 << planes) as f32;
        let factor = self.step / cells;
        (factor, self.base - factor * ((cells - 1.0) * 0.5) * self.sum as f32)
    }

    /// `(factor, offset)` of the dot product with the bits of plane `plane` alone.
    #[inline(always)]
    pub(crate) fn affine_bit(&self, plane: u32) -> (f32, f32) {
        let factor = self.step / (1u32 << plane) as f32;
        (factor, -0.5 * factor * self.sum as f32)
    }

    /// Largest possible error with `planes` planes.
    pub(crate) fn bound(&self, spec: &BoxedSpec, planes: u32) -> f32 {
        let half = half_cell(planes);
        let model = self.spread * half + self.rounding * (0.5 - half);
        let e = model + slack(spec) * (self.spread + self.size + self.rounding) + TINY;
        if self.base.is_nan() || e.is_nan() { f32::INFINITY } else { e }
    }

    /// Typical error with `planes` planes: keys uniform inside their cells.
    pub(crate) fn sigma(&self, planes: u32) -> f32 {
        let s = (self.square * (1.0 / 12.0)).sqrt() * 2.0 * half_cell(planes);
        if self.base.is_nan() || s.is_nan() { f32::INFINITY } else { s }
    }
}

/// Half a cell as a part of the box.
pub(crate) fn half_cell(planes: u32) -> f32 {
    0.5 / (1u32 << planes) as f32
}

/// Bound of f32 rounding, relative to the sum of the terms' sizes. Sums run in 16 lanes, so each term
/// passes padded / 16 + 4 additions, plus a few roundings of its own (t, the box's middle, the cell that
/// a key fell into). Twice that.
pub(crate) fn slack(spec: &BoxedSpec) -> f32 {
    (spec.padded() / 16 + 16) as f32 * f32::EPSILON
}

/// Bound of what gets lost below the smallest normal numbers.
pub(crate) const TINY: f32 = 1e-36;

impl Job<'_> {
    /// Address of the estimates of a tile and head.
    pub(crate) fn est(&self, tile: usize, head: usize) -> *mut f32 {
        self.out.est.wrapping_add(head * self.out.est_stride + TILE * tile)
    }

    /// Writes bounds and sigmas of heads `first..` of a tile.
    ///
    /// # Safety
    /// The outputs of the job must be valid for this tile and these heads; head 0 comes first.
    pub(crate) unsafe fn write_stats(
        &self,
        tile: usize,
        first: usize,
        bounds: &[f32],
        sigmas: &[f32],
    ) {
        if let Some(out) = self.out.bounds {
            for (i, &bound) in bounds.iter().enumerate() {
                // SAFETY: passed on from the caller.
                unsafe { out.add((first + i) * self.out.bounds_stride + tile).write(bound) }
            }
        }
        if let Some(out) = self.out.sigma {
            let new = sigmas.iter().copied().fold(0.0, f32::max);
            // SAFETY: passed on from the caller; head 0 has written before the others read.
            unsafe {
                let old = if first == 0 { 0.0 } else { out.add(tile).read() };
                out.add(tile).write(new.max(old));
            }
        }
    }
}

/// Estimates q.k of every token of the listed tiles with the first `planes` planes.
///
/// `out` `[heads][tiles * 64]`, raw (unscaled) logits; NaN for open tiles. `bounds` `[heads][tiles]`:
/// `|q.k - est| <= bound` for all tokens of the tile, rigorous (+inf for open tiles). `sigma`
/// `[tiles]`: rms error of the estimate if keys are uniform inside their cells, largest over heads.
///
/// # Panics
/// If a length or `planes` does not fit.
pub fn boxed(
    query: &BoxedQuery,
    cells: &CellList,
    planes: u32,
    out: &mut [f32],
    bounds: Option<&mut [f32]>,
    sigma: Option<&mut [f32]>,
) {
    let raw = checked(query, cells, out, bounds, sigma);
    // SAFETY: lengths were just checked, the list vouches for the cells.
    unsafe { boxed_raw(query, cells, planes, raw) }
}

/// Adds plane `plane` (3 or 4) to the listed tiles (indices into `cells`), whose estimates must be
/// those of `plane - 1` planes. Outputs as in [`boxed`]; those of other tiles stay.
///
/// # Panics
/// If a length, a tile or `plane` does not fit.
pub fn refine(
    query: &BoxedQuery,
    cells: &CellList,
    tiles: &[u32],
    plane: u32,
    out: &mut [f32],
    bounds: Option<&mut [f32]>,
    sigma: Option<&mut [f32]>,
) {
    let raw = checked(query, cells, out, bounds, sigma);
    // SAFETY: lengths were just checked, the list vouches for the cells.
    unsafe { refine_raw(query, cells, tiles, plane, raw) }
}

fn checked(
    query: &BoxedQuery,
    cells: &CellList,
    out: &mut [f32],
    bounds: Option<&mut [f32]>,
    sigma: Option<&mut [f32]>,
) -> RawScores {
    let n = cells.len();
    assert_eq!(out.len(), query.heads * n * TILE, "estimates of {} heads, {n} tiles", query.heads);
    let bounds = bounds.map(|b| {
        assert_eq!(b.len(), query.heads * n, "bounds of {} heads, {n} tiles", query.heads);
        b.as_mut_ptr()
    });
    let sigma = sigma.map(|s| {
        assert_eq!(s.len(), n, "sigma of {n} tiles");
        s.as_mut_ptr()
    });
    let est = out.as_mut_ptr();
    RawScores { est, est_stride: n * TILE, bounds, bounds_stride: n, sigma }
}

impl BoxedQuery {
    fn job<'a>(&'a self, cells: &CellList<'a>, out: RawScores) -> Job<'a> {
        let found = cells.cell_bytes();
        assert!(
            cells.is_empty() || found == self.spec.cell_bytes(),
            "cell of {found} bytes for {:?}",
            self.spec
        );
        Job {
            spec: self.spec,
            q: &self.q,
            scaled: &self.scaled,
            codes: &self.codes,
            q_stride: BoxedQuery::stride(&self.spec),
            heads: self.heads,
            cells: *cells,
            out,
        }
    }
}

/// [`boxed`] with explicit places for the results, for callers that split one KV head over threads.
///
/// # Panics
/// If `planes` or the size of a cell does not fit.
///
/// # Safety
/// Every place that `out` describes for these tiles and heads must be writable, by nobody else.
pub unsafe fn boxed_raw(query: &BoxedQuery, cells: &CellList, planes: u32, out: RawScores) {
    let stored = query.spec.planes();
    assert!((2..=stored).contains(&planes), "{planes} planes of {stored}");
    let job = query.job(cells, out);
    // SAFETY: outputs by the caller's promise, cells by the list's; the level was limited to the CPU's.
    unsafe {
        match query.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => crate::arch::boxed_avx512::score(&job, planes),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => crate::arch::boxed_avx2::score(&job, planes),
            _ => plain::score(&job, planes, plain::dot),
        }
    }
}

/// [`refine`] with explicit places for the results.
///
/// # Panics
/// If a tile, `plane` or the size of a cell does not fit.
///
/// # Safety
/// As for [`boxed_raw`], and the estimates of the listed tiles must be initialised.
pub unsafe fn refine_raw(
    query: &BoxedQuery,
    cells: &CellList,
    tiles: &[u32],
    plane: u32,
    out: RawScores,
) {
    let stored = query.spec.planes();
    assert!((3..=stored).contains(&plane), "plane {plane} of {stored}");
    assert!(tiles.iter().all(|&t| (t as usize) < cells.len()), "a tile of {}", cells.len());
    let job = query.job(cells, out);
    // SAFETY: outputs by the caller's promise, cells by the list's; the level was limited to the CPU's.
    unsafe {
        match query.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => crate::arch::boxed_avx512::refine(&job, tiles, plane),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => crate::arch::boxed_avx2::refine(&job, tiles, plane),
            _ => plain::refine(&job, tiles, plane, plain::dot),
        }
    }
}
