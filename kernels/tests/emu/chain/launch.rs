//! Launches of a step, and the kernels that both steps use.

use kvist_kernels::DType;
use kvist_kernels::cuda::params::{
    AttendParams, MergeUnitsParams, PlanParams, ScoreParams, TokensParams, TopKParams, TopPParams,
};
use kvist_kernels::cuda::work::{AttendSpec, TokensSpec};

use super::inputs::{DIM, ROWS, WORKERS};
use crate::machine::{Grid, Kernels, Memory, Report, Schedule};
use crate::plan;

/// A launch.
pub(crate) enum Call<'a> {
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
    pub(crate) fn run(&self, kernels: &Kernels, schedule: Schedule, memory: &[Memory]) -> Report {
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

pub(crate) struct Shared {
    pub(crate) plan: Kernels,
    pub(crate) select: Kernels,
    pub(crate) pages: Kernels,
    pub(crate) slots: Kernels,
    pub(crate) merge: Kernels,
}

pub(crate) fn shared() -> Shared {
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
