//! A GPU that is played: a folder with a driver (`tests/cuda/fake_driver.c`) and kernels for the emulator.

use std::path::Path;
use std::process::Command;

use kvist_kernels::cuda::{Arch, Image, Macros, Specialisation, Target, Version};

use crate::toolchain;

/// The GPU that the driver plays.
const GPU: u32 = 90;

/// Source, macros, and what the table makes of them.
pub(crate) type Played = (&'static str, Macros, Specialisation);

/// Fills a folder: a process with `LD_LIBRARY_PATH` and `KVIST_PREBUILT` of it, and `FAKE_EMULATE`, has a GPU
/// with these kernels.
pub(crate) fn make(folder: &Path, kernels: &[Played]) {
    for name in ["libcuda.so", "libcuda.so.1"] {
        driver(&folder.join(name));
    }
    for (source, macros, of) in kernels {
        let code = std::fs::read(toolchain::library(source, macros)).unwrap();
        let image = Image { ptx: false, compiler: Version { major: 13, minor: 0 }, code };
        let key = of.key(Target::Cubin(Arch::new(GPU, of.kernel().accelerated)));
        std::fs::write(folder.join(key.file_name()), image.encode(&key)).unwrap();
    }
}

fn driver(file: &Path) {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let source = toolchain::folder().join("tests/cuda/fake_driver.c");
    let done = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O1", "-D_GNU_SOURCE", "-o"])
        .args([file, &source])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
