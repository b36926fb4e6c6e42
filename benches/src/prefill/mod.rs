//! Prefill: dense and block-sparse attention of a whole prompt, building of lists included, against
//! dense torch; with a dump of real queries and keys, what the lists cover.

mod patterns;
mod prompt;
mod quality;

use kvist_kernels::{DType, Executor};

use crate::data::SHAPES;
use crate::floor::multiply_add_rate;
use crate::python::{PeerTime, Torch};
use crate::timing::{repeat_slow, time};
use crate::{Error, Line, Options, Params, Sample, Shape, Sink};
use patterns::Pattern;
use prompt::{Attended, Prompt};

/// Shares of the keys that the patterns of the table read.
const SHARES: [f32; 3] = [0.05, 0.1, 0.2];

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    if let Some(path) = &options.dump {
        return quality::run(path, options, sink);
    }
    let mut torch = Torch::start(options, sink);
    for shape in options.shapes(&SHAPES)? {
        for &context in options.context.as_deref().unwrap_or(&[8192, 32768]) {
            let prompt = Prompt::random(shape, context);
            for &threads in options.threads.as_deref().unwrap_or(&[1]) {
                let peers = torch.prefill(shape, context, DType::Bf16, threads, options, sink);
                let exec = Executor::with_threads(threads)?;
                rows(&prompt, &exec, threads, peers.first(), options, sink)?;
            }
        }
    }
    Ok(())
}

/// Seconds that the arithmetic of these query-key pairs takes at least.
fn floor(shape: Shape, pairs: f64, threads: usize) -> f64 {
    // Each pair takes a multiply-add per channel for its score, and one for its value.
    let work = pairs * (shape.q_heads * 2 * shape.head_dim) as f64;
    work * 1e-9 / multiply_add_rate(DType::Bf16, threads)
}

fn rows(
    prompt: &Prompt,
    exec: &Executor,
    threads: usize,
    peer: Option<&PeerTime>,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let shape = prompt.shape;
    let pairs = prompt.keys as f64 * (prompt.keys + 1) as f64 / 2.0;
    let line = |name: String, sample: &Sample, density: f64, columns: Params| {
        let params = shape.params().with("context", prompt.keys).with("dtype", DType::Bf16.name());
        let params = params.with("threads", threads).with("pattern", name);
        let line = Line::new("prefill", params, sample.median, "s")
            .floor(floor(shape, pairs * density, threads))
            .repeated(sample.repeats, sample.spread)
            .best(sample.best)
            .columns(columns);
        match peer {
            Some(p) => line.peer(format!("{}, dense", p.name), p.sample.median),
            None => line,
        }
    };
    let mut out = Attended::default();
    let dense = repeat_slow(options.repeats(), || prompt.attend(None, exec, &mut out))?;
    sink.push(line("dense".to_owned(), &dense, 1.0, Params::new()));
    // Attention to random keys is flat: distances mean nothing, and a share of its mass is that share of
    // the blocks.
    let kinds: [fn(f32) -> Pattern; 4] = [
        Pattern::AShape,
        |share| Pattern::VerticalSlash(share, 0.0),
        Pattern::BlockSparse,
        |share| Pattern::Proxy(1, share),
    ];
    let patterns = kinds.into_iter().flat_map(|kind| SHARES.map(kind));
    for pattern in patterns.chain([Pattern::Nsa]) {
        let (mut build, mut density) = (0.0, 0.0);
        let sample = repeat_slow(options.repeats(), || {
            let mut lists = None;
            build = time(|| lists = Some(pattern.build(prompt, exec)));
            let lists = lists.transpose()?.flatten();
            density = lists.as_ref().map_or(0.0, |l| l.lists.density(&l.grid));
            prompt.attend(lists.as_ref(), exec, &mut out)
        })?;
        let columns = Params::new()
            .with("density", density)
            .with("of_it_lists_s", build)
            .with("of_own_dense", sample.median / dense.median);
        sink.push(line(pattern.name(), &sample, density, columns));
    }
    Ok(())
}
