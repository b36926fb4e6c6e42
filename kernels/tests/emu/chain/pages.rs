//! Boxes to pages.

use bytemuck::Zeroable;
use kvist_kernels::cuda::params::{Fold, ScoreParams, TopKParams, type_code};
use kvist_kernels::cuda::work::{ScoreSpec, Work};
use kvist_kernels::score::{self, CellList, UnitQuery};
use kvist_kernels::select::{fold_max, top_k_forced};
use kvist_kernels::{DType, Isa};

use super::attended::{Attended, Planned};
use super::inputs::{
    DIM, GROUP, HEADS, Inputs, PAGE, ROWS, SCALE, SEQUENCES, STEPS, UNITS_MAX, build,
    inputs_memory, keeps, refill, spec,
};
use super::launch::{Call, shared};
use crate::machine::{Kernels, Memory, SCHEDULES};

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
        unit_tokens: PAGE as u32,
        page_units: 1,
        page_items: 1,
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
