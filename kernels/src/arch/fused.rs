//! AVX-512 attention over a tile in one pass: sixteen tokens for four query rows at a time go
//! through scores, softmax step and weighted sum while their rows are in L1.
//!
//! Scores stay in registers with lanes `[query row][token]`, four tokens to a register, so the
//! softmax of four rows costs what one would. Short rounds also keep the requests for memory
//! even, see [`touch`].

use std::arch::x86_64::*;

use super::avx512::{Avx512, sum16};
use super::loops;
use super::product::{Product, ROUND, WIDTH, Weights};
use super::simd::Simd;
use super::tile::{Ahead, BLOCK, Dots, Step, zero_row};

/// Adds the products of four query rows and four keys at channel `c`.
///
/// # Safety
/// The CPU must have the features of `P`; `q` must be readable for four query rows, `q_stride`
/// elements apart, of `P::STEP` elements from `c` on.
#[inline(always)]
unsafe fn multiply<P: Product>(
    acc: &mut [__m512; 16],
    q: *const u8,
    q_stride: usize,
    c: usize,
    keys: [P::X; 4],
) {
    for r in 0..4 {
        // SAFETY: by the contract of `attend`.
        unsafe {
            let x = P::load_q(q, r * q_stride + c);
            for t in 0..4 {
                acc[r * 4 + t] = P::dot(acc[r * 4 + t], x, keys[t]);
            }
        }
    }
}

/// Raw scores of four query rows and four keys, lanes `[row][token]`.
///
/// # Safety
/// The CPU must have the features of `P`; `q` must be readable for four query rows, `q_stride`
/// elements apart, of `dim` elements rounded up to `P::STEP`, and every key for `dim` elements.
#[inline(always)]
unsafe fn scores<P: Product, const TOUCH: bool>(
    q: *const u8,
    q_stride: usize,
    dim: usize,
    [k0, k1, k2, k3]: [*const u8; 4],
    ahead: &mut Ahead,
) -> __m512 {
    // SAFETY: by the contract of `attend`.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); 16];
        for c in (0..dim).step_by(P::STEP) {
            let keys = if c + P::STEP <= dim {
                [P::load_k(k0, c), P::load_k(k1, c), P::load_k(k2, c), P::load_k(k3, c)]
            } else {
                let n = dim - c;
                [
                    P::load_k_part(k0, c, n),
                    P::load_k_part(k1, c, n),
                    P::load_k_part(k2, c, n),
                    P::load_k_part(k3, c, n),
                ]
            };
            multiply::<P>(&mut acc, q, q_stride, c, keys);
            if TOUCH && (c * P::SIZE).is_multiple_of(64) {
                ahead.touch(4);
            }
        }
        sum16(&acc)
    }
}

/// Adds the round's weighted rows to `C * WIDTH` channels of four output rows, or to `n` channels
/// if `PART`.
///
/// # Safety
/// The CPU must have the features of `P`; `v` must be readable for `ROUND` pointers, and each of
/// these, from channel `c` on, for `C * WIDTH` elements, or `n <= WIDTH` with `PART` and `C` 1; `o`
/// must be readable and writable for `BLOCK` rows, `o_stride` apart, of `C * WIDTH` numbers from `c`
/// on.
#[inline(always)]
unsafe fn weigh<P: Product, const C: usize, const PART: bool, const TOUCH: bool>(
    weights: &Weights,
    v: *const *const u8,
    c: usize,
    n: usize,
    ahead: &mut Ahead,
    o: *mut f32,
    o_stride: usize,
) {
    // SAFETY: by the contract of `attend`.
    unsafe {
        // Opaque, or the compiler broadcasts all weights of the round ahead of the channels, into
        // more registers than there are.
        let weights = std::hint::black_box(weights);
        let mut acc = [[[_mm512_setzero_ps(); 2]; C]; BLOCK];
        for r in 0..BLOCK {
            for j in 0..C {
                for h in 0..2 {
                    let at = o.add(r * o_stride + c + j * WIDTH + h * 16);
                    acc[r][j][h] = _mm512_loadu_ps(at);
                }
            }
        }
        let n = if PART { n } else { WIDTH };
        let lines =
            P::ROWS * if PART { (n * P::SIZE).div_ceil(64) } else { C * WIDTH * P::SIZE / 64 };
        for i in 0..ROUND / P::ROWS {
            let v = v.add(P::ROWS * i);
            let mut values = [P::load_v(v, c, n); C];
            for j in 1..C {
                values[j] = P::load_v(v, c + j * WIDTH, n);
            }
            for r in 0..BLOCK {
                if TOUCH {
                    // A share of the lines with each query row.
                    ahead.touch((r + 1) * lines / BLOCK - r * lines / BLOCK);
                }
                let w = P::weights(weights, r, i);
                for j in 0..C {
                    for h in 0..2 {
                        acc[r][j][h] = P::dot(acc[r][j][h], w, values[j][h]);
                    }
                }
            }
        }
        for r in 0..BLOCK {
            for j in 0..C {
                for h in 0..2 {
                    let at = o.add(r * o_stride + c + j * WIDTH + h * 16);
                    _mm512_storeu_ps(at, acc[r][j][h]);
                }
            }
        }
    }
}

/// Maximum (in every lane of a row's four) and sum (spread over them) of four query rows.
struct State {
    m: __m512,
    l: __m512,
}

/// Scaled, capped and masked scores in base 2.
///
/// # Safety
/// The CPU must have AVX-512 F, BW, DQ and VL.
#[inline(always)]
unsafe fn shape(z: &mut [__m512; 4], x: &Step, first_row: usize, from: usize) {
    // SAFETY: by the contract of `attend`.
    unsafe {
        let log2e = std::f32::consts::LOG2_E;
        if x.cap > 0.0 {
            for z in z.iter_mut() {
                let capped =
                    loops::soft_cap::<Avx512>(_mm512_mul_ps(*z, Avx512::splat(x.scale)), x.cap);
                *z = _mm512_mul_ps(capped, Avx512::splat(log2e));
            }
        } else {
            for z in z.iter_mut() {
                *z = _mm512_mul_ps(*z, Avx512::splat(x.scale * log2e));
            }
        }
        if x.masks.is_some() || from + ROUND > x.n {
            for (i, z) in z.iter_mut().enumerate() {
                let seen = visible(x, first_row, from + 4 * i);
                *z = _mm512_mask_blend_ps(seen, Avx512::splat(f32::NEG_INFINITY), *z);
            }
        }
    }
}

/// Lanes `[row][token]` of the four tokens from `from` that their row sees.
fn visible(x: &Step, first_row: usize, from: usize) -> u16 {
    let there = x.there();
    let mut lanes = 0;
    for r in 0..BLOCK {
        let seen = x.masks.and_then(|m| m.get(first_row + r)).copied().unwrap_or(u64::MAX) & there;
        lanes |= ((seen >> from & 15) as u16) << (4 * r);
    }
    lanes
}

/// Largest of each row's four lanes, in all four.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
unsafe fn row_max(x: __m512) -> __m512 {
    // SAFETY: the caller enabled AVX-512 (so below).
    unsafe {
        let x = _mm512_max_ps(x, _mm512_permute_ps::<0b10_11_00_01>(x));
        _mm512_max_ps(x, _mm512_permute_ps::<0b01_00_11_10>(x))
    }
}

/// Raises the maximum to that of `z` where it is larger, rescaling sum and output.
///
/// # Safety
/// The CPU must have AVX-512 F, BW, DQ and VL; `o` must be readable and writable for `BLOCK` rows
/// of `o_stride` numbers, a multiple of 16.
#[inline(always)]
unsafe fn raise(state: &mut State, z: &[__m512; 4], o: *mut f32, o_stride: usize) {
    // SAFETY: by the contract of `attend`.
    unsafe {
        let top = _mm512_max_ps(_mm512_max_ps(z[0], z[1]), _mm512_max_ps(z[2], z[3]));
        if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(top, state.m) == 0 {
            return;
        }
        // A NaN score leaves the maximum alone: the weight it becomes carries it on.
        let m = _mm512_max_ps(row_max(top), state.m);
        let alpha = Avx512::exp2(_mm512_sub_ps(state.m, finite(m)));
        let same = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(m, state.m);
        let alpha = _mm512_mask_blend_ps(same, alpha, Avx512::splat(1.0));
        state.m = m;
        state.l = _mm512_mul_ps(state.l, alpha);
        let mut lanes = [0f32; 16];
        _mm512_storeu_ps(lanes.as_mut_ptr(), alpha);
        for r in 0..BLOCK {
            let a = Avx512::splat(lanes[4 * r]);
            for c in (0..o_stride).step_by(16) {
                let at = o.add(r * o_stride + c);
                _mm512_storeu_ps(at, _mm512_mul_ps(a, _mm512_loadu_ps(at)));
            }
        }
    }
}

/// What to subtract from scores: the maximum, or 0 where nothing was seen yet.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
unsafe fn finite(m: __m512) -> __m512 {
    // SAFETY: the caller enabled AVX-512.
    unsafe {
        let none = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(m, Avx512::splat(f32::NEG_INFINITY));
        _mm512_mask_blend_ps(none, m, _mm512_setzero_ps())
    }
}

/// All rounds of the tile for the four query rows from `row`, of which any sees the tokens `seen`.
///
/// # Safety
/// As for [`attend`]; `row` must be a multiple of `BLOCK` below `x.rows`.
#[inline(always)]
unsafe fn block<P: Product, const TOUCH: bool>(x: &mut Step, row: usize, seen: u64) {
    // SAFETY: by the contract of `attend`.
    unsafe {
        let q = query_row::<P>(x.q, x.q_stride, row);
        let o = x.o.as_mut_ptr().add(row * x.o_stride);
        let mut state = load_state(&x.m[row..row + BLOCK], &x.l[row..row + BLOCK]);
        let mut weights = Weights([0; BLOCK * ROUND * 4]);
        for from in (0..x.n).step_by(ROUND) {
            if seen >> from & ((1 << ROUND) - 1) == 0 {
                continue;
            }
            let (k, v) = (x.k.as_ptr().add(from), x.v.as_ptr().add(from));
            let mut z = [_mm512_setzero_ps(); 4];
            let mut ahead = Ahead::new(&x.k[from..], x.dim_k, P::SIZE);
            for i in 0..4 {
                let keys = *k.add(4 * i).cast::<[*const u8; 4]>();
                z[i] = scores::<P, TOUCH>(q, x.q_stride, x.dim_k, keys, &mut ahead);
            }
            shape(&mut z, x, row, from);
            raise(&mut state, &z, o, x.o_stride);
            let m = finite(state.m);
            for i in 0..4 {
                let w = Avx512::exp2(_mm512_sub_ps(z[i], m));
                state.l = _mm512_add_ps(state.l, w);
                P::put_weights(&mut weights, i, w);
            }
            let mut ahead = Ahead::new(&x.v[from..], x.dim_v, P::SIZE);
            let mut c = 0;
            while c + 2 * WIDTH <= x.dim_v {
                weigh::<P, 2, false, TOUCH>(&weights, v, c, WIDTH, &mut ahead, o, x.o_stride);
                c += 2 * WIDTH;
            }
            if c + WIDTH <= x.dim_v {
                weigh::<P, 1, false, TOUCH>(&weights, v, c, WIDTH, &mut ahead, o, x.o_stride);
                c += WIDTH;
            }
            if c < x.dim_v {
                weigh::<P, 1, true, TOUCH>(&weights, v, c, x.dim_v - c, &mut ahead, o, x.o_stride);
            }
        }
        store_state(&state, &mut x.m[row..row + BLOCK], &mut x.l[row..row + BLOCK]);
    }
}

/// The state of four query rows.
///
/// # Safety
/// The CPU must have AVX-512 F; `m` and `l` must have at least four numbers.
#[inline(always)]
unsafe fn load_state(m: &[f32], l: &[f32]) -> State {
    // SAFETY: the caller enabled AVX-512 and passes four lanes of each.
    unsafe {
        let spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        let m = _mm512_castps128_ps512(_mm_loadu_ps(m.as_ptr()));
        let l = _mm512_castps128_ps512(_mm_loadu_ps(l.as_ptr()));
        State {
            m: _mm512_permutexvar_ps(spread, m),
            l: _mm512_maskz_permutexvar_ps(0x1111, spread, l),
        }
    }
}

/// Inverse of [`load_state`], with the sums added up.
///
/// # Safety
/// The CPU must have AVX-512 F; `m` and `l` must have at least four numbers.
#[inline(always)]
unsafe fn store_state(state: &State, m: &mut [f32], l: &mut [f32]) {
    // SAFETY: the caller enabled AVX-512 and passes room for four lanes of each.
    unsafe {
        let l4 = _mm512_add_ps(state.l, _mm512_permute_ps::<0b10_11_00_01>(state.l));
        let l4 = _mm512_add_ps(l4, _mm512_permute_ps::<0b01_00_11_10>(l4));
        let (m4, l4) =
            (_mm512_maskz_compress_ps(0x1111, state.m), _mm512_maskz_compress_ps(0x1111, l4));
        _mm_storeu_ps(m.as_mut_ptr(), _mm512_castps512_ps128(m4));
        _mm_storeu_ps(l.as_mut_ptr(), _mm512_castps512_ps128(l4));
    }
}

/// Query rows are bf16 where a register holds 32 elements, else f32.
///
/// # Safety
/// `q` must point to at least `row` query rows of that type, `q_stride` elements apart.
#[inline(always)]
unsafe fn query_row<P: Product>(q: *const u8, q_stride: usize, row: usize) -> *const u8 {
    // SAFETY: the caller vouches for the row.
    unsafe { q.add(row * q_stride * (64 / P::STEP)) }
}

/// Dot products.
///
/// # Safety
/// The CPU must have the features of `P`; `x` must be as [`Dots`] says, the query rows for the type
/// of `P` and padded to whole blocks.
#[inline(always)]
pub(super) unsafe fn dots<P: Product>(x: &Dots) {
    // SAFETY: by the function's contract.
    unsafe {
        for first in (0..x.rows).step_by(BLOCK) {
            let q = query_row::<P>(x.q, x.q_stride, first);
            let mut ahead = Ahead::new(x.later, x.dim, P::SIZE);
            for (i, keys) in x.keys.chunks(4).enumerate() {
                // No copies of a variable length: each would be a call.
                let four = std::array::from_fn(|t| keys.get(t).copied().unwrap_or(zero_row()));
                let z = match first {
                    0 => scores::<P, true>(q, x.q_stride, x.dim, four, &mut ahead),
                    _ => scores::<P, false>(q, x.q_stride, x.dim, four, &mut ahead),
                };
                let rows = [
                    _mm512_castps512_ps128(z),
                    _mm512_extractf32x4_ps::<1>(z),
                    _mm512_extractf32x4_ps::<2>(z),
                    _mm512_extractf32x4_ps::<3>(z),
                ];
                let there = (1u8 << keys.len()) - 1;
                for (r, row) in rows.into_iter().take(x.rows - first).enumerate() {
                    let to = x.out.add((first + r) * x.stride + 4 * i);
                    _mm_mask_storeu_ps(to, there, row);
                }
            }
        }
    }
}

/// One tile of attention.
///
/// # Safety
/// The CPU must have the features of `P`; `x` must be as [`Step`] says, the query rows for the type
/// of `P`, and what there is per query row padded to whole blocks.
#[inline(always)]
pub(super) unsafe fn attend<P: Product>(x: &mut Step) {
    // SAFETY: by the function's contract.
    unsafe {
        let mut first = true;
        for row in (0..x.rows).step_by(BLOCK) {
            match x.seen(row) {
                0 => continue,
                seen if first => block::<P, true>(x, row, seen),
                // Later blocks find this tile and what was asked for in the caches.
                seen => block::<P, false>(x, row, seen),
            }
            first = false;
        }
    }
}
