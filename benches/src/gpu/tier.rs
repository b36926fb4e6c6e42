//! A decode step of one layer in a cache with a GPU, against the same cache without one.

use std::time::Instant;

use half::bf16;
use kvist::policies::{Boxed, Quest};
use kvist::{
    AttendOptions, Builder, Cache, DType, DeviceOptions, Geometry, Select, Sequence, Tensor3,
    Tensor3Mut,
};

use super::Gpu;
use super::decode::copy_rate;
use crate::{Error, Line, Options, Params, Rng, Sample, Shape, Sink};

const SHAPE: Shape = Shape { q_heads: 32, kv_heads: 8, head_dim: 128 };
/// Tokens appended at a time.
const PORTION: usize = 4096;
/// Steps before the first that counts.
const WARM: usize = 4;

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let gpu = Gpu::open(sink)?;
    let copy = copy_rate(&gpu, options)?;
    drop(gpu);
    for shape in options.shapes(&[SHAPE])? {
        for &context in options.context.as_deref().unwrap_or(&[32 << 10, 128 << 10]) {
            for (name, select) in selects(context) {
                rows(shape, context, name, &select, copy, options, sink)?;
            }
        }
    }
    Ok(())
}

fn selects(context: usize) -> [(&'static str, Select); 3] {
    let budget = (context / 16).clamp(128, 2048);
    let (sinks, recent) = (4, 32);
    [
        ("full", Select::Full),
        ("quest", Quest { budget, ..Quest::default() }.into()),
        ("boxed", Select::Boxed(Boxed { sinks, recent, ..Boxed::with_budget(budget) })),
    ]
}

/// Rows for all pages in frames, half of them, and none; each against the CPU alone.
fn rows(
    shape: Shape,
    context: usize,
    name: &str,
    select: &Select,
    copy: f64,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let geometry = Geometry::new(1, shape.q_heads, shape.kv_heads, shape.head_dim, DType::Bf16);
    let bytes = (context.div_ceil(geometry.page_tokens) + 1) * shape.kv_heads;
    let bytes = (bytes * geometry.page_bytes()) as u64;
    let base = || {
        let host = 2 * bytes + (64 << 20);
        Cache::builder(geometry.clone()).host_bytes(host).select(select.clone()).prefault(true)
    };
    let (cpu, _) = step(base(), context, options)?;
    for (share, frames) in [("all", bytes), ("half", bytes / 2), ("none", 0)] {
        let with = base().device(DeviceOptions::default().bytes(frames));
        let (step, read) = step(with, context, options)?;
        let rate = |seconds: f64| read as f64 / seconds * 1e-9;
        let params = shape.params().with("select", name).with("context", context);
        let line = Line::new("gpu-step", params.with("frames", share), step.median * 1e6, "us")
            .peer("cpu", cpu.median * 1e6)
            .best(step.best * 1e6)
            .repeated(step.repeats, step.spread)
            .columns(Params::new().with("GB/s", rate(step.median)).with("copy GB/s", copy));
        sink.push(line);
    }
    Ok(())
}

/// Seconds of a step, and bytes of keys and values that it reads.
fn step(builder: Builder, context: usize, options: &Options) -> Result<(Sample, u64), Error> {
    let cache = builder.build()?;
    let g = cache.geometry().clone();
    let mut sequence = cache.sequence();
    let mut rng = Rng::new(3);
    fill(&mut sequence, &g, context, &mut rng)?;
    let (how, since, mut times) = (options.repeats(), Instant::now(), Vec::new());
    let (mut read, mut steps) = (0, 0);
    let mut out = vec![0f32; g.q_heads * g.dim_v];
    while steps < WARM || !how.done(times.len(), since) {
        let q: Vec<bf16> =
            rng.normals(g.q_heads * g.dim_k).into_iter().map(bf16::from_f32).collect();
        let q = Tensor3::contiguous(&q, [1, g.q_heads, g.dim_k])?;
        let mut view = Tensor3Mut::contiguous(&mut out, [1, g.q_heads, g.dim_v])?;
        let start = Instant::now();
        let info = sequence.attend(0, &q, &AttendOptions::default(), &mut view)?;
        let took = start.elapsed().as_secs_f64();
        read = info.bytes.kv;
        steps += 1;
        if steps > WARM {
            times.push(took);
        }
    }
    Ok((Sample::of(times), read))
}

fn fill(sequence: &mut Sequence, g: &Geometry, context: usize, rng: &mut Rng) -> Result<(), Error> {
    let numbers = PORTION * g.kv_heads * g.dim_k;
    let drawn: Vec<bf16> = rng.normals(numbers).into_iter().map(bf16::from_f32).collect();
    for from in (0..context).step_by(PORTION) {
        let tokens = PORTION.min(context - from);
        let rows = Tensor3::contiguous(
            &drawn[..tokens * g.kv_heads * g.dim_k],
            [tokens, g.kv_heads, g.dim_k],
        )?;
        sequence.append(0, &rows, &rows)?;
    }
    Ok(())
}
