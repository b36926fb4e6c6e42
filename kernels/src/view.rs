//! Borrowed views of keys, values, queries and outputs, checked once when they are made.
//!
//! Strides count elements and may be anything that stays inside the buffer; the last dimension is
//! contiguous. Below these types no bounds are checked again.

use std::marker::PhantomData;

use crate::{DType, Element, Error};

/// Largest head dimension of K or V.
pub const DIM_MAX: usize = 576;

/// A borrowed `[rows, heads, dim]` tensor.
#[derive(Clone, Copy, Debug)]
pub struct Tensor3<'a> {
    ptr: *const u8,
    dtype: DType,
    shape: [usize; 3],
    strides: [i64; 2],
    _life: PhantomData<&'a [u8]>,
}

/// A borrowed, writable `[rows, heads, dim]` tensor.
#[derive(Debug)]
pub struct Tensor3Mut<'a> {
    view: Tensor3<'a>,
    _life: PhantomData<&'a mut [u8]>,
}

// SAFETY: a view is a shared borrow of plain numbers.
unsafe impl Send for Tensor3<'_> {}
// SAFETY: as above; nothing is written through it.
unsafe impl Sync for Tensor3<'_> {}
// SAFETY: a unique borrow of plain numbers may move between threads.
unsafe impl Send for Tensor3Mut<'_> {}

/// Largest element index that `shape` with `strides` (last stride 1) touches, or `None` if empty.
fn last_index(shape: [usize; 3], strides: [i64; 2]) -> Option<(i128, i128)> {
    if shape.contains(&0) {
        return None;
    }
    let (mut low, mut high) = (0i128, shape[2] as i128 - 1);
    for (n, s) in [(shape[0], strides[0]), (shape[1], strides[1])] {
        let reach = (n as i128 - 1) * i128::from(s);
        low += reach.min(0);
        high += reach.max(0);
    }
    Some((low, high))
}

impl<'a> Tensor3<'a> {
    /// A view of a whole contiguous slice, shape `[rows, heads, dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the slice is not exactly `rows * heads * dim` long.
    pub fn contiguous<T: Element>(data: &'a [T], shape: [usize; 3]) -> Result<Self, Error> {
        let len = shape.iter().product::<usize>();
        if data.len() != len {
            return Err(Error::shape(
                "tensor",
                format!("{len} elements for {shape:?}"),
                data.len(),
            ));
        }
        let strides = [(shape[1] * shape[2]) as i64, shape[2] as i64];
        Self::strided(data, shape, strides)
    }

    /// A strided view into a slice; `strides` of rows and heads, in elements.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if any element would lie outside `data`.
    pub fn strided<T: Element>(
        data: &'a [T],
        shape: [usize; 3],
        strides: [i64; 2],
    ) -> Result<Self, Error> {
        if let Some((low, high)) = last_index(shape, strides)
            && (low < 0 || high >= data.len() as i128)
        {
            let last = if low < 0 { low } else { high };
            return Err(Error::OutOfBounds { what: "tensor", last, len: data.len() });
        }
        // SAFETY: every touched index was just checked against the slice.
        Ok(unsafe { Self::from_raw(data.as_ptr().cast(), T::DTYPE, shape, strides) })
    }

    /// A view of memory the caller vouches for.
    ///
    /// # Safety
    /// Every element reachable through `shape` and `strides` must be readable and stay unchanged
    /// for `'a`.
    #[must_use]
    pub unsafe fn from_raw(
        ptr: *const u8,
        dtype: DType,
        shape: [usize; 3],
        strides: [i64; 2],
    ) -> Self {
        Tensor3 { ptr, dtype, shape, strides, _life: PhantomData }
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// `[rows, heads, dim]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Elements from one row, and from one head, to the next.
    #[cfg(feature = "cuda")]
    pub(crate) fn strides(&self) -> [i64; 2] {
        self.strides
    }

    /// Rows `from..to` of this view.
    ///
    /// # Panics
    /// If the range is not inside the view.
    #[must_use]
    pub fn rows(&self, from: usize, to: usize) -> Tensor3<'a> {
        assert!(from <= to && to <= self.shape[0], "rows {from}..{to} of {}", self.shape[0]);
        let ptr = self.row_ptr(from, 0);
        Tensor3 { ptr, shape: [to - from, self.shape[1], self.shape[2]], ..*self }
    }

    /// Address of element `[row, head, 0]`; only dereferenceable when the indices are in range.
    #[must_use]
    pub fn row_ptr(&self, row: usize, head: usize) -> *const u8 {
        let at = row as i64 * self.strides[0] + head as i64 * self.strides[1];
        self.ptr.wrapping_offset(at as isize * self.dtype.size() as isize)
    }

    /// Copies row `[row, head]` into f32, exactly.
    ///
    /// # Panics
    /// If the indices are out of range or `out` is not `dim` long.
    pub fn read_f32(&self, row: usize, head: usize, out: &mut [f32]) {
        assert!(row < self.shape[0] && head < self.shape[1] && out.len() == self.shape[2]);
        // SAFETY: in range by the assertion, readable by construction.
        unsafe { crate::convert::widen(self.dtype, self.row_ptr(row, head), out) }
    }
}

impl<'a> Tensor3Mut<'a> {
    /// A writable view of a whole contiguous slice.
    ///
    /// # Errors
    /// [`Error::Shape`] if the slice is not exactly as long as the shape.
    pub fn contiguous<T: Element>(data: &'a mut [T], shape: [usize; 3]) -> Result<Self, Error> {
        Ok(Tensor3Mut { view: Tensor3::contiguous(&*data, shape)?, _life: PhantomData })
    }

    /// A writable strided view of memory the caller vouches for.
    ///
    /// # Safety
    /// Every reachable element must be writable, reached by exactly one index triple, and borrowed
    /// by nobody else for `'a`.
    #[must_use]
    pub unsafe fn from_raw(
        ptr: *mut u8,
        dtype: DType,
        shape: [usize; 3],
        strides: [i64; 2],
    ) -> Self {
        // SAFETY: the caller's promise is stronger.
        let view = unsafe { Tensor3::from_raw(ptr, dtype, shape, strides) };
        Tensor3Mut { view, _life: PhantomData }
    }

    /// Rows `from..to` of this view, for as long as it is not used otherwise.
    ///
    /// # Panics
    /// If the range is not inside the view.
    #[must_use]
    pub fn rows_mut(&mut self, from: usize, to: usize) -> Tensor3Mut<'_> {
        Tensor3Mut { view: self.view.rows(from, to), _life: PhantomData }
    }

    /// The same memory, read-only.
    #[must_use]
    pub fn as_view(&self) -> &Tensor3<'a> {
        &self.view
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.view.dtype
    }

    /// `[rows, heads, dim]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 3] {
        self.view.shape
    }

    /// Address of row `[row, head]` for writing.
    pub(crate) fn row_ptr_mut(&self, row: usize, head: usize) -> *mut u8 {
        self.view.row_ptr(row, head).cast_mut()
    }
}

/// Where the K and V rows of a frame lie. Strides count elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Tokens of a frame.
    pub page_tokens: usize,
    /// KV heads of a frame (1 when every head has frames of its own).
    pub kv_heads: usize,
    /// Elements of a key row.
    pub dim_k: usize,
    /// Elements of a value row.
    pub dim_v: usize,
    /// K strides of frame, head, token.
    pub k_strides: [i64; 3],
    /// V strides of frame, head, token.
    pub v_strides: [i64; 3],
}

impl KvLayout {
    /// kvist's own page: one KV head, K tile `[token][dim_k]` then V tile `[token][dim_v]`.
    /// The V base pointer is `page_tokens * dim_k` elements behind the K base.
    #[must_use]
    pub fn page(page_tokens: usize, dim_k: usize, dim_v: usize) -> KvLayout {
        let page = (page_tokens * (dim_k + dim_v)) as i64;
        KvLayout {
            page_tokens,
            kv_heads: 1,
            dim_k,
            dim_v,
            k_strides: [page, 0, dim_k as i64],
            v_strides: [page, 0, dim_v as i64],
        }
    }

    /// Separate K and V pools `[frames, page_tokens, kv_heads, dim]` (NHD).
    #[must_use]
    pub fn nhd(page_tokens: usize, kv_heads: usize, dim_k: usize, dim_v: usize) -> KvLayout {
        let strides =
            |d: usize| [(page_tokens * kv_heads * d) as i64, d as i64, (kv_heads * d) as i64];
        let (k_strides, v_strides) = (strides(dim_k), strides(dim_v));
        KvLayout { page_tokens, kv_heads, dim_k, dim_v, k_strides, v_strides }
    }

    /// Separate K and V pools `[frames, kv_heads, page_tokens, dim]` (HND).
    #[must_use]
    pub fn hnd(page_tokens: usize, kv_heads: usize, dim_k: usize, dim_v: usize) -> KvLayout {
        let strides =
            |d: usize| [(page_tokens * kv_heads * d) as i64, (page_tokens * d) as i64, d as i64];
        let (k_strides, v_strides) = (strides(dim_k), strides(dim_v));
        KvLayout { page_tokens, kv_heads, dim_k, dim_v, k_strides, v_strides }
    }

    fn check(&self) -> Result<(), Error> {
        for (what, dim) in [("dim_k", self.dim_k), ("dim_v", self.dim_v)] {
            if dim == 0 || dim > DIM_MAX {
                return Err(Error::range(what, format!("1..={DIM_MAX}"), dim));
            }
        }
        if self.page_tokens == 0 {
            return Err(Error::range("page_tokens", "at least 1", 0));
        }
        if self.kv_heads == 0 {
            return Err(Error::range("kv_heads", "at least 1", 0));
        }
        Ok(())
    }

    fn bounds(&self, strides: [i64; 3], dim: usize, frames: usize) -> Option<(i128, i128)> {
        if frames == 0 {
            return None;
        }
        let (mut low, mut high) = (0i128, dim as i128 - 1);
        for (n, s) in [frames, self.kv_heads, self.page_tokens].into_iter().zip(strides) {
            let reach = (n as i128 - 1) * i128::from(s);
            low += reach.min(0);
            high += reach.max(0);
        }
        Some((low, high))
    }
}

/// Borrowed frames of K and V.
#[derive(Clone, Copy, Debug)]
pub struct KvPool<'a> {
    k: *const u8,
    v: *const u8,
    dtype: DType,
    layout: KvLayout,
    frames: usize,
    _life: PhantomData<&'a [u8]>,
}

// SAFETY: a pool is a shared borrow of plain numbers.
unsafe impl Send for KvPool<'_> {}
// SAFETY: as above; nothing is written through it.
unsafe impl Sync for KvPool<'_> {}

impl<'a> KvPool<'a> {
    /// A pool of `frames` frames in two slices (`v` may be a part of `k`, as in MLA).
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if a row of any frame would lie outside its slice,
    /// [`Error::Range`] if the layout itself is impossible.
    pub fn new<T: Element>(
        k: &'a [T],
        v: &'a [T],
        layout: KvLayout,
        frames: usize,
    ) -> Result<Self, Error> {
        layout.check()?;
        let sides = [
            ("k", k.len(), layout.bounds(layout.k_strides, layout.dim_k, frames)),
            ("v", v.len(), layout.bounds(layout.v_strides, layout.dim_v, frames)),
        ];
        for (what, len, reach) in sides {
            if let Some((low, high)) = reach
                && (low < 0 || high >= len as i128)
            {
                let last = if low < 0 { low } else { high };
                return Err(Error::OutOfBounds { what, last, len });
            }
        }
        // SAFETY: all rows were just checked against the slices.
        unsafe { Self::from_raw(k.as_ptr().cast(), v.as_ptr().cast(), T::DTYPE, layout, frames) }
    }

    /// A pool of one frame whose tokens are the rows of `k` `[rows, kv_heads, dim_k]` and `v` `[rows,
    /// kv_heads, dim_v]`: an engine's own tensors.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`] if the two do not go together, [`Error::Range`] if there
    /// are no heads or a dimension is impossible.
    pub fn from_rows(k: &Tensor3<'a>, v: &Tensor3<'a>) -> Result<Self, Error> {
        let ([rows, kv_heads, dim_k], [v_rows, v_heads, dim_v]) = (k.shape, v.shape);
        if [v_rows, v_heads] != [rows, kv_heads] {
            let want = format!("{rows} rows of {kv_heads} heads");
            return Err(Error::shape("v", want, format!("{v_rows} of {v_heads}")));
        }
        if k.dtype != v.dtype {
            return Err(Error::DType { what: "v", expected: k.dtype, found: v.dtype });
        }
        let strides = |x: &Tensor3| [0, x.strides[1], x.strides[0]];
        let (k_strides, v_strides) = (strides(k), strides(v));
        // A frame has at least one token; of no rows none is listed.
        let page_tokens = rows.max(1);
        let layout = KvLayout { page_tokens, kv_heads, dim_k, dim_v, k_strides, v_strides };
        // SAFETY: the frame's rows are those of the tensors, which vouch for them.
        unsafe { KvPool::from_raw(k.ptr, v.ptr, k.dtype, layout, usize::from(rows > 0)) }
    }

    /// A pool over memory the caller vouches for.
    ///
    /// # Errors
    /// [`Error::Range`] if the layout is impossible.
    ///
    /// # Safety
    /// Every row of every *listed* frame must be readable and unchanged for `'a`, up to the
    /// listed number of tokens.
    pub unsafe fn from_raw(
        k: *const u8,
        v: *const u8,
        dtype: DType,
        layout: KvLayout,
        frames: usize,
    ) -> Result<Self, Error> {
        layout.check()?;
        Ok(KvPool { k, v, dtype, layout, frames, _life: PhantomData })
    }

    /// Element type of K and V.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Number of frames; lists may name `0..frames`.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Address of a key row.
    #[must_use]
    pub fn k_row(&self, frame: usize, head: usize, token: usize) -> *const u8 {
        self.at(self.k, self.layout.k_strides, frame, head, token)
    }

    /// Address of a value row.
    #[must_use]
    pub fn v_row(&self, frame: usize, head: usize, token: usize) -> *const u8 {
        self.at(self.v, self.layout.v_strides, frame, head, token)
    }

    /// Bytes from a key row to that of the next token.
    pub(crate) fn k_step(&self) -> isize {
        self.layout.k_strides[2] as isize * self.dtype.size() as isize
    }

    /// Bytes from a value row to that of the next token.
    pub(crate) fn v_step(&self) -> isize {
        self.layout.v_strides[2] as isize * self.dtype.size() as isize
    }

    fn at(
        &self,
        base: *const u8,
        s: [i64; 3],
        frame: usize,
        head: usize,
        token: usize,
    ) -> *const u8 {
        let e = frame as i64 * s[0] + head as i64 * s[1] + token as i64 * s[2];
        base.wrapping_offset(e as isize * self.dtype.size() as isize)
    }
}
