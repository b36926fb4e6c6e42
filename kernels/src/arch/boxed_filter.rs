//! One pass over a list of numbers: ids above a cut, or the numbers between two.

use std::arch::x86_64::*;

/// Numbers per step; outputs need this much room beyond what is written.
pub(crate) const STEP: usize = 16;

/// Writes to `ids` the indices of all `x` that are not below `cut` (NaN included); returns their
/// number.
///
/// # Safety
/// The CPU must have AVX-512 F; `ids` must be writable for `x.len() + STEP` numbers.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn filter(x: &[f32], cut: f32, ids: *mut u32) -> usize {
    let cut = _mm512_set1_ps(cut);
    let mut id = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut found = 0;
    for at in (0..x.len()).step_by(STEP) {
        let have = x.len() - at;
        let valid = if have >= STEP { !0 } else { (1u16 << have) - 1 };
        // SAFETY: the mask ends at the slice's end; `found` is at most `at`.
        unsafe {
            let v = _mm512_maskz_loadu_ps(valid, x.as_ptr().add(at));
            let mask = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(valid, v, cut);
            // Written whether anything is found or not: a branch would be mispredicted. Compressed
            // in a register: to memory it is microcoded on Zen 4.
            _mm512_storeu_si512(ids.add(found).cast(), _mm512_maskz_compress_epi32(mask, id));
            found += mask.count_ones() as usize;
        }
        id = _mm512_add_epi32(id, _mm512_set1_epi32(STEP as i32));
    }
    found
}

/// Copies to `inside` all `x` that are neither below `low` nor above `high`; returns how many are above
/// and how many inside. NaN is above, unless `high` is infinite: then it is inside.
///
/// # Safety
/// The CPU must have AVX-512 F; `inside` must be writable for `x.len() + STEP` numbers.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn bracket(x: &[f32], low: f32, high: f32, inside: *mut f32) -> (usize, usize) {
    let open = if high == f32::INFINITY { 0 } else { !0 };
    let (low, high) = (_mm512_set1_ps(low), _mm512_set1_ps(high));
    let (mut above, mut found) = (0, 0);
    for at in (0..x.len()).step_by(STEP) {
        let have = x.len() - at;
        let valid = if have >= STEP { !0 } else { (1u16 << have) - 1 };
        // SAFETY: the mask ends at the slice's end; `found` is at most `at`.
        unsafe {
            let v = _mm512_maskz_loadu_ps(valid, x.as_ptr().add(at));
            let over = _mm512_mask_cmp_ps_mask::<_CMP_NLE_UQ>(valid & open, v, high);
            let mask = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(valid & !over, v, low);
            above += over.count_ones() as usize;
            _mm512_storeu_ps(inside.add(found), _mm512_maskz_compress_ps(mask, v));
            found += mask.count_ones() as usize;
        }
    }
    (above, found)
}
