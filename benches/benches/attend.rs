//! Attention: a decode step over pages and over single slots, a chunk of prefill, a merge.

use criterion::{Criterion, Throughput};
use kvist_bench::{Frames, KvData, Rng, Shape};
use kvist_kernels::attend::{self, Out, Params, Queries};
use kvist_kernels::{DType, Executor, SlotLists, Tensor3, Tensor3Mut};

const SHAPE: Shape = Shape { q_heads: 32, kv_heads: 8, head_dim: 128 };
const CONTEXT: usize = 4096;
/// One token of so many is listed as a slot.
const SPARSITY: usize = 8;
/// Query tokens of a prefill chunk.
const CHUNK: usize = 64;
/// Partial results that are merged.
const PARTS: usize = 8;

/// Queries and room for their output.
struct Step {
    rows: usize,
    q: Vec<f32>,
    o: Vec<f32>,
    params: Params<'static>,
}

impl Step {
    fn new(rows: usize) -> Step {
        let q = Rng::new(3).normals(rows * SHAPE.q_heads * SHAPE.head_dim);
        let params = Params::new(1.0 / (SHAPE.head_dim as f32).sqrt());
        Step { rows, o: vec![0.0; q.len()], q, params }
    }

    /// Calls a kernel with the queries of one sequence, at the end of its context.
    fn run(&mut self, kernel: impl FnOnce(&Queries, &Params, &mut Out)) {
        let shape = [self.rows, SHAPE.q_heads, SHAPE.head_dim];
        let positions: Vec<u32> = (CONTEXT - self.rows..CONTEXT).map(|p| p as u32).collect();
        let q = Tensor3::contiguous(&self.q, shape).expect("whole rows");
        let indptr = [0, self.rows as u32];
        let queries = Queries { q, indptr: &indptr, positions: Some(&positions) };
        let o = Tensor3Mut::contiguous(&mut self.o, shape).expect("whole rows");
        kernel(&queries, &self.params, &mut Out { o, lse2: None });
    }
}

fn data(dtype: DType) -> KvData {
    KvData::random(SHAPE, CONTEXT, dtype).expect("memory for one context per layer")
}

fn pages(c: &mut Criterion) {
    let mut group = c.benchmark_group("attend pages");
    for dtype in [DType::Bf16, DType::F32] {
        let data = data(dtype);
        let (pool, lists) = (data.pool().expect("a pool"), data.lists(Frames::Contiguous));
        let (mut step, mut layer) = (Step::new(1), 0);
        group.throughput(Throughput::Bytes(data.layer_bytes() as u64));
        group.bench_function(dtype.name(), |b| {
            b.iter(|| {
                // The next layer: what the last step read is still in the caches.
                layer = (layer + 1) % lists.len();
                step.run(|queries, params, out| {
                    let exec = Executor::inline();
                    attend::pages(queries, &pool, &lists[layer].view(), params, &exec, out)
                        .expect("lists of the pool");
                });
            });
        });
    }
}

fn slots(c: &mut Criterion) {
    let mut group = c.benchmark_group("attend slots");
    let data = data(DType::Bf16);
    let pool = data.pool().expect("a pool");
    let listed = CONTEXT / SPARSITY;
    let mut rng = Rng::new(4);
    // Frames of a layer and head lie side by side, so its slots do too.
    let layers: Vec<Vec<u32>> = (0..data.layers())
        .map(|layer| {
            let first = |head: usize| ((layer * SHAPE.kv_heads + head) * CONTEXT) as u32;
            let head = |head| rng.choose(CONTEXT, listed).into_iter().map(move |t| first(head) + t);
            (0..SHAPE.kv_heads).flat_map(head).collect()
        })
        .collect();
    let indptr: Vec<u32> = (0..=SHAPE.kv_heads).map(|h| (h * listed) as u32).collect();
    let (mut step, mut layer) = (Step::new(1), 0);
    group.throughput(Throughput::Bytes((data.layer_bytes() / SPARSITY) as u64));
    group.bench_function("bf16, 1 of 8", |b| {
        b.iter(|| {
            layer = (layer + 1) % layers.len();
            let slots = &layers[layer];
            let lists = SlotLists { indptr: &indptr, slots, positions: None, per_head: true };
            step.run(|queries, params, out| {
                attend::slots(queries, &pool, &lists, params, &Executor::inline(), out)
                    .expect("slots of the pool");
            });
        });
    });
}

fn prefill(c: &mut Criterion) {
    let mut group = c.benchmark_group("attend prefill");
    let data = data(DType::Bf16);
    let (pool, lists) = (data.pool().expect("a pool"), data.lists(Frames::Contiguous));
    let mut step = Step::new(CHUNK);
    group.sample_size(10);
    group.throughput(Throughput::Elements(CHUNK as u64));
    group.bench_function("bf16, 64 queries", |b| {
        b.iter(|| {
            step.run(|queries, params, out| {
                let exec = Executor::inline();
                attend::prefill(queries, &pool, &lists[0].view(), params, &exec, out)
                    .expect("lists of the pool");
            });
        });
    });
}

fn merge(c: &mut Criterion) {
    let mut group = c.benchmark_group("attend merge");
    let (mut step, mut rng) = (Step::new(1), Rng::new(5));
    let parts: Vec<(Vec<f32>, Vec<f32>)> =
        (0..PARTS).map(|_| (rng.normals(step.q.len()), rng.normals(SHAPE.q_heads))).collect();
    let shape = [1, SHAPE.q_heads, SHAPE.head_dim];
    let views: Vec<(Tensor3, &[f32])> = parts
        .iter()
        .map(|(o, lse)| (Tensor3::contiguous(o, shape).expect("whole rows"), &lse[..]))
        .collect();
    group.throughput(Throughput::Bytes((PARTS * step.q.len() * DType::F32.size()) as u64));
    group.bench_function("8 parts", |b| {
        b.iter(|| {
            step.run(|_, _, out| attend::merge(&views, out).expect("parts of one shape"));
        });
    });
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    pages(&mut c);
    slots(&mut c);
    prefill(&mut c);
    merge(&mut c);
    c.final_summary();
}
