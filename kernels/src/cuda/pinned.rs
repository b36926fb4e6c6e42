//! Host memory that a GPU reads and writes by itself.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{
    self, CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTREGISTER_DEVICEMAP,
    CU_MEMHOSTREGISTER_PORTABLE,
};
use cudarc::driver::{CudaContext, result};

use super::driver::told;
use super::{Device, Error, Stream};

/// Pinned host memory, given back when it is dropped: whoever queued work that uses it waits before.
#[derive(Debug)]
pub struct Pinned {
    host: *mut u8,
    address: u64,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: memory that nobody else has; shared access only reads it.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

/// Host memory of somebody else that is pinned while this lives.
#[derive(Debug)]
pub struct Registered {
    host: *mut u8,
    address: u64,
    context: Arc<CudaContext>,
}

// SAFETY: an address; nothing is read through it here.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

/// The address under which a GPU knows pinned host memory.
fn address_of(host: *mut u8) -> Result<u64, Error> {
    let mut address = 0;
    // SAFETY: pinned and mapped memory; the result goes to this frame.
    let status = unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut address, host.cast(), 0) };
    status.result().map_err(told("mapping host memory"))?;
    Ok(address)
}

impl Device {
    /// So many bytes of pinned host memory, zeroed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Driver`].
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, Error> {
        let (what, context) = ("taking pinned host memory", Arc::clone(self.context()));
        context.bind_to_thread().map_err(told(what))?;
        let flags = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: a context is bound. No driver gives out nothing.
        let host = unsafe { result::malloc_host(bytes.max(1), flags) }.map_err(told(what))?;
        let mut pinned = Pinned { host: host.cast(), address: 0, bytes, context };
        // SAFETY: just taken, and this long.
        unsafe { pinned.host.write_bytes(0, bytes) }
        pinned.address = address_of(pinned.host)?;
        Ok(pinned)
    }

    /// Pins memory that the caller has.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Driver`].
    ///
    /// # Safety
    /// The memory stays mapped until the result is dropped, and so long nobody frees or moves it.
    pub unsafe fn register(&self, host: *mut u8, bytes: usize) -> Result<Registered, Error> {
        let (what, context) = ("pinning host memory", Arc::clone(self.context()));
        context.bind_to_thread().map_err(told(what))?;
        let flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: promised by the caller.
        let status = unsafe { sys::cuMemHostRegister_v2(host.cast::<c_void>(), bytes, flags) };
        status.result().map_err(told(what))?;
        let mut registered = Registered { host, address: 0, context };
        registered.address = address_of(host)?;
        Ok(registered)
    }

    /// Bytes of its memory that nobody has taken, by the driver's account: what a framework keeps in its own
    /// pool counts as taken.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn free_bytes(&self) -> Result<u64, Error> {
        let what = "asking for free memory";
        self.context().bind_to_thread().map_err(told(what))?;
        result::mem_get_info().map(|(free, _)| free as u64).map_err(told(what))
    }
}

impl Pinned {
    /// Where the GPU finds it.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: this much was taken and zeroed; writers have `&mut self`, or are work on the GPU that the
        // reader has waited for.
        unsafe { std::slice::from_raw_parts(self.host, self.bytes) }
    }

    /// The bytes, to be written.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.host, self.bytes) }
    }
}

impl Stream {
    /// Queues a copy to memory of the GPU, and does not wait. What is written at its source meanwhile arrives
    /// or does not.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    ///
    /// # Safety
    /// There are so many bytes of pinned memory at `from` and of the GPU's memory at `to`, and both stay until
    /// the copy is done.
    pub unsafe fn send(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), Error> {
        let what = "copying to a GPU";
        self.context().bind_to_thread().map_err(told(what))?;
        // SAFETY: promised by the caller.
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.raw()) };
        status.result().map_err(told(what))
    }

    /// Queues a copy from memory of the GPU, and does not wait.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    ///
    /// # Safety
    /// From `from` on there is as much memory of the GPU; both stay until the copy is done, and nobody reads
    /// `to` before.
    pub unsafe fn fetch(&self, to: &mut [u8], from: u64) -> Result<(), Error> {
        let what = "copying from a GPU";
        self.context().bind_to_thread().map_err(told(what))?;
        // SAFETY: promised by the caller.
        unsafe { result::memcpy_dtoh_async(to, from, self.raw()) }.map_err(told(what))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let bound = self.context.bind_to_thread();
        // SAFETY: taken once, given back once; work that uses it is over.
        let freed = bound.and_then(|()| unsafe { result::free_host(self.host.cast()) });
        if let Err(e) = freed {
            tracing::debug!("pinned memory is not given back: {e}");
        }
    }
}

impl Registered {
    /// Where the GPU finds it.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let bound = self.context.bind_to_thread();
        // SAFETY: pinned once, let go once; work that uses it is over.
        let gone =
            bound.and_then(|()| unsafe { sys::cuMemHostUnregister(self.host.cast()) }.result());
        if let Err(e) = gone {
            tracing::debug!("host memory stays pinned: {e}");
        }
    }
}
