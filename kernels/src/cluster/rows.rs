//! Keys or values of one KV head, given by pointers.

use std::marker::PhantomData;

use crate::{DIM_MAX, DType, Error};

/// Rows of one KV head in token order: keys or values, anywhere in memory.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    ptrs: &'a [*const u8],
    dtype: DType,
    dim: usize,
    _life: PhantomData<&'a [u8]>,
}

// SAFETY: rows are a shared borrow of plain numbers.
unsafe impl Send for Rows<'_> {}
// SAFETY: as above; nothing is written through them.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    /// Rows of `dim` elements of `dtype`.
    ///
    /// # Errors
    /// [`Error::Range`] if `dim` is outside 1..=576 or there are more rows than `u32` counts.
    ///
    /// # Safety
    /// Every pointer must be readable for a row, unchanged for `'a`. No alignment is needed.
    pub unsafe fn new(dtype: DType, dim: usize, ptrs: &'a [*const u8]) -> Result<Rows<'a>, Error> {
        if dim == 0 || dim > DIM_MAX {
            return Err(Error::range("dim", format!("1..={DIM_MAX}"), dim));
        }
        if u32::try_from(ptrs.len()).is_err() {
            return Err(Error::range("rows", format!("0..={}", u32::MAX), ptrs.len()));
        }
        Ok(Rows { ptrs, dtype, dim, _life: PhantomData })
    }

    /// Rows that lie one behind the other in a slice, `[rows, dim]`; they are listed in `ptrs`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the slice does not hold whole rows; otherwise as [`Rows::new`].
    pub fn contiguous<T: crate::Element>(
        data: &'a [T],
        dim: usize,
        ptrs: &'a mut Vec<*const u8>,
    ) -> Result<Rows<'a>, Error> {
        if dim == 0 || !data.len().is_multiple_of(dim) {
            return Err(Error::shape("rows", format!("[rows, {dim}]"), data.len()));
        }
        ptrs.clear();
        ptrs.extend(data.chunks_exact(dim).map(|row| row.as_ptr().cast::<u8>()));
        // SAFETY: each pointer starts a whole row of `data`, which is borrowed for `'a`.
        unsafe { Rows::new(T::DTYPE, dim, ptrs) }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ptrs.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ptrs.is_empty()
    }

    /// Elements of a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Type of the elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows `from..to` of these.
    ///
    /// # Panics
    /// If the range is not inside.
    #[must_use]
    pub fn slice(&self, from: usize, to: usize) -> Rows<'a> {
        Rows { ptrs: &self.ptrs[from..to], ..*self }
    }

    pub(super) fn ptr(&self, row: usize) -> *const u8 {
        self.ptrs[row]
    }
}
