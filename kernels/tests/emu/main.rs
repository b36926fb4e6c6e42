//! The CUDA kernels, run on the CPU by the emulator of `cuda/kvemu.h`: against the f64 oracle, under several
//! orders of threads, with every rule of the machine checked. Needs a C++ compiler and an x86-64 CPU; where
//! there is none, the tests are reported as ignored.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod attend;
mod boxed;
mod calls;
mod chain;
mod codes;
mod columns;
#[path = "../attend/common.rs"]
#[expect(dead_code, reason = "shared with the tests of the CPU kernels")]
mod common;
mod device;
mod expw;
mod gpu;
#[path = "../score/common.rs"]
#[expect(dead_code, reason = "shared with the tests of the CPU kernels")]
mod keys;
mod kmeans;
mod machine;
mod merge;
mod plan;
mod prefill;
mod quant;
mod rope;
mod score;
mod select;
mod selftest;
mod step;
#[path = "../entropy/common.rs"]
#[expect(dead_code, reason = "shared with the tests of the codec")]
mod tiles;
mod tokens;
mod toolchain;
mod transfer;
mod tree;
mod vote;
mod write;

use libtest_mimic::{Arguments, Failed, Trial};

/// The test that also runs under the sanitizers, in a process of its own.
const SANITIZED: &str = "small grid";
/// A test that reads behind a buffer past all helpers; there only under the sanitizers.
const SLIP: &str = "emulator: slip";

/// Runs one test in a process under the address and undefined-behaviour sanitizers; whether it passed, and
/// what it said.
fn under_sanitizers(test: &str) -> (bool, String) {
    let runtime = toolchain::sanitizer().expect("the compiler comes with its address sanitizer");
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(toolchain::SANITIZE, "1")
        .env("LD_PRELOAD", runtime)
        // A block that ends in a deadlock leaves its threads where they are.
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn sanitized() {
    let (passed, text) = under_sanitizers(SANITIZED);
    assert!(passed && text.contains("1 passed"), "{text}");
    // They do look.
    let (passed, text) = under_sanitizers(SLIP);
    assert!(!passed && text.contains("heap-buffer-overflow"), "{text}");
}

/// Every kernel once.
fn small() {
    attend::small();
    prefill::small();
    tree::small();
    score::small();
    tokens::small();
    boxed::small();
    vote::small();
    plan::small();
    select::pages();
    write::append();
    transfer::items();
    expw::small();
    kmeans::small();
    columns::small();
    quant::small();
    rope::small();
    codes::small();
}

fn main() {
    if let Some(folder) = std::env::var_os(device::CHILD) {
        return device::child(folder.as_ref());
    }
    if let Some(folder) = std::env::var_os(calls::CHILD) {
        return calls::child(folder.as_ref());
    }
    if let Some(folder) = std::env::var_os(device::FOLDER) {
        return device::folder(folder.as_ref());
    }
    let mut arguments = Arguments::from_args();
    // The emulator is one machine per compiled source, and processes share the CPU as it is.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let able = toolchain::compiler().is_some() && cfg!(target_arch = "x86_64");
    if !able {
        eprintln!("IGNORED: the CUDA kernels are not tested without a C++ compiler on x86-64");
    }
    let trial = |name: &str, test: Box<dyn FnOnce() + Send>| {
        let run = move || {
            test();
            Ok::<(), Failed>(())
        };
        Trial::test(name.to_owned(), run).with_ignored_flag(!able)
    };
    let plain: [(&str, fn()); 63] = [
        ("emulator: rules", selftest::rules),
        ("emulator: matrices", selftest::matrices),
        ("emulator: products", selftest::products),
        ("emulator: products of bytes", selftest::byte_products),
        ("emulator: wgmma", selftest::hopper),
        ("emulator: conversions", selftest::conversions),
        ("attend: types", attend::types),
        ("attend: specials", attend::specials),
        ("attend: whole lists", attend::whole_lists),
        ("attend: two places", attend::apart),
        ("attend: barriers left out", attend::planted),
        ("attend: misuse", attend::misuse),
        ("prefill: rows", prefill::rows),
        ("prefill: specials", prefill::specials),
        ("prefill: barriers left out", prefill::planted),
        ("prefill: misuse", prefill::misuse),
        ("tree: grid", tree::grid),
        ("tree: specials", tree::specials),
        ("tree: barriers left out", tree::planted),
        ("tree: misuse", tree::misuse),
        ("merge: parts", merge::parts),
        ("device: attention", device::attention),
        ("device: many rows and trees", calls::tall),
        ("score: grid", score::grid),
        ("score: rows", score::rows),
        ("score: specials", score::specials),
        ("score: barriers left out", score::planted),
        ("tokens: grid", tokens::grid),
        ("tokens: specials", tokens::specials),
        ("tokens: barriers left out", tokens::planted),
        ("tokens: misuse", tokens::misuse),
        ("boxed: grid", boxed::grid),
        ("boxed: specials", boxed::specials),
        ("boxed: barriers left out", boxed::planted),
        ("select: grid", select::grid),
        ("select: mass", select::mass),
        ("select: pages", select::pages),
        ("select: barriers left out", select::planted),
        ("vote: grid", vote::grid),
        ("vote: barriers left out", vote::planted),
        ("plan: grid", plan::grid),
        ("plan: barriers left out", plan::planted),
        ("chain: pages", chain::pages),
        ("chain: slots", chain::slots),
        ("write: append", write::append),
        ("transfer: items", transfer::items),
        ("expw: grid", expw::grid),
        ("expw: hostile bytes", expw::hostile),
        ("expw: outside", expw::outside),
        ("expw: barriers left out", expw::planted),
        ("kmeans: grid", kmeans::grid),
        ("kmeans: whole runs", kmeans::lloyd),
        ("kmeans: barriers left out", kmeans::planted),
        ("columns: grid", columns::grid),
        ("columns: specials", columns::specials),
        ("columns: barriers left out", columns::planted),
        ("quant: grid", quant::grid),
        ("rope: grid", rope::grid),
        ("codes: grid", codes::grid),
        ("codes: specials", codes::specials),
        ("codes: barriers left out", codes::planted),
        (SANITIZED, small),
        ("small grid under the sanitizers", sanitized),
    ];
    let mut trials: Vec<Trial> =
        plain.into_iter().map(|(name, test)| trial(name, Box::new(test))).collect();
    for spec in attend::specs() {
        let (dim, dtype) = (spec.dim, spec.dtype);
        let items = if spec.slots { "slots" } else { "pages" };
        let rows = spec.rows();
        let name = format!("attend: grid, {items}, d {dim}, {dtype}, {rows} rows");
        trials.push(trial(&name, Box::new(move || attend::grid(spec))));
    }
    for spec in prefill::specs() {
        let (dim, dtype) = (spec.dim, spec.dtype);
        let what = if spec.blocks { "blocks" } else { "pages" };
        let how = if spec.wgmma { ", wgmma" } else { "" };
        let name = format!("prefill: grid, {what}, d {dim}, {dtype}{how}");
        trials.push(trial(&name, Box::new(move || prefill::grid(spec))));
    }
    if std::env::var_os(toolchain::SANITIZE).is_some() {
        trials.push(trial(SLIP, Box::new(selftest::slip)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}
