//! Summaries of keys the caller keeps, and scores from them.

use kvist_kernels::score::{self, BoxedQuery, CellList, UnitQuery};
use kvist_kernels::summary::{BoxedSpec, TILE, UnitKind, UnitSpec};
use kvist_kernels::{DType, Isa};
use pyo3::prelude::*;

use crate::dlpack::{CellSpec, Input, Storage, build_cells, numpy};
use crate::error::{from_kernel, option_error, raise, shape_error};
use crate::number::Whole;

/// The summaries of one layer's keys, all KV heads.
#[pyclass(frozen, module = "kvist.kernels")]
pub(crate) struct Summary {
    spec: CellSpec,
    /// Per KV head the cells of all its tiles.
    cells: Vec<Vec<u8>>,
    tokens: usize,
    dim: usize,
    kind: &'static str,
}

const KINDS: [&str; 4] = ["box", "mean", "moment2", "boxed"];

fn spec_of(
    kind: &str,
    dim: usize,
    dtype: DType,
    unit_tokens: usize,
    planes: u32,
) -> PyResult<(CellSpec, &'static str)> {
    let units = |kind, name| {
        let spec = UnitSpec::new(kind, dim, dtype, unit_tokens).map_err(|e| from_kernel(&e))?;
        Ok((CellSpec::Units(spec), name))
    };
    match kind {
        "box" => units(UnitKind::Box, "box"),
        "mean" => units(UnitKind::Mean, "mean"),
        "moment2" => units(UnitKind::Moment2, "moment2"),
        "boxed" => {
            let spec = BoxedSpec::new(dim, planes).map_err(|e| from_kernel(&e))?;
            Ok((CellSpec::Boxed(spec), "boxed"))
        }
        _ => {
            let near = kvist::policies::nearest(kind, KINDS.into_iter());
            let hint = near.map(|n| format!(", did you mean {n:?}?")).unwrap_or_default();
            let text = format!("kind: expected one of {}, found {kind:?}{hint}", KINDS.join(", "));
            Err(raise("UnknownNameError", text))
        }
    }
}

#[pymethods]
impl Summary {
    /// Summarises keys `[tokens, kv_heads, dim]`.
    #[new]
    #[pyo3(signature = (keys, kind="box", *, unit_tokens=Whole::from(16), planes=Whole::from(3)),
           text_signature = "(keys, kind='box', *, unit_tokens=16, planes=3)")]
    fn new(
        py: Python,
        keys: &Bound<PyAny>,
        kind: &str,
        unit_tokens: Whole,
        planes: Whole,
    ) -> PyResult<Summary> {
        let input = Input::new(keys, "keys")?;
        let rows = input.rows3("[tokens, kv_heads, dim]")?;
        let [tokens, heads, dim] = rows.shape();
        if heads == 0 {
            let expected = "[tokens, kv_heads, dim] with at least one KV head";
            return Err(shape_error("keys", expected, &rows.shape()));
        }
        let planes = u32::try_from(planes.get("planes")?).unwrap_or(u32::MAX);
        let unit_tokens = unit_tokens.get("unit_tokens")?;
        let (spec, kind) = spec_of(kind, dim, input.dtype(), unit_tokens, planes)?;
        let tiles = match spec {
            CellSpec::Units(_) => tokens.div_ceil(TILE),
            CellSpec::Boxed(_) => tokens / TILE,
        };
        let cells = py.detach(|| {
            let build = |head| {
                let mut cells = vec![0u8; tiles * spec.cell_bytes()];
                build_cells(&rows, head, &spec, &mut cells);
                cells
            };
            (0..heads).map(build).collect()
        });
        Ok(Summary { spec, cells, tokens, dim, kind })
    }

    /// Scores of `q` `[q_heads, dim]`, f32 `[q_heads, units]` (tokens for "boxed"), in units of q.k.
    #[pyo3(signature = (q, *, scale=None))]
    fn score(&self, py: Python, q: &Bound<PyAny>, scale: Option<f32>) -> PyResult<Py<PyAny>> {
        let input = Input::new(q, "q")?;
        let (heads, expected) = (self.cells.len(), format!("[q_heads, {}]", self.dim));
        let &[q_heads, dim] = input.shape() else {
            return Err(shape_error("q", &expected, input.shape()));
        };
        if dim != self.dim || q_heads == 0 || !q_heads.is_multiple_of(heads) {
            let expected = format!("[a multiple of {heads}, {}]", self.dim);
            return Err(shape_error("q", &expected, input.shape()));
        }
        let (rows, group) = (input.floats(), q_heads / heads);
        let scale = scale.unwrap_or(1.0 / (dim as f32).sqrt());
        if !scale.is_finite() || scale <= 0.0 {
            return Err(option_error("scale", "finite and above 0", scale));
        }
        let scores = py.detach(|| {
            let pairs = self.cells.iter().zip(rows.chunks_exact(group * dim));
            pairs
                .flat_map(|(cells, q)| self.score_head(cells, q, group, scale))
                .collect::<Vec<f32>>()
        });
        numpy(py, Storage::of_f32(scores.into_iter(), &[q_heads, self.units()]))
    }

    /// Units (tokens for "boxed") that are scored.
    #[getter]
    fn units(&self) -> usize {
        match self.spec {
            CellSpec::Units(spec) => self.tokens.div_ceil(spec.unit_tokens()),
            CellSpec::Boxed(_) => self.tokens / TILE * TILE,
        }
    }

    /// Bytes of all summaries.
    #[getter]
    fn nbytes(&self) -> usize {
        self.cells.iter().map(Vec::len).sum()
    }

    #[getter]
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn __repr__(&self) -> String {
        format!(
            "Summary(kind='{}', tokens={}, kv_heads={})",
            self.kind,
            self.tokens,
            self.cells.len()
        )
    }
}

impl Summary {
    /// Scores of one KV head's group, `[group][units]`.
    fn score_head(&self, cells: &[u8], q: &[f32], group: usize, scale: f32) -> Vec<f32> {
        let bytes = self.spec.cell_bytes();
        let ids: Vec<u32> = (0..(cells.len() / bytes) as u32).collect();
        let Ok(list) = CellList::from_slice(cells, bytes, &ids) else { return Vec::new() };
        let per_tile = match self.spec {
            CellSpec::Units(spec) => spec.units(),
            CellSpec::Boxed(_) => TILE,
        };
        let row = ids.len() * per_tile;
        let mut out = vec![0f32; group * row];
        match self.spec {
            CellSpec::Units(spec) => {
                let query = UnitQuery::new(Isa::level(), spec, q, group, scale, true);
                score::units(&query, &list, &mut out);
            }
            CellSpec::Boxed(spec) => {
                let query = BoxedQuery::new(Isa::level(), spec, q, group);
                score::boxed(&query, &list, spec.planes(), &mut out, None, None);
            }
        }
        let units = self.units();
        out.chunks(row.max(1)).flat_map(|r| r[..units].iter().copied()).collect()
    }
}
