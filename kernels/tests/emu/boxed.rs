//! Boxed codes: against the CPU's kernel over the same bytes, and against the keys.

use kvist_kernels::cuda::params::{BoxedParams, type_code};
use kvist_kernels::cuda::work::{BoxedScoreSpec, ScoreSpec, Work};
use kvist_kernels::score::{self, BoxedQuery, CellList};
use kvist_kernels::summary::{BoxedSpec, TILE};
use kvist_kernels::{DType, Isa};

use crate::keys::{Keys, Rng, queries};
use crate::machine::{Fault, Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::toolchain;

const WORKERS: usize = 3;
/// What lies where nothing is written.
const UNTOUCHED: f32 = 7.0;

struct Shape {
    dim: usize,
    stored: u32,
    kv_heads: usize,
    group: usize,
    /// Cells and query rows of each sequence.
    lists: &'static [(usize, usize)],
}

/// Keys of every KV head, their cells, and lists of them in another order; 0xff between the cells.
struct Case {
    shape: Shape,
    spec: BoxedSpec,
    keys: Vec<Keys>,
    cells: Vec<u8>,
    /// Bytes from a head's cell to the next's, and from a cell to the next.
    strides: [usize; 2],
    indptr: Vec<u32>,
    items: Vec<u32>,
    q_indptr: Vec<u32>,
    q: Vec<f32>,
}

fn build(shape: Shape) -> Case {
    let mut rng = Rng(shape.dim as u64);
    let tiles: usize = shape.lists.iter().map(|l| l.0).sum();
    let keys = (0..shape.kv_heads)
        .map(|head| Keys::random(&mut rng, DType::ALL[head % 3], shape.dim, tiles + 1))
        .collect();
    of_keys(shape, keys, &mut rng)
}

fn of_keys(shape: Shape, keys: Vec<Keys>, rng: &mut Rng) -> Case {
    let spec = BoxedSpec::new(shape.dim, shape.stored).unwrap();
    let tiles = keys[0].tiles();
    let head_stride = spec.cell_bytes() + 16;
    let strides = [head_stride, shape.kv_heads * head_stride + 32];
    let mut cells = vec![0xffu8; tiles * strides[1]];
    for (head, keys) in keys.iter().enumerate() {
        for (tile, cell) in keys.boxed(Isa::level(), &spec).chunks(spec.cell_bytes()).enumerate() {
            cells[tile * strides[1] + head * strides[0]..][..cell.len()].copy_from_slice(cell);
        }
    }
    let mut order: Vec<u32> = (0..tiles as u32).collect();
    (1..tiles).rev().for_each(|i| order.swap(i, rng.bits() as usize % (i + 1)));
    let (mut indptr, mut q_indptr) = (vec![0u32], vec![0u32]);
    for &(tiles, rows) in shape.lists {
        indptr.push(indptr[indptr.len() - 1] + tiles as u32);
        q_indptr.push(q_indptr[q_indptr.len() - 1] + rows as u32);
    }
    order.truncate(indptr[shape.lists.len()] as usize);
    let rows = q_indptr[shape.lists.len()] as usize;
    let q = queries(rng, rows * shape.kv_heads * shape.group, shape.dim);
    Case { shape, spec, keys, cells, strides, indptr, items: order, q_indptr, q }
}

#[derive(Clone, PartialEq)]
struct Scores {
    /// `[q rows][q heads][width * 64 + 2]`
    est: Vec<f32>,
    /// `[q rows][q heads][width]`
    bounds: Vec<f32>,
    /// `[q rows][kv heads][width]`
    sigma: Vec<f32>,
    width: usize,
}

fn compile(spec: &BoxedScoreSpec) -> Kernels {
    Kernels::sized("boxed.cu", &spec.macros(), spec.shared_bytes())
}

fn run(
    kernels: &Kernels,
    case: &Case,
    planes: usize,
    stats: bool,
    (schedule, left_out): (Schedule, u32),
) -> (Scores, Report) {
    let Shape { dim, kv_heads, group, .. } = case.shape;
    let spec = BoxedScoreSpec { dim, planes };
    let units = Work::units(&case.q_indptr, (kv_heads, group), ScoreSpec::rows(group), |s, _| s);
    let tiles = |unit: &kvist_kernels::cuda::params::Unit| {
        let list = unit.list as usize;
        0..case.indptr[list + 1] - case.indptr[list]
    };
    let work = Work::cut(units, tiles, WORKERS);
    let rows = case.q_indptr[case.shape.lists.len()] as usize;
    let width = case.shape.lists.iter().map(|l| l.0).max().unwrap() + 1;
    let est_row = width * TILE + 2;
    let mut est = vec![UNTOUCHED; rows * kv_heads * group * est_row];
    let mut bounds = vec![UNTOUCHED; rows * kv_heads * group * width];
    let mut sigma = vec![UNTOUCHED; rows * kv_heads * width];
    let params = BoxedParams {
        q: case.q.as_ptr() as u64,
        cells: case.cells.as_ptr() as u64,
        est: est.as_ptr() as u64,
        bounds: if stats { bounds.as_ptr() as u64 } else { 0 },
        sigma: if stats { sigma.as_ptr() as u64 } else { 0 },
        units: work.units.as_ptr() as u64,
        segments: work.segments.as_ptr() as u64,
        workers: work.workers.as_ptr() as u64,
        indptr: case.indptr.as_ptr() as u64,
        items: case.items.as_ptr() as u64,
        q_row: (kv_heads * group * dim) as i64,
        q_head: dim as i64,
        cell: case.strides[1] as i64,
        cell_head: case.strides[0] as i64,
        est_row: est_row as i64,
        bounds_row: width as i64,
        group: group as u32,
        kv_heads: kv_heads as u32,
        types: type_code(DType::F32),
        zero: 0,
    };
    let memory = [
        Memory::read(&case.q),
        Memory::read(&case.cells),
        Memory::read(&work.units),
        Memory::read(&work.segments),
        Memory::read(&work.workers),
        Memory::read(&case.indptr),
        Memory::read(&case.items),
        Memory::write(&mut est),
        Memory::write(&mut bounds),
        Memory::write(&mut sigma),
    ];
    let blocks = work.workers.len() - 1;
    let grid = Grid { blocks, shared_bytes: spec.shared_bytes(), schedule, left_out };
    let report = kernels.run("score_boxed", &params, grid, &memory);
    (Scores { est, bounds, sigma, width }, report)
}

fn near(a: f32, b: f32, tolerance: f32) -> bool {
    let close = tolerance.is_finite() && (a - b).abs() <= tolerance;
    close || a == b || (a.is_nan() && b.is_nan())
}

/// Against the CPU's plain kernel, and estimates against the keys within the reported bounds.
fn compare(case: &Case, planes: usize, got: &Scores) {
    let Shape { dim, kv_heads, group, lists, .. } = case.shape;
    for (sequence, rows) in case.q_indptr.windows(2).enumerate() {
        let (first, n) = (case.indptr[sequence] as usize, lists[sequence].0);
        for row in rows[0] as usize..rows[1] as usize {
            for (head, keys) in case.keys.iter().enumerate() {
                let ids = &case.items[first..first + n];
                let q_row = (row * kv_heads + head) * group;
                let q = &case.q[q_row * dim..][..group * dim];
                let cells = keys.boxed(Isa::level(), &case.spec);
                let query = BoxedQuery::new(Isa::Generic, case.spec, q, group);
                let list = CellList::from_slice(&cells, case.spec.cell_bytes(), ids).unwrap();
                let (mut est, mut bounds) = (vec![0f32; group * n * TILE], vec![0f32; group * n]);
                let (mut sigma, planes) = (vec![0f32; n], planes as u32);
                let stats = (Some(&mut bounds[..]), Some(&mut sigma[..]));
                score::boxed(&query, &list, planes, &mut est, stats.0, stats.1);
                for g in 0..group {
                    let own = &got.est[(q_row + g) * (got.width * TILE + 2)..];
                    let errors = &got.bounds[(q_row + g) * got.width..];
                    for (tile, &id) in ids.iter().enumerate() {
                        let (error, want) = (errors[tile], bounds[g * n + tile]);
                        assert!(near(error, want, 1e-5 * want), "bound: {error}, {want}");
                        for t in 0..TILE {
                            let (x, want) = (own[tile * TILE + t], est[(g * n + tile) * TILE + t]);
                            // Two f32 sums of the same numbers, both within what the bounds allow for.
                            assert!(
                                near(x, want, 2e-4 * error),
                                "row {row}, tile {tile}: {x}, {want}"
                            );
                            let exact = keys.dot(&q[g * dim..][..dim], id as usize * TILE + t);
                            let off = (f64::from(x) - exact).abs();
                            let open = x.is_nan() && error == f32::INFINITY;
                            assert!(open || off <= f64::from(error), "{off} > {error}");
                        }
                    }
                    assert!(own[n * TILE..][..TILE].iter().all(|&x| x == UNTOUCHED));
                    assert!(errors[n] == UNTOUCHED);
                }
                let own = &got.sigma[(row * kv_heads + head) * got.width..];
                for (&x, &want) in own.iter().zip(&sigma) {
                    assert!(near(x, want, 1e-5 * want), "sigma: {x}, {want}");
                }
            }
        }
    }
}

/// Under every schedule: no fault, the CPU's numbers, the same bits; statistics change no estimate.
fn check(case: &Case, planes: usize) {
    let kernels = compile(&BoxedScoreSpec { dim: case.shape.dim, planes });
    let mut first: Option<Vec<u32>> = None;
    for schedule in SCHEDULES {
        let (got, report) = run(&kernels, case, planes, true, (schedule, 0));
        report.expect_clean(&(schedule, planes));
        compare(case, planes, &got);
        let all = got.est.iter().chain(&got.bounds).chain(&got.sigma);
        let bits: Vec<u32> = all.map(|x| x.to_bits()).collect();
        assert!(first.get_or_insert_with(|| bits.clone()) == &bits, "{schedule:?}");
    }
    let (alone, report) = run(&kernels, case, planes, false, (SCHEDULES[0], 0));
    report.expect_clean(&planes);
    let (whole, _) = run(&kernels, case, planes, true, (SCHEDULES[0], 0));
    let same = alone.est.iter().zip(&whole.est).all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(same && alone.bounds.iter().all(|&x| x == UNTOUCHED));
}

const LISTS: &[(usize, usize)] = &[(0, 1), (1, 1), (9, 1), (0, 0), (5, 2)];

/// Every number of planes, of cells that have as many and of cells that have more.
pub(crate) fn grid() {
    let shape = |dim, stored, kv_heads, group| Shape { dim, stored, kv_heads, group, lists: LISTS };
    check(&build(shape(128, 3, 2, 4)), 3);
    check(&build(shape(64, 4, 1, 7)), 4);
    check(&build(shape(64, 4, 1, 1)), 2);
    check(&build(shape(80, 3, 1, 3)), 2);
    check(&build(shape(96, 4, 1, 16)), 3);
    check(&build(Shape { lists: &[(6, 1)], ..shape(256, 4, 1, 5) }), 4);
}

/// Open tiles, tiles of one key over and over, queries that are zero, huge or not finite.
pub(crate) fn specials() {
    let (dim, tiles, rng) = (64, 6, &mut Rng(3));
    let mut values: Vec<f32> = (0..tiles * TILE * dim).map(|_| rng.normal()).collect();
    values[0..TILE * dim].fill(1.5);
    values[TILE * dim..2 * TILE * dim].fill(0.0);
    values[2 * TILE * dim + 77] = f32::NAN;
    values[3 * TILE * dim + 5] = f32::INFINITY;
    values[4 * TILE * dim + 9] = 1e9;
    let keys = vec![Keys::new(DType::F32, dim, values)];
    let shape = Shape { dim, stored: 3, kv_heads: 1, group: 5, lists: &[(6, 1)] };
    let mut case = of_keys(shape, keys, rng);
    case.q[dim..2 * dim].fill(0.0);
    case.q[2 * dim + 3] = f32::NAN;
    case.q[3 * dim + 3] = f32::INFINITY;
    case.q[4 * dim..5 * dim].iter_mut().for_each(|x| *x *= 1e20);
    check(&case, 3);
}

/// A small case for the sanitizers.
pub(crate) fn small() {
    let case = build(Shape { dim: 80, stored: 3, kv_heads: 1, group: 3, lists: &[(0, 1), (6, 1)] });
    let kernels = compile(&BoxedScoreSpec { dim: 80, planes: 3 });
    let (scores, report) = run(&kernels, &case, 3, true, (SCHEDULES[2], 0));
    report.expect_clean(&"small");
    compare(&case, 3, &scores);
}

/// Each barrier and wait left out is reported, under every schedule.
pub(crate) fn planted() {
    let shape =
        Shape { dim: 64, stored: 3, kv_heads: 1, group: 4, lists: &[(20, 1), (9, 1), (30, 1)] };
    let (case, kernels) = (build(shape), compile(&BoxedScoreSpec { dim: 64, planes: 3 }));
    let guards = toolchain::guards("boxed.cu");
    assert_eq!(guards, [1, 2, 3, 4, 5]);
    for guard in guards {
        for schedule in SCHEDULES {
            let (_, report) = run(&kernels, &case, 3, true, (schedule, guard));
            assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}");
            assert!(report.count(Fault::InFlight) > 0 || guard != 1, "{}", report.first());
        }
    }
}
