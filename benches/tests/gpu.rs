//! The benchmarks on a GPU run, on one that is played: `kernels/tests/cuda/fake_driver.c` runs their kernels on
//! the CPU. What they measure there means nothing; that they end, and that results are right, does. Needs a C++
//! compiler and an x86-64 CPU; where there is none, the tests are reported as ignored.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "../../kernels/tests/emu/gpu.rs"]
mod gpu;
#[path = "../../kernels/tests/emu/toolchain.rs"]
#[expect(dead_code, reason = "shared with the tests of the kernels")]
mod toolchain;

use std::process::Command;

use kvist_bench::{Options, Sink};
use kvist_kernels::DType;
use kvist_kernels::cuda::ATTEND_TREE;
use kvist_kernels::cuda::work::{PrefillSpec, TreeSpec};
use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;

/// Names the benchmark for a process that has the driver.
const CHILD: &str = "KVIST_BENCH_TEST";
const BENCHES: [&str; 5] = ["gpu-check", "gpu-attend", "gpu-select", "gpu-copy", "gpu-step"];

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let tall = [(false, false), (true, true)].map(|(blocks, wgmma)| {
        gpu::many(&PrefillSpec { dim: 64, dtype: DType::Bf16, blocks, wgmma })
    });
    let tree = TreeSpec { dim: 64, dtype: DType::Bf16 }.macros();
    let tree = [("attend_tree.cu", tree.clone(), ATTEND_TREE.with(tree))];
    let tier = [gpu::tier(64, DType::Bf16), gpu::choosing(64, DType::Bf16, 3).to_vec()].concat();
    gpu::make(folder.path(), &[&tier[..], &tall, &tree, &gpu::plain()].concat());
    folder
}

fn played(name: &str) -> Result<(), Failed> {
    let folder = folder();
    let output = Command::new(std::env::current_exe()?)
        .env("LD_LIBRARY_PATH", folder.path())
        .env("KVIST_PREBUILT", folder.path())
        .env("FAKE_EMULATE", "1")
        .env("FAKE_DEFER", "1")
        .env("FAKE_MEMORY", (32 << 20).to_string())
        .env(CHILD, name)
        .output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let rows = text.lines().filter(|line| line.contains(&format!("\"{name}\""))).count();
    match output.status.success() && rows > 1 {
        true => Ok(()),
        false => Err(text.into()),
    }
}

fn main() {
    if let Ok(name) = std::env::var(CHILD) {
        let options = Options {
            head_dim: Some(64),
            q_heads: Some(8),
            kv_heads: Some(2),
            dtype: Some(vec![DType::Bf16]),
            context: Some(vec![300]),
            repeats: Some(1),
            ..Options::default()
        };
        let mut sink = Sink::json();
        kvist_bench::run(&name, &options, &mut sink).unwrap();
        return;
    }
    let arguments = Arguments::from_args();
    let able = toolchain::compiler().is_some() && cfg!(target_arch = "x86_64");
    if !able {
        eprintln!("IGNORED: benchmarks on a GPU are not tested without a C++ compiler on x86-64");
    }
    let trial = |name| Trial::test(name, move || played(name)).with_ignored_flag(!able);
    libtest_mimic::run(&arguments, BENCHES.into_iter().map(trial).collect()).exit();
}
