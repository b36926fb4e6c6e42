//! The output, shared by tasks that write different rows.

use std::marker::PhantomData;

use super::Out;
use crate::{DType, convert};

/// Addresses of the output's rows.
#[derive(Clone, Copy)]
pub(crate) struct Sink<'a> {
    o: *mut u8,
    dtype: DType,
    shape: [usize; 3],
    strides: [usize; 2],
    lse2: Option<*mut f32>,
    _life: PhantomData<&'a ()>,
}

// SAFETY: the sink holds the output's unique borrow; `write` demands disjoint rows.
unsafe impl Send for Sink<'_> {}
// SAFETY: as above.
unsafe impl Sync for Sink<'_> {}

impl<'a> Sink<'a> {
    pub(crate) fn new(out: &'a mut Out) -> Sink<'a> {
        let shape = out.o.shape();
        let o = out.o.row_ptr_mut(0, 0);
        // Byte distances of rows and heads, as the view computes them.
        let step = |p: *mut u8| (p as usize).wrapping_sub(o as usize);
        let strides = [step(out.o.row_ptr_mut(1, 0)), step(out.o.row_ptr_mut(0, 1))];
        let lse2 = out.lse2.as_mut().map(|l| l.as_mut_ptr());
        Sink { o, dtype: out.o.dtype(), shape, strides, lse2, _life: PhantomData }
    }

    /// Writes one finished row, rounded to the output's dtype.
    ///
    /// # Safety
    /// No other thread may write the same row and head.
    ///
    /// # Panics
    /// If row, head or length are out of range.
    pub(crate) unsafe fn write(&self, row: usize, head: usize, o: &[f32], lse: f32) {
        let [rows, heads, dim] = self.shape;
        assert!(row < rows && head < heads && o.len() == dim);
        let at = row.wrapping_mul(self.strides[0]).wrapping_add(head.wrapping_mul(self.strides[1]));
        // SAFETY: in range by the assertion, writable by the view, exclusive by the caller.
        unsafe {
            convert::narrow(self.dtype, o, self.o.wrapping_add(at));
            if let Some(l) = self.lse2 {
                *l.add(row * heads + head) = lse;
            }
        }
    }
}
