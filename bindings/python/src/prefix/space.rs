//! `kvist.Space` and `kvist.Prefix`.

use kvist::format::{AttentionKind, BlockKey, BlockLayout};
use kvist::{Codec, Prefix, SpaceOptions};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::args::BlockArgs;
use super::lease::PyLease;
use super::own::Own;
use super::pinned::PyPinned;
use super::result::{published_object, restored_object, started_object, stored};
use super::ticket::{PyTicket, Work};
use super::tokens::tokens_of;
use super::{bytes32, patience, source_of};
use crate::cache::PyCache;
use crate::dlpack::Behind;
use crate::error::{from_store, option_error, raise};
use crate::number::{Whole, optional};
use crate::select::block_dtype_of;
use crate::sequence::PySequence;

/// What `PrefixStore.space` takes.
pub(super) struct SpaceArgs<'a, 'py> {
    pub(super) model: [u8; 32],
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) dtype: &'a Bound<'py, PyAny>,
    pub(super) value_dim: Option<usize>,
    pub(super) block_tokens: usize,
    pub(super) salt: &'a [u8],
    pub(super) adapter: Option<[u8; 32]>,
    pub(super) extra: &'a [u8],
    pub(super) codec: &'a str,
    pub(super) layer_range: Option<(usize, usize)>,
    pub(super) head_range: Option<(usize, usize)>,
    pub(super) attention: Option<&'a Bound<'py, PyAny>>,
    pub(super) priority: i8,
}

/// A number that a layout can hold; larger ones are refused with the layout.
fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl SpaceArgs<'_, '_> {
    pub(super) fn options(&self) -> PyResult<SpaceOptions> {
        let layout = self.layout()?;
        layout.validate().map_err(from_store)?;
        let codec = Codec::parse(self.codec).map_err(from_store)?;
        let options = SpaceOptions::new(self.model, layout).salt(self.salt).extra(self.extra);
        let options = options.codec(codec).priority(self.priority);
        Ok(match self.adapter {
            Some(adapter) => options.adapter(adapter),
            None => options,
        })
    }

    fn layout(&self) -> PyResult<BlockLayout> {
        let attention = self.attention()?;
        let range = |given: Option<(usize, usize)>, all: usize, what: &str| match given {
            None => Ok(0..small(all)),
            Some((from, to)) if from < to && to <= all => Ok(small(from)..small(to)),
            Some((from, to)) => Err(option_error(
                what,
                &format!("a range inside 0..{all}"),
                format!("{from}..{to}"),
            )),
        };
        let latent = attention == AttentionKind::Latent;
        let value_dim = self.value_dim.unwrap_or(if latent { 0 } else { self.head_dim });
        Ok(BlockLayout {
            dtype: block_dtype_of(self.dtype)?,
            block_tokens: small(self.block_tokens),
            layers: range(self.layer_range, self.layers, "layer_range")?,
            kv_heads: range(self.head_range, self.kv_heads, "head_range")?,
            dim_k: small(self.head_dim),
            dim_v: small(value_dim),
            attention,
        })
    }

    fn attention(&self) -> PyResult<AttentionKind> {
        let Some(object) = self.attention else { return Ok(AttentionKind::Full) };
        let refuse = || {
            let found = object.repr().map_or_else(|_| "?".to_owned(), |r| r.to_string());
            option_error("attention", "'full', 'mla' or ('window', tokens)", found)
        };
        if let Ok(name) = object.extract::<String>() {
            return match name.as_str() {
                "full" => Ok(AttentionKind::Full),
                "mla" => Ok(AttentionKind::Latent),
                _ => Err(refuse()),
            };
        }
        match object.extract::<(String, u32)>() {
            Ok((name, tokens)) if name == "window" => Ok(AttentionKind::Window(tokens)),
            _ => Err(refuse()),
        }
    }
}

/// The blocks of a token stream, in order.
#[pyclass(frozen, name = "Prefix", module = "kvist")]
pub(crate) struct PyPrefix {
    prefix: kvist::Prefix,
}

#[pymethods]
impl PyPrefix {
    /// Their keys, 32 bytes each.
    #[getter]
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.prefix.keys().iter().map(|key| PyBytes::new(py, &key.0)))
    }

    fn __len__(&self) -> usize {
        self.prefix.len()
    }

    fn __bool__(&self) -> bool {
        !self.prefix.is_empty()
    }

    fn __reduce__(&self) -> PyResult<()> {
        let text = "a Prefix holds token ids and cannot be pickled; pass its keys on";
        Err(PyTypeError::new_err(text))
    }

    fn __repr__(&self) -> String {
        format!("Prefix(blocks={})", self.prefix.len())
    }
}

/// The blocks of one model, layout, tenant and adapter.
#[pyclass(frozen, name = "Space", module = "kvist")]
pub(crate) struct PySpace {
    /// The store lives as long as its spaces do.
    inner: Own<(kvist::PrefixStore, kvist::Space)>,
}

impl PySpace {
    pub(super) fn new(store: kvist::PrefixStore, space: kvist::Space) -> PySpace {
        PySpace { inner: Own::new((store, space)) }
    }

    /// The space, if it can be used.
    fn usable(&self) -> PyResult<&kvist::Space> {
        let (_, space) = self.inner.get()?;
        space.check().map_err(from_store)?;
        Ok(space)
    }

    fn of(&self, prefix: &PyPrefix) -> PyResult<&kvist::Space> {
        let space = self.usable()?;
        space.owns(&prefix.prefix).map_err(from_store)?;
        Ok(space)
    }

    /// Tells the store what is known of a prefix.
    fn hint(
        &self,
        py: Python,
        prefix: &Bound<PyPrefix>,
        source: Whole,
        tell: impl FnOnce(&kvist::Space, &Prefix, u8) -> Result<(), kvist::Error> + Send,
    ) -> PyResult<()> {
        let (space, prefix) = (self.of(prefix.get())?, &prefix.get().prefix);
        let source = source_of(source)?;
        py.detach(|| tell(space, prefix, source)).map_err(from_store)
    }
}

#[pymethods]
impl PySpace {
    /// The full blocks of a token stream: a list, array or tensor of token ids. With `parent`, the key
    /// of a block, those of the tokens that follow it.
    #[pyo3(signature = (token_ids, *, parent=None))]
    fn prefix(
        &self,
        py: Python,
        token_ids: &Bound<PyAny>,
        parent: Option<&[u8]>,
    ) -> PyResult<PyPrefix> {
        let space = self.usable()?;
        let parent = parent.map(|key| bytes32(key, "parent").map(BlockKey)).transpose()?;
        let (parent, tokens) = (parent.unwrap_or(BlockKey::ROOT), tokens_of(token_ids)?);
        let prefix = py.detach(|| space.prefix_after(&parent, &tokens)).map_err(from_store)?;
        Ok(PyPrefix { prefix })
    }

    /// Blocks by keys that a space of the same kind computed elsewhere. Their tokens are not compared.
    /// `after`, where they follow others of their chain: the keys of the one before them and of the
    /// chain's second one.
    #[pyo3(signature = (keys, *, after=None))]
    fn prefix_of_keys(
        &self,
        keys: Vec<Bound<PyBytes>>,
        after: Option<(Vec<u8>, Vec<u8>)>,
    ) -> PyResult<PyPrefix> {
        let space = self.usable()?;
        let key = |key: &Bound<PyBytes>| bytes32(key.as_bytes(), "keys").map(BlockKey);
        let keys = keys.iter().map(key).collect::<PyResult<Vec<_>>>()?;
        let prefix = match after {
            None => space.prefix_of_keys(keys),
            Some((parent, second)) => {
                let [parent, second] =
                    [bytes32(&parent, "after")?, bytes32(&second, "after")?].map(BlockKey);
                space.prefix_of_keys_after(&parent, &second, keys)
            }
        };
        Ok(PyPrefix { prefix })
    }

    /// Blocks by hashes that another system computed over their tokens and all that came before, in full.
    /// They are never found by tokens.
    fn prefix_of_hashes(&self, hashes: Vec<Bound<PyBytes>>) -> PyResult<PyPrefix> {
        let space = self.usable()?;
        let hashes: Vec<&[u8]> = hashes.iter().map(|hash| hash.as_bytes()).collect();
        Ok(PyPrefix { prefix: space.prefix_of_hashes(&hashes) })
    }

    /// Leading blocks that are stored, as far as the indexes know.
    fn contains(&self, py: Python, prefix: &Bound<PyPrefix>) -> PyResult<usize> {
        let prefix = prefix.get();
        let space = self.of(prefix)?;
        Ok(py.detach(|| space.contains(&prefix.prefix)))
    }

    /// Stores blocks `first`, `first + 1`, ... of a prefix: copied now, written to disk behind.
    #[pyo3(signature = (prefix, first=Whole::from(0), blocks=None, *, kv=None, k=None, v=None,
                        block_ids=None, layout="nhd"),
           text_signature = "($self, prefix, first=0, blocks=None, *, kv=None, k=None, v=None, \
                             block_ids=None, layout='nhd')")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn put<'py>(
        &self,
        py: Python<'py>,
        prefix: &Bound<'py, PyPrefix>,
        first: Whole,
        blocks: Option<&Bound<'py, PyAny>>,
        kv: Option<&Bound<'py, PyAny>>,
        k: Option<&Bound<'py, PyAny>>,
        v: Option<&Bound<'py, PyAny>>,
        block_ids: Option<&Bound<'py, PyAny>>,
        layout: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        let prefix = &prefix.get().prefix;
        let (space, first) = (self.usable()?, first.get("first")?);
        let args = BlockArgs { blocks, kv, k, v, block_ids, layout };
        let blocks = args.resolve(space.layout(), prefix.len().saturating_sub(first))?;
        let results = py
            .detach(|| blocks.with_rows(space.layout(), |rows| space.put(prefix, first, rows)))
            .map_err(from_store)?;
        stored(py, &results)
    }

    /// Restores blocks `start`, `start + 1`, ... of a prefix into the caller's memory: the longest run
    /// that is there and right. Memory of later blocks is undefined.
    #[pyo3(signature = (prefix, start=Whole::from(0), blocks=None, *, kv=None, k=None, v=None,
                        block_ids=None, layout="nhd", layers=None),
           text_signature = "($self, prefix, start=0, blocks=None, *, kv=None, k=None, v=None, \
                             block_ids=None, layout='nhd', layers=None)")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn get<'py>(
        &self,
        py: Python<'py>,
        prefix: &Bound<'py, PyPrefix>,
        start: Whole,
        blocks: Option<&Bound<'py, PyAny>>,
        kv: Option<&Bound<'py, PyAny>>,
        k: Option<&Bound<'py, PyAny>>,
        v: Option<&Bound<'py, PyAny>>,
        block_ids: Option<&Bound<'py, PyAny>>,
        layout: &str,
        layers: Option<(Whole, Whole)>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let prefix = &prefix.get().prefix;
        let (space, start) = (self.usable()?, start.get("start")?);
        let args = BlockArgs { blocks, kv, k, v, block_ids, layout };
        let blocks = args.resolve(space.layout(), prefix.len().saturating_sub(start))?;
        blocks.check_writable(space.layout())?;
        let layers = match layers {
            Some((from, to)) => from.get("layers")?..to.get("layers")?,
            None => 0..space.layout().num_layers(),
        };
        let range = start..start.saturating_add(blocks.len());
        let restored = py.detach(|| {
            blocks
                .with_rows_mut(space.layout(), |rows| space.get_layers(prefix, range, layers, rows))
        });
        restored_object(py, restored.map_err(from_store)?)
    }

    /// `put` of all blocks of a prefix in the background, in the order of the calls: the ticket's result
    /// is what `put` returns. The memory is read until then, and nobody may write to it; `None` as
    /// result says that nothing was stored.
    #[pyo3(signature = (prefix, blocks=None, *, kv=None, k=None, v=None, block_ids=None,
                        layout="nhd"))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn put_behind(
        &self,
        py: Python,
        prefix: &Bound<PyPrefix>,
        blocks: Option<&Bound<PyAny>>,
        kv: Option<&Bound<PyAny>>,
        k: Option<&Bound<PyAny>>,
        v: Option<&Bound<PyAny>>,
        block_ids: Option<&Bound<PyAny>>,
        layout: &str,
    ) -> PyResult<PyTicket> {
        let (prefix, space) = (&prefix.get().prefix, self.usable()?);
        let args = BlockArgs { blocks, kv, k, v, block_ids, layout };
        let from = args.resolve(space.layout(), prefix.len())?;
        if from.len() != prefix.len() {
            let text = format!("blocks: expected {}, found {}", prefix.len(), from.len());
            return Err(raise("ShapeError", text));
        }
        let from = Box::new(Behind { blocks: from, layout: space.layout().clone() });
        let ticket = py.detach(|| space.put_behind(prefix, from)).map_err(from_store)?;
        Ok(PyTicket::new(Work::Put(ticket)))
    }

    /// `get` in the background: the ticket's result is what `get` returns. The memory is written to
    /// until then, and nobody else may use it; `None` as result says that nothing was written.
    #[pyo3(signature = (prefix, start=Whole::from(0), blocks=None, *, kv=None, k=None, v=None,
                        block_ids=None, layout="nhd"),
           text_signature = "($self, prefix, start=0, blocks=None, *, kv=None, k=None, v=None, \
                             block_ids=None, layout='nhd')")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn get_behind(
        &self,
        py: Python,
        prefix: &Bound<PyPrefix>,
        start: Whole,
        blocks: Option<&Bound<PyAny>>,
        kv: Option<&Bound<PyAny>>,
        k: Option<&Bound<PyAny>>,
        v: Option<&Bound<PyAny>>,
        block_ids: Option<&Bound<PyAny>>,
        layout: &str,
    ) -> PyResult<PyTicket> {
        let prefix = &prefix.get().prefix;
        let (space, start) = (self.usable()?, start.get("start")?);
        let args = BlockArgs { blocks, kv, k, v, block_ids, layout };
        let blocks = args.resolve(space.layout(), prefix.len().saturating_sub(start))?;
        blocks.check_writable(space.layout())?;
        let range = start..start.saturating_add(blocks.len());
        let to = Box::new(Behind { blocks, layout: space.layout().clone() });
        let ticket = py.detach(|| space.get_behind(prefix, range, to)).map_err(from_store)?;
        Ok(PyTicket::new(Work::Get(ticket)))
    }

    /// Makes the full blocks of a sequence findable by content where they are: the store shares its
    /// pages. `token_ids` are those of the sequence from its start.
    fn publish<'py>(
        &self,
        py: Python<'py>,
        sequence: &Bound<'py, PySequence>,
        token_ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (space, tokens) = (self.usable()?, tokens_of(token_ids)?);
        let published = sequence.get().look(py, |s| Ok(space.publish(s, &tokens)?))?;
        published_object(py, &published)
    }

    /// A sequence of a cache that has the longest known prefix of a token stream, in full blocks. What
    /// sequences of this cache published is shared, the rest is copied or read from disk.
    fn start<'py>(
        &self,
        py: Python<'py>,
        cache: &Bound<'py, PyCache>,
        token_ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (space, tokens) = (self.usable()?, tokens_of(token_ids)?);
        let cache = cache.get().get()?;
        let started = py.detach(|| space.start(&cache, &tokens)).map_err(from_store)?;
        started_object(py, started)
    }

    /// Brings blocks from disk into memory in the background.
    #[pyo3(signature = (prefix, start=Whole::from(0), stop=None),
           text_signature = "($self, prefix, start=0, stop=None)")]
    fn prefetch(
        &self,
        py: Python,
        prefix: &Bound<PyPrefix>,
        start: Whole,
        stop: Option<Whole>,
    ) -> PyResult<PyTicket> {
        let prefix = prefix.get();
        let space = self.of(prefix)?;
        let stop = optional(stop, "stop")?.unwrap_or(prefix.prefix.len());
        let range = start.get("start")?..stop;
        Ok(PyTicket::new(Work::Prefetch(py.detach(|| space.prefetch(&prefix.prefix, range)))))
    }

    /// Says that the session whose prefix this is does not go on: its blocks leave memory first.
    /// `source` is a number, 0 to 7, for who says so; sources count as long as they are right.
    #[pyo3(signature = (prefix, source=Whole::from(0)), text_signature = "($self, prefix, source=0)")]
    fn session_closed(&self, py: Python, prefix: &Bound<PyPrefix>, source: Whole) -> PyResult<()> {
        self.hint(py, prefix, source, |space, prefix, source| space.session_closed(prefix, source))
    }

    /// Says that blocks will be used again within so many seconds.
    #[pyo3(signature = (prefix, within, source=Whole::from(0)),
           text_signature = "($self, prefix, within, source=0)")]
    fn wanted(
        &self,
        py: Python,
        prefix: &Bound<PyPrefix>,
        within: f64,
        source: Whole,
    ) -> PyResult<()> {
        let within = patience(Some(within), "within")?;
        self.hint(py, prefix, source, |space, prefix, source| space.wanted(prefix, within, source))
    }

    /// Says that blocks will be used after so many seconds; those on disk are brought into memory
    /// just before.
    #[pyo3(signature = (prefix, after, source=Whole::from(0)),
           text_signature = "($self, prefix, after, source=0)")]
    fn next_use(
        &self,
        py: Python,
        prefix: &Bound<PyPrefix>,
        after: f64,
        source: Whole,
    ) -> PyResult<()> {
        let after = patience(Some(after), "after")?;
        self.hint(py, prefix, source, |space, prefix, source| space.next_use(prefix, after, source))
    }

    /// Keeps the leading blocks that are in memory there until the result is closed.
    fn pin(&self, py: Python, prefix: &Bound<PyPrefix>) -> PyResult<PyPinned> {
        let (space, prefix) = (self.of(prefix.get())?, prefix.get());
        py.detach(|| space.pin(&prefix.prefix)).map(PyPinned::new).map_err(from_store)
    }

    /// Forgets blocks, of a prefix or by key, in every tier; how many were there.
    fn evict(&self, py: Python, blocks: &Bound<PyAny>) -> PyResult<usize> {
        let space = self.usable()?;
        if let Ok(prefix) = blocks.cast::<PyPrefix>() {
            let prefix = &prefix.get().prefix;
            space.owns(prefix).map_err(from_store)?;
            return Ok(py.detach(|| space.evict(prefix.keys())));
        }
        let keys: Vec<Bound<PyBytes>> = blocks.extract().map_err(|_| {
            PyTypeError::new_err("blocks: expected a Prefix or a list of keys (32 bytes each)")
        })?;
        let key = |key: &Bound<PyBytes>| bytes32(key.as_bytes(), "keys").map(BlockKey);
        let keys = keys.iter().map(key).collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| space.evict(&keys)))
    }

    /// A block's bytes where they are in memory, without a copy; `None` if it is not in memory.
    fn lease(&self, py: Python, key: &[u8]) -> PyResult<Option<PyLease>> {
        let (space, key) = (self.usable()?, BlockKey(bytes32(key, "key")?));
        Ok(py.detach(|| space.lease(&key)).map(PyLease::new))
    }

    /// Bytes of a block.
    #[getter]
    fn block_bytes(&self) -> PyResult<usize> {
        Ok(self.inner.get()?.1.layout().bytes())
    }

    /// Tokens of a block.
    #[getter]
    fn block_tokens(&self) -> PyResult<u32> {
        Ok(self.inner.get()?.1.layout().block_tokens)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("a Space belongs to a store and cannot be pickled"))
    }

    fn __repr__(&self) -> String {
        match self.inner.get() {
            Ok((_, space)) => {
                let (n, bytes) = (space.layout().block_tokens, space.layout().bytes());
                format!("Space(block_tokens={n}, block_bytes={bytes})")
            }
            Err(_) => "Space(of the parent process)".to_owned(),
        }
    }
}
