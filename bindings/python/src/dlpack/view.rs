//! Tensors in, of any element type: tensors that speak DLPack, NumPy arrays (`ml_dtypes` included)
//! and anything NumPy can view. Nothing is copied or cast.

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict, PyTuple};
use pyo3::{ffi, intern};

use super::element::Element;
use super::gpu::Link;
use super::raw;
use crate::error::{dtype_error, shape_error};

/// Most dimensions a tensor may have.
pub(super) const RANK_MAX: usize = 8;

/// A borrowed tensor: address, type, shape and strides, and what keeps it alive.
pub(crate) struct View {
    pub(super) ptr: *const u8,
    pub(super) element: Element,
    pub(super) rank: usize,
    pub(super) shape: [usize; RANK_MAX],
    /// In elements.
    pub(super) strides: [i64; RANK_MAX],
    pub(super) readonly: bool,
    pub(super) what: &'static str,
    /// Of a tensor on a GPU: nobody reads that through its address.
    pub(super) gpu: Option<Arc<Link>>,
    pub(super) hold: Hold,
}

/// Where tensors may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Host,
    Gpus,
}

/// What keeps the memory alive.
pub(super) enum Hold {
    /// The object itself.
    Object(#[expect(dead_code, reason = "held, not read")] Py<PyAny>),
    Managed(*mut raw::Managed),
    Versioned(*mut raw::ManagedVersioned),
    /// A compact copy, where the layout does not fit the kernels.
    Copy(#[expect(dead_code, reason = "held, not read")] Vec<u64>),
}

impl Drop for Hold {
    fn drop(&mut self) {
        // SAFETY: we took these tensors over when we renamed their capsule, and own them alone; the
        // deleter may be called once, from any thread.
        unsafe {
            match *self {
                Hold::Managed(m) => {
                    if let Some(delete) = (*m).deleter {
                        delete(m);
                    }
                }
                Hold::Versioned(m) => {
                    if let Some(delete) = (*m).deleter {
                        delete(m);
                    }
                }
                Hold::Object(_) | Hold::Copy(_) => {}
            }
        }
    }
}

impl Hold {
    /// Whether the exporter forbids writing.
    fn is_readonly(&self) -> bool {
        match self {
            // SAFETY: ours, and alive while `self` is.
            Hold::Versioned(m) => unsafe { (**m).flags & raw::READ_ONLY != 0 },
            _ => false,
        }
    }
}

impl View {
    /// Borrows `object`, which is in host memory; `what` names it in errors.
    pub(crate) fn new(object: &Bound<PyAny>, what: &'static str) -> PyResult<View> {
        View::within(object, what, Reach::Host)
    }

    /// Borrows `object`, which may be on a GPU: `gpu` says so then, and work on it that its exporter queued
    /// is over when what is queued on that link's stream now is.
    pub(super) fn anywhere(object: &Bound<PyAny>, what: &'static str) -> PyResult<View> {
        View::within(object, what, Reach::Gpus)
    }

    fn within(object: &Bound<PyAny>, what: &'static str, reach: Reach) -> PyResult<View> {
        let py = object.py();
        refuse_negated(object, what)?;
        if let Some(api) = exchange_of(object) {
            from_exchange(object, api, what, reach)
        } else if let Ok(interface) = object.getattr(intern!(py, "__array_interface__")) {
            from_interface(object, &interface, what)
        } else if object.hasattr(intern!(py, "__dlpack__"))? {
            from_capsule(object, what, reach)
        } else {
            from_buffer(object, what)
        }
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }

    /// Strides in elements.
    pub(crate) fn strides(&self) -> &[i64] {
        &self.strides[..self.rank]
    }

    /// Whole numbers of one dimension.
    pub(crate) fn numbers(&self) -> PyResult<Vec<i64>> {
        // The pointer must be readable for one element, which needs no alignment.
        let read: unsafe fn(*const u8) -> i64 = match self.element {
            // SAFETY: readable, by the caller, below.
            Element::I32 => |at| i64::from(unsafe { at.cast::<i32>().read_unaligned() }),
            // SAFETY: readable, by the caller, below.
            Element::I64 => |at| unsafe { at.cast::<i64>().read_unaligned() },
            // SAFETY: readable, by the caller, below.
            Element::U32 => |at| i64::from(unsafe { at.cast::<u32>().read_unaligned() }),
            _ => return Err(dtype_error(self.what, "whole numbers", &self.element.name())),
        };
        let &[len] = self.shape() else {
            return Err(shape_error(self.what, "one dimension", self.shape()));
        };
        let step = self.strides[0].wrapping_mul(self.element.size() as i64) as isize;
        // SAFETY: the exporter vouches for `len` elements at this stride, and `hold` keeps them.
        Ok((0..len).map(|i| unsafe { read(self.ptr.wrapping_offset(i as isize * step)) }).collect())
    }
}

pub(super) fn row_major(shape: &[usize]) -> [i64; RANK_MAX] {
    let mut strides = [1; RANK_MAX];
    for d in (0..shape.len().saturating_sub(1)).rev() {
        strides[d] = strides[d + 1] * shape[d + 1].max(1) as i64;
    }
    strides
}

/// The library's C functions, if its type has them in a version we know.
pub(crate) fn exchange_of(object: &Bound<PyAny>) -> Option<&'static raw::Exchange> {
    let name = intern!(object.py(), "__dlpack_c_exchange_api__");
    let capsule = object.get_type().getattr(name).ok()?;
    // SAFETY: the name is checked by `PyCapsule_GetPointer`; the table is static in its library, which
    // Python never unloads.
    let api = unsafe {
        let ptr = ffi::PyCapsule_GetPointer(capsule.as_ptr(), raw::EXCHANGE.as_ptr());
        if ptr.is_null() {
            ffi::PyErr_Clear();
            return None;
        }
        &*ptr.cast::<raw::Exchange>()
    };
    (api.version.major == raw::MAJOR).then_some(api)
}

/// PyTorch negates lazily (`x.conj().imag`), and says so in no exchange format: the memory alone holds
/// the wrong numbers.
fn refuse_negated(object: &Bound<PyAny>, what: &str) -> PyResult<()> {
    match object.getattr(intern!(object.py(), "is_neg")) {
        Ok(is_neg) if is_neg.call0()?.is_truthy()? => Err(PyBufferError::new_err(format!(
            "{what}: expected a tensor as it is in memory, found a lazily negated one; call \
             resolve_neg()"
        ))),
        _ => Ok(()),
    }
}

/// The library could not export its tensor: its first line says why, the rest may be a C++ trace.
fn refused(cause: PyErr, object: &Bound<PyAny>, what: &str, gpu: Option<&Link>) -> PyErr {
    let py = object.py();
    let text = cause.value(py).to_string();
    let reason = text.lines().next().unwrap_or_default();
    let kind = if gpu.is_some() { "CUDA" } else { "CPU" };
    let error = PyBufferError::new_err(format!(
        "{what}: expected a dense {kind} tensor, found one that cannot be exported ({reason})"
    ));
    error.set_cause(py, Some(cause));
    error
}

fn from_exchange(
    object: &Bound<PyAny>,
    api: &raw::Exchange,
    what: &'static str,
    reach: Reach,
) -> PyResult<View> {
    let Some(view_of) = api.view_of_object else { return from_capsule(object, what, reach) };
    let mut view = std::mem::MaybeUninit::<raw::Tensor>::uninit();
    // SAFETY: the function fills the view or fails with a Python error set; the view's shape is
    // copied at once and the data lives as long as the object, which is held.
    unsafe {
        if view_of(object.as_ptr().cast(), view.as_mut_ptr()) != 0 {
            return Err(refused(PyErr::fetch(object.py()), object, what, None));
        }
        let view = view.assume_init_ref();
        if view.device.kind == raw::DEVICE_CUDA && reach == Reach::Gpus {
            // A view orders nothing behind the work that is still queued.
            return from_capsule(object, what, reach);
        }
        describe(view, what, Hold::Object(object.clone().unbind()), None)
    }
}

/// Takes a capsule over, as the protocol has it: rename, then own.
fn from_capsule(object: &Bound<PyAny>, what: &'static str, reach: Reach) -> PyResult<View> {
    let py = object.py();
    let gpu = match object.call_method0(intern!(py, "__dlpack_device__")) {
        Ok(device) => {
            let (kind, id) = device.extract()?;
            link(py, raw::Device { kind, id }, what, reach)?
        }
        Err(_) => None,
    };
    let capsule = export(object, gpu.as_deref(), what)?;
    let capsule = capsule.cast_into::<PyCapsule>().map_err(|_| {
        PyBufferError::new_err(format!("{what}: expected a capsule from __dlpack__, found none"))
    })?;
    if let Some(m) = take::<raw::ManagedVersioned>(&capsule, raw::VERSIONED, raw::VERSIONED_USED) {
        let hold = Hold::Versioned(m);
        // SAFETY: `m` is ours now and lives in `hold`.
        let (version, tensor) = unsafe { ((*m).version, &(*m).tensor) };
        if version.major != raw::MAJOR {
            return Err(PyBufferError::new_err(format!(
                "{what}: expected DLPack version {}, found {}",
                raw::MAJOR,
                version.major
            )));
        }
        return describe(tensor, what, hold, gpu);
    }
    match take::<raw::Managed>(&capsule, raw::CAPSULE, raw::CAPSULE_USED) {
        // SAFETY: as above.
        Some(m) => describe(unsafe { &(*m).tensor }, what, Hold::Managed(m), gpu),
        None => Err(PyBufferError::new_err(format!(
            "{what}: expected an unused capsule \"dltensor\" or \"dltensor_versioned\""
        ))),
    }
}

/// Asks for a capsule; of a tensor on a GPU so that its exporter orders its work before what is queued here.
fn export<'py>(
    object: &Bound<'py, PyAny>,
    gpu: Option<&Link>,
    what: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    let (method, options) = (intern!(py, "__dlpack__"), PyDict::new(py));
    if let Some(gpu) = gpu {
        options.set_item(intern!(py, "stream"), gpu.stream())?;
    }
    let newer = options.copy()?;
    newer.set_item(intern!(py, "max_version"), (raw::MAJOR, raw::MINOR))?;
    match object.call_method(method, (), Some(&newer)) {
        // Older exporters do not know the argument.
        Err(e) if e.is_instance_of::<PyTypeError>(py) => {
            match object.call_method(method, (), Some(&options)) {
                Err(e) if gpu.is_some() && e.is_instance_of::<PyTypeError>(py) => {
                    let text = "expected an exporter whose __dlpack__ takes stream=";
                    let text = format!("{what}: {text}, found one that does not ({e})");
                    Err(PyBufferError::new_err(text))
                }
                other => other,
            }
        }
        other => other.map_err(|e| refused(e, object, what, gpu)),
    }
}

/// The capsule's pointer if it has this name; the capsule is marked as used.
fn take<T>(capsule: &Bound<PyCapsule>, name: &CStr, used: &'static CStr) -> Option<*mut T> {
    // SAFETY: the capsule is alive; a name that does not match leaves it alone.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule.as_ptr(), name.as_ptr()) == 0 {
            return None;
        }
        let ptr: *mut c_void = ffi::PyCapsule_GetPointer(capsule.as_ptr(), name.as_ptr());
        ffi::PyCapsule_SetName(capsule.as_ptr(), used.as_ptr());
        (!ptr.is_null()).then_some(ptr.cast())
    }
}

/// The way to a tensor: none if it is in host memory.
fn link(py: Python, device: raw::Device, what: &str, reach: Reach) -> PyResult<Option<Arc<Link>>> {
    let expected = match reach {
        Reach::Host => "a CPU tensor",
        Reach::Gpus => "a CPU or CUDA tensor",
    };
    match (device.kind, usize::try_from(device.id)) {
        (raw::DEVICE_CPU | raw::DEVICE_CUDA_HOST, _) => Ok(None),
        (raw::DEVICE_CUDA, Ok(ordinal)) if reach == Reach::Gpus => Link::to(py, ordinal).map(Some),
        _ => Err(elsewhere(device, what, expected)),
    }
}

/// A tensor is on another device than expected.
fn elsewhere(device: raw::Device, what: &str, expected: &str) -> PyErr {
    let raw::Device { kind, id } = device;
    let found = match kind {
        raw::DEVICE_CPU => "one of the CPU".to_owned(),
        raw::DEVICE_CUDA => format!("cuda:{id}"),
        8 => format!("metal:{id}"),
        10 => format!("rocm:{id}"),
        _ => format!("device of type {kind}"),
    };
    PyBufferError::new_err(format!("{what}: expected {expected}, found {found}"))
}

/// Checks that a tensor is where its exporter said.
fn check_device(device: raw::Device, gpu: Option<&Link>, what: &str) -> PyResult<()> {
    let (kind, ordinal) = (device.kind, usize::try_from(device.id));
    match gpu {
        None if kind == raw::DEVICE_CPU || kind == raw::DEVICE_CUDA_HOST => Ok(()),
        None => Err(elsewhere(device, what, "a CPU tensor")),
        Some(gpu) if kind == raw::DEVICE_CUDA && ordinal == Ok(gpu.ordinal) => Ok(()),
        Some(gpu) => {
            let expected = format!("a tensor on cuda:{}, as __dlpack_device__ says", gpu.ordinal);
            Err(elsewhere(device, what, &expected))
        }
    }
}

fn describe(
    tensor: &raw::Tensor,
    what: &'static str,
    hold: Hold,
    gpu: Option<Arc<Link>>,
) -> PyResult<View> {
    check_device(tensor.device, gpu.as_deref(), what)?;
    let element = Element::of(tensor.dtype);
    let rank = usize::try_from(tensor.ndim).unwrap_or(usize::MAX);
    if rank > RANK_MAX {
        return Err(shape_error(what, &format!("at most {RANK_MAX} dimensions"), &[rank]));
    }
    let (mut shape, mut strides) = ([1; RANK_MAX], [1; RANK_MAX]);
    for (d, n) in shape.iter_mut().enumerate().take(rank) {
        // SAFETY: DLPack promises `ndim` entries.
        *n = unsafe { *tensor.shape.add(d) } as usize;
    }
    if tensor.strides.is_null() {
        strides = row_major(&shape[..rank]);
    } else {
        for (d, stride) in strides.iter_mut().enumerate().take(rank) {
            // SAFETY: as above.
            *stride = unsafe { *tensor.strides.add(d) };
        }
    }
    let ptr = address(tensor.data.cast(), tensor.byte_offset as usize, &shape[..rank]);
    let readonly = hold.is_readonly();
    Ok(View { ptr, element, rank, shape, strides, readonly, what, gpu, hold })
}

/// Empty tensors may have no address; views want one that is not null.
pub(super) fn address(data: *const u8, offset: usize, shape: &[usize]) -> *const u8 {
    if shape.contains(&0) {
        std::ptr::NonNull::<u64>::dangling().as_ptr().cast()
    } else {
        data.wrapping_add(offset)
    }
}

/// NumPy's array interface, version 3.
fn from_interface(
    object: &Bound<PyAny>,
    interface: &Bound<PyAny>,
    what: &'static str,
) -> PyResult<View> {
    let py = object.py();
    let field = |name: &str| interface.get_item(name);
    let element = interface_element(object, &field("typestr")?.extract::<String>()?, what)?;
    let dims: Vec<usize> = field("shape")?.cast_into::<PyTuple>()?.extract()?;
    if dims.len() > RANK_MAX {
        return Err(shape_error(what, &format!("at most {RANK_MAX} dimensions"), &dims));
    }
    let (data, readonly): (usize, bool) = field("data")?.extract()?;
    let mut shape = [1; RANK_MAX];
    shape[..dims.len()].copy_from_slice(&dims);
    let mut strides = row_major(&dims);
    let steps = interface.get_item(intern!(py, "strides"))?;
    if !steps.is_none() {
        let steps: Vec<i64> = steps.extract()?;
        let size = element.size().max(1) as i64;
        if steps.iter().any(|s| s % size != 0) {
            return Err(PyBufferError::new_err(format!(
                "{what}: expected strides in whole elements of {size} bytes, found {steps:?}"
            )));
        }
        strides.iter_mut().zip(steps).for_each(|(s, step)| *s = step / size);
    }
    let ptr = address(std::ptr::with_exposed_provenance(data), 0, &dims);
    let hold = Hold::Object(object.clone().unbind());
    let rank = dims.len();
    Ok(View { ptr, element, rank, shape, strides, readonly, what, gpu: None, hold })
}

fn interface_element(object: &Bound<PyAny>, typestr: &str, what: &str) -> PyResult<Element> {
    let py = object.py();
    let order = typestr.chars().next();
    let foreign = if cfg!(target_endian = "little") { '>' } else { '<' };
    if order == Some(foreign) {
        let text = format!("{what}: expected native byte order, found {typestr:?}");
        return Err(PyBufferError::new_err(text));
    }
    if let Some(element) = typestr.get(1..).and_then(Element::of_typestr) {
        return Ok(element);
    }
    // ml_dtypes types are opaque to the interface; their name is what tells.
    let dtype = object.getattr(intern!(py, "dtype")).and_then(|d| d.getattr(intern!(py, "name")));
    Ok(match dtype {
        Ok(name) => Element::of_name(name.extract()?),
        Err(_) => Element::of_name(typestr.to_owned()),
    })
}

/// Anything that exports a buffer, seen through NumPy (no copy).
fn from_buffer(object: &Bound<PyAny>, what: &'static str) -> PyResult<View> {
    let py = object.py();
    let refuse = || {
        let found = object.get_type().name().map_or_else(|_| "?".to_owned(), |n| n.to_string());
        dtype_error(what, "a tensor (DLPack, NumPy or buffer)", &found)
    };
    let view = py
        .import(intern!(py, "builtins"))?
        .getattr(intern!(py, "memoryview"))?
        .call1((object,))
        .map_err(|_| refuse())?;
    let array = py.import(intern!(py, "numpy"))?.call_method1(intern!(py, "asarray"), (view,))?;
    let interface = array.getattr(intern!(py, "__array_interface__"))?;
    from_interface(&array, &interface, what)
}
