//! A decode step that chooses what it reads on the GPU: no score and no list comes to the host, and nothing but
//! the lengths of the sequences goes there. So a captured step can be replayed as they grow.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::params::{
    AttendParams, Fold, MergeUnitsParams, PlanParams, ScoreParams, Segment, TopKParams, Unit,
    type_code,
};
use super::work::{AttendSpec, PlanRoom, ScoreSpec, TILE, TILES_MIN, Work, merge_of};
use super::{
    ATTEND_PAGES, Buffer, Device, Error, Event, Function, Grid, Kernel, MERGE, Macros, PLAN,
    Pinned, SCORE, SELECT, Specialisation, Stream,
};
use crate::DType;

/// As the heads of `plan.cu` and `select.cu` say.
const PLAN_LAUNCH: (u32, u32) = (512, 384);
const TOP_K_LAUNCH: (u32, u32) = (512, 8336);
const THREADS: u32 = 128;

/// Sizes of a [`SelectedStep`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepShape {
    /// Sequences, one query each.
    pub sequences: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of each, 16 at most.
    pub group: usize,
    /// Dimensions of keys and values.
    pub dim: usize,
    /// Type of queries, keys, values and boxes: f16 or bf16.
    pub dtype: DType,
    /// Tokens of a page, a multiple of 16: what is chosen at once.
    pub page_tokens: usize,
    /// Pages that a sequence may have.
    pub pages_max: usize,
    /// Pages that a query reads for each KV head, those that are kept included.
    pub pages: usize,
    /// The first and the last pages, which are always read.
    pub keep: [usize; 2],
    /// Multiplies q.k.
    pub scale: f32,
}

/// Addresses of a step's tensors on the GPU.
#[derive(Clone, Copy, Debug)]
pub struct StepMemory {
    /// `[sequences][q_heads][dim]`.
    pub q: u64,
    /// `[frames][kv_heads][page_tokens][dim]`.
    pub k: u64,
    /// The same for values.
    pub v: u64,
    /// `[frames][kv_heads][2][dim]`: the largest and the smallest of a page's keys in each dimension.
    pub boxes: u64,
    /// u32 `[sequences][pages_max]`: frames of the sequences' pages.
    pub frames: u64,
    /// f32 `[sequences][q_heads][dim]`.
    pub o: u64,
    /// f32 `[sequences][q_heads]`, base 2.
    pub lse2: u64,
}

/// What changes from step to step, at bytes of one copy.
#[derive(Debug)]
struct Lengths {
    host: Pinned,
    device: Buffer,
    /// Tables of u32: pages of each sequence; pages and tokens of each row; offsets of forced ranges, and these.
    /// A row is a sequence's KV head.
    at: [usize; 5],
    done: Event,
}

/// Queries choose pages by the bounds of their boxes (Quest, arXiv 2406.10774, folded by maximum over the query
/// heads of a KV head), and attend to them: score, choose, plan, attend, merge in six launches.
#[derive(Debug)]
pub struct SelectedStep {
    shape: StepShape,
    lengths: Lengths,
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

impl StepShape {
    fn rows(&self) -> usize {
        self.sequences * self.kv_heads
    }

    fn q_heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn specs(&self) -> (ScoreSpec, AttendSpec) {
        let (dim, dtype) = (self.dim, self.dtype);
        (
            ScoreSpec { dim, dtype, boxes: true },
            AttendSpec { dim, dtype, slots: false, wide: false },
        )
    }

    /// The kernels of a step: for [`Device::warm_up`].
    #[must_use]
    pub fn kernels(&self) -> Vec<Specialisation> {
        let (score, attend) = self.specs();
        let plain = |kernel: &'static Kernel| kernel.with(Macros::new());
        vec![
            SCORE.with(score.macros()),
            ATTEND_PAGES.with(attend.macros()),
            plain(&PLAN),
            plain(&SELECT),
            plain(&MERGE),
        ]
    }

    fn check(&self) -> Result<(), crate::Error> {
        let (score, attend) = self.specs();
        attend.check()?;
        if !ScoreSpec::all().any(|spec| spec == score) {
            let found = format!("{} of {}", self.dim, self.dtype);
            return Err(crate::Error::range("dim", "64, 80, 96 or 128 of f16 or bf16", found));
        }
        if !self.page_tokens.is_multiple_of(16) || self.page_tokens == 0 {
            return Err(crate::Error::range("page_tokens", "a multiple of 16", self.page_tokens));
        }
        if !(1..=16).contains(&self.group) {
            return Err(crate::Error::range("group", "1 to 16", self.group));
        }
        let kept = self.keep[0] + self.keep[1];
        if self.pages < kept || self.pages == 0 {
            let expected = format!("1 or more, and at least the {kept} that are kept");
            return Err(crate::Error::range("pages", expected, self.pages));
        }
        Ok(())
    }
}

impl Lengths {
    fn new(device: &Device, shape: &StepShape) -> Result<Lengths, Error> {
        let (s, rows) = (shape.sequences, shape.rows());
        let (mut at, mut end) = ([0; 5], 0);
        for (at, numbers) in at.iter_mut().zip([s, rows, rows, rows + 1, 4 * rows]) {
            *at = end;
            end = (end + numbers * 4).next_multiple_of(16);
        }
        let (host, done) = (device.pinned(end)?, device.event()?);
        Ok(Lengths { host, device: device.buffer(end)?, at, done })
    }

    fn address(&self, table: usize) -> u64 {
        self.device.address() + self.at[table] as u64
    }

    /// Writes the tables for sequences of so many tokens.
    fn set(&mut self, shape: &StepShape, tokens: &[usize]) {
        let pages = |n: usize| n.div_ceil(shape.page_tokens);
        let mut put = |table: usize, numbers: &[u32]| {
            let bytes: &[u8] = bytemuck::cast_slice(numbers);
            self.host.bytes_mut()[self.at[table]..][..bytes.len()].copy_from_slice(bytes);
        };
        let of =
            |f: &dyn Fn(usize) -> usize| tokens.iter().map(|&n| f(n) as u32).collect::<Vec<_>>();
        let by_row = |of: &[u32]| -> Vec<u32> {
            of.iter().flat_map(|&n| std::iter::repeat_n(n, shape.kv_heads)).collect()
        };
        let of_sequences = of(&pages);
        let of_rows = by_row(&of_sequences);
        put(0, &of_sequences);
        put(1, &of_rows);
        put(2, &by_row(&of(&|n| n)));
        let (mut offsets, mut ranges) = (vec![0u32], Vec::new());
        for n in of_rows {
            let [first, last] = shape.keep.map(|n| n as u32);
            let first = first.min(n);
            let last = (n - last.min(n)).max(first);
            let own = [[0, first], [last, n]].into_iter().filter(|[begin, end]| begin < end);
            ranges.extend(own.flatten());
            offsets.push(ranges.len() as u32 / 2);
        }
        put(3, &offsets);
        put(4, &ranges);
    }
}

impl SelectedStep {
    /// Loads the kernels and takes the memory for steps of this shape.
    ///
    /// # Errors
    /// [`super::TrialError`] for a shape that no kernel takes, and those of [`Device::function`] and
    /// [`Device::buffer`].
    pub fn new(
        device: &Arc<Device>,
        stream: &Stream,
        shape: StepShape,
        memory: StepMemory,
    ) -> Result<SelectedStep, super::TrialError> {
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
        let lengths = Lengths::new(device, &shape)?;
        let mut room = Room { device, stream, kept: Vec::new() };
        let heads = (shape.kv_heads, shape.group);
        let rows = shape.rows();
        let q_indptr: Vec<u32> = (0..=shape.sequences as u32).collect();
        // Scores of all pages, by list of a sequence; attention, by list of a sequence's KV head.
        let scored = Work::units(&q_indptr, heads, ScoreSpec::rows(shape.group), |s, _| s);
        let attended =
            Work::units(&q_indptr, heads, attend_spec.rows(), |s, h| s * shape.kv_heads + h);
        let starts = |n: usize, of: usize| -> Vec<u32> {
            (0..=n).map(|i| (i / of * shape.pages_max) as u32).collect()
        };
        let scores = room.bytes(rows * shape.pages_max * 4)?;
        let (chosen, chosen_n) = (room.bytes(rows * shape.pages_max * 4)?, room.bytes(rows * 4)?);
        let (items, lens) = (room.bytes(rows * shape.pages_max * 4)?, room.bytes(rows * 4)?);
        let plans = [
            room.plan(&scored, workers[0], lengths.address(0))?,
            room.plan(&attended, workers[1], lens)?,
        ];
        let (q_row, q_head) = ((shape.q_heads() * shape.dim) as i64, shape.dim as i64);
        let box_head = 2 * shape.dim as i64;
        let box_frame = shape.kv_heads as i64 * box_head;
        let row_bytes = (shape.dim * shape.dtype.size()) as u64;
        let scoring = ScoreParams {
            q: memory.q,
            k: memory.boxes,
            v: memory.boxes + row_bytes,
            out: scores,
            units: plans[0].units,
            segments: plans[0].segments,
            workers: plans[0].workers,
            indptr: room.of(&starts(shape.sequences, 1))?,
            items: memory.frames,
            lens: lengths.address(0),
            q_row,
            q_head,
            k_frame: box_frame,
            k_head: box_head,
            k_token: box_head,
            v_frame: box_frame,
            v_head: box_head,
            v_token: box_head,
            out_row: shape.pages_max as i64,
            page_tokens: 1,
            group: shape.group as u32,
            kv_heads: shape.kv_heads as u32,
            fold: Fold::Max as u32,
            types: type_code(shape.dtype),
            zero: 0,
        };
        let choosing = TopKParams {
            scores,
            counts: lengths.address(1),
            forced_ptr: lengths.address(3),
            forced: lengths.address(4),
            out: chosen,
            out_n: chosen_n,
            indptr: room.of(&starts(rows, shape.kv_heads))?,
            frames: memory.frames,
            lens: lengths.address(2),
            out_frames: items,
            out_lens: lens,
            scores_row: shape.pages_max as i64,
            out_row: shape.pages_max as i64,
            k: shape.pages as u32,
            page_tokens: shape.page_tokens as u32,
        };
        let parts = PlanRoom::new(attended.len(), workers[1]).partials * attend_spec.rows();
        let k_token = shape.dim as i64;
        let k_head = shape.page_tokens as i64 * k_token;
        let k_frame = shape.kv_heads as i64 * k_head;
        let attending = AttendParams {
            q: memory.q,
            k: memory.k,
            v: memory.v,
            o: memory.o,
            lse2: memory.lse2,
            part_o: room.bytes(parts * shape.dim * 4)?,
            part_lse2: room.bytes(parts * 4)?,
            units: plans[1].units,
            segments: plans[1].segments,
            workers: plans[1].workers,
            indptr: room.of(&starts(rows, 1))?,
            items,
            lens,
            q_row,
            q_head,
            o_row: q_row,
            o_head: q_head,
            k_frame,
            k_head,
            k_token,
            v_frame: k_frame,
            v_head: k_head,
            v_token: k_token,
            scale: shape.scale,
            page_tokens: shape.page_tokens as u32,
            group: shape.group as u32,
            q_heads: shape.q_heads() as u32,
            types: type_code(shape.dtype) | type_code(DType::F32) << 8,
            ..AttendParams::zeroed()
        };
        let merge_blocks = (attended.len() * attend_spec.rows()).div_ceil(4);
        let work = Work { units: attended, segments: vec![], workers: vec![], partials: 0 };
        let merging = merge_of(&attend_spec, &attending, &work);
        Ok(SelectedStep {
            shape,
            lengths,
            plans: plans.map(|p| (p, plan.clone())),
            score: (scoring, score, grid(workers[0], score_spec.shared_bytes())),
            choose: (choosing, top_k),
            attend: (attending, attend, grid(workers[1], attend_spec.shared_bytes())),
            merge: (merging, merge, grid(merge_blocks, 0)),
            _kept: room.kept,
        })
    }

    /// The sequences have so many tokens from the next step on. Waits for steps that are on their way.
    ///
    /// # Errors
    /// [`Error::Launch`] for another number of sequences, or for one that has more pages than there is room
    /// for; [`Error::DeviceLost`], [`Error::Driver`].
    pub fn set_lens(&mut self, tokens: &[usize]) -> Result<(), Error> {
        let most = self.shape.pages_max * self.shape.page_tokens;
        if tokens.len() != self.shape.sequences || tokens.iter().any(|&n| n > most) {
            let expected = format!("{} sequences of up to {most} tokens", self.shape.sequences);
            return Err(Error::Launch { what: "lengths", expected, found: format!("{tokens:?}") });
        }
        self.lengths.done.synchronize()?;
        self.lengths.set(&self.shape, tokens);
        Ok(())
    }

    /// Queues a step; in a capture, for all replays.
    ///
    /// # Errors
    /// Those of [`Function::launch`].
    ///
    /// # Safety
    /// The memory of the step is the GPU's, as long as its shape says, and stays until what is queued is done; no
    /// other work that is not ordered with it touches it.
    pub unsafe fn queue(&self, stream: &Stream) -> Result<(), Error> {
        let rows = self.shape.rows();
        // SAFETY: parameters are those of the sources; their addresses are of buffers that this keeps or the
        // caller's.
        unsafe {
            let lengths = self.lengths.host.bytes();
            stream.send(self.lengths.device.address(), lengths.as_ptr(), lengths.len())?;
            let [(scoring, plan), (attending, _)] = &self.plans;
            plan.launch(stream, by_row(1, PLAN_LAUNCH), scoring)?;
            self.score.1.launch(stream, self.score.2, &self.score.0)?;
            self.choose.1.launch(stream, by_row(rows, TOP_K_LAUNCH), &self.choose.0)?;
            plan.launch(stream, by_row(1, PLAN_LAUNCH), attending)?;
            self.attend.1.launch(stream, self.attend.2, &self.attend.0)?;
            self.merge.1.launch(stream, self.merge.2, &self.merge.0)
        }
    }

    /// A step, or the replay of one, is queued: [`SelectedStep::set_lens`] waits for it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Driver`].
    pub fn queued(&self, stream: &Stream) -> Result<(), Error> {
        self.lengths.done.record(stream)
    }
}
