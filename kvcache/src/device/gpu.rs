//! Attention on the GPU over pages of the host tier that it has copies of.

use std::any::Any;
use std::sync::Arc;

use kvist_kernels::attend::{self, Listed, Out, Queries};
use kvist_kernels::cuda::work::AttendSpec;
use kvist_kernels::cuda::{
    Attention, Buffer, Compiler, Device, DevicePart, Error, Event, Registered, Stream, TrialError,
};
use kvist_kernels::{KvLayout, KvPool, Tensor3};

use super::asked::{Asked, Job};
use super::copies::Copies;
use super::frames::{Arrangement, Frames};
use super::options::DeviceOptions;
use super::outputs::{Outputs, PARTS, Rows};
use super::wanted::{self, Lists, Pages, Part};
use crate::Geometry;
use crate::arena::Arena;

/// The end of the copies that were queued last, and how often copies were.
#[derive(Debug)]
struct Arrival {
    event: Event,
    queued: u64,
    /// Copies that the computing stream waits for already.
    awaited: u64,
}

impl Arrival {
    /// Makes the computing stream wait for copies number `copies`, and for all that were queued with them.
    fn wait(&mut self, compute: &Stream, copies: u64) -> Result<(), Error> {
        if copies > self.awaited {
            compute.wait(&self.event)?;
            self.awaited = self.queued;
        }
        Ok(())
    }
}

/// Memory for frames.
#[derive(Debug)]
enum Frame {
    Own(Buffer),
    /// Somebody else's, who keeps it as long as the tier is there.
    Lent(u64),
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) copied_bytes: u64,
    pub(super) ahead: u64,
    pub(super) in_place: u64,
    pub(super) on_cpu: u64,
    pub(super) calls: u64,
}

impl Counts {
    /// Adds what was done since `before` to the metrics.
    pub(super) fn report(&self, before: &Counts) {
        metrics::counter!("kvist_device_page_hits").increment(self.hits - before.hits);
        metrics::counter!("kvist_device_page_misses").increment(self.misses - before.misses);
        let copied = self.copied_bytes - before.copied_bytes;
        metrics::counter!("kvist_device_copied_bytes").increment(copied);
    }
}

/// A GPU with frames.
#[derive(Debug)]
pub(super) struct Gpu {
    attention: Attention,
    frames: Frames,
    pages: Pages,
    copies: Copies,
    outputs: Outputs,
    arrival: Arrival,
    compute: Stream,
    copy: Stream,
    memory: Frame,
    frame_count: usize,
    geometry: Geometry,
    split_bytes: u64,
    pub(super) counts: Counts,
    pub(super) device: Arc<Device>,
    /// What is mapped of it stays mapped.
    arena: Arc<Arena>,
    /// Of memory that is lent.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl Gpu {
    /// Takes the memory and loads what every call needs. `mapped` bytes of the host tier are there for good.
    pub(super) fn open(
        options: &DeviceOptions,
        geometry: &Geometry,
        arena: &Arc<Arena>,
        mapped: u64,
        lent: Option<(u64, u64)>,
    ) -> Result<Gpu, Error> {
        let compiler = options.compiler.clone().unwrap_or_else(|| Arc::new(Compiler::from_env()));
        let device = Arc::new(Device::open(options.ordinal, compiler)?);
        let (compute, copy) = (device.new_stream()?, device.new_stream()?);
        let mut attention = Attention::new(&device, &compute)?;
        for (slots, wide) in [(false, false), (true, false), (false, true), (true, true)] {
            attention.warm_up(&spec(geometry, slots, wide), &compute)?;
        }
        let mapped = map(&device, arena, if options.zero_copy { mapped } else { 0 });
        let copies = Copies::new(&device, &copy, geometry, mapped, &options.limits)?;
        let arrival = Arrival { event: device.event()?, queued: 0, awaited: 0 };
        let outputs = Outputs::new(&device)?;
        // Last, so that it is known what is left.
        let bytes = match options.bytes {
            Some(bytes) => bytes,
            None => device.free_bytes()? / 2,
        };
        let page = geometry.page_bytes();
        // Rows are numbered in 32 bits, and no frame is for a page that there cannot be.
        let most = (u32::MAX as usize / (2 * geometry.page_tokens)).min(arena.cells());
        let count = |bytes: u64| ((bytes / page as u64) as usize).min(most);
        let (memory, frame_count) = match lent {
            Some((address, bytes)) => (Frame::Lent(address), count(bytes)),
            None => (Frame::Own(device.buffer(count(bytes) * page)?), count(bytes)),
        };
        Ok(Gpu {
            attention,
            frames: Frames::new(frame_count, arena.cells(), geometry.layers),
            pages: Pages::new(arena.cells()),
            copies,
            outputs,
            arrival,
            compute,
            copy,
            memory,
            frame_count,
            geometry: geometry.clone(),
            split_bytes: options.limits.split_bytes,
            counts: Counts::default(),
            device,
            arena: arena.clone(),
            _owner: options.owner.clone(),
        })
    }

    fn base(&self) -> u64 {
        match &self.memory {
            Frame::Own(buffer) => buffer.address(),
            Frame::Lent(address) => *address,
        }
    }

    /// Bytes of all frames, and of those in use.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let of = |frames: usize| (frames * self.geometry.page_bytes()) as u64;
        (of(self.frame_count), of(self.frames.used()))
    }

    /// Frames on the GPU as kernels see them, or, with their address, pages of the host tier.
    fn pool(&self, base: u64, frames: usize) -> Result<KvPool<'static>, TrialError> {
        let g = &self.geometry;
        let layout = KvLayout::page(g.page_tokens, g.dim_k, g.dim_v);
        let k = base as *const u8;
        let v = k.wrapping_add(g.page_tokens * g.dim_k * g.dtype.size());
        // SAFETY: memory that the GPU reads; nobody reads it here.
        Ok(unsafe { KvPool::from_raw(k, v, g.dtype, layout, frames) }?)
    }

    /// Does a call, and waits for it. `false` if it cannot be done here: a mask over pages that have no
    /// frames.
    pub(super) fn attend(
        &mut self,
        job: &Job,
        arena: &Arena,
        out: &mut Out,
    ) -> Result<bool, TrialError> {
        let page = self.geometry.page_tokens as u32;
        self.pages.want(&job.listed, page);
        self.frames.begin(job.layer);
        let copies = self.arrival.queued + 1;
        let plan = self.frames.arrange(&mut self.pages, page, arena, copies);
        // What came ahead is waited for before more is queued behind it.
        self.arrival.wait(&self.compute, plan.copies)?;
        let copied = self.copy(&plan, arena)?;
        let sees_all = wanted::sees_all(job.queries, &job.listed, job.params);
        let masked = matches!(job.listed, Listed::Pages(..)) && !sees_all;
        if masked && self.pages.away().next().is_some() {
            return Ok(false);
        }
        self.counts.hits += plan.hits;
        self.counts.misses += plan.misses;
        let rows = job.rows();
        self.outputs.make_room(&self.device, &rows)?;
        let asked = Asked { job, q: self.queries(job)?, rows, sees_all };
        let split = !masked && copied >= self.split_bytes;
        let (done, rest) = self.parts(&asked, split)?;
        let part = match done.len() {
            0 => None,
            1 => Some(0),
            _ => {
                let (all, to) = (self.outputs.view(PARTS, &rows), self.outputs.part(PARTS, &rows));
                // SAFETY: memory of the GPU, which stays until the call is over.
                unsafe { self.attention.merge(&self.compute, &done, &all, to.lse2)? }
                Some(PARTS)
            }
        };
        if let Some(part) = part {
            self.outputs.fetch(&self.compute, part, &rows)?;
        }
        // The CPU reads its part while the GPU reads the others.
        let on_cpu = rest.map(|rest| asked.on_cpu(&rest, done.is_empty())).transpose()?;
        self.compute.synchronize()?;
        let mut views = Vec::new();
        let shape = [rows.rows, rows.heads, rows.dim];
        if part.is_some() {
            let (o, lse2) = self.outputs.fetched(&rows);
            views.push((Tensor3::contiguous(o, shape)?, lse2));
        }
        if let Some((o, lse2)) = &on_cpu {
            views.push((Tensor3::contiguous(o, shape)?, lse2));
        }
        attend::merge(&views, out)?;
        self.counts.calls += 1;
        Ok(true)
    }

    /// Queues the copies of a plan, and returns their bytes. The last call is over, so that nobody reads what
    /// they overwrite.
    fn copy(&mut self, plan: &Arrangement, arena: &Arena) -> Result<u64, Error> {
        if plan.moves.is_empty() {
            return Ok(0);
        }
        let base = self.base();
        let bytes = self.copies.queue(&self.copy, arena, base, &plan.moves)?;
        self.arrival.event.record(&self.copy)?;
        self.arrival.queued += 1;
        self.counts.copied_bytes += bytes;
        Ok(bytes)
    }

    /// The call's queries on the GPU.
    fn queries(&mut self, job: &Job) -> Result<Tensor3<'static>, Error> {
        let q = &job.queries.q;
        let ([_, heads, dim], dtype) = (q.shape(), q.dtype());
        let at = self.outputs.send(&self.device, &self.compute, q)?;
        let strides = [(heads * dim) as i64, dim as i64];
        // SAFETY: memory of the GPU; nobody reads it here.
        Ok(unsafe { Tensor3::from_raw(at as *const u8, dtype, q.shape(), strides) })
    }

    /// Queues attention part by part; what is left for the CPU.
    fn parts(
        &mut self,
        asked: &Asked,
        split: bool,
    ) -> Result<(Vec<DevicePart>, Option<Lists>), TrialError> {
        let page = self.geometry.page_tokens as u32;
        let lists = |gpu: &Gpu, part| Lists::new(&asked.job.listed, &gpu.pages, part, page);
        let frames = self.pool(self.base(), self.frame_count)?;
        let mut done = Vec::new();
        let parts: &[Part] = if split { &[Part::Here, Part::Coming] } else { &[Part::Device] };
        for &part in parts {
            if part != Part::Here {
                self.arrival.wait(&self.compute, self.arrival.queued)?;
            }
            let lists = lists(self, part);
            if !lists.is_empty() {
                self.launch(asked, &lists, &frames, &mut done)?;
            }
        }
        let away = lists(self, Part::Away);
        let pages = self.pages.away().count() as u64;
        if away.is_empty() {
            // Rows that read nothing have a result, too.
            if done.is_empty() {
                self.launch(asked, &away, &frames, &mut done)?;
            }
            return Ok((done, None));
        }
        if let Some((base, cells)) = self.copies.mapped()
            && self.pages.away().all(|host| (host as usize) < cells)
        {
            self.counts.in_place += pages;
            let host = self.pool(base, cells)?;
            self.launch(asked, &away, &host, &mut done)?;
            return Ok((done, None));
        }
        self.counts.on_cpu += pages;
        Ok((done, Some(away)))
    }

    fn launch(
        &mut self,
        asked: &Asked,
        lists: &Lists,
        pool: &KvPool,
        done: &mut Vec<DevicePart>,
    ) -> Result<(), TrialError> {
        let (part, view) = (done.len(), lists.view());
        let listed = view.over(pool);
        let queries = Queries { q: asked.q, ..*asked.job.queries };
        let params = asked.params(&view, done.is_empty());
        let (out, to) =
            (self.outputs.view(part, &asked.rows), self.outputs.part(part, &asked.rows));
        // SAFETY: memory of the GPU that stays until the call is over; frames are not written before.
        unsafe {
            self.attention.launch(&self.compute, (&queries, &listed, &params), &out, to.lse2)?;
        }
        done.push(to);
        Ok(())
    }

    /// Copies what the next layer will probably read.
    pub(super) fn ahead(
        &mut self,
        pages: impl Iterator<Item = u32>,
        arena: &Arena,
    ) -> Result<(), Error> {
        let page = self.geometry.page_tokens as u32;
        let plan = self.frames.ahead(pages, page, arena, self.arrival.queued + 1);
        self.counts.ahead += plan.moves.len() as u64;
        self.copy(&plan, arena).map(drop)
    }

    /// Bytes of host memory for a call of so many rows and list entries, as far as they grow with it: results,
    /// queries, and the tables of the calls on their way.
    pub(super) fn host_bytes(rows: &Rows, items: usize) -> u64 {
        let tables = (items * 8 + rows.rows * rows.heads * 64).next_power_of_two();
        (Outputs::host_bytes(rows) + 4 * tables) as u64
    }
}

impl Gpu {
    /// Waits for all that is queued.
    pub(super) fn drain(&self) {
        for stream in [&self.compute, &self.copy] {
            if let Err(e) = stream.synchronize() {
                tracing::debug!("work on a GPU did not end well: {e}");
            }
        }
    }

    /// Forgets all copies: after a fault nobody knows which of them were made.
    pub(super) fn forget(&mut self) {
        self.drain();
        let cells = self.arena.cells();
        self.frames = Frames::new(self.frame_count, cells, self.geometry.layers);
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.drain();
    }
}

/// A kernel for calls of a geometry: `wide` for those of more than 16 rows of a KV head.
pub(super) fn spec(geometry: &Geometry, slots: bool, wide: bool) -> AttendSpec {
    AttendSpec { dim: geometry.dim_k, dtype: geometry.dtype, slots, wide }
}

/// Maps the cells in the first `bytes` of the host tier, and says how many. Without, pages pass through pinned
/// memory, and the CPU reads what has no frame.
fn map(device: &Device, arena: &Arena, bytes: u64) -> Option<(Registered, usize)> {
    let cells = (bytes / arena.cell_bytes() as u64) as usize;
    if cells == 0 {
        return None;
    }
    // SAFETY: the arena's memory stays while it lives, and whoever has the result holds it.
    let mapped = unsafe { device.register(arena.base(), cells * arena.cell_bytes()) };
    let warn = |e: &Error| tracing::warn!("the GPU cannot read host memory by itself: {e}");
    mapped.inspect_err(warn).ok().map(|mapped| (mapped, cells))
}
