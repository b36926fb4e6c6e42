//! The CPU's instruction-set level, detected once.

use std::sync::OnceLock;

/// Instruction-set levels, lowest first. A level implies the ones below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable Rust; the oracle of the others.
    Generic,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ.
    Avx512,
    /// AVX-512 with BF16 and VNNI dot products.
    Avx512Bf16,
}

impl Isa {
    /// All levels, lowest first.
    pub const ALL: [Isa; 4] = [Isa::Generic, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// Name as `KVIST_ISA` spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Generic => "generic",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// The best level this CPU has.
    #[must_use]
    pub fn detected() -> Isa {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(detect)
    }

    /// The level kernels use: the detected one, lowered by the environment variable
    /// `KVIST_ISA=generic|avx2|avx512|avx512bf16` (read once; it cannot raise the level, and an
    /// unknown name is ignored).
    #[must_use]
    pub fn level() -> Isa {
        static LEVEL: OnceLock<Isa> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let wanted = std::env::var("KVIST_ISA").ok();
            let wanted = wanted.and_then(|w| Isa::ALL.into_iter().find(|i| i.name() == w));
            wanted.unwrap_or(Isa::Avx512Bf16).min(Isa::detected())
        })
    }

    /// The levels this CPU can run, lowest first (for tests that compare them).
    #[must_use]
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|&i| i <= Isa::detected()).collect()
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    let dot =
        avx512 && is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
    match (avx2, avx512, dot) {
        (_, _, true) => Isa::Avx512Bf16,
        (_, true, _) => Isa::Avx512,
        (true, ..) => Isa::Avx2,
        _ => Isa::Generic,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Generic
}
