//! The kernels of attention over memory of the GPU: for few rows of a sequence and KV head, and for many.

use crate::attend::{Listed, Queries};
use crate::cuda::params::{AttendParams, MergeUnitsParams, PrefillParams};
use crate::cuda::work::{self, AttendSpec, PrefillSpec, Work};
use crate::cuda::{
    ATTEND_PAGES, ATTEND_PREFILL, ATTEND_PREFILL_HOPPER, DeviceInfo, Error, Function, Grid,
    Specialisation, Stream,
};

/// Rows of a sequence and KV head that the kernel for few takes in one unit.
pub(in crate::cuda) const FEW_ROWS: usize = 64;
/// Compute capability 9.0, as [`DeviceInfo`] writes it: it has `wgmma`.
pub(in crate::cuda) const HOPPER: u32 = 90;

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Few(AttendSpec),
    Many(PrefillSpec),
}

impl Kind {
    /// The kernel for many rows of a type, if this GPU has one.
    pub(super) fn many(spec: &AttendSpec, info: &DeviceInfo) -> Kind {
        let AttendSpec { dim, dtype, .. } = *spec;
        let plain = PrefillSpec { dim, dtype, blocks: false, wgmma: false };
        Kind::Many(PrefillSpec { wgmma: plain.has_wgmma() && info.arch == HOPPER, ..plain })
    }

    /// The kernel of a call that is described so.
    pub(super) fn of(
        (spec, p): (&AttendSpec, &AttendParams),
        (queries, listed): (&Queries, &Listed),
        info: &DeviceInfo,
    ) -> Kind {
        let many = |w: &[u32]| (w[1] - w[0]) as usize * p.group as usize > FEW_ROWS;
        match listed {
            Listed::Pages(..) if queries.indptr.windows(2).any(many) => Kind::many(spec, info),
            _ => Kind::Few(*spec),
        }
    }

    /// Rows of a unit at most.
    pub(super) fn rows(&self) -> usize {
        match self {
            Kind::Few(spec) => spec.rows(),
            Kind::Many(spec) => spec.rows(),
        }
    }

    fn dim(&self) -> usize {
        match self {
            Kind::Few(spec) => spec.dim,
            Kind::Many(spec) => spec.dim,
        }
    }

    /// Threads of a block, and its shared memory in bytes.
    pub(super) fn block(&self) -> (u32, u32) {
        match self {
            Kind::Few(spec) => (super::THREADS, spec.shared_bytes() as u32),
            Kind::Many(spec) => (spec.threads(), spec.shared_bytes() as u32),
        }
    }

    /// The kernel and its entry point.
    pub(super) fn specialisation(&self) -> (Specialisation, &'static str) {
        match self {
            Kind::Few(spec) => (ATTEND_PAGES.with(spec.macros()), "attend_pages"),
            Kind::Many(spec) if spec.wgmma => {
                (ATTEND_PREFILL_HOPPER.with(spec.macros()), "attend_prefill")
            }
            Kind::Many(spec) => (ATTEND_PREFILL.with(spec.macros()), "attend_prefill"),
        }
    }

    /// Bytes of so many partial results' outputs, and of these with their log-sum-exps.
    pub(super) fn part_bytes(&self, partials: usize) -> [usize; 2] {
        let rows = partials * self.rows() * size_of::<f32>();
        [rows * self.dim(), rows * (self.dim() + 1)]
    }

    fn told(p: &AttendParams) -> PrefillParams {
        PrefillParams { call: *p, blocks: 0, picked: 0, key_block: 0, lists_per_head: 1 }
    }

    /// Queues so many blocks.
    ///
    /// # Safety
    /// As of [`Function::launch`], with what the parameters say.
    pub(super) unsafe fn launch(
        &self,
        function: &Function,
        stream: &Stream,
        blocks: usize,
        p: &AttendParams,
    ) -> Result<(), Error> {
        let (threads, shared_bytes) = self.block();
        let grid = Grid { blocks: [blocks.max(1) as u32, 1, 1], threads, shared_bytes };
        // SAFETY: the struct is that of the source; the rest is the caller's promise.
        unsafe {
            match self {
                Kind::Few(_) => function.launch(stream, grid, p),
                Kind::Many(_) => function.launch(stream, grid, &Kind::told(p)),
            }
        }
    }

    /// What the merge behind it is told.
    pub(super) fn merge_of(&self, p: &AttendParams, work: &Work) -> MergeUnitsParams {
        match self {
            Kind::Few(spec) => work::merge_of(spec, p, work),
            Kind::Many(spec) => spec.merge_of(&Kind::told(p), work),
        }
    }
}
