//! A decode step that chooses what it reads on the GPU: no score and no list comes to the host before it is
//! done, and all that changes from step to step is in memory. So a captured step can be replayed as sequences
//! grow.

mod build;
mod shape;
mod tables;

use std::sync::Arc;

use build::Room;
pub use shape::{StepChoice, StepMemory, StepShape};
use tables::State;
pub use tables::{StepLists, StepRow};

use super::program::Program;
use super::{Buffer, Device, Error, Stream, TrialError};
use crate::summary::TILE;

/// Queries choose what they read, and attend to it: units of tokens by the bounds of their boxes (Quest, arXiv
/// 2406.10774, folded over the query heads of a KV head), in six launches; or tokens by boxed codes and then by their
/// keys, in fifteen.
#[derive(Debug)]
pub struct SelectedStep {
    shape: StepShape,
    state: State,
    program: Program,
    _kept: Vec<Buffer>,
}

impl SelectedStep {
    /// Loads the kernels and takes the memory for steps of this shape.
    ///
    /// # Errors
    /// [`TrialError`] for a shape that no kernel takes, and those of [`Device::function`] and
    /// [`Device::buffer`].
    pub fn new(
        device: &Arc<Device>,
        stream: &Stream,
        shape: StepShape,
        memory: StepMemory,
    ) -> Result<SelectedStep, TrialError> {
        shape.check()?;
        let state = State::new(device, &shape)?;
        let mut room = Room::new(device, stream, &shape, &memory, &state);
        match shape.choice {
            StepChoice::Units { cell, fold, .. } => room.units(cell, fold)?,
            StepChoice::Tokens { planes } => room.tokens(planes)?,
        }
        let (program, _kept) = room.finish();
        Ok(SelectedStep { shape, state, program, _kept })
    }

    /// What the rows are from the next step on. Waits for steps that are on their way.
    ///
    /// # Errors
    /// [`Error::Launch`] for another number of rows, or for one that there is no room for;
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn set_rows(&mut self, rows: &[StepRow]) -> Result<(), Error> {
        let s = &self.shape;
        let (tokens, most) = (s.tokens_max(), s.wanted_max);
        let fits = |row: &StepRow| {
            let units = row.tokens.div_ceil(s.unit_tokens());
            let kept = row.keep[0].saturating_add(row.keep[1]).min(units);
            let behind = match s.choice {
                StepChoice::Units { .. } => 0,
                StepChoice::Tokens { .. } => row.tokens % TILE,
            };
            row.tokens <= tokens && row.wanted.max(kept) <= most && row.keep[1] >= behind
        };
        if rows.len() != s.rows() || !rows.iter().all(fits) {
            let expected =
                format!("{} rows of up to {tokens} tokens and {most} units to read", s.rows());
            return Err(Error::Launch { what: "rows", expected, found: format!("{rows:?}") });
        }
        self.state.done.synchronize()?;
        self.state.set(&self.shape, rows);
        Ok(())
    }

    /// The lists of pages and cells, to be written and then sent. Waits for steps that are on their way.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn lists(&mut self) -> Result<StepLists<'_>, Error> {
        self.state.done.synchronize()?;
        Ok(self.state.lists(&self.shape))
    }

    /// Queues the lists' way to the GPU; in a capture, for all replays.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    ///
    /// # Safety
    /// The step stays until what is queued is done.
    pub unsafe fn send_lists(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: they are written only after [`SelectedStep::queued`]'s event.
        unsafe { self.state.send_lists(stream) }
    }

    /// Queues a step; in a capture, for all replays.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Launch`], [`Error::Driver`].
    ///
    /// # Safety
    /// The memory of the step is the GPU's, as long as its shape says, and stays until what is queued is done; no
    /// other work that is not ordered with it touches it. The lists that were sent name frames and cells that
    /// are there.
    pub unsafe fn queue(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: parameters are those of the sources; their addresses are of buffers that this keeps or the
        // caller's.
        unsafe {
            self.state.send_rows(stream)?;
            self.program.queue(stream)
        }
    }

    /// A step, or the replay of one, is queued: whoever changes rows or lists waits for it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn queued(&self, stream: &Stream) -> Result<(), Error> {
        self.state.done.record(stream)
    }
}
