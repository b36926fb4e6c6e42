//! Labelling points: rough scores of all targets, exact ones of the few that come near the best.

use super::buffer::Buffer;
use super::points::Points;
use super::targets::Targets;
use crate::Executor;
use crate::arch::nearest::{ROWS, Sweep, TARGET_STATS};

/// Bytes of the panels that are swept at once: they stay in the second-level cache.
const BLOCK_BYTES: usize = 256 << 10;
/// Rows that one task labels.
const CHUNK: usize = 20 * ROWS;

impl Targets {
    /// Writes the best target of `labels.len()` points from `first` on; of equal ones the lowest.
    pub(super) fn assign(
        &self,
        points: &Points,
        first: usize,
        labels: &mut [u32],
        exec: &Executor,
    ) {
        let width = points.loops.width;
        let block = (BLOCK_BYTES / (4 * self.steps) / width * width)
            .clamp(width, self.count.next_multiple_of(width));
        exec.chunks(labels, CHUNK, |task, labels| {
            let mut work = Work {
                points,
                targets: self,
                upper: Buffer::zeroed(ROWS * block),
                ids: vec![0; block],
                block,
            };
            for (i, labels) in labels.chunks_mut(ROWS).enumerate() {
                work.label(first + task * CHUNK + i * ROWS, labels);
            }
        });
    }
}

/// Room for labelling a few rows.
struct Work<'a> {
    points: &'a Points,
    targets: &'a Targets,
    upper: Buffer<f32>,
    ids: Vec<u32>,
    block: usize,
}

impl Work<'_> {
    /// Labels up to [`ROWS`] points from `first` on.
    fn label(&mut self, first: usize, labels: &mut [u32]) {
        let mut best = [f64::NEG_INFINITY; ROWS];
        for from in (0..self.targets.count).step_by(self.block) {
            let count = self.block.min(self.targets.count - from);
            let lower = self.sweep(first, labels.len(), from, count);
            for (i, label) in labels.iter_mut().enumerate() {
                let least = lower[i] - self.targets.slack;
                let upper = self.upper[i * self.block..].as_ptr();
                // SAFETY: the sweep wrote `count` upper ends padded to whole panels, the padding -inf;
                // `ids` has room for a block.
                let reaching = self.points.loops.reaching;
                // SAFETY: the sweep wrote `count` upper ends padded to whole panels, the padding -inf; `ids` has room.
                let found = unsafe { reaching(upper, count, least, self.ids.as_mut_ptr()) };
                if found == 1 && self.block >= self.targets.count {
                    *label = self.ids[0];
                    continue;
                }
                for id in self.ids[..found].iter().map(|id| id + from as u32) {
                    let score = self.targets.score(self.points, first + i, id);
                    if score > best[i] {
                        (best[i], *label) = (score, id);
                    }
                }
            }
        }
    }

    /// Best lower ends of the scores of `rows` points; their upper ends go to `self.upper`.
    fn sweep(&mut self, first: usize, rows: usize, from: usize, count: usize) -> [f32; ROWS] {
        let (points, targets) = (self.points, self.targets);
        let mut lower = [f32::NEG_INFINITY; ROWS];
        let rows = rows.next_multiple_of(ROWS / 2);
        let (data, row_bytes) = if points.loops.round.is_some() {
            (points.bytes[first * points.stride..].as_ptr().cast(), points.stride)
        } else {
            (points.x[first * points.stride..].as_ptr().cast(), 4 * points.stride)
        };
        let mut sweep = Sweep {
            rows: data,
            row_bytes,
            steps: targets.steps,
            stats: &points.stats[first..][..rows],
            panels: targets.panels[from * targets.steps..].as_ptr(),
            targets: targets.stats[from * TARGET_STATS..].as_ptr(),
            count,
            upper: self.upper.as_mut_ptr(),
            stride: self.block,
            lower: &mut lower,
        };
        // SAFETY: a whole sweep of rows lies behind the last point, targets are padded to whole panels,
        // `upper` holds ROWS rows of a block, which is a multiple of the panels' width.
        unsafe { (points.loops.sweep)(&mut sweep) }
        lower
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::cluster::targets::away;
    use crate::cluster::{Metric, Rows};

    /// Numbers of one sign and of both, in channels of very different sizes.
    fn numbers(count: usize, dim: usize, salt: u32) -> Vec<f32> {
        let bits = |i: usize| (i as u32 ^ salt).wrapping_mul(0x9e37_79b9).rotate_left(13) >> 8;
        let one = |i: usize| {
            let size = [1.0, 100.0, 1e-3, 1e-25][(i % dim) % 4];
            size * (bits(i).wrapping_mul(2_654_435) as f32 / 2f32.powi(32) - 0.2)
        };
        (0..count * dim).map(one).collect()
    }

    /// Whatever a sweep rounds, the exact scores less what a point's scores have in common lie between
    /// the ends that it gives.
    #[test]
    fn ends_enclose_the_scores() {
        for (dim, count) in [(1, 3), (7, 40), (64, 100), (129, 33), (576, 64)] {
            let (rows, centroids) = (numbers(50, dim, 1), numbers(count, dim, 7));
            let mut ptrs = Vec::new();
            let rows = Rows::contiguous(&rows, dim, &mut ptrs).expect("whole rows");
            for isa in Isa::available() {
                let points = Points::new(isa, &rows, false, 0.0, &Executor::inline());
                let centroids = points.taken(&centroids);
                for metric in [Metric::Cosine, Metric::Euclidean] {
                    enclose(&points, &centroids, metric);
                }
            }
        }
    }

    fn enclose(points: &Points, centroids: &[f32], metric: Metric) {
        let targets = Targets::new(points, metric, centroids, &Executor::inline());
        let block = targets.count.next_multiple_of(points.loops.width);
        let (upper, ids) = (Buffer::zeroed(ROWS * block), vec![0; block]);
        let mut work = Work { points, targets: &targets, upper, ids, block };
        let mut common = away(points, metric);
        if points.loops.round.is_none() {
            common.fill(0.0);
        }
        for first in (0..points.len).step_by(ROWS) {
            let rows = ROWS.min(points.len - first);
            let lower = work.sweep(first, rows, 0, targets.count);
            for (i, &lower) in lower.iter().enumerate().take(rows) {
                // SAFETY: the level is one this CPU has.
                let common = unsafe { (points.loops.dot)(points.row(first + i), &common) };
                let score = |t: usize| targets.score(points, first + i, t as u32) - common;
                let best = (0..targets.count).map(score).fold(f64::NEG_INFINITY, f64::max);
                let slack = f64::from(targets.slack) / 2.0;
                assert!(f64::from(lower) <= best + slack, "{lower} {best} {slack}");
                for t in 0..targets.count {
                    let upper = f64::from(work.upper[i * block + t]);
                    assert!(score(t) <= upper + slack, "{} {upper} {slack}", score(t));
                    // And not by more than bytes make necessary.
                    assert!(upper - score(t) <= 0.2 * size(points, first + i, &targets, t) + slack);
                }
            }
        }
    }

    /// `|x| |w|`, plus the size of the target's bias.
    fn size(points: &Points, point: usize, targets: &Targets, target: usize) -> f64 {
        let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let w = &targets.w[target * points.stride..][..points.stride];
        (norm(points.row(point)) + norm(&points.middle)) * norm(w) + targets.b[target].abs()
    }
}
