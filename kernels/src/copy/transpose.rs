//! Transposing a matrix of small elements: rows of keys to the order that an engine's kernels read, and
//! back.

use std::ops::Range;

/// Writes element `c` of row `r` of `from` as element `r` of row `c` of `to`: `rows x cols` elements of
/// `size` bytes, side by side in a row, rows `from_row` and `to_row` bytes apart (wrapping). On x86-64 by
/// registers of 16 bytes, which every such CPU has.
///
/// # Panics
/// If `size` is not 1, 2, 4 or 8.
///
/// # Safety
/// Every element must be readable in `from` and writable in `to`, and none of them overlap.
pub unsafe fn transpose_raw(
    size: usize,
    (rows, cols): (usize, usize),
    (from, from_row): (*const u8, usize),
    (to, to_row): (*mut u8, usize),
) {
    let matrix = Matrix { rows, cols, from, from_row, to, to_row };
    // SAFETY: by the caller.
    unsafe {
        match size {
            1 => matrix.transpose::<1>(),
            2 => matrix.transpose::<2>(),
            4 => matrix.transpose::<4>(),
            8 => matrix.transpose::<8>(),
            _ => panic!("expected elements of 1, 2, 4 or 8 bytes, found {size}"),
        }
    }
}

struct Matrix {
    rows: usize,
    cols: usize,
    from: *const u8,
    from_row: usize,
    to: *mut u8,
    to_row: usize,
}

impl Matrix {
    fn from<const S: usize>(&self, row: usize, col: usize) -> *const u8 {
        self.from.wrapping_add(row.wrapping_mul(self.from_row)).wrapping_add(col * S)
    }

    fn to<const S: usize>(&self, row: usize, col: usize) -> *mut u8 {
        self.to.wrapping_add(col.wrapping_mul(self.to_row)).wrapping_add(row * S)
    }

    /// # Safety
    /// As [`transpose_raw`], with elements of `S` bytes.
    unsafe fn transpose<const S: usize>(&self) {
        // SAFETY: what is done, and the rest of its rows, and the other rows.
        unsafe {
            let (rows, cols) = self.in_registers::<S>();
            self.plain::<S>(0..rows, cols..self.cols);
            self.plain::<S>(rows..self.rows, 0..self.cols);
        }
    }

    /// # Safety
    /// As [`transpose_raw`], with elements of `S` bytes; the ranges lie inside.
    unsafe fn plain<const S: usize>(&self, rows: Range<usize>, cols: Range<usize>) {
        for col in cols {
            for row in rows.clone() {
                // SAFETY: by the caller; bytes need no alignment.
                unsafe {
                    *self.to::<S>(row, col).cast::<[u8; S]>() =
                        *self.from::<S>(row, col).cast::<[u8; S]>();
                }
            }
        }
    }

    /// Transposes what fills registers: how many of the first rows, and how many of their columns.
    ///
    /// # Safety
    /// As [`transpose_raw`], with elements of `S` bytes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn in_registers<const S: usize>(&self) -> (usize, usize) {
        let side = REGISTER / S;
        let is_narrow = |n: usize, step: usize| n < side && step == n * S;
        // SAFETY: by the caller.
        unsafe {
            match (self.rows, self.cols) {
                (rows @ 2, _) if is_narrow(rows, self.to_row) => self.few_rows::<S, 2>(),
                (rows @ 4, _) if is_narrow(rows, self.to_row) => self.few_rows::<S, 4>(),
                (_, cols @ 2) if is_narrow(cols, self.from_row) => self.few_cols::<S, 2>(),
                (_, cols @ 4) if is_narrow(cols, self.from_row) => self.few_cols::<S, 4>(),
                _ => self.squares::<S>(),
            }
        }
    }

    /// Squares whose rows fill a register.
    ///
    /// # Safety
    /// As [`transpose_raw`], with elements of `S` bytes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn squares<const S: usize>(&self) -> (usize, usize) {
        let side = REGISTER / S;
        let (rows, cols) = (self.rows / side * side, self.cols / side * side);
        for row in (0..rows).step_by(side) {
            for col in (0..cols).step_by(side) {
                let from = (self.from::<S>(row, col), self.from_row);
                let to = (self.to::<S>(row, col), self.to_row);
                // SAFETY: a square inside both.
                unsafe {
                    match S {
                        1 => lines::<S, 16>(4, from, to),
                        2 => lines::<S, 8>(3, from, to),
                        4 => lines::<S, 4>(2, from, to),
                        _ => lines::<S, 2>(1, from, to),
                    }
                }
            }
        }
        (rows, cols)
    }

    /// `N` rows, fewer than fill a register, whose columns become one run.
    ///
    /// # Safety
    /// As [`transpose_raw`], with elements of `S` bytes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn few_rows<const S: usize, const N: usize>(&self) -> (usize, usize) {
        let side = REGISTER / S;
        let cols = self.cols / side * side;
        for col in (0..cols).step_by(side) {
            let from = (self.from::<S>(0, col), self.from_row);
            // SAFETY: a register of each row; as many in the run.
            unsafe { lines::<S, N>(N.ilog2(), from, (self.to::<S>(0, col), REGISTER)) }
        }
        (N, cols)
    }

    /// [`Matrix::few_rows`] the other way round: `N` columns of one run.
    ///
    /// # Safety
    /// As [`transpose_raw`], with elements of `S` bytes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn few_cols<const S: usize, const N: usize>(&self) -> (usize, usize) {
        let side = REGISTER / S;
        let rows = self.rows / side * side;
        for row in (0..rows).step_by(side) {
            let to = (self.to::<S>(row, 0), self.to_row);
            // SAFETY: as many registers of the run as there are columns; one of each of these.
            unsafe { lines::<S, N>(side.ilog2(), (self.from::<S>(row, 0), REGISTER), to) }
        }
        (rows, N)
    }

    /// # Safety
    /// None.
    #[cfg(not(target_arch = "x86_64"))]
    unsafe fn in_registers<const S: usize>(&self) -> (usize, usize) {
        (0, 0)
    }
}

/// Bytes of a register that every x86-64 CPU has.
#[cfg(target_arch = "x86_64")]
const REGISTER: usize = 16;

/// Reads `N` registers, deals their elements out `rounds` times, and writes as many. A round puts the
/// elements of the first and of the second half in turns, which moves the highest bit of an element's
/// number to the lowest place: as many rounds as a row's number has bits transpose.
///
/// # Safety
/// All registers must be readable and writable at their steps, and not overlap.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn lines<const S: usize, const N: usize>(
    rounds: u32,
    (from, from_step): (*const u8, usize),
    (to, to_step): (*mut u8, usize),
) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_storeu_si128};
    // SAFETY: SSE2 is part of x86-64; memory by the caller.
    unsafe {
        let mut lines: [_; N] = std::array::from_fn(|i| {
            _mm_loadu_si128(from.wrapping_add(i.wrapping_mul(from_step)).cast())
        });
        for _ in 0..rounds {
            let old = lines;
            for i in 0..N / 2 {
                (lines[2 * i], lines[2 * i + 1]) = dealt::<S>(old[i], old[i + N / 2]);
            }
        }
        for (i, line) in lines.into_iter().enumerate() {
            _mm_storeu_si128(to.wrapping_add(i.wrapping_mul(to_step)).cast(), line);
        }
    }
}

/// The elements of two rows in turns, in two registers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn dealt<const S: usize>(
    a: std::arch::x86_64::__m128i,
    b: std::arch::x86_64::__m128i,
) -> (std::arch::x86_64::__m128i, std::arch::x86_64::__m128i) {
    use std::arch::x86_64::{
        _mm_unpackhi_epi8, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64,
        _mm_unpacklo_epi8, _mm_unpacklo_epi16, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
    };
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        match S {
            1 => (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)),
            2 => (_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b)),
            4 => (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b)),
            _ => (_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn side() -> impl Strategy<Value = usize> {
        prop_oneof![0usize..40, prop::sample::select(vec![2usize, 4, 8])]
    }

    fn gap() -> impl Strategy<Value = usize> {
        prop_oneof![Just(0), 1usize..20]
    }

    proptest! {
        #[test]
        fn every_element_goes_to_its_place_and_nothing_else_changes(
            log in 0u32..4,
            rows in side(),
            cols in side(),
            gaps in (gap(), gap()),
        ) {
            let size = 1usize << log;
            let (from_row, to_row) = (cols * size + gaps.0, rows * size + gaps.1);
            let from: Vec<u8> = (0..rows * from_row).map(|i| (i * 37 % 251) as u8).collect();
            let mut to = vec![255; cols * to_row];
            let mut expected = to.clone();
            for (row, col) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
                let (at, place) = (row * from_row + col * size, col * to_row + row * size);
                expected[place..place + size].copy_from_slice(&from[at..at + size]);
            }
            // SAFETY: both are as long as their rows.
            unsafe {
                transpose_raw(size, (rows, cols), (from.as_ptr(), from_row), (to.as_mut_ptr(), to_row));
            }
            prop_assert_eq!(to, expected);
        }
    }
}
