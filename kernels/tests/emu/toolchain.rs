//! Compiles kernels for the emulator, and keeps what it compiled.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Set for a process that runs under the address sanitizer.
pub(crate) const SANITIZE: &str = "KVIST_EMU_SANITIZE";

/// The C++ compiler, if this machine has one: `CXX`, `c++` or `g++`.
pub(crate) fn compiler() -> Option<&'static str> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let named = std::env::var("CXX").ok();
        let works = |name: &String| Command::new(name).arg("--version").output().is_ok();
        named.into_iter().chain(["c++".into(), "g++".into()]).find(works)
    };
    FOUND.get_or_init(find).as_deref()
}

/// The folder of the crate that has the kernels; this file serves the tests of others, too.
pub(crate) fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels"))
}

fn kernels() -> PathBuf {
    folder().join("cuda")
}

/// A source of `cuda/`, or of this folder.
fn source(name: &str) -> PathBuf {
    let shipped = kernels().join(name);
    let own = folder().join("tests/emu").join(name);
    if shipped.exists() { shipped } else { own }
}

/// The numbers of all `KV_GUARD`s that a source and the headers it needs have.
pub(crate) fn guards(name: &str) -> Vec<u32> {
    let (mut files, mut at, mut found) = (vec![source(name)], 0, Vec::new());
    while at < files.len() {
        let text = std::fs::read_to_string(&files[at]).unwrap();
        for header in text.split("#include \"").skip(1) {
            let header = kernels().join(header.split('"').next().unwrap());
            if !files.contains(&header) {
                files.push(header);
            }
        }
        let number = |part: &str| part.split(',').next().unwrap().parse::<u32>().ok();
        // The macro itself is no guard.
        found.extend(text.split("KV_GUARD(").skip(1).filter_map(number));
        at += 1;
    }
    found.sort_unstable();
    assert!(found.windows(2).all(|w| w[0] < w[1]), "{name}: guards {found:?}");
    found
}

/// Compiles a source with macros into a shared library; an old one of the same bytes is kept.
pub(crate) fn library(name: &str, macros: &[(&str, u32)]) -> PathBuf {
    let mut options: Vec<String> = "-std=c++17 -O1 -g1 -fPIC -shared -DKV_EMU -Wall -Wextra \
        -Werror -Wno-unknown-pragmas -Wno-unused-function -Wno-unused-parameter -x c++"
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    if std::env::var_os(SANITIZE).is_some() {
        let checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
        options.extend(checks.map(str::to_owned));
    }
    options.extend(macros.iter().map(|(name, value)| format!("-D{name}={value}")));
    let mut hash = DefaultHasher::new();
    (compiler(), &options, std::fs::read(source(name)).unwrap()).hash(&mut hash);
    let mut headers: Vec<PathBuf> =
        std::fs::read_dir(kernels()).unwrap().map(|entry| entry.unwrap().path()).collect();
    headers.sort();
    for header in headers.iter().filter(|path| path.extension().is_some_and(|e| e != "cu")) {
        std::fs::read(header).unwrap().hash(&mut hash);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emu");
    std::fs::create_dir_all(&folder).unwrap();
    let made = folder.join(format!("{name}-{:016x}.so", hash.finish()));
    if !made.exists() {
        let fresh = made.with_extension(std::process::id().to_string());
        let mut command = Command::new(compiler().unwrap());
        command.args(&options).arg("-I").arg(kernels()).arg(source(name)).arg("-o").arg(&fresh);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(&fresh, &made).unwrap();
    }
    made
}

/// The address sanitizer's runtime, to be loaded before a process starts.
pub(crate) fn sanitizer() -> Option<PathBuf> {
    let output = Command::new(compiler()?).arg("-print-file-name=libasan.so").output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_absolute().then_some(path)
}
