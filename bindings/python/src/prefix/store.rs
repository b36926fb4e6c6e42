//! `kvist.PrefixStore`.

use std::path::PathBuf;

use kvist::format::KeySecret;
use kvist::policies::replace::{Admit, Replace, Share, Watermarks};
use kvist::{Change, Changes, DiskOptions, PrefixStats, Tier};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use super::own::Own;
use super::space::{PySpace, SpaceArgs};
use super::{bytes32, patience, source_of};
use crate::error::from_store;
use crate::number::{Whole, optional};
use crate::select::parse_bytes;

/// A content-addressed store of KV blocks in host memory and on disk.
#[pyclass(frozen, name = "PrefixStore", module = "kvist")]
pub(crate) struct PyPrefixStore {
    inner: Own<kvist::PrefixStore>,
}

#[pymethods]
impl PyPrefixStore {
    #[new]
    #[pyo3(
        signature = (host=None, disk=None, *, replace="adaptive", watermarks=None, multi_tenant=false,
                     verify_tokens=true, verify_host=false, backpressure=0.0, key_secret=None,
                     seal=None, segment=None, deadline=10.0, required=true,
                     admit=Whole::from(1), admit_rate=None,
                     prefault=false),
        text_signature = "(host='1GiB', disk=None, *, replace='adaptive', watermarks=None, \
                          multi_tenant=False, verify_tokens=True, verify_host=False, \
                          backpressure=0.0, key_secret=None, seal=None, segment=None, \
                          deadline=10.0, required=True, admit=1, admit_rate=None, \
                          prefault=False)"
    )]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python constructor")]
    fn new(
        py: Python,
        host: Option<&Bound<PyAny>>,
        disk: Option<(PathBuf, Bound<PyAny>)>,
        replace: &str,
        watermarks: Option<(f64, f64)>,
        multi_tenant: bool,
        verify_tokens: bool,
        verify_host: bool,
        backpressure: f64,
        key_secret: Option<&[u8]>,
        seal: Option<&[u8]>,
        segment: Option<&Bound<PyAny>>,
        deadline: f64,
        required: bool,
        admit: Whole,
        admit_rate: Option<&Bound<PyAny>>,
        prefault: bool,
    ) -> PyResult<PyPrefixStore> {
        let mut builder = kvist::PrefixStore::builder()
            .replace(Replace::parse(replace).map_err(|e| from_store(e.into()))?)
            .multi_tenant(multi_tenant)
            .verify_tokens(verify_tokens)
            .verify_host(verify_host)
            .prefault(prefault)
            .backpressure(patience(Some(backpressure), "backpressure")?);
        if let Some(host) = host {
            builder = builder.host_bytes(parse_bytes(host)?);
        }
        if let Some(secret) = key_secret {
            builder = builder.key_secret(KeySecret::new(bytes32(secret, "key_secret")?));
        }
        if let Some((high, low)) = watermarks {
            builder = builder.watermarks(Watermarks { high, low, reserve: 0.0 });
        }
        let admit = admission(admit, admit_rate)?;
        if let Some((path, bytes)) = disk {
            let mut options = DiskOptions::new(path, parse_bytes(&bytes)?)
                .deadline(patience(Some(deadline), "deadline")?)
                .required(required);
            if let Some(segment) = segment {
                options = options.segment_bytes(parse_bytes(segment)?);
            }
            if let Some(master) = seal {
                options = options.seal(bytes32(master, "seal")?);
            }
            builder = builder.disk(options);
            if let Some(rule) = admit {
                builder = builder.admit(rule);
            }
        } else if seal.is_some() || segment.is_some() || admit.is_some() {
            let text = "seal, segment, admit and admit_rate are for a disk tier: expected disk=, \
                        found none";
            return Err(crate::error::raise("OptionError", text.to_owned()));
        }
        let store = py.detach(|| builder.build()).map_err(from_store)?;
        Ok(PyPrefixStore { inner: Own::new(store) })
    }

    /// The blocks of one model, layout, tenant and adapter.
    #[pyo3(
        signature = (*, model, layers, kv_heads, head_dim, dtype, value_dim=None,
                     block_tokens=Whole::from(64), salt=None, adapter=None, extra=None,
                     codec="lossless", layer_range=None, head_range=None, attention=None,
                     priority=0),
        text_signature = "($self, *, model, layers, kv_heads, head_dim, dtype, value_dim=None, \
                          block_tokens=64, salt=b'', adapter=None, extra=b'', codec='lossless', \
                          layer_range=None, head_range=None, attention='full', priority=0)"
    )]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python method")]
    fn space(
        &self,
        py: Python,
        model: &[u8],
        layers: Whole,
        kv_heads: Whole,
        head_dim: Whole,
        dtype: &Bound<PyAny>,
        value_dim: Option<Whole>,
        block_tokens: Whole,
        salt: Option<&[u8]>,
        adapter: Option<&[u8]>,
        extra: Option<&[u8]>,
        codec: &str,
        layer_range: Option<(Whole, Whole)>,
        head_range: Option<(Whole, Whole)>,
        attention: Option<&Bound<PyAny>>,
        priority: i8,
    ) -> PyResult<PySpace> {
        let store = self.inner.get()?;
        let pair = |range: Option<(Whole, Whole)>, what| {
            let pair = |(a, b): (Whole, Whole)| Ok::<_, PyErr>((a.get(what)?, b.get(what)?));
            range.map(pair).transpose()
        };
        let args = SpaceArgs {
            model: bytes32(model, "model")?,
            layers: layers.get("layers")?,
            kv_heads: kv_heads.get("kv_heads")?,
            head_dim: head_dim.get("head_dim")?,
            dtype,
            value_dim: optional(value_dim, "value_dim")?,
            block_tokens: block_tokens.get("block_tokens")?,
            salt: salt.unwrap_or_default(),
            adapter: adapter.map(|a| bytes32(a, "adapter")).transpose()?,
            extra: extra.unwrap_or_default(),
            codec,
            layer_range: pair(layer_range, "layer_range")?,
            head_range: pair(head_range, "head_range")?,
            attention,
            priority,
        };
        let options = args.options()?;
        let space = py.detach(|| store.space(options)).map_err(from_store)?;
        Ok(PySpace::new(store.clone(), space))
    }

    /// Erases a tenant in every tier; afterwards nothing that was put before is served, here or after
    /// a restart. Returns `records`, `segments` and `segments_left`.
    fn erase_tenant<'py>(&self, py: Python<'py>, salt: &[u8]) -> PyResult<Bound<'py, PyDict>> {
        let store = self.inner.get()?;
        let salt = salt.to_vec();
        let erased = py.detach(|| store.erase_tenant(&salt)).map_err(from_store)?;
        let dict = PyDict::new(py);
        dict.set_item("records", erased.records)?;
        dict.set_item("segments", erased.segments)?;
        dict.set_item("segments_left", erased.segments_left)?;
        Ok(dict)
    }

    /// Gives a tenant a share of the memory before its first block comes: others cannot take `floor`
    /// of it, and the tenant has no more than `ceiling`.
    #[pyo3(signature = (salt, floor=0.0, ceiling=1.0))]
    fn set_share(&self, salt: &[u8], floor: f64, ceiling: f64) -> PyResult<()> {
        self.inner.get()?.set_share(salt, Share { floor, ceiling }).map_err(from_store)
    }

    /// How often the hints of a source came true: of closed sessions, of wanted blocks.
    #[pyo3(signature = (source=Whole::from(0)), text_signature = "($self, source=0)")]
    fn hint_precision(&self, source: Whole) -> PyResult<(f32, f32)> {
        let [closed, wanted] =
            self.inner.get()?.hint_precision(source_of(source)?).map_err(from_store)?;
        Ok((closed, wanted))
    }

    /// Waits until everything put so far is on disk or was refused; whether that was in time.
    #[pyo3(signature = (timeout=None))]
    fn flush(&self, py: Python, timeout: Option<f64>) -> PyResult<bool> {
        let (store, timeout) = (self.inner.get()?, patience(timeout, "timeout")?);
        store.check().map_err(from_store)?;
        Ok(py.detach(|| store.flush(timeout)))
    }

    /// Which blocks came to which tier and left it since the last call: `(reset, changes)`, each
    /// change `(key, tier, arrived)` with tier "host" or "disk". With `reset`, what was known before is
    /// void and the changes list all that is there; so it is the first time.
    fn changes<'py>(&self, py: Python<'py>) -> PyResult<(bool, Bound<'py, PyList>)> {
        let store = self.inner.get()?;
        store.check().map_err(from_store)?;
        let Changes { reset, changes } = py.detach(|| store.changes());
        let change = |change: Change| {
            let tier = match change.tier {
                Tier::Host => "host",
                Tier::Disk => "disk",
            };
            (PyBytes::new(py, &change.key.0), tier, change.arrived)
        };
        Ok((reset, PyList::new(py, changes.into_iter().map(change))?))
    }

    /// Bytes held and work done so far.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let store = self.inner.get()?;
        store.check().map_err(from_store)?;
        let stats = py.detach(|| store.stats());
        stats_object(py, &stats)
    }

    /// Writes what waits (for at most 5 s), gives memory and directory back; every later use raises
    /// `ClosedError`.
    fn close(&self, py: Python) -> PyResult<()> {
        let store = self.inner.get()?;
        py.detach(|| store.close());
        Ok(())
    }

    /// The secret that keys the store's hashes: another process that is given it as `key_secret`
    /// computes the same keys. Never log it.
    #[getter]
    fn key_secret<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, self.inner.get()?.key_secret().bytes()))
    }

    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.inner.get()?.check().is_err())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python, _exception: &Bound<PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("a PrefixStore owns memory and a directory and cannot be pickled"))
    }

    fn __repr__(&self) -> String {
        match self.closed() {
            Ok(false) => "PrefixStore(open)",
            Ok(true) => "PrefixStore(closed)",
            Err(_) => "PrefixStore(of the parent process)",
        }
        .to_owned()
    }
}

/// What is written to disk; `None` for everything.
fn admission(sightings: Whole, rate: Option<&Bound<PyAny>>) -> PyResult<Option<Admit>> {
    let sightings = sightings.get("admit")?;
    let rate = rate.map(parse_bytes).transpose()?;
    if sightings == 1 && rate.is_none() {
        return Ok(None);
    }
    let sightings = u32::try_from(sightings).unwrap_or(u32::MAX);
    // A tick of a store is a tenth of a second.
    let bytes_per_tick = rate.map(|bytes| bytes as f64 / 10.0);
    Ok(Some(Admit { sightings, bytes_per_tick, ..Admit::default() }))
}

/// A `kvist.PrefixStats`.
fn stats_object<'py>(py: Python<'py>, stats: &PrefixStats) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    let numbers = [
        ("host_budget_bytes", stats.host_budget_bytes),
        ("host_used_bytes", stats.host_used_bytes),
        ("host_blocks", stats.host_blocks),
        ("lent_blocks", stats.lent_blocks),
        ("host_evicted", stats.host_evicted),
        ("queued_bytes", stats.queued_bytes),
        ("puts", stats.puts),
        ("put_bytes", stats.put_bytes),
        ("published", stats.published),
        ("shared", stats.shared),
        ("gets", stats.gets),
        ("gets_from_disk", stats.gets_from_disk),
        ("get_bytes", stats.get_bytes),
        ("throttled", stats.throttled),
        ("not_admitted", stats.not_admitted),
        ("write_errors", stats.write_errors),
    ];
    numbers.iter().try_for_each(|(name, value)| fields.set_item(name, value))?;
    fields.set_item("write_seconds", stats.write_seconds)?;
    fields.set_item("authenticated", stats.authenticated)?;
    let misses = PyDict::new(py);
    stats.misses.iter().try_for_each(|(reason, count)| misses.set_item(reason, count))?;
    fields.set_item("misses", misses)?;
    let disk = stats.disk.as_ref().map(|disk| disk_object(py, disk)).transpose()?;
    fields.set_item("disk", disk)?;
    py.import("kvist._prefix")?.getattr("PrefixStats")?.call((), Some(&fields))
}

/// A `kvist.DiskStats`.
fn disk_object<'py>(py: Python<'py>, disk: &kvist::DiskUse) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    let numbers = [
        ("budget_bytes", disk.budget_bytes),
        ("used_bytes", disk.used_bytes),
        ("live_bytes", disk.live_bytes),
        ("records", disk.records),
        ("segments", disk.segments),
        ("index_bytes", disk.index_bytes),
        ("parked_bytes", disk.parked_bytes),
        ("written_bytes", disk.written_bytes),
        ("read_bytes", disk.read_bytes),
        ("evicted", disk.evicted),
        ("moved", disk.moved),
        ("quarantined", disk.quarantined),
        ("poisoned_segments", disk.poisoned_segments),
        ("alien_files", disk.alien_files),
        ("skipped_records", disk.skipped_records),
    ];
    numbers.iter().try_for_each(|(name, value)| fields.set_item(name, value))?;
    fields.set_item("engine", disk.engine)?;
    fields.set_item("degraded", disk.degraded.map(|d| format!("{:?}", d.cause).to_lowercase()))?;
    py.import("kvist._prefix")?.getattr("DiskStats")?.call((), Some(&fields))
}
