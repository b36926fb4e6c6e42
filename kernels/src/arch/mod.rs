//! Inner loops per instruction set, and the table that picks them once per call.

#![expect(
    clippy::too_many_arguments,
    clippy::needless_range_loop,
    reason = "inner loops: raw pointers by argument, register arrays by index"
)]

pub(crate) mod cluster;
pub(crate) mod expw;
mod generic;
mod loops;
pub(crate) mod nearest;
pub(crate) mod pq;
mod simd;
mod tile;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod bf16;
#[cfg(target_arch = "x86_64")]
pub(crate) mod boxed_avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod boxed_avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod boxed_filter;
#[cfg(target_arch = "x86_64")]
pub(crate) mod boxed_fold;
#[cfg(target_arch = "x86_64")]
mod boxed_round;
#[cfg(target_arch = "x86_64")]
mod expw_avx2;
#[cfg(target_arch = "x86_64")]
mod expw_avx512;
#[cfg(target_arch = "x86_64")]
mod expw_bases;
#[cfg(target_arch = "x86_64")]
mod expw_decode;
#[cfg(target_arch = "x86_64")]
mod expw_encode;
#[cfg(target_arch = "x86_64")]
mod expw_lanes;
#[cfg(target_arch = "x86_64")]
mod fused;
#[cfg(target_arch = "x86_64")]
mod nearest_vnni;
#[cfg(target_arch = "x86_64")]
mod product;

use crate::{DType, Isa};
use generic::Generic;
use simd::{ElemBf16, ElemF16, ElemF32, Simd};
pub(crate) use tile::{BLOCK, Dots, Step, TILE, Window, touch, zero_row};

/// Computes dot products.
///
/// # Safety
/// The CPU must have the features of the level; the argument must be as [`Dots`] says.
pub(crate) type DotsFn = unsafe fn(&Dots);

/// Advances the state by one tile.
///
/// # Safety
/// The CPU must have the features of the level; the argument must be as [`Step`] says.
pub(crate) type AttendFn = unsafe fn(&mut Step);
/// Scales and caps scores, a multiple of 16 of them, and turns them to base 2.
pub(crate) type ShapeFn = unsafe fn(&mut [f32], f32, f32);

/// The loops for one (instruction set, element type).
#[derive(Clone, Copy)]
pub(crate) struct Loops {
    pub(crate) dots: DotsFn,
    pub(crate) attend: AttendFn,
    pub(crate) shape: ShapeFn,
    /// Queries are bf16, output rows are interleaved.
    pub(crate) pairs: bool,
}

macro_rules! table {
    ($module:ident, $simd:ty $(, $feature:literal)?) => {
        mod $module {
            use super::*;

            table!(@elem $simd, with_f32, ElemF32 $(, $feature)?);
            table!(@elem $simd, with_f16, ElemF16 $(, $feature)?);
            table!(@elem $simd, with_bf16, ElemBf16 $(, $feature)?);

            pub(super) fn table(dtype: DType) -> Loops {
                let (dots, attend): (DotsFn, AttendFn) = match dtype {
                    DType::F32 => (with_f32::dots, with_f32::attend),
                    DType::F16 => (with_f16::dots, with_f16::attend),
                    DType::Bf16 => (with_bf16::dots, with_bf16::attend),
                };
                Loops { dots, attend, shape, pairs: false }
            }

            /// # Safety
            /// The CPU must have the features of the level; `s` must hold whole vectors.
            $(#[target_feature(enable = $feature)])?
            unsafe fn shape(s: &mut [f32], scale: f32, cap: f32) {
                // SAFETY: passed on from the caller; the feature is enabled above.
                unsafe { loops::shape::<$simd>(s, scale, cap) }
            }
        }
    };
    (@elem $simd:ty, $name:ident, $elem:ty $(, $feature:literal)?) => {
        mod $name {
            use super::*;

            /// # Safety
            /// The CPU must have the features of the level; `x` must be as [`Dots`] says.
            $(#[target_feature(enable = $feature)])?
            pub(super) unsafe fn dots(x: &Dots) {
                // SAFETY: passed on from the caller; the feature is enabled above.
                unsafe { <$simd as Simd>::dots::<$elem>(x) }
            }

            /// # Safety
            /// The CPU must have the features of the level; `x` must be as [`Step`] says.
            $(#[target_feature(enable = $feature)])?
            pub(super) unsafe fn attend(x: &mut Step) {
                // SAFETY: passed on from the caller; the feature is enabled above.
                unsafe { <$simd as Simd>::attend::<$elem>(x) }
            }
        }
    };
}

table!(on_generic, Generic);
#[cfg(target_arch = "x86_64")]
table!(on_avx2, avx2::Avx2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
table!(on_avx512, avx512::Avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");

/// The loops of one level. `precise` keeps queries and weights in f32 where the level would round
/// them to bf16.
pub(crate) fn table(isa: Isa, dtype: DType, precise: bool) -> Loops {
    // A level above what the CPU has would be undefined behaviour, whoever asks for it.
    match isa.min(Isa::detected()) {
        Isa::Generic => on_generic::table(dtype),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => on_avx2::table(dtype),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if dtype == DType::Bf16 && !precise => {
            let shape = on_avx512::table(dtype).shape;
            Loops { dots: bf16::dots, attend: bf16::attend, shape, pairs: true }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => on_avx512::table(dtype),
        #[cfg(not(target_arch = "x86_64"))]
        _ => on_generic::table(dtype),
    }
}

/// Puts an output row kept by `attend` back into channel order.
pub(crate) fn finish_row(pairs: bool, row: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if pairs {
        bf16::unpermute(row, out);
        return;
    }
    debug_assert!(!pairs);
    out.copy_from_slice(&row[..out.len()]);
}
