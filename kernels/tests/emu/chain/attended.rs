//! The half of a step behind the choice: plan, attention, merge, and the same on the CPU.

use bytemuck::Zeroable;
use half::bf16;
use kvist_kernels::attend::{self, Out, Params, Queries};
use kvist_kernels::cuda::params::{
    AttendParams, MergeUnitsParams, PlanParams, Segment, TopKParams, Unit, type_code,
};
use kvist_kernels::cuda::work::{AttendSpec, PlanRoom, TILE, TILES_MIN, Work, merge_of};
use kvist_kernels::{
    DType, Executor, Isa, KvLayout, KvPool, PageLists, SlotLists, Tensor3, Tensor3Mut,
};

use super::inputs::{
    DIM, GROUP, HEADS, Inputs, PAGE, ROWS, SCALE, SEQUENCES, TOKENS_MAX, WORKERS, layout,
};
use super::launch::{Call, Shared};
use crate::machine::{Kernels, Memory};

/// A plan that is made on the device, and its kernel's parameters.
pub(crate) struct Planned {
    pub(crate) units: Vec<Unit>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) workers: Vec<u32>,
    pub(crate) params: PlanParams,
}

impl Planned {
    pub(crate) fn new(units: Vec<Unit>, lens: &[u32]) -> Planned {
        let room = PlanRoom::new(units.len(), WORKERS);
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

    pub(crate) fn memory(&mut self) -> [Memory; 3] {
        [
            Memory::write(&mut self.units),
            Memory::write(&mut self.segments),
            Memory::write(&mut self.workers),
        ]
    }
}

/// Chosen lists, attention over them, and what it is told: the same for pages and for slots.
pub(crate) struct Attended {
    pub(crate) spec: AttendSpec,
    /// `[rows][TOKENS_MAX]`: ids, and frames or slots.
    pub(crate) ids: Vec<u32>,
    pub(crate) items: Vec<u32>,
    pub(crate) ids_n: Vec<u32>,
    pub(crate) lens: Vec<u32>,
    pub(crate) plan: Planned,
    pub(crate) part_o: Vec<f32>,
    pub(crate) part_lse2: Vec<f32>,
    pub(crate) o: Vec<f32>,
    pub(crate) lse2: Vec<f32>,
    pub(crate) params: AttendParams,
    pub(crate) merge: MergeUnitsParams,
}

impl Attended {
    pub(crate) fn new(inputs: &Inputs, slots: bool) -> Attended {
        let spec = AttendSpec { dim: DIM, dtype: DType::Bf16, slots, wide: false };
        let lens = vec![0u32; ROWS];
        let list = |sequence, head| sequence * HEADS + head;
        let units = Work::units(&inputs.q_indptr, (HEADS, GROUP), spec.rows(), list);
        let plan = Planned::new(units, &lens);
        let partial = PlanRoom::new(plan.units.len(), WORKERS).partials * spec.rows();
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
    pub(crate) fn chosen(&self, of: TopKParams) -> TopKParams {
        TopKParams {
            out: self.ids.as_ptr() as u64,
            out_n: self.ids_n.as_ptr() as u64,
            out_items: self.items.as_ptr() as u64,
            out_lens: self.lens.as_ptr() as u64,
            out_row: TOKENS_MAX as i64,
            ..of
        }
    }

    pub(crate) fn memory(&mut self) -> Vec<Memory> {
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
    pub(crate) fn queue(&self, kernels: &Shared, launch: &mut dyn FnMut(&Kernels, Call)) {
        launch(&kernels.plan, Call::Plan(&self.plan.params));
        let attend = if self.spec.slots { &kernels.slots } else { &kernels.pages };
        launch(attend, Call::Attend(&self.params, self.spec.shared_bytes()));
        let blocks = (self.plan.units.len() * self.spec.rows()).div_ceil(4);
        launch(&kernels.merge, Call::Merge(&self.merge, blocks));
    }

    /// Against attention on the CPU over the lists that were chosen there.
    pub(crate) fn compare(&self, inputs: &Inputs, want: &[Vec<u32>]) {
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
