//! What the elements of a tensor are.

use kvist::format::BlockDType;
use kvist_kernels::DType;

use super::raw;

/// An element type; one that kvist has no use for keeps its name, for the error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Block(BlockDType),
    I32,
    I64,
    U32,
    Other(String, usize),
}

impl Element {
    pub(super) fn of(dtype: raw::DataType) -> Element {
        let block = Element::Block;
        match (dtype.code, dtype.bits, dtype.lanes) {
            (raw::CODE_FLOAT, 32, 1) => block(BlockDType::F32),
            (raw::CODE_FLOAT, 16, 1) => block(BlockDType::F16),
            (raw::CODE_BFLOAT, 16, 1) => block(BlockDType::Bf16),
            (raw::CODE_FP8_E4M3, 8, 1) => block(BlockDType::Fp8E4m3),
            (raw::CODE_FP8_E5M2, 8, 1) => block(BlockDType::Fp8E5m2),
            (raw::CODE_INT, 8, 1) => block(BlockDType::I8),
            (raw::CODE_UINT, 8, 1) => block(BlockDType::U8),
            (raw::CODE_INT, 32, 1) => Element::I32,
            (raw::CODE_INT, 64, 1) => Element::I64,
            (raw::CODE_UINT, 32, 1) => Element::U32,
            (_, bits, lanes) => {
                let bits = usize::from(bits) * usize::from(lanes);
                Element::Other(dtype.name(), bits.div_ceil(8))
            }
        }
    }

    /// From NumPy's code, without the byte order; `None` for what its name tells better.
    pub(super) fn of_typestr(code: &str) -> Option<Element> {
        Some(match code {
            "f4" => Element::Block(BlockDType::F32),
            "f2" => Element::Block(BlockDType::F16),
            "i1" => Element::Block(BlockDType::I8),
            "u1" => Element::Block(BlockDType::U8),
            "i4" => Element::I32,
            "i8" => Element::I64,
            "u4" => Element::U32,
            _ => return None,
        })
    }

    /// From the name of a NumPy dtype.
    pub(super) fn of_name(name: String) -> Element {
        match name.as_str() {
            "bfloat16" => Element::Block(BlockDType::Bf16),
            "float8_e4m3fn" => Element::Block(BlockDType::Fp8E4m3),
            "float8_e5m2" => Element::Block(BlockDType::Fp8E5m2),
            _ => Element::Other(name, 0),
        }
    }

    /// Bytes; 0 if that is not known.
    pub(super) fn size(&self) -> usize {
        match self {
            Element::Block(dtype) => dtype.size(),
            Element::I32 | Element::U32 => 4,
            Element::I64 => 8,
            Element::Other(_, size) => *size,
        }
    }

    /// The type that kernels compute over.
    pub(super) fn dtype(&self) -> Option<DType> {
        match self {
            Element::Block(dtype) => dtype.kernel(),
            _ => None,
        }
    }

    /// The name people use.
    pub(crate) fn name(&self) -> String {
        match self {
            Element::Block(BlockDType::I8) => "int8".to_owned(),
            Element::Block(BlockDType::U8) => "uint8".to_owned(),
            Element::Block(dtype) => dtype.name().to_owned(),
            Element::I32 => "int32".to_owned(),
            Element::I64 => "int64".to_owned(),
            Element::U32 => "uint32".to_owned(),
            Element::Other(name, _) => name.clone(),
        }
    }
}
