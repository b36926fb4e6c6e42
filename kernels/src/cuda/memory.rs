//! Memory on a GPU for whoever has none there: checks, benchmarks, lists. Copies wait; tiers move pages with
//! `transfer.cu` instead.

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, result};

use super::driver::told;
use super::{Device, Error, Stream};

/// Memory of one GPU, given back when it is dropped: whoever queued work that uses it waits before.
#[derive(Debug)]
pub struct Buffer {
    address: u64,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl Device {
    /// So many bytes, of any content.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Driver`].
    pub fn buffer(&self, bytes: usize) -> Result<Buffer, Error> {
        let what = "taking memory";
        let context = Arc::clone(self.context());
        context.bind_to_thread().map_err(told(what))?;
        // SAFETY: a context is bound. No driver gives out nothing.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(told(what))?;
        Ok(Buffer { address, bytes, context })
    }

    /// A buffer with this content.
    ///
    /// # Errors
    /// As [`Device::buffer`].
    pub fn buffer_of<T: Pod>(&self, stream: &Stream, data: &[T]) -> Result<Buffer, Error> {
        let mut buffer = self.buffer(size_of_val(data))?;
        buffer.write(stream, 0, data)?;
        Ok(buffer)
    }
}

impl Buffer {
    /// Where it is, for the parameters of kernels.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Copies data to byte `at`, behind what is queued on the stream, and waits.
    ///
    /// # Errors
    /// [`Error::Launch`] for data that would reach behind the end, [`Error::DeviceLost`] if work before it
    /// failed, [`Error::Driver`].
    pub fn write<T: Pod>(&mut self, stream: &Stream, at: usize, data: &[T]) -> Result<(), Error> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let to = self.part(at, bytes.len())?;
        let what = "copying to a GPU";
        self.context.bind_to_thread().map_err(told(what))?;
        // SAFETY: inside the buffer; the data is borrowed until the copy is done.
        unsafe { result::memcpy_htod_async(to, bytes, stream.raw()) }.map_err(told(what))?;
        stream.synchronize()
    }

    /// Queues a copy of another buffer of the same GPU and length, and does not wait.
    ///
    /// # Errors
    /// [`Error::Launch`] for another length, [`Error::DeviceLost`], [`Error::Driver`].
    pub fn copy(&mut self, stream: &Stream, from: &Buffer) -> Result<(), Error> {
        if from.bytes != self.bytes {
            let (expected, found) = (format!("{} bytes", self.bytes), from.bytes.to_string());
            return Err(Error::Launch { what: "buffer to copy", expected, found });
        }
        let what = "copying inside a GPU";
        self.context.bind_to_thread().map_err(told(what))?;
        // SAFETY: both are as long; whoever drops one waits before.
        unsafe { result::memcpy_dtod_async(self.address, from.address, self.bytes, stream.raw()) }
            .map_err(told(what))
    }

    /// Copies from byte `at` on, behind what is queued on the stream, and waits.
    ///
    /// # Errors
    /// As [`Buffer::write`].
    pub fn read<T: Pod>(&self, stream: &Stream, at: usize, out: &mut [T]) -> Result<(), Error> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        let from = self.part(at, bytes.len())?;
        let what = "copying from a GPU";
        self.context.bind_to_thread().map_err(told(what))?;
        // SAFETY: inside the buffer; what is written is borrowed until the copy is done.
        unsafe { result::memcpy_dtoh_async(bytes, from, stream.raw()) }.map_err(told(what))?;
        stream.synchronize()
    }

    fn part(&self, at: usize, bytes: usize) -> Result<u64, Error> {
        if at.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            return Ok(self.address + at as u64);
        }
        let expected = format!("a part of its {} bytes", self.bytes);
        Err(Error::Launch { what: "buffer", expected, found: format!("{bytes} from byte {at} on") })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bound = self.context.bind_to_thread();
        // SAFETY: taken once, given back once; work that uses it is over.
        let freed = bound.and_then(|()| unsafe { result::free_sync(self.address) });
        if let Err(e) = freed {
            tracing::debug!("memory of a GPU is not given back: {e}");
        }
    }
}
