//! Scores of summaries for one KV head and its query group: bytes of summary read per second.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use kvist_bench::{Arena, Rng};
use kvist_kernels::score::{self, BoxedQuery, CellList, UnitQuery};
use kvist_kernels::summary::{self, BoxedSpec, TILE, UnitKind, UnitSpec};
use kvist_kernels::{DType, Isa};

const DIM: usize = 128;
/// Query heads of the group.
const GROUP: usize = 4;
/// Tiles of the context: 32768 tokens.
const TILES: usize = 512;
/// Contexts are scored in turn over at least so many bytes: more than the caches hold.
const BYTES_MIN: usize = 256 << 20;

/// Cells of random keys, and their numbers.
struct Cells {
    arena: Arena,
    cell_bytes: usize,
    ids: Vec<u32>,
    contexts: usize,
    next: usize,
}

impl Cells {
    fn new(cell_bytes: usize, build: impl Fn(&[*const u8], &mut [u8])) -> Cells {
        let keys = Arena::random(TILES * TILE * DIM * 2, DType::Bf16, 5).expect("memory for keys");
        let context = TILES * cell_bytes;
        let contexts = BYTES_MIN.div_ceil(context);
        let mut arena = Arena::new(contexts * context).expect("memory for cells");
        for (i, cell) in arena.bytes_mut()[..context].chunks_exact_mut(cell_bytes).enumerate() {
            let row = |t| keys.bytes()[(i * TILE + t) * DIM * 2..].as_ptr();
            build(&(0..TILE).map(row).collect::<Vec<_>>(), cell);
        }
        // The other contexts say the same: building is not what is measured.
        (1..contexts).for_each(|i| arena.bytes_mut().copy_within(..context, i * context));
        let ids = (0..(contexts * TILES) as u32).collect();
        Cells { arena, cell_bytes, ids, contexts, next: 0 }
    }

    fn boxed(spec: BoxedSpec) -> Cells {
        Cells::new(spec.cell_bytes(), |rows, cell| {
            // SAFETY: every pointer starts a whole row of keys.
            unsafe { summary::build_boxed(&spec, DType::Bf16, rows, cell) }
        })
    }

    fn units(spec: UnitSpec) -> Cells {
        Cells::new(spec.cell_bytes(), |rows, cell| {
            // SAFETY: every pointer starts a whole row of keys.
            unsafe { summary::build_units(&spec, rows, cell) }
        })
    }

    /// The cells of the next context.
    fn context(&mut self) -> CellList<'_> {
        self.next = (self.next + 1) % self.contexts;
        let ids = &self.ids[self.next * TILES..][..TILES];
        CellList::from_slice(self.arena.bytes(), self.cell_bytes, ids).expect("cells that exist")
    }
}

fn query() -> Vec<f32> {
    Rng::new(6).normals(GROUP * DIM)
}

fn units(group: &mut BenchmarkGroup<WallTime>, name: &str, kind: UnitKind) {
    let spec = UnitSpec::new(kind, DIM, DType::Bf16, 16).expect("a unit");
    let mut cells = Cells::units(spec);
    let query = UnitQuery::new(Isa::level(), spec, &query(), GROUP, 0.1, false);
    let mut out = vec![0f32; GROUP * TILES * spec.units()];
    group.throughput(Throughput::Bytes((TILES * spec.cell_bytes()) as u64));
    group.bench_function(name, |b| {
        b.iter(|| score::units(&query, &cells.context(), &mut out));
    });
}

fn boxed(group: &mut BenchmarkGroup<WallTime>, planes: u32) {
    let spec = BoxedSpec::new(DIM, planes).expect("planes");
    let mut cells = Cells::boxed(spec);
    let query = BoxedQuery::new(Isa::level(), spec, &query(), GROUP);
    let (mut out, mut sigma) = (vec![0f32; GROUP * TILES * TILE], vec![0f32; TILES]);
    group.throughput(Throughput::Bytes((TILES * spec.bytes_read(planes)) as u64));
    group.bench_function(format!("boxed, {planes} planes"), |b| {
        b.iter(|| {
            score::boxed(&query, &cells.context(), planes, &mut out, None, Some(&mut sigma));
        });
    });
}

/// The fourth plane of every fourth tile.
fn refine(group: &mut BenchmarkGroup<WallTime>) {
    let spec = BoxedSpec::new(DIM, 4).expect("planes");
    let mut cells = Cells::boxed(spec);
    let query = BoxedQuery::new(Isa::level(), spec, &query(), GROUP);
    let (mut out, mut sigma) = (vec![0f32; GROUP * TILES * TILE], vec![0f32; TILES]);
    let tiles: Vec<u32> = (0..TILES as u32).step_by(4).collect();
    group.throughput(Throughput::Bytes(
        (tiles.len() * (spec.box_bytes() + spec.plane_bytes())) as u64,
    ));
    group.bench_function("refine, plane 4", |b| {
        b.iter(|| {
            let cells = cells.context();
            score::refine(&query, &cells, &tiles, 4, &mut out, None, Some(&mut sigma));
        });
    });
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut group = c.benchmark_group("score");
    units(&mut group, "box bound (quest)", UnitKind::Box);
    units(&mut group, "mean", UnitKind::Mean);
    units(&mut group, "moment2", UnitKind::Moment2);
    for planes in 2..=4 {
        boxed(&mut group, planes);
    }
    refine(&mut group);
    group.finish();
    c.final_summary();
}
