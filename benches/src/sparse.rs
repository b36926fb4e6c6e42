//! One whole decode step through the store: score, select, attend. Against dense attention in the
//! store and in torch, over the same shapes.

use kvist::{AttendInfo, AttendOptions, Boxed, Cache, Executor, Geometry, Quest, Select, Sequence};
use kvist_kernels::{DType, Tensor3, Tensor3Mut};

use crate::data::SHAPES;
use crate::long::{CHUNK, Kind, Long};
use crate::python::Torch;
use crate::timing::{repeat_result, time};
use crate::{Error, Line, Options, Params, Sample, Shape, Sink};

/// Queries of every layer whose selections are compared with the best there is.
const JUDGED: usize = 4;

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let mut torch = Torch::start(options, sink);
    for shape in options.shapes(&SHAPES[..1])? {
        for &context in options.context.as_deref().unwrap_or(&[32768, 131_072]) {
            for &dtype in options.dtype.as_deref().unwrap_or(&[DType::Bf16]) {
                for &threads in options.threads.as_deref().unwrap_or(&[1]) {
                    let best = torch.dense(shape, context, dtype, threads, options, sink);
                    let peer = best.first().map(|p| (p.name.clone(), p.sample.median * 1e3));
                    rows(shape, Case { context, dtype, threads }, peer, &mut torch, options, sink)?;
                }
            }
        }
    }
    Ok(())
}

/// A row's name and selector.
type Row = (&'static str, Select);

fn preset(name: &str) -> Result<Select, Error> {
    Ok(Select::parse(name).map_err(kvist::Error::from)?)
}

fn selectors(budget: usize) -> Result<Vec<Row>, Error> {
    let boxed = |planes| Select::Boxed(Boxed { planes, ..Boxed::with_budget(budget) });
    Ok(vec![
        ("full", Select::Full),
        ("quest", Select::Quest(Quest { budget, ..Quest::default() })),
        ("boxed, 2 planes", boxed(2)),
        ("boxed, 3 planes", boxed(3)),
        (
            "boxed, every tile",
            Select::Boxed(Boxed { tree_from: usize::MAX, ..Boxed::with_budget(budget) }),
        ),
        ("leoam", preset("leoam")?.with_budget(budget)),
    ])
}

/// Selectors over clusters. They take long to cluster, and run only where they are named.
fn by_clusters(budget: usize) -> Result<Vec<Row>, Error> {
    let [clusterkv, retroinfer] = [preset("clusterkv")?, preset("retroinfer")?];
    Ok(vec![
        ("clusterkv", clusterkv.with_budget(budget)),
        ("retroinfer", retroinfer.clone().with_budget(budget)),
        ("retroinfer, by share", retroinfer),
    ])
}

/// Layers, one after the other in every step: what one leaves in the caches is gone when its turn comes again.
fn layers(context: usize) -> usize {
    if context > 1 << 18 { 2 } else { 4 }
}

/// A sequence in all layers.
fn filled(long: &Long, shape: Shape, case: Case, order: bool) -> Result<Sequence, Error> {
    let Shape { q_heads, kv_heads, head_dim } = shape;
    let layers = layers(case.context);
    let geometry = Geometry::new(layers, q_heads, kv_heads, head_dim, case.dtype);
    let bytes = 3 * layers * (case.context + CHUNK) * kv_heads * geometry.token_bytes();
    let exec = Executor::with_threads(case.threads)?;
    let builder = Cache::builder(geometry).host_bytes(bytes as u64).executor(exec);
    let cache = builder.cluster_order(order).build()?;
    let mut sequence = cache.sequence();
    for layer in 0..layers {
        for from in (0..case.context).step_by(CHUNK) {
            let n = (case.context - from).min(CHUNK);
            let of = |kind| {
                crate::arena::encode(case.dtype, &long.rows(kind, layer, from, case.context))
            };
            let (k, v) = (of(Kind::K), of(Kind::V));
            let (form, strides) =
                ([n, kv_heads, head_dim], [(kv_heads * head_dim) as i64, head_dim as i64]);
            // SAFETY: the buffers hold exactly these elements and outlive the views.
            let [k, v] = [&k, &v]
                .map(|x| unsafe { Tensor3::from_raw(x.as_ptr(), case.dtype, form, strides) });
            sequence.append(layer, &k, &v)?;
        }
    }
    Ok(sequence)
}

/// Where a step is measured.
#[derive(Clone, Copy)]
struct Case {
    context: usize,
    dtype: DType,
    threads: usize,
}

fn rows(
    shape: Shape,
    case: Case,
    peer: Option<(String, f64)>,
    torch: &mut Torch,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let long = Long::new(shape, case.context, options.dump.as_deref())?;
    sink.note(&long.about());
    let full = filled(&long, shape, case, false)?;
    let truth = Truth::new(&long, case);
    for &budget in options.budget.as_deref().unwrap_or(&[2048]) {
        let wanted = selectors(budget)?.into_iter().filter(|(name, _)| options.selects(name));
        for (name, select) in wanted {
            let sequence = full.fork_with(&select)?;
            let (sample, columns) = step(&[&sequence], &long, shape, case, options)?;
            let columns = columns.with("covered", truth.covered(&sequence, &long, shape, budget)?);
            let columns = match &select {
                Select::Quest(quest) => {
                    let of = (budget, quest.unit_tokens);
                    beside_torch(torch, shape, case, of, (sample.median, columns), options, sink)
                }
                _ => columns,
            };
            push(name, (shape, case, budget), (sample, columns), peer.as_ref(), sink);
        }
        let named = |name: &str| options.select.is_some() && options.selects(name);
        let wanted: Vec<_> =
            by_clusters(budget)?.into_iter().filter(|(name, _)| named(name)).collect();
        if wanted.is_empty() {
            continue;
        }
        let ordered = filled(&long, shape, case, true)?;
        for (name, select) in wanted {
            let both = [full.fork_with(&select)?, ordered.fork_with(&select)?];
            let covered = truth.covered(&both[0], &long, shape, budget)?;
            truth.covered(&both[1], &long, shape, budget)?;
            let copied = ordered.cache().stats().cluster_bytes;
            let (sample, columns) = step(&[&both[0], &both[1]], &long, shape, case, options)?;
            let columns = columns.with("covered", covered).with("copied_mb", copied as f64 * 1e-6);
            push(name, (shape, case, budget), (sample, columns), peer.as_ref(), sink);
        }
    }
    Ok(())
}

fn push(
    name: &str,
    (shape, case, budget): (Shape, Case, usize),
    (sample, columns): (Sample, Params),
    peer: Option<&(String, f64)>,
    sink: &mut Sink,
) {
    let params = shape.params().with("context", case.context);
    let params = params.with("dtype", case.dtype.name()).with("threads", case.threads);
    let params = params.with("budget", budget).with("select", name);
    let line = Line::new("sparse-step", params, sample.median * 1e3, "ms")
        .repeated(sample.repeats, sample.spread)
        .best(sample.best * 1e3)
        .columns(columns);
    sink.push(match peer {
        Some((name, value)) => line.peer(format!("{name}, dense"), *value),
        None => line,
    });
}

/// Adds what Quest takes in torch with the same budget and units.
fn beside_torch(
    torch: &mut Torch,
    shape: Shape,
    case: Case,
    of: (usize, usize),
    (own, columns): (f64, Params),
    options: &Options,
    sink: &Sink,
) -> Params {
    let Case { context, dtype, threads } = case;
    let Some(peer) = torch.quest(shape, context, dtype, threads, of, options, sink) else {
        return columns;
    };
    let taken = peer.sample.median;
    columns.with("torch_quest_ms", taken * 1e3).with("torch_quest_over", taken / own)
}

/// Exact softmax masses of some queries.
struct Truth(Vec<Judged>);

struct Judged {
    layer: usize,
    step: usize,
    /// By KV head and token.
    masses: Vec<Vec<f64>>,
}

impl Truth {
    fn new(long: &Long, case: Case) -> Truth {
        let each = (0..layers(case.context)).flat_map(|layer| (0..JUDGED).map(move |i| (layer, i)));
        let judged = |(layer, i)| {
            let step = i * long.steps() / JUDGED;
            Judged { layer, step, masses: long.masses(layer, step, case.context, case.dtype) }
        };
        Truth(each.map(judged).collect())
    }

    /// Mass that selections hold, over that of as many of the heaviest tokens, mean over KV heads and queries.
    fn covered(
        &self,
        sequence: &Sequence,
        long: &Long,
        shape: Shape,
        budget: usize,
    ) -> Result<f64, Error> {
        let form = [1, shape.q_heads, shape.head_dim];
        let mut o = vec![0f32; shape.q_heads * shape.head_dim];
        let mut shares = Vec::new();
        for Judged { layer, step, masses } in &self.0 {
            let q = long.query(*layer, *step);
            let q = Tensor3::contiguous(&q, form)?;
            let options = AttendOptions { selected: true, ..AttendOptions::default() };
            let info = sequence.attend(
                *layer,
                &q,
                &options,
                &mut Tensor3Mut::contiguous(&mut o, form)?,
            )?;
            for (masses, picked) in masses.iter().zip(info.selected.unwrap_or_default()) {
                let held: f64 = picked.iter().map(|&t| masses[t as usize]).sum();
                let mut best = masses.clone();
                let n = budget.min(best.len());
                best.select_nth_unstable_by(n.saturating_sub(1), |a, b| b.total_cmp(a));
                shares.push(held / best[..n].iter().sum::<f64>());
            }
        }
        Ok(shares.iter().sum::<f64>() / shares.len().max(1) as f64)
    }
}

/// Steps through all layers, another query each time; times and columns are those of a layer of the first
/// sequence. With a second one, whose rows lie in the order of clusters, both step in turn.
fn step(
    sequences: &[&Sequence],
    long: &Long,
    shape: Shape,
    case: Case,
    options: &Options,
) -> Result<(Sample, Params), Error> {
    let (form, layers) = ([1, shape.q_heads, shape.head_dim], layers(case.context));
    let queries: Vec<Vec<Vec<f32>>> = (0..long.steps())
        .map(|step| (0..layers).map(|layer| long.query(layer, step)).collect())
        .collect();
    let mut o = vec![0f32; shape.q_heads * shape.head_dim];
    let mut infos: Vec<AttendInfo> = Vec::new();
    let mut through = |sequence: &Sequence, queries: &[Vec<f32>]| -> Result<(), Error> {
        for (layer, q) in queries.iter().enumerate() {
            let q = Tensor3::contiguous(q, form)?;
            let mut o = Tensor3Mut::contiguous(&mut o, form).map_err(kvist::Error::from)?;
            infos.push(sequence.attend(layer, &q, &AttendOptions::default(), &mut o)?);
        }
        Ok(())
    };
    let (mut each, mut steps) = (vec![Vec::new(); sequences.len()], queries.iter().cycle());
    let sample = repeat_result(options.repeats(), || {
        let mut first = 0.0;
        let Some(queries) = steps.next() else { return Ok(first) };
        // Who goes first changes from step to step.
        let turn = each[0].len();
        for i in (0..sequences.len()).map(|i| (i + turn) % sequences.len()) {
            let mut done = Ok(());
            let taken = time(|| done = through(sequences[i], queries)) / layers as f64;
            done?;
            each[i].push(taken);
            first = if i == 0 { taken } else { first };
        }
        Ok::<f64, Error>(first)
    })?;
    let mean = |of: &dyn Fn(&AttendInfo) -> f64| {
        infos.iter().map(of).sum::<f64>() / infos.len().max(1) as f64
    };
    let most = |info: &AttendInfo| info.tokens_read.iter().copied().max().unwrap_or(0);
    let columns = Params::new()
        .with("tokens", mean(&|info| f64::from(most(info))))
        .with("summary_mb", mean(&|info| info.bytes.summary as f64 * 1e-6))
        .with("keys_mb", mean(&|info| info.bytes.keys as f64 * 1e-6))
        .with("kv_mb", mean(&|info| info.bytes.kv as f64 * 1e-6));
    let [plain, ordered] = &each[..] else { return Ok((sample, columns)) };
    let ratios = plain.iter().zip(ordered).map(|(plain, ordered)| plain / ordered);
    let gain = Sample::of(ratios.collect());
    let columns = columns
        .with("in_order_ms", Sample::of(ordered.clone()).median * 1e3)
        .with("in_order_gain", gain.median)
        .with("in_order_spread", gain.spread);
    Ok((sample, columns))
}
