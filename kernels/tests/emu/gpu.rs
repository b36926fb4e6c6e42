//! A GPU that is played: a folder with a driver (`tests/cuda/fake_driver.c`) and kernels for the emulator.

use std::path::Path;
use std::process::Command;

use kvist_kernels::DType;
use kvist_kernels::cuda::work::{AttendSpec, BoxedScoreSpec, PrefillSpec, ScoreSpec, TokensSpec};
use kvist_kernels::cuda::{
    ATTEND_PAGES, ATTEND_PREFILL, ATTEND_PREFILL_HOPPER, Arch, BOXED, Image, Kernel, MERGE, Macros,
    PLAN, SCORE, SELECT, Specialisation, TOKENS, TRANSFER, Target, VOTE, Version,
};

use crate::toolchain;

/// The GPU that the driver plays.
const GPU: u32 = 90;

/// Source, macros, and what the table makes of them.
pub(crate) type Played = (&'static str, Macros, Specialisation);

/// Attention of few rows.
pub(crate) fn few(spec: &AttendSpec) -> Played {
    ("attend_pages.cu", spec.macros(), ATTEND_PAGES.with(spec.macros()))
}

/// Attention of many rows.
pub(crate) fn many(spec: &PrefillSpec) -> Played {
    let kernel = if spec.wgmma { &ATTEND_PREFILL_HOPPER } else { &ATTEND_PREFILL };
    ("attend_prefill.cu", spec.macros(), kernel.with(spec.macros()))
}

/// Kernels without macros: merges, copies, plans and choices.
pub(crate) fn plain() -> [Played; 4] {
    let of = |source, kernel: &'static Kernel| (source, Macros::new(), kernel.with(Macros::new()));
    [
        of("merge.cu", &MERGE),
        of("transfer.cu", &TRANSFER),
        of("plan.cu", &PLAN),
        of("select.cu", &SELECT),
    ]
}

/// What choosing tokens by boxed codes needs.
pub(crate) fn choosing(dim: usize, dtype: DType, planes: u32) -> [Played; 3] {
    let codes = BoxedScoreSpec { dim, planes: planes as usize }.macros();
    let tokens = TokensSpec { dim, dtype, slots: true }.macros();
    [
        ("boxed.cu", codes.clone(), BOXED.with(codes)),
        ("tokens.cu", tokens.clone(), TOKENS.with(tokens)),
        ("vote.cu", Macros::new(), VOTE.with(Macros::new())),
    ]
}

/// What a device tier loads for keys and values of a type, but for the plain kernels.
pub(crate) fn tier(dim: usize, dtype: DType) -> Vec<Played> {
    let attend = [(false, false), (false, true), (true, false), (true, true)];
    let attend = attend.map(|(slots, wide)| few(&AttendSpec { dim, dtype, slots, wide }));
    let tall = PrefillSpec { dim, dtype, blocks: false, wgmma: false };
    let tall = many(&PrefillSpec { wgmma: tall.has_wgmma(), ..tall });
    let score = ScoreSpec { dim, dtype, boxes: true };
    let scored = ScoreSpec::all().any(|spec| spec == score);
    let score = scored.then(|| ("score.cu", score.macros(), SCORE.with(score.macros())));
    attend.into_iter().chain([tall]).chain(score).collect()
}

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
