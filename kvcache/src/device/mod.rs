//! The device tier: a GPU keeps copies of pages of the host tier, and attends to them.
//!
//! Host memory stays the place where pages are: what the GPU has can be lost at any time without a loss.
//! Every kernel call of attention comes by here, with lists of host frames. Pages that the GPU has are
//! read there; others are copied on a stream of their own while these are read, and read then; pages for
//! which there is no frame are read in place, over the link or by the CPU, and the parts are merged by
//! log-sum-exp. A call that fails is done by the CPU.

mod asked;
mod copies;
mod frames;
mod gpu;
mod mirror;
mod options;
mod outputs;
mod select;
mod steps;
mod wanted;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use asked::Job;
use gpu::{Counts, Gpu, Home};
use kvist_kernels::attend::Out;
use kvist_kernels::cuda::work::AttendSpec;
use kvist_kernels::cuda::{Error as GpuError, StepChoice, TrialError, Visit};
use parking_lot::Mutex;

pub use options::DeviceOptions;
pub(crate) use select::{Selected, Selection, SelectionRow};

use crate::arena::Arena;
use crate::budget::{Budget, Charge};
use crate::summaries::Store;
use crate::{Error, Geometry};

/// After the GPU's memory was used up, so many calls are done by the CPU before it is tried again.
const REST_CALLS: u32 = 64;
/// Host memory that is set aside for what grows with calls, so that a full budget does not keep the GPU from small
/// ones: so much, or this share of the budget.
const CALL_BYTES: u64 = 4 << 20;
const CALL_SHARE: u64 = 64;
/// A call waits so long for another one to end; then the CPU does it.
const PATIENCE: Duration = Duration::from_millis(2);

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
    /// Calls for which the GPU chose what to read.
    pub selections: u64,
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
    /// Host memory: tables and pinned memory, and how much of it is for what grows with calls.
    charge: Option<Charge>,
    reserve: u64,
}

/// A GPU beside the host tier.
#[derive(Debug)]
pub(crate) struct DeviceTier {
    state: Mutex<State>,
    ahead: bool,
    /// What it held and had done when the last call ended: who asks need not wait for a call.
    last: Mutex<Snapshot>,
}

/// The state at the end of a call.
#[derive(Debug, Default)]
struct Snapshot {
    usage: DeviceUse,
    since: Option<Instant>,
}

impl DeviceTier {
    /// For pages, of which so many bytes are there for good, and the summaries of the cache's selector with what the
    /// GPU could choose by them.
    pub(crate) fn open(
        options: &DeviceOptions,
        geometry: &Geometry,
        (pages, mapped): (&Arc<Arena>, u64),
        summaries: Option<(&Store, StepChoice)>,
        budget: &Arc<Budget>,
    ) -> Result<DeviceTier, Error> {
        let _visit = Visit::new();
        check(geometry, pages)?;
        let usable = |choice| options.selects && select::probe(geometry, choice).check().is_ok();
        let boxes = summaries.filter(|&(_, choice)| usable(choice));
        let home = Home { geometry, pages, mapped, boxes };
        let lent = options.memory.as_ref().map(|lent| lent.lock().take());
        if lent == Some(None) {
            return Err(Error::setting("device memory", "one cache's", "taken by another one"));
        }
        let options = &options.within(budget.limit());
        let mut charge = Charge::none(budget.clone());
        let reserve = CALL_BYTES.min(budget.limit() / CALL_SHARE);
        charge.grow_to(home.host_bytes(options) + reserve)?;
        home.watch();
        let mut state = State { charge: Some(charge), reserve, ..State::default() };
        match Gpu::open(options, &home, lent.flatten()) {
            Ok(gpu) => {
                state.name.clone_from(&gpu.device.info().name);
                state.gpu = Some(Box::new(gpu));
            }
            Err(e) if !options.optional => return Err(e.into()),
            Err(e) => state.fail(e),
        }
        let last = Mutex::new(state.snapshot());
        Ok(DeviceTier { state: Mutex::new(state), ahead: options.ahead, last })
    }

    /// Does a call; `false` if the CPU has to, with nothing written.
    pub(crate) fn attend(&self, job: &Job, out: &mut Out) -> Result<bool, Error> {
        // A thread of a pool that waits for its part of a call may be given another call to do: it would wait
        // for itself for ever.
        let Some(mut state) = self.state.try_lock_for(PATIENCE) else { return Ok(false) };
        let _visit = Visit::new();
        let needed = Gpu::host_bytes(&job.rows(), job.items());
        let work = |gpu: &mut Gpu| {
            gpu.call_bytes = gpu.call_bytes.max(needed);
            Ok(gpu.attend(job, out)?.then_some(()))
        };
        let done = state.call(|gpu| gpu.needed_bytes(needed), work);
        state.on_cpu += u64::from(!matches!(done, Ok(Some(()))));
        *self.last.lock() = state.snapshot();
        Ok(done?.is_some())
    }

    /// Lets queries choose what they read; none if the CPU has to choose, with nothing written.
    pub(crate) fn select(
        &self,
        selection: &Selection,
        out: &mut Out,
    ) -> Result<Option<Selected>, Error> {
        let Some(mut state) = self.state.try_lock_for(PATIENCE) else { return Ok(None) };
        if state.fault.is_some() {
            // Whether it is over is asked once for each layer: by the attention that follows.
            return Ok(None);
        }
        let _visit = Visit::new();
        let done =
            state.call(|gpu| gpu.selection_bytes(selection), |gpu| gpu.select(selection, out));
        *self.last.lock() = state.snapshot();
        done
    }

    /// Copies those of these full pages that the last step read and that have no frame.
    pub(crate) fn ahead(&self, pages: impl Iterator<Item = u32>) {
        if !self.ahead {
            return;
        }
        let Some(mut state) = self.state.try_lock() else { return };
        let _visit = Visit::new();
        if state.fault.is_none()
            && let Some(gpu) = &mut state.gpu
            && let Err(e) = gpu.ahead(pages)
        {
            state.fail(e);
        }
        *self.last.lock() = state.snapshot();
    }

    /// What it holds and has done.
    pub(crate) fn usage(&self) -> DeviceUse {
        let last = self.last.lock();
        let mut usage = last.usage.clone();
        if let (Some(degraded), Some(since)) = (&mut usage.degraded, last.since) {
            degraded.seconds = since.elapsed().as_secs();
        }
        usage
    }
}

impl Drop for DeviceTier {
    fn drop(&mut self) {
        let _visit = Visit::new();
        self.state.get_mut().gpu = None;
    }
}

impl State {
    /// Does a call that needs so many bytes of host memory, if there is a GPU for it.
    fn call<T>(
        &mut self,
        needed: impl FnOnce(&Gpu) -> u64,
        work: impl FnOnce(&mut Gpu) -> Result<Option<T>, TrialError>,
    ) -> Result<Option<T>, Error> {
        if !self.ready() {
            return Ok(None);
        }
        let needed = self.gpu.as_deref().map_or(0, needed);
        if !self.charged(needed) {
            return Ok(None);
        }
        let Some(gpu) = &mut self.gpu else { return Ok(None) };
        let (before, done) = (gpu.counts, work(gpu));
        gpu.counts.report(&before);
        match done {
            Ok(done) => Ok(done),
            Err(TrialError::Device(e)) => {
                self.fail(e);
                Ok(None)
            }
            Err(e) => {
                // What was queued shall not outlive the call.
                gpu.drain();
                match e {
                    TrialError::Arguments(e) => Err(e.into()),
                    e => Err(Error::System { what: "the device tier", reason: e.to_string() }),
                }
            }
        }
    }

    /// Whether the budget has so many bytes for what grows with a call.
    fn charged(&mut self, call: u64) -> bool {
        let more = call.saturating_sub(self.reserve);
        let Some(charge) = &mut self.charge else { return true };
        let had = charge.bytes();
        let grown = charge.grow_to(had + more).is_ok();
        self.reserve += charge.bytes() - had;
        grown
    }

    fn snapshot(&self) -> Snapshot {
        let counts = self.gpu.as_ref().map_or(self.counts, |gpu| gpu.counts);
        let [budget_bytes, used_bytes] = self.gpu.as_ref().map_or([0; 2], |gpu| gpu.bytes());
        let fault = self.fault.as_ref();
        let degraded = fault.map(|fault| DeviceDegraded { seconds: 0, cause: fault.cause.clone() });
        let usage = DeviceUse {
            name: self.name.clone(),
            budget_bytes,
            used_bytes,
            page_hits: counts.hits,
            page_misses: counts.misses,
            copied_bytes: counts.copied_bytes,
            prefetched: counts.ahead,
            pages_in_place: counts.in_place,
            pages_on_cpu: counts.on_cpu,
            calls: counts.calls,
            selections: counts.selections,
            calls_on_cpu: self.on_cpu,
            degraded,
        };
        Snapshot { usage, since: fault.map(|fault| fault.since) }
    }

    /// Whether the GPU is to be used for this call.
    fn ready(&mut self) -> bool {
        if let Some(fault) = &mut self.fault {
            let Some(rest) = &mut fault.rest else { return false };
            if *rest > 0 {
                *rest -= 1;
                return false;
            }
            tracing::info!("the GPU is tried again");
            self.fault = None;
        }
        self.gpu.is_some()
    }

    /// The CPU takes over: for a while where memory was used up, else for good.
    fn fail(&mut self, cause: GpuError) {
        tracing::warn!("the CPU attends in place of the GPU: {cause}");
        metrics::counter!("kvist_device_faults").increment(1);
        let rest = (cause.is_passing() && self.gpu.is_some()).then_some(REST_CALLS);
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
    AttendSpec { dim: g.dim_k, dtype: g.dtype, slots: false, wide: false }.check()?;
    let rows = arena.cells() as u64 * 2 * g.page_tokens as u64;
    if rows > u64::from(u32::MAX) {
        let expected = format!("at most {} rows of keys and values", u32::MAX);
        return Err(Error::setting("device: host tier", expected, rows));
    }
    Ok(())
}
