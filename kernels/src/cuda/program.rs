//! Launches that follow each other.

use std::fmt::Debug;

use bytemuck::Pod;

use super::{Error, Function, Grid, Stream};

/// A launch with all it needs.
trait Step: Debug + Send + Sync {
    unsafe fn launch(&self, stream: &Stream) -> Result<(), Error>;
}

/// An entry point with the struct that it takes.
#[derive(Debug)]
struct Launch<P> {
    function: Function,
    grid: Grid,
    params: P,
}

impl<P: Pod + Debug + Send + Sync> Step for Launch<P> {
    unsafe fn launch(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: the caller's promise; the stream orders the steps.
        unsafe { self.function.launch(stream, self.grid, &self.params) }
    }
}

/// Launches, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Program(Vec<Box<dyn Step>>);

impl Program {
    /// Adds a launch of so many blocks of so many threads with so much shared memory. The struct is that of the
    /// function's source.
    pub(super) fn push<P: Pod + Debug + Send + Sync>(
        &mut self,
        function: Function,
        (blocks, threads, shared_bytes): (usize, u32, usize),
        params: P,
    ) {
        let blocks = [blocks.max(1) as u32, 1, 1];
        let grid = Grid { blocks, threads, shared_bytes: shared_bytes as u32 };
        self.0.push(Box::new(Launch { function, grid, params }));
    }

    /// Queues them.
    ///
    /// # Safety
    /// As of [`Function::launch`], for each.
    pub(super) unsafe fn queue(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        self.0.iter().try_for_each(|step| unsafe { step.launch(stream) })
    }
}
