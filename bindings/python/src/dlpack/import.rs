//! Tensors that kernels read: f32, f16 and bf16, compact where they must be.

use std::sync::Arc;

use kvist_kernels::cuda::Strided;
use kvist_kernels::{DType, Tensor3};
use pyo3::prelude::*;

use super::gpu::Link;
use super::view::{Hold, RANK_MAX, View, row_major};
use crate::error::{dtype_error, shape_error};

/// Most dimensions that any kernel takes.
const DIMS_MAX: usize = 4;

/// A borrowed tensor of floats: address, type, shape and strides, and what keeps it alive.
pub(crate) struct Input {
    pub(super) ptr: *const u8,
    pub(super) dtype: DType,
    pub(super) rank: usize,
    pub(super) shape: [usize; RANK_MAX],
    /// In elements.
    pub(super) strides: [i64; RANK_MAX],
    pub(super) what: &'static str,
    gpu: Option<Arc<Link>>,
    _hold: Hold,
}

impl Input {
    /// Borrows `object`, which is in host memory; `what` names it in errors.
    pub(crate) fn new(object: &Bound<PyAny>, what: &'static str) -> PyResult<Input> {
        Input::of(object.py(), View::new(object, what)?)
    }

    /// As [`Input::new`]; a tensor on a GPU is copied to the host.
    pub(crate) fn anywhere(object: &Bound<PyAny>, what: &'static str) -> PyResult<Input> {
        Input::of(object.py(), View::anywhere(object, what)?)
    }

    fn of(py: Python, view: View) -> PyResult<Input> {
        let what = view.what;
        let Some(dtype) = view.element.dtype() else {
            return Err(dtype_error(what, "f32, f16 or bf16", &view.element.name()));
        };
        if view.rank > DIMS_MAX {
            return Err(shape_error(what, &format!("at most {DIMS_MAX} dimensions"), view.shape()));
        }
        let View { ptr, rank, shape, strides, gpu, hold: _hold, .. } = view;
        let input = Input { ptr, dtype, rank, shape, strides, what, gpu, _hold };
        match input.gpu.clone() {
            Some(link) => input.fetch(py, &link),
            None => input.compact(),
        }
    }

    /// The GPU that it came from.
    pub(crate) fn gpu(&self) -> Option<&Arc<Link>> {
        self.gpu.as_ref()
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }

    /// Strides in elements.
    pub(crate) fn strides(&self) -> &[i64] {
        &self.strides[..self.rank]
    }

    /// As `[rows, heads, dim]`; a rank-2 tensor is one row.
    pub(crate) fn rows(&self) -> PyResult<Tensor3<'_>> {
        let (shape, strides) = match (self.shape(), self.strides()) {
            (&[a, b, c], &[s, t, _]) => ([a, b, c], [s, t]),
            (&[b, c], &[t, _]) => ([1, b, c], [0, t]),
            (shape, _) => return Err(shape_error(self.what, "2 or 3 dimensions", shape)),
        };
        // SAFETY: the exporter vouches for shape and strides, and `_hold` keeps it; the last
        // dimension is contiguous and rows are aligned since `compact`.
        Ok(unsafe { Tensor3::from_raw(self.ptr, self.dtype, shape, strides) })
    }

    /// As exactly `[rows, heads, dim]`.
    pub(crate) fn rows3(&self, expected: &str) -> PyResult<Tensor3<'_>> {
        if self.rank != 3 {
            return Err(shape_error(self.what, expected, self.shape()));
        }
        self.rows()
    }

    /// The numbers of a vector, widened to f32.
    pub(crate) fn floats(&self) -> Vec<f32> {
        let (n, row) = match self.shape() {
            [] => (1, 1),
            shape => (shape[..shape.len() - 1].iter().product(), shape[shape.len() - 1]),
        };
        let mut out = vec![0f32; n * row];
        for (i, out) in out.chunks_exact_mut(row.max(1)).enumerate() {
            // SAFETY: row `i` lies inside the tensor; its elements are contiguous since `compact`.
            unsafe {
                let ptr = self.row_ptr(i);
                kvist_kernels::convert::widen(self.dtype, ptr, out);
            }
        }
        out
    }

    /// Address of the `i`-th row (all dimensions but the last, in order).
    fn row_ptr(&self, mut i: usize) -> *const u8 {
        let mut at = 0i64;
        for d in (0..self.rank.saturating_sub(1)).rev() {
            at += (i % self.shape[d]) as i64 * self.strides[d];
            i /= self.shape[d];
        }
        self.ptr.wrapping_offset(at as isize * self.dtype.size() as isize)
    }

    /// The same in host memory.
    fn fetch(self, py: Python, link: &Link) -> PyResult<Input> {
        let size = self.dtype.size();
        let bytes = self.shape().iter().try_fold(size, |n, &d| n.checked_mul(d));
        let bytes = bytes.filter(|&n| n <= isize::MAX as usize);
        let bytes = bytes.ok_or_else(|| {
            shape_error(self.what, "a tensor that fits into memory", self.shape())
        })?;
        let (shape, strides) = (self.shape(), self.strides());
        let address = self.ptr.addr() as u64;
        let from = Strided { address, element_bytes: size, shape, strides };
        // SAFETY: the exporter vouches for every element, and `_hold` keeps them.
        let copy = unsafe { link.read(py, &from, bytes)? };
        let strides = row_major(self.shape());
        Ok(Input { ptr: copy.as_ptr().cast(), strides, _hold: Hold::Copy(copy), ..self.forget() })
    }

    /// Copies where the kernels cannot read in place: the last dimension has gaps (or runs
    /// backwards or is broadcast) or elements are not aligned.
    fn compact(self) -> PyResult<Input> {
        let (size, rank) = (self.dtype.size(), self.rank);
        let count: usize = self.shape().iter().product();
        let last = rank.checked_sub(1).map_or(1, |d| self.shape[d]);
        let dense = last <= 1 || self.strides[rank - 1] == 1;
        if count == 0 || (dense && self.ptr.addr().is_multiple_of(size)) {
            return Ok(self);
        }
        let mut copy = vec![0u64; (count * size).div_ceil(8)];
        let step = self.strides[rank - 1] as isize * size as isize;
        let mut to = copy.as_mut_ptr().cast::<u8>();
        for row in 0..count / last {
            let mut from = self.row_ptr(row);
            for _ in 0..last {
                // SAFETY: `from` walks the elements of the exporter's tensor, `to` those of `copy`.
                unsafe { std::ptr::copy_nonoverlapping(from, to, size) };
                from = from.wrapping_offset(step);
                to = to.wrapping_add(size);
            }
        }
        let strides = row_major(self.shape());
        Ok(Input { ptr: copy.as_ptr().cast(), strides, _hold: Hold::Copy(copy), ..self.forget() })
    }

    /// The description without the hold, whose owner is dropped here.
    fn forget(self) -> Input {
        Input { _hold: Hold::Copy(Vec::new()), ..self }
    }
}
