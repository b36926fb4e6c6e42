//! K1, K2 and the merge behind them, against the f64 oracle.

use bytemuck::Zeroable;
use half::{bf16, f16};
use kvist_kernels::attend::{Listed, Out, Params, Queries};
use kvist_kernels::cuda::params::AttendParams;
use kvist_kernels::cuda::work::{self, AttendSpec, Work};
use kvist_kernels::reference::Attended;
use kvist_kernels::{DType, Element, Tensor3, Tensor3Mut};

use crate::common::{Built, Case, base, build, oracle, run_with};
use crate::machine::{Fault, Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::toolchain;

/// Blocks that run at once: few, so that units are cut and blocks have several segments.
const WORKERS: usize = 3;

/// Output `[rows, q_heads, dim]` and its lse, with what the emulator saw.
pub(crate) type Attention = (Vec<f32>, Vec<f32>, Report);

/// The compiled kernels of a specialisation.
pub(crate) struct Device {
    pub(crate) spec: AttendSpec,
    /// Plans as the device makes them: with every tile of a list, whatever a mask hides.
    whole: bool,
    /// Every other frame lies in another place.
    apart: bool,
    attend: Kernels,
    merge: Kernels,
}

impl Device {
    pub(crate) fn new(spec: AttendSpec) -> Device {
        let attend = Kernels::sized("attend_pages.cu", &spec.macros(), spec.shared_bytes());
        Device {
            spec,
            whole: false,
            apart: false,
            attend,
            merge: Kernels::compile("merge.cu", &[]),
        }
    }

    /// Attends and merges; queries are of type `Q`, results are rounded to `O`.
    pub(crate) fn run<T: Element, Q: Element, O: Element>(
        &self,
        case: &Case,
        built: &Built<T>,
        schedule: Schedule,
        left_out: u32,
    ) -> Attention {
        run_with(case, built, |queries, pool, pages, slots, params| {
            let listed = match slots {
                Some(slots) => Listed::Slots(pool, slots),
                None => Listed::Pages(pool, pages),
            };
            let [rows, q_heads, dim] = queries.q.shape();
            let q: Vec<Q> = built.q.iter().map(|x| Q::from_f32(x.to_f32())).collect();
            let q_view = Tensor3::contiguous(&q, [rows, q_heads, dim]).unwrap();
            let queries = &Queries { q: q_view, ..*queries };
            let mut o = vec![O::from_f32(f32::NAN); rows * q_heads * dim];
            let mut lse = vec![f32::NAN; rows * q_heads];
            let view = Tensor3Mut::contiguous(&mut o, [rows, q_heads, dim]).unwrap();
            let out = Out { o: view, lse2: None };
            let (mut spec, p) = work::describe(queries, &listed, params, &out).unwrap();
            spec.wide |= self.spec.wide;
            assert_eq!(spec, self.spec);
            let unmasked = Params { causal: false, window: 0, ..*params };
            let planned = if self.whole { &unmasked } else { params };
            let work = Work::new(queries, &listed, planned, spec.rows(), WORKERS).unwrap();
            let arrays = Arrays { queries, q: Memory::read(&q), built, case, work: &work };
            let report = self.launch(p, &arrays, (&mut o, &mut lse), (schedule, left_out));
            (o.iter().map(|x| x.to_f32()).collect(), lse, report)
        })
    }

    fn launch<T: Element, O: Element>(
        &self,
        p: AttendParams,
        arrays: &Arrays<T>,
        (o, lse): (&mut [O], &mut [f32]),
        (schedule, left_out): (Schedule, u32),
    ) -> Report {
        let Arrays { queries, q, built, case, work } = *arrays;
        let rows = work.partials * self.spec.rows();
        let mut part_o = vec![f32::NAN; rows * self.spec.dim];
        let mut part_lse = vec![f32::NAN; rows];
        let masked = case.causal || case.window > 0;
        let at = |x: &[u32], wanted: bool| if wanted { x.as_ptr() as u64 } else { 0 };
        let p = AttendParams {
            lse2: lse.as_ptr() as u64,
            part_o: part_o.as_ptr() as u64,
            part_lse2: part_lse.as_ptr() as u64,
            units: work.units.as_ptr() as u64,
            segments: work.segments.as_ptr() as u64,
            workers: work.workers.as_ptr() as u64,
            indptr: at(&built.indptr, true),
            items: at(&built.list, true),
            lens: at(&built.lens, !case.slots),
            first_pos: at(&built.first_pos, !case.slots && case.first_pos > 0),
            slot_pos: at(&built.slot_positions, case.slots && masked),
            q_pos: at(queries.positions.unwrap(), masked),
            sinks: if case.sinks { built.sinks.as_ptr() as u64 } else { 0 },
            ..p
        };
        let apart = self.apart.then(|| Apart::new(built, &p, case));
        let p = apart.as_ref().map_or(p, |apart| apart.over(p));
        let (data, list) = match &apart {
            Some(apart) => ([Memory::read(&apart.data), Memory::read::<T>(&[])], &apart.list),
            None => ([Memory::read(&built.k), Memory::read(&built.v)], &built.list),
        };
        let mut memory = vec![
            data[0],
            data[1],
            q,
            Memory::read(&work.units),
            Memory::read(&work.segments),
            Memory::read(&work.workers),
            Memory::read(&built.indptr),
            Memory::read(list),
            Memory::read(&built.lens),
            Memory::read(&built.first_pos),
            Memory::read(&built.slot_positions),
            Memory::read(&built.positions),
            Memory::read(&built.sinks),
            Memory::write(o),
            Memory::write(lse),
        ];
        let parts = memory.len();
        memory.extend([Memory::write(&mut part_o), Memory::write(&mut part_lse)]);
        let blocks = work.workers.len() - 1;
        let grid = Grid { blocks, shared_bytes: self.spec.shared_bytes(), schedule, left_out };
        let report = self.attend.run("attend_pages", &p, grid, &memory);
        memory.truncate(parts);
        memory.extend([Memory::read(&part_o), Memory::read(&part_lse)]);
        let merge = work::merge_of(&self.spec, &p, work);
        let blocks = (work.units.len() * self.spec.rows()).div_ceil(4);
        let grid = Grid { blocks, shared_bytes: 0, schedule, left_out };
        report.and(&self.merge.run("merge_units", &merge, grid, &memory))
    }
}

/// Keys and values twice, one behind the other: even frames are good in the first place, odd ones in the second.
struct Apart<T> {
    data: Vec<T>,
    keys: usize,
    list: Vec<u32>,
}

impl<T: Element> Apart<T> {
    fn new(built: &Built<T>, p: &AttendParams, case: &Case) -> Apart<T> {
        let half = |odd: usize| -> Vec<T> {
            let part = |data: &[T], frame: i64| -> Vec<T> {
                let frames = data.chunks(frame as usize).enumerate();
                let good = |i: usize, x: T| if i % 2 == odd { x } else { T::from_f32(f32::NAN) };
                frames.flat_map(|(i, rows)| rows.iter().map(move |&x| good(i, x))).collect()
            };
            [part(&built.k, p.k_frame), part(&built.v, p.v_frame)].concat()
        };
        let frame = |item: u32| if case.slots { item / p.page_tokens } else { item };
        let mark = |&item: &u32| if frame(item) % 2 == 1 { item | 1 << 31 } else { item };
        let list = built.list.iter().map(mark).collect();
        Apart { data: [half(0), half(1)].concat(), keys: built.k.len(), list }
    }

    fn over(&self, p: AttendParams) -> AttendParams {
        let k = self.data.as_ptr();
        AttendParams {
            k: k as u64,
            v: k.wrapping_add(self.keys) as u64,
            far: (self.data.len() / 2 * size_of::<T>()) as i64,
            items: self.list.as_ptr() as u64,
            ..p
        }
    }
}

#[derive(Clone, Copy)]
struct Arrays<'a, T> {
    queries: &'a Queries<'a>,
    q: Memory,
    built: &'a Built<T>,
    case: &'a Case,
    work: &'a Work,
}

/// Relative error of a row, and absolute error of its lse, that the numerics allow (docs/kernels.md).
fn tolerance(dtype: DType) -> (f64, f64) {
    if dtype == DType::F32 { (1e-5, 1e-5) } else { (5e-3, 1e-4) }
}

fn same_special(got: f32, want: f64) -> bool {
    if want.is_nan() { got.is_nan() } else { f64::from(got) == want }
}

pub(crate) fn compare(case: &Case, dtype: DType, o: &[f32], lse: &[f32], want: &Attended) {
    let (tol_o, tol_lse) = tolerance(dtype);
    for (row, (got, want)) in o.chunks(case.dim_v).zip(want.o.chunks(case.dim_v)).enumerate() {
        let pairs = || got.iter().zip(want);
        let special = |(&a, &b): (&f32, &f64)| b.is_finite() || same_special(a, b);
        assert!(pairs().all(special), "{dtype} row {row}: {got:?}, {want:?}, {case:?}");
        let finite = || pairs().filter(|(_, b)| b.is_finite());
        let norm = finite().map(|(_, b)| b * b).sum::<f64>().sqrt();
        let error = finite().map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt();
        assert!(error <= tol_o * norm, "{dtype} row {row}: {error:e} of {norm}, {case:?}");
    }
    for (row, (&got, &want)) in lse.iter().zip(&want.lse2).enumerate() {
        let near = (f64::from(got) - want).abs() <= tol_lse + 1e-6 * want.abs();
        assert!(near || same_special(got, want), "lse {row}: {got}, {want}, {dtype}, {case:?}");
    }
}

/// Under every schedule: no fault, the oracle's numbers, the same bits.
fn check<T: Element>(device: &Device, case: &Case) {
    let built = build::<T>(case);
    let want = oracle(case, &built);
    let mut first: Option<Vec<u32>> = None;
    for schedule in SCHEDULES {
        let (o, lse, report) = device.run::<T, T, f32>(case, &built, schedule, 0);
        report.expect_clean(&(schedule, case));
        compare(case, T::DTYPE, &o, &lse, &want);
        let bits: Vec<u32> = o.iter().chain(&lse).map(|x| x.to_bits()).collect();
        assert!(first.get_or_insert_with(|| bits.clone()) == &bits, "{schedule:?}, {case:?}");
    }
}

fn shape(spec: &AttendSpec, page: usize, group: usize) -> Case {
    let lens = vec![0, 1, page - 1, page, page + 1, 333];
    let (dim_k, dim_v) = (spec.dim, spec.dim);
    let queries = vec![1; lens.len()];
    Case { dim_k, dim_v, page, group, lens, queries, slots: spec.slots, kv_heads: 1, ..base() }
}

/// The cases of a specialisation: awkward lengths, layouts, groups and masks, each with NaN in every
/// token and frame that no list names.
pub(crate) fn cases(spec: &AttendSpec) -> Vec<Case> {
    let page = |page, group| shape(spec, page, group);
    let few = |case: Case| Case { lens: vec![70, 0, 200], queries: vec![1; 3], ..case };
    let padding = 16 / spec.dtype.size();
    let mut cases = vec![
        page(16, 4),
        page(64, 7),
        Case { hnd: false, per_head: false, kv_heads: 2, ..few(page(48, 2)) },
        Case { per_head: false, kv_heads: 3, padding, ..few(page(16, 1)) },
        Case { hnd: false, kv_heads: 2, padding, soft_cap: 20.0, sinks: true, ..few(page(32, 16)) },
    ];
    // Several query rows, each seeing its own part.
    let rows = if spec.wide { vec![12, 5, 0, 1] } else { vec![3, 2, 0, 1] };
    let many = Case { lens: vec![100, 4, 30, 150], queries: rows, causal: true, ..page(64, 4) };
    cases.push(many.clone());
    cases.push(Case { window: 37, first_pos: 500, sinks: true, ..many.clone() });
    cases.push(Case { window: 90, causal: false, group: 5, page: 16, ..many });
    cases
}

fn of_type(spec: AttendSpec, per_type: &dyn Fn(&Device, &Case)) {
    let device = Device::new(spec);
    cases(&spec).iter().for_each(|case| per_type(&device, case));
}

/// The grid of one specialisation.
pub(crate) fn grid(spec: AttendSpec) {
    match spec.dtype {
        DType::F32 => of_type(spec, &check::<f32>),
        DType::F16 => of_type(spec, &check::<f16>),
        DType::Bf16 => of_type(spec, &check::<bf16>),
    }
}

const BF16: AttendSpec = AttendSpec { dim: 64, dtype: DType::Bf16, slots: false, wide: false };

/// The specialisations whose whole grid runs.
pub(crate) fn specs() -> Vec<AttendSpec> {
    let spec = |dim, dtype, slots, wide| AttendSpec { dim, dtype, slots, wide };
    vec![
        BF16,
        spec(128, DType::Bf16, false, false),
        spec(128, DType::Bf16, false, true),
        spec(256, DType::Bf16, false, false),
        spec(256, DType::Bf16, true, true),
        spec(80, DType::F16, false, false),
        spec(96, DType::F16, true, true),
        spec(128, DType::F16, true, false),
        spec(64, DType::F32, false, true),
        spec(128, DType::F32, true, false),
    ]
}

/// Queries and outputs in each type; outputs are rounded to nearest even.
pub(crate) fn types() {
    let device = Device::new(BF16);
    let case = Case { lens: vec![300, 9], queries: vec![1, 1], ..shape(&BF16, 16, 2) };
    let built = build::<bf16>(&case);
    let (o, ..) = device.run::<bf16, bf16, f32>(&case, &built, SCHEDULES[0], 0);
    let (same, _, report) = device.run::<bf16, f32, f32>(&case, &built, SCHEDULES[1], 0);
    report.expect_clean(&case);
    assert!(o == same, "queries that are whole in bf16 are the same in f32");
    let (narrow, _, report) = device.run::<bf16, bf16, bf16>(&case, &built, SCHEDULES[0], 0);
    report.expect_clean(&case);
    assert!(o.iter().zip(&narrow).all(|(&a, &b)| bf16::from_f32(a).to_f32() == b));
    let (narrow, _, report) = device.run::<bf16, bf16, f16>(&case, &built, SCHEDULES[0], 0);
    report.expect_clean(&case);
    assert!(o.iter().zip(&narrow).all(|(&a, &b)| f16::from_f32(a).to_f32() == b));
}

/// Tiles that a mask hides may be in a plan.
pub(crate) fn whole_lists() {
    for wide in [false, true] {
        let device = Device { whole: true, ..Device::new(AttendSpec { wide, ..BF16 }) };
        let masked = cases(&device.spec).into_iter().filter(|c| c.causal || c.window > 0);
        masked.for_each(|case| check::<bf16>(&device, &case));
    }
}

/// Pages and slots in two places.
pub(crate) fn apart() {
    for (slots, wide) in [(false, false), (true, false), (false, true), (true, true)] {
        let spec = AttendSpec { slots, wide, ..BF16 };
        let device = Device { apart: true, ..Device::new(spec) };
        cases(&spec).iter().for_each(|case| check::<bf16>(&device, case));
    }
}

/// A NaN or infinite key or value reaches the rows that see it, as in the oracle, and no other.
pub(crate) fn specials() {
    let device = Device::new(BF16);
    let shape = Case {
        lens: vec![90, 70],
        queries: vec![4, 1],
        kv_heads: 1,
        causal: true,
        ..shape(&BF16, 64, 3)
    };
    for (side, value) in [(0, f32::NAN), (1, f32::NAN), (0, f32::INFINITY), (1, f32::NEG_INFINITY)]
    {
        for token in [3, 64, 88] {
            let mut built = build::<bf16>(&shape);
            let frame = built.list[token / 64] as usize;
            let at = (frame * 64 + token % 64) * 64;
            let data = if side == 0 { &mut built.k } else { &mut built.v };
            data[at + 5] = bf16::from_f32(value);
            let want = oracle(&shape, &built);
            let (o, lse, report) = device.run::<bf16, bf16, f32>(&shape, &built, SCHEDULES[2], 0);
            report.expect_clean(&shape);
            compare(&shape, DType::Bf16, &o, &lse, &want);
        }
    }
}

/// Each barrier and wait left out is reported, under every schedule.
pub(crate) fn planted() {
    for wide in [false, true] {
        let spec = AttendSpec { wide, ..BF16 };
        let device = Device::new(spec);
        // Several segments a worker, each longer than the ring.
        let lens = vec![520, 300, 450, 700];
        let case = Case { queries: vec![1; lens.len()], lens, ..shape(&spec, 16, 4) };
        let built = build::<bf16>(&case);
        // The last is that of codes: `codes::planted`.
        let guards = toolchain::guards("attend_pages.cu");
        assert_eq!(guards, [1, 2, 3, 4, 5, 6, 7]);
        for guard in 1..7 {
            for schedule in SCHEDULES {
                let (_, _, report) = device.run::<bf16, bf16, f32>(&case, &built, schedule, guard);
                assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}, wide {wide}");
                // What it guards: the wait against early reads, barriers against races.
                let early = report.count(Fault::InFlight) > 0;
                assert!(early || guard != 2, "{}", report.first());
            }
        }
    }
}

/// A small grid for the sanitizers, one schedule each.
pub(crate) fn small() {
    for spec in [BF16, AttendSpec { dtype: DType::F32, slots: true, wide: true, ..BF16 }] {
        let device = Device::new(spec);
        for case in cases(&spec) {
            match spec.dtype {
                DType::F32 => small_case::<f32>(&device, &case),
                _ => small_case::<bf16>(&device, &case),
            }
        }
    }
}

fn small_case<T: Element>(device: &Device, case: &Case) {
    let built = build::<T>(case);
    let (o, lse, report) = device.run::<T, T, f32>(case, &built, SCHEDULES[2], 0);
    report.expect_clean(case);
    compare(case, T::DTYPE, &o, &lse, &oracle(case, &built));
}

/// What the device cannot do is an error that names both sides.
pub(crate) fn misuse() {
    let error = |case: &Case| {
        let built = build::<bf16>(case);
        run_with(case, &built, |queries, pool, pages, _, params| {
            let listed = Listed::Pages(pool, pages);
            let shape = [case.queries.iter().sum(), queries.q.shape()[1], case.dim_v];
            let mut o = vec![0f32; shape.iter().product()];
            let out = Out { o: Tensor3Mut::contiguous(&mut o, shape).unwrap(), lse2: None };
            let work =
                Work::new(queries, &listed, params, 16, WORKERS).map(|_| AttendParams::zeroed());
            let all = work.and_then(|_| work::describe(queries, &listed, params, &out));
            all.map(|_| ()).unwrap_err().to_string()
        })
    };
    let case = Case { lens: vec![20], queries: vec![1], ..shape(&BF16, 16, 1) };
    assert_eq!(
        error(&Case { page: 17, ..case.clone() }),
        "page_tokens on the device: expected a multiple of 16, found 17"
    );
    assert_eq!(
        error(&Case { dim_k: 72, dim_v: 72, ..case.clone() }),
        "dim on the device: expected one of [64, 80, 96, 128, 256] up to 256 in bf16, found 72"
    );
    assert_eq!(
        error(&Case { dim_v: 128, ..case.clone() }),
        "dim_v on the device: expected 64, found 128"
    );
    let found = error(&Case { padding: 1, ..case });
    assert!(found.starts_with("k: expected rows that start at multiples of 16 bytes"), "{found}");
}
