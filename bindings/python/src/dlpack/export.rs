//! Tensors out: memory of ours, handed over as a capsule with a deleter (or as NumPy sees it).

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use kvist_kernels::{DType, Tensor3Mut};
use pyo3::exceptions::{PyAttributeError, PyBufferError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use pyo3::{ffi, intern};

use super::gpu::{Link, OnGpu};
use super::{raw, view};

/// A cache line: keeps results aligned for everyone's vector loads.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

/// What the elements of a [`Storage`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Float(DType),
    U32,
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Kind::Float(dtype) => dtype.size(),
            Kind::U32 => 4,
        }
    }

    fn data_type(self) -> raw::DataType {
        let (code, bits) = match self {
            Kind::Float(DType::F32) => (raw::CODE_FLOAT, 32),
            Kind::Float(DType::F16) => (raw::CODE_FLOAT, 16),
            Kind::Float(DType::Bf16) => (raw::CODE_BFLOAT, 16),
            Kind::U32 => (raw::CODE_UINT, 32),
        };
        raw::DataType { code, bits, lanes: 1 }
    }

    /// NumPy's name; bf16 shows itself as 16-bit integers, to be viewed as `ml_dtypes.bfloat16`.
    fn typestr(self) -> &'static str {
        match self {
            Kind::Float(DType::F32) => "=f4",
            Kind::Float(DType::F16) => "=f2",
            Kind::Float(DType::Bf16) => "=u2",
            Kind::U32 => "=u4",
        }
    }
}

/// Where a result is.
enum Memory {
    Host(Vec<Line>),
    Gpu(OnGpu),
}

/// Row-major memory of a result.
pub(crate) struct Storage {
    memory: Memory,
    kind: Kind,
    shape: Vec<usize>,
}

impl Storage {
    /// Zeros.
    pub(crate) fn new(kind: Kind, shape: &[usize]) -> Storage {
        let bytes = shape.iter().product::<usize>() * kind.size();
        let memory = Memory::Host(vec![Line([0; 64]); bytes.div_ceil(64)]);
        Storage { memory, kind, shape: shape.to_vec() }
    }

    /// A copy of `data`, as long as `shape` says.
    pub(crate) fn of_f32(data: impl ExactSizeIterator<Item = f32>, shape: &[usize]) -> Storage {
        let mut storage = Storage::new(Kind::Float(DType::F32), shape);
        assert_eq!(data.len(), storage.count());
        // SAFETY: the lines hold `count` f32, are aligned and borrowed uniquely.
        let to =
            unsafe { std::slice::from_raw_parts_mut(storage.ptr().cast::<f32>(), storage.count()) };
        to.iter_mut().zip(data).for_each(|(to, x)| *to = x);
        storage
    }

    /// A copy of `data`, one dimension.
    pub(crate) fn of_u32(data: &[u32]) -> Storage {
        let mut storage = Storage::new(Kind::U32, &[data.len()]);
        // SAFETY: as in `of_f32`, for u32.
        unsafe { std::slice::from_raw_parts_mut(storage.ptr().cast::<u32>(), data.len()) }
            .copy_from_slice(data);
        storage
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The first byte, to be written on the host.
    fn ptr(&mut self) -> *mut u8 {
        match &mut self.memory {
            Memory::Host(lines) => lines.as_mut_ptr().cast(),
            Memory::Gpu(_) => self.address(),
        }
    }

    /// The first byte, wherever it is.
    fn address(&self) -> *mut u8 {
        match &self.memory {
            Memory::Host(lines) => lines.as_ptr().cast_mut().cast(),
            Memory::Gpu(memory) => std::ptr::without_provenance_mut(memory.address() as usize),
        }
    }

    /// Copies it to a GPU, if there is one.
    pub(crate) fn on(self, py: Python, gpu: Option<&Arc<Link>>) -> PyResult<Storage> {
        let (Some(gpu), Memory::Host(lines)) = (gpu, &self.memory) else { return Ok(self) };
        let bytes = self.count() * self.kind.size();
        // SAFETY: the lines hold this many bytes, all written, and are borrowed.
        let bytes = unsafe { std::slice::from_raw_parts(lines.as_ptr().cast::<u8>(), bytes) };
        Ok(Storage { memory: Memory::Gpu(gpu.put(py, bytes)?), ..self })
    }

    fn device(&self) -> raw::Device {
        match &self.memory {
            Memory::Host(_) => raw::Device { kind: raw::DEVICE_CPU, id: 0 },
            Memory::Gpu(memory) => {
                raw::Device { kind: raw::DEVICE_CUDA, id: memory.ordinal as i32 }
            }
        }
    }

    fn is_on_gpu(&self) -> bool {
        matches!(self.memory, Memory::Gpu(_))
    }

    /// The memory as `[rows, heads, dim]`.
    ///
    /// # Panics
    /// If the elements are not floats or the count does not fit.
    pub(crate) fn rows(&mut self, shape: [usize; 3]) -> Tensor3Mut<'_> {
        let Kind::Float(dtype) = self.kind else { panic!("rows of {:?}", self.kind) };
        assert_eq!(shape.iter().product::<usize>(), self.count());
        let strides = [(shape[1] * shape[2]) as i64, shape[2] as i64];
        // SAFETY: the lines hold exactly this shape, row-major, and are borrowed uniquely.
        unsafe { Tensor3Mut::from_raw(self.ptr(), dtype, shape, strides) }
    }
}

/// Who made a tensor, so that results come back in kind.
pub(crate) enum Library {
    /// Its own C functions.
    Exchange(&'static raw::Exchange),
    /// A module with `from_dlpack`, such as `torch` or `jax.dlpack`.
    FromDlpack(Py<PyAny>),
    /// NumPy; with the dtype to view bf16 as.
    Numpy(Option<Py<PyAny>>),
}

impl Library {
    /// The library of `object`; NumPy for what is unknown.
    pub(crate) fn of(object: &Bound<PyAny>) -> Library {
        let py = object.py();
        if let Some(api) = view::exchange_of(object)
            && api.object_from_managed.is_some()
        {
            return Library::Exchange(api);
        }
        if object.hasattr(intern!(py, "__array_interface__")).unwrap_or(false) {
            return Library::Numpy(object.getattr(intern!(py, "dtype")).ok().map(Bound::unbind));
        }
        from_dlpack_of(object).map_or(Library::Numpy(None), |f| Library::FromDlpack(f.unbind()))
    }

    /// Hands `storage` over as a tensor of this library, without a copy.
    pub(crate) fn give(&self, py: Python, storage: Storage) -> PyResult<Py<PyAny>> {
        match self {
            Library::Exchange(api) => give_exchange(py, api, storage),
            Library::FromDlpack(f) => f.call1(py, (Buffer::new(py, storage)?,)),
            // Whoever it is for speaks DLPack.
            Library::Numpy(_) if storage.is_on_gpu() => Ok(Buffer::new(py, storage)?.into_any()),
            Library::Numpy(dtype) => give_numpy(py, storage, dtype.as_ref()),
        }
    }
}

/// `from_dlpack` of the top-level package of the object's type, or of its module `dlpack`.
fn from_dlpack_of<'py>(object: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let py = object.py();
    let module: String = object.get_type().getattr("__module__").ok()?.extract().ok()?;
    let root = module.split('.').next()?.trim_end_matches("lib").to_owned();
    let modules = py.import("sys").ok()?.getattr("modules").ok()?;
    let names = [root.clone(), format!("{root}.dlpack"), format!("{root}.numpy")];
    names.iter().find_map(|name| modules.get_item(name).ok()?.getattr("from_dlpack").ok())
}

fn give_exchange(py: Python, api: &raw::Exchange, storage: Storage) -> PyResult<Py<PyAny>> {
    let Some(object_from) = api.object_from_managed else {
        return give_numpy(py, storage, None);
    };
    let managed = Export::versioned(Arc::new(storage));
    let mut object: *mut c_void = std::ptr::null_mut();
    // SAFETY: the tensor is complete and its deleter frees it; on success the library owns it, on
    // failure it is still ours.
    unsafe {
        if object_from(managed, &raw mut object) != 0 {
            delete_versioned(managed);
            return Err(PyErr::fetch(py));
        }
        Ok(Bound::from_owned_ptr(py, object.cast()).unbind())
    }
}

fn give_numpy(py: Python, storage: Storage, dtype: Option<&Py<PyAny>>) -> PyResult<Py<PyAny>> {
    let bf16 = storage.kind == Kind::Float(DType::Bf16);
    let buffer = Buffer::new(py, storage)?;
    let array = py.import(intern!(py, "numpy"))?.call_method1(intern!(py, "asarray"), (buffer,))?;
    if !bf16 {
        return Ok(array.unbind());
    }
    let view = match dtype {
        Some(dtype) => dtype.bind(py).clone(),
        None => py.import(intern!(py, "ml_dtypes"))?.getattr(intern!(py, "bfloat16"))?,
    };
    Ok(array.call_method1(intern!(py, "view"), (view,))?.unbind())
}

/// A NumPy array over `storage`.
pub(crate) fn numpy(py: Python, storage: Storage) -> PyResult<Py<PyAny>> {
    give_numpy(py, storage, None)
}

/// Memory of a result, for libraries that ask for it: DLPack and the NumPy array interface.
#[pyclass(frozen, module = "kvist._kvist")]
pub(crate) struct Buffer {
    storage: Arc<Storage>,
    address: usize,
}

impl Buffer {
    fn new(py: Python, mut storage: Storage) -> PyResult<Py<Buffer>> {
        let address = storage.ptr().expose_provenance();
        Py::new(py, Buffer { storage: Arc::new(storage), address })
    }
}

#[pymethods]
impl Buffer {
    fn __dlpack_device__(&self) -> (i32, i32) {
        let raw::Device { kind, id } = self.storage.device();
        (kind, id)
    }

    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__(
        &self,
        py: Python,
        stream: Option<Py<PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        // It was written and waited for before anybody had it.
        let _nothing_to_order = (stream, copy);
        let here = self.__dlpack_device__();
        if let Some(other) = dl_device.filter(|&other| other != here) {
            let text = format!("dl_device: expected {here:?}, where it is, found {other:?}");
            return Err(PyBufferError::new_err(text));
        }
        let storage = Arc::clone(&self.storage);
        if max_version.is_some_and(|(major, _)| major >= raw::MAJOR) {
            capsule(py, Export::versioned(storage).cast(), raw::VERSIONED, destroy_versioned)
        } else {
            capsule(py, Export::unversioned(storage).cast(), raw::CAPSULE, destroy_unversioned)
        }
    }

    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        if self.storage.is_on_gpu() {
            return Err(PyAttributeError::new_err("__array_interface__ of memory on a GPU"));
        }
        let dict = PyDict::new(py);
        dict.set_item("version", 3)?;
        dict.set_item("typestr", self.storage.kind.typestr())?;
        dict.set_item("shape", PyTuple::new(py, &self.storage.shape)?)?;
        dict.set_item("data", (self.address, false))?;
        Ok(dict)
    }
}

fn capsule(
    py: Python,
    ptr: *mut c_void,
    name: &'static CStr,
    destroy: unsafe extern "C" fn(*mut ffi::PyObject),
) -> PyResult<Py<PyAny>> {
    // SAFETY: the name is static; `destroy` frees the tensor unless a consumer renamed the capsule.
    unsafe {
        let object = ffi::PyCapsule_New(ptr, name.as_ptr(), Some(destroy));
        Bound::from_owned_ptr_or_err(py, object).map(Bound::unbind)
    }
}

/// Frees the tensor of a capsule that nobody consumed.
///
/// # Safety
/// Only for Python to call as the destructor of a capsule: `capsule` must be alive, and where its
/// name is still [`raw::VERSIONED`], its pointer must be that of [`Export::versioned`], not deleted
/// before.
unsafe extern "C" fn destroy_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: called by Python with a live capsule; the old name means nobody took the tensor.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, raw::VERSIONED.as_ptr()) != 0 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, raw::VERSIONED.as_ptr()).cast());
        }
    }
}

/// The same for an unversioned capsule.
///
/// # Safety
/// As for [`destroy_versioned`], with [`raw::CAPSULE`] and [`Export::unversioned`].
unsafe extern "C" fn destroy_unversioned(capsule: *mut ffi::PyObject) {
    // SAFETY: as in `destroy_versioned`.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, raw::CAPSULE.as_ptr()) != 0 {
            delete_unversioned(ffi::PyCapsule_GetPointer(capsule, raw::CAPSULE.as_ptr()).cast());
        }
    }
}

/// An exported tensor with everything it points to. The header comes first, so that a pointer to it
/// is a pointer to the whole.
#[repr(C)]
struct Export<T> {
    header: T,
    shape: Vec<i64>,
    strides: Vec<i64>,
    storage: Arc<Storage>,
}

impl<T> Export<T> {
    fn new(storage: Arc<Storage>, header: impl FnOnce(raw::Tensor) -> T) -> *mut Export<T> {
        let shape: Vec<i64> = storage.shape.iter().map(|&n| n as i64).collect();
        let mut strides = vec![1i64; shape.len()];
        for d in (0..shape.len().saturating_sub(1)).rev() {
            strides[d] = strides[d + 1] * shape[d + 1].max(1);
        }
        let tensor = raw::Tensor {
            data: storage.address().cast(),
            device: storage.device(),
            ndim: shape.len() as i32,
            dtype: storage.kind.data_type(),
            shape: shape.as_ptr().cast_mut(),
            strides: strides.as_ptr().cast_mut(),
            byte_offset: 0,
        };
        Box::into_raw(Box::new(Export { header: header(tensor), shape, strides, storage }))
    }
}

impl Export<raw::ManagedVersioned> {
    fn versioned(storage: Arc<Storage>) -> *mut raw::ManagedVersioned {
        let version = raw::Version { major: raw::MAJOR, minor: raw::MINOR };
        let (context, deleter) = (std::ptr::null_mut(), Some(delete_versioned as _));
        Export::new(storage, |tensor| raw::ManagedVersioned {
            version,
            context,
            deleter,
            flags: 0,
            tensor,
        })
        .cast()
    }
}

impl Export<raw::Managed> {
    fn unversioned(storage: Arc<Storage>) -> *mut raw::Managed {
        let (context, deleter) = (std::ptr::null_mut(), Some(delete_unversioned as _));
        Export::new(storage, |tensor| raw::Managed { tensor, context, deleter }).cast()
    }
}

/// # Safety
/// `managed` must come from [`Export::versioned`] and not have been deleted.
unsafe extern "C" fn delete_versioned(managed: *mut raw::ManagedVersioned) {
    if !managed.is_null() {
        // SAFETY: the header is the first field of the box made by `Export::new`.
        drop(unsafe { Box::from_raw(managed.cast::<Export<raw::ManagedVersioned>>()) });
    }
}

/// # Safety
/// `managed` must come from [`Export::unversioned`] and not have been deleted.
unsafe extern "C" fn delete_unversioned(managed: *mut raw::Managed) {
    if !managed.is_null() {
        // SAFETY: as in `delete_versioned`.
        drop(unsafe { Box::from_raw(managed.cast::<Export<raw::Managed>>()) });
    }
}
