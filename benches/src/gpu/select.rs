//! Decode steps that choose what they read on the GPU, replayed as one graph, against dense steps.

use std::time::Instant;

use half::bf16;
use kvist_kernels::attend::{Listed, Out, Queries};
use kvist_kernels::cuda::{
    Attention, Buffer, Capacity, Error as GpuError, SelectedStep, StepMemory, StepShape, Stream,
    TrialError,
};
use kvist_kernels::{DType, KvLayout, KvPool, PageLists, Tensor3, Tensor3Mut};

use super::Gpu;
use crate::{Error, Line, Options, Params, Rng, Sample, Shape, Sink};

const SHAPE: Shape = Shape { q_heads: 32, kv_heads: 8, head_dim: 128 };
/// Batch and context of the rows, without `--context`.
const ROWS: [(usize, usize); 3] = [(1, 32 << 10), (1, 128 << 10), (8, 128 << 10)];
const PAGES: [usize; 2] = [16, 64];
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
            for page in PAGES {
                let budget = options.budget.as_ref().and_then(|b| b.first().copied());
                let pages = budget.unwrap_or(BUDGET).min(context / 2).div_ceil(page).max(2);
                let step = StepShape {
                    sequences: batch,
                    kv_heads: shape.kv_heads,
                    group: shape.q_heads / shape.kv_heads,
                    dim: shape.head_dim,
                    dtype: DType::Bf16,
                    page_tokens: page,
                    pages_max: context.div_ceil(page),
                    pages,
                    keep: [1, 1],
                    scale: 1.0 / (shape.head_dim as f32).sqrt(),
                };
                row(&gpu, &own, step, context, options, sink)?;
            }
        }
    }
    Ok(())
}

/// Tensors of a step on the GPU, drawn at random.
struct Tensors {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    boxes: Buffer,
    frames: Buffer,
    order: Vec<u32>,
    o: Buffer,
    lse2: Buffer,
}

impl Tensors {
    fn new(gpu: &Gpu, s: &StepShape) -> Result<Tensors, GpuError> {
        let mut rng = Rng::new(71);
        let drawn: Vec<bf16> = rng.normals(1 << 20).into_iter().map(bf16::from_f32).collect();
        let put = |numbers: usize| {
            let data: Vec<bf16> = drawn.iter().copied().cycle().take(numbers).collect();
            gpu.device.buffer_of(&gpu.stream, &data)
        };
        let (frames, q_heads) = (s.sequences * s.pages_max, s.kv_heads * s.group);
        let of_page = s.kv_heads * s.dim;
        let order = Rng::new(72).permutation(frames);
        let boxes: Vec<bf16> = drawn
            .chunks_exact(s.dim)
            .cycle()
            .take(frames * s.kv_heads)
            .flat_map(|row| {
                let above = row.iter().map(|x| bf16::from_f32(x.to_f32().abs() + 1.0));
                let below = row.iter().map(|x| bf16::from_f32(-x.to_f32().abs() - 1.0));
                above.chain(below)
            })
            .collect();
        Ok(Tensors {
            q: put(s.sequences * q_heads * s.dim)?,
            k: put(frames * s.page_tokens * of_page)?,
            v: put(frames * s.page_tokens * of_page)?,
            boxes: gpu.device.buffer_of(&gpu.stream, &boxes)?,
            frames: gpu.device.buffer_of(&gpu.stream, &order)?,
            order,
            o: gpu.device.buffer(s.sequences * q_heads * s.dim * 4)?,
            lse2: gpu.device.buffer(s.sequences * q_heads * 4)?,
        })
    }

    fn memory(&self) -> StepMemory {
        StepMemory {
            q: self.q.address(),
            k: self.k.address(),
            v: self.v.address(),
            boxes: self.boxes.address(),
            frames: self.frames.address(),
            o: self.o.address(),
            lse2: self.lse2.address(),
        }
    }
}

fn row(
    gpu: &Gpu,
    own: &Stream,
    s: StepShape,
    context: usize,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let tensors = Tensors::new(gpu, &s).map_err(TrialError::from)?;
    let mut step = SelectedStep::new(&gpu.device, own, s, tensors.memory())?;
    step.set_lens(&vec![context; s.sequences]).map_err(TrialError::from)?;
    // SAFETY: step and tensors outlive the replays, which `timed` waits for.
    let graph = own.capture(|| unsafe { step.queue(own) });
    let mut graph = graph.map_err(TrialError::from)?;
    // SAFETY: as above.
    let selected = timed(own, options, || Ok(unsafe { graph.launch(own) }?))?;
    let dense = dense(gpu, own, &s, context, &tensors, options)?;
    let params = gpu.params().with("batch", s.sequences).with("context", context);
    let params = params.with("page", s.page_tokens).with("tokens", s.pages * s.page_tokens);
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
    let pages: Vec<u32> = indptr.iter().map(|i| i * s.pages_max as u32).collect();
    let lens = vec![context as u32; s.sequences];
    // SAFETY: memory of the GPU; nobody reads it here.
    let (q, pool, o) = unsafe {
        let layout = KvLayout::hnd(s.page_tokens, s.kv_heads, s.dim, s.dim);
        (
            Tensor3::from_raw(m.q as *const u8, s.dtype, shape, strides),
            KvPool::from_raw(m.k as _, m.v as _, s.dtype, layout, tensors.order.len())?,
            Tensor3Mut::from_raw(m.o as *mut u8, DType::F32, shape, strides),
        )
    };
    let queries = Queries { q, indptr: &indptr, positions: None };
    let lists = PageLists {
        indptr: &pages,
        frames: &tensors.order,
        lens: &lens,
        first_pos: None,
        per_head: false,
    };
    let params = kvist_kernels::attend::Params::new(s.scale);
    let call = (&queries, &Listed::Pages(&pool, &lists), &params);
    let out = Out { o, lse2: None };
    let most = Capacity { lists: s.sequences, items: tensors.order.len() };
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
