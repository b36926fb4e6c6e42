//! Encoding and decoding tiles of K and V, by element type and instruction set. `KVIST_DUMP=FILE` takes
//! real numbers (`python -m kvist dump`); else they are normal.

use criterion::{Criterion, Throughput};
use kvist_bench::{Rng, dump_values};
use kvist_kernels::entropy::Expw;
use kvist_kernels::{DType, Isa};

const TOKENS: usize = 64;
/// Tiles walked over: what comes out of decoding fits the second-level cache.
const TILES: usize = 24;

/// Rows of the first head, and their length.
fn rows() -> (Vec<f32>, usize) {
    match std::env::var_os("KVIST_DUMP") {
        Some(path) => dump_values(path.as_ref(), TILES * TOKENS).expect("a dump"),
        None => (Rng::new(3).normals(TILES * TOKENS * 128), 128),
    }
}

fn bytes(dtype: DType, rows: &[f32]) -> Vec<u8> {
    let narrow = |x: &f32| match dtype {
        DType::F32 => x.to_ne_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(*x).to_ne_bytes().to_vec(),
        DType::Bf16 => half::bf16::from_f32(*x).to_ne_bytes().to_vec(),
    };
    rows.iter().flat_map(narrow).collect()
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut group = c.benchmark_group("entropy");
    let (rows, dim) = rows();
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        let plan = Expw::new(dtype, TOKENS, dim).expect("a shape");
        let tiles = bytes(dtype, &rows);
        let tiles: Vec<&[u8]> = tiles.chunks_exact(plan.decoded_len()).collect();
        let (mut out, mut tile) = (vec![0u8; plan.max_encoded()], vec![0u8; plan.decoded_len()]);
        let coded: Vec<Vec<u8>> = tiles
            .iter()
            .filter_map(|t| plan.encode(Isa::level(), t, &mut out).map(|n| out[..n].to_vec()))
            .collect();
        group.throughput(Throughput::Bytes(plan.decoded_len() as u64));
        for isa in Isa::available() {
            let mut next = (0..tiles.len()).cycle();
            group.bench_function(format!("encode, {dtype}, {}", isa.name()), |b| {
                b.iter(|| plan.encode(isa, tiles[next.next().unwrap_or(0)], &mut out));
            });
            let mut next = (0..coded.len()).cycle();
            group.bench_function(format!("decode, {dtype}, {}", isa.name()), |b| {
                b.iter(|| plan.decode(isa, &coded[next.next().unwrap_or(0)], &mut tile));
            });
        }
    }
    group.finish();
    c.final_summary();
}
