//! The whole way of a call, from the table of kernels to results in the host's memory: by a driver that runs
//! kernels on the emulator (`tests/cuda/fake_driver.c`), in a process of its own.

use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;
use std::sync::Arc;

use half::{bf16, f16};
use kvist_kernels::attend::Listed;
use kvist_kernels::cuda::params::MergeUnitsParams;
use kvist_kernels::cuda::work::AttendSpec;
use kvist_kernels::cuda::{
    ATTEND_PAGES, Cache, Compiler, Device, Grid, MERGE, Macros, Memory, Specialisation, Stream,
    Trial,
};
use kvist_kernels::{DType, Element};
use tempfile::TempDir;

use crate::attend::{cases, compare};
use crate::calls;
use crate::common::{Built, Case, build, oracle, run_with};
use crate::gpu::{self, Played};

/// Names the folder of images in the process that has the driver.
pub(crate) const CHILD: &str = "KVIST_EMU_DEVICE";
/// Names a folder that is to be filled with a GPU for all of the kernels over pages.
pub(crate) const FOLDER: &str = "KVIST_EMU_GPU";
const SPECS: [AttendSpec; 3] = [
    AttendSpec { dim: 64, dtype: DType::Bf16, slots: false, wide: false },
    AttendSpec { dim: 80, dtype: DType::F16, slots: true, wide: false },
    AttendSpec { dim: 64, dtype: DType::F32, slots: false, wide: true },
];

/// The kernels of attention, of these specialisations.
fn kernels(specs: &[AttendSpec]) -> Vec<Played> {
    let attend =
        |spec: &AttendSpec| ("attend_pages.cu", spec.macros(), ATTEND_PAGES.with(spec.macros()));
    let merge = ("merge.cu", Macros::new(), MERGE.with(Macros::new()));
    specs.iter().map(attend).chain([merge]).collect()
}

/// Fills a folder with a GPU that has all kernels over pages, for few rows and for many.
pub(crate) fn folder(folder: &Path) {
    let specs: Vec<AttendSpec> = AttendSpec::all().filter(|s| !s.slots).collect();
    gpu::make(folder, &[kernels(&specs), calls::all()].concat());
}

/// Runs [`child`] where the only driver is the one that is played.
pub(crate) fn attention() {
    let folder = TempDir::new().unwrap();
    gpu::make(folder.path(), &kernels(&SPECS));
    let output = Command::new(std::env::current_exe().unwrap())
        .env("LD_LIBRARY_PATH", folder.path())
        .env("FAKE_EMULATE", "1")
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("24 calls"), "{text}");
}

/// In the process that has the driver: every case of the specialisations.
pub(crate) fn child(folder: &Path) {
    let compiler = Compiler::new(Cache::new(None, 0), vec![folder.to_owned()]);
    let device = Device::open(0, Arc::new(compiler)).unwrap();
    // SAFETY: the default stream is always there.
    let stream = unsafe { device.stream(null_mut()) };
    let all: Vec<Specialisation> = kernels(&SPECS).into_iter().map(|(.., of)| of).collect();
    assert_eq!(device.warm_up(&all).unwrap().loaded, SPECS.len() + 1);
    let gpu = Gpu { device, stream };
    let mut calls = 0;
    for spec in &SPECS {
        for case in cases(spec) {
            match spec.dtype {
                DType::F32 => gpu.check::<f32>(&case),
                DType::F16 => gpu.check::<f16>(&case),
                DType::Bf16 => gpu.check::<bf16>(&case),
            }
            calls += 1;
        }
    }
    gpu.refuses();
    println!("{calls} calls");
}

struct Gpu {
    device: Device,
    stream: Stream,
}

impl Gpu {
    fn check<T: Element>(&self, case: &Case) {
        let built = build::<T>(case);
        let (o, lse) = self.run(case, &built);
        compare(case, T::DTYPE, &o, &lse, &oracle(case, &built));
    }

    fn run<T: Element>(&self, case: &Case, built: &Built<T>) -> (Vec<f32>, Vec<f32>) {
        run_with(case, built, |queries, pool, pages, slots, params| {
            let listed = match slots {
                Some(slots) => Listed::Slots(pool, slots),
                None => Listed::Pages(pool, pages),
            };
            let memory = Memory { q: &built.q, k: &built.k, v: &built.v };
            // Only the wide kernel of f32 was compiled, and it does few rows, too.
            let wide = T::DTYPE == DType::F32;
            let call = (queries, &listed, params);
            let mut trial = Trial::new(&self.device, &self.stream, call, memory, wide).unwrap();
            trial.poison().unwrap();
            trial.launch().unwrap();
            trial.read().unwrap()
        })
    }

    /// Memory outside a buffer is refused by the host, and outside all of them by the driver.
    fn refuses(&self) {
        let mut buffer = self.device.buffer(16).unwrap();
        let text = buffer.write(&self.stream, 9, &[0u64]).unwrap_err().to_string();
        assert_eq!(text, "buffer: expected a part of its 16 bytes, found 8 from byte 9 on");
        let text = buffer.read(&self.stream, usize::MAX, &mut [0u8]).unwrap_err().to_string();
        assert!(text.contains("1 from byte"), "{text}");
        buffer.write(&self.stream, 8, &[7u64]).unwrap();
        let mut back = [0u32; 2];
        buffer.read(&self.stream, 8, &mut back).unwrap();
        assert_eq!(back, [7, 0]);
        assert!(self.device.buffer(0).unwrap().is_empty());
        let mut other = self.device.buffer(16).unwrap();
        other.copy(&self.stream, &buffer).unwrap();
        other.read(&self.stream, 8, &mut back).unwrap();
        assert_eq!(back, [7, 0]);
        let short = self.device.buffer(8).unwrap();
        let text = other.copy(&self.stream, &short).unwrap_err().to_string();
        assert_eq!(text, "buffer to copy: expected 16 bytes, found 8");
        // A kernel that is told of memory that nobody has.
        let merge = self.device.function(&MERGE.with(Macros::new()), "merge_units", &self.stream);
        let lost: MergeUnitsParams = bytemuck::Zeroable::zeroed();
        let lost =
            MergeUnitsParams { units_n: 1, unit_rows: 16, dim: 64, group: 1, q_heads: 1, ..lost };
        let grid = Grid { blocks: [4, 1, 1], threads: 128, shared_bytes: 0 };
        // SAFETY: the emulator refuses what is outside the buffers.
        let told = unsafe { merge.unwrap().launch(&self.stream, grid, &lost) };
        let text = told.unwrap_err().to_string();
        assert!(text.contains("GPU lost"), "{text}");
    }
}
