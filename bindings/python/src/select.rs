//! Selectors as Python objects, and names and budgets as arguments.

use kvist::format::BlockDType;
use kvist::policies::{self, Boxed, Quest, Select};
use kvist_kernels::DType;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{from_policy, option_error, raise};
use crate::number::{Whole, optional};

/// Dense attention over every token.
#[pyclass(frozen, eq, name = "Full", module = "kvist")]
#[derive(Clone, PartialEq)]
pub(crate) struct PyFull;

#[pymethods]
impl PyFull {
    #[new]
    fn new() -> PyFull {
        PyFull
    }

    fn __repr__(&self) -> &'static str {
        "Full()"
    }
}

/// Quest: units of consecutive tokens ranked by the bound of their key box.
#[pyclass(frozen, eq, name = "Quest", module = "kvist")]
#[derive(Clone, PartialEq)]
pub(crate) struct PyQuest(Quest);

#[pymethods]
impl PyQuest {
    #[new]
    #[pyo3(signature = (*, budget=Whole::from(1024), unit_tokens=Whole::from(16)),
           text_signature = "(*, budget=1024, unit_tokens=16)")]
    fn new(budget: Whole, unit_tokens: Whole) -> PyResult<PyQuest> {
        let (budget, unit_tokens) = (budget.get("budget")?, unit_tokens.get("unit_tokens")?);
        let quest = Quest { budget, unit_tokens };
        checked(Select::Quest(quest.clone())).map(|_| PyQuest(quest))
    }

    #[getter]
    fn budget(&self) -> usize {
        self.0.budget
    }

    #[getter]
    fn unit_tokens(&self) -> usize {
        self.0.unit_tokens
    }

    fn __repr__(&self) -> String {
        format!("Quest(budget={}, unit_tokens={})", self.0.budget, self.0.unit_tokens)
    }
}

/// kvist's own selector: tokens ranked by nested bit planes inside key boxes.
#[pyclass(frozen, eq, name = "Boxed", module = "kvist")]
#[derive(Clone, PartialEq)]
pub(crate) struct PyBoxed(Boxed);

#[pymethods]
impl PyBoxed {
    #[new]
    #[pyo3(signature = (*, planes=None, budget=None, top_p=None, max_missed_mass=None,
                        min_tokens=None, max_tokens=None, sinks=Whole::from(16),
                        recent=Whole::from(64)),
           text_signature = "(*, planes=None, budget=None, top_p=None, max_missed_mass=None, \
                             min_tokens=None, max_tokens=None, sinks=16, recent=64)")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python constructor")]
    fn new(
        planes: Option<Whole>,
        budget: Option<Whole>,
        top_p: Option<f32>,
        max_missed_mass: Option<f32>,
        min_tokens: Option<Whole>,
        max_tokens: Option<Whole>,
        sinks: Whole,
        recent: Whole,
    ) -> PyResult<PyBoxed> {
        // A certificate reads every plane, and a finer one proves more.
        let planes = optional(planes, "planes")?;
        let planes = planes.unwrap_or(if max_missed_mass.is_some() { 4 } else { 3 });
        let boxed = Boxed {
            planes: u32::try_from(planes).unwrap_or(u32::MAX),
            budget: optional(budget, "budget")?,
            top_p,
            max_missed_mass,
            min_tokens: optional(min_tokens, "min_tokens")?,
            max_tokens: optional(max_tokens, "max_tokens")?,
            sinks: sinks.get("sinks")?,
            recent: recent.get("recent")?,
        };
        checked(Select::Boxed(boxed.clone())).map(|_| PyBoxed(boxed))
    }

    #[getter]
    fn planes(&self) -> u32 {
        self.0.planes
    }

    #[getter]
    fn budget(&self) -> Option<usize> {
        self.0.budget
    }

    #[getter]
    fn top_p(&self) -> Option<f32> {
        self.0.top_p
    }

    #[getter]
    fn max_missed_mass(&self) -> Option<f32> {
        self.0.max_missed_mass
    }

    #[getter]
    fn min_tokens(&self) -> Option<usize> {
        self.0.min_tokens
    }

    #[getter]
    fn max_tokens(&self) -> Option<usize> {
        self.0.max_tokens
    }

    #[getter]
    fn sinks(&self) -> usize {
        self.0.sinks
    }

    #[getter]
    fn recent(&self) -> usize {
        self.0.recent
    }

    fn __repr__(&self) -> String {
        let b = &self.0;
        let mut fields = vec![format!("planes={}", b.planes)];
        let optional = [
            ("budget", b.budget.map(|x| x.to_string())),
            ("top_p", b.top_p.map(|x| x.to_string())),
            ("max_missed_mass", b.max_missed_mass.map(|x| x.to_string())),
            ("min_tokens", b.min_tokens.map(|x| x.to_string())),
            ("max_tokens", b.max_tokens.map(|x| x.to_string())),
        ];
        let given = |(name, x): (&str, Option<String>)| x.map(|x| format!("{name}={x}"));
        fields.extend(optional.into_iter().filter_map(given));
        fields.push(format!("sinks={}, recent={}", b.sinks, b.recent));
        format!("Boxed({})", fields.join(", "))
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
    } else if let Ok(boxed) = select.cast::<PyBoxed>() {
        Select::Boxed(boxed.get().0.clone())
    } else if let Ok(quest) = select.cast::<PyQuest>() {
        Select::Quest(quest.get().0.clone())
    } else if select.cast::<PyFull>().is_ok() {
        Select::Full
    } else {
        return Err(PyTypeError::new_err(format!(
            "select: expected a name or a Full, Quest or Boxed object, found {}",
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
pub(crate) fn object_of(py: Python, select: &Select) -> PyResult<Py<PyAny>> {
    Ok(match select {
        Select::Full => Py::new(py, PyFull)?.into_any(),
        Select::Quest(quest) => Py::new(py, PyQuest(quest.clone()))?.into_any(),
        Select::Boxed(boxed) => Py::new(py, PyBoxed(boxed.clone()))?.into_any(),
    })
}

/// The selector object behind a name or object, checked.
#[pyfunction]
#[pyo3(signature = (select=SelectArg::Name("full"), budget=None), text_signature = "(select='full', budget=None)")]
pub(crate) fn selection(
    py: Python,
    select: SelectArg,
    budget: Option<Whole>,
) -> PyResult<Py<PyAny>> {
    object_of(py, &select.resolve(py, optional(budget, "budget")?)?)
}

/// Name, one line and source of every selector.
#[pyfunction]
pub(crate) fn selection_presets(py: Python) -> PyResult<Vec<Bound<PyDict>>> {
    let preset = |p: &policies::Preset| {
        let dict = PyDict::new(py);
        dict.set_item("name", p.name)?;
        dict.set_item("about", p.about)?;
        dict.set_item("source", p.source)?;
        Ok(dict)
    };
    policies::selection_presets().iter().map(preset).collect()
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
