//! K3 and K4 and the merge behind them, against the f64 oracle.

use half::{bf16, f16};
use kvist_kernels::attend::{BlockLists, Columns, Listed, Out};
use kvist_kernels::cuda::params::{AttendParams, PrefillParams};
use kvist_kernels::cuda::work::{PrefillSpec, Work, describe_prefill};
use kvist_kernels::reference::{self, Attended};
use kvist_kernels::{DType, Element, Tensor3Mut};

use crate::attend::{Attention, compare};
use crate::common::{Built, Case, Random, base, build, oracle, run_with};
use crate::machine::{Fault, Grid, Kernels, Memory, SCHEDULES, Schedule};
use crate::toolchain;

/// Blocks that run at once: few, so that units are cut and blocks have several segments.
const WORKERS: usize = 3;

/// Block lists that own their numbers.
#[derive(Clone, Debug)]
pub(crate) struct Lists {
    query_block: usize,
    key_block: usize,
    per_query_head: bool,
    indptr: Vec<u32>,
    blocks: Vec<u32>,
}

impl Lists {
    /// Of a hundred blocks so many, chosen at random: some lists are empty.
    pub(crate) fn random(
        case: &Case,
        (query_block, key_block): (usize, usize),
        per_query_head: bool,
        density: usize,
    ) -> Lists {
        let mut random = Random(case.seed ^ 0x5eed);
        let heads = case.kv_heads * if per_query_head { case.group } else { 1 };
        let (mut indptr, mut blocks) = (vec![0], Vec::new());
        for (&len, &queries) in case.lens.iter().zip(&case.queries) {
            for _ in 0..heads * queries.div_ceil(query_block) {
                let all = 0..len.div_ceil(key_block) as u32;
                let density = if random.below(6) == 0 { 0 } else { density };
                blocks.extend(all.filter(|_| random.below(100) < density));
                indptr.push(blocks.len() as u32);
            }
        }
        Lists { query_block, key_block, per_query_head, indptr, blocks }
    }

    pub(crate) fn view(&self) -> BlockLists<'_> {
        let &Lists { query_block, key_block, per_query_head, .. } = self;
        let (indptr, blocks) = (&self.indptr, &self.blocks);
        BlockLists { query_block, key_block, indptr, blocks, per_query_head, columns: None }
    }
}

/// What the oracle says of a case, over listed blocks if there are any.
pub(crate) fn expected<T: Element>(
    case: &Case,
    built: &Built<T>,
    lists: Option<&Lists>,
) -> Attended {
    let Some(lists) = lists else { return oracle(case, built) };
    run_with(case, built, |queries, pool, pages, _, params| {
        reference::attend_blocks(queries, pool, pages, &lists.view(), params)
    })
}

/// The compiled kernels of a specialisation.
struct Device {
    spec: PrefillSpec,
    attend: Kernels,
    merge: Kernels,
}

impl Device {
    fn new(spec: PrefillSpec) -> Device {
        let attend = Kernels::sized("attend_prefill.cu", &spec.macros(), spec.shared_bytes());
        Device { spec, attend, merge: Kernels::compile("merge.cu", &[]) }
    }

    /// Attends and merges.
    fn run<T: Element>(
        &self,
        case: &Case,
        built: &Built<T>,
        lists: Option<&Lists>,
        (schedule, left_out): (Schedule, u32),
    ) -> Attention {
        let (rows, q_heads) = (case.queries.iter().sum(), case.kv_heads * case.group);
        let mut o = vec![f32::NAN; rows * q_heads * case.dim_v];
        let mut lse = vec![f32::NAN; rows * q_heads];
        let view = Tensor3Mut::contiguous(&mut o, [rows, q_heads, case.dim_v]).unwrap();
        let out = Out { o: view, lse2: None };
        let blocks = lists.map(Lists::view);
        let (p, work, picked) = run_with(case, built, |queries, pool, pages, _, params| {
            let (spec, p) =
                describe_prefill(queries, (pool, pages), blocks.as_ref(), params, &out).unwrap();
            let spec = PrefillSpec { wgmma: self.spec.wgmma, ..spec };
            assert_eq!(spec, self.spec);
            let rows = spec.rows();
            let Some(blocks) = &blocks else {
                let listed = Listed::Pages(pool, pages);
                let work = Work::new(queries, &listed, params, rows, WORKERS).unwrap();
                return (p, work, Vec::new());
            };
            let cut = Work::of_blocks(queries, (pool, pages), blocks, params, rows, WORKERS);
            let (work, picked) = cut.unwrap();
            (p, work, picked)
        });
        let ids = lists.map_or(&[][..], |lists| &lists.blocks);
        let partial = work.partials * self.spec.rows();
        let mut part_o = vec![f32::NAN; partial * self.spec.dim];
        let mut part_lse = vec![f32::NAN; partial];
        let masked = case.causal || case.window > 0;
        let at = |x: &[u32], wanted: bool| if wanted { x.as_ptr() as u64 } else { 0 };
        let call = AttendParams {
            lse2: lse.as_ptr() as u64,
            part_o: part_o.as_ptr() as u64,
            part_lse2: part_lse.as_ptr() as u64,
            units: work.units.as_ptr() as u64,
            segments: work.segments.as_ptr() as u64,
            workers: work.workers.as_ptr() as u64,
            indptr: at(&built.indptr, true),
            items: at(&built.list, true),
            lens: at(&built.lens, true),
            first_pos: at(&built.first_pos, case.first_pos > 0),
            q_pos: at(&built.positions, masked),
            sinks: if case.sinks { built.sinks.as_ptr() as u64 } else { 0 },
            ..p.call
        };
        let p = PrefillParams { call, blocks: at(ids, true), picked: picked.as_ptr() as u64, ..p };
        let mut memory = vec![
            Memory::read(&built.q),
            Memory::read(&built.k),
            Memory::read(&built.v),
            Memory::read(&work.units),
            Memory::read(&work.segments),
            Memory::read(&work.workers),
            Memory::read(&picked),
            Memory::read(ids),
            Memory::read(&built.indptr),
            Memory::read(&built.list),
            Memory::read(&built.lens),
            Memory::read(&built.first_pos),
            Memory::read(&built.positions),
            Memory::read(&built.sinks),
            Memory::write(&mut o),
            Memory::write(&mut lse),
        ];
        let parts = memory.len();
        memory.extend([Memory::write(&mut part_o), Memory::write(&mut part_lse)]);
        let blocks = work.workers.len() - 1;
        let grid = Grid { blocks, shared_bytes: self.spec.shared_bytes(), schedule, left_out };
        let report = self.attend.run("attend_prefill", &p, grid, &memory);
        memory.truncate(parts);
        memory.extend([Memory::read(&part_o), Memory::read(&part_lse)]);
        let merge = self.spec.merge_of(&p, &work);
        let blocks = (work.units.len() * self.spec.rows()).div_ceil(4);
        let grid = Grid { blocks, shared_bytes: 0, schedule, left_out };
        let report = report.and(&self.merge.run("merge_units", &merge, grid, &memory));
        (o, lse, report)
    }

    /// Under these schedules: no fault, the oracle's numbers, the same bits.
    fn check<T: Element>(
        &self,
        case: &Case,
        built: &Built<T>,
        lists: Option<&Lists>,
        schedules: &[Schedule],
    ) {
        let want = expected(case, built, lists);
        let mut first: Option<Vec<u32>> = None;
        for &schedule in schedules {
            let (o, lse, report) = self.run::<T>(case, built, lists, (schedule, 0));
            report.expect_clean(&(schedule, case, lists));
            compare(case, T::DTYPE, &o, &lse, &want);
            let bits: Vec<u32> = o.iter().chain(&lse).map(|x| x.to_bits()).collect();
            assert!(first.get_or_insert_with(|| bits.clone()) == &bits, "{schedule:?}, {case:?}");
        }
    }
}

/// The cases of a specialisation, each with NaN in every token and frame that no list names.
pub(crate) fn cases(spec: &PrefillSpec) -> Vec<(Case, Option<Lists>)> {
    let base = Case { dim_k: spec.dim, dim_v: spec.dim, kv_heads: 1, ..base() };
    let padding = 16 / spec.dtype.size();
    if !spec.blocks {
        let lens = vec![0, 1, 15, 16, 65, 130];
        return [
            Case { page: 16, group: 4, lens, queries: vec![1, 1, 2, 0, 40, 5], ..base.clone() },
            Case {
                lens: vec![64, 70],
                queries: vec![64, 3],
                group: 3,
                sinks: true,
                ..base.clone()
            },
            Case { lens: vec![150, 3], queries: vec![20, 5], group: 8, window: 37, ..base.clone() },
        ]
        .map(|case| Case { causal: true, ..case })
        .into_iter()
        .chain([
            // Everybody sees everything; a window without an end; one pool for all heads.
            Case { lens: vec![63, 129], queries: vec![130, 7], group: 1, padding, ..base.clone() },
            Case {
                hnd: false,
                per_head: false,
                kv_heads: 2,
                soft_cap: 20.0,
                page: 48,
                ..base.clone()
            },
            Case { window: 50, first_pos: 500, queries: vec![12], hnd: false, padding, ..base },
        ])
        .map(|case| (case, None))
        .collect();
    }
    let long = Case { lens: vec![200, 3], queries: vec![70, 3], page: 16, ..base.clone() };
    let of = |case: Case, sizes, per_query_head, density| {
        let lists = Lists::random(&case, sizes, per_query_head, density);
        (case, Some(lists))
    };
    let causal = Case { causal: true, ..long.clone() };
    let shared = Case { hnd: false, per_head: false, kv_heads: 2, ..causal.clone() };
    vec![
        of(causal, (64, 64), false, 60),
        of(Case { page: 64, queries: vec![40, 3], ..shared }, (16, 16), true, 40),
        of(Case { group: 8, ..long.clone() }, (16, 32), false, 50),
        of(Case { window: 60, sinks: true, ..long }, (7, 48), false, 70),
    ]
}

fn of_type(spec: PrefillSpec, schedules: &[Schedule]) {
    let device = Device::new(spec);
    for (case, lists) in cases(&spec) {
        match spec.dtype {
            DType::F32 => device.check::<f32>(&case, &build(&case), lists.as_ref(), schedules),
            DType::F16 => device.check::<f16>(&case, &build(&case), lists.as_ref(), schedules),
            DType::Bf16 => device.check::<bf16>(&case, &build(&case), lists.as_ref(), schedules),
        }
    }
}

/// The grid of one specialisation.
pub(crate) fn grid(spec: PrefillSpec) {
    // All schedules once; other dimensions have the same barriers.
    let all = spec == BF16 || spec == BLOCKS;
    of_type(spec, if all { &SCHEDULES } else { &SCHEDULES[2..3] });
}

const BF16: PrefillSpec = PrefillSpec { dim: 64, dtype: DType::Bf16, blocks: false, wgmma: false };
const BLOCKS: PrefillSpec = PrefillSpec { blocks: true, ..BF16 };
const HOPPER: PrefillSpec = PrefillSpec { wgmma: true, ..BLOCKS };

/// The specialisations whose grid runs.
pub(crate) fn specs() -> Vec<PrefillSpec> {
    let spec = |dim, dtype, blocks| PrefillSpec { dim, dtype, blocks, wgmma: false };
    let hopper = |dim, dtype, blocks| PrefillSpec { wgmma: true, ..spec(dim, dtype, blocks) };
    vec![
        BF16,
        BLOCKS,
        spec(128, DType::F16, false),
        spec(128, DType::Bf16, true),
        spec(80, DType::F16, true),
        spec(96, DType::Bf16, false),
        spec(256, DType::Bf16, false),
        spec(64, DType::F32, true),
        spec(128, DType::F32, false),
        hopper(64, DType::Bf16, true),
        hopper(64, DType::F16, false),
        hopper(128, DType::Bf16, false),
    ]
}

/// Numbers of rows around those of a warp and of a unit.
pub(crate) fn rows() {
    let device = Device::new(BF16);
    for n in [1, 17, 32, 33, 128, 129, 300] {
        let case = Case { group: 1, kv_heads: 1, lens: vec![n], queries: vec![n], ..base() };
        let case = Case { causal: true, page: 16, seed: n as u64, ..case };
        device.check::<bf16>(&case, &build(&case), None, &SCHEDULES[n % 4..][..1]);
    }
}

/// A NaN or infinite key or value reaches the rows that see it, as in the oracle, and no other.
pub(crate) fn specials() {
    let devices = [Device::new(BF16), Device::new(BLOCKS), Device::new(HOPPER)];
    let case = Case { kv_heads: 1, causal: true, lens: vec![90], queries: vec![60], ..base() };
    let lists = Lists::random(&case, (16, 16), false, 60);
    let values = [(0, f32::NAN), (1, f32::NAN), (0, f32::INFINITY), (1, f32::NEG_INFINITY)];
    for (side, value) in values {
        for token in [40, 88] {
            let mut built = build::<bf16>(&case);
            let frame = built.list[token / case.page] as usize;
            let at = (frame * case.page + token % case.page) * case.dim_k;
            let data = if side == 0 { &mut built.k } else { &mut built.v };
            data[at + 5] = bf16::from_f32(value);
            devices[0].check(&case, &built, None, &SCHEDULES[2..3]);
            devices[1].check(&case, &built, Some(&lists), &SCHEDULES[3..4]);
            devices[2].check(&case, &built, Some(&lists), &SCHEDULES[1..2]);
        }
    }
}

/// Each barrier and wait left out is reported.
pub(crate) fn planted() {
    let lens = vec![300, 260, 200, 150];
    let queries = vec![2; lens.len()];
    let case = Case { lens, queries, page: 16, group: 4, kv_heads: 1, ..base() };
    let built = build::<bf16>(&case);
    let all = Lists::random(&case, (64, 64), false, 100);
    for (spec, lists) in [(BF16, None), (BLOCKS, Some(&all)), (HOPPER, Some(&all))] {
        let device = Device::new(spec);
        let guards = toolchain::guards("attend_prefill.cu");
        assert_eq!(guards, [1, 2, 3, 4, 5, 6]);
        // The first is for queries that registers keep, the last two for wgmma, which has them there.
        let own = if spec.wgmma { &guards[..] } else { &guards[1..4] };
        for &guard in own {
            // The first kernel under every schedule, the others under two.
            for schedule in if spec == BF16 { &SCHEDULES[..] } else { &SCHEDULES[1..3] } {
                let (_, _, report) = device.run(&case, &built, lists, (*schedule, guard));
                assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}, {spec:?}");
                let early = report.count(Fault::InFlight) > 0;
                assert!(early || guard != 2, "{}", report.first());
            }
        }
    }
}

/// A small grid for the sanitizers, one schedule each.
pub(crate) fn small() {
    for spec in [BF16, BLOCKS, HOPPER, PrefillSpec { dtype: DType::F32, ..BLOCKS }] {
        of_type(spec, &SCHEDULES[2..3]);
    }
}

/// What the device cannot do is an error that names both sides.
pub(crate) fn misuse() {
    let case = Case { lens: vec![20], queries: vec![4], kv_heads: 1, ..base() };
    let built = build::<bf16>(&case);
    let lists = Lists::random(&case, (4, 16), false, 100);
    let error = |blocks: &BlockLists| {
        run_with(&case, &built, |queries, pool, pages, _, params| {
            let mut o = vec![0f32; 4 * 3 * 64];
            let out = Out { o: Tensor3Mut::contiguous(&mut o, [4, 3, 64]).unwrap(), lse2: None };
            let told = describe_prefill(queries, (pool, pages), Some(blocks), params, &out);
            told.unwrap_err().to_string()
        })
    };
    let columns = Some(Columns { indptr: &[0, 2], tokens: &[1, 5] });
    let found = error(&BlockLists { columns, ..lists.view() });
    assert_eq!(found, "columns on the device: expected none, found 2");
    let found = error(&BlockLists { key_block: 24, ..lists.view() });
    assert_eq!(found, "key_block: expected a multiple of 16, or a page of 64, found 24");
}
