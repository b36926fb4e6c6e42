//! Decode attention on a GPU against its own copies.

use std::time::Instant;

use half::{bf16, f16};
use kvist_kernels::cuda::TrialError;
use kvist_kernels::{DType, Element};

use super::Gpu;
use super::batch::{Batch, of_type};
use crate::{Error, Line, Options, Params, Sample, Shape, Sink};

/// Shape without flags: that of 8B models.
const SHAPE: Shape = Shape { q_heads: 32, kv_heads: 8, head_dim: 128 };
/// Bytes of a copy that shows the memory's rate: far more than any cache.
const COPY: usize = 512 << 20;
/// Calls between two waits, so that waiting is no part of the time.
const CALLS: usize = 20;
/// Batch and context of the rows, without `--context`.
const ROWS: [(usize, usize); 4] = [(1, 32 << 10), (1, 128 << 10), (8, 32 << 10), (32, 8 << 10)];

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let gpu = Gpu::open(sink)?;
    let rows = match &options.context {
        Some(contexts) => contexts.iter().map(|&context| (1, context)).collect(),
        None => ROWS.to_vec(),
    };
    let copy = copy_rate(&gpu, options)?;
    for shape in options.shapes(&[SHAPE])? {
        for &(batch, context) in &rows {
            for page in [16, 64] {
                for &dtype in options.dtype.as_deref().unwrap_or(&[DType::Bf16]) {
                    let of = (shape, batch, context, page);
                    of_type!(dtype, row(&gpu, of, copy, options, sink))?;
                }
            }
        }
    }
    Ok(())
}

fn row<T: Element>(
    gpu: &Gpu,
    (shape, batch, context, page): (Shape, usize, usize, usize),
    copy: f64,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let data = Batch::<T>::new(shape, page, &vec![context; batch], 51);
    let trial = data.trial(&gpu.device, &gpu.stream)?;
    let step = calls(gpu, options, || trial.launch())?;
    let params = shape.params().with("gpu", gpu.device.info().name.as_str());
    let params = params.with("dtype", T::DTYPE.name()).with("batch", batch);
    let params = params.with("context", context).with("page", page);
    let rate = |seconds: f64| data.bytes() as f64 / seconds * 1e-9;
    let line = Line::new("gpu-attend", params, rate(step.median), "GB/s")
        .floor(copy)
        .best(rate(step.best))
        .repeated(step.repeats, step.spread)
        .columns(Params::new().with("us", step.median * 1e6));
    sink.push(line);
    Ok(())
}

/// Bytes read and written a second by a copy inside the GPU, in GB/s.
pub(super) fn copy_rate(gpu: &Gpu, options: &Options) -> Result<f64, Error> {
    let bytes = COPY.min(gpu.device.info().memory_bytes as usize / 8);
    let (from, mut to) = (gpu.device.buffer(bytes), gpu.device.buffer(bytes));
    let from = from.map_err(TrialError::from)?;
    let to = to.as_mut().map_err(|e| TrialError::from(e.clone()))?;
    let step = calls(gpu, options, || to.copy(&gpu.stream, &from))?;
    Ok(2.0 * bytes as f64 / step.median * 1e-9)
}

/// Seconds of one queued call: many at a time, after some that warm up.
fn calls(
    gpu: &Gpu,
    options: &Options,
    mut queue: impl FnMut() -> Result<(), kvist_kernels::cuda::Error>,
) -> Result<Sample, Error> {
    let mut timed = |n: usize| -> Result<f64, TrialError> {
        gpu.stream.synchronize()?;
        let start = Instant::now();
        for _ in 0..n {
            queue()?;
        }
        gpu.stream.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / n as f64)
    };
    timed(3)?;
    let (how, since, mut times) = (options.repeats(), Instant::now(), Vec::new());
    while !how.done(times.len(), since) {
        times.push(timed(CALLS)?);
    }
    Ok(Sample::of(times))
}
