//! The best units by score.

use std::ops::Range;

use kvist_kernels::select;
use pyo3::prelude::*;

use crate::dlpack::{Input, Storage, numpy};
use crate::error::{option_error, shape_error};
use crate::number::{Whole, optional};

fn weights_of(weights: &Bound<PyAny>) -> PyResult<Vec<f32>> {
    let input = Input::new(weights, "weights")?;
    match input.shape().len() {
        1 => Ok(input.floats()),
        _ => Err(shape_error("weights", "[units]", input.shape())),
    }
}

fn ranges_of(forced: Vec<(Whole, Whole)>, units: usize) -> PyResult<Vec<Range<u32>>> {
    let pair = |(from, to): (Whole, Whole)| Ok((from.get("forced")?, to.get("forced")?));
    let forced = forced.into_iter().map(pair).collect::<PyResult<Vec<_>>>()?;
    let mut end = 0;
    for &(from, to) in &forced {
        if from < end || to < from || to > units {
            let expected = format!("ascending, disjoint ranges inside 0..{units}");
            return Err(option_error("forced", &expected, format!("{forced:?}")));
        }
        end = to;
    }
    Ok(forced.iter().map(|&(from, to)| from as u32..to as u32).collect())
}

/// Ids of the `k` largest weights.
#[pyfunction]
pub(crate) fn top_k(
    py: Python,
    weights: &Bound<PyAny>,
    k: Whole,
    forced: Vec<(Whole, Whole)>,
) -> PyResult<Py<PyAny>> {
    let weights = weights_of(weights)?;
    let forced = ranges_of(forced, weights.len())?;
    let (k, mut ids) = (k.get("k")?, Vec::new());
    py.detach(|| select::top_k_forced(&weights, &forced, k, &mut ids));
    numpy(py, Storage::of_u32(&ids))
}

/// Ids of the fewest largest weights that sum to `target`, and their sum.
#[pyfunction]
pub(crate) fn top_p(
    py: Python,
    weights: &Bound<PyAny>,
    target: f64,
    least: Whole,
    most: Option<Whole>,
    forced: Vec<(Whole, Whole)>,
) -> PyResult<(Py<PyAny>, f64)> {
    let weights = weights_of(weights)?;
    let forced = ranges_of(forced, weights.len())?;
    let (least, most) = (least.get("least")?, optional(most, "most")?.unwrap_or(usize::MAX));
    if target.is_nan() {
        return Err(option_error("target", "a number", target));
    }
    if most < least {
        return Err(option_error("most", &format!("at least {least}, as least"), most));
    }
    let (least, most) = (least.min(weights.len()), most.min(weights.len()));
    let mut ids = Vec::new();
    let mass = py.detach(|| select::top_p_forced(&weights, &forced, target, least, most, &mut ids));
    Ok((numpy(py, Storage::of_u32(&ids))?, mass))
}
