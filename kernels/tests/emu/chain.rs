//! Whole steps whose lists and plans are made on the device: no host reads a score, a list or a length in
//! between, and one set of parameters serves steps of any length.

use std::ops::Range;

use bytemuck::Zeroable;
use half::bf16;
use kvist_kernels::attend::{self, Out, Params, Queries};
use kvist_kernels::cuda::params::{
    AttendParams, Fold, MergeUnitsParams, PlanParams, ScoreParams, Segment, TokensParams,
    TopKParams, TopPParams, Unit, type_code,
};
use kvist_kernels::cuda::work::{
    AttendSpec, Room, ScoreSpec, TILE, TILES_MIN, TokensSpec, Work, merge_of,
};
use kvist_kernels::score::{self, CellList, UnitQuery};
use kvist_kernels::select::{fold_max, top_k_forced, top_p_forced};
use kvist_kernels::summary::{self, UnitKind, UnitSpec};
use kvist_kernels::{
    DType, Executor, Isa, KvLayout, KvPool, PageLists, SlotLists, Tensor3, Tensor3Mut,
};

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::plan;

const DIM: usize = 64;
const HEADS: usize = 2;
const GROUP: usize = 2;
const PAGE: usize = 16;
const SEQUENCES: usize = 2;
const ROWS: usize = SEQUENCES * HEADS;
const WORKERS: usize = 3;
const SCALE: f32 = 0.125;
/// Tokens, and units of a page each, that a sequence has room for.
const TOKENS_MAX: usize = 13 * TILE;
const UNITS_MAX: usize = TOKENS_MAX / PAGE;

/// Tokens of each sequence in the steps that one set of parameters serves.
const STEPS: [[usize; SEQUENCES]; 3] = [[700, 130], [48, 0], [TOKENS_MAX, 333]];

/// What the engine has on the device: small whole numbers, so that scores are exact whatever the order.
struct Inputs {
    q: Vec<bf16>,
    /// `[frames][heads][16][dim]`
    k: Vec<bf16>,
    v: Vec<bf16>,
    /// `[cells][heads]`, cells of four units.
    cells: Vec<u8>,
    /// u32 per sequence and KV head: where its frames, slots and rows of results begin.
    frame_ptr: Vec<u32>,
    slot_ptr: Vec<u32>,
    row_ptr: Vec<u32>,
    frames: Vec<u32>,
    slots: Vec<u32>,
    /// Of a sequence: offsets and numbers of its cells.
    cell_ptr: Vec<u32>,
    cell_ids: Vec<u32>,
    q_indptr: Vec<u32>,
    lens: Lens,
}

/// What changes from step to step.
#[derive(Default)]
struct Lens {
    units: Vec<u32>,
    row_units: Vec<u32>,
    row_tokens: Vec<u32>,
    forced_ptr: Vec<u32>,
    /// Pairs, read at once.
    forced: Vec<u64>,
}

/// The first and the last page of a list.
fn keeps(units: u32) -> Vec<Range<u32>> {
    if units < 3 { vec![] } else { vec![0..1, units - 1..units] }
}

impl Lens {
    fn set(&mut self, tokens: &[usize; SEQUENCES]) {
        let units = tokens.map(|n| n.div_ceil(PAGE) as u32);
        let per_row = |row: usize| row / HEADS;
        self.units = units.to_vec();
        self.row_units = (0..ROWS).map(|row| units[per_row(row)]).collect();
        self.row_tokens = (0..ROWS).map(|row| tokens[per_row(row)] as u32).collect();
        (self.forced_ptr, self.forced) = (vec![0], vec![0; 2 * ROWS]);
        for row in 0..ROWS {
            let first = self.forced_ptr[row] as usize;
            let keeps = keeps(units[per_row(row)]);
            for (i, r) in keeps.iter().enumerate() {
                self.forced[first + i] = u64::from(r.start) | u64::from(r.end) << 32;
            }
            self.forced_ptr.push((first + keeps.len()) as u32);
        }
    }
}

fn layout() -> KvLayout {
    KvLayout::hnd(PAGE, HEADS, DIM, DIM)
}

fn spec() -> UnitSpec {
    UnitSpec::new(UnitKind::Box, DIM, DType::Bf16, PAGE).unwrap()
}

fn build() -> Inputs {
    let mut random = Random(21);
    let mut whole =
        |n: usize| (0..n).map(|_| bf16::from_f32(random.below(7) as f32 - 3.0)).collect::<Vec<_>>();
    let frames_n = SEQUENCES * UNITS_MAX;
    let (q, k) = (whole(SEQUENCES * HEADS * GROUP * DIM), whole(frames_n * HEADS * PAGE * DIM));
    let v = whole(k.len());
    let mut order: Vec<u32> = (0..frames_n as u32).collect();
    (1..frames_n).rev().for_each(|i| order.swap(i, random.below(i + 1)));
    let (cell, cells_n) = (spec().cell_bytes(), TOKENS_MAX / TILE);
    let mut cells = vec![0u8; SEQUENCES * cells_n * HEADS * cell];
    for (i, cell) in cells.chunks_mut(cell).enumerate() {
        let (tile, head) = (i / HEADS, i % HEADS);
        let row = |t: usize| {
            let frame = order[tile * 4 + t / PAGE] as usize;
            k[((frame * HEADS + head) * PAGE + t % PAGE) * DIM..].as_ptr().cast::<u8>()
        };
        let rows: Vec<*const u8> = (0..TILE).map(row).collect();
        // SAFETY: the pointers are rows of `k`.
        unsafe { summary::build_units(&spec(), &rows, cell) }
    }
    let slot = |t: usize| order[t / PAGE] * PAGE as u32 + (t % PAGE) as u32;
    let starts = |n: usize| (0..=ROWS).map(|row| (row / HEADS * n) as u32).collect();
    Inputs {
        q,
        k,
        v,
        cells,
        frame_ptr: starts(UNITS_MAX),
        slot_ptr: starts(TOKENS_MAX),
        row_ptr: (0..=ROWS).map(|row| (row * TOKENS_MAX) as u32).collect(),
        slots: (0..SEQUENCES * TOKENS_MAX).map(slot).collect(),
        frames: order,
        cell_ptr: (0..=SEQUENCES).map(|s| (s * cells_n) as u32).collect(),
        cell_ids: (0..(SEQUENCES * cells_n) as u32).collect(),
        q_indptr: (0..=SEQUENCES as u32).collect(),
        lens: {
            let mut lens = Lens::default();
            lens.set(&STEPS[0]);
            lens
        },
    }
}

/// A plan that is made on the device, and its kernel's parameters.
struct Planned {
    units: Vec<Unit>,
    segments: Vec<Segment>,
    workers: Vec<u32>,
    params: PlanParams,
}

impl Planned {
    fn new(units: Vec<Unit>, lens: &[u32]) -> Planned {
        let room = Room::new(units.len(), WORKERS);
        let segments = vec![Segment::zeroed(); room.segments];
        let workers = vec![0u32; room.workers];
        let params = PlanParams {
            units: units.as_ptr() as u64,
            segments: segments.as_ptr() as u64,
            workers: workers.as_ptr() as u64,
            lens: lens.as_ptr() as u64,
            indptr: 0,
            units_n: units.len() as u32,
            workers_n: WORKERS as u32,
            tile: TILE as u32,
            tiles_min: TILES_MIN,
        };
        Planned { units, segments, workers, params }
    }

    fn memory(&mut self) -> [Memory; 3] {
        [
            Memory::write(&mut self.units),
            Memory::write(&mut self.segments),
            Memory::write(&mut self.workers),
        ]
    }
}

/// Chosen lists, attention over them, and what it is told: the same for pages and for slots.
struct Attended {
    spec: AttendSpec,
    /// `[rows][TOKENS_MAX]`: ids, and frames or slots.
    ids: Vec<u32>,
    items: Vec<u32>,
    ids_n: Vec<u32>,
    lens: Vec<u32>,
    plan: Planned,
    part_o: Vec<f32>,
    part_lse2: Vec<f32>,
    o: Vec<f32>,
    lse2: Vec<f32>,
    params: AttendParams,
    merge: MergeUnitsParams,
}

impl Attended {
    fn new(inputs: &Inputs, slots: bool) -> Attended {
        let spec = AttendSpec { dim: DIM, dtype: DType::Bf16, slots, wide: false };
        let lens = vec![0u32; ROWS];
        let list = |sequence, head| sequence * HEADS + head;
        let units = Work::units(&inputs.q_indptr, (HEADS, GROUP), spec.rows(), list);
        let plan = Planned::new(units, &lens);
        let partial = Room::new(plan.units.len(), WORKERS).partials * spec.rows();
        let (part_o, part_lse2) = (vec![0f32; partial * DIM], vec![0f32; partial]);
        let (o, lse2) = (vec![0f32; ROWS * GROUP * DIM], vec![0f32; ROWS * GROUP]);
        let (ids, items) = (vec![0u32; ROWS * TOKENS_MAX], vec![0u32; ROWS * TOKENS_MAX]);
        let strides = layout().k_strides;
        let params = AttendParams {
            q: inputs.q.as_ptr() as u64,
            k: inputs.k.as_ptr() as u64,
            v: inputs.v.as_ptr() as u64,
            o: o.as_ptr() as u64,
            lse2: lse2.as_ptr() as u64,
            part_o: part_o.as_ptr() as u64,
            part_lse2: part_lse2.as_ptr() as u64,
            units: plan.params.units,
            segments: plan.params.segments,
            workers: plan.params.workers,
            indptr: inputs.row_ptr.as_ptr() as u64,
            items: items.as_ptr() as u64,
            lens: lens.as_ptr() as u64,
            q_row: (HEADS * GROUP * DIM) as i64,
            q_head: DIM as i64,
            o_row: (HEADS * GROUP * DIM) as i64,
            o_head: DIM as i64,
            k_frame: strides[0],
            k_head: strides[1],
            k_token: strides[2],
            v_frame: strides[0],
            v_head: strides[1],
            v_token: strides[2],
            scale: SCALE,
            page_tokens: PAGE as u32,
            group: GROUP as u32,
            q_heads: (HEADS * GROUP) as u32,
            types: type_code(DType::Bf16) | type_code(DType::F32) << 8,
            ..AttendParams::zeroed()
        };
        let work =
            Work { units: plan.units.clone(), segments: vec![], workers: vec![], partials: 0 };
        let merge = merge_of(&spec, &params, &work);
        let ids_n = vec![0u32; ROWS];
        Attended { spec, ids, items, ids_n, lens, plan, part_o, part_lse2, o, lse2, params, merge }
    }

    /// What the choice is told of where it goes.
    fn chosen(&self, of: TopKParams) -> TopKParams {
        TopKParams {
            out: self.ids.as_ptr() as u64,
            out_n: self.ids_n.as_ptr() as u64,
            out_frames: self.items.as_ptr() as u64,
            out_lens: self.lens.as_ptr() as u64,
            out_row: TOKENS_MAX as i64,
            ..of
        }
    }

    fn memory(&mut self) -> Vec<Memory> {
        let own = [
            Memory::write(&mut self.ids),
            Memory::write(&mut self.items),
            Memory::write(&mut self.ids_n),
            Memory::write(&mut self.lens),
            Memory::write(&mut self.part_o),
            Memory::write(&mut self.part_lse2),
            Memory::write(&mut self.o),
            Memory::write(&mut self.lse2),
        ];
        own.into_iter().chain(self.plan.memory()).collect()
    }

    fn row_ids(&self, row: usize) -> &[u32] {
        &self.ids[row * TOKENS_MAX..][..self.ids_n[row] as usize]
    }

    /// Plans, attends and merges; nothing of it depends on what was chosen but through memory.
    fn queue(&self, kernels: &Shared, launch: &mut dyn FnMut(&Kernels, Call)) {
        launch(&kernels.plan, Call::Plan(&self.plan.params));
        let attend = if self.spec.slots { &kernels.slots } else { &kernels.pages };
        launch(attend, Call::Attend(&self.params, self.spec.shared_bytes()));
        let blocks = (self.plan.units.len() * self.spec.rows()).div_ceil(4);
        launch(&kernels.merge, Call::Merge(&self.merge, blocks));
    }

    /// Against attention on the CPU over the lists that were chosen there.
    fn compare(&self, inputs: &Inputs, want: &[Vec<u32>]) {
        let (mut indptr, mut items, mut lens) = (vec![0u32], Vec::new(), Vec::new());
        for (row, ids) in want.iter().enumerate() {
            assert_eq!(self.row_ids(row), ids, "row {row}");
            let slots = &inputs.slots[inputs.slot_ptr[row] as usize..];
            let frames = &inputs.frames[inputs.frame_ptr[row] as usize..];
            let list = if self.spec.slots { slots } else { frames };
            // Frames with one head each: the CPU's lists are per head over a pool of heads apart.
            items.extend(ids.iter().map(|&id| list[id as usize]));
            indptr.push(items.len() as u32);
            lens.push(self.lens[row]);
        }
        let frames = inputs.k.len() / layout().k_strides[0] as usize;
        let shape = [SEQUENCES, GROUP, DIM];
        for head in 0..HEADS {
            let at = head * layout().k_strides[1] as usize;
            let one = KvLayout { kv_heads: 1, ..layout() };
            let pool = KvPool::new(&inputs.k[at..], &inputs.v[at..], one, frames);
            let pool = pool.unwrap();
            let pick = |s: usize| s * HEADS + head;
            let mut own = (vec![0u32], Vec::new(), Vec::new());
            for row in (0..SEQUENCES).map(pick) {
                own.1.extend_from_slice(&items[indptr[row] as usize..indptr[row + 1] as usize]);
                own.0.push(own.1.len() as u32);
                own.2.push(lens[row]);
            }
            let q: Vec<bf16> = (0..SEQUENCES)
                .flat_map(|s| inputs.q[pick(s) * GROUP * DIM..][..GROUP * DIM].to_vec())
                .collect();
            let q = Tensor3::contiguous(&q, shape).unwrap();
            let queries = Queries { q, indptr: &inputs.q_indptr, positions: None };
            let (mut o, mut lse2) =
                (vec![0f32; shape.iter().product()], vec![0f32; SEQUENCES * GROUP]);
            let view = Tensor3Mut::contiguous(&mut o, shape).unwrap();
            let mut out = Out { o: view, lse2: Some(&mut lse2) };
            let (params, exec) = (Params::new(SCALE), Executor::inline());
            if self.spec.slots {
                let lists =
                    SlotLists { indptr: &own.0, slots: &own.1, positions: None, per_head: false };
                attend::slots_at(Isa::Generic, &queries, &pool, &lists, &params, &exec, &mut out)
            } else {
                let lists = PageLists {
                    indptr: &own.0,
                    frames: &own.1,
                    lens: &own.2,
                    first_pos: None,
                    per_head: false,
                };
                attend::pages_at(Isa::Generic, &queries, &pool, &lists, &params, &exec, &mut out)
            }
            .unwrap();
            for s in 0..SEQUENCES {
                for g in 0..GROUP {
                    let (from, to) = (s * GROUP + g, pick(s) * GROUP + g);
                    let (want, got) = (&o[from * DIM..][..DIM], &self.o[to * DIM..][..DIM]);
                    let norm: f32 = want.iter().map(|x| x * x).sum::<f32>().sqrt();
                    let off: f32 =
                        want.iter().zip(got).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
                    assert!(off <= 5e-3 * norm, "sequence {s}, head {head}: {off} of {norm}");
                    let (want, got) = (lse2[from], self.lse2[to]);
                    assert!((want - got).abs() < 1e-4 || want == got, "lse: {got}, {want}");
                }
            }
        }
    }
}

/// A launch.
enum Call<'a> {
    Plan(&'a PlanParams),
    Score(&'a ScoreParams, usize),
    TopK(&'a TopKParams),
    Tokens(&'a TokensParams, usize),
    Vote(&'a TokensParams),
    TopP(&'a TopPParams),
    Attend(&'a AttendParams, usize),
    Merge(&'a MergeUnitsParams, usize),
}

impl Call<'_> {
    fn run(&self, kernels: &Kernels, schedule: Schedule, memory: &[Memory]) -> Report {
        let grid = |blocks, shared_bytes| Grid { blocks, shared_bytes, schedule, left_out: 0 };
        match *self {
            Call::Plan(p) => kernels.run("plan", p, grid(1, plan::SHARED), memory),
            Call::Score(p, shared) => kernels.run("score_units", p, grid(WORKERS, shared), memory),
            Call::TopK(p) => kernels.run("top_k", p, grid(ROWS, 8336), memory),
            Call::Tokens(p, shared) => {
                kernels.run("score_tokens", p, grid(WORKERS, shared), memory)
            }
            Call::Vote(p) => {
                let grid = grid(WORKERS, TokensSpec::VOTE_SHARED_BYTES);
                kernels.run("vote_tokens", p, grid, memory)
            }
            Call::TopP(p) => kernels.run("top_p", p, grid(ROWS, 24992), memory),
            Call::Attend(p, shared) => {
                kernels.run("attend_pages", p, grid(WORKERS, shared), memory)
            }
            Call::Merge(p, blocks) => kernels.run("merge_units", p, grid(blocks, 0), memory),
        }
    }
}

struct Shared {
    plan: Kernels,
    select: Kernels,
    pages: Kernels,
    slots: Kernels,
    merge: Kernels,
}

fn shared() -> Shared {
    let attend = |slots| {
        let spec = AttendSpec { dim: DIM, dtype: DType::Bf16, slots, wide: false };
        Kernels::compile("attend_pages.cu", &spec.macros())
    };
    Shared {
        plan: Kernels::compile("plan.cu", &[]),
        select: Kernels::compile("select.cu", &[]),
        pages: attend(false),
        slots: attend(true),
        merge: Kernels::compile("merge.cu", &[]),
    }
}

fn inputs_memory(inputs: &Inputs) -> Vec<Memory> {
    let lens = &inputs.lens;
    vec![
        Memory::read(&inputs.q),
        Memory::read(&inputs.k),
        Memory::read(&inputs.v),
        Memory::read(&inputs.cells),
        Memory::read(&inputs.frame_ptr),
        Memory::read(&inputs.slot_ptr),
        Memory::read(&inputs.row_ptr),
        Memory::read(&inputs.frames),
        Memory::read(&inputs.slots),
        Memory::read(&inputs.cell_ptr),
        Memory::read(&inputs.cell_ids),
        Memory::read(&lens.units),
        Memory::read(&lens.row_units),
        Memory::read(&lens.row_tokens),
        Memory::read(&lens.forced_ptr),
        Memory::read(&lens.forced),
    ]
}

/// Changes what lies in the buffers, and nothing else.
fn refill(lens: &mut Lens, tokens: &[usize; SEQUENCES]) {
    let mut new = Lens::default();
    new.set(tokens);
    lens.units.copy_from_slice(&new.units);
    lens.row_units.copy_from_slice(&new.row_units);
    lens.row_tokens.copy_from_slice(&new.row_tokens);
    lens.forced_ptr.copy_from_slice(&new.forced_ptr);
    lens.forced.copy_from_slice(&new.forced);
}

/// K7, K10, plan, K1, merge: page lists.
pub(crate) fn pages() {
    const K: usize = 21;
    let mut inputs = build();
    let kernels = shared();
    let score_spec = ScoreSpec { dim: DIM, dtype: DType::Bf16, boxes: true };
    let score = Kernels::compile("score.cu", &score_spec.macros());
    let of_rows = ScoreSpec::rows(GROUP);
    let units = Work::units(&inputs.q_indptr, (HEADS, GROUP), of_rows, |sequence, _| sequence);
    let mut scoring = Planned::new(units, &inputs.lens.units);
    let mut attended = Attended::new(&inputs, false);
    let mut scores = vec![f32::NAN; ROWS * UNITS_MAX];
    let (cell, row) = (spec().cell_bytes() as i64 / 2, spec().row_len() as i64);
    let params = ScoreParams {
        q: inputs.q.as_ptr() as u64,
        k: inputs.cells.as_ptr() as u64,
        v: inputs.cells.as_ptr() as u64 + DIM as u64 * 2,
        out: scores.as_ptr() as u64,
        units: scoring.params.units,
        segments: scoring.params.segments,
        workers: scoring.params.workers,
        indptr: inputs.cell_ptr.as_ptr() as u64,
        items: inputs.cell_ids.as_ptr() as u64,
        lens: inputs.lens.units.as_ptr() as u64,
        q_row: (HEADS * GROUP * DIM) as i64,
        q_head: DIM as i64,
        k_frame: HEADS as i64 * cell,
        k_head: cell,
        k_token: row,
        v_frame: HEADS as i64 * cell,
        v_head: cell,
        v_token: row,
        out_row: UNITS_MAX as i64,
        page_tokens: spec().units() as u32,
        group: GROUP as u32,
        kv_heads: HEADS as u32,
        fold: Fold::Max as u32,
        types: type_code(DType::Bf16),
        zero: 0,
    };
    let top = attended.chosen(TopKParams {
        scores: scores.as_ptr() as u64,
        counts: inputs.lens.row_units.as_ptr() as u64,
        forced_ptr: inputs.lens.forced_ptr.as_ptr() as u64,
        forced: inputs.lens.forced.as_ptr() as u64,
        indptr: inputs.frame_ptr.as_ptr() as u64,
        frames: inputs.frames.as_ptr() as u64,
        lens: inputs.lens.row_tokens.as_ptr() as u64,
        scores_row: UNITS_MAX as i64,
        k: K as u32,
        page_tokens: PAGE as u32,
        ..TopKParams::zeroed()
    });
    for (step, schedule) in STEPS.into_iter().zip(SCHEDULES) {
        refill(&mut inputs.lens, &step);
        attended.o.fill(f32::NAN);
        let mut memory = inputs_memory(&inputs);
        memory.extend([Memory::write(&mut scores)]);
        memory.extend(scoring.memory());
        memory.extend(attended.memory());
        let mut launch = |kernels: &Kernels, call: Call| {
            call.run(kernels, schedule, &memory).expect_clean(&(step, schedule));
        };
        launch(&kernels.plan, Call::Plan(&scoring.params));
        launch(&score, Call::Score(&params, score_spec.shared_bytes()));
        launch(&kernels.select, Call::TopK(&top));
        attended.queue(&kernels, &mut launch);
        attended.compare(&inputs, &pages_on_cpu(&inputs, K));
    }
}

/// Quest's choice on the CPU, from the same cells.
fn pages_on_cpu(inputs: &Inputs, k: usize) -> Vec<Vec<u32>> {
    let (cell, all) = (spec().cell_bytes(), inputs.cell_ids.len() / SEQUENCES);
    let choose = |row: usize| {
        let (sequence, head) = (row / HEADS, row % HEADS);
        let q: Vec<f32> =
            inputs.q[row * GROUP * DIM..][..GROUP * DIM].iter().map(|x| x.to_f32()).collect();
        let query = UnitQuery::new(Isa::Generic, spec(), &q, GROUP, SCALE, true);
        let ids: Vec<u32> =
            (0..all).map(|i| ((sequence * all + i) * HEADS + head) as u32).collect();
        let list = CellList::from_slice(&inputs.cells, cell, &ids).unwrap();
        let (width, n) = (all * spec().units(), inputs.lens.units[sequence]);
        let mut scores = vec![0f32; GROUP * width];
        score::units(&query, &list, &mut scores);
        let (mut folded, mut chosen) = (vec![0f32; n as usize], Vec::new());
        fold_max(&scores, width, GROUP, &mut folded);
        top_k_forced(&folded, &keeps(n), k, &mut chosen);
        chosen
    };
    (0..ROWS).map(choose).collect()
}

/// K9, K11, plan, K2, merge: slot lists.
pub(crate) fn slots() {
    const TARGET: f64 = 0.8 * GROUP as f64;
    let (least, most) = (16, 300);
    let mut inputs = build();
    let kernels = shared();
    let spec = TokensSpec { dim: DIM, dtype: DType::Bf16, slots: false };
    let score = Kernels::compile("tokens.cu", &spec.macros());
    let mut attended = Attended::new(&inputs, true);
    let of_rows = ScoreSpec::rows(GROUP);
    let list = |sequence, head| sequence * HEADS + head;
    let units = Work::units(&inputs.q_indptr, (HEADS, GROUP), of_rows, list);
    let mut scoring = Planned::new(units, &inputs.lens.row_tokens);
    let room = Room::new(scoring.units.len(), WORKERS);
    let (mut logits, mut votes) =
        (vec![0f32; ROWS * GROUP * TOKENS_MAX], vec![0f32; ROWS * TOKENS_MAX]);
    let mut parts = vec![0u64; room.segments * 16];
    let mut masses = vec![0f32; ROWS];
    let params = TokensParams {
        of: AttendParams {
            lse2: 0,
            units: scoring.params.units,
            segments: scoring.params.segments,
            workers: scoring.params.workers,
            indptr: inputs.frame_ptr.as_ptr() as u64,
            items: inputs.frames.as_ptr() as u64,
            lens: inputs.lens.row_tokens.as_ptr() as u64,
            ..attended.params
        },
        logits: logits.as_ptr() as u64,
        parts: parts.as_ptr() as u64,
        out: votes.as_ptr() as u64,
        logits_row: TOKENS_MAX as i64,
        out_row: TOKENS_MAX as i64,
        kv_heads: HEADS as u32,
        zero: 0,
    };
    let of = attended.chosen(TopKParams {
        scores: votes.as_ptr() as u64,
        counts: inputs.lens.row_tokens.as_ptr() as u64,
        indptr: inputs.slot_ptr.as_ptr() as u64,
        frames: inputs.slots.as_ptr() as u64,
        lens: inputs.lens.row_tokens.as_ptr() as u64,
        scores_row: TOKENS_MAX as i64,
        k: most as u32,
        page_tokens: 1,
        ..TopKParams::zeroed()
    });
    let out_mass = masses.as_ptr() as u64;
    let top = TopPParams { of, target: TARGET, out_mass, least: least as u32, zero: 0 };
    for (step, schedule) in STEPS.into_iter().zip(SCHEDULES) {
        refill(&mut inputs.lens, &step);
        attended.o.fill(f32::NAN);
        let mut memory = inputs_memory(&inputs);
        memory.extend([Memory::write(&mut logits), Memory::write(&mut votes)]);
        memory.extend([Memory::write(&mut parts), Memory::write(&mut masses)]);
        memory.extend(scoring.memory());
        memory.extend(attended.memory());
        let mut launch = |kernels: &Kernels, call: Call| {
            call.run(kernels, schedule, &memory).expect_clean(&(step, schedule));
        };
        launch(&kernels.plan, Call::Plan(&scoring.params));
        launch(&score, Call::Tokens(&params, spec.shared_bytes()));
        launch(&score, Call::Vote(&params));
        launch(&kernels.select, Call::TopP(&top));
        attended.queue(&kernels, &mut launch);
        let choose = |row: usize| {
            let n = inputs.lens.row_tokens[row] as usize;
            let (own, mut chosen) = (&votes[row * TOKENS_MAX..][..n], Vec::new());
            let all: f64 = own.iter().map(|&x| f64::from(x)).sum();
            assert!(n == 0 || (all - GROUP as f64).abs() < 1e-4, "votes of row {row}: {all}");
            let mass = top_p_forced(own, &[], TARGET, least, most, &mut chosen);
            assert!((f64::from(masses[row]) - mass).abs() < 1e-6);
            chosen
        };
        attended.compare(&inputs, &(0..ROWS).map(choose).collect::<Vec<_>>());
    }
}
