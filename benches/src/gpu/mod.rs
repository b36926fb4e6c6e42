//! Kernels on a GPU: right against f64 (`gpu-check`), as fast as its memory (`gpu-attend`) and its link
//! (`gpu-copy`), choosing what they read (`gpu-select`), and a cache that uses them (`gpu-step`).

mod batch;
pub(crate) mod check;
pub(crate) mod decode;
pub(crate) mod link;
pub(crate) mod select;
mod tall;
pub(crate) mod tier;

use std::ptr::null_mut;
use std::sync::Arc;

use kvist_kernels::cuda::{Compiler, Device, Stream, TrialError};

use crate::{Error, Params, Sink};

/// The first GPU that the process may see.
struct Gpu {
    device: Arc<Device>,
    stream: Stream,
}

impl Gpu {
    /// Opens it, and says in a note what it is.
    fn open(sink: &Sink) -> Result<Gpu, Error> {
        let device = Device::open(0, Arc::new(Compiler::from_env())).map_err(TrialError::from)?;
        let device = Arc::new(device);
        let info = device.info();
        sink.note(&format!(
            "gpu: {}, compute capability {}.{}, {} multiprocessors, {} GiB",
            info.name,
            info.arch / 10,
            info.arch % 10,
            info.multiprocessors,
            info.memory_bytes >> 30
        ));
        // SAFETY: the default stream is there as long as the context.
        let stream = unsafe { device.stream(null_mut()) };
        Ok(Gpu { device, stream })
    }

    /// What every row says of it.
    fn params(&self) -> Params {
        Params::new().with("gpu", self.device.info().name.as_str())
    }
}
