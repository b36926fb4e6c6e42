//! What this machine has for kernels on GPUs, and what is missing.

use std::path::PathBuf;

use super::{Compiler, DriverInfo, Error, Found, Version, driver};

/// What was found.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The driver with its GPUs.
    pub driver: Result<DriverInfo, Error>,
    /// The compiler.
    pub compiler: Result<CompilerInfo, Error>,
    /// Where compiled kernels are kept; `None` if only in memory.
    pub cache: Option<PathBuf>,
}

/// NVRTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompilerInfo {
    /// Its version.
    pub version: Version,
    /// Its file.
    pub file: PathBuf,
    /// How it was found.
    pub found: Found,
    /// The architectures that it knows: ten times the compute capability, ascending.
    pub archs: Vec<u32>,
}

/// Looks for driver, GPUs and compiler. It starts the driver in this process: one that is forked off
/// later cannot use CUDA.
#[must_use]
pub fn probe() -> Probe {
    let compiler = Compiler::from_env();
    let nvrtc = compiler.nvrtc().map(|nvrtc| CompilerInfo {
        version: nvrtc.version(),
        file: nvrtc.file().to_owned(),
        found: nvrtc.found(),
        archs: nvrtc.archs().to_vec(),
    });
    let cache = compiler.cache().folder().map(ToOwned::to_owned);
    Probe { driver: driver(), compiler: nvrtc, cache }
}
