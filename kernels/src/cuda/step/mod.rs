//! A decode step that chooses what it reads on the GPU: no score and no list comes to the host before it is
//! done, and all that changes from step to step is in memory. So a captured step can be replayed as sequences
//! grow.

mod shape;
mod tables;

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

pub use shape::{StepMemory, StepShape};
use tables::State;
pub use tables::{StepLists, StepRow};

use super::params::{
    AttendParams, MergeUnitsParams, PlanParams, ScoreParams, Segment, TopKParams, Unit, type_code,
};
use super::work::{PlanRoom, ScoreSpec, TILE, TILES_MIN, Work, merge_of};
use super::{
    ATTEND_PAGES, Buffer, Device, Error, Function, Grid, MERGE, Macros, PLAN, SCORE, SELECT,
    Specialisation, Stream, TrialError,
};
use crate::DType;

/// As the heads of `plan.cu` and `select.cu` say.
const PLAN_LAUNCH: (u32, u32) = (512, 384);
const TOP_K_LAUNCH: (u32, u32) = (512, 8336);
const THREADS: u32 = 128;

/// Queries choose units of tokens by the bounds of their boxes (Quest, arXiv 2406.10774, folded over the query
/// heads of a KV head), and attend to them: score, choose, plan, attend, merge in six launches.
#[derive(Debug)]
pub struct SelectedStep {
    shape: StepShape,
    state: State,
    plans: [(PlanParams, Function); 2],
    score: (ScoreParams, Function, Grid),
    choose: (TopKParams, Function),
    attend: (AttendParams, Function, Grid),
    merge: (MergeUnitsParams, Function, Grid),
    _kept: Vec<Buffer>,
}

/// Buffers of a step.
struct Room<'a> {
    device: &'a Device,
    stream: &'a Stream,
    kept: Vec<Buffer>,
}

impl Room<'_> {
    fn bytes(&mut self, bytes: usize) -> Result<u64, Error> {
        let buffer = self.device.buffer(bytes)?;
        let address = buffer.address();
        self.kept.push(buffer);
        Ok(address)
    }

    fn of<T: Pod>(&mut self, data: &[T]) -> Result<u64, Error> {
        let buffer = self.device.buffer_of(self.stream, data)?;
        let address = buffer.address();
        self.kept.push(buffer);
        Ok(address)
    }

    /// A plan that is made on the GPU.
    fn plan(&mut self, units: &[Unit], workers: usize, lens: u64) -> Result<PlanParams, Error> {
        let room = PlanRoom::new(units.len(), workers);
        Ok(PlanParams {
            units: self.of(units)?,
            segments: self.bytes(room.segments * size_of::<Segment>())?,
            workers: self.bytes(room.workers * 4)?,
            lens,
            indptr: 0,
            units_n: units.len() as u32,
            workers_n: workers as u32,
            tile: TILE as u32,
            tiles_min: TILES_MIN,
        })
    }
}

fn grid(blocks: usize, shared_bytes: usize) -> Grid {
    let blocks = [blocks.max(1) as u32, 1, 1];
    Grid { blocks, threads: THREADS, shared_bytes: shared_bytes as u32 }
}

/// One block a row.
fn by_row(rows: usize, (threads, shared_bytes): (u32, u32)) -> Grid {
    Grid { blocks: [rows.max(1) as u32, 1, 1], threads, shared_bytes }
}

/// Offsets of lists of equal room.
fn starts(lists: usize, room: usize) -> Vec<u32> {
    (0..=lists).map(|i| (i * room) as u32).collect()
}

/// Where the parts of a step meet.
struct Between {
    /// f32 `[rows][units_max]`.
    scores: u64,
    /// u32 `[rows][wanted_max]`, u32 `[rows]`: what is attended to, and how many tokens that is.
    items: u64,
    lens: u64,
}

impl SelectedStep {
    /// Loads the kernels and takes the memory for steps of this shape.
    ///
    /// # Errors
    /// [`TrialError`] for a shape that no kernel takes, and those of [`Device::function`] and
    /// [`Device::buffer`].
    pub fn new(
        device: &Arc<Device>,
        stream: &Stream,
        shape: StepShape,
        memory: StepMemory,
    ) -> Result<SelectedStep, TrialError> {
        shape.check()?;
        let load = |kernel: Specialisation, entry| device.function(&kernel, entry, stream);
        let (score_spec, attend_spec) = shape.specs();
        let score = load(SCORE.with(score_spec.macros()), "score_units")?;
        let attend = load(ATTEND_PAGES.with(attend_spec.macros()), "attend_pages")?;
        let plan = load(PLAN.with(Macros::new()), "plan")?;
        let top_k = load(SELECT.with(Macros::new()), "top_k")?;
        let merge = load(MERGE.with(Macros::new()), "merge_units")?;
        let blocks = |function: &Function, shared: usize| -> Result<usize, Error> {
            let occupancy = function.occupancy(THREADS, shared as u32)?;
            Ok((occupancy * device.info().multiprocessors).max(1) as usize)
        };
        let workers = [
            blocks(&score, score_spec.shared_bytes())?,
            blocks(&attend, attend_spec.shared_bytes())?,
        ];
        let state = State::new(device, &shape)?;
        let mut room = Room { device, stream, kept: Vec::new() };
        let rows = shape.rows();
        let between = Between {
            scores: room.bytes(rows * shape.units_max() * 4)?,
            items: room.bytes(rows * shape.wanted_max * 4)?,
            lens: room.bytes(rows * 4)?,
        };
        // A list each, of the sequence's KV head.
        let q_indptr = starts(shape.sequences, 1);
        let units = |rows| {
            let list = |s, h| s * shape.kv_heads + h;
            Work::units(&q_indptr, (shape.kv_heads, shape.group), rows, list)
        };
        let (scored, attended) = (units(ScoreSpec::rows(shape.group)), units(attend_spec.rows()));
        let plans = [
            room.plan(&scored, workers[0], state.units())?,
            room.plan(&attended, workers[1], between.lens)?,
        ];
        let scoring = scoring(&shape, &memory, &state, &between, &plans[0], &mut room)?;
        let choosing = choosing(&shape, &memory, &state, &between, &mut room)?;
        let parts = PlanRoom::new(attended.len(), workers[1]).partials * attend_spec.rows();
        let attending = attending(&shape, &memory, &between, &plans[1], parts, &mut room)?;
        let merge_blocks = (attended.len() * attend_spec.rows()).div_ceil(4);
        let work = Work { units: attended, segments: vec![], workers: vec![], partials: 0 };
        let merging = merge_of(&attend_spec, &attending, &work);
        Ok(SelectedStep {
            shape,
            state,
            plans: plans.map(|p| (p, plan.clone())),
            score: (scoring, score, grid(workers[0], score_spec.shared_bytes())),
            choose: (choosing, top_k),
            attend: (attending, attend, grid(workers[1], attend_spec.shared_bytes())),
            merge: (merging, merge, grid(merge_blocks, 0)),
            _kept: room.kept,
        })
    }

    /// What the rows are from the next step on. Waits for steps that are on their way.
    ///
    /// # Errors
    /// [`Error::Launch`] for another number of rows, or for one that there is no room for;
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn set_rows(&mut self, rows: &[StepRow]) -> Result<(), Error> {
        let s = &self.shape;
        let (tokens, most) = (s.pages_max * s.page_tokens, s.wanted_max);
        let fits = |row: &StepRow| {
            let units = row.tokens.div_ceil(s.unit_tokens);
            let kept = row.keep[0].saturating_add(row.keep[1]).min(units);
            row.tokens <= tokens && row.wanted.max(kept) <= most
        };
        if rows.len() != s.rows() || !rows.iter().all(fits) {
            let expected =
                format!("{} rows of up to {tokens} tokens and {most} units to read", s.rows());
            return Err(Error::Launch { what: "rows", expected, found: format!("{rows:?}") });
        }
        self.state.done.synchronize()?;
        self.state.set(&self.shape, rows);
        Ok(())
    }

    /// The lists of pages and cells, to be written and then sent. Waits for steps that are on their way.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn lists(&mut self) -> Result<StepLists<'_>, Error> {
        self.state.done.synchronize()?;
        Ok(self.state.lists(&self.shape))
    }

    /// Queues the lists' way to the GPU; in a capture, for all replays.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    ///
    /// # Safety
    /// The step stays until what is queued is done.
    pub unsafe fn send_lists(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: they are written only after [`SelectedStep::queued`]'s event.
        unsafe { self.state.send_lists(stream) }
    }

    /// Queues a step; in a capture, for all replays.
    ///
    /// # Errors
    /// Those of [`Function::launch`].
    ///
    /// # Safety
    /// The memory of the step is the GPU's, as long as its shape says, and stays until what is queued is done; no
    /// other work that is not ordered with it touches it. The lists that were sent name frames and cells that
    /// are there.
    pub unsafe fn queue(&self, stream: &Stream) -> Result<(), Error> {
        let rows = self.shape.rows();
        // SAFETY: parameters are those of the sources; their addresses are of buffers that this keeps or the
        // caller's.
        unsafe {
            self.state.send_rows(stream)?;
            let [(scoring, plan), (attending, _)] = &self.plans;
            plan.launch(stream, by_row(1, PLAN_LAUNCH), scoring)?;
            self.score.1.launch(stream, self.score.2, &self.score.0)?;
            self.choose.1.launch(stream, by_row(rows, TOP_K_LAUNCH), &self.choose.0)?;
            plan.launch(stream, by_row(1, PLAN_LAUNCH), attending)?;
            self.attend.1.launch(stream, self.attend.2, &self.attend.0)?;
            self.merge.1.launch(stream, self.merge.2, &self.merge.0)
        }
    }

    /// A step, or the replay of one, is queued: whoever changes rows or lists waits for it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn queued(&self, stream: &Stream) -> Result<(), Error> {
        self.state.done.record(stream)
    }
}

fn scoring(
    s: &StepShape,
    memory: &StepMemory,
    state: &State,
    between: &Between,
    plan: &PlanParams,
    room: &mut Room,
) -> Result<ScoreParams, Error> {
    let row = 2 * s.dim as i64;
    Ok(ScoreParams {
        q: memory.q,
        k: memory.cells,
        v: memory.cells + (s.dim * s.dtype.size()) as u64,
        out: between.scores,
        units: plan.units,
        segments: plan.segments,
        workers: plan.workers,
        indptr: room.of(&starts(s.rows(), s.cells_max()))?,
        items: state.cells(),
        lens: state.units(),
        q_row: (s.q_heads() * s.dim) as i64,
        q_head: s.dim as i64,
        k_frame: s.cell_units as i64 * row,
        k_head: 0,
        k_token: row,
        v_frame: s.cell_units as i64 * row,
        v_head: 0,
        v_token: row,
        out_row: s.units_max() as i64,
        page_tokens: s.cell_units as u32,
        group: s.group as u32,
        kv_heads: s.kv_heads as u32,
        fold: s.fold as u32,
        types: type_code(s.q_dtype),
        zero: 0,
    })
}

fn choosing(
    s: &StepShape,
    memory: &StepMemory,
    state: &State,
    between: &Between,
    room: &mut Room,
) -> Result<TopKParams, Error> {
    let [forced_ptr, forced] = state.forced();
    Ok(TopKParams {
        scores: between.scores,
        counts: state.units(),
        forced_ptr,
        forced,
        out: memory.chosen,
        out_n: memory.chosen_n,
        wanted: state.wanted(),
        indptr: room.of(&starts(s.rows(), s.pages_max))?,
        frames: state.frames(),
        lens: state.tokens(),
        out_items: between.items,
        out_lens: between.lens,
        scores_row: s.units_max() as i64,
        out_row: s.wanted_max as i64,
        k: 0,
        unit_tokens: s.unit_tokens as u32,
        page_units: s.page_units() as u32,
        // A page's values lie behind its keys, so that its units are every other run of as many.
        page_items: 2 * s.page_units() as u32,
    })
}

fn attending(
    s: &StepShape,
    memory: &StepMemory,
    between: &Between,
    plan: &PlanParams,
    parts: usize,
    room: &mut Room,
) -> Result<AttendParams, Error> {
    let (token, q_row) = (s.dim as i64, (s.q_heads() * s.dim) as i64);
    let unit = s.unit_tokens as i64 * token;
    Ok(AttendParams {
        q: memory.q,
        k: memory.pages,
        v: memory.pages + (s.page_tokens * s.dim * s.dtype.size()) as u64,
        o: memory.o,
        lse2: memory.lse2,
        part_o: room.bytes(parts * s.dim * 4)?,
        part_lse2: room.bytes(parts * 4)?,
        units: plan.units,
        segments: plan.segments,
        workers: plan.workers,
        indptr: room.of(&starts(s.rows(), s.wanted_max))?,
        items: between.items,
        lens: between.lens,
        q_row,
        q_head: token,
        o_row: q_row,
        o_head: token,
        k_frame: unit,
        k_head: 0,
        k_token: token,
        v_frame: unit,
        v_head: 0,
        v_token: token,
        far: memory.far,
        scale: s.scale,
        soft_cap: s.soft_cap,
        page_tokens: s.unit_tokens as u32,
        group: s.group as u32,
        q_heads: s.q_heads() as u32,
        types: type_code(s.q_dtype) | type_code(DType::F32) << 8,
        ..AttendParams::zeroed()
    })
}
