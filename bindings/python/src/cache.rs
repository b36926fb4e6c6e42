//! `kvist.Cache`.

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use kvist::{DiskCodec, DiskOptions, Geometry};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::dlpack::{Input, Kind, Library, Storage};
use crate::drafts::{self, Nodes, Parents};
use crate::error::{Failure, from_store, shape_error};
use crate::info::{PyAttendInfo, session_object, stats_object};
use crate::number::{Whole, optional};
use crate::profile::{PyProfile, profile_of};
use crate::select::{self, SelectArg};
use crate::sequence::{AttendArgs, PySequence};

/// What tells a model's weights from all others.
#[derive(FromPyObject)]
enum Identity {
    Text(String),
    Bytes(Vec<u8>),
}

/// The KV cache of one model: pages of all its sequences under one byte budget.
#[pyclass(frozen, name = "Cache", module = "kvist")]
pub(crate) struct PyCache {
    inner: RwLock<Option<kvist::Cache>>,
}

impl PyCache {
    /// The cache, unless closed.
    pub(crate) fn get(&self) -> PyResult<kvist::Cache> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        Ok(inner.clone().ok_or(Failure::Closed("cache"))?)
    }
}

#[pymethods]
impl PyCache {
    #[new]
    #[pyo3(
        signature = (*, layers, q_heads, kv_heads, head_dim, dtype, value_dim=None,
                     page_tokens=Whole::from(64), host=None, select=SelectArg::Name("full"), budget=None, dense_layers=Vec::new(), threads=None,
                     disk=None, disk_codec="lossless", model=None, profile=None, cluster_order=false),
        text_signature = "(*, layers, q_heads, kv_heads, head_dim, dtype, value_dim=None, \
                          page_tokens=64, host='1GiB', select='full', budget=None, dense_layers=(), threads=None, \
                          disk=None, disk_codec='lossless', model=None, profile=None, \
                          cluster_order=False)"
    )]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python constructor")]
    fn new(
        py: Python,
        layers: Whole,
        q_heads: Whole,
        kv_heads: Whole,
        head_dim: Whole,
        dtype: &Bound<PyAny>,
        value_dim: Option<Whole>,
        page_tokens: Whole,
        host: Option<&Bound<PyAny>>,
        select: SelectArg,
        budget: Option<Whole>,
        dense_layers: Vec<Whole>,
        threads: Option<Whole>,
        disk: Option<(PathBuf, Bound<PyAny>)>,
        disk_codec: &str,
        model: Option<Identity>,
        profile: Option<&Bound<PyAny>>,
        cluster_order: bool,
    ) -> PyResult<PyCache> {
        let head_dim = head_dim.get("head_dim")?;
        let mut geometry = Geometry::new(
            layers.get("layers")?,
            q_heads.get("q_heads")?,
            kv_heads.get("kv_heads")?,
            head_dim,
            select::dtype_of(dtype)?,
        );
        geometry.dim_v = optional(value_dim, "value_dim")?.unwrap_or(head_dim);
        geometry.page_tokens = page_tokens.get("page_tokens")?;
        let dense_layers = dense_layers.into_iter().map(Whole::layer);
        let dense_layers = dense_layers.collect::<PyResult<Vec<_>>>()?;
        let mut builder = kvist::Cache::builder(geometry)
            .select(select.resolve(py, optional(budget, "budget")?)?)
            .dense_layers(&dense_layers)
            .disk_codec(DiskCodec::parse(disk_codec).map_err(from_store)?)
            .cluster_order(cluster_order);
        if let Some(profile) = profile {
            builder = builder.profile(profile_of(profile)?);
        }
        if let Some(host) = host {
            builder = builder.host_bytes(select::parse_bytes(host)?);
        }
        if let Some(threads) = threads {
            builder = builder.threads(threads.threads()?);
        }
        if let Some((path, bytes)) = disk {
            builder = builder.disk(DiskOptions::new(path, select::parse_bytes(&bytes)?));
        }
        if let Some(Identity::Text(model)) = &model {
            builder = builder.model(model);
        } else if let Some(Identity::Bytes(model)) = &model {
            builder = builder.model(model);
        }
        let cache = py.detach(|| builder.build()).map_err(from_store)?;
        Ok(PyCache { inner: RwLock::new(Some(cache)) })
    }

    /// A new, empty sequence.
    fn sequence(&self) -> PyResult<PySequence> {
        Ok(PySequence::new(self.get()?.sequence()))
    }

    /// Opens a session that `Sequence.save` has saved. Finished pages are read when attention selects
    /// them.
    fn open_session(&self, py: Python, name: &str) -> PyResult<PySequence> {
        let cache = self.get()?;
        let opened = py.detach(|| cache.open_session(name)).map_err(from_store)?;
        Ok(PySequence::new(opened))
    }

    /// The sessions saved in the cache's directory, by name.
    fn sessions<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let cache = self.get()?;
        let listed = py.detach(|| cache.sessions()).map_err(from_store)?;
        listed.into_iter().map(|session| session_object(py, session)).collect()
    }

    /// Deletes a saved session; whether there was one.
    fn delete_session(&self, py: Python, name: &str) -> PyResult<bool> {
        let cache = self.get()?;
        py.detach(|| cache.delete_session(name)).map_err(from_store)
    }

    /// Attention of several sequences in one call; pages they share are read once.
    #[pyo3(signature = (layer, q, sequences, *, queries=None, info=false, scale=None, soft_cap=0.0,
                        window=Whole::from(0), sinks=None, selected=None, bound=None, scores=None, prefill=None),
           text_signature = "($self, layer, q, sequences, *, queries=None, info=False, scale=None, \
                             soft_cap=0.0, window=0, sinks=None, selected=None, bound=None, scores=None, prefill=None)")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn attend_batch<'py>(
        &self,
        py: Python<'py>,
        layer: Whole,
        q: &Bound<'py, PyAny>,
        sequences: Vec<Bound<'py, PySequence>>,
        queries: Option<Vec<Whole>>,
        info: bool,
        scale: Option<f32>,
        soft_cap: f32,
        window: Whole,
        sinks: Option<&Bound<'py, PyAny>>,
        selected: Option<bool>,
        bound: Option<bool>,
        scores: Option<&Bound<'py, PyAny>>,
        prefill: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (cache, layer) = (self.get()?, layer.layer()?);
        let args = AttendArgs::new(scale, soft_cap, window)?.told(info, selected, bound);
        let args = args.sinks(sinks)?.scores(scores)?.prefill(prefill)?;
        let input = Input::new(q, "q")?;
        let rows = input.rows3("[sum of queries, q_heads, head_dim]")?;
        let queries = match queries {
            Some(queries) => {
                let queries = queries.into_iter().map(|n| n.get("queries"));
                queries.collect::<PyResult<Vec<_>>>()?
            }
            None => vec![1; sequences.len()],
        };
        let total = queries.iter().fold(0usize, |sum, &n| sum.saturating_add(n));
        if queries.len() != sequences.len() || total != rows.shape()[0] {
            let expected = format!("{total} queries for {} sequences", sequences.len());
            return Err(shape_error("q", &expected, &rows.shape()));
        }
        let single = queries.iter().all(|&n| n == 1);
        let shape = [rows.shape()[0], rows.shape()[1], cache.geometry().dim_v];
        let mut storage = Storage::new(Kind::Float(input.dtype()), &shape);
        let mut out = storage.rows(shape);
        let held: Vec<&PySequence> = sequences.iter().map(Bound::get).collect();
        let infos = py.detach(|| {
            PySequence::with_all(&held, |open| {
                let options = args.options();
                Ok(cache.attend_batch(layer, &rows, open, &queries, &options, &mut out)?)
            })
        })?;
        let out = Library::of(q).give(py, storage)?.into_bound(py);
        if !info {
            return Ok(out);
        }
        let heads = shape[1];
        let infos = infos.into_iter().map(|i| PyAttendInfo::new(py, i, heads, single));
        let infos = infos.collect::<PyResult<Vec<_>>>()?;
        Ok(PyTuple::new(py, [out, infos.into_pyobject(py)?.into_any()])?.into_any())
    }

    /// `Sequence.hint` for several sequences: `q` `[sequences, q_heads, head_dim]`.
    #[pyo3(signature = (layer, q, sequences, *, scale=None, soft_cap=0.0, window=Whole::from(0),
                        scores=None),
           text_signature = "($self, layer, q, sequences, *, scale=None, soft_cap=0.0, window=0, \
                             scores=None)")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn hint_batch(
        &self,
        py: Python,
        layer: Whole,
        q: &Bound<PyAny>,
        sequences: Vec<Bound<PySequence>>,
        scale: Option<f32>,
        soft_cap: f32,
        window: Whole,
        scores: Option<&Bound<PyAny>>,
    ) -> PyResult<usize> {
        let (cache, layer) = (self.get()?, layer.layer()?);
        let args = AttendArgs::new(scale, soft_cap, window)?.scores(scores)?;
        let input = Input::new(q, "q")?;
        let rows = input.rows3("[sequences, q_heads, head_dim]")?;
        let held: Vec<&PySequence> = sequences.iter().map(Bound::get).collect();
        let sent = py.detach(|| {
            PySequence::with_all(&held, |open| {
                Ok(cache.hint_batch(layer, &rows, open, &args.options())?)
            })
        });
        Ok(sent?)
    }

    /// `Sequence.attend_tree` of several sequences in one call: `parents` has a list for each, `q`, `k` and `v`
    /// the nodes one tree after another; pages they share are read once.
    #[pyo3(signature = (layer, q, sequences, parents, k, v, *, info=false, scale=None, soft_cap=0.0,
                        window=Whole::from(0), sinks=None, selected=None),
           text_signature = "($self, layer, q, sequences, parents, k, v, *, info=False, scale=None, \
                             soft_cap=0.0, window=0, sinks=None, selected=None)")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn attend_trees<'py>(
        &self,
        py: Python<'py>,
        layer: Whole,
        q: &Bound<'py, PyAny>,
        sequences: Vec<Bound<'py, PySequence>>,
        parents: Vec<Parents>,
        k: &Bound<'py, PyAny>,
        v: &Bound<'py, PyAny>,
        info: bool,
        scale: Option<f32>,
        soft_cap: f32,
        window: Whole,
        sinks: Option<&Bound<'py, PyAny>>,
        selected: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (cache, layer) = (self.get()?, layer.layer()?);
        let args = AttendArgs::new(scale, soft_cap, window)?.sinks(sinks)?;
        let args = args.told(info, selected, None);
        let nodes = Nodes { trees: drafts::trees(&parents)?, q, k, v };
        let held: Vec<&PySequence> = sequences.iter().map(Bound::get).collect();
        let dim_v = cache.geometry().dim_v;
        let (out, infos) = nodes.attend(py, dim_v, &args, |q, drafts, options, out| {
            PySequence::with_all(&held, |open| {
                Ok(cache.attend_trees(layer, q, open, drafts, options, out)?)
            })
        })?;
        match info {
            false => Ok(out),
            true => Ok(PyTuple::new(py, [out, infos.into_pyobject(py)?.into_any()])?.into_any()),
        }
    }

    /// Bytes held and work done so far.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let s = self.get()?.stats();
        stats_object(
            py,
            "Stats",
            &[
                ("budget_bytes", s.budget_bytes),
                ("used_bytes", s.used_bytes),
                ("page_bytes", s.page_bytes),
                ("cluster_bytes", s.cluster_bytes),
                ("summary_bytes", s.summary_bytes),
                ("overhead_bytes", s.overhead_bytes),
                ("tokens_appended", s.tokens_appended),
                ("queries", s.queries),
                ("tokens_dense", s.tokens_dense),
                ("tokens_read", s.tokens_read),
                ("bytes_read", s.bytes_read),
            ],
        )
    }

    #[getter]
    fn layers(&self) -> PyResult<usize> {
        Ok(self.get()?.geometry().layers)
    }

    #[getter]
    fn q_heads(&self) -> PyResult<usize> {
        Ok(self.get()?.geometry().q_heads)
    }

    #[getter]
    fn kv_heads(&self) -> PyResult<usize> {
        Ok(self.get()?.geometry().kv_heads)
    }

    #[getter]
    fn head_dim(&self) -> PyResult<usize> {
        Ok(self.get()?.geometry().dim_k)
    }

    #[getter]
    fn value_dim(&self) -> PyResult<usize> {
        Ok(self.get()?.geometry().dim_v)
    }

    #[getter]
    fn page_tokens(&self) -> PyResult<usize> {
        Ok(self.get()?.geometry().page_tokens)
    }

    #[getter]
    fn dtype(&self) -> PyResult<&'static str> {
        Ok(self.get()?.geometry().dtype.name())
    }

    /// The selector of new sequences.
    #[getter]
    fn select(&self, py: Python) -> PyResult<Py<select::PySelect>> {
        select::object_of(py, self.get()?.select())
    }

    /// How each KV head of new sequences is read; `None` if all alike.
    #[getter]
    fn profile(&self, py: Python) -> PyResult<Option<Py<PyProfile>>> {
        PyProfile::object(py, self.get()?.profile())
    }

    /// Lets go of the memory as soon as its sequences do; no further sequence can be made.
    fn close(&self) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    #[getter]
    fn closed(&self) -> bool {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<PyTuple>) {
        self.close();
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("a Cache owns memory and threads and cannot be pickled"))
    }

    fn __repr__(&self) -> String {
        let Ok(cache) = self.get() else { return "Cache(closed)".to_owned() };
        let g = cache.geometry();
        format!(
            "Cache(layers={}, q_heads={}, kv_heads={}, head_dim={}, dtype='{}', select='{}')",
            g.layers,
            g.q_heads,
            g.kv_heads,
            g.dim_k,
            g.dtype,
            cache.select().name()
        )
    }
}
