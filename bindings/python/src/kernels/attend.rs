//! Attention over page and slot lists, and the merge of partial results.

use std::f32::consts::{LN_2, LOG2_E};

use kvist_kernels::attend::{self, Out, Params, Queries};
use kvist_kernels::{DType, Executor, KvPool, PageLists, SlotLists};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::executor;
use crate::dlpack::{Ids, Input, Kind, Library, Storage, numpy, pool};
use crate::error::{from_kernel, option_error, shape_error};
use crate::number::Whole;

/// What page and slot attention have in common.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Common<'py> {
    heads_first: bool,
    query_indptr: Option<Bound<'py, PyAny>>,
    query_positions: Option<Bound<'py, PyAny>>,
    scale: Option<f32>,
    soft_cap: f32,
    window: Whole,
    causal: bool,
    sinks: Option<Bound<'py, PyAny>>,
    per_head: bool,
    threads: Whole,
}

impl<'py> Common<'py> {
    /// From keywords; an error names the keyword and what is wrong with it.
    fn new(keywords: &Bound<'py, PyDict>) -> PyResult<Common<'py>> {
        let py = keywords.py();
        keywords.extract().map_err(|e: PyErr| match e.cause(py) {
            Some(cause) => PyTypeError::new_err(format!("{}: {}", e.value(py), cause.value(py))),
            None => e,
        })
    }
}

/// Runs one attention: prepares inputs and outputs around `kernel`.
fn run<'py>(
    q: &Bound<'py, PyAny>,
    k: &Bound<'py, PyAny>,
    v: &Bound<'py, PyAny>,
    common: Common,
    lists: usize,
    kernel: impl Fn(&Queries, &KvPool, &Params, &Executor, &mut Out) -> Result<(), kvist_kernels::Error>
    + Sync,
) -> PyResult<(Py<PyAny>, Py<PyAny>)> {
    let py = q.py();
    let (input, k, v) = (Input::new(q, "q")?, Input::new(k, "k")?, Input::new(v, "v")?);
    let rows = input.rows3("[queries, q_heads, dim]")?;
    let pool = pool(&k, &v, common.heads_first)?;
    let given = common.query_indptr.as_ref().map(|q| Ids::new(q, "query_indptr")).transpose()?;
    let positions =
        common.query_positions.as_ref().map(|p| Ids::new(p, "query_positions")).transpose()?;
    let sinks =
        common.sinks.as_ref().map(|s| Input::new(s, "sinks")).transpose()?.map(|s| s.floats());
    let [n, heads, dim] = rows.shape();
    // One query per sequence, or all of one sequence.
    let one = common.per_head || lists == 1;
    let each = if one { vec![0, n as u32] } else { (0..=n as u32).collect() };
    let window = common.window.get("window")?;
    let window = u32::try_from(window).map_err(|_| option_error("window", "0..2^32", window))?;
    let params = Params {
        soft_cap: common.soft_cap,
        window,
        causal: common.causal,
        sinks: sinks.as_deref(),
        ..Params::new(common.scale.unwrap_or(1.0 / (dim as f32).sqrt()))
    };
    let queries = Queries {
        q: rows,
        indptr: given.as_ref().map_or(&each[..], Ids::as_slice),
        positions: positions.as_ref().map(Ids::as_slice),
    };
    let exec = executor(common.threads)?;
    let shape = [n, heads, pool.layout().dim_v];
    let mut storage = Storage::new(Kind::Float(input.dtype()), &shape);
    let mut lse2 = vec![0f32; n * heads];
    let mut out = Out { o: storage.rows(shape), lse2: Some(&mut lse2) };
    py.detach(|| kernel(&queries, &pool, &params, &exec, &mut out)).map_err(|e| from_kernel(&e))?;
    let lse = Storage::of_f32(lse2.iter().map(|x| x * LN_2), &[n, heads]);
    Ok((Library::of(q).give(py, storage)?, numpy(py, lse)?))
}

/// Attention over page lists: `(o, lse)`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "tensors and lists of one kernel")]
pub(crate) fn attend_pages<'py>(
    q: &Bound<'py, PyAny>,
    k: &Bound<'py, PyAny>,
    v: &Bound<'py, PyAny>,
    indptr: &Bound<'py, PyAny>,
    frames: &Bound<'py, PyAny>,
    lens: &Bound<'py, PyAny>,
    first_positions: Option<&Bound<'py, PyAny>>,
    common: &Bound<'py, PyDict>,
) -> PyResult<(Py<PyAny>, Py<PyAny>)> {
    let (indptr, frames) = (Ids::new(indptr, "indptr")?, Ids::new(frames, "frames")?);
    let lens = Ids::new(lens, "lens")?;
    let common = Common::new(common)?;
    let first = first_positions.map(|f| Ids::new(f, "first_positions")).transpose()?;
    let lists = PageLists {
        indptr: indptr.as_slice(),
        frames: frames.as_slice(),
        lens: lens.as_slice(),
        first_pos: first.as_ref().map(Ids::as_slice),
        per_head: common.per_head,
    };
    let count = indptr.as_slice().len().saturating_sub(1);
    run(q, k, v, common, count, |q, pool, params, exec, out| {
        attend::pages(q, pool, &lists, params, exec, out)
    })
}

/// Attention over listed tokens: `(o, lse)`.
#[pyfunction]
pub(crate) fn attend_slots<'py>(
    q: &Bound<'py, PyAny>,
    k: &Bound<'py, PyAny>,
    v: &Bound<'py, PyAny>,
    indptr: &Bound<'py, PyAny>,
    slots: &Bound<'py, PyAny>,
    positions: Option<&Bound<'py, PyAny>>,
    common: &Bound<'py, PyDict>,
) -> PyResult<(Py<PyAny>, Py<PyAny>)> {
    let (indptr, slots) = (Ids::new(indptr, "indptr")?, Ids::new(slots, "slots")?);
    let common = Common::new(common)?;
    let positions = positions.map(|p| Ids::new(p, "positions")).transpose()?;
    let lists = SlotLists {
        indptr: indptr.as_slice(),
        slots: slots.as_slice(),
        positions: positions.as_ref().map(Ids::as_slice),
        per_head: common.per_head,
    };
    let count = indptr.as_slice().len().saturating_sub(1);
    run(q, k, v, common, count, |q, pool, params, exec, out| {
        attend::slots(q, pool, &lists, params, exec, out)
    })
}

/// Joins partial results `(o, lse)` over disjoint tokens: `(o, lse)`, f32.
#[pyfunction]
pub(crate) fn merge(
    py: Python,
    parts: Vec<(Bound<PyAny>, Bound<PyAny>)>,
) -> PyResult<(Py<PyAny>, Py<PyAny>)> {
    let Some((first, _)) = parts.first() else {
        return Err(shape_error("parts", "at least one", &[0]));
    };
    let inputs = parts.iter().map(|(o, lse)| Ok((Input::new(o, "o")?, Input::new(lse, "lse")?)));
    let inputs = inputs.collect::<PyResult<Vec<_>>>()?;
    let expected = "[queries, q_heads, dim]";
    let lses: Vec<Vec<f32>> =
        inputs.iter().map(|(_, lse)| lse.floats().iter().map(|x| x * LOG2_E).collect()).collect();
    for (o, lse) in &inputs {
        // By shape, not by count: a transposed one would be merged with the wrong weights.
        let want = &o.rows3(expected)?.shape()[..2];
        if lse.shape() != want {
            return Err(shape_error("lse", &format!("{want:?} as o"), lse.shape()));
        }
    }
    let views = inputs.iter().zip(&lses).map(|((o, _), lse)| Ok((o.rows3(expected)?, &lse[..])));
    let views = views.collect::<PyResult<Vec<_>>>()?;
    let shape = views[0].0.shape();
    let mut storage = Storage::new(Kind::Float(DType::F32), &shape);
    let mut lse2 = vec![0f32; shape[0] * shape[1]];
    let mut out = Out { o: storage.rows(shape), lse2: Some(&mut lse2) };
    py.detach(|| attend::merge(&views, &mut out)).map_err(|e| from_kernel(&e))?;
    let lse = Storage::of_f32(lse2.iter().map(|x| x * LN_2), &shape[..2]);
    Ok((Library::of(first).give(py, storage)?, numpy(py, lse)?))
}
