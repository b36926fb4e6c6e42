//! Selectors as Python objects, and names and budgets as arguments.

use kvist::format::BlockDType;
use kvist::policies::{self, Select};
use kvist_kernels::DType;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{from_policy, option_error, raise};
use crate::named;
use crate::number::{Whole, optional};

/// A selector: a preset by name, with its settings.
#[pyclass(frozen, eq, name = "Select", module = "kvist")]
#[derive(Clone, PartialEq)]
pub(crate) struct PySelect(Select);

#[pymethods]
impl PySelect {
    #[new]
    #[pyo3(signature = (name, /, **settings), text_signature = "(name, /, **settings)")]
    fn new(name: &str, settings: Option<&Bound<PyDict>>) -> PyResult<PySelect> {
        let changed = named::changed(settings)?;
        Select::configured(name, changed).map(PySelect).map_err(|e| from_policy(&e))
    }

    /// The preset's name.
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name()
    }

    /// All settings by name.
    #[getter]
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        named::dict(py, self.0.settings())
    }

    /// A setting.
    fn __getattr__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        named::attribute(&self.settings(py)?, "select", self.0.name(), name)
    }

    fn __repr__(&self, py: Python) -> PyResult<String> {
        named::repr(&self.settings(py)?, "Select", self.0.name())
    }

    /// For copies and pickles.
    fn __getnewargs_ex__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<((&'static str,), Bound<'py, PyDict>)> {
        Ok(((self.0.name(),), self.settings(py)?))
    }
}

fn checked(select: Select) -> PyResult<Select> {
    select.validate().map_err(|e| from_policy(&e))?;
    Ok(select)
}

/// The selector behind a name or an object, with `budget` set if given.
pub(crate) fn select_of(select: &Bound<PyAny>, budget: Option<usize>) -> PyResult<Select> {
    let chosen = if let Ok(name) = select.extract::<String>() {
        Select::parse(&name).map_err(|e| from_policy(&e))?
    } else if let Ok(select) = select.cast::<PySelect>() {
        select.get().0.clone()
    } else {
        return Err(PyTypeError::new_err(format!(
            "select: expected a name or a Select object, found {}",
            select.get_type().name()?
        )));
    };
    let Some(budget) = budget else { return checked(chosen) };
    if chosen == Select::Full {
        return Err(option_error(
            "budget",
            "none with select 'full', which reads every token",
            budget,
        ));
    }
    checked(chosen.with_budget(budget))
}

/// `select` as a Python object.
pub(crate) fn object_of(py: Python, select: &Select) -> PyResult<Py<PySelect>> {
    Py::new(py, PySelect(select.clone()))
}

/// The selector object behind a name or object, checked.
#[pyfunction]
#[pyo3(signature = (select=SelectArg::Name("full"), budget=None), text_signature = "(select='full', budget=None)")]
pub(crate) fn selection(
    py: Python,
    select: SelectArg,
    budget: Option<Whole>,
) -> PyResult<Py<PySelect>> {
    object_of(py, &select.resolve(py, optional(budget, "budget")?)?)
}

/// Name, one line and source of every selector.
#[pyfunction]
pub(crate) fn selection_presets(py: Python) -> PyResult<Vec<Bound<PyDict>>> {
    named::listed(py, policies::selection_presets())
}

/// A `select` argument: a name by default, else any object.
pub(crate) enum SelectArg {
    Name(&'static str),
    Object(Py<PyAny>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for SelectArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<SelectArg> {
        Ok(SelectArg::Object(object.to_owned().unbind()))
    }
}

impl SelectArg {
    /// The selector, checked.
    pub(crate) fn resolve(&self, py: Python, budget: Option<usize>) -> PyResult<Select> {
        match self {
            SelectArg::Name(name) => {
                select_of(pyo3::types::PyString::new(py, name).as_any(), budget)
            }
            SelectArg::Object(object) => select_of(object.bind(py), budget),
        }
    }
}

fn dtype_name(object: &Bound<PyAny>) -> PyResult<String> {
    match object.extract::<String>() {
        Ok(name) => Ok(name),
        Err(_) => object
            .getattr("name")
            .or_else(|_| object.getattr("__name__"))
            .or_else(|_| object.str().map(Bound::into_any))?
            .extract(),
    }
}

/// An element type from a name, a `torch.dtype` or a NumPy dtype or scalar type.
pub(crate) fn dtype_of(object: &Bound<PyAny>) -> PyResult<DType> {
    let name = dtype_name(object)?;
    let short = name.rsplit('.').next().unwrap_or(&name);
    match short.to_ascii_lowercase().as_str() {
        "f32" | "float32" | "float" => Ok(DType::F32),
        "f16" | "float16" | "half" => Ok(DType::F16),
        "bf16" | "bfloat16" => Ok(DType::Bf16),
        _ => {
            let known = DType::ALL.map(DType::name);
            let hint = policies::nearest(short, known.into_iter())
                .map(|near| format!(", did you mean {near:?}?"))
                .unwrap_or_default();
            Err(raise(
                "UnknownNameError",
                format!("dtype: expected f32, f16 or bf16, found {name:?}{hint}"),
            ))
        }
    }
}

/// An element type of stored blocks, named in the same ways.
pub(crate) fn block_dtype_of(object: &Bound<PyAny>) -> PyResult<BlockDType> {
    let name = dtype_name(object)?;
    let short = name.rsplit('.').next().unwrap_or(&name).to_ascii_lowercase();
    match short.as_str() {
        "f32" | "float32" | "float" => Ok(BlockDType::F32),
        "f16" | "float16" | "half" => Ok(BlockDType::F16),
        "bf16" | "bfloat16" => Ok(BlockDType::Bf16),
        "fp8-e4m3" | "float8_e4m3fn" => Ok(BlockDType::Fp8E4m3),
        "fp8-e5m2" | "float8_e5m2" => Ok(BlockDType::Fp8E5m2),
        "i8" | "int8" => Ok(BlockDType::I8),
        "u8" | "uint8" => Ok(BlockDType::U8),
        _ => {
            let known = BlockDType::ALL.map(BlockDType::name);
            let near = policies::nearest(&short, known.into_iter());
            let hint = near.map(|near| format!(", did you mean {near:?}?")).unwrap_or_default();
            let text = format!("dtype: expected {}, found {name:?}{hint}", known.join(", "));
            Err(raise("UnknownNameError", text))
        }
    }
}

/// Bytes from a number or from text such as `"2GiB"`.
#[pyfunction]
#[pyo3(signature = (size))]
pub(crate) fn parse_bytes(size: &Bound<PyAny>) -> PyResult<u64> {
    if let Ok(text) = size.extract::<String>() {
        return kvist::parse_bytes(&text).map_err(crate::error::from_store);
    }
    let number = size.extract::<i64>().ok().and_then(|n| u64::try_from(n).ok());
    number
        .ok_or_else(|| option_error("size", "bytes as a number or as text such as \"2GiB\"", size))
}
