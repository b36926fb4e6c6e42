//! The whole way of a call, from the table of kernels to results in the host's memory: by a driver that runs
//! kernels on the emulator (`tests/cuda/fake_driver.c`), in a process of its own.

use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;
use std::sync::Arc;

use half::{bf16, f16};
use kvist_kernels::attend::{Listed, Out};
use kvist_kernels::cuda::params::{AttendParams, MergeUnitsParams};
use kvist_kernels::cuda::work::{self, AttendSpec, Work};
use kvist_kernels::cuda::{
    ATTEND_PAGES, Arch, Buffer, Cache, Compiler, Device, Grid, Image, MERGE, Macros,
    Specialisation, Stream, Target, Version,
};
use kvist_kernels::{DType, Element, Tensor3Mut};
use tempfile::TempDir;

use crate::attend::{cases, compare, listed};
use crate::common::{Built, Case, build, oracle, run_with};
use crate::toolchain;

/// Names the folder of images in the process that has the driver.
pub(crate) const CHILD: &str = "KVIST_EMU_DEVICE";
/// The GPU that the driver plays.
const TARGET: Target = Target::Cubin(Arch { number: 90, accelerated: false });
const SPECS: [AttendSpec; 3] = [
    AttendSpec { dim: 64, dtype: DType::Bf16, slots: false, wide: false },
    AttendSpec { dim: 80, dtype: DType::F16, slots: true, wide: false },
    AttendSpec { dim: 64, dtype: DType::F32, slots: false, wide: true },
];

fn kernels() -> Vec<Specialisation> {
    let attend = SPECS.iter().map(|spec| ATTEND_PAGES.with(spec.macros()));
    attend.chain([MERGE.with(Macros::new())]).collect()
}

/// Runs [`child`] where the only driver is the one that is played.
pub(crate) fn attention() {
    let folder = TempDir::new().unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        driver(&folder.path().join(name));
    }
    let all = SPECS.iter().map(|spec| ("attend_pages.cu", spec.macros()));
    for (of, (source, macros)) in kernels().iter().zip(all.chain([("merge.cu", Macros::new())])) {
        let code = std::fs::read(toolchain::library(source, &macros)).unwrap();
        let image = Image { ptx: false, compiler: Version { major: 13, minor: 0 }, code };
        let key = of.key(TARGET);
        std::fs::write(folder.path().join(key.file_name()), image.encode(&key)).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .env("LD_LIBRARY_PATH", folder.path())
        .env("FAKE_EMULATE", "1")
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("24 calls"), "{text}");
}

fn driver(file: &Path) {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/fake_driver.c");
    let done = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O1", "-D_GNU_SOURCE", "-o"])
        .args([file, &source])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// In the process that has the driver: every case of the specialisations.
pub(crate) fn child(folder: &Path) {
    let compiler = Compiler::new(Cache::new(None, 0), vec![folder.to_owned()]);
    let device = Device::open(0, Arc::new(compiler)).unwrap();
    // SAFETY: the default stream is always there.
    let stream = unsafe { device.stream(null_mut()) };
    assert_eq!(device.warm_up(&kernels()).unwrap().loaded, SPECS.len() + 1);
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
            let lists = match slots {
                Some(slots) => Listed::Slots(pool, slots),
                None => Listed::Pages(pool, pages),
            };
            let shape = queries.q.shape();
            let (rows, outputs) = (shape[0] * shape[1], shape.iter().product());
            let (mut o, mut lse) = (vec![f32::NAN; outputs], vec![f32::NAN; rows]);
            let view = Tensor3Mut::contiguous(&mut o, shape).unwrap();
            let out = Out { o: view, lse2: None };
            let (spec, p) = work::describe(queries, &lists, params, &out).unwrap();
            // The kernel of the specialisation that was compiled: wide ones do few rows, too.
            let spec = AttendSpec { wide: spec.wide || spec.dtype == DType::F32, ..spec };
            let kernel = ATTEND_PAGES.with(spec.macros());
            let attend = self.device.function(&kernel, "attend_pages", &self.stream).unwrap();
            let shared_bytes = spec.shared_bytes() as u32;
            let on_one = attend.occupancy(128, shared_bytes).unwrap();
            let workers = (on_one * self.device.info().multiprocessors) as usize;
            let work = Work::new(queries, &lists, params, spec.rows(), workers).unwrap();

            let mut kept: Vec<Buffer> = Vec::new();
            let mut put = |bytes: &[u8]| {
                kept.push(self.device.buffer_of(&self.stream, bytes).unwrap());
                kept[kept.len() - 1].address()
            };
            let (k, v): (&[u8], &[u8]) =
                (bytemuck::cast_slice(&built.k), bytemuck::cast_slice(&built.v));
            let p = AttendParams {
                q: put(bytemuck::cast_slice(&built.q)),
                k: put(k) + (p.k - k.as_ptr() as u64),
                v: put(v) + (p.v - v.as_ptr() as u64),
                ..listed(p, case, built, &work, &mut put)
            };
            let partial = work.partials * spec.rows();
            let room = |floats: usize| self.device.buffer(floats * 4).unwrap();
            let (to, to_lse) = (room(outputs), room(rows));
            let (part_o, part_lse) = (room(partial * spec.dim), room(partial));
            let p = AttendParams {
                o: to.address(),
                lse2: to_lse.address(),
                part_o: part_o.address(),
                part_lse2: part_lse.address(),
                ..p
            };
            let blocks = work.workers.len() as u32 - 1;
            let grid = Grid { blocks: [blocks, 1, 1], threads: 128, shared_bytes };
            let merged = work::merge_of(&spec, &p, &work);
            let of = MERGE.with(Macros::new());
            let merge = self.device.function(&of, "merge_units", &self.stream).unwrap();
            let blocks = (work.units.len() * spec.rows()).div_ceil(4) as u32;
            let merging = Grid { blocks: [blocks, 1, 1], threads: 128, shared_bytes: 0 };
            // SAFETY: the structs are those of the sources; all addresses are of buffers that live on.
            unsafe {
                attend.launch(&self.stream, grid, &p).unwrap();
                merge.launch(&self.stream, merging, &merged).unwrap();
            }
            to.read(&self.stream, 0, &mut o).unwrap();
            to_lse.read(&self.stream, 0, &mut lse).unwrap();
            (o, lse)
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
