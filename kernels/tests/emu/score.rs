//! K7 and K8: bounds from boxes, and scores of one row a unit, against f64.

use bytemuck::Zeroable;
use half::{bf16, f16};
use kvist_kernels::attend::{Listed, Params, Queries};
use kvist_kernels::cuda::params::{Fold, ScoreParams, type_code};
use kvist_kernels::cuda::work::{ScoreSpec, Work};
use kvist_kernels::{DType, Element, KvLayout, KvPool, PageLists, Tensor3};

use crate::common::Random;
use crate::machine::{Fault, Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::toolchain;

/// Random boxes or rows in permuted frames of several units and heads, NaN where no list reads.
struct Boxes<T> {
    /// `[frames][heads][units][max | min][dim]`, without boxes `[frames][heads][units][dim]`
    rows: Vec<T>,
    q: Vec<T>,
    layout: KvLayout,
    frames: Vec<u32>,
    indptr: Vec<u32>,
    lens: Vec<u32>,
    q_indptr: Vec<u32>,
    group: usize,
    boxes: bool,
}

struct Shape {
    dim: usize,
    boxes: bool,
    units: usize,
    heads: usize,
    group: usize,
    /// Units and query rows of each sequence.
    lens: &'static [(u32, u32)],
}

fn build<T: Element>(shape: &Shape) -> Boxes<T> {
    let Shape { dim, boxes, units, heads, group, lens } = *shape;
    let mut random = Random(dim as u64);
    let sides = if boxes { 2 } else { 1 };
    let step = (sides * dim) as i64;
    let strides = [(heads * units) as i64 * step, units as i64 * step, step];
    let layout = KvLayout {
        page_tokens: units,
        kv_heads: heads,
        dim_k: dim,
        dim_v: dim,
        k_strides: strides,
        v_strides: strides,
    };
    let pages = |n: u32| (n as usize).div_ceil(units);
    let count: usize = lens.iter().map(|l| pages(l.0)).sum::<usize>() + 2;
    let mut order: Vec<u32> = (0..count as u32).collect();
    (1..count).rev().for_each(|i| order.swap(i, random.below(i + 1)));
    let mut built = Boxes {
        rows: vec![T::from_f32(f32::NAN); count * strides[0] as usize],
        q: Vec::new(),
        layout,
        frames: Vec::new(),
        indptr: vec![0],
        lens: lens.iter().map(|l| l.0).collect(),
        q_indptr: vec![0],
        group,
        boxes,
    };
    for &(n, rows) in lens {
        let own = &order[built.frames.len()..][..pages(n)];
        for unit in 0..n as usize {
            for head in 0..heads {
                let frame = own[unit / units] as usize;
                let at = ((frame * heads + head) * units + unit % units) * sides * dim;
                for i in 0..dim {
                    let (a, b) = (random.normal(), random.normal());
                    built.rows[at + i] = T::from_f32(a.max(b));
                    if boxes {
                        built.rows[at + dim + i] = T::from_f32(a.min(b));
                    }
                }
            }
        }
        built.frames.extend(own);
        built.indptr.push(built.frames.len() as u32);
        let last = built.q_indptr[built.q_indptr.len() - 1];
        built.q_indptr.push(last + rows);
    }
    let rows = built.q_indptr[lens.len()] as usize;
    built.q = (0..rows * heads * group * dim).map(|_| T::from_f32(random.normal())).collect();
    built
}

/// Scores `[q rows][heads][units_max]`, with what lies beyond a list's units left as it was (7).
fn run<T: Element>(
    kernels: &Kernels,
    boxes: &Boxes<T>,
    fold: Fold,
    (schedule, left_out): (Schedule, u32),
) -> (Vec<f32>, Report) {
    let layout = boxes.layout;
    let spec = ScoreSpec { dim: layout.dim_k, dtype: T::DTYPE, boxes: boxes.boxes };
    let rows = boxes.q_indptr[boxes.lens.len()] as usize;
    let q_heads = layout.kv_heads * boxes.group;
    let q = Tensor3::contiguous(&boxes.q, [rows, q_heads, layout.dim_k]).unwrap();
    let queries = Queries { q, indptr: &boxes.q_indptr, positions: None };
    let frames = boxes.rows.len() / layout.k_strides[0] as usize;
    // Without boxes there are no minima, and nobody may read any.
    let minima = if boxes.boxes { &boxes.rows[layout.dim_k..] } else { &boxes.rows[..] };
    let pool = KvPool::new(&boxes.rows, minima, layout, frames).unwrap();
    let lists = PageLists {
        indptr: &boxes.indptr,
        frames: &boxes.frames,
        lens: &boxes.lens,
        first_pos: None,
        per_head: false,
    };
    let listed = Listed::Pages(&pool, &lists);
    let rows_of = ScoreSpec::rows(boxes.group);
    let work = Work::new(&queries, &listed, &Params::new(1.0), rows_of, 3).unwrap();
    let heads = if fold == Fold::None { q_heads } else { layout.kv_heads };
    let width = *boxes.lens.iter().max().unwrap() as usize + 3;
    let mut out = vec![7f32; rows * heads * width];
    let params = ScoreParams {
        q: boxes.q.as_ptr() as u64,
        k: boxes.rows.as_ptr() as u64,
        v: if boxes.boxes { minima.as_ptr() as u64 } else { 0 },
        out: out.as_ptr() as u64,
        units: work.units.as_ptr() as u64,
        segments: work.segments.as_ptr() as u64,
        workers: work.workers.as_ptr() as u64,
        indptr: boxes.indptr.as_ptr() as u64,
        items: boxes.frames.as_ptr() as u64,
        lens: boxes.lens.as_ptr() as u64,
        q_row: (q_heads * layout.dim_k) as i64,
        q_head: layout.dim_k as i64,
        k_frame: layout.k_strides[0],
        k_head: layout.k_strides[1],
        k_token: layout.k_strides[2],
        v_frame: layout.v_strides[0],
        v_head: layout.v_strides[1],
        v_token: layout.v_strides[2],
        out_row: width as i64,
        page_tokens: layout.page_tokens as u32,
        group: boxes.group as u32,
        kv_heads: layout.kv_heads as u32,
        fold: fold as u32,
        types: type_code(T::DTYPE),
        ..ScoreParams::zeroed()
    };
    let memory = [
        Memory::read(&boxes.q),
        Memory::read(&boxes.rows),
        Memory::read(&work.units),
        Memory::read(&work.segments),
        Memory::read(&work.workers),
        Memory::read(&boxes.indptr),
        Memory::read(&boxes.frames),
        Memory::read(&boxes.lens),
        Memory::write(&mut out),
    ];
    let blocks = work.workers.len() - 1;
    let grid = Grid { blocks, shared_bytes: spec.shared_bytes(), schedule, left_out };
    let report = kernels.run("score_units", &params, grid, &memory);
    (out, report)
}

/// Score and size of its terms, of a query head and a unit, in f64.
fn bound<T: Element>(boxes: &Boxes<T>, row: usize, q_head: usize, unit: usize) -> (f64, f64) {
    let layout = boxes.layout;
    let (dim, units) = (layout.dim_k, layout.page_tokens);
    let sequence = boxes.q_indptr[1..].iter().take_while(|&&end| end as usize <= row).count();
    let frame = boxes.frames[boxes.indptr[sequence] as usize + unit / units] as usize;
    let row_at = (frame * layout.kv_heads + q_head / boxes.group) * units + unit % units;
    let at = row_at * if boxes.boxes { 2 } else { 1 } * dim;
    let other = if boxes.boxes { at + dim } else { at };
    let q = &boxes.q[(row * layout.kv_heads * boxes.group + q_head) * dim..];
    (0..dim).fold((0.0, 0.0), |(sum, size), i| {
        let x = f64::from(q[i].to_f32());
        let (a, b) = (boxes.rows[at + i].to_f32(), boxes.rows[other + i].to_f32());
        let best = (x * f64::from(a)).max(x * f64::from(b));
        (sum + best, size + best.abs())
    })
}

fn check<T: Element>(kernels: &Kernels, shape: &Shape, fold: Fold) {
    check_built(kernels, shape, &build::<T>(shape), fold);
}

fn check_built<T: Element>(kernels: &Kernels, shape: &Shape, boxes: &Boxes<T>, fold: Fold) {
    let group = boxes.group;
    let rows = boxes.q_indptr[shape.lens.len()] as usize;
    for schedule in SCHEDULES {
        let (out, report) = run(kernels, boxes, fold, (schedule, 0));
        report.expect_clean(&(schedule, fold));
        let heads = if fold == Fold::None { shape.heads * group } else { shape.heads };
        let width = out.len() / (rows * heads).max(1);
        for (at, got) in out.iter().enumerate() {
            let (row, head, unit) = (at / width / heads, at / width % heads, at % width);
            let sequence = shape.lens.iter().scan(0, |end, l| {
                *end += l.1 as usize;
                Some(*end)
            });
            let sequence = sequence.take_while(|&end| end <= row).count();
            if unit >= shape.lens[sequence].0 as usize {
                assert_eq!(*got, 7.0, "behind the units of row {row}");
                continue;
            }
            let all: Vec<(f64, f64)> = match fold {
                Fold::None => vec![bound(boxes, row, head, unit)],
                _ => (0..group).map(|g| bound(boxes, row, head * group + g, unit)).collect(),
            };
            let sum: f64 = all.iter().map(|x| x.0).sum();
            // NaN wins.
            let highest = |a: f64, b: f64| if b > a || b.is_nan() { b } else { a };
            let most = all.iter().map(|x| x.0).fold(f64::NEG_INFINITY, highest);
            let want = match fold {
                Fold::None | Fold::Sum => sum,
                Fold::Max => most,
                Fold::Mean => sum / group as f64,
            };
            let size: f64 = all.iter().map(|x| x.1).sum();
            let error = (f64::from(*got) - want).abs();
            let same = f64::from(*got) == want || (got.is_nan() && want.is_nan());
            assert!(same || error <= 1e-6 * size, "{row}, {head}, {unit}: {got}, {want}, {fold:?}");
        }
    }
}

fn kernels(dim: usize, dtype: DType, boxes: bool) -> Kernels {
    let spec = ScoreSpec { dim, dtype, boxes };
    Kernels::sized("score.cu", &spec.macros(), spec.shared_bytes())
}

/// Units of 16 tokens in pages of 64, of 16 in pages of 16, and an odd number; groups that fill a unit of
/// rows, and that do not.
const LENS: &[(u32, u32)] = &[(0, 1), (1, 1), (5, 2), (0, 0), (130, 1), (64, 7)];

pub(crate) fn grid() {
    let shape =
        |dim, units, heads, group| Shape { dim, boxes: true, units, heads, group, lens: LENS };
    let kernels128 = kernels(128, DType::Bf16, true);
    check::<bf16>(&kernels128, &shape(128, 4, 2, 4), Fold::Max);
    check::<bf16>(&kernels128, &shape(128, 1, 1, 1), Fold::None);
    let kernels80 = kernels(80, DType::F16, true);
    check::<f16>(&kernels80, &shape(80, 3, 1, 7), Fold::Mean);
    check::<f16>(&kernels80, &shape(80, 4, 1, 16), Fold::Sum);
    check::<f16>(&kernels80, &shape(80, 4, 2, 3), Fold::None);
}

/// Means of pages and centroids of clusters.
pub(crate) fn rows() {
    let shape =
        |dim, units, heads, group| Shape { dim, boxes: false, units, heads, group, lens: LENS };
    let kernels128 = kernels(128, DType::F16, false);
    check::<f16>(&kernels128, &shape(128, 4, 2, 4), Fold::Max);
    let kernels256 = kernels(256, DType::Bf16, false);
    check::<bf16>(&kernels256, &shape(256, 1, 1, 5), Fold::Sum);
    let kernels96 = kernels(96, DType::Bf16, false);
    check::<bf16>(&kernels96, &shape(96, 3, 2, 3), Fold::None);
    check::<bf16>(&kernels96, &shape(96, 1, 1, 16), Fold::Mean);
}

/// A NaN or infinite row reaches its own unit only.
pub(crate) fn specials() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (fold, group) in [(Fold::Max, 4), (Fold::Mean, 1), (Fold::None, 2)] {
            let lens = &[(70, 1), (3, 1)];
            let shape = Shape { dim: 64, boxes: false, units: 4, heads: 1, group, lens };
            let mut built = build::<bf16>(&shape);
            let at = built.frames[5] as usize * 4 + 2;
            built.rows[at * 64 + 9] = bf16::from_f32(value);
            check_built(&kernels(64, DType::Bf16, false), &shape, &built, fold);
        }
    }
}

/// Small cases for the sanitizers.
pub(crate) fn small() {
    let lens = &[(0, 1), (5, 2), (70, 1)];
    for boxes in [true, false] {
        let shape = Shape { dim: 80, boxes, units: 3, heads: 1, group: 7, lens };
        check::<f16>(&kernels(80, DType::F16, boxes), &shape, Fold::Mean);
    }
}

/// Each barrier and wait left out is reported, under every schedule.
pub(crate) fn planted() {
    for boxes in [true, false] {
        let kernels = kernels(64, DType::Bf16, boxes);
        let lens = &[(600, 1), (300, 1), (500, 1), (700, 1)];
        let built = build::<bf16>(&Shape { dim: 64, boxes, units: 4, heads: 1, group: 4, lens });
        let guards = toolchain::guards("score.cu");
        assert_eq!(guards, [1, 2, 3, 4]);
        for guard in guards {
            for schedule in SCHEDULES {
                let (_, report) = run(&kernels, &built, Fold::Max, (schedule, guard));
                assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}, {boxes}");
                assert!(report.count(Fault::InFlight) > 0 || guard != 2, "{}", report.first());
            }
        }
    }
}
