//! `kvist.Ticket`: work in the background.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::own::Own;
use super::patience;

/// Blocks on their way into memory. Dropping it cancels what has not begun.
#[pyclass(frozen, name = "Ticket", module = "kvist")]
pub(crate) struct PyTicket {
    inner: Own<kvist::Ticket<usize>>,
    callbacks: Arc<Callbacks>,
}

/// What is called when the work is done; they hold no lock of the store then.
#[derive(Default)]
struct Callbacks(Mutex<Vec<Py<PyAny>>>);

impl Callbacks {
    fn take(&self) -> Vec<Py<PyAny>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn call(&self, py: Python) {
        for callback in self.take() {
            if let Err(e) = callback.call0(py) {
                // An event loop that was closed meanwhile; nobody waits for this any more.
                e.write_unraisable(py, None);
            }
        }
    }
}

impl Wake for Callbacks {
    fn wake(self: Arc<Self>) {
        // Not while the interpreter shuts down.
        Python::try_attach(|py| self.call(py));
    }
}

impl PyTicket {
    pub(super) fn new(ticket: kvist::Ticket<usize>) -> PyTicket {
        PyTicket { inner: Own::new(ticket), callbacks: Arc::default() }
    }
}

#[pymethods]
impl PyTicket {
    /// Whether the result is there, or never will be.
    #[getter]
    fn done(&self) -> PyResult<bool> {
        Ok(self.inner.get()?.is_done())
    }

    /// Leading blocks that are in memory, once that is known; `None` if it is not known in time, or
    /// the work was given up.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python, timeout: Option<f64>) -> PyResult<Option<usize>> {
        let (ticket, timeout) = (self.inner.get()?, patience(timeout, "timeout")?);
        Ok(py.detach(|| ticket.wait_for(timeout)))
    }

    /// Asks for the work to stop where it can.
    fn cancel(&self) -> PyResult<()> {
        self.inner.get()?.cancel();
        Ok(())
    }

    /// Calls `callback` from some thread when the result is there, or never will be.
    fn add_done_callback(&self, py: Python, callback: Py<PyAny>) -> PyResult<()> {
        let ticket = self.inner.get()?;
        let callbacks = &self.callbacks;
        callbacks.0.lock().unwrap_or_else(PoisonError::into_inner).push(callback);
        if !ticket.when_done(Waker::from(callbacks.clone())) {
            callbacks.call(py);
        }
        Ok(())
    }

    /// The result of `wait`, awaited.
    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("kvist._prefix")?.getattr("awaited")?.call1((slf,))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("a Ticket belongs to a store and cannot be pickled"))
    }

    fn __repr__(&self) -> String {
        let done = self.done().is_ok_and(|done| done);
        format!("Ticket(done={})", if done { "True" } else { "False" })
    }
}
