//! One cache, several processes.

use std::process::Command;

use kvist_kernels::cuda::{CAP_BYTES, Cache, Compiler};
use tempfile::TempDir;

use crate::fakes::{KERNEL, nvrtc};

const NAME: &str = "shared::processes_share_what_they_compile";
const PROCESSES: usize = 4;
const KERNELS: u32 = 6;

#[test]
fn processes_share_what_they_compile() {
    if let Some(folder) = std::env::var_os("SHARED") {
        let compiler = Compiler::new(Cache::new(Some(folder.into()), CAP_BYTES), Vec::new());
        let all: Vec<_> = (0..KERNELS).map(|n| KERNEL.with([("N", n)])).collect();
        let images = compiler.images(&all, 80).unwrap();
        assert!(images.iter().all(|i| i.code.starts_with(b"\x7fELF of a fake")));
        let counts = compiler.counts();
        assert_eq!(counts.cached + counts.compiled, u64::from(KERNELS));
        return;
    }
    let folder = TempDir::new().unwrap();
    let compiler = nvrtc(folder.path(), "libnvrtc.so.12", 12, 4);
    let (log, cache) = (folder.path().join("log"), folder.path().join("cubin"));
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env("SHARED", &cache)
            .env("KVIST_NVRTC", &compiler)
            .env("FAKE_COMPILED", &log)
            .spawn()
            .unwrap()
    };
    let compiled = || std::fs::read_to_string(&log).unwrap().lines().count();
    let all: Vec<_> = (0..PROCESSES).map(|_| start()).collect();
    all.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    let first = compiled();
    assert!((KERNELS as usize..=PROCESSES * KERNELS as usize).contains(&first), "{first}");
    // Whoever comes later compiles nothing, and no temporary file is left.
    assert!(start().wait().unwrap().success());
    assert_eq!(compiled(), first);
    assert_eq!(cache.read_dir().unwrap().count(), KERNELS as usize);
}
