//! Launches that are queued once and repeated as one.

use std::sync::Arc;

use cudarc::driver::sys::{
    CUgraph, CUgraphExec, CUgraphInstantiate_flags_enum as Flags, CUstreamCaptureMode,
};
use cudarc::driver::{CudaContext, result};

use super::driver::told;
use super::{Error, Stream};

/// Work that was captured. Its addresses and sizes are fixed; what it reads from memory may change from one
/// replay to the next.
#[derive(Debug)]
pub struct Graph {
    raw: CUgraphExec,
    context: Arc<CudaContext>,
}

// SAFETY: a handle of the driver. Replays need `&mut self`.
unsafe impl Send for Graph {}
// SAFETY: nothing can be done with a shared one.
unsafe impl Sync for Graph {}

/// What was captured, until it is made ready.
struct Template {
    raw: CUgraph,
    context: Arc<CudaContext>,
}

impl Drop for Template {
    fn drop(&mut self) {
        let bound = self.context.bind_to_thread();
        // SAFETY: made once, given back once.
        let gone = bound.and_then(|()| unsafe { result::graph::destroy(self.raw) });
        if let Err(e) = gone {
            tracing::debug!("a graph is not given back: {e}");
        }
    }
}

impl Stream {
    /// Captures what `queue` puts on this stream, which is not done now. The default stream cannot be
    /// captured.
    ///
    /// # Errors
    /// Those of `queue`, with [`Error::NotWarm`] for kernels that are not loaded;
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn capture(&self, queue: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        let what = "capturing a graph";
        let context = Arc::clone(self.context());
        context.bind_to_thread().map_err(told(what))?;
        // Only this thread's calls are held to the rules of a capture.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { result::stream::begin_capture(self.raw(), mode) }.map_err(told(what))?;
        let queued = queue();
        // SAFETY: begun above; ends in any case, or the stream could not be used any more.
        let ended = unsafe { result::stream::end_capture(self.raw()) };
        let made = ended.map(|raw| Template { raw, context: context.clone() });
        queued?;
        let template = made.map_err(told(what))?;
        let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        // SAFETY: the template was just made.
        let raw = unsafe { result::graph::instantiate(template.raw, flags) };
        Ok(Graph { raw: raw.map_err(told("making a graph ready"))?, context })
    }
}

impl Graph {
    /// Queues all of it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Driver`].
    ///
    /// # Safety
    /// All memory that it touches is still there, and no other work that is not ordered with this one
    /// touches it.
    pub unsafe fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        let what = "replaying a graph";
        self.context.bind_to_thread().map_err(told(what))?;
        // SAFETY: both are alive; the rest is promised by the caller.
        unsafe { result::graph::launch(self.raw, stream.raw()) }.map_err(told(what))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let bound = self.context.bind_to_thread();
        // SAFETY: made once, given back once; the driver keeps it until replays are over.
        let gone = bound.and_then(|()| unsafe { result::graph::exec_destroy(self.raw) });
        if let Err(e) = gone {
            tracing::debug!("a graph is not given back: {e}");
        }
    }
}
