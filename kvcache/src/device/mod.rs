//! The device tier: a GPU keeps copies of pages of the host tier, and attends to them.
//!
//! Host memory stays the place where pages are: what the GPU has can be lost at any time without a loss.
//! Every kernel call of attention comes by here, with lists of host frames. Pages that the GPU has are
//! read there; others are copied on a stream of their own while these are read, and read then; pages for
//! which there is no frame are read in place, over the link or by the CPU, and the parts are merged by
//! log-sum-exp. A call that fails is done by the CPU.

mod copies;
mod frames;
mod gpu;
mod options;
mod outputs;
mod wanted;

use std::sync::Arc;
use std::time::Instant;

pub(crate) use gpu::Job;
use gpu::{Counts, Gpu};
use kvist_kernels::attend::Out;
use kvist_kernels::cuda::{Error as GpuError, TrialError, Visit};
use parking_lot::Mutex;

pub use options::DeviceOptions;

use crate::arena::Arena;
use crate::budget::{Budget, Charge};
use crate::{Error, Geometry};

/// After the GPU's memory was used up, so many calls are done by the CPU before it is tried again.
const REST_CALLS: u32 = 64;

/// What the device tier holds and has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceUse {
    /// The GPU's name; empty if there never was one.
    pub name: String,
    /// Bytes of all its frames.
    pub budget_bytes: u64,
    /// Bytes of those in use.
    pub used_bytes: u64,
    /// Pages that calls found in frames.
    pub page_hits: u64,
    /// Pages that they did not.
    pub page_misses: u64,
    /// Bytes copied to frames.
    pub copied_bytes: u64,
    /// Pages copied before anybody asked for them.
    pub prefetched: u64,
    /// Pages that kernels read in host memory.
    pub pages_in_place: u64,
    /// Pages that the CPU read beside the GPU.
    pub pages_on_cpu: u64,
    /// Calls that the GPU did.
    pub calls: u64,
    /// Calls that the CPU did in its place.
    pub calls_on_cpu: u64,
    /// Why the CPU does its work now.
    pub degraded: Option<DeviceDegraded>,
}

/// A GPU that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDegraded {
    /// Seconds since it happened.
    pub seconds: u64,
    /// What happened.
    pub cause: GpuError,
}

/// Why it is not used.
#[derive(Debug)]
struct Fault {
    since: Instant,
    cause: GpuError,
    /// Calls until it is tried again; never if the GPU is gone.
    rest: Option<u32>,
}

#[derive(Debug, Default)]
struct State {
    gpu: Option<Box<Gpu>>,
    fault: Option<Fault>,
    /// Of a GPU that is gone.
    counts: Counts,
    name: String,
    on_cpu: u64,
}

/// A GPU beside the host tier.
#[derive(Debug)]
pub(crate) struct DeviceTier {
    state: Mutex<State>,
    ahead: bool,
    _charge: Charge,
}

impl DeviceTier {
    /// `mapped` bytes of the arena's memory are there for good.
    pub(crate) fn open(
        options: &DeviceOptions,
        geometry: &Geometry,
        arena: &Arc<Arena>,
        budget: &Arc<Budget>,
        mapped: u64,
    ) -> Result<DeviceTier, Error> {
        check(geometry, arena)?;
        let _visit = Visit::new();
        let mut charge = Charge::none(budget.clone());
        charge.grow_to(arena.watch_bytes())?;
        arena.watch();
        let mut state = State::default();
        match Gpu::open(options, geometry, arena, mapped) {
            Ok(gpu) => {
                state.name.clone_from(&gpu.device.info().name);
                state.gpu = Some(Box::new(gpu));
            }
            Err(e) if !options.optional => return Err(e.into()),
            Err(e) => state.fail(e),
        }
        Ok(DeviceTier { state: Mutex::new(state), ahead: options.ahead, _charge: charge })
    }

    /// Does a call; `false` if the CPU has to, with nothing written.
    pub(crate) fn attend(&self, job: &Job, arena: &Arena, out: &mut Out) -> Result<bool, Error> {
        let _visit = Visit::new();
        let mut state = self.state.lock();
        let done = match state.ready() {
            Some(gpu) => gpu.attend(job, arena, out),
            None => Ok(false),
        };
        let done = match done {
            Ok(done) => done,
            Err(TrialError::Device(e)) => {
                state.fail(e);
                false
            }
            Err(TrialError::Arguments(e)) => return Err(e.into()),
            Err(e) => return Err(Error::System { what: "the device tier", reason: e.to_string() }),
        };
        state.on_cpu += u64::from(!done);
        Ok(done)
    }

    /// Copies those of these full pages that the last step read and that have no frame.
    pub(crate) fn ahead(&self, pages: impl Iterator<Item = u32>, arena: &Arena) {
        if !self.ahead {
            return;
        }
        let _visit = Visit::new();
        let mut state = self.state.lock();
        if state.fault.is_none()
            && let Some(gpu) = &mut state.gpu
            && let Err(e) = gpu.ahead(pages, arena)
        {
            state.fail(e);
        }
    }

    /// What it holds and has done.
    pub(crate) fn usage(&self) -> DeviceUse {
        let state = self.state.lock();
        let counts = state.gpu.as_ref().map_or(state.counts, |gpu| gpu.counts);
        let (budget_bytes, used_bytes) = state.gpu.as_ref().map_or((0, 0), |gpu| gpu.bytes());
        let degraded = state.fault.as_ref().map(|fault| DeviceDegraded {
            seconds: fault.since.elapsed().as_secs(),
            cause: fault.cause.clone(),
        });
        DeviceUse {
            name: state.name.clone(),
            budget_bytes,
            used_bytes,
            page_hits: counts.hits,
            page_misses: counts.misses,
            copied_bytes: counts.copied_bytes,
            prefetched: counts.ahead,
            pages_in_place: counts.in_place,
            pages_on_cpu: counts.on_cpu,
            calls: counts.calls,
            calls_on_cpu: state.on_cpu,
            degraded,
        }
    }
}

impl Drop for DeviceTier {
    fn drop(&mut self) {
        let _visit = Visit::new();
        self.state.get_mut().gpu = None;
    }
}

impl State {
    /// The GPU, if it is to be used for this call.
    fn ready(&mut self) -> Option<&mut Gpu> {
        if let Some(fault) = &mut self.fault {
            let rest = fault.rest.as_mut()?;
            *rest = rest.saturating_sub(1);
            if *rest > 0 {
                return None;
            }
            tracing::info!("the GPU is tried again");
            self.fault = None;
        }
        self.gpu.as_deref_mut()
    }

    /// The CPU takes over: for a while where memory was used up, else for good.
    fn fail(&mut self, cause: GpuError) {
        tracing::warn!("the CPU attends in place of the GPU: {cause}");
        metrics::counter!("kvist_device_faults").increment(1);
        let passing = matches!(cause, GpuError::OutOfMemory { .. } | GpuError::NotWarm { .. });
        let rest = (passing && self.gpu.is_some()).then_some(REST_CALLS);
        match (&mut self.gpu, rest) {
            (Some(gpu), Some(_)) => gpu.forget(),
            (Some(gpu), None) => {
                self.counts = gpu.counts;
                self.gpu = None;
            }
            (None, _) => {}
        }
        self.fault = Some(Fault { since: Instant::now(), cause, rest });
    }
}

/// Checks that there are kernels for a geometry.
fn check(geometry: &Geometry, arena: &Arena) -> Result<(), Error> {
    let g = geometry;
    if g.dim_k != g.dim_v {
        let found = format!("{} and {}", g.dim_k, g.dim_v);
        return Err(Error::setting("device: dim_k and dim_v", "equal", found));
    }
    if !g.page_tokens.is_multiple_of(16) {
        return Err(Error::setting("device: page_tokens", "a multiple of 16", g.page_tokens));
    }
    gpu::spec(g, false).check()?;
    let rows = arena.cells() as u64 * 2 * g.page_tokens as u64;
    if rows > u64::from(u32::MAX) {
        let expected = format!("at most {} rows of keys and values", u32::MAX);
        return Err(Error::setting("device: host tier", expected, rows));
    }
    Ok(())
}
