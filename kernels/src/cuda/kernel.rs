//! A kernel's source, the macros that specialise it, and the key by which its compiled form is known.

use std::collections::BTreeMap;
use std::fmt;

use super::{Target, Version};

/// A header that sources include by its name. No other is seen: none of CUDA's own is needed.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// As `#include "name"` spells it.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// One source file with its entry points.
///
/// Entry points are `extern "C" __global__` and take one struct by value. What varies (head
/// dimension, group, dtype) is a macro, so that names need no mangling.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// The file's name.
    pub name: &'static str,
    /// The source, CUDA C++17.
    pub source: &'static str,
    /// What it includes.
    pub headers: &'static [Header],
    /// Names of the entry points.
    pub entries: &'static [&'static str],
    /// Whether it has code for instructions that only one architecture has (`sm_90a`). It must do
    /// without where they are not.
    pub accelerated: bool,
    /// The variants that are warmed up, tested and built in advance.
    pub variants: fn() -> Vec<Variant>,
}

/// Macros, by name and value.
pub type Macros = Vec<(&'static str, u32)>;

/// A set of macros that a kernel is shipped with.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Names and values.
    pub macros: Macros,
    /// Most registers that a thread may use on any architecture: what the launch shape was planned for.
    pub registers_max: u32,
}

impl Kernel {
    /// The kernel with these macros. A name that is given twice has its last value.
    pub fn with<V: ToString>(
        &'static self,
        macros: impl IntoIterator<Item = (&'static str, V)>,
    ) -> Specialisation {
        let macros = macros.into_iter().map(|(name, value)| (name, value.to_string()));
        Specialisation { kernel: self, macros: macros.collect() }
    }

    /// All that it is shipped with, each with its cap of registers.
    pub fn shipped(&'static self) -> impl Iterator<Item = (Specialisation, u32)> {
        (self.variants)().into_iter().map(|v| (self.with(v.macros), v.registers_max))
    }
}

/// A kernel with its macros.
#[derive(Clone, Debug)]
pub struct Specialisation {
    kernel: &'static Kernel,
    macros: BTreeMap<&'static str, String>,
}

impl Specialisation {
    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// What the compiler is told.
    pub(super) fn options(&self, target: Target) -> Vec<String> {
        let macros = self.macros.iter().map(|(name, value)| format!("-D{name}={value}"));
        // The last one puts registers and spills into the log.
        let fixed = ["--std=c++17".to_owned(), "--ptxas-options=-v".to_owned()];
        [format!("--gpu-architecture={target}")].into_iter().chain(fixed).chain(macros).collect()
    }

    /// The key of what was built in advance: sources, options, target and kvist's version, whatever
    /// the compiler.
    #[must_use]
    pub fn key(&self, target: Target) -> Key {
        let mut hash = Framed::new("kvist gpu kernel");
        hash.part(env!("CARGO_PKG_VERSION"));
        hash.part(self.kernel.name);
        hash.part(self.kernel.source);
        for header in self.kernel.headers {
            hash.part(header.name);
            hash.part(header.text);
        }
        for option in self.options(target) {
            hash.part(&option);
        }
        hash.finish()
    }
}

/// `attend_pages.cu KV_D=128 KV_G=4`.
impl fmt::Display for Specialisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kernel.name)?;
        self.macros.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// What a compiled kernel is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// The same, as one version of the compiler makes it.
    #[must_use]
    pub fn by(&self, compiler: Version) -> Key {
        let mut hash = Framed::new("kvist gpu kernel, compiled");
        hash.0.update(&self.0);
        hash.part(&compiler.to_string());
        hash.finish()
    }

    /// Its file in a cache or in a folder of prebuilt ones.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.cubin", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file_name())
    }
}

/// A hash of parts, each with its length: no two lists of parts are one text.
struct Framed(blake3::Hasher);

impl Framed {
    fn new(domain: &str) -> Framed {
        let mut hash = Framed(blake3::Hasher::new());
        hash.part(domain);
        hash
    }

    fn part(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    fn finish(&self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Arch;
    use super::*;

    const HEADER: Header = Header { name: "h.cuh", text: "ab" };
    static KERNEL: Kernel = Kernel {
        name: "k.cu",
        source: "source",
        headers: &[HEADER],
        entries: &["k"],
        accelerated: false,
        variants: || vec![Variant { macros: vec![("KV_D", 64), ("KV_G", 4)], registers_max: 128 }],
    };
    const SM_80: Target = Target::Cubin(Arch { number: 80, accelerated: false });

    #[test]
    fn options_and_name_follow_the_macros() {
        let (shipped, registers) = KERNEL.shipped().next().unwrap();
        assert_eq!((shipped.to_string().as_str(), registers), ("k.cu KV_D=64 KV_G=4", 128));
        let options = shipped.options(SM_80);
        assert_eq!(options[0], "--gpu-architecture=sm_80");
        assert_eq!(options[3..], ["-DKV_D=64", "-DKV_G=4"]);
    }

    #[test]
    fn the_order_of_macros_is_nothing_and_their_values_are_everything() {
        let key = |macros: &[(&'static str, u32)]| KERNEL.with(macros.iter().copied()).key(SM_80);
        assert_eq!(key(&[("A", 1), ("B", 2)]), key(&[("B", 2), ("A", 1)]));
        assert_eq!(key(&[("A", 1), ("A", 2)]), key(&[("A", 2)]));
        assert_ne!(key(&[("A", 1)]), key(&[("A", 2)]));
        assert_ne!(key(&[]), key(&[("A", 1)]));
    }

    #[test]
    fn everything_that_goes_in_changes_the_key() {
        let none: [(&str, u32); 0] = [];
        let base = KERNEL.with(none).key(SM_80);
        let changed: [&'static Kernel; 5] = [
            Box::leak(Box::new(Kernel { name: "l.cu", ..KERNEL })),
            Box::leak(Box::new(Kernel { source: "sourc", ..KERNEL })),
            Box::leak(Box::new(Kernel { headers: &[], ..KERNEL })),
            Box::leak(Box::new(Kernel {
                headers: &[Header { name: "h.cuha", text: "b" }],
                ..KERNEL
            })),
            Box::leak(Box::new(Kernel { headers: &[HEADER, HEADER], ..KERNEL })),
        ];
        let mut keys = vec![base];
        keys.extend(changed.map(|k| k.with(none).key(SM_80)));
        keys.push(KERNEL.with(none).key(Target::Ptx(Arch::new(80, false))));
        keys.push(KERNEL.with(none).key(Target::Cubin(Arch::new(90, true))));
        for minor in [0, 1] {
            keys.push(base.by(Version { major: 13, minor }));
        }
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }
}
