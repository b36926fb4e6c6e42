//! A GPU with the kernels that are loaded on it.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::sys::{CUcontext, CUresult};
use cudarc::driver::{CudaContext, CudaModule, result};
use cudarc::nvrtc::Ptx;
use parking_lot::Mutex;

use super::driver::{driver, present, runs, told};
use super::{
    Arch, Compiler, Counts, DeviceInfo, Error, Function, Image, Key, Specialisation, Stream,
    Target, Version,
};

/// A GPU through its primary context, which PyTorch and the engines use, too.
#[derive(Debug)]
pub struct Device {
    context: Arc<CudaContext>,
    info: DeviceInfo,
    driver: Version,
    compiler: Arc<Compiler>,
    modules: Mutex<HashMap<Key, Arc<CudaModule>>>,
}

/// Puts the calling thread's current context back when it is dropped: a framework on another GPU of the process
/// goes by it.
#[derive(Debug)]
pub struct KeepContext(Option<CUcontext>);

impl KeepContext {
    /// Notes the current context. Does nothing where there is no driver.
    #[must_use]
    pub fn new() -> KeepContext {
        let there = present().is_ok();
        KeepContext(
            there
                .then(|| result::ctx::get_current().ok())
                .flatten()
                .map(|now| now.unwrap_or(std::ptr::null_mut())),
        )
    }
}

impl Default for KeepContext {
    fn default() -> KeepContext {
        KeepContext::new()
    }
}

impl Drop for KeepContext {
    fn drop(&mut self) {
        let Some(before) = self.0 else { return };
        // SAFETY: it was current before, and is not destroyed by us; null is none.
        if let Err(e) = unsafe { result::ctx::set_current(before) } {
            tracing::debug!("the current context is not put back: {e}");
        }
    }
}

/// What a warm-up did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmed {
    /// Kernels that are loaded now and were not before.
    pub loaded: usize,
    /// Where their images came from.
    pub from: Counts,
    /// How long it took.
    pub took: Duration,
}

impl Device {
    /// GPU `ordinal` of those that the process may see.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`], [`Error::OutOfMemory`] if there
    /// is no room for a context.
    pub fn open(ordinal: usize, compiler: Arc<Compiler>) -> Result<Device, Error> {
        let driver = driver()?;
        let devices = driver.devices.len();
        let info = driver.devices.into_iter().nth(ordinal);
        let info = info.ok_or(Error::NoDevice { ordinal, devices })?;
        let context = CudaContext::new(ordinal).map_err(told("making a context"))?;
        // SAFETY: kvist orders its work by events of its own and allocates nothing through cudarc. Its
        // implicit waits would break the capture of a graph.
        unsafe { context.disable_event_tracking() };
        let modules = Mutex::default();
        Ok(Device { context, info, driver: driver.version, compiler, modules })
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// A caller's stream (`CUstream`; null is the default stream). It is not destroyed.
    ///
    /// # Safety
    /// It is a stream of this GPU's primary context and outlives the result and all work queued on it.
    #[must_use]
    pub unsafe fn stream(&self, raw: *mut c_void) -> Stream {
        // SAFETY: promised by the caller.
        Stream::new(unsafe { self.context.wrap_borrowed_stream(raw.cast()) })
    }

    /// Compiles all that is not compiled yet, in parallel, and loads it: before the first token, and
    /// before a graph is captured.
    ///
    /// # Errors
    /// Those of [`Compiler::image`]; [`Error::DriverTooOld`], [`Error::OutOfMemory`] when loading.
    pub fn warm_up(&self, all: &[Specialisation]) -> Result<Warmed, Error> {
        let (start, before) = (Instant::now(), self.compiler.counts());
        let images = self.compiler.images(all, self.info.arch)?;
        let mut loaded = 0;
        for (of, image) in all.iter().zip(&images) {
            let key = self.key(of);
            if !self.modules.lock().contains_key(&key) {
                self.load(key, of, image)?;
                loaded += 1;
            }
        }
        let from = self.compiler.counts().since(before);
        Ok(Warmed { loaded, from, took: start.elapsed() })
    }

    /// An entry point, loaded (and compiled) if it was not. Keep it: looking it up hashes the source.
    ///
    /// # Errors
    /// As [`Device::warm_up`]; [`Error::NotWarm`] if it is not loaded and `stream` is being captured.
    pub fn function(
        &self,
        of: &Specialisation,
        entry: &str,
        stream: &Stream,
    ) -> Result<Function, Error> {
        let key = self.key(of);
        let known = self.modules.lock().get(&key).cloned();
        let module = match known {
            Some(module) => module,
            None if stream.is_capturing()? => {
                return Err(Error::NotWarm { kernel: of.to_string() });
            }
            None => self.load(key, of, &*self.compiler.image(of, self.info.arch)?)?,
        };
        if !of.kernel().entries.contains(&entry) {
            return Err(Error::Launch {
                what: "entry",
                expected: format!("one of {:?} of {}", of.kernel().entries, of.kernel().name),
                found: entry.to_owned(),
            });
        }
        self.context.bind_to_thread().map_err(told("binding the context"))?;
        let function = module.load_function(entry).map_err(told("looking up an entry point"))?;
        let shared = i32::try_from(self.info.shared_bytes_max).unwrap_or(i32::MAX);
        // Without it a block has 48 KiB. Kernels have no fixed shared memory that would count, too.
        function
            .set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
            .map_err(told("asking for shared memory"))?;
        Ok(Function::new(function, Arc::clone(&self.context), self.info.shared_bytes_max))
    }

    fn key(&self, of: &Specialisation) -> Key {
        of.key(Target::Cubin(Arch::new(self.info.arch, of.kernel().accelerated)))
    }

    fn load(&self, key: Key, of: &Specialisation, image: &Image) -> Result<Arc<CudaModule>, Error> {
        runs(self.driver, image.compiler, image.ptx, &of.to_string())?;
        let module = self.context.load_module(Ptx::from_binary(image.code.clone()));
        let module = module.map_err(|e| match e.0 {
            // Another thread captures, in the mode that forbids it to all.
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED => {
                Error::NotWarm { kernel: of.to_string() }
            }
            _ => told("loading a kernel")(e),
        })?;
        Ok(Arc::clone(self.modules.lock().entry(key).or_insert(module)))
    }
}
