//! Who belongs to which cluster.

use std::ops::Range;

use super::points::Points;
use crate::Executor;
use crate::arch::touch;

/// Clusters whose means one task computes.
pub(super) const CHUNK: usize = 32;
/// Members whose rows are asked for ahead of their use.
const AHEAD: usize = 4;

/// Numbers of members by cluster, ascending in each: `order[offsets[c]..offsets[c + 1]]`.
pub(super) struct Members {
    offsets: Vec<u32>,
    order: Vec<u32>,
}

impl Members {
    /// Members by their labels, which are below `clusters`; the first label belongs to `first`.
    pub(super) fn new(labels: &[u32], clusters: usize, first: usize) -> Members {
        let mut offsets = vec![0u32; clusters + 1];
        for &label in labels {
            offsets[label as usize + 1] += 1;
        }
        for c in 0..clusters {
            offsets[c + 1] += offsets[c];
        }
        let mut next = offsets.clone();
        let mut order = vec![0u32; labels.len()];
        for (i, &label) in labels.iter().enumerate() {
            let at = &mut next[label as usize];
            order[*at as usize] = (first + i) as u32;
            *at += 1;
        }
        Members { offsets, order }
    }

    /// Number of clusters, empty ones included.
    pub(super) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub(super) fn of(&self, cluster: usize) -> &[u32] {
        let of = |i: usize| self.offsets[i] as usize;
        &self.order[of(cluster)..of(cluster + 1)]
    }
}

/// Writes the mean of `members` of `points`, in the form of `x`.
pub(super) fn mean(points: &Points, members: &[u32], mean: &mut [f32]) {
    mean.fill(0.0);
    let row = |i: usize| members.get(i).map(|&m| points.row(m as usize));
    for (at, &i) in members.iter().enumerate() {
        // The members lie anywhere: ask for the rows ahead.
        let ahead = row(at + AHEAD).unwrap_or(&[]);
        for line in ahead.chunks(16) {
            touch(line.as_ptr().cast(), 0);
        }
        // SAFETY: the level is one this CPU has.
        unsafe { (points.loops.add)(mean, points.row(i as usize)) }
    }
    let n = members.len() as f32;
    mean.iter_mut().for_each(|m| *m /= n);
}

/// Moves every centroid that has members to their mean.
pub(super) fn update(points: &Points, members: &Members, centroids: &mut [f32], exec: &Executor) {
    let stride = points.stride;
    exec.chunks(centroids, CHUNK * stride, |task, centroids| {
        for (i, centroid) in centroids.chunks_exact_mut(stride).enumerate() {
            let members = members.of(task * CHUNK + i);
            if !members.is_empty() {
                mean(points, members, centroid);
            }
        }
    });
}

/// Every `floor(n / count)`-th point of a range.
pub(super) fn strided(points: &Points, range: &Range<usize>, count: usize) -> Vec<f32> {
    let step = range.len() / count;
    let rows = (0..count).flat_map(|i| points.row(range.start + i * step));
    rows.copied().collect()
}
