//! How the elements of each type are multiplied in the one-pass attention of [`fused`](super::fused).

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::simd::Elem;
use super::tile::BLOCK;

/// Tokens of a round.
pub(super) const ROUND: usize = 16;
/// Channels a weighted sum adds at once.
pub(super) const WIDTH: usize = 32;

/// How one element type is multiplied. The features are AVX-512 F, BW, DQ and VL and, of
/// [`Pairs`](super::bf16::Pairs), BF16; only a function that enables them makes the methods inline.
/// Pointers need no alignment.
pub(super) trait Product {
    /// Elements of K a register holds, and bytes of an element of K and V.
    const STEP: usize;
    const SIZE: usize;
    /// Rows of V that are added at once.
    const ROWS: usize;
    /// A register of elements, of K and Q or of V and weights.
    type X: Copy;

    /// `STEP` elements of a query row from `at` on.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `q` must be readable for them, bf16 with
    /// [`Pairs`](super::bf16::Pairs) and else f32.
    unsafe fn load_q(q: *const u8, at: usize) -> Self::X;

    /// `STEP` elements of a key from `at` on.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `row` must be readable for them.
    unsafe fn load_k(row: *const u8, at: usize) -> Self::X;

    /// The last `n < STEP` elements, then zeros.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `row` must be readable for `n` elements from `at`
    /// on, and `n` be below `STEP`.
    unsafe fn load_k_part(row: *const u8, at: usize, n: usize) -> Self::X;

    /// Adds the products to f32 lanes.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn dot(acc: __m512, q: Self::X, k: Self::X) -> __m512;

    /// `n <= WIDTH` channels of the rows at `v`, then zeros.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `v` must be readable for `ROWS` pointers, and each
    /// of these for `n <= WIDTH` elements from `at` on.
    unsafe fn load_v(v: *const *const u8, at: usize, n: usize) -> [Self::X; 2];

    /// Stores weights of lanes `[row][token]` for four tokens, the `i`th four of the round.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `i` must be below `ROUND / 4`.
    unsafe fn put_weights(to: &mut Weights, i: usize, w: __m512);

    /// Weights of the `i`th tokens that are added at once, for a query row.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `row` must be below `BLOCK`, and `i` below
    /// `ROUND / ROWS`.
    unsafe fn weights(from: &Weights, row: usize, i: usize) -> Self::X;
}

/// Weights of a round, in the order and type the product wants.
#[repr(align(64))]
pub(super) struct Weights(pub(super) [u8; BLOCK * ROUND * 4]);

/// Rows of type `E`, multiplied as f32.
pub(super) struct Floats<E>(std::marker::PhantomData<E>);

/// Up to 16 elements from `at` on, then zeros.
///
/// # Safety
/// The CPU must have AVX-512 F, BW, DQ and VL; `row` must be readable for the smaller of `n` and 16
/// elements from `at` on.
#[inline(always)]
unsafe fn load_some<E: Elem>(row: *const u8, at: usize, n: usize) -> __m512 {
    // SAFETY: the caller vouches for `n` elements.
    unsafe {
        match n {
            0 => _mm512_setzero_ps(),
            1..16 => E::load_part::<Avx512>(row, at, n),
            _ => E::load::<Avx512>(row, at),
        }
    }
}

impl<E: Elem> Product for Floats<E> {
    const STEP: usize = 16;
    const SIZE: usize = E::SIZE;
    const ROWS: usize = 1;
    type X = __m512;

    #[inline(always)]
    unsafe fn load_q(q: *const u8, at: usize) -> __m512 {
        // SAFETY: by the trait's contract (so below).
        unsafe { _mm512_loadu_ps(q.cast::<f32>().add(at)) }
    }
    #[inline(always)]
    unsafe fn load_k(row: *const u8, at: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { E::load::<Avx512>(row, at) }
    }
    #[inline(always)]
    unsafe fn load_k_part(row: *const u8, at: usize, n: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { E::load_part::<Avx512>(row, at, n) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512, q: __m512, k: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(q, k, acc) }
    }
    #[inline(always)]
    unsafe fn load_v(v: *const *const u8, at: usize, n: usize) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe {
            if n == WIDTH {
                return [E::load::<Avx512>(*v, at), E::load::<Avx512>(*v, at + 16)];
            }
            [load_some::<E>(*v, at, n), load_some::<E>(*v, at + 16, n.saturating_sub(16))]
        }
    }
    #[inline(always)]
    unsafe fn put_weights(to: &mut Weights, i: usize, w: __m512) {
        // SAFETY: as above; four registers fill the buffer.
        unsafe { _mm512_storeu_ps(to.0.as_mut_ptr().cast::<f32>().add(16 * i), w) }
    }
    #[inline(always)]
    unsafe fn weights(from: &Weights, row: usize, i: usize) -> __m512 {
        // SAFETY: as above; rows and tokens of a round.
        unsafe {
            let at = from.0.as_ptr().cast::<f32>().add(i / 4 * 16 + row * 4 + i % 4);
            _mm512_set1_ps(*at)
        }
    }
}
