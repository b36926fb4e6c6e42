//! The inner loops over a tile of row pointers, written once for every instruction set and
//! element type.

use super::simd::{Elem, Simd};
use super::tile::{Ahead, BLOCK, Dots, Step, TILE};

const LOG2E: f32 = std::f32::consts::LOG2_E;

/// `out[r * stride + t] = q[r] . row(t)` for a block of R query rows and T tokens.
///
/// # Safety
/// The CPU must have the features of `S`; `q` must be readable for `R` rows, `q_stride` apart, of
/// `dim` numbers rounded up to `S::N`, `ptrs` for `T` pointers, and each of these for `dim` elements;
/// `out` must be writable for `R` rows, `stride` apart, of `T` numbers.
#[inline(always)]
unsafe fn dot_block<S: Simd, E: Elem, const R: usize, const T: usize, const RT: usize>(
    q: *const f32,
    q_stride: usize,
    dim: usize,
    ptrs: *const *const u8,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: by the function's contract.
    unsafe {
        let mut acc = [S::splat(0.0); RT];
        let rows = *ptrs.cast::<[*const u8; T]>();
        let full = dim / S::N * S::N;
        let mut c = 0;
        while c < full {
            let mut k = [S::splat(0.0); T];
            for t in 0..T {
                k[t] = E::load::<S>(rows[t], c);
            }
            for r in 0..R {
                let x = S::load(q.add(r * q_stride + c));
                for t in 0..T {
                    acc[r * T + t] = S::fma(x, k[t], acc[r * T + t]);
                }
            }
            c += S::N;
        }
        if c < dim {
            let mut k = [S::splat(0.0); T];
            for t in 0..T {
                k[t] = E::load_part::<S>(rows[t], c, dim - c);
            }
            for r in 0..R {
                let x = S::load(q.add(r * q_stride + c));
                for t in 0..T {
                    acc[r * T + t] = S::fma(x, k[t], acc[r * T + t]);
                }
            }
        }
        let mut sums = [0f32; RT];
        S::sums(&acc, &mut sums);
        for r in 0..R {
            for t in 0..T {
                *out.add(r * stride + t) = sums[r * T + t];
            }
        }
    }
}

/// All tokens of a tile for R query rows; asks for the rows of `later` meanwhile, of which the tile
/// is the first part.
///
/// # Safety
/// As for [`dot_block`], with the pointers and numbers of all of `ptrs`.
#[inline(always)]
unsafe fn dot_rows<S: Simd, E: Elem, const R: usize, const T: usize, const RT: usize>(
    q: *const f32,
    q_stride: usize,
    dim: usize,
    ptrs: &[*const u8],
    later: &[*const u8],
    out: *mut f32,
    stride: usize,
) {
    let mut ahead = Ahead::new(later, dim, E::SIZE);
    let lines = T * (dim * E::SIZE).div_ceil(64);
    let mut t = 0;
    // SAFETY: by the function's contract; t stays inside `ptrs`.
    unsafe {
        while t + T <= ptrs.len() {
            if !later.is_empty() {
                ahead.touch(lines);
            }
            let at = ptrs.as_ptr().add(t);
            dot_block::<S, E, R, T, RT>(q, q_stride, dim, at, out.add(t), stride);
            t += T;
        }
        while t < ptrs.len() {
            let at = ptrs.as_ptr().add(t);
            dot_block::<S, E, R, 1, R>(q, q_stride, dim, at, out.add(t), stride);
            t += 1;
        }
    }
}

/// Dot products; queries are f32.
///
/// # Safety
/// The CPU must have the features of `S`; `x` must be as [`Dots`] says, with queries in f32.
#[inline(always)]
pub(crate) unsafe fn dots<S: Simd, E: Elem>(x: &Dots) {
    let (dim, stride) = (x.dim, x.stride);
    for r in (0..x.rows).step_by(4) {
        let later = if r == 0 { x.later } else { &[] };
        // SAFETY: by the function's contract; r stays below `rows`.
        unsafe {
            let (q, o) = (x.q.cast::<f32>().add(r * x.q_stride), x.out.add(r * stride));
            match x.rows - r {
                1 => dot_rows::<S, E, 1, 8, 8>(q, x.q_stride, dim, x.keys, later, o, stride),
                2 => dot_rows::<S, E, 2, 4, 8>(q, x.q_stride, dim, x.keys, later, o, stride),
                3 => dot_rows::<S, E, 3, 2, 6>(q, x.q_stride, dim, x.keys, later, o, stride),
                _ => dot_rows::<S, E, 4, 2, 8>(q, x.q_stride, dim, x.keys, later, o, stride),
            }
        }
    }
}

/// `o[r][c..] = o[r][c..] * alpha[r] + sum_t p[r][t] * row(t)[c..]` for R rows and C vectors.
///
/// # Safety
/// The CPU must have the features of `S`; `p` must be readable for `R` rows, `TILE` apart, of
/// `ptrs.len()` numbers, `alpha` for `R` numbers, every row of `ptrs` for `C * S::N` elements from `c`
/// on; `o` must be readable and writable for `R` rows, `o_stride` apart, of as many numbers from `c`
/// on. Of the last vector of a row `part < S::N` elements are read (0: all).
#[inline(always)]
unsafe fn acc_block<S: Simd, E: Elem, const R: usize, const C: usize>(
    p: *const f32,
    ptrs: &[*const u8],
    mut ahead: Option<&mut Ahead>,
    c: usize,
    part: usize,
    alpha: *const f32,
    o: *mut f32,
    o_stride: usize,
) {
    // SAFETY: by the function's contract.
    unsafe {
        let mut acc = [[S::splat(0.0); C]; R];
        for (t, &row) in ptrs.iter().enumerate() {
            if (c * E::SIZE).is_multiple_of(64)
                && let Some(ahead) = &mut ahead
            {
                ahead.touch(1);
            }
            let mut v = [S::splat(0.0); C];
            for j in 0..C {
                v[j] = if part > 0 && j + 1 == C {
                    E::load_part::<S>(row, c + j * S::N, part)
                } else {
                    E::load::<S>(row, c + j * S::N)
                };
            }
            for r in 0..R {
                let w = S::splat(*p.add(r * TILE + t));
                for j in 0..C {
                    acc[r][j] = S::fma(w, v[j], acc[r][j]);
                }
            }
        }
        for r in 0..R {
            let a = S::splat(*alpha.add(r));
            for j in 0..C {
                let at = o.add(r * o_stride + c + j * S::N);
                S::store(at, S::fma(a, S::load(at), acc[r][j]));
            }
        }
    }
}

/// [`acc_block`] over all channels.
///
/// # Safety
/// The CPU must have the features of `S`; `p` must be readable for `R` rows, `TILE` apart, of
/// `ptrs.len()` numbers, `alpha` for `R` numbers, every row of `ptrs` for `dim` elements; `o` must
/// be readable and writable for `R` rows, `o_stride` apart, of `dim` numbers rounded up to `S::N`.
#[inline(always)]
unsafe fn acc_rows<S: Simd, E: Elem, const R: usize>(
    p: *const f32,
    ptrs: &[*const u8],
    mut ahead: Option<Ahead>,
    dim: usize,
    alpha: *const f32,
    o: *mut f32,
    o_stride: usize,
) {
    let mut c = 0;
    // SAFETY: by the contract of `accumulate`; c stays below the padded dim.
    unsafe {
        while c + 2 * S::N <= dim {
            acc_block::<S, E, R, 2>(p, ptrs, ahead.as_mut(), c, 0, alpha, o, o_stride);
            c += 2 * S::N;
        }
        while c < dim {
            let part = if c + S::N <= dim { 0 } else { dim - c };
            acc_block::<S, E, R, 1>(p, ptrs, ahead.as_mut(), c, part, alpha, o, o_stride);
            c += S::N;
        }
    }
}

/// Weighted sum of value rows: `o[r] = o[r] * alpha[r] + sum_t s[r][t] * row(t)`.
///
/// # Safety
/// As for [`attend`].
#[inline(always)]
unsafe fn accumulate<S: Simd, E: Elem>(x: &mut Step) {
    let (values, dim, o_stride) = (&x.v[..x.n], x.dim_v, x.o_stride);
    let mut first = true;
    for r in (0..x.rows).step_by(BLOCK) {
        if x.seen(r) == 0 {
            continue;
        }
        let ahead = || first.then(|| Ahead::new(x.v, dim, E::SIZE));
        // SAFETY: by the function's contract; r stays below `rows`.
        unsafe {
            let (p, a) = (x.s.as_ptr().add(r * TILE), x.alpha.as_ptr().add(r));
            let o = x.o.as_mut_ptr().add(r * o_stride);
            match x.rows - r {
                1 => acc_rows::<S, E, 1>(p, values, ahead(), dim, a, o, o_stride),
                2 => acc_rows::<S, E, 2>(p, values, ahead(), dim, a, o, o_stride),
                3 => acc_rows::<S, E, 3>(p, values, ahead(), dim, a, o, o_stride),
                _ => acc_rows::<S, E, 4>(p, values, ahead(), dim, a, o, o_stride),
            }
        }
        first = false;
    }
}

/// One tile of attention: scores, softmax step, weighted sum.
///
/// # Safety
/// The CPU must have the features of `S`; `x` must be as [`Step`] says, with queries in f32.
#[inline(always)]
pub(crate) unsafe fn attend<S: Simd, E: Elem>(x: &mut Step) {
    // SAFETY: by the function's contract; rows of a block that sees nothing keep old scores, which
    // their masks hide.
    unsafe {
        let mut later: &[*const u8] = x.k;
        for r in (0..x.rows).step_by(BLOCK) {
            if x.seen(r) == 0 {
                continue;
            }
            dots::<S, E>(&Dots {
                q: x.q.add(r * x.q_stride * size_of::<f32>()),
                q_stride: x.q_stride,
                rows: BLOCK.min(x.rows - r),
                dim: x.dim_k,
                keys: &x.k[..x.n],
                later,
                out: x.s.as_mut_ptr().add(r * TILE),
                stride: TILE,
            });
            later = &[];
        }
        softmax::<S>(x);
        accumulate::<S, E>(x);
    }
}

/// `cap * tanh(x / cap)` by one exponential; NaN stays NaN.
///
/// # Safety
/// The CPU must have the features of `S`.
#[inline(always)]
pub(crate) unsafe fn soft_cap<S: Simd>(x: S::F, cap: f32) -> S::F {
    // SAFETY: the caller enabled the instruction set.
    unsafe {
        let y = S::mul(x, S::splat(2.0 * LOG2E / cap));
        let e = S::exp2(S::min(S::splat(60.0), y));
        let one = S::splat(1.0);
        S::mul(S::splat(cap), S::div(S::sub(e, one), S::add(e, one)))
    }
}

/// One online-softmax step: turns scores into weights relative to the new maximum, updates the
/// maximum, the sum and the rescale factor. Masked and padding tokens get weight 0.
///
/// # Safety
/// As for [`attend`].
#[inline(always)]
unsafe fn softmax<S: Simd>(x: &mut Step) {
    let padded = x.n.next_multiple_of(16);
    for r in 0..x.rows {
        let s = &mut x.s[r * TILE..(r + 1) * TILE];
        // SAFETY: by the function's contract; `padded` <= TILE is a multiple of every S::N.
        unsafe { shape::<S>(&mut s[..padded], x.scale, x.cap) }
        // After the cap, which would lift a hidden token to `-cap`.
        s[x.n..padded].fill(f32::NEG_INFINITY);
        if let Some(masks) = x.masks {
            mask_row(&mut s[..x.n], masks[r]);
        }
        // SAFETY: as above.
        unsafe {
            let mut top = S::splat(f32::NEG_INFINITY);
            for t in (0..padded).step_by(S::N) {
                top = S::max(S::load(s.as_ptr().add(t)), top);
            }
            let old = x.m[r];
            let new = old.max(S::hmax(top));
            let reference = if new == f32::NEG_INFINITY { 0.0 } else { new };
            let mut sum = S::splat(0.0);
            for t in (0..padded).step_by(S::N) {
                let at = s.as_mut_ptr().add(t);
                let p = S::exp2(S::sub(S::load(at), S::splat(reference)));
                S::store(at, p);
                sum = S::add(sum, p);
            }
            let alpha = if new == old { 1.0 } else { (old - reference).exp2() };
            x.alpha[r] = alpha;
            x.l[r] = x.l[r] * alpha + S::sum(sum);
            x.m[r] = new;
        }
    }
}

/// Scaled and capped scores in base 2.
///
/// # Safety
/// The CPU must have the features of `S`; the length of `s` must be a multiple of `S::N`.
#[inline(always)]
pub(super) unsafe fn shape<S: Simd>(s: &mut [f32], scale: f32, cap: f32) {
    for t in (0..s.len()).step_by(S::N) {
        // SAFETY: the caller enabled the instruction set and passes whole vectors.
        unsafe {
            let at = s.as_mut_ptr().add(t);
            let mut v = S::mul(S::load(at), S::splat(scale));
            if cap > 0.0 {
                v = soft_cap::<S>(v, cap);
            }
            S::store(at, S::mul(v, S::splat(LOG2E)));
        }
    }
}

/// Hides the tokens whose bit is clear.
#[inline(always)]
fn mask_row(s: &mut [f32], mask: u64) {
    if mask.trailing_ones() as usize >= s.len() {
        return;
    }
    for (t, x) in s.iter_mut().enumerate() {
        if mask >> t & 1 == 0 {
            *x = f32::NEG_INFINITY;
        }
    }
}
