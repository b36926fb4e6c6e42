//! Scores of rows against targets, with bounds on their error: the inner loop of clustering.
//!
//! A panel of targets has one target per lane, so the scores of a row come out side by side; a row is
//! read element by element, each of which meets the whole panel. Scores may be rough (rows rounded to
//! bytes), because they come as intervals: whoever wants the best target looks again, exactly, at those
//! whose interval reaches the best lower end.

use super::simd::Simd;

/// Rows of a sweep; buffers of rows are padded to whole sweeps.
pub(crate) const ROWS: usize = 24;
/// Lanes of the widest panel; buffers of targets are padded to a multiple.
pub(crate) const LANES: usize = 32;

/// What the scores of a row need beside its elements.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct RowStats {
    /// Value of one step of the row's elements.
    pub(crate) scale: f32,
    /// At least the norm of what rounding took from the row.
    pub(crate) lost: f32,
    /// At least the norm of the rounded row.
    pub(crate) size: f32,
    /// Where the sum of products begins, for integer elements.
    pub(crate) start: i32,
}

/// The same of targets, one array each per panel: `[scale | bias | lost | size]`, `width` lanes each.
pub(crate) const TARGET_STATS: usize = 4;

/// Scores of up to [`ROWS`] rows against all panels.
pub(crate) struct Sweep<'a> {
    /// `[ROWS]` rows of `row_bytes`, each of `steps` words: an f32, or four i8.
    pub(crate) rows: *const u8,
    pub(crate) row_bytes: usize,
    pub(crate) steps: usize,
    pub(crate) stats: &'a [RowStats],
    /// `[panels][steps][width]` words: f32, or four u8 that are 128 too large.
    pub(crate) panels: *const u32,
    /// `[panels][TARGET_STATS][width]`
    pub(crate) targets: *const f32,
    pub(crate) count: usize,
    /// Upper ends of the scores, `[ROWS][stride]`.
    pub(crate) upper: *mut f32,
    pub(crate) stride: usize,
    /// Best lower end of each row.
    pub(crate) lower: &'a mut [f32; ROWS],
}

/// How elements are multiplied. Only a function that enables the features of `Self` makes the methods
/// inline. Pointers need no alignment.
pub(crate) trait Product {
    /// Lanes of f32.
    type S: Simd;
    /// Sums of products.
    type Sum: Copy;
    /// Words of a row, and of a panel.
    type X: Copy;

    /// What sums of a row begin with.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn start(stats: &RowStats) -> Self::Sum;

    /// One word of a row in every lane.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `p` must be readable for 4 bytes.
    unsafe fn row(p: *const u8) -> Self::X;

    /// A word of each of the lanes' targets.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `p` must be readable for a vector.
    unsafe fn panel(p: *const u32) -> Self::X;

    /// Adds the products.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn add(sum: Self::Sum, row: Self::X, panel: Self::X) -> Self::Sum;

    /// Sums as f32.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn float(sum: Self::Sum) -> <Self::S as Simd>::F;
}

/// Rows and targets in f32.
pub(crate) struct Floats<S>(std::marker::PhantomData<S>);

impl<S: Simd> Product for Floats<S> {
    type S = S;
    type Sum = S::F;
    type X = S::F;

    #[inline(always)]
    unsafe fn start(_: &RowStats) -> S::F {
        // SAFETY: by the trait's contract (so below).
        unsafe { S::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn row(p: *const u8) -> S::F {
        // SAFETY: as above.
        unsafe { S::splat(p.cast::<f32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn panel(p: *const u32) -> S::F {
        // SAFETY: as above.
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn add(sum: S::F, row: S::F, panel: S::F) -> S::F {
        // SAFETY: as above.
        unsafe { S::fma(row, panel, sum) }
    }
    #[inline(always)]
    unsafe fn float(sum: S::F) -> S::F {
        sum
    }
}

/// R rows from `at` against one panel of P vectors.
///
/// # Safety
/// As for [`sweep`].
#[inline(always)]
unsafe fn tile<M: Product, const R: usize, const P: usize>(
    x: &Sweep,
    at: usize,
    panel: usize,
    best: &mut [<M::S as Simd>::F],
) {
    let (lanes, width) = (<M::S as Simd>::N, P * <M::S as Simd>::N);
    // SAFETY: by the function's contract.
    unsafe {
        let mut sums = [[M::start(&RowStats::default()); P]; R];
        for r in 0..R {
            sums[r] = [M::start(x.stats.get_unchecked(at + r)); P];
        }
        let (mut row, mut words) =
            (x.rows.add(at * x.row_bytes), x.panels.add(panel * x.steps * width));
        for _ in 0..x.steps {
            let mut b = [M::panel(words); P];
            for p in 1..P {
                b[p] = M::panel(words.add(p * lanes));
            }
            for r in 0..R {
                let a = M::row(row.add(r * x.row_bytes));
                for p in 0..P {
                    sums[r][p] = M::add(sums[r][p], a, b[p]);
                }
            }
            row = row.add(4);
            words = words.add(width);
        }
        let targets = x.targets.add(panel * TARGET_STATS * width);
        for p in 0..P {
            let of = |i: usize| targets.add(i * width + p * lanes);
            let (scale, bias) = (M::S::load(of(0)), M::S::load(of(1)));
            let (lost, size) = (M::S::load(of(2)), M::S::load(of(3)));
            for r in 0..R {
                let s = x.stats.get_unchecked(at + r);
                let step = M::S::mul(M::S::splat(s.scale), scale);
                let score = M::S::fma(M::float(sums[r][p]), step, bias);
                let error = M::S::mul(M::S::splat(s.size), lost);
                let error = M::S::fma(M::S::splat(s.lost), size, error);
                let out = x.upper.add((at + r) * x.stride + panel * width + p * lanes);
                M::S::store(out, M::S::add(score, error));
                best[at + r] = M::S::max(M::S::sub(score, error), best[at + r]);
            }
        }
    }
}

/// All rows against all panels; R divides [`ROWS`].
///
/// # Safety
/// The instruction set of `M` is enabled; rows, panels and targets are as [`Sweep`] says, `upper` has
/// room for `count` padded to whole panels.
#[inline(always)]
pub(crate) unsafe fn sweep<M: Product, const R: usize, const P: usize>(x: &mut Sweep) {
    let width = P * <M::S as Simd>::N;
    // SAFETY: by the function's contract.
    unsafe {
        let mut best = [M::S::splat(f32::NEG_INFINITY); ROWS];
        for panel in 0..x.count.div_ceil(width) {
            for at in (0..x.stats.len()).step_by(R) {
                tile::<M, R, P>(x, at, panel, &mut best);
            }
        }
        for (lower, &best) in x.lower.iter_mut().zip(&best) {
            *lower = M::S::hmax(best);
        }
    }
}

/// Writes the numbers of those of `count` upper ends that are at least `threshold`, ascending, and
/// returns how many there are.
///
/// # Safety
/// The instruction set of `S` is enabled; `upper` is readable for `count` padded to whole vectors, the
/// padding is below the threshold, and `ids` has room for `count`.
#[inline(always)]
pub(crate) unsafe fn reaching<S: Simd>(
    upper: *const f32,
    count: usize,
    threshold: f32,
    ids: *mut u32,
) -> usize {
    let mut found = 0;
    // SAFETY: by the function's contract.
    unsafe {
        let threshold = S::splat(threshold);
        let mut at = 0;
        while at < count {
            // Hardly any reach it: four at a time until one does.
            while at + 4 * S::N <= count {
                let x = |i: usize| S::load(upper.add(at + i * S::N));
                let top = S::max(S::max(x(0), x(1)), S::max(x(2), x(3)));
                if S::ge(top, threshold) != 0 {
                    break;
                }
                at += 4 * S::N;
            }
            let end = count.min(at + 4 * S::N);
            while at < end {
                let mut bits = S::ge(S::load(upper.add(at)), threshold);
                while bits != 0 {
                    *ids.add(found) = (at as u32) + bits.trailing_zeros();
                    found += 1;
                    bits &= bits - 1;
                }
                at += S::N;
            }
        }
    }
    found
}
