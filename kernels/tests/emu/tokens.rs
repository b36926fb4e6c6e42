//! K9: votes of tokens, against f64.

use half::{bf16, f16};
use kvist_kernels::attend::{Listed, Params, Queries};
use kvist_kernels::cuda::params::{AttendParams, TokensParams};
use kvist_kernels::cuda::work::{ScoreSpec, TokensSpec, Work};
use kvist_kernels::{DType, Element, KvPool, reference};

use crate::common::{Built, Case, base, build, run_with};
use crate::machine::{Fault, Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::toolchain;

/// Blocks that run at once: few, so that units are cut and blocks have several segments.
const WORKERS: usize = 3;
/// What lies where nothing is written.
const UNTOUCHED: f32 = 7.0;

struct Votes {
    /// `[rows][kv heads][width]`
    out: Vec<f32>,
    /// `[rows][q heads]`
    lse2: Vec<f32>,
    width: usize,
}

fn compile(spec: &TokensSpec) -> Kernels {
    Kernels::sized("tokens.cu", &spec.macros(), spec.shared_bytes())
}

fn longest<T>(built: &Built<T>, slots: bool) -> usize {
    let of_slots = built.indptr.windows(2).map(|w| w[1] - w[0]).max();
    let most = if slots { of_slots } else { built.lens.iter().copied().max() };
    most.unwrap_or(0) as usize
}

fn run<T: Element>(
    kernels: &Kernels,
    case: &Case,
    built: &Built<T>,
    (schedule, left_out): (Schedule, u32),
) -> (Votes, Report) {
    run_with(case, built, |queries, pool, pages, slots, params| {
        let listed = slots.map_or(Listed::Pages(pool, pages), |s| Listed::Slots(pool, s));
        let (spec, p) = TokensSpec::describe(queries, &listed, params).unwrap();
        let rows = ScoreSpec::rows(case.group);
        let work = Work::new(queries, &listed, params, rows, WORKERS).unwrap();
        let [rows, q_heads, _] = queries.q.shape();
        let width = longest(built, case.slots) + 3;
        let logits_row = width.next_multiple_of(2);
        let mut logits = vec![f32::NAN; rows * q_heads * logits_row];
        // Pairs are written at once.
        let mut parts = vec![u64::MAX; work.segments.len() * 16];
        let mut out = vec![UNTOUCHED; rows * case.kv_heads * width];
        let mut lse2 = vec![UNTOUCHED; rows * q_heads];
        let at = |x: &[u32], wanted: bool| if wanted { x.as_ptr() as u64 } else { 0 };
        let p = TokensParams {
            of: AttendParams {
                lse2: lse2.as_ptr() as u64,
                units: work.units.as_ptr() as u64,
                segments: work.segments.as_ptr() as u64,
                workers: work.workers.as_ptr() as u64,
                indptr: at(&built.indptr, true),
                items: at(&built.list, true),
                lens: at(&built.lens, !case.slots),
                sinks: if case.sinks { built.sinks.as_ptr() as u64 } else { 0 },
                ..p.of
            },
            logits: logits.as_ptr() as u64,
            parts: parts.as_ptr() as u64,
            out: out.as_ptr() as u64,
            logits_row: logits_row as i64,
            out_row: width as i64,
            ..p
        };
        let mut memory = vec![
            Memory::read(&built.q),
            Memory::read(&built.k),
            Memory::read(&work.units),
            Memory::read(&work.segments),
            Memory::read(&work.workers),
            Memory::read(&built.indptr),
            Memory::read(&built.list),
            Memory::read(&built.lens),
            Memory::read(&built.sinks),
        ];
        let inputs = memory.len();
        memory.extend([Memory::write(&mut logits), Memory::write(&mut parts)]);
        let blocks = work.workers.len() - 1;
        let grid = Grid { blocks, shared_bytes: spec.shared_bytes(), schedule, left_out };
        let first = kernels.run("score_tokens", &p, grid, &memory);
        memory.truncate(inputs);
        memory.extend([Memory::read(&logits), Memory::read(&parts)]);
        memory.extend([Memory::write(&mut out), Memory::write(&mut lse2)]);
        let grid = Grid { shared_bytes: TokensSpec::VOTE_SHARED_BYTES, ..grid };
        let report = first.and(&kernels.run("vote_tokens", &p, grid, &memory));
        (Votes { out, lse2, width }, report)
    })
}

/// Logits of a query row in f64, in units of log2, over the tokens of its list.
fn logits<T: Element>(
    queries: &Queries,
    pool: &KvPool,
    params: &Params,
    built: &Built<T>,
    (row, q_head, pool_head): (usize, usize, usize),
    tokens: &[(usize, usize, u32)],
) -> Vec<f64> {
    let [_, q_heads, dim] = queries.q.shape();
    let strides = pool.layout().k_strides;
    let q = &built.q[(row * q_heads + q_head) * dim..][..dim];
    let score = |&(frame, offset, _): &(usize, usize, u32)| {
        let at =
            frame as i64 * strides[0] + pool_head as i64 * strides[1] + offset as i64 * strides[2];
        let k = &built.k[at as usize..][..dim];
        let product = |(a, b): (&T, &T)| f64::from(a.to_f32()) * f64::from(b.to_f32());
        let s = q.iter().zip(k).map(product).sum::<f64>() * f64::from(params.scale);
        let cap = f64::from(params.soft_cap);
        let s = if cap > 0.0 { cap * (s / cap).tanh() } else { s };
        s * std::f64::consts::LOG2_E
    };
    tokens.iter().map(score).collect()
}

/// Log-sum-exp of what is a number; a sink joins it.
fn lse2(logits: &[f64], sink: Option<f32>) -> f64 {
    let sink = sink.map(|s| f64::from(s) * std::f64::consts::LOG2_E);
    let all = || logits.iter().copied().chain(sink).filter(|x| !x.is_nan());
    let highest = all().fold(f64::NEG_INFINITY, f64::max);
    if highest.is_infinite() {
        return highest;
    }
    highest + all().map(|x| (x - highest).exp2()).sum::<f64>().log2()
}

fn compare<T: Element>(case: &Case, built: &Built<T>, got: &Votes) {
    run_with(case, built, |queries, pool, pages, slots, params| {
        let lists = match slots {
            Some(s) => reference::slot_tokens(pool, s),
            None => reference::page_tokens(pool, pages),
        };
        for (sequence, rows) in queries.indptr.windows(2).enumerate() {
            for (row, head) in
                (rows[0]..rows[1]).flat_map(|r| (0..case.kv_heads).map(move |h| (r as usize, h)))
            {
                let list = if case.per_head { sequence * case.kv_heads + head } else { sequence };
                let mut want = vec![0f64; lists[list].len()];
                for g in 0..case.group {
                    let q_head = head * case.group + g;
                    let place = (row, q_head, if case.per_head { 0 } else { head });
                    let s = logits(queries, pool, params, built, place, &lists[list]);
                    let lse = lse2(&s, case.sinks.then(|| built.sinks[q_head]));
                    let own = f64::from(got.lse2[row * case.kv_heads * case.group + q_head]);
                    let near = (own - lse).abs() <= 1e-4 + 1e-6 * lse.abs();
                    assert!(near || own == lse, "lse of row {row}: {own}, {lse}, {case:?}");
                    let offset = if lse == f64::NEG_INFINITY { 0.0 } else { lse };
                    want.iter_mut().zip(&s).for_each(|(w, x)| *w += (x - offset).exp2());
                }
                let row = &got.out[(row * case.kv_heads + head) * got.width..][..got.width];
                for (token, (&got, &want)) in row.iter().zip(&want).enumerate() {
                    let near = (f64::from(got) - want).abs() <= 2e-4 * want + 1e-7;
                    let same = near || (got.is_nan() && want.is_nan());
                    assert!(same, "head {head}, token {token}: {got}, {want}, {case:?}");
                }
                let untouched = row[want.len()..].iter().all(|&x| x == UNTOUCHED);
                assert!(untouched, "behind the tokens of head {head}, {case:?}");
            }
        }
    });
}

/// Under every schedule: no fault, the numbers of f64, the same bits.
fn check<T: Element>(kernels: &Kernels, case: &Case, built: &Built<T>) {
    let mut first: Option<Vec<u32>> = None;
    for schedule in SCHEDULES {
        let (got, report) = run(kernels, case, built, (schedule, 0));
        report.expect_clean(&(schedule, case));
        compare(case, built, &got);
        let bits: Vec<u32> = got.out.iter().chain(&got.lse2).map(|x| x.to_bits()).collect();
        assert!(first.get_or_insert_with(|| bits.clone()) == &bits, "{schedule:?}, {case:?}");
    }
}

fn shape(spec: &TokensSpec, page: usize, group: usize) -> Case {
    let lens = vec![0, 1, page - 1, page + 1, 280];
    let (dim_k, dim_v, queries) = (spec.dim, spec.dim, vec![1; lens.len()]);
    Case { dim_k, dim_v, page, group, lens, queries, slots: spec.slots, kv_heads: 1, ..base() }
}

fn grid_of<T: Element>(spec: TokensSpec) {
    let kernels = compile(&spec);
    let padding = 16 / spec.dtype.size();
    let few = |case: Case| Case { lens: vec![70, 0, 200], queries: vec![1; 3], ..case };
    for case in [
        shape(&spec, 16, 4),
        Case { hnd: false, per_head: false, kv_heads: 2, sinks: true, ..few(shape(&spec, 48, 2)) },
        Case { padding, soft_cap: 20.0, ..few(shape(&spec, 32, 16)) },
        Case { queries: vec![3, 1, 5], ..few(shape(&spec, 64, 5)) },
    ] {
        check(&kernels, &case, &build::<T>(&case));
    }
}

const BF16: TokensSpec = TokensSpec { dim: 64, dtype: DType::Bf16, slots: false };

pub(crate) fn grid() {
    grid_of::<bf16>(TokensSpec { dim: 128, ..BF16 });
    grid_of::<f16>(TokensSpec { dim: 80, dtype: DType::F16, slots: true });
    grid_of::<f32>(TokensSpec { dim: 64, dtype: DType::F32, slots: false });
    let wide = TokensSpec { dim: 256, slots: true, ..BF16 };
    let case = Case { lens: vec![150, 5], queries: vec![1; 2], ..shape(&wide, 16, 3) };
    check(&compile(&wide), &case, &build::<bf16>(&case));
}

/// NaN and infinite keys, and keys that are all the same.
pub(crate) fn specials() {
    let kernels = compile(&BF16);
    let case = Case { lens: vec![150, 40], queries: vec![1, 1], ..shape(&BF16, 64, 3) };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut built = build::<bf16>(&case);
        let frame = built.list[1] as usize;
        built.k[(frame * 64 + 7) * 64 + 5] = bf16::from_f32(value);
        check(&kernels, &case, &built);
    }
    let mut built = build::<bf16>(&case);
    built.k.fill(bf16::ONE);
    check(&kernels, &case, &built);
    built.k.fill(bf16::NAN);
    let (votes, report) = run(&kernels, &case, &built, (SCHEDULES[0], 0));
    report.expect_clean(&case);
    assert!(votes.out[..150].iter().all(|x| x.is_nan()) && votes.lse2[0] == f32::NEG_INFINITY);
}

/// A small case for the sanitizers.
pub(crate) fn small() {
    let spec = TokensSpec { dim: 64, dtype: DType::F32, slots: true };
    let case = Case { lens: vec![0, 70], queries: vec![1, 2], ..shape(&spec, 16, 3) };
    let (kernels, built) = (compile(&spec), build::<f32>(&case));
    let (votes, report) = run(&kernels, &case, &built, (SCHEDULES[2], 0));
    report.expect_clean(&case);
    compare(&case, &built, &votes);
}

/// Each barrier and wait left out is reported, under every schedule.
pub(crate) fn planted() {
    let kernels = compile(&BF16);
    let lens = vec![520, 300, 450, 700];
    let case = Case { queries: vec![1; lens.len()], lens, ..shape(&BF16, 16, 4) };
    let built = build::<bf16>(&case);
    let guards = toolchain::guards("tokens.cu");
    assert_eq!(guards, [1, 2, 3, 4, 5, 6, 7]);
    for guard in guards {
        for schedule in SCHEDULES {
            let (_, report) = run(&kernels, &case, &built, (schedule, guard));
            assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}");
            assert!(report.count(Fault::InFlight) > 0 || guard != 2, "{}", report.first());
        }
    }
}

/// What the device cannot do is an error that names both sides.
pub(crate) fn misuse() {
    let error = |case: &Case| {
        run_with(case, &build::<bf16>(case), |queries, pool, pages, _, params| {
            let described = TokensSpec::describe(queries, &Listed::Pages(pool, pages), params);
            described.map(|_| ()).unwrap_err().to_string()
        })
    };
    let case = Case { lens: vec![20], queries: vec![1], ..shape(&BF16, 16, 1) };
    assert_eq!(
        error(&Case { group: 17, ..case.clone() }),
        "query heads of a KV head on the device: expected 1..=16, found 17"
    );
    let none = run_with(&case, &build::<bf16>(&case), |queries, pool, pages, _, params| {
        Work::new(queries, &Listed::Pages(pool, pages), params, ScoreSpec::rows(17), WORKERS)
    });
    assert_eq!(none.unwrap_err().to_string(), "rows of a unit: expected at least 1, found 0");
    assert_eq!(
        error(&Case { window: 4, ..case }),
        "votes of tokens on the device: expected no mask, found a mask"
    );
}
