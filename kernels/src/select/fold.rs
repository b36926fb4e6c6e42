//! Folds: scores `[G][n]` of the query heads of one KV head become one weight per unit.
//!
//! Softmax mass is the default (`fold_mass`): raw logits of different heads are not comparable, and the
//! sum of softmax masses is what a shared budget should cover. Maximum and mean of raw scores are there
//! for Quest and ArkVale.

use crate::Isa;

/// Coefficients of 2^f on [0, 1], lowest first; relative error 2.6e-6 (minimax fit), far below the error of
/// any score that is not exact.
pub(crate) const EXP2: [f32; 5] =
    [1.000_002_6, 0.693_003_83, 0.241_442_75, 0.052_011_46, 0.013_534_167];
/// Numbers whose exponentials are summed in f32, 16 lanes wide, before the total goes on in f64.
pub(crate) const CHUNK: usize = 1024;
const LANES: usize = 16;

/// `a * b + c`, fused where the CPU has it (a library call elsewhere).
#[inline(always)]
fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// 2^x; 0 below -126, at most 2^127, NaN for NaN.
#[inline(always)]
fn exp2<const FUSED: bool>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: the sum's low bits are the integer
    let y = if x > -126.0 { x } else { -126.0 };
    let y = if y < 127.0 { y } else { 127.0 };
    let shifted = y - 0.5 + MAGIC;
    let f = y - (shifted - MAGIC);
    let mut p = EXP2[4];
    for c in EXP2[..4].iter().rev() {
        p = fma::<FUSED>(p, f, *c);
    }
    let value = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    let value = if x < -126.0 { 0.0 } else { value };
    if x.is_nan() { x } else { value }
}

/// Maximum of a chunk (NaN skipped) and sum of 2^(scale x - maximum).
#[inline(always)]
fn chunk_plain<const FUSED: bool>(x: &[f32], scale: f32) -> (f32, f32) {
    let mut top = [f32::NEG_INFINITY; LANES];
    let mut sum = [0f32; LANES];
    let (body, tail) = x.as_chunks::<LANES>();
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..tail.len()].iter_mut().zip(tail).for_each(|(l, x)| *l = x * scale);
    for x in body {
        for i in 0..LANES {
            let t = x[i] * scale;
            top[i] = if t > top[i] { t } else { top[i] };
        }
    }
    for i in 0..LANES {
        top[i] = if last[i] > top[i] { last[i] } else { top[i] };
    }
    let top = top.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut add = |i: usize, t: f32| {
        let t = t - top;
        sum[i] += exp2::<FUSED>(if t > -150.0 { t } else { -150.0 });
    };
    for x in body {
        for (i, x) in x.iter().enumerate() {
            add(i, x * scale);
        }
    }
    for (i, &t) in last.iter().enumerate() {
        add(i, t);
    }
    (top, sum.into_iter().sum())
}

#[inline(always)]
fn fold_plain<const FUSED: bool>(
    est: &[f32],
    stride: usize,
    scale: f32,
    lse2: &[f32],
    out: &mut [f32],
) {
    let n = out.len();
    for (g, &lse) in lse2.iter().enumerate() {
        let offset = fold_offset(lse);
        for (o, x) in out.iter_mut().zip(&est[g * stride..][..n]) {
            let mass = exp2::<FUSED>(x * scale - offset);
            *o = if g == 0 { mass } else { *o + mass };
        }
    }
}

/// An empty row (LSE of minus infinity) only has scores of minus infinity: any finite offset does.
pub(crate) fn fold_offset(lse: f32) -> f32 {
    if lse == f32::NEG_INFINITY { 0.0 } else { lse }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    /// The plain loops compiled for AVX2 and FMA.
    ///
    /// # Safety
    /// The CPU must have both.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn chunk(x: &[f32], scale: f32) -> (f32, f32) {
        super::chunk_plain::<true>(x, scale)
    }

    /// # Safety
    /// The CPU must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn fold(
        est: &[f32],
        stride: usize,
        scale: f32,
        lse2: &[f32],
        out: &mut [f32],
    ) {
        super::fold_plain::<true>(est, stride, scale, lse2, out);
    }
}

/// `(reference, sum of 2^(scale x - reference))`; the reference is the maximum or, if that is not far below
/// it, `guess`.
fn chunk(isa: Isa, x: &[f32], scale: f32, guess: f32) -> (f32, f32) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: callers pass a level that the CPU has.
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe { crate::arch::boxed_fold::chunk(x, scale, guess) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { wide::chunk(x, scale) },
        _ => chunk_plain::<false>(x, scale),
    }
}

/// Base-2 log-sum-exp of a few scores; NaN if any is.
pub(crate) fn piece_lse2(isa: Isa, x: &[f32]) -> f32 {
    if x.iter().fold(false, |nan, x| nan | x.is_nan()) {
        return f32::NAN;
    }
    let (top, sum) = chunk(isa, x, 1.0, f32::NEG_INFINITY);
    top + sum.log2()
}

/// log2(2^a + 2^b) in f64; minus infinity is the neutral element.
fn join(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY || high == f64::INFINITY {
        return high;
    }
    high + (low - high).exp2().ln_1p() * std::f64::consts::LOG2_E
}

/// `log2(2^a + 2^b)`.
#[must_use]
pub fn log2_add(a: f32, b: f32) -> f32 {
    join(f64::from(a), f64::from(b)) as f32
}

/// Joins `lse2[g]` with the base-2 log-sum-exp of `scale_log2 * est[g][..]`, `est` `[G][n]`; start
/// with minus infinity. `scale_log2` is the softmax scale times log2(e). NaN scores are skipped.
/// Exponentials are off by up to 3e-6; sums run in f32 within 1024 scores and in f64 beyond.
///
/// # Panics
/// If the lengths do not fit.
pub fn lse2(est: &[f32], n: usize, scale_log2: f32, lse2: &mut [f32]) {
    lse2_strided(est, n, n, scale_log2, lse2);
}

/// [`lse2`] with rows `stride` apart.
///
/// # Panics
/// If the lengths do not fit.
pub fn lse2_strided(est: &[f32], stride: usize, n: usize, scale_log2: f32, lse2: &mut [f32]) {
    lse2_at(Isa::level(), est, stride, n, scale_log2, lse2);
}

fn lse2_at(isa: Isa, est: &[f32], stride: usize, n: usize, scale_log2: f32, lse2: &mut [f32]) {
    check(est, stride, n, lse2.len());
    for (g, lse) in lse2.iter_mut().enumerate() {
        let row = &est[(g * stride).min(est.len())..][..n];
        let (mut top, mut sum) = (f64::NEG_INFINITY, 0f64);
        for x in row.chunks(CHUNK) {
            let (new, s) = chunk(isa, x, scale_log2, top as f32);
            let (new, s) = (f64::from(new), f64::from(s));
            if new > top {
                sum = if top == f64::NEG_INFINITY { 0.0 } else { sum * (top - new).exp2() };
                top = new;
            }
            if new > f64::NEG_INFINITY {
                sum += s * (new - top).exp2();
            }
        }
        let own = if top.is_finite() { top + sum.log2() } else { top };
        *lse = join(f64::from(*lse), own) as f32;
    }
}

/// Softmax mass of each unit summed over the group: `out[i] = sum_g 2^(est[g][i] scale_log2 - lse2[g])`,
/// `est` `[G][n]`. NaN stays NaN (a unit of unknown score, always selected).
///
/// # Panics
/// If the lengths do not fit.
pub fn fold_mass(est: &[f32], n: usize, scale_log2: f32, lse2: &[f32], out: &mut [f32]) {
    fold_mass_strided(est, n, n, scale_log2, lse2, out);
}

/// [`fold_mass`] with rows `stride` apart.
///
/// # Panics
/// If the lengths do not fit.
pub fn fold_mass_strided(
    est: &[f32],
    stride: usize,
    n: usize,
    scale_log2: f32,
    lse2: &[f32],
    out: &mut [f32],
) {
    fold_at(Isa::level(), est, stride, n, scale_log2, lse2, out);
}

fn fold_at(
    isa: Isa,
    est: &[f32],
    stride: usize,
    n: usize,
    scale: f32,
    lse2: &[f32],
    out: &mut [f32],
) {
    check(est, stride, n, lse2.len());
    assert_eq!(out.len(), n, "weights of {n} units");
    if lse2.is_empty() {
        out.fill(0.0);
        return;
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: callers pass a level that the CPU has.
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe {
            crate::arch::boxed_fold::fold(est, stride, scale, lse2, out);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { wide::fold(est, stride, scale, lse2, out) },
        _ => fold_plain::<false>(est, stride, scale, lse2, out),
    }
}

/// Largest softmax mass of each unit over the group (ShadowKV's fold): as [`fold_mass_strided`], the
/// maximum instead of the sum. NaN wins.
///
/// # Panics
/// If the lengths do not fit.
pub fn fold_mass_max(est: &[f32], stride: usize, scale_log2: f32, lse2: &[f32], out: &mut [f32]) {
    let n = out.len();
    check(est, stride, n, lse2.len());
    out.fill(0.0);
    for (g, &lse) in lse2.iter().enumerate() {
        let offset = fold_offset(lse);
        for (o, x) in out.iter_mut().zip(&est[(g * stride).min(est.len())..]) {
            let mass = exp2::<false>(x * scale_log2 - offset);
            *o = if mass > *o || mass.is_nan() { mass } else { *o };
        }
    }
}

fn check(est: &[f32], stride: usize, n: usize, heads: usize) {
    assert!(stride >= n, "{n} scores at stride {stride}");
    let need = heads.saturating_sub(1) * stride + if heads > 0 { n } else { 0 };
    assert!(est.len() >= need, "{} scores of {heads} heads x {n}", est.len());
}

fn fold_rows(
    est: &[f32],
    stride: usize,
    heads: usize,
    out: &mut [f32],
    join: impl Fn(f32, f32) -> f32,
) {
    check(est, stride, out.len(), heads);
    for g in 0..heads {
        for (o, &x) in out.iter_mut().zip(&est[(g * stride).min(est.len())..]) {
            *o = if g == 0 { x } else { join(*o, x) };
        }
    }
}

/// Largest raw score over the group (Quest's fold): `est` `[heads][..]`, rows `stride` apart, of which
/// the first `out.len()` count. NaN wins.
///
/// # Panics
/// If the lengths do not fit.
pub fn fold_max(est: &[f32], stride: usize, heads: usize, out: &mut [f32]) {
    fold_rows(est, stride, heads, out, |a, b| if b > a || b.is_nan() { b } else { a });
}

/// Mean raw score over the group (ArkVale's fold), laid out as for [`fold_max`].
///
/// # Panics
/// If the lengths do not fit.
pub fn fold_mean(est: &[f32], stride: usize, heads: usize, out: &mut [f32]) {
    fold_rows(est, stride, heads, out, |a, b| a + b);
    out.iter_mut().for_each(|o| *o /= heads.max(1) as f32);
}
