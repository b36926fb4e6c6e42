//! The record of a run: the state of the disk after every call.

use std::sync::Arc;

use super::disk::Disk;
use super::fault::Call;
use super::image::Images;

/// A call of a recorded run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its kind.
    pub call: Call,
    /// The name (last component) of the file or directory.
    pub name: String,
}

/// States of the disk, one more than calls. They share all bytes that did not change, so a log costs
/// little more than what was written.
#[derive(Clone, Debug)]
pub struct Log {
    states: Vec<Arc<Disk>>,
    steps: Vec<Step>,
}

impl Log {
    pub(super) fn new(disk: &Arc<Disk>) -> Log {
        Log { states: vec![disk.clone()], steps: Vec::new() }
    }

    pub(super) fn push(&mut self, call: Call, name: &str, disk: &Arc<Disk>) {
        self.states.push(disk.clone());
        self.steps.push(Step { call, name: name.into() });
    }

    /// The last point: calls that were recorded. Point 0 is before the first of them.
    #[must_use]
    pub fn points(&self) -> usize {
        self.steps.len()
    }

    /// The call that ended at `point`; none for point 0 and beyond the last.
    #[must_use]
    pub fn step(&self, point: usize) -> Option<&Step> {
        self.steps.get(point.checked_sub(1)?)
    }

    /// Points 0 and those whose call changed something: what a crash leaves elsewhere is the same as
    /// at the nearest of these before it.
    pub fn changes(&self) -> impl Iterator<Item = usize> {
        let changed = |&point: &usize| {
            point == 0 || !Arc::ptr_eq(&self.states[point - 1], &self.states[point])
        };
        (0..self.states.len()).filter(changed)
    }

    /// What a crash right after `point` calls may leave.
    ///
    /// # Panics
    /// If `point` is beyond [`Log::points`].
    #[must_use]
    pub fn images(&self, point: usize) -> Images {
        Images::of(&self.states[point])
    }
}
