//! Centroids made ready for being compared with points.
//!
//! The score of a point `x` for a target is `x . w + b`, both from the centroid by the metric, in f64:
//! products of f32 are exact there, and sums have one order, so that labels are the same at every
//! instruction-set level. Sweeps say which few targets need to be looked at. Their error is bounded as
//! follows, with norms rounded up.
//!
//! *Bytes.* `x = m + x'`, `w = v + w'`; `x . v` is the same for all targets, so the score may be taken as
//! `x' . w' + (b + m . w')`. With `x' = y + r` and `w' = z + s`, where y and z are multiples of bytes,
//! `|x'.w' - y.z| <= |r| |w'| + |y| |s|`. *f32.* A sum of d products is off by at most `d 2^-24 |x| |w|` or
//! so. What f32 rounds elsewhere is a few units of `2^-24` of the same norms and of the largest bias.

use super::buffer::Buffer;
use super::points::{Points, exact};
use crate::Executor;
use crate::arch::cluster::RoundFn;
use crate::arch::nearest::{LANES, RowStats, TARGET_STATS};

/// What is maximised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The cosine: a centroid counts by its direction only. A zero row or centroid scores 0.
    Cosine,
    /// The negative Euclidean distance.
    Euclidean,
}

/// Centroids as targets.
pub(super) struct Targets {
    /// `[count, padded][stride]`
    pub(super) w: Buffer<f32>,
    pub(super) b: Buffer<f64>,
    /// `[panels][steps][width]` and `[panels][TARGET_STATS][width]`, see [`Sweep`](crate::arch::nearest::Sweep).
    pub(super) panels: Buffer<u32>,
    pub(super) stats: Buffer<f32>,
    pub(super) steps: usize,
    pub(super) count: usize,
    /// Twice the part of the error that is the same for all.
    pub(super) slack: f32,
}

impl Targets {
    /// Targets from `centroids`, `[count][stride]`, in the form of the points.
    pub(super) fn new(
        points: &Points,
        metric: Metric,
        centroids: &[f32],
        exec: &Executor,
    ) -> Targets {
        let (stride, width) = (points.stride, points.loops.width);
        let count = centroids.len() / stride;
        let padded = count.next_multiple_of(LANES);
        let steps = if points.loops.round.is_some() { points.dim.div_ceil(4) } else { points.dim };
        let mut targets = Targets {
            w: Buffer::zeroed(padded * stride),
            b: Buffer::zeroed(padded),
            panels: Buffer::zeroed(padded * steps),
            stats: Buffer::zeroed(padded * TARGET_STATS),
            steps,
            count,
            slack: 0.0,
        };
        let tasks = count.div_ceil(LANES);
        let (w, b) = ((&mut *targets.w, LANES * stride), (&mut *targets.b, LANES));
        exec.chunks2(w, b, tasks, |task, w, b| {
            let centroids = centroids[task * LANES * stride..].chunks_exact(stride);
            for ((w, b), c) in w.chunks_exact_mut(stride).zip(b).zip(centroids) {
                *b = target(points, metric, c, w);
            }
        });
        let away = away(points, metric);
        let w = &targets.w;
        let panels = (&mut *targets.panels, width * steps);
        let stats = (&mut *targets.stats, width * TARGET_STATS);
        exec.chunks2(panels, stats, count.div_ceil(width), |panel, words, stats| {
            let first = panel * width;
            let mut fill = Panel { points, away: &away, width, words, stats };
            for lane in 0..width {
                if first + lane < count {
                    let w = &w[(first + lane) * stride..][..stride];
                    fill.set(lane, w, targets.b[first + lane]);
                } else {
                    fill.stats[width + lane] = f32::NEG_INFINITY;
                }
            }
        });
        targets.slack = targets.slack(points);
        targets
    }

    /// What all errors have in common, twice. Sums of bias and product are rounded relative to the
    /// larger of both, and squares of numbers around 2^-60 vanish.
    fn slack(&self, points: &Points) -> f32 {
        let width = points.loops.width;
        let panels = self.stats.chunks_exact(TARGET_STATS * width);
        let panels = panels.take(self.count.div_ceil(width));
        let (mut bias, mut size) = (0f32, 0f32);
        for panel in panels {
            let finite = panel[width..2 * width].iter().filter(|b| b.is_finite());
            bias = finite.fold(bias, |top, b| top.max(b.abs()));
            size = panel[3 * width..].iter().fold(size, |top, &s| top.max(s));
        }
        // SAFETY: the level is one this CPU has.
        let middle = unsafe { (points.loops.dot)(&points.middle, &points.middle) }.sqrt() as f32;
        let top = points.stats.iter().fold(0f32, |top, s| top.max(s.size));
        2.0 * (rounding(points) * (bias + middle * size) + 2f32.powi(-56) * (size + top))
    }

    /// Score of a point.
    pub(super) fn score(&self, points: &Points, point: usize, target: u32) -> f64 {
        let w = &self.w[target as usize * points.stride..][..points.stride];
        // SAFETY: the level is one this CPU has.
        unsafe { (points.loops.dot)(points.row(point), w) + self.b[target as usize] }
    }
}

/// Relative error of f32 sums over a row, generously.
fn rounding(points: &Points) -> f32 {
    (points.dim + 8) as f32 * 2f32.powi(-23)
}

/// Writes `w` and returns `b`.
fn target(points: &Points, metric: Metric, centroid: &[f32], w: &mut [f32]) -> f64 {
    // SAFETY: the level is one this CPU has.
    let square = unsafe { (points.loops.dot)(centroid, centroid) };
    match metric {
        Metric::Euclidean => {
            w.copy_from_slice(centroid);
            -0.5 * square
        }
        Metric::Cosine => {
            let by = if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
            w.iter_mut().zip(centroid).for_each(|(w, &c)| *w = (f64::from(c) * by) as f32);
            0.0
        }
    }
}

/// A vector near the mean of the targets, not longer than the longest may be.
pub(super) fn away(points: &Points, metric: Metric) -> Vec<f32> {
    // SAFETY: the level is one this CPU has.
    let norm = unsafe { (points.loops.dot)(&points.middle, &points.middle) }.sqrt();
    let by = match metric {
        Metric::Cosine if norm > 0.0 => 1.0 / points.typical_norm().max(norm),
        Metric::Cosine | Metric::Euclidean => 1.0,
    };
    points.middle.iter().map(|&m| (f64::from(m) * by) as f32).collect()
}

/// A panel that is being filled.
struct Panel<'a> {
    points: &'a Points,
    away: &'a [f32],
    width: usize,
    words: &'a mut [u32],
    stats: &'a mut [f32],
}

impl Panel<'_> {
    fn set(&mut self, lane: usize, w: &[f32], b: f64) {
        // SAFETY: the level is one this CPU has (so below).
        let dot = |a: &[f32], b: &[f32]| unsafe { (self.points.loops.dot)(a, b) };
        let (stats, shift, rounding) = match self.points.loops.round {
            Some(round) => {
                let middle = &self.points.middle;
                let shift = dot(middle, w) - dot(middle, self.away);
                (self.bytes(lane, w, round), shift, 2f32.powi(-20))
            }
            None => (self.floats(lane, w), 0.0, rounding(self.points)),
        };
        let norm = stats.size + stats.lost;
        let lanes = [stats.scale, (b + shift) as f32, stats.lost + rounding * norm, norm];
        for (i, x) in lanes.into_iter().enumerate() {
            self.stats[i * self.width + lane] = x;
        }
    }

    fn floats(&mut self, lane: usize, w: &[f32]) -> RowStats {
        for (words, w) in self.words.chunks_exact_mut(self.width).zip(w) {
            words[lane] = w.to_bits();
        }
        exact(self.points.loops, w)
    }

    fn bytes(&mut self, lane: usize, w: &[f32], round: RoundFn) -> RowStats {
        let mut codes = [0i8; crate::DIM_MAX];
        let codes = &mut codes[..w.len()];
        // SAFETY: as above.
        let stats = unsafe { round(w, self.away, codes) };
        let quads = codes.as_chunks::<4>().0;
        for (words, quad) in self.words.chunks_exact_mut(self.width).zip(quads) {
            words[lane] = u32::from_le_bytes(quad.map(|c| c as u8 ^ 0x80));
        }
        stats
    }
}
