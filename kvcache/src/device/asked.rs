//! A kernel call that comes by the device tier, and the part of it that the CPU does.

use kvist_kernels::attend::{self, Listed, Out, Params, Queries};
use kvist_kernels::cuda::TrialError;
use kvist_kernels::{Executor, Tensor3, Tensor3Mut};

use super::outputs::Rows;
use super::wanted::{Lists, View};

/// One kernel call of attention over pages of the host tier.
pub(crate) struct Job<'a> {
    pub(crate) layer: usize,
    pub(crate) queries: &'a Queries<'a>,
    pub(crate) listed: Listed<'a>,
    pub(crate) params: &'a Params<'a>,
    pub(crate) exec: &'a Executor,
}

impl Job<'_> {
    /// The rows of its results.
    pub(super) fn rows(&self) -> Rows {
        let [rows, heads, dim] = self.queries.q.shape();
        Rows { rows, heads, dim }
    }

    /// Entries of its lists.
    pub(super) fn items(&self) -> usize {
        match self.listed {
            Listed::Pages(_, lists) => lists.frames.len(),
            Listed::Slots(_, lists) => lists.slots.len(),
        }
    }
}

/// A call whose queries are on the GPU.
pub(super) struct Asked<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) q: Tensor3<'static>,
    pub(super) rows: Rows,
    /// Whether every query sees all that is listed for it.
    pub(super) sees_all: bool,
}

impl<'a> Asked<'a> {
    /// The rules for a part. A mask is left out where its pages have no positions: all of them are seen then.
    /// Learned sinks join once, with the first part.
    pub(super) fn params(&self, view: &View, first: bool) -> Params<'a> {
        let unplaced = matches!(view, View::Pages(lists) if lists.first_pos.is_none());
        let params = self.job.params;
        Params {
            causal: params.causal && !(unplaced && self.sees_all),
            sinks: params.sinks.filter(|_| first),
            ..*params
        }
    }

    /// Attention on the CPU over some of the pages: outputs and log-sum-exps.
    pub(super) fn on_cpu(
        &self,
        lists: &Lists,
        first: bool,
    ) -> Result<(Vec<f32>, Vec<f32>), TrialError> {
        let (job, shape) = (self.job, [self.rows.rows, self.rows.heads, self.rows.dim]);
        let mut o = vec![0f32; shape.iter().product()];
        let mut lse = vec![0f32; shape[0] * shape[1]];
        let mut to = Out { o: Tensor3Mut::contiguous(&mut o, shape)?, lse2: Some(&mut lse) };
        let view = lists.view();
        let params = self.params(&view, first);
        let (Listed::Pages(pool, _) | Listed::Slots(pool, _)) = job.listed;
        let (queries, exec) = (job.queries, job.exec);
        match &view {
            View::Pages(lists) => attend::pages(queries, pool, lists, &params, exec, &mut to)?,
            View::Slots(lists) => attend::slots(queries, pool, lists, &params, exec, &mut to)?,
        }
        Ok((o, lse))
    }
}
