//! Column sums of attention probabilities, against f64 and the CPU's.

use half::{bf16, f16};
use kvist_kernels::attend::{Listed, Queries};
use kvist_kernels::cuda::params::{AttendParams, ColumnsParams, Fold};
use kvist_kernels::cuda::work::{self, ColumnsSpec};
use kvist_kernels::score::prefill;
use kvist_kernels::{DType, Element, Executor, Tensor3, reference};

use crate::common::{Built, Case, base, bits, build, oracle, run_with};
use crate::machine::{Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::toolchain;

/// What sums begin as: those behind a list's end stay so.
const BEFORE: f32 = 7.0;

struct Device {
    spec: ColumnsSpec,
    kernels: Kernels,
}

impl Device {
    fn new(dim: usize, dtype: DType) -> Device {
        let spec = ColumnsSpec { dim, dtype };
        let kernels = Kernels::sized("columns.cu", &spec.macros(), spec.shared_bytes());
        Device { spec, kernels }
    }

    /// Sums `[sequences][heads][longest list + 3]`, given log-sum-exps.
    fn run<T: Element>(
        &self,
        (case, built): (&Case, &Built<T>),
        lse: &[f32],
        fold: Fold,
        (schedule, left_out): (Schedule, u32),
    ) -> (Vec<f32>, Report) {
        run_with(case, built, |queries, pool, pages, _, params| {
            let listed = Listed::Pages(pool, pages);
            let (spec, p, tiles) = work::columns(queries, &listed, params, fold).unwrap();
            assert_eq!(spec, self.spec);
            let width = width(case);
            let mut out = vec![BEFORE; case.lens.len() * heads(case, fold) * width];
            let attend = AttendParams {
                lse2: lse.as_ptr() as u64,
                indptr: built.indptr.as_ptr() as u64,
                items: built.list.as_ptr() as u64,
                lens: built.lens.as_ptr() as u64,
                first_pos: if case.first_pos > 0 { built.first_pos.as_ptr() as u64 } else { 0 },
                q_pos: built.positions.as_ptr() as u64,
                ..p.attend
            };
            let p = ColumnsParams {
                attend,
                tiles: tiles.as_ptr() as u64,
                out: out.as_ptr() as u64,
                out_row: width as i64,
                ..p
            };
            let memory = [
                Memory::read(&built.k),
                Memory::read(&built.q),
                Memory::read(lse),
                Memory::read(&built.indptr),
                Memory::read(&built.list),
                Memory::read(&built.lens),
                Memory::read(&built.first_pos),
                Memory::read(&built.positions),
                Memory::read(&tiles),
                Memory::write(&mut out),
            ];
            let shared_bytes = spec.shared_bytes();
            let grid = Grid { blocks: tiles.len(), shared_bytes, schedule, left_out };
            let report = self.kernels.run("columns", &p, grid, &memory);
            (out, report)
        })
    }
}

fn width(case: &Case) -> usize {
    case.lens.iter().max().unwrap() + 3
}

fn heads(case: &Case, fold: Fold) -> usize {
    case.kv_heads * if fold == Fold::None { case.group } else { 1 }
}

/// f64 sums in the same form, and the CPU's where it has them: of one sequence, per query head.
fn want<T: Element>(case: &Case, built: &Built<T>, fold: Fold) -> Vec<f64> {
    let (width, q_heads) = (width(case), case.kv_heads * case.group);
    let mut out = vec![f64::from(BEFORE); case.lens.len() * heads(case, fold) * width];
    run_with(case, built, |queries, pool, pages, _, params| {
        let tokens = reference::page_tokens(pool, pages);
        let lists = tokens.len() / case.lens.len();
        for sequence in 0..case.lens.len() {
            let rows = queries.indptr[sequence] as usize..queries.indptr[sequence + 1] as usize;
            let q = &built.q[rows.start * q_heads * case.dim_k..];
            let shape = [rows.len(), q_heads, case.dim_k];
            let alone = Queries {
                q: Tensor3::contiguous(&q[..shape.iter().product()], shape).unwrap(),
                indptr: &[0, rows.len() as u32],
                positions: queries.positions.map(|p| &p[rows.clone()]),
            };
            let own = &tokens[sequence * lists..][..lists];
            let p = reference::probabilities(&alone, pool, own, case.kv_heads, params);
            let sums = reference::sum_columns(&p);
            let of_head = if fold == Fold::None { 1 } else { case.group };
            for (at, heads) in sums.chunks(of_head).enumerate() {
                let row = (sequence * (q_heads / of_head) + at) * width;
                for token in 0..case.lens[sequence] {
                    let of = |h: &Vec<f64>| h.get(token).copied().unwrap_or(0.0);
                    out[row + token] = heads.iter().map(of).sum();
                }
            }
            if fold == Fold::None && case.lens.len() == 1 && !rows.is_empty() {
                let len = case.lens[0];
                let mut cpu = vec![0f32; q_heads * len];
                let keys = Listed::Pages(pool, pages);
                prefill::lines(&alone, &keys, params, &Executor::inline(), &mut cpu, &mut [])
                    .unwrap();
                for (row, cpu) in out.chunks(width).zip(cpu.chunks(len)) {
                    assert!(row.iter().zip(cpu).all(|(a, b)| (a - f64::from(*b)).abs() < 2e-2));
                }
            }
        }
    });
    out
}

fn lse<T: Element>(case: &Case, built: &Built<T>) -> Vec<f32> {
    oracle(case, built).lse2.iter().map(|&x| x as f32).collect()
}

fn check<T: Element>(device: &Device, case: &Case) {
    let built = build::<T>(case);
    let lse = lse(case, &built);
    for fold in [Fold::Sum, Fold::None] {
        let want = want(case, &built, fold);
        let mut first: Option<Vec<u32>> = None;
        for schedule in SCHEDULES {
            let (got, report) = device.run((case, &built), &lse, fold, (schedule, 0));
            report.expect_clean(&(case, schedule));
            let rows = case.queries.iter().max().unwrap() * case.group;
            // Queries have the type of the keys, products are f32: what is left is the error of an f32 score.
            for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
                let error = (f64::from(got) - want).abs();
                assert!(error <= 1e-5 * rows as f64 + 1e-4 * want, "{i}: {got}, {want}, {case:?}");
            }
            assert_eq!(*first.get_or_insert(bits(&got)), bits(&got), "{schedule:?}");
        }
    }
}

fn cases(dim: usize) -> Vec<Case> {
    let start = Case { dim_k: dim, dim_v: dim, page: 16, causal: true, ..base() };
    vec![
        Case { lens: vec![300], queries: vec![17], ..start.clone() },
        Case {
            lens: vec![0, 1, 15, 40, 7],
            queries: vec![1, 1, 3, 5, 0],
            per_head: false,
            first_pos: 9,
            soft_cap: 3.0,
            ..start.clone()
        },
        Case {
            lens: vec![130],
            queries: vec![33],
            window: 20,
            group: 1,
            hnd: false,
            padding: 16,
            page: 64,
            ..start.clone()
        },
        Case { lens: vec![70, 20], queries: vec![4, 2], causal: false, sinks: true, ..start },
    ]
}

/// Types and dimensions; causal, in a window, capped, with sinks, over lists that end anywhere.
pub(crate) fn grid() {
    for case in cases(64) {
        check::<bf16>(&Device::new(64, DType::Bf16), &case);
    }
    check::<f16>(&Device::new(80, DType::F16), &cases(80)[1]);
    check::<f32>(&Device::new(128, DType::F32), &cases(128)[1]);
    check::<bf16>(&Device::new(256, DType::Bf16), &cases(256)[3]);
    let refused = |fold, slots| {
        let case = Case { slots, ..cases(64)[3].clone() };
        let built = build::<bf16>(&case);
        run_with(&case, &built, |queries, pool, pages, slots, params| {
            let listed = slots.map_or(Listed::Pages(pool, pages), |s| Listed::Slots(pool, s));
            work::columns(queries, &listed, params, fold).unwrap_err().to_string()
        })
    };
    assert_eq!(refused(Fold::Max, false), "fold of columns: expected None or Sum, found Max");
    assert_eq!(refused(Fold::Sum, true), "keys of columns: expected pages, found slots");
}

/// A NaN key and a row of which nothing is known spoil the columns that they meet, and no others.
pub(crate) fn specials() {
    let device = Device::new(64, DType::Bf16);
    let case = &Case { lens: vec![90], queries: vec![20], ..cases(64)[0].clone() };
    let mut built = build::<bf16>(case);
    let mut lse = lse(case, &built);
    let run = |built: &Built<bf16>, lse: &[f32]| {
        let (out, report) = device.run((case, built), lse, Fold::Sum, (SCHEDULES[3], 0));
        report.expect_clean(&"specials");
        out
    };
    let clean = run(&built, &lse);
    let width = width(case);
    let spoilt = |out: &[f32], at: &dyn Fn(usize, usize) -> bool| {
        for (i, (a, b)) in out.iter().zip(&clean).enumerate() {
            let same =
                if at(i / width, i % width) { a.is_nan() } else { a.to_bits() == b.to_bits() };
            assert!(same, "head {}, token {}: {a}, {b}", i / width, i % width);
        }
    };
    // Row 3 is at position 73, and sees tokens 0 to 73; its query head 4 belongs to KV head 1.
    let q_heads = case.kv_heads * case.group;
    let known = std::mem::replace(&mut lse[3 * q_heads + 4], f32::NAN);
    spoilt(&run(&built, &lse), &|head, token| head == 1 && token <= 73);
    lse[3 * q_heads + 4] = known;
    // Token 20 is the fifth of its list's second page.
    let frame = built.list[1] as usize;
    let row = frame * built.layout.k_strides[0] as usize + 4 * built.layout.k_strides[2] as usize;
    built.k[row + 7] = bf16::NAN;
    spoilt(&run(&built, &lse), &|head, token| head == 0 && token == 20);
}

/// One type, for the sanitizers.
pub(crate) fn small() {
    check::<f16>(&Device::new(80, DType::F16), &cases(80)[1]);
}

/// The wait and the barrier left out are reported, under every schedule.
pub(crate) fn planted() {
    // The first is that of `load_queries`, which is not called here.
    assert_eq!(toolchain::guards("columns.cu"), [1, 2, 3]);
    let device = Device::new(64, DType::Bf16);
    let case = &Case { lens: vec![300], queries: vec![40], ..cases(64)[0].clone() };
    let built = build::<bf16>(case);
    let lse = lse(case, &built);
    for guard in [2, 3] {
        for schedule in SCHEDULES {
            let (_, report) = device.run((case, &built), &lse, Fold::Sum, (schedule, guard));
            assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}");
        }
    }
}
