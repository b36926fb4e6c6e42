//! What needs a compiler: every shipped kernel to machine code without spills, the cache over real
//! images, and the compiler's errors. Without NVRTC all of it is reported as ignored, not as passed.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::sync::Arc;
use std::time::Instant;

use kvist_kernels::cuda::{
    Arch, CAP_BYTES, Cache, Compiler, Counts, Error, Header, Kernel, Nvrtc, SHIPPED,
    Specialisation, Target, Variant,
};
use libtest_mimic::{Arguments, Trial};

static MERGE: Kernel = Kernel {
    name: "merge.cu",
    source: include_str!("merge.cu"),
    headers: &[Header { name: "merge.cuh", text: include_str!("merge.cuh") }],
    entries: &["kv_merge"],
    accelerated: false,
    variants: || {
        let variant = |dim| Variant { macros: vec![("KV_D", dim)], registers_max: 64 };
        [64, 128].map(variant).to_vec()
    },
};
static SPILL: Kernel = Kernel {
    name: "spill.cu",
    source: include_str!("spill.cu"),
    headers: &[],
    entries: &["kv_spill"],
    accelerated: false,
    variants: || vec![Variant { macros: Vec::new(), registers_max: 64 }],
};
static WGMMA: Kernel = Kernel {
    name: "wgmma.cu",
    source: include_str!("wgmma.cu"),
    headers: &[],
    entries: &["kv_wgmma"],
    accelerated: true,
    variants: || vec![Variant { macros: vec![("KV_ALWAYS", 0)], registers_max: 32 }],
};
const SM_80: Target = Target::Cubin(Arch { number: 80, accelerated: false });
const SM_90: Target = Target::Cubin(Arch { number: 90, accelerated: false });
const SM_90A: Target = Target::Cubin(Arch { number: 90, accelerated: true });

fn main() {
    let arguments = Arguments::from_args();
    let nvrtc = Nvrtc::find();
    let missing = nvrtc.as_ref().err();
    if let Some(e) = missing
        && !arguments.list
    {
        eprintln!("SKIPPED, every test of cuda_compile: {e}");
    }
    let trials = trials().into_iter().map(|t| t.with_ignored_flag(missing.is_some()));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 12] = [
        ("the_compiler_is_what_it_says", the_compiler_is_what_it_says),
        ("spills_are_seen", spills_are_seen),
        ("a_wrong_source_is_an_error_with_the_log", a_wrong_source_is_an_error_with_the_log),
        ("a_header_that_is_not_given_is_an_error", a_header_that_is_not_given_is_an_error),
        ("a_missing_macro_is_an_error", a_missing_macro_is_an_error),
        ("zero_bytes_are_an_error", zero_bytes_are_an_error),
        ("machine_code_proves_what_assembly_does_not", machine_code_proves_what_assembly_does_not),
        ("a_newer_gpu_gets_assembly", a_newer_gpu_gets_assembly),
        ("an_older_gpu_is_refused", an_older_gpu_is_refused),
        ("a_second_process_reads_what_the_first_compiled", cold_and_warm),
        ("many_callers_compile_once", many_callers_compile_once),
        ("prebuilt_images_need_no_compiler", prebuilt_images_need_no_compiler),
    ];
    let mut trials: Vec<Trial> =
        tests.into_iter().map(|(name, test)| trial(name.to_owned(), test)).collect();
    for kernel in SHIPPED.into_iter().chain([&MERGE, &WGMMA]) {
        for (of, registers_max) in kernel.shipped() {
            for target in [SM_80, SM_90A] {
                let Target::Cubin(arch) = target else { continue };
                let target = Target::Cubin(Arch::new(arch.number, kernel.accelerated));
                let name = format!("shipped {of} {target}");
                let of = of.clone();
                trials.push(trial(name, move || fits(&of, target, registers_max)));
            }
        }
    }
    trials
}

fn trial(name: String, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// Every entry point is there, spills nothing and stays below its cap of registers.
fn fits(of: &Specialisation, target: Target, registers_max: u32) {
    let compiled = Nvrtc::find().unwrap().compile(of, target).unwrap();
    assert!(!compiled.image.ptx && compiled.image.code.starts_with(b"\x7fELF"));
    for entry in of.kernel().entries {
        let usage = compiled.usage.iter().find(|u| u.entry == *entry);
        let usage = usage.unwrap_or_else(|| panic!("{entry} is not in {:?}", compiled.usage));
        println!("{of} {target}: {usage:?}");
        assert_eq!((usage.spill_store_bytes, usage.spill_load_bytes), (0, 0), "{usage:?}");
        assert!((1..=registers_max).contains(&usage.registers), "{usage:?}");
        // Fixed shared memory would be missing from what a launch may ask for.
        assert_eq!(usage.shared_bytes, 0, "{usage:?}");
    }
}

fn merge(dim: u32) -> Specialisation {
    MERGE.with([("KV_D", dim)])
}

fn failure(kernel: &'static Kernel, macros: &[(&'static str, &str)], target: Target) -> String {
    let of = kernel.with(macros.iter().copied());
    match Nvrtc::find().unwrap().compile(&of, target) {
        Err(Error::CompileFailed { log, .. }) => log,
        other => panic!("expected CompileFailed, found {other:?}"),
    }
}

fn leak(source: &'static str) -> &'static Kernel {
    Box::leak(Box::new(Kernel { name: "wrong.cu", source, ..MERGE }))
}

fn the_compiler_is_what_it_says() {
    let nvrtc = Nvrtc::find().unwrap();
    assert!((12..=13).contains(&nvrtc.version().major));
    assert!(nvrtc.archs().is_sorted());
    assert!([80, 90].iter().all(|a| nvrtc.archs().contains(a)), "{:?}", nvrtc.archs());
    assert!(nvrtc.file().exists(), "{nvrtc:?}");
}

fn spills_are_seen() {
    let none: [(&str, u32); 0] = [];
    let compiled = Nvrtc::find().unwrap().compile(&SPILL.with(none), SM_80).unwrap();
    let usage = &compiled.usage[0];
    assert_eq!(usage.entry, "kv_spill");
    assert!(usage.spill_store_bytes > 0 && usage.spill_load_bytes > 0, "{usage:?}");
    assert!(usage.stack_bytes > 0 && usage.registers <= 64, "{usage:?}");
}

fn a_wrong_source_is_an_error_with_the_log() {
    let log = failure(leak("extern \"C\" __global__ void k() { undeclared = 1; }"), &[], SM_80);
    assert!(log.contains("wrong.cu(1)") && log.contains("undeclared"), "{log}");
    let log = failure(&MERGE, &[("KV_D", "64")], Target::Cubin(Arch::new(999, false)));
    assert!(log.contains("gpu-architecture"), "{log}");
}

fn a_header_that_is_not_given_is_an_error() {
    let log = failure(leak("#include <cuda_bf16.h>\n"), &[], SM_80);
    assert!(log.contains("cuda_bf16.h"), "{log}");
}

fn a_missing_macro_is_an_error() {
    let log = failure(&MERGE, &[], SM_80);
    assert!(log.contains("KV_D"), "{log}");
    let log = failure(&MERGE, &[("KV_D", "65")], SM_80);
    assert!(log.contains("multiple of a warp"), "{log}");
}

fn zero_bytes_are_an_error() {
    assert!(failure(&MERGE, &[("KV_D", "6\x004")], SM_80).contains("zero byte"));
    assert!(failure(leak("a\0b"), &[], SM_80).contains("zero byte"));
}

/// Why kernels are tested as machine code.
fn machine_code_proves_what_assembly_does_not() {
    let always = WGMMA.with([("KV_ALWAYS", 1)]);
    let nvrtc = Nvrtc::find().unwrap();
    assert!(nvrtc.compile(&always, Target::Ptx(Arch::new(80, false))).unwrap().image.ptx);
    assert!(failure(&WGMMA, &[("KV_ALWAYS", "1")], SM_90).contains("wgmma"));
    assert!(nvrtc.compile(&always, SM_90A).is_ok());
}

fn a_newer_gpu_gets_assembly() {
    let compiler = Compiler::new(Cache::new(None, 0), Vec::new());
    let newest = *compiler.nvrtc().unwrap().archs().last().unwrap();
    let image = compiler.image(&merge(64), newest + 10).unwrap();
    assert!(image.ptx);
    let text = std::str::from_utf8(&image.code).unwrap();
    assert!(text.contains(&format!(".target sm_{newest}")) && text.contains("kv_merge"));
    assert!(text.ends_with('\0') && text.matches('\0').count() == 1);
    let of = WGMMA.with([("KV_ALWAYS", 0)]);
    assert!(compiler.image(&of, newest + 10).unwrap().ptx);
}

fn an_older_gpu_is_refused() {
    let compiler = Compiler::new(Cache::new(None, 0), Vec::new());
    let refused = Err(Error::UnsupportedArch { found: 75 });
    assert_eq!(compiler.image(&merge(64), 75), refused);
    assert_eq!(compiler.counts(), Counts::default());
}

fn cold_and_warm() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("cubin");
    let compiler = || Compiler::new(Cache::new(Some(own.clone()), CAP_BYTES), Vec::new());
    let (cold, start) = (compiler(), Instant::now());
    let image = cold.image(&merge(64), 90).unwrap();
    println!("compiled in {:?}: {} bytes", start.elapsed(), image.code.len());
    assert!(Arc::ptr_eq(&image, &cold.image(&merge(64), 90).unwrap()));
    assert_eq!(cold.counts(), Counts { compiled: 1, ..Counts::default() });

    let (warm, start) = (compiler(), Instant::now());
    let read = warm.image(&merge(64), 90).unwrap();
    println!("read in {:?}", start.elapsed());
    assert_eq!(read, image);
    assert_eq!(warm.counts(), Counts { cached: 1, ..Counts::default() });
    // Another macro, another architecture: other files.
    warm.images(&[merge(128), merge(64)], 80).unwrap();
    assert_eq!(warm.counts(), Counts { cached: 1, compiled: 2, ..Counts::default() });

    let files: Vec<_> = own.read_dir().unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 3);
    for file in &files {
        let mut bytes = std::fs::read(file).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(file, bytes).unwrap();
    }
    let again = compiler();
    assert_eq!(again.image(&merge(64), 90).unwrap(), image);
    assert_eq!(again.counts(), Counts { compiled: 1, ..Counts::default() });
    let mended = compiler();
    assert_eq!(mended.image(&merge(64), 90).unwrap(), image);
    assert_eq!(mended.counts(), Counts { cached: 1, ..Counts::default() });
}

fn many_callers_compile_once() {
    let compiler = Compiler::new(Cache::new(None, 0), Vec::new());
    let images = std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..8).map(|_| scope.spawn(|| compiler.image(&merge(64), 80).unwrap())).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(images.iter().all(|i| Arc::ptr_eq(i, &images[0])));
    assert_eq!(compiler.counts(), Counts { compiled: 1, ..Counts::default() });

    // A refusal is the same for all, and is not tried again.
    let wrong = leak("#error no").with([("KV_D", 64)]);
    let errors: Vec<_> = (0..3).map(|_| compiler.image(&wrong, 80).unwrap_err()).collect();
    assert!(errors.iter().all(|e| e == &errors[0] && e.to_string().contains("#error")));
    assert_eq!(compiler.counts(), Counts { compiled: 1, ..Counts::default() });
}

fn prebuilt_images_need_no_compiler() {
    let folder = tempfile::tempdir().unwrap();
    let maker = Compiler::new(Cache::new(None, 0), Vec::new());
    assert_eq!(maker.prebuild(&[&MERGE, &WGMMA], &[80, 90], folder.path()).unwrap(), 6);
    assert!(maker.prebuild(&[&MERGE], &[999], folder.path()).is_err());

    let user = Compiler::new(Cache::new(None, 0), vec!["/missing".into(), folder.path().into()]);
    for gpu in [80, 90] {
        for kernel in [&MERGE, &WGMMA] {
            for (of, _) in kernel.shipped() {
                assert!(!user.image(&of, gpu).unwrap().ptx);
            }
        }
    }
    assert_eq!(user.counts(), Counts { prebuilt: 6, ..Counts::default() });
    // What is not there is compiled.
    user.image(&merge(96), 80).unwrap();
    assert_eq!(user.counts(), Counts { prebuilt: 6, compiled: 1, ..Counts::default() });
}
