//! GPUs of a driver that is played: what is asked of it, and what its errors become.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::result::ctx;
use cudarc::driver::sys;
use kvist_kernels::cuda::{Cache, Compiler, Device, Error, Grid, Stream, Version, Visit, driver};
use tempfile::TempDir;

use crate::fakes::{KERNEL, NO_MACROS, child, library, prebuilt, shop};

const V13: Version = Version { major: 13, minor: 0 };

/// What the fake driver's kernels take.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Parameters {
    out: u64,
    value: u64,
}

/// Runs `body` with a driver that is played.
fn played(test: &str, variables: &[(&str, &str)], defines: &[&str], body: impl FnOnce()) {
    let (_keep, at) = shop(|at| {
        for name in ["libcuda.so", "libcuda.so.1"] {
            library("fake_driver.c", &at.join(name), defines);
        }
    });
    child(test, &at, variables, body);
}

fn compiler(prebuilt_by: Option<Version>) -> (TempDir, Arc<Compiler>) {
    let folder = TempDir::new().unwrap();
    if let Some(version) = prebuilt_by {
        prebuilt(folder.path(), 90, version);
    }
    let folders = vec![folder.path().to_owned()];
    (folder, Arc::new(Compiler::new(Cache::new(None, 0), folders)))
}

fn open() -> (TempDir, Device) {
    let (folder, compiler) = compiler(Some(V13));
    (folder, Device::open(0, compiler).unwrap())
}

fn stream(device: &Device, raw: usize) -> Stream {
    // SAFETY: the fake driver's streams are numbers.
    unsafe { device.stream(raw as *mut c_void) }
}

#[test]
fn a_visit_leaves_the_thread_as_it_was() {
    played("device::a_visit_leaves_the_thread_as_it_was", &[], &[], || {
        let work = |before| {
            let visit = Visit::new();
            let (_keep, device) = open();
            drop(device.buffer(16).unwrap());
            assert!(ctx::get_current().unwrap().is_some());
            drop(visit);
            assert_eq!(ctx::get_current().unwrap(), before);
        };
        work(None);
        // Another library's.
        let other = 0x70usize as sys::CUcontext;
        // SAFETY: the fake driver's contexts are numbers.
        unsafe { ctx::set_current(other).unwrap() };
        work(Some(other));
    });
}

#[test]
fn gpus_are_what_the_driver_says() {
    played("device::gpus_are_what_the_driver_says", &[("FAKE_ARCH", "89")], &[], || {
        let found = driver().unwrap();
        assert_eq!((found.version, found.devices.len()), (V13, 2));
        let second = &found.devices[1];
        assert_eq!((second.ordinal, second.name.as_str(), second.arch), (1, "Fake 1", 89));
        assert_eq!((second.memory_bytes, second.l2_bytes), (81 << 30, 60 << 20));
        assert_eq!((second.multiprocessors, second.shared_bytes_max), (132, 227 << 10));
        let e = Device::open(2, compiler(None).1).unwrap_err();
        assert_eq!(e, Error::NoDevice { ordinal: 2, devices: 2 });
    });
}

#[test]
fn no_gpu_is_no_error_of_the_driver() {
    let test = "device::no_gpu_is_no_error_of_the_driver";
    for variable in [("FAKE_DEVICES", "0"), ("FAKE_FAIL", "cuInit=100")] {
        played(test, &[variable, ("FAKE_DEVICES", "0")], &[], || {
            assert_eq!(driver().unwrap().devices, []);
            let e = Device::open(0, compiler(None).1).unwrap_err();
            assert!(e.to_string().contains("CUDA_VISIBLE_DEVICES"), "{e}");
        });
    }
}

#[test]
fn a_driver_that_does_not_start_or_is_too_old_is_an_error() {
    let test = "device::a_driver_that_does_not_start_or_is_too_old_is_an_error";
    let check = |word: &str| {
        let e = driver().unwrap_err();
        assert!(e.to_string().contains(word), "{e}");
        assert_eq!(Device::open(0, compiler(None).1).unwrap_err(), e);
    };
    for (variable, word) in [
        (("FAKE_FAIL", "cuInit=803"), "it does not start: CUDA_ERROR_FAKE (code 803)"),
        (("FAKE_VERSION", "11080"), "it supports CUDA 11.8, kvist needs 12.0; install driver 525"),
    ] {
        played(test, &[variable, ("WORD", word)], &[], || check(&std::env::var("WORD").unwrap()));
    }
    let word = "libcuda has no cuStreamIsCapturing";
    played(test, &[("WORD", word)], &["OLD"], || check(&std::env::var("WORD").unwrap()));
}

#[test]
fn a_kernel_is_launched_with_its_parameters() {
    played("device::a_kernel_is_launched_with_its_parameters", &[], &[], || {
        let (_folder, device) = open();
        let stream = stream(&device, 0);
        let function = device.function(&KERNEL.with(NO_MACROS), "fake", &stream).unwrap();
        assert_eq!(function.occupancy(128, 0).unwrap(), 16);
        assert_eq!(function.occupancy(128, 100 << 10).unwrap(), 2);
        assert!(function.occupancy(0, 0).is_err());
        let mut out = [0u64; 4];
        let parameters = Parameters { out: out.as_mut_ptr() as u64, value: 42 };
        let grid = Grid { blocks: [3, 2, 1], threads: 128, shared_bytes: 100 << 10 };
        // SAFETY: the struct is the fake kernel's, and it writes four numbers at once.
        unsafe { function.launch(&stream, grid, &parameters) }.unwrap();
        stream.synchronize().unwrap();
        assert_eq!(out, [42, 6, 128, 100 << 10]);
        let grid = Grid { shared_bytes: 228 << 10, ..grid };
        // SAFETY: refused before it is queued.
        let e = unsafe { function.launch(&stream, grid, &parameters) }.unwrap_err();
        assert!(matches!(e, Error::Launch { what: "shared_bytes", .. }), "{e}");
        let e = device.function(&KERNEL.with(NO_MACROS), "other", &stream).unwrap_err();
        assert_eq!(
            e.to_string(),
            "entry: expected one of [\"fake\", \"missing\"] of fake.cu, found other"
        );
        let e = device.function(&KERNEL.with(NO_MACROS), "missing", &stream).unwrap_err();
        assert!(e.to_string().contains("looking up an entry point"), "{e}");
    });
}

#[test]
fn what_is_not_warm_is_refused_while_a_graph_is_captured() {
    played("device::what_is_not_warm_is_refused_while_a_graph_is_captured", &[], &[], || {
        let (_folder, device) = open();
        let of = KERNEL.with(NO_MACROS);
        let captured = stream(&device, 0x10);
        assert!(captured.is_capturing().unwrap() && !stream(&device, 0).is_capturing().unwrap());
        let e = device.function(&of, "fake", &captured).unwrap_err();
        assert_eq!(e, Error::NotWarm { kernel: "fake.cu".to_owned() });
        let warmed = device.warm_up(&[of.clone(), of.clone()]).unwrap();
        assert_eq!((warmed.loaded, warmed.from.prebuilt, warmed.from.compiled), (1, 1, 0));
        assert!(device.function(&of, "fake", &captured).is_ok());
        assert_eq!(device.warm_up(&[of]).unwrap().loaded, 0);
        // One that there is no image of: said before the capture, where something can be done.
        let other = KERNEL.with([("N", 1)]);
        assert!(matches!(
            device.warm_up(std::slice::from_ref(&other)),
            Err(Error::NoCompiler { .. })
        ));
        assert!(matches!(device.function(&other, "fake", &captured), Err(Error::NotWarm { .. })));
    });
}

#[test]
fn a_driver_runs_what_is_no_newer_than_itself() {
    let test = "device::a_driver_runs_what_is_no_newer_than_itself";
    played(test, &[("FAKE_VERSION", "12040")], &[], || {
        for (minor, major, fits) in [(0, 13, false), (9, 12, true), (0, 12, true)] {
            let (_folder, compiler) = compiler(Some(Version { major, minor }));
            let device = Device::open(0, compiler).unwrap();
            let done = device.warm_up(&[KERNEL.with(NO_MACROS)]);
            if fits {
                assert_eq!(done.unwrap().loaded, 1);
                continue;
            }
            let e = done.unwrap_err().to_string();
            assert!(
                e.contains("supports CUDA 12.4, fake.cu needs 13.0; install driver 580"),
                "{e}"
            );
            assert!(e.contains("pip install nvidia-cuda-nvrtc-cu12"), "{e}");
        }
    });
}

#[test]
fn errors_of_the_driver_become_what_they_mean() {
    let test = "device::errors_of_the_driver_become_what_they_mean";
    for (fail, expected) in [
        ("cuDevicePrimaryCtxRetain=2", "out of GPU memory: making a context"),
        ("cuModuleLoadData=2", "out of GPU memory: loading a kernel"),
        ("cuModuleLoadData=200", "loading a kernel: the driver says CUDA_ERROR_FAKE (code 200)"),
        ("cuModuleLoadData=900", "fake.cu is not loaded, and a graph is being captured"),
        ("cuModuleLoadData=714", "GPU lost: loading a kernel"),
        ("cuStreamIsCapturing=906", "not loaded, and a graph is being captured"),
        ("cuStreamIsCapturing=700", "GPU lost: asking for a stream's capture"),
        ("cuLaunchKernel=719", "GPU lost: launching a kernel: CUDA_ERROR_FAKE (code 719)"),
        ("cuLaunchKernel=1", "launching a kernel: the driver says"),
        ("cuStreamSynchronize=700", "GPU lost: waiting for a stream"),
        ("cuCtxGetCurrent=709", "GPU lost"),
        ("cuDeviceGetCount=999", "counting GPUs"),
        ("cuDeviceTotalMem_v2=214", "GPU lost: asking for a GPU's properties"),
    ] {
        played(test, &[("FAKE_FAIL", fail), ("EXPECTED", expected)], &[], || {
            let e = through().unwrap_err().to_string();
            assert!(e.contains(&std::env::var("EXPECTED").unwrap()), "{e}");
        });
    }
}

/// The whole way.
fn through() -> Result<(), Error> {
    let (_folder, compiler) = compiler(Some(V13));
    let device = Device::open(0, compiler)?;
    // SAFETY: the fake driver's streams are numbers.
    let stream = unsafe { device.stream(null_mut()) };
    let function = device.function(&KERNEL.with(NO_MACROS), "fake", &stream)?;
    let mut out = [0u64; 4];
    let parameters = Parameters { out: out.as_mut_ptr() as u64, value: 1 };
    let grid = Grid { blocks: [1; 3], threads: 32, shared_bytes: 0 };
    // SAFETY: the struct is the fake kernel's, and it writes four numbers at once.
    unsafe { function.launch(&stream, grid, &parameters) }?;
    stream.synchronize()
}
