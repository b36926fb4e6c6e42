//! The C structures of DLPack 1.x: the unversioned and versioned capsule, and the table of C
//! functions through which newer libraries (PyTorch 2.10 on) exchange tensors without capsules.

use std::ffi::{CStr, c_int, c_void};

pub(crate) const CAPSULE: &CStr = c"dltensor";
pub(crate) const CAPSULE_USED: &CStr = c"used_dltensor";
pub(crate) const VERSIONED: &CStr = c"dltensor_versioned";
pub(crate) const VERSIONED_USED: &CStr = c"used_dltensor_versioned";
pub(crate) const EXCHANGE: &CStr = c"dlpack_exchange_api";

/// Major version of the structures below; another one is refused.
pub(crate) const MAJOR: u32 = 1;
/// Minor version we ask for and export.
pub(crate) const MINOR: u32 = 0;

pub(crate) const DEVICE_CPU: i32 = 1;
pub(crate) const DEVICE_CUDA: i32 = 2;
/// Page-locked host memory, readable like any other.
pub(crate) const DEVICE_CUDA_HOST: i32 = 3;

pub(crate) const CODE_INT: u8 = 0;
pub(crate) const CODE_UINT: u8 = 1;
pub(crate) const CODE_FLOAT: u8 = 2;
pub(crate) const CODE_BFLOAT: u8 = 4;
pub(crate) const CODE_COMPLEX: u8 = 5;
pub(crate) const CODE_BOOL: u8 = 6;
pub(crate) const CODE_FP8_E4M3: u8 = 10;
pub(crate) const CODE_FP8_E5M2: u8 = 12;

/// Flag of a versioned tensor: nobody may write to it.
pub(crate) const READ_ONLY: u64 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) kind: i32,
    pub(crate) id: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataType {
    pub(crate) code: u8,
    pub(crate) bits: u8,
    pub(crate) lanes: u16,
}

#[repr(C)]
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) data: *mut c_void,
    pub(crate) device: Device,
    pub(crate) ndim: i32,
    pub(crate) dtype: DataType,
    pub(crate) shape: *mut i64,
    /// In elements; null means row-major.
    pub(crate) strides: *mut i64,
    pub(crate) byte_offset: u64,
}

#[repr(C)]
pub(crate) struct Managed {
    pub(crate) tensor: Tensor,
    pub(crate) context: *mut c_void,
    /// Frees the tensor: to be called once, with this structure, when nobody reads it any more.
    pub(crate) deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

#[repr(C)]
pub(crate) struct ManagedVersioned {
    pub(crate) version: Version,
    pub(crate) context: *mut c_void,
    /// As [`Managed::deleter`].
    pub(crate) deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    pub(crate) flags: u64,
    pub(crate) tensor: Tensor,
}

/// A library's C functions, found as the type attribute `__dlpack_c_exchange_api__`.
#[repr(C)]
pub(crate) struct Exchange {
    pub(crate) version: Version,
    pub(crate) previous: *mut c_void,
    pub(crate) allocate: *const c_void,
    pub(crate) managed_from_object: *const c_void,
    /// Takes the tensor, which must be alive, and writes a new reference to an object of the library;
    /// -1 is an error. The interpreter must be attached.
    pub(crate) object_from_managed:
        Option<unsafe extern "C" fn(*mut ManagedVersioned, *mut *mut c_void) -> c_int>,
    /// Fills a view of an object of the library, valid while that lives; -1 is an error. The
    /// interpreter must be attached.
    pub(crate) view_of_object: Option<unsafe extern "C" fn(*mut c_void, *mut Tensor) -> c_int>,
}

impl DataType {
    /// The name people use: `f32`, `bf16`, `int64`, ...
    pub(crate) fn name(self) -> String {
        let kind = match (self.code, self.bits) {
            (CODE_FLOAT, bits) => return format!("f{bits}"),
            (CODE_BFLOAT, bits) => return format!("bf{bits}"),
            (CODE_FP8_E4M3, _) => return "fp8-e4m3".to_owned(),
            (CODE_FP8_E5M2, _) => return "fp8-e5m2".to_owned(),
            (CODE_INT, _) => "int",
            (CODE_UINT, _) => "uint",
            (CODE_COMPLEX, _) => "complex",
            (CODE_BOOL, _) => return "bool".to_owned(),
            (code, bits) => return format!("type {code} of {bits} bits"),
        };
        format!("{kind}{}", self.bits)
    }
}
