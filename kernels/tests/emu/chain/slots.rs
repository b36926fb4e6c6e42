//! Votes of tokens to slots.

use bytemuck::Zeroable;
use kvist_kernels::DType;
use kvist_kernels::cuda::params::{AttendParams, TokensParams, TopKParams, TopPParams};
use kvist_kernels::cuda::work::{PlanRoom, ScoreSpec, TokensSpec, Work};
use kvist_kernels::select::top_p_forced;

use super::attended::{Attended, Planned};
use super::inputs::{
    DIM, GROUP, HEADS, ROWS, STEPS, TOKENS_MAX, WORKERS, build, inputs_memory, refill,
};
use super::launch::{Call, shared};
use crate::machine::{Kernels, Memory, SCHEDULES};

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
    let room = PlanRoom::new(scoring.units.len(), WORKERS);
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
        unit_tokens: 1,
        page_units: 1,
        page_items: 1,
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
