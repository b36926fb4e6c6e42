//! Token ids and block numbers as arguments: lists, arrays, tensors.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::dlpack::View;
use crate::error::{option_error, raise};
use crate::number::Whole;

/// Token ids lie below this.
const TOKEN_MAX: i64 = 1 << 31;

/// Token ids.
pub(super) fn tokens_of(object: &Bound<PyAny>) -> PyResult<Vec<u32>> {
    let token = |id: i64| match (0..TOKEN_MAX).contains(&id) {
        true => Ok(id as u32),
        false => Err(option_error("token ids", "0 or more and below 2^31", id)),
    };
    numbers(object, "token ids")?.into_iter().map(token).collect()
}

/// Numbers of blocks below `end`.
pub(super) fn blocks_of(object: &Bound<PyAny>, end: usize) -> PyResult<Vec<usize>> {
    let block = |id: i64| match usize::try_from(id).ok().filter(|&id| id < end) {
        Some(id) => Ok(id),
        None => {
            let text = format!("block_ids: expected numbers of 0..{end}, found {id}");
            Err(raise("RangeError", text))
        }
    };
    numbers(object, "block_ids")?.into_iter().map(block).collect()
}

/// Whole numbers of a list, array or tensor of one dimension.
fn numbers(object: &Bound<PyAny>, what: &'static str) -> PyResult<Vec<i64>> {
    let listed = object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>();
    if !listed && object.hasattr("__dlpack__")? {
        return View::new(object, what)?.numbers();
    }
    let items = object.try_iter().map_err(|_| {
        let found = object.get_type().name().map_or_else(|_| "?".to_owned(), |n| n.to_string());
        PyTypeError::new_err(format!("{what}: expected whole numbers, found {found}"))
    })?;
    let number = |item: PyResult<Bound<PyAny>>| {
        let item = item?;
        match item.extract::<i64>() {
            Ok(n) => Ok(n),
            // Out of range, or no number at all: the one names the number, the other the type.
            Err(_) => {
                item.extract::<Whole>()?.get(what).map(|n| i64::try_from(n).unwrap_or(i64::MAX))
            }
        }
    };
    items.map(number).collect()
}
