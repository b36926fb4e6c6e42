//! What can go wrong between a kernel's source and its launch. Messages say what to install or change.

use super::{Target, Version};

/// A GPU cannot be used, or not for this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no NVIDIA driver, or it does not start.
    #[error(
        "no NVIDIA driver: {reason}; install driver 525 or newer (in a container: start it with \
         --gpus all), or stay on the CPU"
    )]
    NoDriver {
        /// What was missing.
        reason: String,
    },
    /// The driver shows no such GPU.
    #[error(
        "no GPU {ordinal}: the driver shows {devices}; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    )]
    NoDevice {
        /// The one that was asked for.
        ordinal: usize,
        /// How many there are.
        devices: usize,
    },
    /// No usable NVRTC was found.
    #[error(
        "no NVRTC (CUDA's run-time compiler) of version 12 or 13: pip install nvidia-cuda-nvrtc, or \
         name the library or its folder in KVIST_NVRTC; tried: {tried}"
    )]
    NoCompiler {
        /// Where it was looked for, and what was found there.
        tried: String,
    },
    /// The driver is older than what it is to run.
    #[error(
        "driver too old: it supports CUDA {found}, {what} needs {needed}; install driver {release} or \
         newer, or the compiler of CUDA {} (pip install nvidia-cuda-nvrtc-cu{})",
        found.major, found.major
    )]
    DriverTooOld {
        /// CUDA version of the driver.
        found: Version,
        /// The version that would do.
        needed: Version,
        /// What is to be run.
        what: String,
        /// The driver release that brings it.
        release: &'static str,
    },
    /// No code can be made for this GPU.
    #[error(
        "unsupported GPU: compute capability {}.{}, expected 8.0 or newer; stay on the CPU",
        found / 10, found % 10
    )]
    UnsupportedArch {
        /// Ten times the compute capability.
        found: u32,
    },
    /// The compiler refused a kernel. It is kvist's kernel: a defect, or a compiler that is too old.
    #[error(
        "compiling {kernel} for {target} failed; update nvidia-cuda-nvrtc or report it:\n{log}"
    )]
    CompileFailed {
        /// The kernel with its macros.
        kernel: String,
        /// What it was compiled for.
        target: Target,
        /// What the compiler said.
        log: String,
    },
    /// A kernel is not loaded, and nothing can be compiled or loaded while a graph is captured.
    #[error(
        "{kernel} is not loaded, and a graph is being captured: call warm_up before the capture"
    )]
    NotWarm {
        /// The kernel with its macros.
        kernel: String,
    },
    /// A graph is being captured, on another stream, in a mode that forbids this to the whole process.
    #[error("{what} is forbidden while another thread captures a graph: try again when it is over")]
    Capturing {
        /// What was being done.
        what: &'static str,
    },
    /// The GPU's memory is used up.
    #[error("out of GPU memory: {what}; free some, or give kvist or the engine a smaller share")]
    OutOfMemory {
        /// What was being done.
        what: &'static str,
    },
    /// The GPU no longer answers in this process: everything on it is gone.
    #[error(
        "GPU lost: {what}: {cause}; restart the process (and look at the kernel log for Xid lines if \
         it comes again)"
    )]
    DeviceLost {
        /// What was being done.
        what: &'static str,
        /// The driver's words.
        cause: String,
    },
    /// A launch that no GPU can do.
    #[error("{what}: expected {expected}, found {found}")]
    Launch {
        /// The argument.
        what: &'static str,
        /// The allowed range.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The driver refused a call for another reason.
    #[error("{what}: the driver says {cause}")]
    Driver {
        /// What was being done.
        what: &'static str,
        /// The driver's words.
        cause: String,
    },
}

impl Error {
    /// Whether trying again in this process can only end in the same way.
    pub(super) fn is_permanent(&self) -> bool {
        matches!(self, Error::CompileFailed { .. } | Error::UnsupportedArch { .. })
    }

    /// Whether it may work when it is tried again later: memory comes back, captures end.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Error::OutOfMemory { .. } | Error::NotWarm { .. } | Error::Capturing { .. })
    }

    pub(super) fn driver_too_old(
        found: Version,
        needed: Version,
        what: impl Into<String>,
    ) -> Error {
        let release = if needed.major >= 13 { "580" } else { "525" };
        Error::DriverTooOld { found, needed, what: what.into(), release }
    }
}
