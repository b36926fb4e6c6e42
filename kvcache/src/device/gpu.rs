//! Attention on the GPU over pages of the host tier that it has copies of.

use std::any::Any;
use std::sync::Arc;

use kvist_kernels::attend::{self, Listed, Out, Queries};
use kvist_kernels::cuda::{
    Attention, Buffer, Compiler, Device, DevicePart, Error, Event, Registered, StepChoice, Stream,
    TrialError,
};
use kvist_kernels::{KvLayout, KvPool, Tensor3};

use super::asked::{Asked, Job};
use super::copies::{CellShape, Copies, Ways};
use super::frames::Arrangement;
use super::mirror::Mirror;
use super::options::DeviceOptions;
use super::outputs::{Outputs, PARTS, Rows};
use super::select;
use super::steps::Steps;
use super::wanted::{self, Lists, Part};
use crate::Geometry;
use crate::arena::Arena;
use crate::summaries::Store;

/// The end of the copies that were queued last, and how often copies were.
#[derive(Debug)]
pub(super) struct Arrival {
    event: Event,
    pub(super) queued: u64,
    /// Copies that the computing stream waits for already.
    awaited: u64,
}

impl Arrival {
    /// Makes the computing stream wait for copies number `copies`, and for all that were queued with them.
    pub(super) fn wait(&mut self, compute: &Stream, copies: u64) -> Result<(), Error> {
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
    Own {
        _memory: Buffer,
    },
    /// Somebody else's, who keeps it as long as the tier is there.
    Lent,
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
    pub(super) selections: u64,
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
    /// Before the frames that they name.
    pub(super) steps: Steps,
    pub(super) pages: Mirror,
    /// Boxes of units of tokens, or boxed codes, where the cache's selector goes by those.
    pub(super) summaries: Option<Mirror>,
    outputs: Outputs,
    pub(super) arrival: Arrival,
    pub(super) compute: Stream,
    copy: Stream,
    _memory: Frame,
    pub(super) geometry: Geometry,
    split_bytes: u64,
    /// Host memory that calls have taken, at most so far.
    pub(super) call_bytes: u64,
    /// The layer in which a selection was begun that the CPU makes: it is attended to in the same step.
    pub(super) pending: Option<usize>,
    pub(super) counts: Counts,
    pub(super) device: Arc<Device>,
    /// Of memory that is lent.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

/// The parts of the host tier that the GPU has copies of.
pub(super) struct Home<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) pages: &'a Arc<Arena>,
    /// Bytes of it that are there for good.
    pub(super) mapped: u64,
    /// Summaries by which the GPU can choose, and what.
    pub(super) boxes: Option<(&'a Store, StepChoice)>,
}

impl Home<'_> {
    /// Rows of keys and of values.
    fn page(&self) -> CellShape {
        let g = self.geometry;
        CellShape { planes: 2, rows: g.page_tokens, row_bytes: g.dim_k * g.dtype.size() }
    }

    /// Boxes of units, or codes of a tile.
    fn cell(&self) -> Option<(&Store, CellShape)> {
        let (store, _) = self.boxes?;
        let (rows, row_bytes) = select::rows(store)?;
        Some((store, CellShape { planes: 1, rows, row_bytes }))
    }

    fn ways(&self, cell: &CellShape, options: &DeviceOptions) -> Ways {
        // Boxes are a small part of what there is.
        let stage = options.limits.stage_bytes / if cell.planes == 1 { 8 } else { 1 };
        Ways::new(cell, stage, options.limits.engine_bytes)
    }

    /// Cells of boxes that may be named.
    fn cells(&self, store: &Store) -> usize {
        select::cells(store, self.pages.cells(), self.geometry.page_tokens)
    }

    /// Bytes of host memory that tables take, and pinned memory.
    pub(super) fn host_bytes(&self, options: &DeviceOptions) -> u64 {
        let of = |cells, shape: &CellShape| {
            let pinned = self.ways(shape, options).pinned_bytes(shape);
            Arena::watch_bytes(cells) + Mirror::table_bytes(cells) + pinned
        };
        let boxes = self.cell().map_or(0, |(store, shape)| of(self.cells(store), &shape));
        of(self.pages.cells(), &self.page()) + boxes
    }

    /// Begins to take account of what was copied.
    pub(super) fn watch(&self) {
        self.pages.watch(self.pages.cells());
        if let Some((store, _)) = self.cell() {
            store.arena.watch(self.cells(store));
        }
    }
}

impl Gpu {
    /// Takes the memory and loads what every call needs.
    pub(super) fn open(
        options: &DeviceOptions,
        home: &Home,
        lent: Option<(u64, u64)>,
    ) -> Result<Gpu, Error> {
        let compiler = options.compiler.clone().unwrap_or_else(|| Arc::new(Compiler::from_env()));
        let device = Arc::new(Device::open(options.ordinal, compiler)?);
        let (compute, copy) = (device.new_stream()?, device.new_stream()?);
        let mut attention = Attention::new(&device, &compute)?;
        let geometry = home.geometry;
        attention.warm_up(geometry.dim_k, geometry.dtype, &compute)?;
        let mapped = map(&device, home.pages, if options.zero_copy { home.mapped } else { 0 });
        let copies =
            |cell, mapped| Copies::new(&device, &copy, cell, mapped, home.ways(&cell, options));
        let of_pages = copies(home.page(), mapped)?;
        let warm = home.boxes.is_some_and(|(_, choice)| warm_up(&device, geometry, choice));
        let boxes = home.cell().filter(|_| warm);
        let boxes = boxes.map(|(store, cell)| Ok((store, cell, copies(cell, None)?)));
        let boxes = boxes.transpose()?;
        let arrival = Arrival { event: device.event()?, queued: 0, awaited: 0 };
        let outputs = Outputs::new(&device)?;
        // Last, so that it is known what is left.
        let bytes = match (lent, options.bytes) {
            (Some((_, bytes)), _) | (None, Some(bytes)) => bytes,
            (None, None) => device.free_bytes()? / 2,
        };
        // Rows are numbered in 32 bits, and no frame is for a page that there cannot be.
        let page = geometry.page_bytes() as u64;
        let most = (u32::MAX as usize / (2 * geometry.page_tokens)).min(home.pages.cells());
        let cells = boxes
            .as_ref()
            .map_or(0, |(store, ..)| select::cells_within(store, home.cells(store), bytes));
        let of_boxes = boxes.as_ref().map_or(0, |(_, cell, _)| (cells * cell.bytes()) as u64);
        let frames = ((bytes.saturating_sub(of_boxes) / page) as usize).min(most);
        let of_frames = frames as u64 * page;
        let (memory, base) = match lent {
            Some((address, _)) => (Frame::Lent, address),
            None => {
                let buffer = device.buffer((of_frames + of_boxes) as usize)?;
                let address = buffer.address();
                (Frame::Own { _memory: buffer }, address)
            }
        };
        let layers = geometry.layers;
        let mirror = |arena: &Arc<Arena>, cells, copies, at, rows| {
            Mirror::new(arena, cells, copies, at, (rows, layers))
        };
        let summaries = boxes.map(|(store, cell, copies)| {
            let at = (base + of_frames, cells);
            mirror(&store.arena, home.cells(store), copies, at, cell.rows)
        });
        let cells = home.pages.cells();
        Ok(Gpu {
            attention,
            steps: Steps::default(),
            pages: mirror(home.pages, cells, of_pages, (base, frames), geometry.page_tokens),
            summaries,
            outputs,
            arrival,
            compute,
            copy,
            _memory: memory,
            geometry: geometry.clone(),
            split_bytes: options.limits.split_bytes,
            call_bytes: 0,
            pending: None,
            counts: Counts::default(),
            device,
            _owner: options.owner.clone(),
        })
    }

    /// Bytes of all frames, and of those in use.
    pub(super) fn bytes(&self) -> [u64; 2] {
        let (pages, boxes) = (self.pages.bytes(), self.summaries.as_ref().map(Mirror::bytes));
        let [all, used] = boxes.unwrap_or_default();
        [pages[0] + all, pages[1] + used]
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
    pub(super) fn attend(&mut self, job: &Job, out: &mut Out) -> Result<bool, TrialError> {
        let page = self.geometry.page_tokens as u32;
        self.pages.named.want(&job.listed, page);
        self.begin(job.layer);
        let plan = self.pages.arrange(self.arrival.queued + 1);
        // What came ahead is waited for before more is queued behind it.
        self.arrival.wait(&self.compute, plan.copies)?;
        let copied = self.copy(&plan, &Arrangement::default())?;
        let sees_all = wanted::sees_all(job.queries, &job.listed, job.params);
        let masked = matches!(job.listed, Listed::Pages(..)) && !sees_all;
        if masked && self.pages.named.away().next().is_some() {
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

    /// A layer is read.
    pub(super) fn begin(&mut self, layer: usize) {
        if self.pending.take() == Some(layer) {
            return;
        }
        let all = std::iter::once(&mut self.pages).chain(&mut self.summaries);
        all.for_each(|mirror| mirror.frames.begin(layer));
    }

    /// Bytes of host memory for calls and steps, with a call that needs so many.
    pub(super) fn needed_bytes(&self, call: u64) -> u64 {
        self.call_bytes.max(call) + self.steps.bytes()
    }

    /// Queues the copies of plans for pages and for boxes, and returns their bytes. The last call is over, so
    /// that nobody reads what they overwrite.
    pub(super) fn copy(&mut self, pages: &Arrangement, boxes: &Arrangement) -> Result<u64, Error> {
        let mut bytes = 0;
        let mirrors = [(Some(&mut self.pages), pages), (self.summaries.as_mut(), boxes)];
        for (mirror, plan) in mirrors {
            if let Some(mirror) = mirror
                && !plan.moves.is_empty()
            {
                bytes += mirror.queue(&self.copy, &plan.moves)?;
            }
        }
        if bytes > 0 {
            self.arrival.event.record(&self.copy)?;
            self.arrival.queued += 1;
            self.counts.copied_bytes += bytes;
        }
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
        let lists = |gpu: &Gpu, part| Lists::new(&asked.job.listed, &gpu.pages.named, part, page);
        let frames = self.pool(self.pages.base, self.pages.count)?;
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
        let pages = self.pages.named.away().count() as u64;
        if away.is_empty() {
            // Rows that read nothing have a result, too.
            if done.is_empty() {
                self.launch(asked, &away, &frames, &mut done)?;
            }
            return Ok((done, None));
        }
        if let Some((base, cells)) = self.pages.copies.mapped()
            && self.pages.named.away().all(|host| (host as usize) < cells)
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
    pub(super) fn ahead(&mut self, pages: impl Iterator<Item = u32>) -> Result<(), Error> {
        let (copies, own) = (self.arrival.queued + 1, &mut self.pages);
        let plan = own.frames.ahead(pages, own.rows, &own.arena, copies);
        self.counts.ahead += plan.moves.len() as u64;
        self.copy(&plan, &Arrangement::default()).map(drop)
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
        self.steps = Steps::default();
        self.pages.forget();
        self.summaries.iter_mut().for_each(Mirror::forget);
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.drain();
    }
}

/// Loads what steps need that choose so; without, the CPU chooses.
fn warm_up(device: &Device, geometry: &Geometry, choice: StepChoice) -> bool {
    let warm = device.warm_up(&select::probe(geometry, choice).kernels());
    warm.inspect_err(|e| tracing::warn!("the CPU chooses what queries read: {e}")).is_ok()
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
