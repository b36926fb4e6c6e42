//! The whole way of calls of many rows and of draft trees, as `device.rs` has that of few rows.

use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;
use std::sync::Arc;

use half::{bf16, f16};
use kvist_kernels::attend::{DraftKeys, Listed, Trees};
use kvist_kernels::cuda::work::{AttendSpec, PrefillSpec, TreeSpec};
use kvist_kernels::cuda::{ATTEND_TREE, Cache, Compiler, Device, Memory, Stream, Trial};
use kvist_kernels::reference::{self, Attended};
use kvist_kernels::{DType, Element, KvPool, Tensor3};
use tempfile::TempDir;

use crate::attend::compare;
use crate::common::{Built, Case, Random, base, build, run_with};
use crate::gpu::{self, Played};
use crate::{prefill, tree};

/// Names the folder of images in the process that has the driver.
pub(crate) const CHILD: &str = "KVIST_EMU_CALLS";
const SPECS: [PrefillSpec; 3] = [
    PrefillSpec { dim: 64, dtype: DType::Bf16, blocks: false, wgmma: false },
    PrefillSpec { dim: 64, dtype: DType::Bf16, blocks: true, wgmma: true },
    PrefillSpec { dim: 80, dtype: DType::F16, blocks: true, wgmma: false },
];

fn tree(spec: &TreeSpec) -> Played {
    ("attend_tree.cu", spec.macros(), ATTEND_TREE.with(spec.macros()))
}

/// All kernels of many rows and of trees.
pub(crate) fn all() -> Vec<Played> {
    let prefills = PrefillSpec::all().chain(PrefillSpec::hopper()).map(|spec| gpu::many(&spec));
    prefills.chain(TreeSpec::all().map(|spec| tree(&spec))).collect()
}

/// Those of the tests: trees of few rows have their context attended to by the kernel of few rows.
fn kernels() -> Vec<Played> {
    let few = AttendSpec { dim: 64, dtype: DType::Bf16, slots: false, wide: false };
    let own = tree(&TreeSpec { dim: 64, dtype: DType::Bf16 });
    SPECS.iter().map(gpu::many).chain([gpu::few(&few), own]).chain(gpu::plain()).collect()
}

/// Runs [`child`] where the only driver is the one that is played.
pub(crate) fn tall() {
    let folder = TempDir::new().unwrap();
    gpu::make(folder.path(), &kernels());
    let output = Command::new(std::env::current_exe().unwrap())
        .env("LD_LIBRARY_PATH", folder.path())
        .env("FAKE_EMULATE", "1")
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("16 calls"), "{text}");
}

/// In the process that has the driver.
pub(crate) fn child(folder: &Path) {
    let compiler = Compiler::new(Cache::new(None, 0), vec![folder.to_owned()]);
    let device = Device::open(0, Arc::new(compiler)).unwrap();
    // SAFETY: the default stream is always there.
    let stream = unsafe { device.stream(null_mut()) };
    let gpu = Gpu { device, stream };
    let mut calls = 0;
    for spec in &SPECS {
        for (case, lists) in prefill::cases(spec) {
            match spec.dtype {
                DType::F16 => gpu.check::<f16>(&case, lists.as_ref(), spec.wgmma),
                _ => gpu.check::<bf16>(&case, lists.as_ref(), spec.wgmma),
            }
            calls += 1;
        }
    }
    let few = Case { lens: vec![70, 0], queries: vec![6, 2], group: 2, ..base() };
    let many = Case { lens: vec![70, 9], queries: vec![20, 64], group: 4, ..few.clone() };
    gpu.check_tree(&Case { sinks: true, ..few });
    gpu.check_tree(&Case { window: 30, soft_cap: 10.0, ..many });
    println!("{} calls", calls + 2);
}

struct Gpu {
    device: Device,
    stream: Stream,
}

impl Gpu {
    fn check<T: Element>(&self, case: &Case, lists: Option<&prefill::Lists>, wgmma: bool) {
        let built = build::<T>(case);
        let (o, lse) = run_with(case, &built, |queries, pool, pages, _, params| {
            let memory = Memory { q: &built.q, k: &built.k, v: &built.v };
            let call = (queries, (pool, pages), params);
            let blocks = lists.map(prefill::Lists::view);
            let trial =
                Trial::prefill(&self.device, &self.stream, call, (blocks.as_ref(), wgmma), memory);
            results(trial.unwrap())
        });
        compare(case, T::DTYPE, &o, &lse, &prefill::expected(case, &built, lists));
    }

    /// A context, and nodes that are rows of two tensors.
    fn check_tree(&self, case: &Case) {
        let (built, parents) = (build::<bf16>(case), tree::parents(case));
        let shape = [case.queries.iter().sum(), case.kv_heads, case.dim_k];
        let mut random = Random(case.seed + 5);
        let mut rows = || -> Vec<bf16> {
            let n = shape.iter().product();
            std::iter::repeat_with(|| bf16::from_f32(random.normal())).take(n).collect()
        };
        let (k, v) = (rows(), rows());
        let view = |x| Tensor3::contiguous(x, shape).unwrap();
        let (keys, values) = (view(&k), view(&v));
        let trees = Trees::new(&built.q_indptr, &parents).unwrap();
        let (o, lse) = run_with(case, &built, |queries, pool, pages, _, params| {
            let call = (queries, &Listed::Pages(pool, pages), params);
            let memory = (Memory { q: &built.q, k: &built.k, v: &built.v }, (&k[..], &v[..]));
            let keys = DraftKeys::Rows { k: keys, v: values };
            results(Trial::tree(&self.device, &self.stream, call, (&trees, &keys), memory).unwrap())
        });
        let nodes = KvPool::from_rows(&keys, &values).unwrap();
        compare(case, DType::Bf16, &o, &lse, &expected(case, &built, &nodes, &parents));
    }
}

fn results(mut trial: Trial) -> (Vec<f32>, Vec<f32>) {
    trial.poison().unwrap();
    trial.launch().unwrap();
    trial.read().unwrap()
}

fn expected(case: &Case, built: &Built<bf16>, nodes: &KvPool, parents: &[u32]) -> Attended {
    run_with(case, built, |queries, pool, pages, _, params| {
        let tokens = reference::page_tokens(pool, pages);
        let row = |i: u32| (0, i as usize, 0);
        let of = |w: &[u32]| (w[0]..w[1]).map(row).collect();
        let own: Vec<Vec<_>> = built.q_indptr.windows(2).map(of).collect();
        let context = (pool, &tokens[..], case.per_head);
        reference::attend_tree(queries, context, (nodes, &own, false), parents, params)
    })
}
