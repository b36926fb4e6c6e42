//! Points in the work of a stream, for others to wait for.

use std::sync::Arc;

use cudarc::driver::sys::{CUevent, CUevent_flags, CUevent_wait_flags, CUresult};
use cudarc::driver::{CudaContext, DriverError, result};

use super::driver::told;
use super::{Device, Error, Stream};

/// A point in a stream's work. Until it is recorded, nobody waits for it.
#[derive(Debug)]
pub struct Event {
    raw: CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: a handle of the driver, which any thread may use.
unsafe impl Send for Event {}
// SAFETY: the driver locks what its calls change.
unsafe impl Sync for Event {}

impl Device {
    /// A stream of its own, which does not wait for the default stream.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Driver`].
    pub fn new_stream(&self) -> Result<Stream, Error> {
        self.context().new_stream().map(Stream::new).map_err(told("making a stream"))
    }

    /// An event that takes no time.
    ///
    /// # Errors
    /// As [`Device::new_stream`].
    pub fn event(&self) -> Result<Event, Error> {
        let (what, context) = ("making an event", Arc::clone(self.context()));
        context.bind_to_thread().map_err(told(what))?;
        let raw = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING);
        Ok(Event { raw: raw.map_err(told(what))?, context })
    }
}

impl Stream {
    /// What is queued from now on is done after the event's last record.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        let what = "making a stream wait";
        event.context.bind_to_thread().map_err(told(what))?;
        let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        unsafe { result::stream::wait_event(self.raw(), event.raw, flags) }.map_err(told(what))
    }
}

impl Event {
    /// Stands for all that is queued on the stream now.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn record(&self, stream: &Stream) -> Result<(), Error> {
        let what = "recording an event";
        self.context.bind_to_thread().map_err(told(what))?;
        // SAFETY: both are alive.
        unsafe { result::event::record(self.raw, stream.raw()) }.map_err(told(what))
    }

    /// Whether all that it stands for is done.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if that failed, [`Error::Driver`].
    pub fn is_done(&self) -> Result<bool, Error> {
        let what = "asking for an event";
        self.context.bind_to_thread().map_err(told(what))?;
        // SAFETY: it is alive.
        match unsafe { result::event::query(self.raw) } {
            Ok(()) => Ok(true),
            Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => Err(told(what)(e)),
        }
    }

    /// Waits until all that it stands for is done.
    ///
    /// # Errors
    /// As [`Event::is_done`].
    pub fn synchronize(&self) -> Result<(), Error> {
        let what = "waiting for an event";
        self.context.bind_to_thread().map_err(told(what))?;
        // SAFETY: it is alive.
        unsafe { result::event::synchronize(self.raw) }.map_err(told(what))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let bound = self.context.bind_to_thread();
        // SAFETY: made once, given back once; the driver keeps it for whoever waits.
        let gone = bound.and_then(|()| unsafe { result::event::destroy(self.raw) });
        if let Err(e) = gone {
            tracing::debug!("an event is not given back: {e}");
        }
    }
}
