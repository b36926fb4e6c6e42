//! The NVIDIA driver: whether it is there, what it shows, and what its errors mean.
//!
//! cudarc panics where the library or a function of it is missing. So nothing of it is called before
//! [`present`] has said that all is there.

use std::ffi::CStr;
use std::sync::OnceLock;

use cudarc::driver::DriverError;
use cudarc::driver::result::{self, device};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::{Error, Version};

/// The oldest CUDA whose drivers are used.
const OLDEST: Version = Version { major: 12, minor: 0 };

/// All functions of the driver that kvist calls, through cudarc or by itself.
const FUNCTIONS: [&str; 46] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// The driver and its GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverInfo {
    /// The newest CUDA that it supports.
    pub version: Version,
    /// Its GPUs, in its order; none if the process may see none.
    pub devices: Vec<DeviceInfo>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number in this process.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Ten times the compute capability.
    pub arch: u32,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most bytes of shared memory that a block can ask for.
    pub shared_bytes_max: u32,
    /// Bytes of its second-level cache.
    pub l2_bytes: u64,
}

/// The driver and its GPUs. Starts the driver in this process (a process that is forked off later
/// cannot use it), but makes no context and takes no GPU memory.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::DriverTooOld`].
pub fn driver() -> Result<DriverInfo, Error> {
    present()?;
    match result::init() {
        Ok(()) | Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => {}
        Err(e) => {
            return Err(Error::NoDriver { reason: format!("it does not start: {}", words(e)) });
        }
    }
    let version = version()?;
    if version < OLDEST {
        return Err(Error::driver_too_old(version, OLDEST, "kvist"));
    }
    let count = match device::get_count() {
        // Hidden from this process, or none built in.
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_NOT_INITIALIZED)) => {
            0
        }
        other => other.map_err(told("counting GPUs"))?,
    };
    let devices = (0..count).map(device_info).collect::<Result<_, _>>();
    Ok(DriverInfo { version, devices: devices.map_err(told("asking for a GPU's properties"))? })
}

/// Whether a driver runs what a compiler made: machine code of the same or an earlier major version,
/// assembly of no later version.
///
/// # Errors
/// [`Error::DriverTooOld`], with `what` in its message.
pub fn runs(driver: Version, compiler: Version, ptx: bool, what: &str) -> Result<(), Error> {
    let needed = if ptx { compiler } else { Version { minor: 0, ..compiler } };
    if driver >= needed { Ok(()) } else { Err(Error::driver_too_old(driver, needed, what)) }
}

/// Whether every function that will be called is there; asked once.
pub(super) fn present() -> Result<(), Error> {
    static PRESENT: OnceLock<Result<(), Error>> = OnceLock::new();
    PRESENT.get_or_init(look).clone()
}

fn look() -> Result<(), Error> {
    // SAFETY: opens the driver's library, whose initialisers touch nothing of this process.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver { reason: "libcuda.so.1 is not found".to_owned() });
    }
    // SAFETY: it is there, so this does not panic.
    let library = unsafe { sys::culib() };
    for name in FUNCTIONS {
        // SAFETY: only whether there is such a function; it is not called.
        if unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err() {
            return Err(Error::NoDriver {
                reason: format!("libcuda has no {name}: it is too old"),
            });
        }
    }
    Ok(())
}

fn version() -> Result<Version, Error> {
    let mut number = 0;
    // SAFETY: points to an integer of this frame.
    let status = unsafe { sys::cuDriverGetVersion(&raw mut number) };
    status.result().map_err(told("asking for the driver's version"))?;
    Ok(Version::of_driver(number))
}

fn device_info(ordinal: i32) -> Result<DeviceInfo, DriverError> {
    let device = device::get(ordinal)?;
    let number = |attribute| {
        // SAFETY: `device` is the driver's own.
        let value = unsafe { device::get_attribute(device, attribute) };
        value.map(i32::unsigned_abs)
    };
    let major = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let shared = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    Ok(DeviceInfo {
        ordinal: ordinal.unsigned_abs() as usize,
        name: device::get_name(device)?,
        arch: 10 * major + minor,
        // SAFETY: as above.
        memory_bytes: unsafe { device::total_mem(device) }? as u64,
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_max: number(shared)?,
        l2_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
    })
}

/// What an error of the driver means for whoever did `what`.
pub(super) fn told(what: &'static str) -> impl Fn(DriverError) -> Error {
    use CUresult as R;
    move |error| match error.0 {
        R::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { what },
        R::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED | R::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT => {
            Error::Capturing { what }
        }
        // After these every later call in the context fails, too.
        R::CUDA_ERROR_ILLEGAL_ADDRESS
        | R::CUDA_ERROR_LAUNCH_FAILED
        | R::CUDA_ERROR_LAUNCH_TIMEOUT
        | R::CUDA_ERROR_ECC_UNCORRECTABLE
        | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | R::CUDA_ERROR_CONTAINED
        | R::CUDA_ERROR_HARDWARE_STACK_ERROR
        | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | R::CUDA_ERROR_MISALIGNED_ADDRESS
        | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | R::CUDA_ERROR_INVALID_PC
        | R::CUDA_ERROR_ASSERT
        | R::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | R::CUDA_ERROR_DEINITIALIZED
        | R::CUDA_ERROR_EXTERNAL_DEVICE
        | R::CUDA_ERROR_MPS_CLIENT_TERMINATED => Error::DeviceLost { what, cause: words(error) },
        _ => Error::Driver { what, cause: words(error) },
    }
}

/// The driver's name and text of an error.
fn words(error: DriverError) -> String {
    let text = |found: Result<&CStr, DriverError>| {
        found.map_or_else(|_| format!("{:?}", error.0), |t| t.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_name()), text(error.error_string()))
}
