//! Values that belong to the process that made them: a child of `fork` has neither their threads nor
//! their locks, so it may not even drop them.

use std::mem::ManuallyDrop;

use pyo3::prelude::*;

use crate::error::from_store;

/// A value of this process.
pub(super) struct Own<T: Send> {
    pid: u32,
    value: ManuallyDrop<T>,
}

impl<T: Send> Own<T> {
    pub(super) fn new(value: T) -> Own<T> {
        Own { pid: std::process::id(), value: ManuallyDrop::new(value) }
    }

    /// The value; `ForkedError` in a child.
    pub(super) fn get(&self) -> PyResult<&T> {
        match self.pid == std::process::id() {
            true => Ok(&self.value),
            false => Err(from_store(kvist::Error::Forked)),
        }
    }
}

impl<T: Send> Drop for Own<T> {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return;
        }
        // Threads that are joined may want the GIL.
        Python::attach(|py| {
            py.detach(|| {
                // SAFETY: dropped once, here.
                unsafe { ManuallyDrop::drop(&mut self.value) }
            });
        });
    }
}
