//! Whether memory to be written to is reached once: its rows as runs of bytes, sorted.

use pyo3::prelude::*;

use crate::error::raise;

/// More runs than any sensible tensor has; they would take gigabytes.
const RUNS_MAX: usize = 1 << 24;

/// Runs of bytes: start and length.
#[derive(Default)]
pub(super) struct Runs(Vec<(usize, usize)>);

/// Runs of one block and side: offsets, and the length of each.
pub(super) struct Shape {
    offsets: Vec<usize>,
    len: usize,
}

impl Runs {
    /// Rows of `len` bytes along dimensions `(count, stride in bytes)`; neighbours become one.
    pub(super) fn shape(&self, mut len: usize, dims: &[(usize, i64)]) -> PyResult<Shape> {
        let mut dims: Vec<(usize, i64)> = dims.iter().copied().filter(|(n, _)| *n > 1).collect();
        if dims.iter().any(|(_, stride)| *stride <= 0) {
            let text = "blocks: expected positive strides to write to, found one that is not";
            return Err(raise("ShapeError", text.to_owned()));
        }
        while let Some(at) = dims.iter().position(|(_, stride)| *stride == len as i64) {
            len *= dims.remove(at).0;
        }
        let mut offsets = vec![0usize];
        for (count, stride) in dims {
            if offsets.len().saturating_mul(count) > RUNS_MAX {
                return Err(scattered());
            }
            let step = |i: usize| i.wrapping_mul(stride as usize);
            offsets = offsets
                .iter()
                .flat_map(|&from| (0..count).map(move |i| from.wrapping_add(step(i))))
                .collect();
        }
        Ok(Shape { offsets, len })
    }

    /// Adds the runs of a block that starts at an address.
    pub(super) fn add(&mut self, start: usize, shape: &Shape) -> PyResult<()> {
        if self.0.len() + shape.offsets.len() > RUNS_MAX {
            return Err(scattered());
        }
        self.0.extend(shape.offsets.iter().map(|&o| (start.wrapping_add(o), shape.len)));
        Ok(())
    }
}

fn scattered() -> PyErr {
    let text = "blocks: expected rows in fewer pieces to write to; make the tensors contiguous";
    raise("ShapeError", text.to_owned())
}

/// Refuses runs that share bytes.
pub(super) fn disjoint(runs: Runs) -> PyResult<()> {
    let Runs(mut runs) = runs;
    runs.sort_unstable();
    let overlap = runs.windows(2).any(|w| w[0].0.checked_add(w[0].1).is_none_or(|e| e > w[1].0));
    match overlap {
        false => Ok(()),
        true => {
            let text = "blocks: expected memory that is written once, found rows that overlap";
            Err(raise("ShapeError", text.to_owned()))
        }
    }
}
