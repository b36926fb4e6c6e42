//! K1 over K and V in eight bits, against f64 over the numbers that the codes stand for.

use bytemuck::Zeroable;
use half::{bf16, f16};
use kvist_kernels::attend::{Listed, Out};
use kvist_kernels::cuda::params::{AttendCodesParams, AttendParams};
use kvist_kernels::cuda::work::{self, AttendCodesSpec, Work};
use kvist_kernels::quant::{Bits, Quant};
use kvist_kernels::{DType, Element, Tensor3, Tensor3Mut};

use crate::attend::{Attention, cases, compare};
use crate::common::{Built, Case, build, oracle, run_with};
use crate::machine::{Fault, Grid, Kernels, Memory, SCHEDULES, Schedule};

/// Codes of one side in the places of its rows, scales by frame, head and token, and the numbers.
struct Side {
    codes: Vec<u128>,
    scales: Vec<f16>,
    numbers: Vec<f32>,
}

impl Side {
    fn new<T: Element>(rows: &[T], strides: [i64; 3], shape: [usize; 3], quant: &Quant) -> Side {
        let [frames, heads, tokens] = shape;
        let (dim, groups) = (quant.dim(), quant.scales());
        let mut codes = vec![0x55u8; rows.len().next_multiple_of(16)];
        let mut scales = vec![f16::NAN; frames * heads * tokens * groups];
        let mut numbers = vec![f32::NAN; rows.len()];
        for i in 0..frames * heads * tokens {
            let (frame, head, token) = (i / tokens / heads, i / tokens % heads, i % tokens);
            let at = [frame, head, token]
                .iter()
                .zip(strides)
                .map(|(&n, s)| n * s as usize)
                .sum::<usize>();
            let row = Tensor3::contiguous(&rows[at..][..dim], [1, 1, dim]).unwrap();
            let (codes, scales) = (&mut codes[at..][..dim], &mut scales[i * groups..][..groups]);
            quant.encode(&row, codes, scales).unwrap();
            let mut back = Tensor3Mut::contiguous(&mut numbers[at..][..dim], [1, 1, dim]).unwrap();
            quant.decode(codes, scales, &mut back).unwrap();
        }
        let whole = codes.as_chunks::<16>().0.iter().map(|c| u128::from_ne_bytes(*c)).collect();
        Side { codes: whole, scales, numbers }
    }
}

struct Device {
    spec: AttendCodesSpec,
    attend: Kernels,
    merge: Kernels,
}

impl Device {
    fn new(spec: AttendCodesSpec) -> Device {
        let attend = Kernels::sized("attend_pages.cu", &spec.macros(), spec.shared_bytes());
        Device { spec, attend, merge: Kernels::compile("merge.cu", &[]) }
    }

    fn run<T: Element>(
        &self,
        (case, built): (&Case, &Built<T>),
        (k, v): (&Side, &Side),
        group: usize,
        (schedule, left_out): (Schedule, u32),
    ) -> Attention {
        run_with(case, built, |queries, pool, pages, _, params| {
            let listed = Listed::Pages(pool, pages);
            let shape @ [rows, q_heads, dim] = queries.q.shape();
            let (mut o, mut lse) =
                (vec![f32::NAN; rows * q_heads * dim], vec![f32::NAN; rows * q_heads]);
            let out = Out { o: Tensor3Mut::contiguous(&mut o, shape).unwrap(), lse2: None };
            let (_, p) = work::describe(queries, &listed, params, &out).unwrap();
            let spec = self.spec.attend();
            let work = Work::new(queries, &listed, params, spec.rows(), 3).unwrap();
            let mut part_o = vec![f32::NAN; work.partials * spec.rows() * dim];
            let mut part_lse = vec![f32::NAN; work.partials * spec.rows()];
            let attend = AttendParams {
                k: k.codes.as_ptr() as u64,
                v: v.codes.as_ptr() as u64,
                lse2: lse.as_ptr() as u64,
                part_o: part_o.as_ptr() as u64,
                part_lse2: part_lse.as_ptr() as u64,
                units: work.units.as_ptr() as u64,
                segments: work.segments.as_ptr() as u64,
                workers: work.workers.as_ptr() as u64,
                indptr: built.indptr.as_ptr() as u64,
                items: built.list.as_ptr() as u64,
                lens: built.lens.as_ptr() as u64,
                first_pos: built.first_pos.as_ptr() as u64,
                q_pos: built.positions.as_ptr() as u64,
                sinks: if case.sinks { built.sinks.as_ptr() as u64 } else { 0 },
                ..p
            };
            let heads = built.layout.kv_heads;
            let of_head = (case.page * dim.div_ceil(group)) as i64;
            let of_frame = heads as i64 * of_head;
            let p = AttendCodesParams {
                attend,
                k_scales: k.scales.as_ptr() as u64,
                v_scales: v.scales.as_ptr() as u64,
                k_scale_frame: of_frame,
                k_scale_head: if heads == 1 { 0 } else { of_head },
                v_scale_frame: of_frame,
                v_scale_head: if heads == 1 { 0 } else { of_head },
                group: group as u32,
                ..AttendCodesParams::zeroed()
            };
            let mut memory = vec![
                Memory::read(&k.codes),
                Memory::read(&v.codes),
                Memory::read(&k.scales),
                Memory::read(&v.scales),
                Memory::read(&built.q),
                Memory::read(&work.units),
                Memory::read(&work.segments),
                Memory::read(&work.workers),
                Memory::read(&built.indptr),
                Memory::read(&built.list),
                Memory::read(&built.lens),
                Memory::read(&built.first_pos),
                Memory::read(&built.positions),
                Memory::read(&built.sinks),
                Memory::write(&mut o),
                Memory::write(&mut lse),
                Memory::write(&mut part_o),
                Memory::write(&mut part_lse),
            ];
            let blocks = work.workers.len() - 1;
            let shared_bytes = self.spec.shared_bytes();
            let grid = Grid { blocks, shared_bytes, schedule, left_out };
            let report = self.attend.run("attend_codes", &p, grid, &memory);
            memory.truncate(16);
            memory.extend([Memory::read(&part_o), Memory::read(&part_lse)]);
            let blocks = (work.units.len() * spec.rows()).div_ceil(4);
            let merge = work::merge_of(&spec, &p.attend, &work);
            let grid = Grid { blocks, shared_bytes: 0, schedule, left_out };
            let report = report.and(&self.merge.run("merge_units", &merge, grid, &memory));
            (o, lse, report)
        })
    }
}

/// The case in eight bits: both sides, and the same case in the numbers that they stand for.
fn coded<T: Element>(case: &Case, group: usize) -> (Built<T>, Side, Side, Built<f32>) {
    let (built, mut numbers) = (build::<T>(case), build::<f32>(case));
    let quant = Quant::new(Bits::Eight, case.dim_k, group).unwrap();
    let shape = [built.frames, built.layout.kv_heads, case.page];
    let k = Side::new(&built.k, built.layout.k_strides, shape, &quant);
    let v = Side::new(&built.v, built.layout.v_strides, shape, &quant);
    (numbers.k, numbers.v) = (k.numbers.clone(), v.numbers.clone());
    numbers.q = built.q.iter().map(|x| x.to_f32()).collect();
    (built, k, v, numbers)
}

fn check<T: Element>(device: &Device, case: &Case, group: usize, schedules: &[Schedule]) {
    let (built, k, v, numbers) = coded::<T>(case, group);
    let want = oracle(case, &numbers);
    let mut first: Option<Vec<u32>> = None;
    for &schedule in schedules {
        let (o, lse, report) = device.run((case, &built), (&k, &v), group, (schedule, 0));
        report.expect_clean(&(schedule, case));
        compare(case, T::DTYPE, &o, &lse, &want);
        let bits: Vec<u32> = o.iter().chain(&lse).map(|x| x.to_bits()).collect();
        assert!(first.get_or_insert_with(|| bits.clone()) == &bits, "{schedule:?}, {case:?}");
    }
}

/// The cases of attention, rows in steps of 16 bytes.
fn cases_of(spec: &AttendCodesSpec) -> Vec<Case> {
    let cases = cases(&spec.attend()).into_iter();
    cases.map(|case| Case { padding: 2 * case.padding, ..case }).collect()
}

fn of_type(spec: AttendCodesSpec, per_type: &dyn Fn(&Device, &Case, usize)) {
    let device = Device::new(spec);
    let groups = Quant::GROUPS.into_iter().cycle();
    cases_of(&spec).iter().zip(groups).for_each(|(case, group)| per_type(&device, case, group));
}

/// Dimensions, types, rows and groups.
pub(crate) fn grid() {
    let spec = |dim, dtype, wide| AttendCodesSpec { dim, dtype, wide };
    for wide in [false, true] {
        of_type(spec(128, DType::Bf16, wide), &|d, c, g| check::<bf16>(d, c, g, &SCHEDULES[1..3]));
    }
    of_type(spec(80, DType::F16, false), &|d, c, g| check::<f16>(d, c, g, &SCHEDULES));
}

/// A key or value that is not finite, whose group is NaN, reaches the rows that see it, and no other.
pub(crate) fn specials() {
    let device = Device::new(AttendCodesSpec { dim: 64, dtype: DType::Bf16, wide: false });
    let case = &Case {
        dim_k: 64,
        dim_v: 64,
        lens: vec![90, 70],
        queries: vec![4, 1],
        kv_heads: 1,
        causal: true,
        ..cases_of(&device.spec)[1].clone()
    };
    let quant = Quant::new(Bits::Eight, 64, 32).unwrap();
    for (side, token) in [(0, 3), (1, 3), (0, 88), (1, 88)] {
        let (mut built, mut k, mut v, mut numbers) = coded::<bf16>(case, 32);
        let at = (built.list[token / 64] as usize * 64 + token % 64) * 64;
        let rows = if side == 0 { &mut built.k } else { &mut built.v };
        rows[at + 5] = bf16::INFINITY;
        let shape = [built.frames, 1, 64];
        let new = Side::new(rows, built.layout.k_strides, shape, &quant);
        let (old, wanted) =
            if side == 0 { (&mut k, &mut numbers.k) } else { (&mut v, &mut numbers.v) };
        wanted.clone_from(&new.numbers);
        *old = new;
        let (o, lse, report) = device.run((case, &built), (&k, &v), 32, (SCHEDULES[2], 0));
        report.expect_clean(case);
        compare(case, DType::Bf16, &o, &lse, &oracle(case, &numbers));
    }
}

/// One of each, for the sanitizers.
pub(crate) fn small() {
    let device = Device::new(AttendCodesSpec { dim: 64, dtype: DType::Bf16, wide: true });
    for (case, group) in cases_of(&device.spec)[4..].iter().zip(Quant::GROUPS) {
        check::<bf16>(&device, case, group, &SCHEDULES[2..3]);
    }
}

/// Each barrier and wait left out is reported, under every schedule.
pub(crate) fn planted() {
    for wide in [false, true] {
        let device = Device::new(AttendCodesSpec { dim: 64, dtype: DType::Bf16, wide });
        let lens = vec![520, 300, 450, 700];
        let case = &Case { queries: vec![1; 4], lens, ..cases_of(&device.spec)[0].clone() };
        let (built, k, v, _) = coded::<bf16>(case, 64);
        for guard in 1..8 {
            for schedule in SCHEDULES {
                let of = (case, &built);
                let (_, _, report) = device.run(of, (&k, &v), 64, (schedule, guard));
                assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}, wide {wide}");
                let early = report.count(Fault::InFlight) > 0;
                assert!(early || guard != 2, "{}", report.first());
            }
        }
    }
}
