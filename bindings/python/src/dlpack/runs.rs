//! Whether memory to be written to is reached once.
//!
//! Mostly each block's rows lie inside one another's gaps by their strides alone, and blocks apart: that is
//! seen from the spans. Else every row is looked at, as a run of bytes, sorted.

use pyo3::prelude::*;

use crate::error::raise;

/// More runs than any sensible tensor has; they would take gigabytes.
const RUNS_MAX: usize = 1 << 24;

/// Rows of one block and side.
pub(super) struct Shape {
    /// Bytes of a row, or of several that lie side by side.
    len: usize,
    /// `(count, stride in bytes)`, by strides.
    dims: Vec<(usize, usize)>,
}

impl Shape {
    /// Rows of `len` bytes along dimensions `(count, stride in bytes)`; neighbours become one.
    pub(super) fn new(mut len: usize, dims: &[(usize, i64)]) -> PyResult<Shape> {
        let mut positive: Vec<(usize, usize)> = Vec::new();
        for &(count, stride) in dims.iter().filter(|(n, _)| *n > 1) {
            let stride = usize::try_from(stride).ok().filter(|stride| *stride > 0);
            let Some(stride) = stride else {
                let text = "blocks: expected positive strides to write to, found one that is not";
                return Err(raise("ShapeError", text.to_owned()));
            };
            positive.push((count, stride));
        }
        positive.sort_unstable_by_key(|(_, stride)| *stride);
        while let Some(&(count, stride)) = positive.first()
            && stride == len
        {
            len = len.saturating_mul(count);
            positive.remove(0);
        }
        Ok(Shape { len, dims: positive })
    }

    /// Bytes from the first row's start to the last one's end, if no two rows share bytes for the reason
    /// that each stride is beyond all that smaller ones reach.
    fn span(&self) -> Option<usize> {
        self.dims.iter().try_fold(self.len, |reach, &(count, stride)| {
            let far = stride.checked_mul(count - 1)?.checked_add(reach)?;
            (stride >= reach).then_some(far)
        })
    }

    fn count(&self) -> usize {
        self.dims.iter().fold(1, |all, (count, _)| all.saturating_mul(*count))
    }

    /// Every row of a block that starts at an address.
    fn rows(&self, start: usize) -> Vec<(usize, usize)> {
        let mut starts = vec![start];
        for &(count, stride) in &self.dims {
            let step = |i: usize| i.wrapping_mul(stride);
            let along = |from: usize| (0..count).map(move |i| from.wrapping_add(step(i)));
            starts = starts.into_iter().flat_map(along).collect();
        }
        starts.into_iter().map(|start| (start, self.len)).collect()
    }
}

/// Blocks: the shape of each, and where it starts.
#[derive(Default)]
pub(super) struct Runs(Vec<(Shape, Vec<usize>)>);

impl Runs {
    /// Adds blocks of a shape.
    pub(super) fn add(&mut self, shape: Shape, starts: Vec<usize>) {
        self.0.push((shape, starts));
    }

    /// Refuses memory that is reached twice.
    pub(super) fn check_disjoint(&self) -> PyResult<()> {
        let spans = self.0.iter().map(|(shape, starts)| {
            shape.span().map(|span| starts.iter().map(move |&start| (start, span)))
        });
        let spans: Option<Vec<_>> = spans.collect();
        if spans.is_some_and(|spans| are_apart(spans.into_iter().flatten().collect())) {
            return Ok(());
        }
        let each = self.0.iter().map(|(shape, at)| shape.count().saturating_mul(at.len()));
        if each.fold(0, usize::saturating_add) > RUNS_MAX {
            let text =
                "blocks: expected rows in fewer pieces to write to; make the tensors contiguous";
            return Err(raise("ShapeError", text.to_owned()));
        }
        let rows = |(shape, starts): &(Shape, Vec<usize>)| {
            starts.iter().flat_map(|&start| shape.rows(start)).collect::<Vec<_>>()
        };
        if are_apart(self.0.iter().flat_map(rows).collect()) {
            return Ok(());
        }
        let text = "blocks: expected memory that is written once, found rows that overlap";
        Err(raise("ShapeError", text.to_owned()))
    }
}

/// Whether no two runs of bytes, start and length, share one.
fn are_apart(mut runs: Vec<(usize, usize)>) -> bool {
    runs.sort_unstable();
    runs.windows(2).all(|w| w[0].0.checked_add(w[0].1).is_some_and(|end| end <= w[1].0))
}
