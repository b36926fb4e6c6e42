//! Appending rows to pages, and building and updating the summaries of their keys.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use kvist_bench::Arena;
use kvist_kernels::summary::{self, BoxedSpec, TILE, UnitKind, UnitSpec};
use kvist_kernels::{DType, Tensor3, write};

const DIM: usize = 128;
const KV_HEADS: usize = 8;
const ROW_BYTES: usize = DIM * 2;
/// Tokens whose keys are walked over: 256 MiB, more than the caches hold.
const TOKENS: usize = 1 << 17;

/// One head's rows of `[token][head][dim]`, as an engine hands them over, to pages of 64 tokens.
fn append(c: &mut Criterion, keys: &Arena) {
    let mut group = c.benchmark_group("write");
    let data: &[half::bf16] = cast(keys.bytes());
    let src = Tensor3::contiguous(&data[..TOKENS * KV_HEADS * DIM], [TOKENS, KV_HEADS, DIM])
        .expect("whole rows");
    let mut page = vec![0u8; TILE * ROW_BYTES];
    let mut at = 0;
    group.throughput(Throughput::Bytes(page.len() as u64));
    group.bench_function("append, 64 rows of 8 heads", |b| {
        b.iter(|| {
            at = (at + TILE) % TOKENS;
            write::append(&src, at / TILE % KV_HEADS, at..at + TILE, DType::Bf16, &mut page)
                .expect("rows of the source");
        });
    });
}

fn cast(bytes: &[u8]) -> &[half::bf16] {
    // SAFETY: the arena is aligned to 2 MiB and any two bytes are a bf16.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 2) }
}

/// The next tile's key rows, walking over all keys.
struct Walk<'a> {
    keys: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    fn rows(&mut self) -> [*const u8; TILE] {
        let tile = TILE * ROW_BYTES;
        self.at = if self.at + 2 * tile > self.keys.len() { 0 } else { self.at + tile };
        std::array::from_fn(|t| self.keys[self.at + t * ROW_BYTES..].as_ptr())
    }
}

fn build(group: &mut BenchmarkGroup<WallTime>, keys: &Arena) {
    group.throughput(Throughput::Bytes((TILE * ROW_BYTES) as u64));
    for planes in 2..=4 {
        let spec = BoxedSpec::new(DIM, planes).expect("planes");
        let (mut walk, mut cell) =
            (Walk { keys: keys.bytes(), at: 0 }, vec![0u8; spec.cell_bytes()]);
        group.bench_function(format!("build, boxed {planes} planes"), |b| {
            b.iter(|| {
                // SAFETY: every pointer starts a whole row of keys.
                unsafe { summary::build_boxed(&spec, DType::Bf16, &walk.rows(), &mut cell) }
            });
        });
    }
    for (name, kind) in
        [("box", UnitKind::Box), ("mean", UnitKind::Mean), ("moment2", UnitKind::Moment2)]
    {
        let spec = UnitSpec::new(kind, DIM, DType::Bf16, 16).expect("a unit");
        let (mut walk, mut cell) =
            (Walk { keys: keys.bytes(), at: 0 }, vec![0u8; spec.cell_bytes()]);
        group.bench_function(format!("build, {name}"), |b| {
            b.iter(|| {
                // SAFETY: every pointer starts a whole row of keys.
                unsafe { summary::build_units(&spec, &walk.rows(), &mut cell) }
            });
        });
    }
}

/// One decoded token joins the unit that it falls into.
fn update(group: &mut BenchmarkGroup<WallTime>, keys: &Arena) {
    group.throughput(Throughput::Bytes(ROW_BYTES as u64));
    let spec = UnitSpec::new(UnitKind::Box, DIM, DType::Bf16, 16).expect("a unit");
    let (mut walk, mut cell) = (Walk { keys: keys.bytes(), at: 0 }, vec![0u8; spec.cell_bytes()]);
    let rows = walk.rows();
    let mut have = 0;
    group.bench_function("update, box", |b| {
        b.iter(|| {
            // SAFETY: the pointer starts a whole row of keys.
            unsafe { summary::update_unit(&spec, &mut cell, 0, have, &rows[have..=have]) }
            have = (have + 1) % spec.unit_tokens();
        });
    });
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let keys = Arena::random(TOKENS * KV_HEADS * ROW_BYTES, DType::Bf16, 5).expect("memory");
    append(&mut c, &keys);
    let mut group = c.benchmark_group("summary");
    build(&mut group, &keys);
    update(&mut group, &keys);
    group.finish();
    c.final_summary();
}
