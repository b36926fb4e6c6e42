//! K5 and the merge with the context, against the f64 oracle.

use half::{bf16, f16};
use kvist_kernels::attend::{Listed, Out, ROOT, Trees};
use kvist_kernels::cuda::params::{AttendParams, TreeParams};
use kvist_kernels::cuda::work::{TreeSpec, TreeWork, describe_tree};
use kvist_kernels::reference::{self, Attended};
use kvist_kernels::{DType, Element, Error, KvPool, PageLists, SlotLists, Tensor3Mut};

use crate::attend::{Attention, compare};
use crate::common::{Built, Case, Random, base, build, run_with};
use crate::machine::{Fault, Grid, Kernels, Memory, SCHEDULES, Schedule};
use crate::toolchain;

/// Random trees: any node before may be the parent, or none.
pub(crate) fn parents(case: &Case) -> Vec<u32> {
    let mut random = Random(case.seed ^ 0x7ee);
    let mut parent = |i: usize| match random.below(i + 1) {
        0 => ROOT,
        p => p as u32 - 1,
    };
    case.queries.iter().flat_map(|&n| (0..n).map(&mut parent).collect::<Vec<_>>()).collect()
}

/// A case whose lists are its trees: a token for each query row.
fn nodes(case: Case) -> Case {
    Case { lens: case.queries.clone(), causal: false, slots: false, sinks: false, ..case }
}

/// What the oracle says of trees without a context.
fn expected<T: Element>(case: &Case, built: &Built<T>, parents: &[u32]) -> Attended {
    run_with(case, built, |queries, pool, pages, _, params| {
        let tokens = reference::page_tokens(pool, pages);
        let none = vec![Vec::new(); tokens.len()];
        let per_head = case.per_head;
        let (context, own) = ((pool, &none[..], per_head), (pool, &tokens[..], per_head));
        reference::attend_tree(queries, context, own, parents, params)
    })
}

/// Calls with the nodes as pages, or as slots of the same frames.
fn with_nodes<R>(pool: &KvPool, pages: &PageLists, slots: bool, f: impl FnOnce(&Listed) -> R) -> R {
    if !slots {
        return f(&Listed::Pages(pool, pages));
    }
    let page = pool.layout().page_tokens;
    let (mut indptr, mut numbers) = (vec![0u32], Vec::new());
    for list in reference::page_tokens(pool, pages) {
        numbers.extend(list.iter().map(|t| (t.0 * page + t.1) as u32));
        indptr.push(numbers.len() as u32);
    }
    let per_head = pages.per_head;
    let lists = SlotLists { indptr: &indptr, slots: &numbers, positions: None, per_head };
    f(&Listed::Slots(pool, &lists))
}

struct Device {
    spec: TreeSpec,
    attend: Kernels,
}

impl Device {
    fn new(spec: TreeSpec) -> Device {
        let attend = Kernels::sized("attend_tree.cu", &spec.macros(), spec.shared_bytes());
        Device { spec, attend }
    }

    fn run<T: Element>(
        &self,
        case: &Case,
        built: &Built<T>,
        trees: &Trees,
        slots: bool,
        (schedule, left_out): (Schedule, u32),
    ) -> Result<Attention, Error> {
        let (rows, q_heads) = (case.queries.iter().sum(), case.kv_heads * case.group);
        let mut o = vec![f32::NAN; rows * q_heads * case.dim_v];
        let mut lse = vec![f32::NAN; rows * q_heads];
        let view = Tensor3Mut::contiguous(&mut o, [rows, q_heads, case.dim_v]).unwrap();
        let out = Out { o: view, lse2: None };
        let (p, work) = run_with(case, built, |queries, pool, pages, _, params| {
            with_nodes(pool, pages, slots, |nodes| {
                let (spec, p) = describe_tree(queries, trees, nodes, params, &out)?;
                assert_eq!(spec, self.spec);
                Ok((p, TreeWork::new(queries, trees, nodes, params, spec.rows())?))
            })
        })?;
        let call = AttendParams {
            lse2: lse.as_ptr() as u64,
            units: work.units.as_ptr() as u64,
            indptr: work.indptr.as_ptr() as u64,
            items: work.slots.as_ptr() as u64,
            ..p.call
        };
        let p = TreeParams { call, ancestors: work.ancestors.as_ptr() as u64 };
        let memory = [
            Memory::read(&built.q),
            Memory::read(&built.k),
            Memory::read(&built.v),
            Memory::read(&work.units),
            Memory::read(&work.indptr),
            Memory::read(&work.slots),
            Memory::read(&work.ancestors),
            Memory::write(&mut o),
            Memory::write(&mut lse),
        ];
        let (blocks, shared_bytes) = (work.units.len(), self.spec.shared_bytes());
        let grid = Grid { blocks, shared_bytes, schedule, left_out };
        let report = self.attend.run("attend_tree", &p, grid, &memory);
        Ok((o, lse, report))
    }

    fn check<T: Element>(&self, case: &Case, built: &Built<T>, schedules: &[Schedule]) {
        let parents = parents(case);
        let trees = Trees::new(&built.q_indptr, &parents).unwrap();
        let want = expected(case, built, &parents);
        let mut first: Option<Vec<u32>> = None;
        for (i, &schedule) in schedules.iter().enumerate() {
            let got = self.run(case, built, &trees, i % 2 == 1, (schedule, 0));
            let (o, lse, report) = got.unwrap();
            report.expect_clean(&(schedule, case));
            compare(case, T::DTYPE, &o, &lse, &want);
            let bits: Vec<u32> = o.iter().chain(&lse).map(|x| x.to_bits()).collect();
            assert!(first.get_or_insert_with(|| bits.clone()) == &bits, "{schedule:?}, {case:?}");
        }
    }
}

/// The cases of a specialisation, each with NaN in every token and frame that no list names.
fn cases(spec: &TreeSpec) -> Vec<Case> {
    let base = Case { dim_k: spec.dim, dim_v: spec.dim, kv_heads: 1, ..base() };
    let padding = 16 / spec.dtype.size();
    [
        Case { queries: vec![1, 0, 15, 17], group: 4, page: 16, ..base.clone() },
        Case { queries: vec![64, 33], group: 3, window: 3, soft_cap: 9.0, ..base.clone() },
        Case { queries: vec![20], hnd: false, per_head: false, kv_heads: 2, padding, ..base },
    ]
    .map(nodes)
    .to_vec()
}

fn of_type(spec: TreeSpec, schedules: &[Schedule]) {
    let device = Device::new(spec);
    for case in cases(&spec) {
        match spec.dtype {
            DType::F32 => device.check::<f32>(&case, &build(&case), schedules),
            DType::F16 => device.check::<f16>(&case, &build(&case), schedules),
            DType::Bf16 => device.check::<bf16>(&case, &build(&case), schedules),
        }
    }
}

const BF16: TreeSpec = TreeSpec { dim: 64, dtype: DType::Bf16 };

pub(crate) fn grid() {
    of_type(BF16, &SCHEDULES);
    let types = [(80, DType::F16), (96, DType::Bf16), (128, DType::F16), (256, DType::Bf16)];
    for (dim, dtype) in types.into_iter().chain([(64, DType::F32), (128, DType::F32)]) {
        of_type(TreeSpec { dim, dtype }, &SCHEDULES[2..3]);
    }
}

/// A NaN or infinite key or value reaches the nodes below it, as in the oracle, and no other.
pub(crate) fn specials() {
    let device = Device::new(BF16);
    let case = nodes(Case { queries: vec![40], kv_heads: 1, ..base() });
    for (side, value) in [(0, f32::NAN), (1, f32::NAN), (0, f32::INFINITY), (1, f32::INFINITY)] {
        for node in [0, 5, 30] {
            let mut built = build::<bf16>(&case);
            let at = (built.list[0] as usize * case.page + node) * case.dim_k;
            let data = if side == 0 { &mut built.k } else { &mut built.v };
            data[at + 7] = bf16::from_f32(value);
            device.check(&case, &built, &SCHEDULES[2..4]);
        }
    }
}

/// Each barrier and wait left out is reported, under every schedule.
pub(crate) fn planted() {
    let device = Device::new(BF16);
    let case = nodes(Case { queries: vec![60, 20], group: 4, kv_heads: 1, ..base() });
    let built = build::<bf16>(&case);
    let trees = Trees::chains(&built.q_indptr).unwrap();
    let guards = toolchain::guards("attend_tree.cu");
    assert_eq!(guards, [1, 2, 3, 5, 6]);
    // The others are for queries that registers keep, and for wgmma.
    for &guard in &guards[1..3] {
        for schedule in SCHEDULES {
            let got = device.run(&case, &built, &trees, false, (schedule, guard));
            let (_, _, report) = got.unwrap();
            assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}");
            let early = report.count(Fault::InFlight) > 0;
            assert!(early || guard != 2, "{}", report.first());
        }
    }
}

/// A small grid for the sanitizers, one schedule each.
pub(crate) fn small() {
    for spec in [BF16, TreeSpec { dtype: DType::F32, ..BF16 }] {
        of_type(spec, &SCHEDULES[2..3]);
    }
}

/// What the device cannot do is an error that names both sides.
pub(crate) fn misuse() {
    let device = Device::new(BF16);
    let case = nodes(Case { queries: vec![65], kv_heads: 1, ..base() });
    let built = build::<bf16>(&case);
    let error = |trees: &Trees| {
        let got = device.run(&case, &built, trees, false, (SCHEDULES[0], 0));
        got.map(|_| ()).unwrap_err().to_string()
    };
    let found = error(&Trees::chains(&[0, 65]).unwrap());
    assert_eq!(found, "nodes of a tree on the device: expected 64 at most, found 65");
    let found = error(&Trees::chains(&[0, 64]).unwrap());
    assert_eq!(found, "trees: expected [0, 65], found [0, 64]");
}
