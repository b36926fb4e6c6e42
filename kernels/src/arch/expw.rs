//! EXPW: the table of loops by instruction set and element type.

use crate::entropy::Expw;
use crate::{DType, Error, Isa};

/// The loops of one level and element type. Safe to call where the CPU has the level, for tiles of the
/// plan's size and output at least as long.
#[derive(Clone, Copy)]
pub(crate) struct ExpwLoops {
    pub(crate) encode: EncodeFn,
    pub(crate) decode: DecodeFn,
}

/// Encodes a tile; none if it would not shrink.
///
/// # Safety
/// The CPU must have the features of the level.
type EncodeFn = unsafe fn(&Expw, &[u8], &mut [u8]) -> Option<usize>;

/// Decodes a tile.
///
/// # Safety
/// The CPU must have the features of the level.
type DecodeFn = unsafe fn(&Expw, &[u8], &mut [u8]) -> Result<(), Error>;

macro_rules! level {
    ($module:ident, $bytes:ty, $feature:literal) => {
        #[cfg(target_arch = "x86_64")]
        mod $module {
            use super::*;

            level!(@dtype bf16, $bytes, $feature, Bf16);
            level!(@dtype f16, $bytes, $feature, F16);
            level!(@dtype f32, $bytes, $feature, F32);

            pub(super) fn loops(dtype: DType) -> ExpwLoops {
                match dtype {
                    DType::Bf16 => ExpwLoops { encode: bf16::encode, decode: bf16::decode },
                    DType::F16 => ExpwLoops { encode: f16::encode, decode: f16::decode },
                    DType::F32 => ExpwLoops { encode: f32::encode, decode: f32::decode },
                }
            }
        }
    };
    (@dtype $name:ident, $bytes:ty, $feature:literal, $dtype:ident) => {
        mod $name {
            use super::*;

            /// # Safety
            /// The CPU must have the features of the level.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn encode(p: &Expw, tile: &[u8], out: &mut [u8]) -> Option<usize> {
                // SAFETY: passed on from the caller; the features are enabled above.
                unsafe { crate::arch::expw_encode::encode::<$bytes>(p, DType::$dtype, tile, out) }
            }

            /// # Safety
            /// The CPU must have the features of the level.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn decode(p: &Expw, from: &[u8], to: &mut [u8]) -> Result<(), Error> {
                // SAFETY: passed on from the caller; the features are enabled above.
                unsafe { crate::arch::expw_decode::decode::<$bytes>(p, DType::$dtype, from, to) }
            }
        }
    };
}

level!(on_avx2, crate::arch::expw_avx2::Avx2Bytes, "avx2,bmi1,bmi2,popcnt,lzcnt");
level!(
    on_avx512,
    crate::arch::expw_avx512::Avx512Bytes,
    "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,popcnt,lzcnt"
);

/// The loops of a level, none for the plain code. Their instructions go beyond what [`Isa`] promises, so
/// the CPU is asked again.
#[cfg(target_arch = "x86_64")]
pub(crate) fn loops(isa: Isa, dtype: DType) -> Option<ExpwLoops> {
    let isa = isa.min(Isa::detected());
    let bmi = || {
        is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt")
            && is_x86_feature_detected!("lzcnt")
    };
    let vbmi = || is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512vbmi2");
    if isa == Isa::Generic || !bmi() {
        return None;
    }
    let wide = isa >= Isa::Avx512 && vbmi();
    Some(if wide { on_avx512::loops(dtype) } else { on_avx2::loops(dtype) })
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn loops(_isa: Isa, _dtype: DType) -> Option<ExpwLoops> {
    None
}
