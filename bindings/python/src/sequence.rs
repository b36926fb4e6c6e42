//! `kvist.Sequence`.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use kvist::prefill::Prefill;
use kvist::{AttendOptions, Scores};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::dlpack::{Input, Kind, Library, Storage};
use crate::drafts::{self, Nodes, Parents, PyView};
use crate::error::{Failure, raise, shape_error};
use crate::info::{PyAttendInfo, stats_object};
use crate::number::{Whole, optional};
use crate::prefill::prefill_of;
use crate::profile::{PyProfile, profile_of};
use crate::select::{self, SelectArg};

/// One token stream: append to its layers, attend over them, fork it.
#[pyclass(frozen, name = "Sequence", module = "kvist")]
pub(crate) struct PySequence {
    inner: RwLock<Option<kvist::Sequence>>,
}

/// Options of `attend`, with what they borrow.
#[derive(Default)]
pub(crate) struct AttendArgs {
    scale: Option<f32>,
    soft_cap: f32,
    window: usize,
    sinks: Option<Vec<f32>>,
    selected: bool,
    bound: bool,
    /// `[queries, heads, units]`, and its shape.
    scores: Option<(Vec<f32>, [usize; 3])>,
    prefill: Option<Prefill>,
}

impl AttendArgs {
    /// Without what the other methods add.
    pub(crate) fn new(scale: Option<f32>, soft_cap: f32, window: Whole) -> PyResult<AttendArgs> {
        let window = window.get("window")?;
        Ok(AttendArgs { scale, soft_cap, window, ..AttendArgs::default() })
    }

    /// What is returned besides the output: `selected` and `bound` default to `info`, as what is not returned
    /// is not computed.
    pub(crate) fn told(self, info: bool, selected: Option<bool>, bound: Option<bool>) -> Self {
        let (selected, bound) = (selected.unwrap_or(info), bound.unwrap_or(info));
        AttendArgs { selected, bound, ..self }
    }

    /// Learned sink logits, `[q_heads]`.
    pub(crate) fn sinks(self, sinks: Option<&Bound<PyAny>>) -> PyResult<Self> {
        let sinks = sinks.map(|s| Input::anywhere(s, "sinks")).transpose()?;
        if let Some(sinks) = &sinks
            && sinks.shape().len() != 1
        {
            return Err(shape_error("sinks", "[q_heads]", sinks.shape()));
        }
        Ok(AttendArgs { sinks: sinks.map(|s| s.floats()), ..self })
    }

    /// Scores of a trained indexer, `[queries, heads, units]`.
    pub(crate) fn scores(self, scores: Option<&Bound<PyAny>>) -> PyResult<Self> {
        let scores = scores.map(|s| Input::anywhere(s, "scores")).transpose()?;
        let scores = scores.map(|s| match *s.shape() {
            [queries, heads, units] => Ok((s.floats(), [queries, heads, units])),
            ref other => Err(shape_error("scores", "[queries, heads, units]", other)),
        });
        Ok(AttendArgs { scores: scores.transpose()?, ..self })
    }

    /// How a prompt is read.
    pub(crate) fn prefill(self, prefill: Option<&Bound<PyAny>>) -> PyResult<Self> {
        Ok(AttendArgs { prefill: prefill.map(prefill_of).transpose()?, ..self })
    }

    pub(crate) fn options(&self) -> AttendOptions<'_> {
        AttendOptions {
            scale: self.scale,
            soft_cap: self.soft_cap,
            window: self.window,
            sinks: self.sinks.as_deref(),
            selected: self.selected,
            bound: self.bound,
            scores: self.scores.as_ref().map(|(values, [_, heads, units])| Scores {
                values,
                heads: *heads,
                units: *units,
            }),
            prefill: self.prefill.as_ref(),
        }
    }
}

type Outcome<T> = Result<T, Failure>;
type Open<'a> = RwLockReadGuard<'a, Option<kvist::Sequence>>;

impl PySequence {
    pub(crate) fn new(sequence: kvist::Sequence) -> PySequence {
        PySequence { inner: RwLock::new(Some(sequence)) }
    }

    fn lock(&self) -> Open<'_> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on the sequence, unless closed. May wait for another thread's append.
    fn with<T>(&self, f: impl FnOnce(&kvist::Sequence) -> Outcome<T>) -> Outcome<T> {
        f(self.lock().as_ref().ok_or(Failure::Closed("sequence"))?)
    }

    /// `with` while other Python threads run: one of them may be appending.
    pub(crate) fn look<T: Send>(
        &self,
        py: Python,
        f: impl FnOnce(&kvist::Sequence) -> Outcome<T> + Send,
    ) -> PyResult<T> {
        Ok(py.detach(|| self.with(f))?)
    }

    /// Runs `f` on the sequence alone, unless closed.
    fn with_mut<T>(&self, f: impl FnOnce(&mut kvist::Sequence) -> Outcome<T>) -> Outcome<T> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        f(inner.as_mut().ok_or(Failure::Closed("sequence"))?)
    }

    /// Runs `f` on all sequences at once. They are locked in order of address, each once, so that
    /// two batches cannot wait for each other.
    pub(crate) fn with_all<T>(
        sequences: &[&PySequence],
        f: impl FnOnce(&[&kvist::Sequence]) -> Outcome<T>,
    ) -> Outcome<T> {
        let address = |s: &PySequence| std::ptr::from_ref(s).addr();
        let mut order: Vec<&PySequence> = sequences.to_vec();
        order.sort_unstable_by_key(|s| address(s));
        order.dedup_by_key(|s| address(s));
        let guards: Vec<(usize, Open)> = order.iter().map(|s| (address(s), s.lock())).collect();
        let find = |s: &&PySequence| {
            let at = guards.binary_search_by_key(&address(s), |g| g.0).ok()?;
            guards[at].1.as_ref()
        };
        let open: Option<Vec<&kvist::Sequence>> = sequences.iter().map(find).collect();
        f(&open.ok_or(Failure::Closed("sequence"))?)
    }
}

#[pymethods]
impl PySequence {
    /// Appends tokens to a layer: `k` `[tokens, kv_heads, head_dim]`, `v` `[tokens, kv_heads,
    /// value_dim]`. With `position`, insists that it is the next one.
    #[pyo3(signature = (layer, k, v, *, position=None))]
    fn append(
        &self,
        py: Python,
        layer: Whole,
        k: &Bound<PyAny>,
        v: &Bound<PyAny>,
        position: Option<Whole>,
    ) -> PyResult<()> {
        let layer = layer.layer()?;
        let position = position.map(|p| p.position("position")).transpose()?;
        let (k, v) = (Input::anywhere(k, "keys")?, Input::anywhere(v, "values")?);
        let expected = "[tokens, kv_heads, head_dim]";
        let (k, v) = (k.rows3(expected)?, v.rows3(expected)?);
        let appended = py.detach(|| {
            self.with_mut(|s| match position {
                Some(position) => Ok(s.append_at(layer, position, &k, &v)?),
                None => Ok(s.append(layer, &k, &v)?),
            })
        });
        Ok(appended?)
    }

    /// Attention with the last positions of a layer: `q` `[q_heads, head_dim]` or `[queries, q_heads,
    /// head_dim]`; the result has the same form, dtype and library. With `info` also what was read.
    #[pyo3(signature = (layer, q, *, info=false, scale=None, soft_cap=0.0, window=Whole::from(0),
                        sinks=None, selected=None, bound=None, scores=None, prefill=None),
           text_signature = "($self, layer, q, *, info=False, scale=None, soft_cap=0.0, window=0, \
                             sinks=None, selected=None, bound=None, scores=None, prefill=None)")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn attend<'py>(
        &self,
        py: Python<'py>,
        layer: Whole,
        q: &Bound<'py, PyAny>,
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
        let layer = layer.layer()?;
        let args = AttendArgs::new(scale, soft_cap, window)?.told(info, selected, bound);
        let args = args.sinks(sinks)?.scores(scores)?.prefill(prefill)?;
        let input = Input::anywhere(q, "q")?;
        let rows = input.rows()?;
        let flat = input.shape().len() == 2;
        let dim_v = self.look(py, |s| Ok(s.cache().geometry().dim_v))?;
        let shape = [rows.shape()[0], rows.shape()[1], dim_v];
        let mut storage =
            Storage::new(Kind::Float(input.dtype()), if flat { &shape[1..] } else { &shape });
        let mut out = storage.rows(shape);
        let found =
            py.detach(|| self.with(|s| Ok(s.attend(layer, &rows, &args.options(), &mut out)?)))?;
        let out = Library::of(q).give(py, storage.on(py, input.gpu())?)?.into_bound(py);
        if !info {
            return Ok(out);
        }
        let found = PyAttendInfo::new(py, found, shape[1], flat)?.into_bound(py).into_any();
        Ok(PyTuple::new(py, [out, found])?.into_any())
    }

    /// Tells what a layer will probably be asked next, `q` `[q_heads, head_dim]`: pages that it would
    /// read and that are on disk are sent for; how many. Never changes what is read.
    #[pyo3(signature = (layer, q, *, scale=None, soft_cap=0.0, window=Whole::from(0), scores=None),
           text_signature = "($self, layer, q, *, scale=None, soft_cap=0.0, window=0, scores=None)")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn hint(
        &self,
        py: Python,
        layer: Whole,
        q: &Bound<PyAny>,
        scale: Option<f32>,
        soft_cap: f32,
        window: Whole,
        scores: Option<&Bound<PyAny>>,
    ) -> PyResult<usize> {
        let layer = layer.layer()?;
        let args = AttendArgs::new(scale, soft_cap, window)?.scores(scores)?;
        let input = Input::anywhere(q, "q")?;
        let rows = input.rows()?;
        self.look(py, |s| Ok(s.hint(layer, &rows, &args.options())?))
    }

    /// Attention of a draft tree's nodes, of which nothing is appended: `q` `[nodes, q_heads, head_dim]`,
    /// `k` and `v` `[nodes, kv_heads, dim]`. Node `i` sees every token, node `parents[i]` (-1: none) with all
    /// that it sees, and itself.
    #[pyo3(signature = (layer, q, parents, k, v, *, info=false, scale=None, soft_cap=0.0,
                        window=Whole::from(0), sinks=None, selected=None),
           text_signature = "($self, layer, q, parents, k, v, *, info=False, scale=None, soft_cap=0.0, \
                             window=0, sinks=None, selected=None)")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn attend_tree<'py>(
        &self,
        py: Python<'py>,
        layer: Whole,
        q: &Bound<'py, PyAny>,
        parents: Parents,
        k: &Bound<'py, PyAny>,
        v: &Bound<'py, PyAny>,
        info: bool,
        scale: Option<f32>,
        soft_cap: f32,
        window: Whole,
        sinks: Option<&Bound<'py, PyAny>>,
        selected: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let layer = layer.layer()?;
        let args = AttendArgs::new(scale, soft_cap, window)?.sinks(sinks)?;
        let args = args.told(info, selected, None);
        let nodes = Nodes { trees: drafts::trees(&[parents])?, q, k, v };
        let dim_v = self.look(py, |s| Ok(s.cache().geometry().dim_v))?;
        let (out, infos) = nodes.attend(py, dim_v, &args, |q, drafts, options, out| {
            self.with(|s| Ok(vec![s.attend_tree(layer, q, drafts, options, out)?]))
        })?;
        match infos.into_iter().next().filter(|_| info) {
            None => Ok(out),
            Some(found) => Ok(PyTuple::new(py, [out, found.into_bound(py).into_any()])?.into_any()),
        }
    }

    /// A sequence that shares all pages; with `select`, `budget` or `profile` one that reads by another rule:
    /// a `select` alone has no profile, a `budget` alone keeps the one there is. With `view` it reads by that
    /// view instead of choosing anew.
    #[pyo3(signature = (*, select=None, budget=None, profile=None, view=None))]
    fn fork(
        &self,
        py: Python,
        select: Option<SelectArg>,
        budget: Option<Whole>,
        profile: Option<&Bound<PyAny>>,
        view: Option<&Bound<PyView>>,
    ) -> PyResult<PySequence> {
        let budget = optional(budget, "budget")?;
        let view = view.map(|view| &view.get().0);
        if select.is_none() && budget.is_none() && profile.is_none() {
            return self.look(py, |s| Ok(PySequence::new(drafts::viewing(s.fork(), view)?)));
        }
        let keeps = select.is_none();
        let chosen = match select {
            Some(select) => select.resolve(py, budget)?,
            None => {
                let own = self.look(py, |s| Ok(s.select().clone()))?;
                SelectArg::Object(select::object_of(py, &own)?.into_any()).resolve(py, budget)?
            }
        };
        let given = profile.map(profile_of).transpose()?;
        self.look(py, |s| {
            let own = s.profile().filter(|_| keeps);
            let fork = match given.as_ref().or(own) {
                Some(profile) => s.fork_profiled(&chosen, profile)?,
                None => s.fork_with(&chosen)?,
            };
            Ok(PySequence::new(drafts::viewing(fork, view)?))
        })
    }

    /// What the selector chose for good (`snapkv`, `magicdec`), for `fork(view=)`; `None` before the first
    /// step after the prompt, and for selectors that choose anew.
    fn view(&self, py: Python) -> PyResult<Option<PyView>> {
        self.look(py, |s| Ok(s.view().map(PyView)))
    }

    /// Forgets the tokens from `length` on.
    fn truncate(&self, py: Python, length: Whole) -> PyResult<()> {
        let length = length.position("truncate")?;
        Ok(py.detach(|| self.with_mut(|s| Ok(s.truncate(length)?)))?)
    }

    /// Keys and values of a layer from position `start` to `stop` (the end), f32 arrays
    /// `[tokens, kv_heads, dim]`.
    #[pyo3(signature = (layer, start=Whole::from(0), stop=None),
           text_signature = "($self, layer, start=0, stop=None)")]
    fn read<'py>(
        &self,
        py: Python<'py>,
        layer: Whole,
        start: Whole,
        stop: Option<Whole>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let (layer, start) = (layer.layer()?, start.position("start")?);
        let stop = stop.map(|s| s.position("stop")).transpose()?;
        if let Some(stop) = stop.filter(|&stop| stop < start) {
            let text = format!("stop: expected at least start, {start}, found {stop}");
            return Err(raise("PositionError", text));
        }
        let (k, v) = self.look(py, |s| {
            let len = s.layer_len(layer)?;
            let stop = stop.unwrap_or(len);
            // Before the memory is asked for: a slip must not end the process.
            let found = start.max(stop);
            if found > len {
                return Err(kvist::Error::Length { what: "read", layer, len, found }.into());
            }
            let g = s.cache().geometry();
            let n = stop - start;
            let (mut k, mut v) =
                (vec![0f32; n * g.kv_heads * g.dim_k], vec![0f32; n * g.kv_heads * g.dim_v]);
            s.read(layer, start, &mut k, &mut v)?;
            let storage =
                |data: Vec<f32>, dim| Storage::of_f32(data.into_iter(), &[n, g.kv_heads, dim]);
            Ok((storage(k, g.dim_k), storage(v, g.dim_v)))
        })?;
        PyTuple::new(py, [crate::dlpack::numpy(py, k)?, crate::dlpack::numpy(py, v)?])
    }

    /// Saves the sequence under a name, in place of what was saved under it before; durable when it
    /// returns. Needs a cache with `disk` and `model`.
    fn save<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let s = self.look(py, |s| Ok(s.save(name)?))?;
        let fields = [("tokens", s.tokens as u64), ("bytes", s.bytes), ("written", s.written)];
        stats_object(py, "Saved", &fields)
    }

    /// Moves finished pages to disk; how many left host memory.
    fn offload(&self, py: Python) -> PyResult<usize> {
        self.look(py, |s| Ok(s.offload()?))
    }

    /// Brings pages back from disk, the newest first, as many as fit; how many were read. With
    /// `wait=False` behind the scenes, into memory that is free; how many may come.
    #[pyo3(signature = (*, wait=true), text_signature = "($self, *, wait=True)")]
    fn restore(&self, py: Python, wait: bool) -> PyResult<usize> {
        let behind = |s: &kvist::Sequence| {
            let (pages, ticket) = s.restore_behind();
            ticket.detach();
            pages
        };
        self.look(py, |s| if wait { Ok(s.restore()?) } else { Ok(behind(s)) })
    }

    /// Tokens of one layer.
    fn layer_len(&self, py: Python, layer: Whole) -> PyResult<usize> {
        let layer = layer.layer()?;
        self.look(py, |s| Ok(s.layer_len(layer)?))
    }

    /// Bytes this sequence uses, shared ones included.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let s = self.look(py, |s| Ok(s.stats()))?;
        stats_object(
            py,
            "SequenceStats",
            &[
                ("tokens", s.tokens as u64),
                ("page_bytes", s.page_bytes),
                ("summary_bytes", s.summary_bytes),
                ("overhead_bytes", s.overhead_bytes),
            ],
        )
    }

    /// The selector of this sequence.
    #[getter]
    fn select(&self, py: Python) -> PyResult<Py<select::PySelect>> {
        let own = self.look(py, |s| Ok(s.select().clone()))?;
        select::object_of(py, &own)
    }

    /// How each KV head is read; `None` if all alike.
    #[getter]
    fn profile(&self, py: Python) -> PyResult<Option<Py<PyProfile>>> {
        let own = self.look(py, |s| Ok(s.profile().cloned()))?;
        PyProfile::object(py, own.as_ref())
    }

    /// Gives its pages back; every later use raises `ClosedError`.
    fn close(&self, py: Python) {
        py.detach(|| drop(self.inner.write().unwrap_or_else(PoisonError::into_inner).take()));
    }

    #[getter]
    fn closed(&self, py: Python) -> bool {
        py.detach(|| self.lock().is_none())
    }

    fn __len__(&self, py: Python) -> PyResult<usize> {
        self.look(py, |s| Ok(s.len()))
    }

    fn __bool__(&self) -> bool {
        true
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python, _exception: &Bound<PyTuple>) {
        self.close(py);
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("a Sequence owns pages of a cache and cannot be pickled"))
    }

    fn __repr__(&self, py: Python) -> String {
        match self.look(py, |s| Ok((s.len(), s.select().name()))) {
            Ok((tokens, select)) => format!("Sequence(tokens={tokens}, select='{select}')"),
            Err(_) => "Sequence(closed)".to_owned(),
        }
    }
}
