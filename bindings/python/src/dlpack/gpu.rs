//! Tensors on GPUs: brought to the host, results taken back, memory that is lent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvist::DeviceOptions;
use kvist::format::BlockDType;
use kvist_kernels::cuda::{Buffer, Compiler, Device, Error, Reader, Strided, Visit};
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

use super::element::Element;
use super::view::{Hold, View, row_major};
use crate::error::{dtype_error, from_gpu, option_error};

/// What a GPU wants of memory for frames.
const ALIGNMENT: u64 = 256;

static LINKS: Mutex<BTreeMap<usize, Arc<Link>>> = Mutex::new(BTreeMap::new());

/// The way between the host and a GPU: one for each GPU, made when it is first needed, and kept.
pub(crate) struct Link {
    pub(super) ordinal: usize,
    stream: u64,
    device: Arc<Device>,
    reader: Mutex<Reader>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// The way to GPU `ordinal`.
    pub(super) fn to(py: Python, ordinal: usize) -> PyResult<Arc<Link>> {
        py.detach(|| Link::open(ordinal)).map_err(|e| from_gpu(&e))
    }

    fn open(ordinal: usize) -> Result<Arc<Link>, Error> {
        let mut links = lock(&LINKS);
        if let Some(link) = links.get(&ordinal) {
            return Ok(link.clone());
        }
        let _visit = Visit::new();
        let device = Arc::new(Device::open(ordinal, Arc::new(Compiler::from_env()))?);
        let reader = Reader::new(device.clone())?;
        let stream = reader.stream().handle();
        let link = Arc::new(Link { ordinal, stream, device, reader: Mutex::new(reader) });
        links.insert(ordinal, link.clone());
        Ok(link)
    }

    /// The stream that a producer makes wait for its work before a tensor is read here.
    pub(super) fn stream(&self) -> u64 {
        self.stream
    }

    /// A tensor's elements, row-major, in whole words; other Python threads run meanwhile.
    ///
    /// # Safety
    /// As for [`Reader::read`].
    pub(super) unsafe fn read(
        &self,
        py: Python,
        from: &Strided,
        bytes: usize,
    ) -> PyResult<Vec<u64>> {
        let mut copy = vec![0u64; bytes.div_ceil(8)];
        let read = py.detach(|| {
            let _visit = Visit::new();
            // SAFETY: the words are at least as many bytes, of any value.
            let out = unsafe { std::slice::from_raw_parts_mut(copy.as_mut_ptr().cast(), bytes) };
            // SAFETY: promised by the caller.
            unsafe { lock(&self.reader).read(from, out) }
        });
        read.map_err(|e| from_gpu(&e))?;
        Ok(copy)
    }

    /// Memory of the GPU with these bytes; other Python threads run meanwhile.
    pub(super) fn put(self: &Arc<Self>, py: Python, bytes: &[u8]) -> PyResult<OnGpu> {
        let copied = py.detach(|| {
            let _visit = Visit::new();
            self.device.buffer_of(lock(&self.reader).stream(), bytes)
        });
        let buffer = Some(copied.map_err(|e| from_gpu(&e))?);
        Ok(OnGpu { buffer, ordinal: self.ordinal })
    }
}

/// Memory of a GPU that is given back by whoever drops it, on any thread.
pub(super) struct OnGpu {
    buffer: Option<Buffer>,
    pub(super) ordinal: usize,
}

impl OnGpu {
    pub(super) fn address(&self) -> u64 {
        self.buffer.as_ref().map_or(0, Buffer::address)
    }
}

impl Drop for OnGpu {
    fn drop(&mut self) {
        let _visit = Visit::new();
        self.buffer = None;
    }
}

/// A tensor of somebody else, held until the last page in it is given up.
struct Owner(#[expect(dead_code, reason = "held, not read")] Hold);

// SAFETY: a deleter may be called from any thread, and nothing is read through the tensor.
unsafe impl Send for Owner {}
// SAFETY: as above.
unsafe impl Sync for Owner {}

/// `options` with a tensor's memory for frames: uint8, dense, on the GPU `ordinal`.
pub(crate) fn lend(
    options: DeviceOptions,
    object: &Bound<PyAny>,
    ordinal: usize,
) -> PyResult<DeviceOptions> {
    let what = "device_memory";
    let view = View::anywhere(object, what)?;
    let expected = |expected: &str, found: &dyn std::fmt::Display| {
        let text = format!("{what}: expected {expected}, found {found}");
        Err(PyBufferError::new_err(text))
    };
    let Some(link) = &view.gpu else { return expected("a CUDA tensor", &"one of the CPU") };
    if link.ordinal != ordinal {
        let found = format!("cuda:{}", link.ordinal);
        return Err(option_error(what, &format!("memory of cuda:{ordinal}, as device"), found));
    }
    if view.element != Element::Block(BlockDType::U8) {
        return Err(dtype_error(what, "uint8", &view.element.name()));
    }
    let dense = row_major(view.shape());
    let gaps = (0..view.rank).any(|d| view.shape[d] > 1 && view.strides[d] != dense[d]);
    if gaps {
        return expected("a contiguous tensor", &format!("strides {:?}", view.strides()));
    }
    if view.readonly {
        return expected("a tensor that may be written", &"one that is read-only");
    }
    let (address, bytes) = (view.ptr.addr() as u64, view.shape().iter().product::<usize>() as u64);
    if bytes > 0 && !address.is_multiple_of(ALIGNMENT) {
        return expected("an address that is a multiple of 256", &format!("{address:#x}"));
    }
    // What its framework queued there is over before frames are written.
    let settled = object.py().detach(|| {
        let _visit = Visit::new();
        lock(&link.reader).stream().synchronize()
    });
    settled.map_err(|e| from_gpu(&e))?;
    // SAFETY: memory of that GPU, aligned, which its owner keeps; the caller lends it to this cache alone.
    let options = unsafe { options.memory(address, bytes) };
    Ok(options.owner(Arc::new(Owner(view.hold))))
}
