//! The whole way of a call, from the table of kernels to results in the host's memory: by a driver that runs
//! kernels on the emulator (`tests/cuda/fake_driver.c`), in a process of its own.

use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;
use std::sync::Arc;

use half::{bf16, f16};
use kvist_kernels::attend::{Listed, Out, Params, Queries};
use kvist_kernels::cuda::params::MergeUnitsParams;
use kvist_kernels::cuda::work::AttendSpec;
use kvist_kernels::cuda::{
    Attention, Buffer, Cache, Capacity, Compiler, Device, Grid, MERGE, Macros, Memory, Reader,
    Specialisation, Stream, Strided, Trial,
};
use kvist_kernels::{DType, Element, KvPool, PageLists, Tensor3, Tensor3Mut, reference};
use tempfile::TempDir;

use crate::attend::{cases, compare};
use crate::calls;
use crate::common::{Built, Case, build, oracle, run_with};
use crate::gpu::{self, Played};
use crate::step;

/// Names the folder of images in the process that has the driver.
pub(crate) const CHILD: &str = "KVIST_EMU_DEVICE";
/// Names a folder that is to be filled with a GPU: all kernels over pages for few rows, and of d 64 all.
pub(crate) const FOLDER: &str = "KVIST_EMU_GPU";
/// Names the only dimension that it is to have, and that of a device tier.
const DIM: &str = "KVIST_EMU_DIM";
const SPECS: [AttendSpec; 3] = [
    AttendSpec { dim: 64, dtype: DType::Bf16, slots: false, wide: false },
    AttendSpec { dim: 80, dtype: DType::F16, slots: true, wide: false },
    AttendSpec { dim: 64, dtype: DType::F32, slots: false, wide: true },
];

/// The kernels of attention of these specialisations, and the plain ones.
fn kernels(specs: &[AttendSpec]) -> Vec<Played> {
    specs.iter().map(gpu::few).chain(gpu::plain()).collect()
}

/// Fills a folder with a GPU that has all kernels over pages, for few rows and for many; or, where [`DIM`] says so,
/// what a device tier of that dimension needs.
pub(crate) fn folder(folder: &Path) {
    let dim = std::env::var(DIM).ok().map(|dim| dim.parse::<usize>().unwrap());
    let own = match dim {
        Some(dim) => {
            [DType::Bf16, DType::F16, DType::F32].map(|dtype| gpu::tier(dim, dtype)).concat()
        }
        None => AttendSpec::all()
            .filter(|s| !s.slots)
            .map(|s| gpu::few(&s))
            .chain(calls::all())
            .collect(),
    };
    gpu::make(folder, &[&own[..], &gpu::plain()].concat());
}

/// Runs [`child`] where the only driver is the one that is played.
pub(crate) fn attention() {
    let folder = TempDir::new().unwrap();
    gpu::make(folder.path(), &[kernels(&SPECS), step::kernels()].concat());
    let output = Command::new(std::env::current_exe().unwrap())
        .env("LD_LIBRARY_PATH", folder.path())
        .env("FAKE_EMULATE", "1")
        .env("FAKE_DEFER", "1")
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
    let mut all: Vec<Specialisation> = kernels(&SPECS).into_iter().map(|(.., of)| of).collect();
    assert_eq!(device.warm_up(&all).unwrap().loaded, SPECS.len() + 4);
    all = [step::STEP.kernels(), step::TOKENS.kernels()].concat();
    assert_eq!(device.warm_up(&all).unwrap().loaded, 5, "what is not there yet");
    let device = Arc::new(device);
    let attention = Attention::new(&device, &stream).unwrap();
    let mut gpu = Gpu { own: device.new_stream().unwrap(), attention, device, stream };
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
    gpu.replays();
    gpu.selects();
    gpu.selects_tokens();
    gpu.reads();
    gpu.refuses();
    println!("{calls} calls");
}

pub(crate) struct Gpu {
    pub(crate) device: Arc<Device>,
    /// The default stream.
    pub(crate) stream: Stream,
    pub(crate) own: Stream,
    attention: Attention,
}

impl Gpu {
    fn check<T: Element>(&mut self, case: &Case) {
        let built = build::<T>(case);
        let expected = oracle(case, &built);
        let (o, lse) = self.run(case, &built);
        compare(case, T::DTYPE, &o, &lse, &expected);
        // Only the wide kernel of f32 was compiled.
        if T::DTYPE != DType::F32 && case.queries.iter().all(|n| n * case.group <= 16) {
            let (o, lse) = self.run_by_copies(case, &built);
            compare(case, T::DTYPE, &o, &lse, &expected);
        }
    }

    /// Twice by [`Attention`], on a stream that does nothing before somebody waits for it.
    fn run_by_copies<T: Element>(&mut self, case: &Case, built: &Built<T>) -> (Vec<f32>, Vec<f32>) {
        run_with(case, built, |queries, pool, pages, slots, params| {
            let mut there = There::new(&self.device, &self.stream, &built.q, queries.q.shape());
            let (k, v) = (there.put(&built.k), there.put(&built.v));
            // SAFETY: a pool of the GPU as the case has one; nobody reads it on the host.
            let pool =
                unsafe { KvPool::from_raw(k, v, T::DTYPE, *pool.layout(), pool.frames()).unwrap() };
            let listed = match slots {
                Some(slots) => Listed::Slots(&pool, slots),
                None => Listed::Pages(&pool, pages),
            };
            let queries = Queries { q: there.q(), ..*queries };
            for _ in 0..2 {
                let (out, lse2) = there.out();
                let call = (&queries, &listed, params);
                // SAFETY: all of it is the GPU's.
                unsafe { self.attention.launch(&self.own, call, &out, lse2).unwrap() };
            }
            there.read(&self.own)
        })
    }

    /// One graph for lists of other lengths.
    fn replays(&mut self) {
        let case = Case { lens: vec![70], ..plain_case() };
        let built = build::<bf16>(&case);
        run_with(&case, &built, |queries, pool, pages, _, params| {
            let mut there = There::new(&self.device, &self.stream, &built.q, queries.q.shape());
            let (k, v) = (there.put(&built.k), there.put(&built.v));
            // SAFETY: as above.
            let pool = unsafe {
                KvPool::from_raw(k, v, DType::Bf16, *pool.layout(), pool.frames()).unwrap()
            };
            let queries = Queries { q: there.q(), ..*queries };
            let lists = pages.lens.len();
            let call = (&queries, &Listed::Pages(&pool, pages), params);
            let (out, lse2) = there.out();
            let most = Capacity { lists, items: 2 * pages.frames.len() };
            // SAFETY: all of it is the GPU's.
            let replay = unsafe { self.attention.capture(&self.own, call, &out, lse2, most) };
            let mut replay = replay.unwrap();
            for len in [70usize, 33, 0, 16, 70] {
                let own = len.div_ceil(case.page);
                let each = pages.indptr.windows(2);
                let frames: Vec<u32> =
                    each.flat_map(|w| &pages.frames[w[0] as usize..][..own]).copied().collect();
                let indptr: Vec<u32> = (0..=lists as u32).map(|i| i * own as u32).collect();
                let lens = vec![len as u32; lists];
                let shorter = PageLists { indptr: &indptr, frames: &frames, lens: &lens, ..*pages };
                let call = (&queries, &Listed::Pages(&pool, &shorter), params);
                let (out, _) = there.out();
                // SAFETY: as above.
                unsafe { replay.launch(&self.own, call, &out).unwrap() };
                let (o, lse) = there.read(&self.own);
                let case = Case { lens: vec![len], ..case.clone() };
                let expected = run_with(&case, &built, |queries, pool, _, _, params| {
                    let tokens = reference::page_tokens(pool, &shorter);
                    reference::attend(queries, pool, &tokens, case.per_head, params)
                });
                compare(&case, DType::Bf16, &o, &lse, &expected);
            }
            // More than it has room for, and another rule.
            let three = [pages.frames, pages.frames, pages.frames].concat();
            let indptr: Vec<u32> = pages.indptr.iter().map(|i| i * 3).collect();
            let lens = vec![(indptr[1] - 1) * case.page as u32 + 1; lists];
            let long = PageLists { indptr: &indptr, frames: &three, lens: &lens, ..*pages };
            let capped = Params { soft_cap: 3.0, ..*params };
            for (listed, params, found) in [
                (Listed::Pages(&pool, &long), params, "longer lists"),
                (Listed::Pages(&pool, pages), &capped, "another kernel, shape or rule"),
            ] {
                let (out, _) = there.out();
                let call = (&queries, &listed, params);
                // SAFETY: nothing is queued.
                let told = unsafe { replay.launch(&self.own, call, &out) }.unwrap_err();
                assert!(told.to_string().contains(found), "{told}");
            }
        });
    }

    fn run<T: Element>(&self, case: &Case, built: &Built<T>) -> (Vec<f32>, Vec<f32>) {
        run_with(case, built, |queries, pool, pages, slots, params| {
            let listed = match slots {
                Some(slots) => Listed::Slots(pool, slots),
                None => Listed::Pages(pool, pages),
            };
            let memory = Memory { q: &built.q, k: &built.k, v: &built.v };
            // It does few rows, too.
            let wide = T::DTYPE == DType::F32;
            let call = (queries, &listed, params);
            let mut trial = Trial::new(&self.device, &self.stream, call, memory, wide).unwrap();
            trial.poison().unwrap();
            trial.launch().unwrap();
            trial.read().unwrap()
        })
    }

    /// Tensors of any strides, as a walk over their elements finds them.
    fn reads(&self) {
        let numbers: Vec<u16> = (0..30_000).collect();
        let mut buffer = self.device.buffer(2 * numbers.len()).unwrap();
        let mut reader = Reader::new(Arc::clone(&self.device)).unwrap();
        let mut check = |first: usize, shape: &[usize], strides: &[i64]| {
            let address = buffer.address() + 2 * first as u64;
            let from = Strided { address, element_bytes: 2, shape, strides };
            let mut want = vec![first as i64];
            for (&n, &stride) in shape.iter().zip(strides) {
                let along = |&at: &i64| (0..n as i64).map(move |i| at + i * stride);
                want = want.iter().flat_map(along).collect();
            }
            let want: Vec<u16> = want.iter().map(|&at| numbers[at as usize]).collect();
            // What is queued before is done before.
            buffer.write(&self.stream, 0, &vec![0u16; numbers.len()]).unwrap();
            // SAFETY: the buffer and the numbers stay.
            unsafe {
                let bytes: &[u8] = bytemuck::cast_slice(&numbers);
                reader.stream().send(buffer.address(), bytes.as_ptr(), bytes.len()).unwrap();
                let mut got = vec![7u16; want.len()];
                reader.read(&from, bytemuck::cast_slice_mut(&mut got)).unwrap();
                assert!(got == want, "{first} {shape:?} {strides:?}");
            }
        };
        check(0, &[], &[]);
        check(8, &[4, 0, 8], &[64, 8, 1]);
        check(64, &[5, 4, 64], &[256, 64, 1]);
        // By the kernel: heads before tokens, gaps, backwards, over and over, three dimensions over rows.
        check(0, &[37, 4, 64], &[64, 37 * 64, 1]);
        check(8, &[9, 4, 32], &[256, 48, 1]);
        check(4096, &[9, 4, 32], &[-256, 48, 1]);
        check(0, &[3, 5, 16], &[0, 16, 1]);
        check(0, &[3, 4, 5, 16], &[4000, 1000, 24, 1]);
        // Row by row: rows of 10 bytes, between multiples of 16 bytes, and single elements.
        check(0, &[3, 4, 5], &[100, 20, 1]);
        check(1, &[3, 4, 8], &[64, 16, 1]);
        check(0, &[3, 4, 8], &[64, 16, 2]);
        // More than passes through pinned memory at once, and items that are longer.
        check(0, &[1100, 2, 1024], &[0, 2048, 1]);
        check(0, &[2, 2100, 1024], &[8, 0, 1]);
        let from = Strided { address: 0, element_bytes: 2, shape: &[3], strides: &[1] };
        // SAFETY: nothing is read.
        let told = unsafe { reader.read(&from, &mut [0; 5]) }.unwrap_err().to_string();
        assert_eq!(told, "tensor to copy: expected the 5 bytes to copy to, found [3] of 2 bytes");
        // SAFETY: the driver refuses what nobody has.
        let told = unsafe { reader.read(&from, &mut [0; 6]) }.unwrap_err().to_string();
        assert!(told.contains("the driver says"), "{told}");
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

fn plain_case() -> Case {
    let of_grid = cases(&SPECS[0]).into_iter().next().unwrap();
    Case { queries: vec![1], causal: false, window: 0, sinks: false, first_pos: 0, ..of_grid }
}

/// A call's memory on the GPU.
pub(crate) struct There<'a> {
    device: &'a Device,
    stream: &'a Stream,
    shape: [usize; 3],
    dtype: DType,
    pub(crate) kept: Vec<Buffer>,
}

impl<'a> There<'a> {
    /// With the queries, and room for outputs.
    pub(crate) fn new<T: Element>(
        device: &'a Device,
        stream: &'a Stream,
        q: &[T],
        shape: [usize; 3],
    ) -> There<'a> {
        let mut there = There { device, stream, shape, dtype: T::DTYPE, kept: Vec::new() };
        let numbers: usize = shape.iter().product();
        there.put(q);
        there.put(&vec![f32::NAN; numbers]);
        there.put(&vec![f32::NAN; shape[0] * shape[1]]);
        there
    }

    pub(crate) fn put<T: bytemuck::Pod>(&mut self, data: &[T]) -> *const u8 {
        self.kept.push(self.device.buffer_of(self.stream, data).unwrap());
        self.kept.last().unwrap().address() as *const u8
    }

    fn q(&self) -> Tensor3<'static> {
        let strides = [(self.shape[1] * self.shape[2]) as i64, self.shape[2] as i64];
        let q = self.kept[0].address() as *const u8;
        // SAFETY: nobody reads it on the host.
        unsafe { Tensor3::from_raw(q, self.dtype, self.shape, strides) }
    }

    fn out(&self) -> (Out<'static>, u64) {
        let strides = [(self.shape[1] * self.shape[2]) as i64, self.shape[2] as i64];
        let o = self.kept[1].address() as *mut u8;
        // SAFETY: nobody writes it on the host.
        let o = unsafe { Tensor3Mut::from_raw(o, DType::F32, self.shape, strides) };
        (Out { o, lse2: None }, self.kept[2].address())
    }

    pub(crate) fn read(&self, stream: &Stream) -> (Vec<f32>, Vec<f32>) {
        let mut o = vec![0f32; self.shape.iter().product()];
        let mut lse = vec![0f32; self.shape[0] * self.shape[1]];
        self.kept[1].read(stream, 0, &mut o).unwrap();
        self.kept[2].read(stream, 0, &mut lse).unwrap();
        (o, lse)
    }
}
