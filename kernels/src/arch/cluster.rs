//! The loops of clustering, one table per instruction set. All levels agree on every bit that leaves
//! this crate: sums of rows run over tokens in order, dot products are summed in f64 over lanes that
//! do not depend on the level, and rough scores only say which exact ones are computed.

use super::generic::Generic;
use super::nearest::{self, Floats, RowStats, Sweep, reaching};
use super::simd::{Elem, ElemBf16, ElemF16, ElemF32, Simd};
use crate::{DType, Isa};

/// Lanes of f64 sums; fixes their order.
const LANES: usize = 8;

/// Rounds `row - middle` to bytes.
pub(crate) type RoundFn = unsafe fn(&[f32], &[f32], &mut [i8]) -> RowStats;

/// The loops of one level. Rows are padded with zeros to a multiple of [`LANES`].
#[derive(Clone, Copy)]
pub(crate) struct ClusterLoops {
    /// Scores a few rows against all targets.
    pub(crate) sweep: unsafe fn(&mut Sweep),
    /// Targets of a panel.
    pub(crate) width: usize,
    /// `(upper, count, threshold, ids)`: numbers of the upper ends that reach the threshold.
    pub(crate) reaching: unsafe fn(*const f32, usize, f32, *mut u32) -> usize,
    /// Widens a row to f32; the largest magnitude of its elements, NaN if one is not finite.
    pub(crate) widen: unsafe fn(DType, *const u8, &mut [f32]) -> f32,
    /// `sum += row`
    pub(crate) add: unsafe fn(&mut [f32], &[f32]),
    /// `sum += row` in f64.
    pub(crate) add64: unsafe fn(&mut [f64], &[f32]),
    /// Dot product in f64.
    pub(crate) dot: unsafe fn(&[f32], &[f32]) -> f64,
    /// Square of the distance in f64.
    pub(crate) distance2: unsafe fn(&[f32], &[f32]) -> f64,
    /// Where sweeps take bytes: rounds `row - middle` to bytes, and says what that does to it.
    pub(crate) round: Option<RoundFn>,
}

/// Widens a row; the largest magnitude, NaN if an element is not finite.
///
/// # Safety
/// The instruction set of `S` is enabled; `src` is readable for `out.len()` elements.
#[inline(always)]
unsafe fn widen_as<S: Simd, E: Elem>(src: *const u8, out: &mut [f32]) -> f32 {
    let (dim, mut part) = (out.len(), [0f32; 16]);
    // SAFETY: by the function's contract; a part has fewer than S::N <= 16 elements.
    unsafe {
        let zero = S::splat(0.0);
        let (mut top, mut check) = (zero, zero);
        for at in (0..dim).step_by(S::N) {
            let whole = at + S::N <= dim;
            let x =
                if whole { E::load::<S>(src, at) } else { E::load_part::<S>(src, at, dim - at) };
            top = S::max(S::max(x, S::sub(zero, x)), top);
            check = S::fma(x, zero, check);
            if whole {
                S::store(out.as_mut_ptr().add(at), x);
            } else {
                S::store(part.as_mut_ptr(), x);
                out[at..].copy_from_slice(&part[..dim - at]);
            }
        }
        // 0 * x is NaN for an x that is not finite, else 0.
        S::hmax(top) + S::sum(check)
    }
}

#[inline(always)]
fn add(sum: &mut [f32], row: &[f32]) {
    sum.iter_mut().zip(row).for_each(|(s, &x)| *s += x);
}

#[inline(always)]
fn add64(sum: &mut [f64], row: &[f32]) {
    sum.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
}

#[inline(always)]
fn total(lanes: [f64; LANES]) -> f64 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Sum of `f(a, b)` over the elements, by lanes.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f64, f64) -> f64) -> f64 {
    debug_assert!(a.len() == b.len() && a.len().is_multiple_of(LANES));
    let mut lanes = [0f64; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            lanes[i] += f(f64::from(a[i]), f64::from(b[i]));
        }
    }
    total(lanes)
}

/// Products of f32 are exact in f64, so fused or not makes no difference.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum(a, b, |a, b| a * b)
}

#[inline(always)]
fn distance2(a: &[f32], b: &[f32]) -> f64 {
    sum(a, b, |a, b| (a - b) * (a - b))
}

macro_rules! level {
    ($name:ident, $simd:ty, $rows:literal, $vectors:literal $(, $feature:literal)?) => {
        mod $name {
            use super::*;

            /// Scores rows against targets.
            ///
            /// # Safety
            /// The CPU must have the features; `x` must be as [`Sweep`] says.
            $(#[target_feature(enable = $feature)])?
            unsafe fn sweep(x: &mut Sweep) {
                // SAFETY: passed on from the caller; the feature is enabled above (so below).
                unsafe { nearest::sweep::<Floats<$simd>, $rows, $vectors>(x) }
            }

            /// Finds what reaches a threshold.
            ///
            /// # Safety
            /// The CPU must have the features; otherwise as for [`reaching`].
            $(#[target_feature(enable = $feature)])?
            unsafe fn reach(upper: *const f32, count: usize, least: f32, ids: *mut u32) -> usize {
                // SAFETY: as above.
                unsafe { reaching::<$simd>(upper, count, least, ids) }
            }

            /// Widens a row.
            ///
            /// # Safety
            /// The CPU must have the features; otherwise as for [`widen_as`].
            $(#[target_feature(enable = $feature)])?
            unsafe fn widen_row(dtype: DType, src: *const u8, out: &mut [f32]) -> f32 {
                // SAFETY: passed on from the caller.
                unsafe {
                    match dtype {
                        DType::F32 => widen_as::<$simd, ElemF32>(src, out),
                        DType::F16 => widen_as::<$simd, ElemF16>(src, out),
                        DType::Bf16 => widen_as::<$simd, ElemBf16>(src, out),
                    }
                }
            }

            /// Adds a row.
            ///
            /// # Safety
            /// The CPU must have the features.
            $(#[target_feature(enable = $feature)])?
            unsafe fn add_row(sum: &mut [f32], row: &[f32]) {
                add(sum, row);
            }

            /// Adds a row in f64.
            ///
            /// # Safety
            /// The CPU must have the features.
            $(#[target_feature(enable = $feature)])?
            unsafe fn add64_row(sum: &mut [f64], row: &[f32]) {
                add64(sum, row);
            }

            /// Dot product in f64.
            ///
            /// # Safety
            /// The CPU must have the features.
            $(#[target_feature(enable = $feature)])?
            unsafe fn dot_rows(a: &[f32], b: &[f32]) -> f64 {
                dot(a, b)
            }

            /// Square of the distance in f64.
            ///
            /// # Safety
            /// The CPU must have the features.
            $(#[target_feature(enable = $feature)])?
            unsafe fn distance2_rows(a: &[f32], b: &[f32]) -> f64 {
                distance2(a, b)
            }

            pub(super) const LOOPS: ClusterLoops = ClusterLoops {
                sweep,
                width: $vectors * <$simd as Simd>::N,
                reaching: reach,
                widen: widen_row,
                add: add_row,
                add64: add64_row,
                dot: dot_rows,
                distance2: distance2_rows,
                round: None,
            };
        }
    };
}

level!(on_generic, Generic, 4, 1);
#[cfg(target_arch = "x86_64")]
level!(on_avx2, super::super::avx2::Avx2, 6, 2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
level!(
    on_avx512,
    super::super::avx512::Avx512,
    12,
    2,
    "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
);

/// The loops of a level, or of the best below it that this CPU has.
pub(crate) fn loops(isa: Isa) -> ClusterLoops {
    match isa.min(Isa::detected()) {
        Isa::Generic => on_generic::LOOPS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => on_avx2::LOOPS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => on_avx512::LOOPS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => ClusterLoops {
            sweep: super::nearest_vnni::bytes,
            width: nearest::LANES,
            round: Some(super::nearest_vnni::round),
            ..on_avx512::LOOPS
        },
        #[cfg(not(target_arch = "x86_64"))]
        _ => on_generic::LOOPS,
    }
}
