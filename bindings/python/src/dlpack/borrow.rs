//! Views the kernels of `kvist.kernels` need: pools of frames, lists of numbers, summaries.

use kvist_kernels::summary::{BoxedSpec, TILE, UnitSpec, build_boxed, update_unit};
use kvist_kernels::{KvLayout, KvPool, Tensor3};
use pyo3::intern;
use pyo3::prelude::*;

use super::import::Input;
use super::view::{RANK_MAX, address};
use crate::error::{dtype_error, from_kernel, shape_error};

/// Frames of keys and values of the caller: `[frames, tokens, heads, dim]` (`heads_first` false) or
/// `[frames, heads, tokens, dim]`.
pub(crate) fn pool<'a>(k: &'a Input, v: &'a Input, heads_first: bool) -> PyResult<KvPool<'a>> {
    let expected = match heads_first {
        false => "[frames, page_tokens, kv_heads, dim]",
        true => "[frames, kv_heads, page_tokens, dim]",
    };
    for side in [k, v] {
        if side.rank != 4 {
            return Err(shape_error(side.what, expected, side.shape()));
        }
    }
    if k.dtype != v.dtype {
        return Err(dtype_error(v.what, k.dtype.name(), v.dtype.name()));
    }
    if k.shape[..3] != v.shape[..3] {
        return Err(shape_error(
            v.what,
            &format!("{:?} and a dim, as k", &k.shape[..3]),
            v.shape(),
        ));
    }
    let (token, head) = if heads_first { (2, 1) } else { (1, 2) };
    let order = |s: &[i64; RANK_MAX]| [s[0], s[head], s[token]];
    let layout = KvLayout {
        page_tokens: k.shape[token],
        kv_heads: k.shape[head],
        dim_k: k.shape[3],
        dim_v: v.shape[3],
        k_strides: order(&k.strides),
        v_strides: order(&v.strides),
    };
    // SAFETY: the exporters vouch for every row of every frame; rows are dense since `compact`.
    unsafe { KvPool::from_raw(k.ptr, v.ptr, k.dtype, layout, k.shape[0]) }
        .map_err(|e| from_kernel(&e))
}

/// A list of 32-bit numbers, borrowed from a NumPy array (`kvist.kernels` makes them).
pub(crate) struct Ids {
    ptr: *const u32,
    len: usize,
    _hold: Py<PyAny>,
}

impl Ids {
    /// Borrows a contiguous `uint32` array of one dimension.
    pub(crate) fn new(object: &Bound<PyAny>, what: &'static str) -> PyResult<Ids> {
        let interface = object.getattr(intern!(object.py(), "__array_interface__"))?;
        let typestr: String = interface.get_item("typestr")?.extract()?;
        let dims: Vec<usize> = interface.get_item("shape")?.extract()?;
        let plain = interface.get_item("strides")?.is_none();
        if typestr.get(1..) != Some("u4") || !plain {
            return Err(dtype_error(what, "contiguous uint32", &typestr));
        }
        let &[len] = &dims[..] else { return Err(shape_error(what, "one dimension", &dims)) };
        let (data, _readonly): (usize, bool) = interface.get_item("data")?.extract()?;
        let ptr = address(std::ptr::with_exposed_provenance(data), 0, &dims).cast::<u32>();
        if !ptr.is_aligned() {
            return Err(dtype_error(what, "aligned uint32", "an address in between"));
        }
        Ok(Ids { ptr, len, _hold: object.clone().unbind() })
    }

    /// The numbers.
    pub(crate) fn as_slice(&self) -> &[u32] {
        // SAFETY: NumPy vouches for address and length of a contiguous array, which is held; that it
        // is aligned was checked.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

/// Builds summaries from the rows of keys `[tokens, kv_heads, dim]`: `cells` per KV head, as many as
/// there are tiles (the last may be incomplete with unit rows).
pub(crate) fn build_cells(keys: &Tensor3, head: usize, spec: &CellSpec, cells: &mut [u8]) {
    let [tokens, _, _] = keys.shape();
    for (tile, cell) in cells.chunks_exact_mut(spec.cell_bytes()).enumerate() {
        let rows = tile * TILE..tokens.min((tile + 1) * TILE);
        let rows: Vec<*const u8> = rows.map(|t| keys.row_ptr(t, head)).collect();
        // SAFETY: the rows are those of a checked view, of the spec's dim and dtype; boxed cells
        // are only asked for complete tiles.
        unsafe {
            match spec {
                CellSpec::Units(spec) => {
                    for (unit, rows) in rows.chunks(spec.unit_tokens()).enumerate() {
                        update_unit(spec, cell, unit, 0, rows);
                    }
                }
                CellSpec::Boxed(spec) => build_boxed(spec, keys.dtype(), &rows, cell),
            }
        }
    }
}

/// What a summary is made of.
#[derive(Clone, Copy)]
pub(crate) enum CellSpec {
    Units(UnitSpec),
    Boxed(BoxedSpec),
}

impl CellSpec {
    /// Bytes of a tile's cell.
    pub(crate) fn cell_bytes(&self) -> usize {
        match self {
            CellSpec::Units(spec) => spec.cell_bytes(),
            CellSpec::Boxed(spec) => spec.cell_bytes(),
        }
    }
}
