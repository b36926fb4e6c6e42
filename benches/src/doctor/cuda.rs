//! What the machine has for kernels on GPUs, and what each missing piece costs.

use std::path::PathBuf;

use kvist_kernels::cuda::{self, DeviceInfo, DriverInfo, Error, Probe};
use serde::Serialize;

use super::finding::Findings;

/// Driver, GPUs, run-time compiler, cache of compiled kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cuda {
    /// The newest CUDA that the driver supports, such as `13.0`; `None` without a driver.
    pub driver: Option<String>,
    /// Why there is none.
    pub driver_missing: Option<String>,
    /// The GPUs that this process may use.
    pub devices: Vec<CudaDevice>,
    /// NVRTC, if it was found.
    pub compiler: Option<CudaCompiler>,
    /// Why there is none.
    pub compiler_missing: Option<String>,
    /// Where compiled kernels are kept; `None` if only in memory.
    pub cache: Option<PathBuf>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CudaDevice {
    /// Its name.
    pub name: String,
    /// Its compute capability, such as `9.0`.
    pub capability: String,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Why kernels cannot be compiled for it, if so.
    pub refused: Option<String>,
}

/// NVRTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CudaCompiler {
    /// Its version, such as `13.0`.
    pub version: String,
    /// Its file.
    pub file: PathBuf,
    /// How it was found.
    pub found: &'static str,
}

impl Cuda {
    /// Looks. It starts the driver in this process: one that is forked off later cannot use CUDA.
    #[must_use]
    pub fn probe() -> Cuda {
        Cuda::of(cuda::probe())
    }

    fn of(found: Probe) -> Cuda {
        let Probe { driver, compiler, cache } = found;
        let archs = compiler.as_ref().map(|c| c.archs.clone());
        let devices = driver.as_ref().map_or(&[][..], |d| &d.devices);
        let devices = devices.iter().map(|d| CudaDevice::of(d, archs.as_deref().ok())).collect();
        let too_old = driver.as_ref().ok().zip(compiler.as_ref().ok());
        let too_old =
            too_old.and_then(|(d, c)| cuda::runs(d.version, c.version, false, "NVRTC").err());
        let mut compiler_missing = compiler.as_ref().err().map(Error::to_string);
        let compiler = compiler.ok().map(|c| CudaCompiler {
            version: c.version.to_string(),
            file: c.file,
            found: c.found.name(),
        });
        if let Some(e) = too_old {
            compiler_missing = Some(e.to_string());
        }
        let version = |d: &DriverInfo| d.version.to_string();
        Cuda {
            driver: driver.as_ref().ok().map(version),
            driver_missing: driver.as_ref().err().map(Error::to_string),
            devices,
            compiler,
            compiler_missing,
            cache,
        }
    }

    /// Judges it; `present` GPUs are in the machine.
    pub(super) fn judge(&self, present: usize, out: &mut Findings) {
        let about = "cuda";
        if self.devices.is_empty() {
            let text = "no GPU to be used: everything runs on the CPU";
            return match &self.driver_missing {
                _ if present == 0 => out.ok(about, text),
                Some(why) => out.warn(about, text, why),
                None => out.warn(about, text, "CUDA_VISIBLE_DEVICES or the container hides them"),
            };
        }
        for device in &self.devices {
            if let Some(why) = &device.refused {
                out.warn(about, format!("{} cannot be used", device.name), why);
            }
        }
        if let Some(why) = &self.compiler_missing {
            let text = "kernels for the GPU cannot be compiled: only prebuilt ones run";
            out.warn(about, text, why);
        }
        if self.cache.is_none() {
            let text = "compiled kernels are kept in memory only: every process compiles them anew";
            out.warn(about, text, "name a folder in KVIST_CACHE_DIR");
        }
        if self.compiler_missing.is_none() && self.devices.iter().any(|d| d.refused.is_none()) {
            out.ok(about, "kernels for the GPU can be compiled and run");
        }
    }
}

impl CudaDevice {
    fn of(found: &DeviceInfo, archs: Option<&[u32]>) -> CudaDevice {
        let target = archs.map(|archs| cuda::Target::choose(found.arch, false, archs));
        CudaDevice {
            name: found.name.clone(),
            capability: format!("{}.{}", found.arch / 10, found.arch % 10),
            memory_bytes: found.memory_bytes,
            multiprocessors: found.multiprocessors,
            refused: target.and_then(Result::err).map(|e| e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kvist_kernels::cuda::{CompilerInfo, Found, Version};

    use super::super::finding::Level;
    use super::*;

    fn version(major: u32, minor: u32) -> Version {
        Version { major, minor }
    }

    fn machine(arch: u32) -> Probe {
        let device = DeviceInfo {
            ordinal: 0,
            name: "GPU".to_owned(),
            arch,
            memory_bytes: 80 << 30,
            multiprocessors: 108,
            shared_bytes_max: 163 << 10,
            l2_bytes: 40 << 20,
        };
        let compiler = CompilerInfo {
            version: version(13, 0),
            file: "/lib/libnvrtc.so.13".into(),
            found: Found::Folder,
            archs: vec![75, 80, 90],
        };
        Probe {
            driver: Ok(DriverInfo { version: version(13, 0), devices: vec![device] }),
            compiler: Ok(compiler),
            cache: Some("/cache".into()),
        }
    }

    fn judged(found: Probe, present: usize) -> Vec<(Level, String)> {
        let mut out = Findings::default();
        Cuda::of(found).judge(present, &mut out);
        out.0.into_iter().map(|f| (f.level, format!("{} -> {}", f.text, f.advice))).collect()
    }

    fn says(found: &[(Level, String)], level: Level, words: &str) -> bool {
        found.iter().any(|(l, text)| *l == level && text.contains(words))
    }

    #[test]
    fn a_whole_machine_is_well() {
        let found = judged(machine(80), 1);
        assert!(found.len() == 1 && says(&found, Level::Ok, "compiled and run"), "{found:?}");
        let report = Cuda::of(machine(90));
        assert_eq!((report.driver.as_deref(), report.driver_missing), (Some("13.0"), None));
        assert_eq!(report.devices[0].capability, "9.0");
        assert_eq!(report.compiler.unwrap().found, "a Python package");
    }

    #[test]
    fn a_machine_without_gpus_lacks_nothing() {
        let none = Error::NoDriver { reason: "libcuda.so.1 is not found".to_owned() };
        let missing = Error::NoCompiler { tried: "nothing".to_owned() };
        let found = Probe { driver: Err(none), compiler: Err(missing), cache: None };
        let judged_absent = judged(found.clone(), 0);
        assert!(judged_absent.len() == 1 && says(&judged_absent, Level::Ok, "on the CPU"));
        assert!(says(&judged(found.clone(), 2), Level::Warning, "install driver"));
        let hidden = Probe {
            driver: Ok(DriverInfo { version: version(12, 4), devices: Vec::new() }),
            ..found
        };
        assert!(says(&judged(hidden, 2), Level::Warning, "CUDA_VISIBLE_DEVICES"));
    }

    #[test]
    fn each_missing_piece_says_what_it_costs() {
        let missing = Error::NoCompiler { tried: "nothing".to_owned() };
        let found = judged(Probe { compiler: Err(missing), ..machine(80) }, 1);
        assert!(found.len() == 1 && says(&found, Level::Warning, "only prebuilt ones run"));
        assert!(says(&found, Level::Warning, "pip install nvidia-cuda-nvrtc"));

        let found = judged(Probe { cache: None, ..machine(80) }, 1);
        assert!(says(&found, Level::Warning, "KVIST_CACHE_DIR"), "{found:?}");

        let found = judged(machine(75), 1);
        assert!(found.len() == 1 && says(&found, Level::Warning, "capability 7.5"), "{found:?}");

        let mut old = machine(80);
        old.driver.as_mut().unwrap().version = version(12, 4);
        let found = judged(old, 1);
        assert!(
            found.len() == 1 && says(&found, Level::Warning, "install driver 580"),
            "{found:?}"
        );
    }
}
