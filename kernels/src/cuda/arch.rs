//! GPU architectures, what a compiler makes for them, and CUDA versions.

use std::fmt;

use super::Error;

/// The oldest architecture whose instructions the kernels use: `cp.async` and bf16 matrix units.
const OLDEST: u32 = 80;
/// From here on each architecture has a second form, with instructions that later ones lack.
const OLDEST_ACCELERATED: u32 = 90;

/// A version of CUDA: of the driver or of NVRTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Code of one major version runs on drivers of the same or a later one.
    pub major: u32,
    /// The minor version.
    pub minor: u32,
}

impl Version {
    /// From the driver's own number, such as 12040.
    pub(super) fn of_driver(number: i32) -> Version {
        let number = number.unsigned_abs();
        Version { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// An architecture, such as `sm_80` or `sm_90a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch {
    /// Ten times the compute capability.
    pub number: u32,
    /// The form with instructions of this architecture alone (`a`).
    pub accelerated: bool,
}

impl Arch {
    /// The architecture of a GPU, in its accelerated form if that is wanted and there is one.
    #[must_use]
    pub fn new(number: u32, accelerated: bool) -> Arch {
        Arch { number, accelerated: accelerated && number >= OLDEST_ACCELERATED }
    }

    fn suffix(self) -> &'static str {
        if self.accelerated { "a" } else { "" }
    }
}

/// What a source is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Machine code of one architecture.
    Cubin(Arch),
    /// Assembly that the driver finishes, for GPUs that are newer than the compiler.
    Ptx(Arch),
}

impl Target {
    /// The best that a compiler of `known` architectures makes for a GPU.
    ///
    /// # Errors
    /// [`Error::UnsupportedArch`] for a GPU that is too old for the kernels.
    pub fn choose(gpu: u32, accelerated: bool, known: &[u32]) -> Result<Target, Error> {
        if known.contains(&gpu) && gpu >= OLDEST {
            return Ok(Target::Cubin(Arch::new(gpu, accelerated)));
        }
        // The accelerated form is tied to its architecture: not a base for a later one.
        let base = known.iter().copied().filter(|&a| (OLDEST..gpu).contains(&a)).max();
        base.map(|a| Target::Ptx(Arch::new(a, false))).ok_or(Error::UnsupportedArch { found: gpu })
    }
}

/// As the compiler spells it: `sm_90a`, `compute_120`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Cubin(arch) => write!(f, "sm_{}{}", arch.number, arch.suffix()),
            Target::Ptx(arch) => write!(f, "compute_{}{}", arch.number, arch.suffix()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [u32; 6] = [75, 80, 86, 90, 100, 120];

    fn chosen(gpu: u32, accelerated: bool) -> String {
        Target::choose(gpu, accelerated, &KNOWN).map_or_else(|e| e.to_string(), |t| t.to_string())
    }

    #[test]
    fn a_known_gpu_gets_machine_code() {
        assert_eq!(chosen(80, false), "sm_80");
        assert_eq!(chosen(80, true), "sm_80");
        assert_eq!(chosen(90, false), "sm_90");
        assert_eq!(chosen(90, true), "sm_90a");
        assert_eq!(chosen(100, true), "sm_100a");
    }

    #[test]
    fn an_unknown_one_gets_assembly_of_the_highest_below() {
        assert_eq!(chosen(130, true), "compute_120");
        assert_eq!(chosen(103, true), "compute_100");
        assert_eq!(chosen(89, false), "compute_86");
    }

    #[test]
    fn an_old_one_is_refused() {
        for (gpu, told) in [(75, "7.5"), (61, "6.1"), (0, "0.0")] {
            assert!(chosen(gpu, false).contains(told), "{}", chosen(gpu, false));
        }
        assert_eq!(Target::choose(90, false, &[]), Err(Error::UnsupportedArch { found: 90 }));
    }

    #[test]
    fn versions_are_read_as_the_driver_writes_them() {
        assert_eq!(Version::of_driver(12040).to_string(), "12.4");
        assert_eq!(Version::of_driver(13000).to_string(), "13.0");
        assert!(Version::of_driver(12080) < Version::of_driver(13000));
    }
}
