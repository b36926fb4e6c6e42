//! Draft trees and draft views.

use kvist::{AttendInfo, AttendOptions, Drafts, ROOT, Tensor3, Tensor3Mut, Trees};
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

use crate::dlpack::{Input, Kind, Library, Storage};
use crate::error::{Failure, from_kernel, option_error, raise};
use crate::info::PyAttendInfo;
use crate::sequence::AttendArgs;

/// Parents of a tree's nodes, -1 for roots.
pub(crate) struct Parents(Vec<u32>);

impl<'a, 'py> FromPyObject<'a, 'py> for Parents {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Parents> {
        let wrong = |x: &Bound<PyAny>| option_error("parents", "-1 or the number of a node", x);
        let parent = |x: Bound<'py, PyAny>| match x.extract::<i64>() {
            Ok(-1) => Ok(ROOT),
            Ok(n) => u32::try_from(n).ok().filter(|&n| n != ROOT).ok_or_else(|| wrong(&x)),
            Err(e) if e.is_instance_of::<PyOverflowError>(x.py()) => Err(wrong(&x)),
            Err(e) => Err(e),
        };
        object.try_iter()?.map(|x| parent(x?)).collect::<PyResult<_>>().map(Parents)
    }
}

/// The trees of several sequences.
pub(crate) fn trees(parents: &[Parents]) -> PyResult<Trees> {
    let mut indptr = vec![0u32];
    for Parents(nodes) in parents {
        indptr.push(indptr[indptr.len() - 1].saturating_add(nodes.len() as u32));
    }
    let all: Vec<u32> = parents.iter().flat_map(|p| &p.0).copied().collect();
    Trees::new(&indptr, &all).map_err(|e| from_kernel(&e))
}

/// What a call verifies: trees, and the tensors of their nodes.
pub(crate) struct Nodes<'a, 'py> {
    pub(crate) trees: Trees,
    pub(crate) q: &'a Bound<'py, PyAny>,
    pub(crate) k: &'a Bound<'py, PyAny>,
    pub(crate) v: &'a Bound<'py, PyAny>,
}

/// The output, as `q` is, and what was read, by sequence.
type Verified<'py> = (Bound<'py, PyAny>, Vec<Py<PyAttendInfo>>);

impl<'py> Nodes<'_, 'py> {
    /// Calls `attend` with all that it needs, while other Python threads run.
    pub(crate) fn attend(
        &self,
        py: Python<'py>,
        dim_v: usize,
        args: &AttendArgs,
        attend: impl FnOnce(
            &Tensor3,
            &Drafts,
            &AttendOptions,
            &mut Tensor3Mut,
        ) -> Result<Vec<AttendInfo>, Failure>
        + Send,
    ) -> PyResult<Verified<'py>> {
        let q = Input::anywhere(self.q, "q")?;
        let (k, v) = (Input::anywhere(self.k, "keys")?, Input::anywhere(self.v, "values")?);
        let rows = q.rows3("[nodes, q_heads, head_dim]")?;
        let expected = "[nodes, kv_heads, head_dim]";
        let drafts = Drafts { trees: &self.trees, k: k.rows3(expected)?, v: v.rows3(expected)? };
        let shape = [rows.shape()[0], rows.shape()[1], dim_v];
        let mut storage = Storage::new(Kind::Float(q.dtype()), &shape);
        let mut out = storage.rows(shape);
        let infos = py.detach(|| attend(&rows, &drafts, &args.options(), &mut out))?;
        let out = Library::of(self.q).give(py, storage.on(py, q.gpu())?)?.into_bound(py);
        let infos = infos.into_iter().map(|i| PyAttendInfo::new(py, i, shape[1], false));
        Ok((out, infos.collect::<PyResult<_>>()?))
    }
}

/// What the heads of a sequence read from some length on: a draft view.
#[pyclass(frozen, eq, name = "View", module = "kvist")]
#[derive(Clone, PartialEq)]
pub(crate) struct PyView(pub(crate) kvist::View);

#[pymethods]
impl PyView {
    /// A view from JSON, checked.
    #[staticmethod]
    fn from_json(text: &str) -> PyResult<PyView> {
        serde_json::from_str(text)
            .map(PyView)
            .map_err(|e| raise("OptionError", format!("view: {e}")))
    }

    /// The view as JSON.
    fn to_json(&self) -> PyResult<String> {
        serde_json::to_string(&self.0).map_err(|e| raise("KvistError", format!("view: {e}")))
    }

    /// Positions read below the first of the recent ones, ascending, and that one; `None` for a head that
    /// goes by its own selector.
    fn head(&self, layer: usize, kv_head: usize) -> PyResult<Option<(Vec<u32>, u32)>> {
        let heads = self.0.heads();
        let found = heads.get(layer).and_then(|row| row.get(kv_head)).ok_or_else(|| {
            let shape = (self.layers(), self.kv_heads());
            let text = format!(
                "head: expected 0..{} and 0..{}, found {layer} and {kv_head}",
                shape.0, shape.1
            );
            raise("RangeError", text)
        })?;
        Ok(found.as_ref().map(|head| (head.positions.clone(), head.from)))
    }

    #[getter]
    fn layers(&self) -> usize {
        self.0.heads().len()
    }

    #[getter]
    fn kv_heads(&self) -> usize {
        self.0.heads().first().map_or(0, Vec::len)
    }

    /// Tokens that a sequence must have to read by it.
    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __bool__(&self) -> bool {
        true
    }

    fn __repr__(&self) -> String {
        let (len, layers, kv_heads) = (self.0.len(), self.layers(), self.kv_heads());
        format!("View(tokens={len}, layers={layers}, kv_heads={kv_heads})")
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        Ok((py.get_type::<PyView>().getattr("from_json")?, (self.to_json()?,)))
    }
}

/// Puts a view into a sequence that was just made.
pub(crate) fn viewing(
    mut sequence: kvist::Sequence,
    view: Option<&kvist::View>,
) -> Result<kvist::Sequence, Failure> {
    if let Some(view) = view {
        sequence.set_view(view)?;
    }
    Ok(sequence)
}
