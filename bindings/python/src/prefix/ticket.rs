//! `kvist.Ticket`: work in the background.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::own::Own;
use super::patience;
use super::result::{restored_object, stored};

/// Blocks on their way into memory. Dropping it cancels what has not begun.
#[pyclass(frozen, name = "Ticket", module = "kvist")]
pub(crate) struct PyTicket {
    inner: Own<Work>,
    callbacks: Arc<Callbacks>,
}

/// What is waited for.
pub(super) enum Work {
    /// Blocks that come to the store's memory.
    Prefetch(kvist::Ticket<usize>),
    /// Blocks that come to the caller's.
    Get(kvist::Ticket<kvist::Restored>),
    /// Blocks that leave it.
    Put(kvist::Ticket<Vec<Result<(), kvist::Refused>>>),
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
    pub(super) fn new(work: Work) -> PyTicket {
        PyTicket { inner: Own::new(work), callbacks: Arc::default() }
    }
}

#[pymethods]
impl PyTicket {
    /// Whether the result is there, or never will be.
    #[getter]
    fn done(&self) -> PyResult<bool> {
        Ok(match self.inner.get()? {
            Work::Prefetch(ticket) => ticket.is_done(),
            Work::Get(ticket) => ticket.is_done(),
            Work::Put(ticket) => ticket.is_done(),
        })
    }

    /// Seconds that the work took, waiting for its turn included; `None` before it is over.
    #[getter]
    fn seconds(&self) -> PyResult<Option<f64>> {
        let took = match self.inner.get()? {
            Work::Prefetch(ticket) => ticket.took(),
            Work::Get(ticket) => ticket.took(),
            Work::Put(ticket) => ticket.took(),
        };
        Ok(took.map(|took| took.as_secs_f64()))
    }

    /// The result once it is known: of `prefetch`, how many leading blocks are in memory; of
    /// `get_behind`, a `Restored`; of `put_behind`, a `Stored`. `None` if it is not known in time, or the work was given up.
    #[pyo3(signature = (timeout=None))]
    fn wait<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let timeout = patience(timeout, "timeout")?;
        match self.inner.get()? {
            Work::Prefetch(ticket) => match py.detach(|| ticket.wait_for(timeout)) {
                Some(blocks) => Ok(Some(blocks.into_pyobject(py)?.into_any())),
                None => Ok(None),
            },
            Work::Get(ticket) => {
                let restored = py.detach(|| ticket.wait_for(timeout));
                restored.map(|restored| restored_object(py, restored)).transpose()
            }
            Work::Put(ticket) => {
                let results = py.detach(|| ticket.wait_for(timeout));
                results.map(|results| stored(py, &results)).transpose()
            }
        }
    }

    /// Asks for the work to stop where it can.
    fn cancel(&self) -> PyResult<()> {
        match self.inner.get()? {
            Work::Prefetch(ticket) => ticket.cancel(),
            Work::Get(ticket) => ticket.cancel(),
            Work::Put(ticket) => ticket.cancel(),
        }
        Ok(())
    }

    /// Calls `callback` from some thread when the result is there, or never will be.
    fn add_done_callback(&self, py: Python, callback: Py<PyAny>) -> PyResult<()> {
        let work = self.inner.get()?;
        let callbacks = &self.callbacks;
        callbacks.0.lock().unwrap_or_else(PoisonError::into_inner).push(callback);
        let waker = Waker::from(callbacks.clone());
        let under_way = match work {
            Work::Prefetch(ticket) => ticket.when_done(waker),
            Work::Get(ticket) => ticket.when_done(waker),
            Work::Put(ticket) => ticket.when_done(waker),
        };
        if !under_way {
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
