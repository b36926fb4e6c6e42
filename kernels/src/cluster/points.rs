//! Rows made ready for comparing: f32, and rounded to bytes where the level multiplies bytes.

use super::buffer::Buffer;
use super::rows::Rows;
use crate::arch::cluster::{ClusterLoops, loops};
use crate::arch::nearest::{ROWS, RowStats};
use crate::{Executor, Isa};

/// Rows that one task makes ready.
const CHUNK: usize = 240;
/// Data whose largest magnitude lies in these powers of two are taken as they are: neither their squares
/// nor their errors leave the range of f32.
const EXPONENTS: std::ops::RangeInclusive<i32> = -40..=40;

/// Finite rows of a span. What is promised of scores holds for `x`, which equals the rows up to a
/// common offset and a common power of two.
pub(super) struct Points {
    pub(super) loops: ClusterLoops,
    /// f32 of a row: the dimension, padded with zeros.
    pub(super) stride: usize,
    pub(super) dim: usize,
    pub(super) len: usize,
    /// `[len + a sweep][stride]`
    pub(super) x: Buffer<f32>,
    /// `x - middle` in bytes, `[len + a sweep][stride]`; empty where sweeps take f32.
    pub(super) bytes: Buffer<i8>,
    pub(super) stats: Buffer<RowStats>,
    /// Taken off rows before they are rounded to bytes, `[stride]`.
    pub(super) middle: Vec<f32>,
    /// `x = row * 2^-exponent - offset`
    offset: Vec<f32>,
    exponent: i32,
    /// Which of the rows given these are, ascending.
    pub(super) tokens: Vec<u32>,
    /// Those with an element that is not finite, ascending.
    pub(super) unclustered: Vec<u32>,
}

impl Points {
    /// Reads rows. `centre` takes their mean off. `top` is a magnitude that `x` must have room for
    /// beside the rows'.
    pub(super) fn new(isa: Isa, rows: &Rows, centre: bool, top: f32, exec: &Executor) -> Points {
        let loops = loops(isa);
        let stride = rows.dim().next_multiple_of(16);
        // A sweep may begin at any row and reads whole sweeps.
        let padded = rows.len() + ROWS;
        let mut points = Points {
            loops,
            stride,
            dim: rows.dim(),
            len: rows.len(),
            x: Buffer::zeroed(padded * stride),
            bytes: Buffer::zeroed(if loops.round.is_some() { padded * stride } else { 0 }),
            stats: Buffer::zeroed(padded),
            middle: Vec::new(),
            offset: vec![0.0; stride],
            exponent: 0,
            tokens: Vec::new(),
            unclustered: Vec::new(),
        };
        let largest = points.read(rows, exec).max(top);
        points.rescale(largest, exec);
        let mean = points.mean(exec);
        if centre {
            points.shift(&mean, exec);
            points.middle = vec![0.0; stride];
        } else {
            points.middle = mean;
        }
        points.measure(exec);
        points
    }

    /// A row of `x`.
    pub(super) fn row(&self, i: usize) -> &[f32] {
        &self.x[i * self.stride..][..self.stride]
    }

    /// Widens all rows and closes the gaps of those that are not finite. The largest magnitude.
    fn read(&mut self, rows: &Rows, exec: &Executor) -> f32 {
        let (widen, dim, stride) = (self.loops.widen, self.dim, self.stride);
        let mut tops = vec![0f32; rows.len()];
        let tasks = rows.len().div_ceil(CHUNK);
        exec.chunks2((&mut self.x, CHUNK * stride), (&mut tops, CHUNK), tasks, |task, x, tops| {
            for (i, (x, top)) in x.chunks_exact_mut(stride).zip(tops).enumerate() {
                // SAFETY: the rows are readable for `dim` elements; the level is one this CPU has.
                *top = unsafe { widen(rows.dtype(), rows.ptr(task * CHUNK + i), &mut x[..dim]) };
            }
        });
        let all = 0..rows.len() as u32;
        let finite = |&token: &u32| !tops[token as usize].is_nan();
        (self.tokens, self.unclustered) = all.partition(finite);
        if !self.unclustered.is_empty() {
            for (to, &from) in self.tokens.iter().enumerate() {
                let from = from as usize * stride;
                self.x.copy_within(from..from + stride, to * stride);
            }
            self.len = self.tokens.len();
            let end = self.len * stride;
            self.x[end..].fill(0.0);
        }
        self.tokens.iter().fold(0.0, |top, &t| tops[t as usize].max(top))
    }

    /// Brings very large and very small numbers into range.
    fn rescale(&mut self, largest: f32, exec: &Executor) {
        let largest = f64::from(largest);
        if largest == 0.0 || EXPONENTS.contains(&(largest.log2() as i32)) {
            return;
        }
        self.exponent = largest.log2() as i32;
        let by = self.scale();
        exec.chunks(&mut self.x, CHUNK * self.stride, |_, x| {
            x.iter_mut().for_each(|x| *x = (f64::from(*x) * by) as f32);
        });
    }

    /// What rows are multiplied by.
    fn scale(&self) -> f64 {
        f64::from(-self.exponent).exp2()
    }

    /// Mean of `x`: f32 sums of chunks, added in f64.
    fn mean(&self, exec: &Executor) -> Vec<f32> {
        let (stride, add) = (self.stride, self.loops.add);
        let rows = &self.x[..self.len * stride];
        let mut sums = vec![0f32; self.len.div_ceil(CHUNK) * stride];
        exec.chunks(&mut sums, stride, |task, sum| {
            let rows = &rows[task * CHUNK * stride..];
            for row in rows.chunks_exact(stride).take(CHUNK) {
                // SAFETY: the level is one this CPU has (so below).
                unsafe { add(sum, row) }
            }
        });
        let of = |channel: usize| {
            let all = sums.iter().skip(channel).step_by(stride);
            all.map(|&s| f64::from(s)).sum::<f64>() / self.len.max(1) as f64
        };
        (0..stride).map(|channel| of(channel) as f32).collect()
    }

    /// Takes the mean off every row.
    fn shift(&mut self, mean: &[f32], exec: &Executor) {
        let end = self.len * self.stride;
        exec.chunks(&mut self.x[..end], CHUNK * self.stride, |_, x| {
            for x in x.chunks_exact_mut(mean.len()) {
                x.iter_mut().zip(mean).for_each(|(x, m)| *x -= m);
            }
        });
        self.offset = mean.to_vec();
    }

    /// Norms, and bytes where the level wants them.
    fn measure(&mut self, exec: &Executor) {
        let (stride, loops, x, middle) = (self.stride, self.loops, &self.x, &self.middle);
        let row = |i: usize| &x[i * stride..][..stride];
        let tasks = self.len.div_ceil(CHUNK);
        let (bytes, stats) = ((&mut *self.bytes, CHUNK * stride), (&mut *self.stats, CHUNK));
        exec.chunks2(bytes, stats, tasks, |task, bytes, stats| {
            let mut bytes = bytes.chunks_exact_mut(stride);
            for (i, stats) in stats.iter_mut().enumerate().take(self.len - task * CHUNK) {
                let row = row(task * CHUNK + i);
                *stats = match (loops.round, bytes.next()) {
                    // SAFETY: as above.
                    (Some(round), Some(bytes)) => unsafe { round(row, middle, bytes) },
                    _ => exact(loops, row),
                };
            }
        });
    }

    /// Norm that rows typically have: of some rows, root mean square.
    pub(super) fn typical_norm(&self) -> f64 {
        let some = (0..self.len).step_by(self.len.div_ceil(256).max(1));
        let count = some.clone().count().max(1);
        // SAFETY: as above.
        let squares = some.map(|i| unsafe { (self.loops.dot)(self.row(i), self.row(i)) });
        (squares.sum::<f64>() / count as f64).sqrt()
    }

    /// A row like those of `x`, `[stride]`, as the rows given have it, `[dim]`.
    pub(super) fn restored(&self, x: &[f32], row: &mut [f32]) {
        let by = 1.0 / self.scale();
        for ((row, &x), &o) in row.iter_mut().zip(x).zip(&self.offset) {
            *row = ((f64::from(x) + f64::from(o)) * by) as f32;
        }
    }

    /// Rows as those given, `[count][dim]`, in the form of `x`, `[count][stride]`.
    pub(super) fn taken(&self, rows: &[f32]) -> Vec<f32> {
        let by = self.scale();
        let mut x = vec![0f32; rows.len() / self.dim * self.stride];
        for (x, row) in x.chunks_exact_mut(self.stride).zip(rows.chunks_exact(self.dim)) {
            for ((x, &r), &o) in x.iter_mut().zip(row).zip(&self.offset) {
                *x = (f64::from(r) * by - f64::from(o)) as f32;
            }
        }
        x
    }
}

/// Stats of a row that is swept as it is.
pub(super) fn exact(loops: ClusterLoops, row: &[f32]) -> RowStats {
    // SAFETY: the level is one this CPU has.
    let norm = unsafe { (loops.dot)(row, row) }.sqrt();
    RowStats { scale: 1.0, lost: 0.0, size: (norm * (1.0 + 1e-6)) as f32, start: 0 }
}
