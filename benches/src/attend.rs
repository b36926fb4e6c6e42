//! Dense decode attention: one query over the whole context, one layer after another.

use kvist_kernels::attend::{self, Out, Params as AttendParams, Queries};
use kvist_kernels::{DType, Executor, Tensor3, Tensor3Mut};

use crate::data::SHAPES;
use crate::floor::{best_read, multiply_add_rate, read_seconds};
use crate::python::{PeerTime, Torch};
use crate::{Error, Frames, KvData, Line, Options, Rng, Sample, Shape, Sink, interleave};

/// Limit of reading KV bytes at this rate: the memory's, or the arithmetic's if that is lower.
pub(crate) fn limit(read: f64, shape: Shape, dtype: DType, threads: usize) -> f64 {
    // Every element of K or V takes one multiply-add per query head of its group.
    let arithmetic = multiply_add_rate(dtype, threads) / shape.group() as f64 * dtype.size() as f64;
    read.min(arithmetic)
}

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let mut torch = Torch::start(options, sink);
    for shape in options.shapes(&SHAPES)? {
        for &context in options.context.as_deref().unwrap_or(&[8192, 32768, 131_072]) {
            for &dtype in options.dtype.as_deref().unwrap_or(&[DType::Bf16, DType::F32]) {
                let data = KvData::random(shape, context, dtype)?;
                for &threads in options.threads.as_deref().unwrap_or(&[1, 2]) {
                    let peers = torch.dense(shape, context, dtype, threads, options, sink);
                    rows(&data, shape, context, dtype, threads, &peers, options, sink)?;
                }
            }
        }
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the axes of the table")]
fn rows(
    data: &KvData,
    shape: Shape,
    context: usize,
    dtype: DType,
    threads: usize,
    peers: &[PeerTime],
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    for &order in options.frames.as_deref().unwrap_or(&[Frames::Contiguous]) {
        let (floor, step) = one(data, shape, dtype, threads, order, options)?;
        let rate = |seconds: f64| data.layer_bytes() as f64 / seconds * 1e-9;
        let params = shape.params().with("context", context).with("dtype", dtype.name());
        let params = params.with("threads", threads).with("frames", order.name());
        let line = Line::new("attend", params, rate(step.median), "GB/s")
            .floor(floor)
            .repeated(step.repeats, step.spread)
            .best(rate(step.best));
        if peers.is_empty() {
            sink.push(line.clone());
        }
        for peer in peers {
            sink.push(line.clone().peer(peer.name.clone(), rate(peer.sample.median)));
        }
    }
    Ok(())
}

/// Limit in GB/s of KV bytes, and seconds of a step; measured alternately.
fn one(
    data: &KvData,
    shape: Shape,
    dtype: DType,
    threads: usize,
    order: Frames,
    options: &Options,
) -> Result<(f64, Sample), Error> {
    let (pool, lists) = (data.pool()?, data.lists(order));
    let exec = Executor::with_threads(threads)?;
    let read = best_read(data.bytes(), threads);
    let numbers = Rng::new(3).normals(shape.q_heads * shape.head_dim);
    let q = Tensor3::contiguous(&numbers, [1, shape.q_heads, shape.head_dim])?;
    let queries = Queries { q, indptr: &[0, 1], positions: None };
    let params = AttendParams::new(1.0 / (shape.head_dim as f32).sqrt());
    let mut o = vec![0f32; numbers.len()];
    let (mut layer, mut failed) = (0, None);
    let (reads, steps) = interleave(
        options.repeats(),
        || read_seconds(read, data.bytes(), threads),
        || {
            let view = Tensor3Mut::contiguous(&mut o, [1, shape.q_heads, shape.head_dim]);
            let done = view.and_then(|o| {
                let mut out = Out { o, lse2: None };
                attend::pages(&queries, &pool, &lists[layer].view(), &params, &exec, &mut out)
            });
            failed = done.err().or(failed.take());
            layer = (layer + 1) % lists.len();
        },
    );
    if let Some(e) = failed {
        return Err(e.into());
    }
    let read = data.bytes().len() as f64 / reads.median * 1e-9;
    Ok((limit(read, shape, dtype, threads), steps))
}
