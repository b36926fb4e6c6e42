//! Lloyd's iterations over some points.

use std::ops::Range;

use super::members::{Members, strided, update};
use super::points::Points;
use super::targets::{Metric, Targets};
use crate::Executor;

/// Centroids, and the label of every point.
pub(super) struct Labelled {
    /// `[clusters][stride]`, in the form of the points.
    pub(super) centroids: Vec<f32>,
    /// One per point of the range.
    pub(super) labels: Vec<u32>,
}

/// `iterations` times: label every point of the range, then move each centroid to the mean of its
/// members; one without members stays where it was. Begins at every `floor(n / count)`-th point, and
/// makes no more clusters than there are points. Without iterations every label is 0.
pub(super) fn lloyd(
    points: &Points,
    range: Range<usize>,
    count: usize,
    metric: Metric,
    iterations: usize,
    exec: &Executor,
) -> Labelled {
    let count = count.min(range.len());
    if count == 0 {
        return Labelled { centroids: Vec::new(), labels: Vec::new() };
    }
    let centroids = strided(points, &range, count);
    let mut state = Labelled { centroids, labels: vec![0; range.len()] };
    for _ in 0..iterations {
        state.label(points, range.start, metric, exec);
        state.move_centroids(points, range.start, exec);
    }
    state
}

impl Labelled {
    /// Labels the points from `first` on.
    pub(super) fn label(&mut self, points: &Points, first: usize, metric: Metric, exec: &Executor) {
        if self.labels.is_empty() {
            return;
        }
        let targets = Targets::new(points, metric, &self.centroids, exec);
        targets.assign(points, first, &mut self.labels, exec);
    }

    pub(super) fn members(&self, points: &Points, first: usize) -> Members {
        Members::new(&self.labels, self.centroids.len() / points.stride, first)
    }

    pub(super) fn move_centroids(&mut self, points: &Points, first: usize, exec: &Executor) {
        let members = self.members(points, first);
        update(points, &members, &mut self.centroids, exec);
    }
}
