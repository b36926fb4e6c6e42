//! Entry points, streams, and launches with one struct of parameters.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUresult, CUstream, CUstreamCaptureStatus};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, result};

use super::Error;
use super::driver::told;

/// What a driver passes to a kernel at most, on any architecture.
const PARAMETER_BYTES: usize = 4096;
/// Threads of a block at most.
const THREADS: u32 = 1024;
/// Blocks at most, in each direction.
const BLOCKS: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// A stream: a caller's, or one of kvist's own.
#[derive(Clone, Debug)]
pub struct Stream(Arc<CudaStream>);

impl Stream {
    pub(super) fn new(stream: Arc<CudaStream>) -> Stream {
        Stream(stream)
    }

    pub(super) fn raw(&self) -> CUstream {
        self.0.cu_stream()
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        self.0.context()
    }

    /// Whether what is queued goes into a graph in place of being run.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn is_capturing(&self) -> Result<bool, Error> {
        let what = "asking for a stream's capture";
        self.0.context().bind_to_thread().map_err(told(what))?;
        // SAFETY: the stream is alive: promised when it was wrapped.
        match unsafe { result::stream::is_capturing(self.0.cu_stream()) } {
            Ok(status) => Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE),
            // The default stream, while another one is captured that must not wait for it.
            Err(DriverError(CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)) => Ok(true),
            Err(e) => Err(told(what)(e)),
        }
    }

    /// Waits until all that is queued is done.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if a kernel before it failed, [`Error::Driver`].
    pub fn synchronize(&self) -> Result<(), Error> {
        self.0.synchronize().map_err(told("waiting for a stream"))
    }
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in each direction.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
}

impl Grid {
    fn check(&self, shared_bytes_max: u32) -> Result<(), Error> {
        in_range("threads", self.threads, 1, THREADS)?;
        in_range("shared_bytes", self.shared_bytes, 0, shared_bytes_max)?;
        let blocks = self.blocks.into_iter().zip(BLOCKS);
        blocks.into_iter().try_for_each(|(n, most)| in_range("blocks", n, 1, most))
    }
}

fn in_range(what: &'static str, n: u32, least: u32, most: u32) -> Result<(), Error> {
    if (least..=most).contains(&n) {
        return Ok(());
    }
    Err(Error::Launch { what, expected: format!("{least} to {most}"), found: n.to_string() })
}

/// An entry point that is loaded.
#[derive(Clone, Debug)]
pub struct Function {
    function: CudaFunction,
    context: Arc<CudaContext>,
    shared_bytes_max: u32,
}

impl Function {
    pub(super) fn new(
        function: CudaFunction,
        context: Arc<CudaContext>,
        shared_bytes_max: u32,
    ) -> Function {
        Function { function, context, shared_bytes_max }
    }

    /// Blocks of this shape that one multiprocessor holds at once: times the number of
    /// multiprocessors, the grid of a persistent kernel.
    ///
    /// # Errors
    /// [`Error::Launch`] for a shape that no GPU has, [`Error::DeviceLost`], [`Error::Driver`].
    pub fn occupancy(&self, threads: u32, shared_bytes: u32) -> Result<u32, Error> {
        Grid { blocks: [1; 3], threads, shared_bytes }.check(self.shared_bytes_max)?;
        let what = "asking for a kernel's occupancy";
        self.context.bind_to_thread().map_err(told(what))?;
        let of = &self.function;
        of.occupancy_max_active_blocks_per_multiprocessor(threads, shared_bytes as usize, None)
            .map_err(told(what))
    }

    /// Queues the kernel with these parameters, which are copied.
    ///
    /// # Errors
    /// [`Error::Launch`] for a shape that no GPU has, [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::Driver`]. What fails while it runs is told by a later call.
    ///
    /// # Safety
    /// `P` is laid out as the struct that the entry point takes. Addresses in it are valid on this GPU
    /// until the work is done, and no other work that is not ordered with it writes what it reads or
    /// touches what it writes.
    pub unsafe fn launch<P: bytemuck::Pod>(
        &self,
        stream: &Stream,
        grid: Grid,
        parameters: &P,
    ) -> Result<(), Error> {
        const { assert!(size_of::<P>() <= PARAMETER_BYTES) };
        grid.check(self.shared_bytes_max)?;
        let what = "launching a kernel";
        self.context.bind_to_thread().map_err(told(what))?;
        let [x, y, z] = grid.blocks;
        let address: *const P = parameters;
        // SAFETY: the function is loaded as long as `self` is; its one parameter is read now; the
        // rest is promised by the caller.
        let queued = unsafe {
            result::launch_kernel(
                self.function.cu_function(),
                (x, y, z),
                (grid.threads, 1, 1),
                grid.shared_bytes,
                stream.0.cu_stream(),
                &mut [address.cast_mut().cast::<c_void>()],
            )
        };
        queued.map_err(told(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_no_gpu_has_are_refused() {
        let good = Grid { blocks: [132, 1, 1], threads: 128, shared_bytes: 1000 };
        assert_eq!(good.check(1000), Ok(()));
        for (grid, word) in [
            (Grid { threads: 0, ..good }, "threads: expected 1 to 1024, found 0"),
            (Grid { threads: 1025, ..good }, "threads: expected 1 to 1024, found 1025"),
            (Grid { shared_bytes: 1001, ..good }, "shared_bytes: expected 0 to 1000, found 1001"),
            (Grid { blocks: [0, 1, 1], ..good }, "blocks: expected 1 to 2147483647, found 0"),
            (Grid { blocks: [1, 65_536, 1], ..good }, "blocks: expected 1 to 65535, found 65536"),
        ] {
            assert_eq!(grid.check(1000).unwrap_err().to_string(), word);
        }
    }
}
