//! Clustering the keys of one KV head, and product quantisation: keys per second on one thread.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use half::bf16;
use kvist_bench::Rng;
use kvist_kernels::cluster::pq::{Codebook, PqQuery, PqSpec, score};
use kvist_kernels::cluster::{Head, KMeans, Rows, build};
use kvist_kernels::score::CellList;
use kvist_kernels::{Executor, Isa};

const DIM: usize = 128;
/// Tokens of a context; a segment is a quarter of it.
const TOKENS: usize = 32768;
/// Query heads of the group.
const GROUP: usize = 4;
/// Contexts that scores walk over: more codes than the second-level cache holds.
const CONTEXTS: usize = 256;

fn clusters(group: &mut BenchmarkGroup<WallTime>, keys: Rows) {
    let settings = [
        ("own settings", KMeans::default()),
        ("as RetroInfer", KMeans::retro_infer()),
        ("as ClusterKV", KMeans::cluster_kv()),
    ];
    group.throughput(Throughput::Elements(TOKENS as u64));
    for (name, settings) in settings {
        let mut levels = Isa::available();
        if name != "own settings" {
            levels.retain(|&isa| isa == Isa::level());
        }
        for isa in levels {
            group.bench_function(format!("{name}, {}", isa.name()), |b| {
                let heads = [Head { keys, values: None }];
                b.iter(|| build(&settings, &heads, isa, &Executor::inline()).expect("clusters"));
            });
        }
    }
}

fn pq(group: &mut BenchmarkGroup<WallTime>, keys: Rows, parts: usize, bits: u32) {
    let (isa, exec) = (Isa::level(), Executor::inline());
    let spec = PqSpec::new(DIM, parts, bits).expect("a spec");
    let name = |what: &str| format!("{what}, {parts} parts of {bits} bits");
    let book = Codebook::train(spec, &keys, 3, isa, &exec).expect("a codebook");
    let mut cells = vec![0u8; TOKENS / 64 * spec.cell_bytes()];
    group.throughput(Throughput::Elements(TOKENS as u64));
    group.bench_function(name("train 3 iterations"), |b| {
        b.iter(|| Codebook::train(spec, &keys, 3, isa, &exec).expect("a codebook"));
    });
    group.bench_function(name("encode"), |b| {
        b.iter(|| book.encode(&keys, 0, &mut cells, isa, &exec).expect("cells that fit"));
    });
    let all: Vec<u8> = (0..CONTEXTS).flat_map(|_| cells.iter().copied()).collect();
    let ids: Vec<u32> = (0..(CONTEXTS * TOKENS / 64) as u32).collect();
    let list = CellList::from_slice(&all, spec.cell_bytes(), &ids).expect("cells that exist");
    let mut out = vec![0f32; GROUP * TOKENS];
    let q = Rng::new(6).normals(GROUP * DIM);
    for isa in Isa::available() {
        let mut context = 0;
        group.bench_function(format!("{}, {}", name("score"), isa.name()), |b| {
            b.iter(|| {
                let from = context * TOKENS / 64;
                context = (context + 1) % CONTEXTS;
                let query = PqQuery::new(isa, &book, &q, GROUP);
                score(&query, &list.slice(from, from + TOKENS / 64), &mut out);
            });
        });
    }
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let numbers = Rng::new(5).normals(TOKENS * DIM);
    let numbers: Vec<bf16> = numbers.into_iter().map(bf16::from_f32).collect();
    let mut ptrs = Vec::new();
    let keys = Rows::contiguous(&numbers, DIM, &mut ptrs).expect("whole rows");
    let mut group = c.benchmark_group("cluster");
    clusters(&mut group, keys);
    group.finish();
    let mut group = c.benchmark_group("pq");
    for (parts, bits) in [(2, 6), (32, 4), (16, 8)] {
        pq(&mut group, keys, parts, bits);
    }
    group.finish();
    c.final_summary();
}
