//! The vector operations the inner loops need, one implementation per instruction set.
//!
//! The loops in `loops.rs` are written once against [`Simd`] and compiled inside functions that
//! enable the instruction set, so that everything here inlines.

use super::loops;
use super::tile::{Dots, Step};

/// A vector of `N` f32 lanes. The features of an implementor are those that `arch::table` enables
/// for it; only a function that enables them makes the methods inline. Pointers need no alignment.
pub(crate) trait Simd: Copy {
    /// The register.
    type F: Copy;
    /// Lanes.
    const N: usize;

    /// `x` in every lane.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn splat(x: f32) -> Self::F;

    /// `N` lanes in f32.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `p` must be readable for `N` f32.
    unsafe fn load(p: *const f32) -> Self::F;

    /// `N` lanes in f16.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `p` must be readable for `N` f16.
    unsafe fn load_f16(p: *const u16) -> Self::F;

    /// `N` lanes in bf16.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `p` must be readable for `N` bf16.
    unsafe fn load_bf16(p: *const u16) -> Self::F;

    /// Writes the lanes.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `p` must be writable for `N` f32.
    unsafe fn store(p: *mut f32, x: Self::F);

    /// `a + b`
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;

    /// `a - b`
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;

    /// `a * b`
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;

    /// `a / b`
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;

    /// `a * b + c`
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Larger lane; where one is NaN, the lane of `b`.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;

    /// Smaller lane; where one is NaN, the lane of `b`.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;

    /// Nearest integer.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn round(a: Self::F) -> Self::F;

    /// `a * 2^n` for integral `n` in -127..=127; 0 for n = -127.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn scale2(a: Self::F, n: Self::F) -> Self::F;

    /// Sum of the lanes.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn sum(a: Self::F) -> f32;

    /// Largest lane; NaN lanes may be ignored.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn hmax(a: Self::F) -> f32;

    /// Bit `i` is set where lane `i` of `a` is at least that of `b`.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn ge(a: Self::F, b: Self::F) -> u32;

    /// Dot products of query rows with rows of `E`: `out[r * stride + t] = q[r] . row(t)`.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `x` must be as [`Dots`] says, with queries in
    /// f32.
    #[inline(always)]
    unsafe fn dots<E: Elem>(x: &Dots) {
        // SAFETY: passed on from the caller.
        unsafe { loops::dots::<Self, E>(x) }
    }

    /// One tile of attention over rows of `E`.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `x` must be as [`Step`] says, with queries in
    /// f32.
    #[inline(always)]
    unsafe fn attend<E: Elem>(x: &mut Step) {
        // SAFETY: passed on from the caller.
        unsafe { loops::attend::<Self, E>(x) }
    }

    /// Sums of up to 16 registers, one per slot of `out`.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    #[inline(always)]
    unsafe fn sums<const M: usize>(acc: &[Self::F; M], out: &mut [f32; M]) {
        for (o, &a) in out.iter_mut().zip(acc) {
            // SAFETY: the caller enabled the instruction set.
            *o = unsafe { Self::sum(a) };
        }
    }

    /// `2^x`, about 2e-7 relative; 0 below -126, NaN stays NaN.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    #[inline(always)]
    unsafe fn exp2(x: Self::F) -> Self::F {
        // SAFETY: the caller enabled the instruction set.
        unsafe {
            let x = Self::min(Self::splat(127.0), Self::max(Self::splat(-127.0), x));
            let n = Self::round(x);
            let f = Self::sub(x, n);
            // Taylor of 2^f in (f ln 2), |f| <= 1/2: remainder below 1.2e-7.
            let mut p = Self::splat(1.540_353e-4);
            for c in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, 6.931_472e-1, 1.0] {
                p = Self::fma(p, f, Self::splat(c));
            }
            Self::scale2(p, n)
        }
    }
}

/// A stored element type: how a vector of it is widened to f32.
pub(crate) trait Elem: Copy {
    /// Bytes of one element.
    const SIZE: usize;

    /// The `S::N` elements from `at`.
    ///
    /// # Safety
    /// The CPU must have the features of `S`; `row` must be readable for `S::N` elements from `at`
    /// on.
    unsafe fn load<S: Simd>(row: *const u8, at: usize) -> S::F;

    /// The last `n < S::N` elements from `at`, other lanes zero.
    ///
    /// # Safety
    /// The CPU must have the features of `S`; `row` must be readable for `n` elements from `at` on,
    /// and `n` be below `S::N`.
    #[inline(always)]
    unsafe fn load_part<S: Simd>(row: *const u8, at: usize, n: usize) -> S::F {
        let mut pad = [0u64; 8];
        // SAFETY: n * SIZE <= 15 * 4 bytes fit into the pad; the caller vouches for the source.
        unsafe {
            let src = row.add(at * Self::SIZE);
            std::ptr::copy_nonoverlapping(src, pad.as_mut_ptr().cast::<u8>(), n * Self::SIZE);
            Self::load::<S>(pad.as_ptr().cast(), 0)
        }
    }
}

macro_rules! elem {
    ($name:ident, $size:literal, $load:ident, $as:ty) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Elem for $name {
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn load<S: Simd>(row: *const u8, at: usize) -> S::F {
                // SAFETY: the caller vouches for the instruction set and S::N elements at `at`.
                unsafe { S::$load(row.add(at * $size).cast::<$as>()) }
            }
        }
    };
}

elem!(ElemF32, 4, load, f32);
elem!(ElemF16, 2, load_f16, u16);
elem!(ElemBf16, 2, load_bf16, u16);
