//! One whole decode step through the store: score, select, attend. Against dense attention in the
//! store and in torch, over the same shapes.

use kvist::{AttendOptions, Boxed, Cache, Executor, Geometry, Quest, Select, Sequence};
use kvist_kernels::{DType, Tensor3, Tensor3Mut};

use crate::data::SHAPES;
use crate::python::Torch;
use crate::{Error, Line, Options, Params, Rng, Sample, Shape, Sink, repeat};

/// Tokens appended at once while filling.
const CHUNK: usize = 4096;

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let mut torch = Torch::start(options, sink);
    for shape in options.shapes(&SHAPES[..1])? {
        for &context in options.context.as_deref().unwrap_or(&[32768, 131_072]) {
            for &dtype in options.dtype.as_deref().unwrap_or(&[DType::Bf16]) {
                for &threads in options.threads.as_deref().unwrap_or(&[1]) {
                    let best = torch.dense(shape, context, dtype, threads, options, sink);
                    let peer = best.first().map(|p| (p.name.clone(), p.sample.median * 1e3));
                    rows(shape, context, dtype, threads, peer, options, sink)?;
                }
            }
        }
    }
    Ok(())
}

fn selectors(budget: usize) -> Vec<(&'static str, Select)> {
    let boxed = |planes| Select::Boxed(Boxed { planes, ..Boxed::with_budget(budget) });
    vec![
        ("full", Select::Full),
        ("quest", Select::Quest(Quest { budget, ..Quest::default() })),
        ("boxed, 2 planes", boxed(2)),
        ("boxed, 3 planes", boxed(3)),
        (
            "boxed, every tile",
            Select::Boxed(Boxed { tree_from: usize::MAX, ..Boxed::with_budget(budget) }),
        ),
    ]
}

/// A sequence of random keys and values in one layer.
fn filled(shape: Shape, context: usize, dtype: DType, threads: usize) -> Result<Sequence, Error> {
    let Shape { q_heads, kv_heads, head_dim } = shape;
    let geometry = Geometry::new(1, q_heads, kv_heads, head_dim, dtype);
    let bytes = 2 * (context + CHUNK) * kv_heads * geometry.token_bytes();
    let exec = Executor::with_threads(threads)?;
    let cache = Cache::builder(geometry).host_bytes(bytes as u64).executor(exec).build()?;
    let mut sequence = cache.sequence();
    let mut rng = Rng::new(21);
    let mut left = context;
    while left > 0 {
        let n = left.min(CHUNK);
        let numbers = crate::arena::encode(dtype, &rng.normals(n * kv_heads * head_dim));
        let strides = [(kv_heads * head_dim) as i64, head_dim as i64];
        // SAFETY: the buffer holds exactly these elements and outlives the view.
        let rows =
            unsafe { Tensor3::from_raw(numbers.as_ptr(), dtype, [n, kv_heads, head_dim], strides) };
        sequence.append(0, &rows, &rows)?;
        left -= n;
    }
    Ok(sequence)
}

fn rows(
    shape: Shape,
    context: usize,
    dtype: DType,
    threads: usize,
    peer: Option<(String, f64)>,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let full = filled(shape, context, dtype, threads)?;
    for &budget in options.budget.as_deref().unwrap_or(&[2048]) {
        for (name, select) in selectors(budget) {
            let sequence = full.fork_with(&select)?;
            let (sample, columns) = step(&sequence, shape, options)?;
            let params = shape.params().with("context", context).with("dtype", dtype.name());
            let params = params.with("threads", threads).with("budget", budget);
            let line =
                Line::new("sparse-step", params.with("select", name), sample.median * 1e3, "ms")
                    .repeated(sample.repeats, sample.spread)
                    .best(sample.best * 1e3)
                    .columns(columns);
            sink.push(match &peer {
                Some((name, value)) => line.peer(format!("{name}, dense"), *value),
                None => line,
            });
        }
    }
    Ok(())
}

fn step(sequence: &Sequence, shape: Shape, options: &Options) -> Result<(Sample, Params), Error> {
    let numbers = Rng::new(22).normals(shape.q_heads * shape.head_dim);
    let form = [1, shape.q_heads, shape.head_dim];
    let q = Tensor3::contiguous(&numbers, form)?;
    let mut o = vec![0f32; numbers.len()];
    let mut last = None;
    let sample = repeat(options.repeats(), || {
        let done = Tensor3Mut::contiguous(&mut o, form)
            .map_err(kvist::Error::from)
            .and_then(|mut o| sequence.attend(0, &q, &AttendOptions::default(), &mut o));
        last = Some(done);
    });
    let info = last.transpose()?.unwrap_or_default();
    let columns = Params::new()
        .with("tokens", info.tokens_read.iter().map(|&t| u64::from(t)).max().unwrap_or(0))
        .with("summary_mb", info.bytes.summary as f64 * 1e-6)
        .with("keys_mb", info.bytes.keys as f64 * 1e-6)
        .with("kv_mb", info.bytes.kv as f64 * 1e-6);
    Ok((sample, columns))
}
