//! Clustering the keys of a KV head: milliseconds, and what the clusters are worth, beside faiss and
//! scikit-learn on the same cores.

mod peers;
mod recall;
mod scene;

use std::time::Instant;

use kvist_kernels::cluster::{Clusters, Count, Head as KeyHead, KMeans, Last, Rows, build};
use kvist_kernels::{Executor, Isa};

use crate::floor::product_rate;
use crate::timing::repeat_result;
use crate::{Error, Line, Options, Params, Sample, Sink};
use peers::{Peers, Task};
use recall::{Labels, oracle};
use scene::{Head, Scene};

/// Tokens of the default rows.
const CONTEXTS: [usize; 3] = [8192, 32768, 131_072];
/// Without a `--context` of its own, peers get no more tokens than this: their time grows with the square.
const PEERS_TOKENS: usize = 32768;

/// Settings and their name.
struct Row {
    name: &'static str,
    settings: KMeans,
}

fn rows() -> [Row; 3] {
    [
        Row { name: "own", settings: KMeans::default() },
        Row { name: "as retro_infer", settings: KMeans::retro_infer() },
        Row { name: "as cluster_kv", settings: KMeans::cluster_kv() },
    ]
}

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    if options.dump.is_none() {
        sink.note("keys: made up (give --dump for a model's)");
    }
    let mut peers = Peers::start(options, sink);
    for &tokens in options.context.as_deref().unwrap_or(&CONTEXTS) {
        let scene = Scene::new(options, tokens)?;
        let best = mean(scene.heads.iter().map(|head| oracle(&scene, head)));
        for &threads in options.threads.as_deref().unwrap_or(&[2]) {
            for row in &rows() {
                // The other settings say what they cost and cover where all can be compared.
                if row.name == "own" || scene.tokens <= PEERS_TOKENS {
                    let compared = options.context.is_some() || scene.tokens <= PEERS_TOKENS;
                    let peers = (row.name == "own" && compared).then_some(&mut peers);
                    line(&scene, row, threads, best, peers, options, sink)?;
                }
            }
        }
        if scene.tokens < tokens {
            break;
        }
    }
    Ok(())
}

fn mean(of: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = of.len();
    of.sum::<f64>() / count as f64
}

/// Clusters all heads of a scene, one after the other, with one row's settings, and lets peers do the same.
fn line(
    scene: &Scene,
    row: &Row,
    threads: usize,
    best: f64,
    peers: Option<&mut Peers>,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let exec = Executor::with_threads(threads)?;
    let (mut samples, mut found) = (Vec::new(), Vec::new());
    for head in &scene.heads {
        let (sample, clusters) = cluster(scene, head, &row.settings, &exec, options)?;
        samples.push(sample);
        found.push(clusters);
    }
    let clusters = mean(found.iter().map(|c| c.len() as f64)).round();
    let ms = mean(samples.iter().map(|s| s.median)) * 1e3;
    let params = Params::new().with("data", scene.name.clone()).with("settings", row.name);
    let params = params.with("context", scene.tokens).with("head_dim", scene.dim);
    let columns = Params::new()
        .with("recall", mean(scene.heads.iter().zip(&found).map(|(h, c)| worth(scene, h, c))))
        .with("oracle", best)
        .with("clusters", clusters)
        .with("us_per_1k", ms * 1e6 / scene.tokens as f64);
    let line = Line::new("cluster", params.with("threads", threads), ms, "ms")
        .floor(products(scene, &row.settings) / product_rate(threads) * 1e-6)
        .repeated(samples[0].repeats, mean(samples.iter().map(|s| s.spread)))
        .best(mean(samples.iter().map(|s| s.best)) * 1e3);
    let task = Task {
        clusters: clusters as usize,
        segment: row.settings.segment,
        assignments: row.settings.iterations,
        threads,
    };
    let others = peers.map(|peers| compare(scene, task, peers, options, sink));
    let others = others.unwrap_or_default();
    if others.is_empty() {
        sink.push(line.clone().columns(columns.clone()));
    }
    for other in others {
        let columns = columns.clone().with("peer_recall", other.recall);
        sink.push(line.clone().peer(other.name, other.ms).columns(columns));
    }
    Ok(())
}

/// Times our clustering of one head.
fn cluster(
    scene: &Scene,
    head: &Head,
    settings: &KMeans,
    exec: &Executor,
    options: &Options,
) -> Result<(Sample, Clusters), Error> {
    let mut ptrs = Vec::new();
    let keys = Rows::contiguous(&head.keys, scene.dim, &mut ptrs)?;
    let heads = [KeyHead { keys, values: None }];
    let mut found = Clusters::empty(scene.dim, 0);
    let sample = repeat_result(options.repeats(), || {
        let start = Instant::now();
        let mut built = build(settings, &heads, Isa::level(), exec)?;
        let seconds = start.elapsed().as_secs_f64();
        found = built.remove(0);
        Ok::<_, Error>(seconds)
    })?;
    Ok((sample, found))
}

/// Covered mass of our clusters.
fn worth(scene: &Scene, head: &Head, clusters: &Clusters) -> f64 {
    let mut labels = vec![0u32; scene.tokens];
    for cluster in 0..clusters.len() {
        for &token in clusters.members(cluster) {
            labels[token as usize] = cluster as u32;
        }
    }
    Labels { labels: &labels, clusters: clusters.len() }.recall(scene, head)
}

/// Multiply-adds of the comparisons of keys with centroids.
fn products(scene: &Scene, settings: &KMeans) -> f64 {
    let Count::PerTokens(per) = settings.count else { return f64::NAN };
    let segment = if settings.segment == 0 { scene.tokens } else { settings.segment };
    let inside = segment.min(scene.tokens) / per;
    let more = match settings.last {
        Last::Means => 0,
        Last::Labels => inside,
        Last::Everywhere => scene.tokens / per,
    };
    (scene.tokens * scene.dim) as f64 * (settings.iterations * inside + more) as f64
}

/// A peer's mean over the heads.
struct Other {
    name: String,
    ms: f64,
    recall: f64,
}

fn compare(
    scene: &Scene,
    task: Task,
    peers: &mut Peers,
    options: &Options,
    sink: &Sink,
) -> Vec<Other> {
    let mut others: Vec<Other> = Vec::new();
    for head in &scene.heads {
        let share = 1.0 / scene.heads.len() as f64;
        for found in peers.cluster(scene, head, task, options, sink) {
            let labels = Labels { labels: &found.labels, clusters: found.clusters };
            let ms = share * found.sample.median * 1e3;
            let recall = share * labels.recall(scene, head);
            match others.iter_mut().find(|o| o.name == found.name) {
                Some(other) => {
                    other.ms += ms;
                    other.recall += recall;
                }
                None => others.push(Other { name: found.name, ms, recall }),
            }
        }
    }
    others
}
