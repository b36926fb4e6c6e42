//! Exact widening to f32 and rounding back, row by row.

use half::{bf16, f16};

use crate::{DType, Element};

/// [`widen`] for one type.
///
/// # Safety
/// `src` must be readable for `out.len()` elements of `T`, which need no alignment.
unsafe fn widen_as<T: Element>(src: *const u8, out: &mut [f32]) {
    for (i, o) in out.iter_mut().enumerate() {
        // SAFETY: the caller vouches for `out.len()` elements; unaligned reads are allowed.
        *o = unsafe { src.cast::<T>().add(i).read_unaligned() }.to_f32();
    }
}

/// [`narrow`] for one type.
///
/// # Safety
/// `out` must be writable for `src.len()` elements of `T`, which need no alignment.
unsafe fn narrow_as<T: Element>(src: &[f32], out: *mut u8) {
    for (i, &x) in src.iter().enumerate() {
        // SAFETY: the caller vouches for `src.len()` elements; unaligned writes are allowed.
        unsafe { out.cast::<T>().add(i).write_unaligned(T::from_f32(x)) }
    }
}

/// Reads `out.len()` elements of `dtype` as f32.
///
/// # Safety
/// `src` must be readable for that many elements.
pub unsafe fn widen(dtype: DType, src: *const u8, out: &mut [f32]) {
    // SAFETY: passed on from the caller.
    unsafe {
        match dtype {
            DType::F32 => widen_as::<f32>(src, out),
            DType::F16 => widen_as::<f16>(src, out),
            DType::Bf16 => widen_as::<bf16>(src, out),
        }
    }
}

/// Writes `src` as `dtype`, rounding to nearest even.
///
/// # Safety
/// `out` must be writable for `src.len()` elements.
pub unsafe fn narrow(dtype: DType, src: &[f32], out: *mut u8) {
    // SAFETY: passed on from the caller.
    unsafe {
        match dtype {
            DType::F32 => narrow_as::<f32>(src, out),
            DType::F16 => narrow_as::<f16>(src, out),
            DType::Bf16 => narrow_as::<bf16>(src, out),
        }
    }
}
