//! The device tier on a GPU that is played: kernels run on the CPU by the emulator, and streams do their work
//! when somebody waits for it and not before (`kernels/tests/cuda/fake_driver.c`). Needs a C++ compiler and an
//! x86-64 CPU; where there is none, the tests are reported as ignored.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod absent;
mod faults;
#[path = "../../../kernels/tests/emu/gpu.rs"]
mod gpu;
mod pair;
mod play;
#[path = "../../../kernels/tests/emu/toolchain.rs"]
#[expect(dead_code, reason = "shared with the tests of the kernels")]
mod toolchain;

use std::path::Path;
use std::process::Command;

use kvist::DType;
use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;

/// Names the test for a process that has the driver.
const CHILD: &str = "KVIST_DEVICE_TEST";

/// Tests that run where there is a GPU.
const PLAYED: [(&str, fn()); 14] = [
    ("all pages have frames", play::roomy),
    ("the CPU reads what has no frame", play::tight),
    ("kernels read what has no frame", play::mapped),
    ("pages come before they are asked for", play::ahead),
    ("pages lie below host memory, too", play::below),
    ("prompts", play::prompts),
    ("the GPU chooses units", play::selects_units),
    ("the GPU chooses tokens", play::selects_tokens),
    ("one sequence has room to choose", play::selects_in_turn),
    ("memory of the caller", play::lent),
    ("two GPUs hold one sequence", play::parallel),
    ("two threads", play::threads),
    ("every call that fails", faults::every_call),
    ("impossible geometries", absent::geometries),
];

/// A folder with a GPU that has the kernels of these tests.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let own = [gpu::tier(64, DType::Bf16), gpu::choosing(64, DType::Bf16, 3).to_vec()].concat();
    gpu::make(folder.path(), &[&own[..], &gpu::plain()].concat());
    folder
}

/// Runs a test in a process that has the GPU in this folder.
fn played(name: &str, folder: &Path) -> Result<(), Failed> {
    let output = Command::new(std::env::current_exe().unwrap())
        .env("LD_LIBRARY_PATH", folder)
        .env("KVIST_PREBUILT", folder)
        .env("FAKE_EMULATE", "1")
        .env("FAKE_DEFER", "1")
        .env(CHILD, name)
        .output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    match output.status.success() && text.contains("played") {
        true => Ok(()),
        false => Err(text.into()),
    }
}

fn main() {
    if let Ok(name) = std::env::var(CHILD) {
        let test = PLAYED.iter().find(|(known, _)| *known == name).unwrap();
        test.1();
        return println!("played");
    }
    let arguments = Arguments::from_args();
    let able = toolchain::compiler().is_some() && cfg!(target_arch = "x86_64");
    if !able {
        eprintln!("IGNORED: the device tier is not tested without a C++ compiler on x86-64");
    }
    let folder = std::sync::OnceLock::new();
    let folder: &'static std::sync::OnceLock<TempDir> = Box::leak(Box::new(folder));
    let played = |(name, _): (&'static str, fn())| {
        let run = move || played(name, folder.get_or_init(self::folder).path());
        Trial::test(name, run).with_ignored_flag(!able)
    };
    let mut trials: Vec<Trial> = PLAYED.into_iter().map(played).collect();
    trials.push(Trial::test("no driver", || {
        absent::no_driver();
        Ok(())
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(folder) = folder.get() {
        let _ = std::fs::remove_dir_all(folder.path());
    }
    conclusion.exit();
}
