//! Dot products of query rows with rows given by pointer: the one primitive behind scores of
//! tokens (rows are keys) and of pages (rows are summaries).

use half::bf16;

use crate::arch::{self, BLOCK, Dots, Loops};
use crate::{DType, Isa};

/// Query rows made ready for dot products with rows of one element type.
#[derive(Clone)]
pub struct QueryRows {
    loops: Loops,
    data: Vec<u32>,
    rows: usize,
    dim: usize,
    stride: usize,
}

impl std::fmt::Debug for QueryRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryRows").field("rows", &self.rows).field("dim", &self.dim).finish()
    }
}

impl QueryRows {
    /// Prepares `q`, `[rows, dim]` f32, for rows of `dtype`.
    ///
    /// At level [`Isa::Avx512Bf16`] with bf16 rows the queries are rounded to bf16 unless
    /// `precise` is set; products are summed in f32 either way.
    ///
    /// # Panics
    /// If `q` is not a whole number of rows of `dim >= 1` elements.
    #[must_use]
    pub fn new(isa: Isa, dtype: DType, q: &[f32], dim: usize, precise: bool) -> QueryRows {
        assert!(dim > 0 && q.len().is_multiple_of(dim), "{} elements in rows of {dim}", q.len());
        let loops = arch::table(isa, dtype, precise);
        let mut rows = QueryRows { loops, data: Vec::new(), rows: 0, dim, stride: 0 };
        rows.refill(q.chunks(dim));
        rows
    }

    pub(crate) fn empty(loops: Loops, dim: usize) -> QueryRows {
        QueryRows { loops, data: Vec::new(), rows: 0, dim, stride: 0 }
    }

    /// Whether these buffers were made for the same loops and dimension.
    pub(crate) fn fits(&self, loops: &Loops, dim: usize) -> bool {
        self.dim == dim && std::ptr::fn_addr_eq(self.loops.dots, loops.dots)
    }

    /// Replaces the rows, keeping the buffer.
    pub(crate) fn refill<'a>(&mut self, rows: impl Iterator<Item = &'a [f32]>) {
        self.stride = self.dim.next_multiple_of(32);
        self.rows = 0;
        self.data.clear();
        let words = if self.loops.pairs { self.stride / 2 } else { self.stride };
        for row in rows {
            let at = self.data.len();
            self.data.resize(at + words, 0);
            if self.loops.pairs {
                let out: &mut [u16] = bytemuck::cast_slice_mut(&mut self.data[at..]);
                out.iter_mut().zip(row).for_each(|(o, &x)| *o = bf16::from_f32(x).to_bits());
            } else {
                let out: &mut [f32] = bytemuck::cast_slice_mut(&mut self.data[at..]);
                out[..row.len()].copy_from_slice(row);
            }
            self.rows += 1;
        }
        self.data.resize(self.rows.next_multiple_of(BLOCK) * words, 0);
    }

    /// The prepared rows, `[rows][stride]`, padded with zeros to whole blocks, and the stride.
    pub(crate) fn data(&self) -> (*const u8, usize) {
        (self.data.as_ptr().cast(), self.stride)
    }

    /// Number of query rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// `out[r * stride + i] = q[r] . row(ptrs[i])`: raw dot products, summed in f32.
    ///
    /// # Panics
    /// If `out` is too short.
    ///
    /// # Safety
    /// Every pointer must be readable for `dim` elements of the dtype given to [`QueryRows::new`].
    pub unsafe fn dots(&self, ptrs: &[*const u8], out: &mut [f32], stride: usize) {
        if self.rows == 0 || ptrs.is_empty() {
            return;
        }
        self.check_out(ptrs.len(), out.len(), stride);
        let (q, q_stride) = self.data();
        let (rows, dim) = (self.rows, self.dim);
        let out = out.as_mut_ptr();
        let x = Dots { q, q_stride, rows, dim, keys: ptrs, later: ptrs, out, stride };
        // SAFETY: pointers by the caller's promise, output just checked, queries padded by `refill`;
        // the table only offers levels this CPU has.
        unsafe { (self.loops.dots)(&x) }
    }

    fn check_out(&self, tokens: usize, len: usize, stride: usize) {
        assert!(
            stride >= tokens && len >= (self.rows - 1) * stride + tokens,
            "{len} scores for {} rows of {tokens} at stride {stride}",
            self.rows,
        );
    }
}
