//! What a plan that is made on the device needs.

/// Room for a plan whose lengths the host does not know (`plan.cu`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanRoom {
    /// Segments at most: each unit has one, and each worker but the first may begin inside one.
    pub segments: usize,
    /// Offsets of the workers' segments.
    pub workers: usize,
    /// Partial results at most: each worker's first and last segment.
    pub partials: usize,
}

impl PlanRoom {
    /// For `units` units and `workers` workers, whatever the lengths of the lists.
    #[must_use]
    pub const fn new(units: usize, workers: usize) -> PlanRoom {
        PlanRoom { segments: units + workers, workers: workers + 1, partials: 2 * workers }
    }
}
