//! Leaves a caller's thread as it was found.

use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUcontext};

use super::driver::present;

/// While it lives, this thread may use any GPU; then the one that was current is so again. A framework takes a
/// thread's current context for the GPU that it was told to use.
#[derive(Debug)]
#[must_use = "the thread's GPU is given back when it is dropped"]
pub struct Visit(Option<CUcontext>);

impl Visit {
    /// Remembers the thread's current context, or that it has none.
    #[expect(clippy::new_without_default, reason = "it is an event, not a value")]
    pub fn new() -> Visit {
        if present().is_err() {
            return Visit(None);
        }
        let mut context = null_mut();
        // SAFETY: the driver is there; it writes to this frame, or fails (as before it is started).
        let status = unsafe { sys::cuCtxGetCurrent(&raw mut context) };
        Visit(Some(if status.result().is_ok() { context } else { null_mut() }))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(context) = self.0 {
            // SAFETY: it was current before, or is none; the driver refuses one that was destroyed meanwhile.
            if let Err(e) = unsafe { sys::cuCtxSetCurrent(context) }.result() {
                tracing::debug!("a thread has another current GPU than before: {e}");
            }
        }
    }
}
