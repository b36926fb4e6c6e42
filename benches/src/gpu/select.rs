//! Decode steps that choose what they read on the GPU, replayed as one graph, against dense steps.

use std::time::Instant;

use half::bf16;
use kvist_kernels::attend::{Listed, Out, Queries};
use kvist_kernels::cuda::params::Fold;
use kvist_kernels::cuda::{
    Attention, Buffer, Capacity, SelectedStep, StepChoice, StepMemory, StepRow, StepShape, Stream,
    TrialError,
};
use kvist_kernels::summary::{self, BoxedSpec, TILE};
use kvist_kernels::{DType, KvLayout, KvPool, PageLists, Tensor3, Tensor3Mut};

use super::Gpu;
use crate::{Error, Line, Options, Params, Rng, Sample, Shape, Sink};

const SHAPE: Shape = Shape { q_heads: 32, kv_heads: 8, head_dim: 128 };
/// Batch and context of the rows, without `--context`.
const ROWS: [(usize, usize); 3] = [(1, 32 << 10), (1, 128 << 10), (8, 128 << 10)];
const PAGE: usize = 64;
/// What is chosen: units of so many tokens by their boxes, or tokens by codes of so many planes.
const CHOICES: [(&str, StepChoice); 3] = [
    ("units of 16", StepChoice::Units { tokens: 16, cell: 4, fold: Fold::Max }),
    ("units of 64", StepChoice::Units { tokens: 64, cell: 1, fold: Fold::Max }),
    ("tokens", StepChoice::Tokens { planes: 3 }),
];
/// Distinct cells of codes; a GPU's cache does not tell them apart.
const CELLS: usize = 128;
/// Tokens that a query reads, without `--budget`.
const BUDGET: usize = 2048;
/// Replays between two waits.
const CALLS: usize = 20;

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let gpu = Gpu::open(sink)?;
    let own = gpu.device.new_stream().map_err(TrialError::from)?;
    let rows = match &options.context {
        Some(contexts) => contexts.iter().map(|&context| (1, context)).collect(),
        None => ROWS.to_vec(),
    };
    for shape in options.shapes(&[SHAPE])? {
        for &(batch, context) in &rows {
            for (name, choice) in CHOICES {
                let unit = if let StepChoice::Units { tokens, .. } = choice { tokens } else { 1 };
                let budget = options.budget.as_ref().and_then(|b| b.first().copied());
                let wanted = budget.unwrap_or(BUDGET).min(context / 2).div_ceil(unit).max(2);
                let step = StepShape {
                    sequences: batch,
                    kv_heads: shape.kv_heads,
                    group: shape.q_heads / shape.kv_heads,
                    dim: shape.head_dim,
                    dtype: DType::Bf16,
                    q_dtype: DType::Bf16,
                    choice,
                    page_tokens: PAGE,
                    pages_max: context.div_ceil(PAGE),
                    wanted_max: wanted,
                    scale: 1.0 / (shape.head_dim as f32).sqrt(),
                    soft_cap: 0.0,
                };
                row(&gpu, &own, (name, step), context, options, sink)?;
            }
        }
    }
    Ok(())
}

/// Tensors of a step on the GPU, drawn at random.
struct Tensors {
    q: Buffer,
    pages: Buffer,
    cells: Buffer,
    order: Vec<u32>,
    o: Buffer,
    lse2: Buffer,
    chosen: Buffer,
    chosen_n: Buffer,
    candidates: Buffer,
}

/// Boxes of units, or boxed codes, of random keys.
fn cells(s: &StepShape, drawn: &[bf16]) -> Result<Vec<u8>, kvist_kernels::Error> {
    let n = s.rows() * s.cells_max();
    match s.choice {
        StepChoice::Units { cell, .. } => {
            let boxes = drawn.chunks_exact(s.dim).cycle().take(n * cell).flat_map(|row| {
                let above = row.iter().map(|x| bf16::from_f32(x.to_f32().abs() + 1.0));
                let below = row.iter().map(|x| bf16::from_f32(-x.to_f32().abs() - 1.0));
                above.chain(below)
            });
            Ok(boxes.flat_map(bf16::to_le_bytes).collect())
        }
        StepChoice::Tokens { planes } => {
            let spec = BoxedSpec::new(s.dim, planes as u32)?;
            let mut cells = vec![0u8; CELLS * spec.cell_bytes()];
            let tiles = drawn.chunks_exact(TILE * s.dim);
            for (cell, keys) in cells.chunks_exact_mut(spec.cell_bytes()).zip(tiles) {
                let rows: Vec<*const u8> = keys.chunks(s.dim).map(|x| x.as_ptr().cast()).collect();
                // SAFETY: 64 keys.
                unsafe { summary::build_boxed(&spec, s.dtype, &rows, cell) }
            }
            let all = cells.chunks_exact(spec.cell_bytes()).cycle().take(n);
            Ok(all.flatten().copied().collect())
        }
    }
}

impl Tensors {
    fn new(gpu: &Gpu, s: &StepShape) -> Result<Tensors, TrialError> {
        let mut rng = Rng::new(71);
        let drawn: Vec<bf16> = rng.normals(1 << 20).into_iter().map(bf16::from_f32).collect();
        let put = |numbers: usize| {
            let data: Vec<bf16> = drawn.iter().copied().cycle().take(numbers).collect();
            gpu.device.buffer_of(&gpu.stream, &data)
        };
        let (frames, q_heads) = (s.rows() * s.pages_max, s.kv_heads * s.group);
        Ok(Tensors {
            q: put(s.sequences * q_heads * s.dim)?,
            pages: put(frames * 2 * s.page_tokens * s.dim)?,
            cells: gpu.device.buffer_of(&gpu.stream, &cells(s, &drawn)?)?,
            order: Rng::new(72).permutation(frames),
            o: gpu.device.buffer(s.sequences * q_heads * s.dim * 4)?,
            lse2: gpu.device.buffer(s.sequences * q_heads * 4)?,
            chosen: gpu.device.buffer(s.rows() * s.wanted_max * 4)?,
            chosen_n: gpu.device.buffer(s.rows() * 4)?,
            candidates: gpu.device.buffer(s.rows() * s.candidates_max() * 4)?,
        })
    }

    fn memory(&self) -> StepMemory {
        StepMemory {
            q: self.q.address(),
            pages: self.pages.address(),
            far: 0,
            cells: self.cells.address(),
            o: self.o.address(),
            lse2: self.lse2.address(),
            chosen: self.chosen.address(),
            chosen_n: self.chosen_n.address(),
            candidates: self.candidates.address(),
        }
    }

    /// A step over them, of sequences of `context` tokens; the first and the last unit are always read.
    fn step(
        &self,
        gpu: &Gpu,
        own: &Stream,
        s: StepShape,
        context: usize,
    ) -> Result<SelectedStep, TrialError> {
        let mut step = SelectedStep::new(&gpu.device, own, s, self.memory())?;
        let lists = step.lists()?;
        lists.frames.copy_from_slice(&self.order);
        lists.cells.iter_mut().zip(0..).for_each(|(to, cell)| *to = cell);
        // Of tokens, those that no cell speaks of.
        let last = if s.unit_tokens() > 1 { 1 } else { (context % TILE).max(1) };
        let row = StepRow { tokens: context, keep: [1, last], wanted: s.wanted_max };
        step.set_rows(&vec![row; s.rows()])?;
        // SAFETY: the step outlives it.
        unsafe { step.send_lists(own)? }
        own.synchronize()?;
        Ok(step)
    }
}

fn row(
    gpu: &Gpu,
    own: &Stream,
    (name, s): (&str, StepShape),
    context: usize,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let tensors = Tensors::new(gpu, &s)?;
    let step = tensors.step(gpu, own, s, context)?;
    // SAFETY: step and tensors outlive the replays, which `timed` waits for.
    let graph = own.capture(|| unsafe { step.queue(own) });
    let mut graph = graph.map_err(TrialError::from)?;
    // SAFETY: as above.
    let selected = timed(own, options, || Ok(unsafe { graph.launch(own) }?))?;
    let dense = dense(gpu, own, &s, context, &tensors, options)?;
    let params = gpu.params().with("batch", s.sequences).with("context", context);
    let params = params.with("choice", name).with("tokens", s.wanted_max * s.unit_tokens());
    let line = Line::new("gpu-select", params, selected.median * 1e6, "us")
        .peer("dense", dense.median * 1e6)
        .best(selected.best * 1e6)
        .repeated(selected.repeats, selected.spread)
        .columns(Params::new().with("of dense", selected.median / dense.median));
    sink.push(line);
    Ok(())
}

/// The same queries over all pages, replayed as one graph, too.
fn dense(
    gpu: &Gpu,
    own: &Stream,
    s: &StepShape,
    context: usize,
    tensors: &Tensors,
    options: &Options,
) -> Result<Sample, Error> {
    let (q_heads, m) = (s.kv_heads * s.group, tensors.memory());
    let shape = [s.sequences, q_heads, s.dim];
    let strides = [(q_heads * s.dim) as i64, s.dim as i64];
    let indptr: Vec<u32> = (0..=s.sequences as u32).collect();
    let pages: Vec<u32> = (0..=s.rows()).map(|i| (i * s.pages_max) as u32).collect();
    let lens = vec![context as u32; s.rows()];
    let layout = KvLayout::page(s.page_tokens, s.dim, s.dim);
    let v = m.pages + (s.page_tokens * s.dim * s.dtype.size()) as u64;
    // SAFETY: memory of the GPU; nobody reads it here.
    let (q, pool, o) = unsafe {
        (
            Tensor3::from_raw(m.q as *const u8, s.dtype, shape, strides),
            KvPool::from_raw(m.pages as _, v as _, s.dtype, layout, tensors.order.len())?,
            Tensor3Mut::from_raw(m.o as *mut u8, DType::F32, shape, strides),
        )
    };
    let queries = Queries { q, indptr: &indptr, positions: None };
    let lists = PageLists {
        indptr: &pages,
        frames: &tensors.order,
        lens: &lens,
        first_pos: None,
        per_head: true,
    };
    let params = kvist_kernels::attend::Params::new(s.scale);
    let call = (&queries, &Listed::Pages(&pool, &lists), &params);
    let out = Out { o, lse2: None };
    let most = Capacity { lists: s.rows(), items: tensors.order.len() };
    let mut attention = Attention::new(&gpu.device, own).map_err(TrialError::from)?;
    // SAFETY: all of it is the GPU's, and outlives the replays.
    let mut replay = unsafe { attention.capture(own, call, &out, m.lse2, most)? };
    // SAFETY: as above.
    timed(own, options, || unsafe { replay.launch(own, call, &out) })
}

/// Seconds of one replay, after some that warm up.
fn timed(
    own: &Stream,
    options: &Options,
    mut queue: impl FnMut() -> Result<(), TrialError>,
) -> Result<Sample, Error> {
    let mut some = |n: usize| -> Result<f64, TrialError> {
        let start = Instant::now();
        for _ in 0..n {
            queue()?;
        }
        own.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / n as f64)
    };
    some(2)?;
    let (how, since, mut times) = (options.repeats(), Instant::now(), Vec::new());
    while !how.done(times.len(), since) {
        times.push(some(CALLS)?);
    }
    Ok(Sample::of(times))
}
