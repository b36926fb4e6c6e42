//! Libraries in place of NVIDIA's, and processes that find them.

use std::path::{Path, PathBuf};
use std::process::Command;

use kvist_kernels::cuda::{Arch, Image, Kernel, Target, Version};
use tempfile::TempDir;

/// A kernel that the fake driver has an entry point for.
pub(crate) static KERNEL: Kernel = Kernel {
    name: "fake.cu",
    source: "fake",
    headers: &[],
    entries: &["fake", "missing"],
    accelerated: false,
    variants: Vec::new,
};
pub(crate) const NO_MACROS: [(&str, u32); 0] = [];

/// Says in a child which test it runs.
const CHILD: &str = "KVIST_TEST_CHILD";

/// Builds `source` of this folder as `file`.
pub(crate) fn library(source: &str, file: &Path, defines: &[&str]) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let done = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O1", "-D_GNU_SOURCE", "-o"])
        .arg(file)
        .arg(format!("-Wl,-soname,{name}"))
        .args(defines.iter().map(|d| format!("-D{d}")))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda").join(source))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// A compiler of this version.
pub(crate) fn nvrtc(folder: &Path, name: &str, major: u32, minor: u32) -> PathBuf {
    let file = folder.join(name);
    library("fake_nvrtc.c", &file, &[&format!("MAJOR={major}"), &format!("MINOR={minor}")]);
    file
}

/// What a child says when its body is through.
const DONE: &str = "the child is done";

/// Runs `body` in a process of its own with these variables, and fails as it does. `test` is the name of
/// the calling test, of which the child runs nothing behind its first body. What the machine has of
/// NVIDIA's is hidden by `shop`, which the loader searches first.
pub(crate) fn child(test: &str, shop: &Path, variables: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some_and(|t| t == *test) {
        body();
        println!("{DONE}");
        std::process::exit(0);
    }
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env_remove("KVIST_NVRTC")
        .env(CHILD, test)
        .env("LD_LIBRARY_PATH", shop)
        .env("SHOP", shop)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains(DONE), "{variables:?}\n{said}");
}

/// Whether this is the process in which [`child`] runs the body.
fn in_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// A folder that `make` fills once; the children of the test see it, too. It goes with the first result.
pub(crate) fn shop(make: impl FnOnce(&Path)) -> (Option<TempDir>, PathBuf) {
    if in_child() {
        return (None, PathBuf::from(std::env::var_os("SHOP").unwrap()));
    }
    let folder = TempDir::new().unwrap();
    make(folder.path());
    let path = folder.path().to_owned();
    (Some(folder), path)
}

/// A folder with an image of [`KERNEL`] for this GPU, made by this compiler.
pub(crate) fn prebuilt(folder: &Path, gpu: u32, compiler: Version) {
    let key = KERNEL.with(NO_MACROS).key(Target::Cubin(Arch::new(gpu, false)));
    let image = Image { ptx: false, compiler, code: b"\x7fELF fake".to_vec() };
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(key.file_name()), image.encode(&key)).unwrap();
}
