//! Choosing from scores that are there: scores per second.

use criterion::{Criterion, Throughput};
use kvist_bench::Rng;
use kvist_kernels::select;

/// Units to choose from.
const UNITS: usize = 65536;
/// Query heads of the group.
const GROUP: usize = 4;
/// Units that are chosen.
const CHOSEN: usize = 2048;
/// Units that `top_p` chooses at least.
const LEAST: usize = 256;

/// Base-2 logits of a group, their log-sum-exps and the folded masses.
struct Scores {
    est: Vec<f32>,
    lse: [f32; GROUP],
    weights: Vec<f32>,
}

fn scores() -> Scores {
    let est = Rng::new(9).normals(GROUP * UNITS);
    let (mut lse, mut weights) = ([f32::NEG_INFINITY; GROUP], vec![0f32; UNITS]);
    select::lse2(&est, UNITS, 1.0, &mut lse);
    select::fold_mass(&est, UNITS, 1.0, &lse, &mut weights);
    Scores { est, lse, weights }
}

fn choose(c: &mut Criterion, scores: &Scores) {
    let mut group = c.benchmark_group("select");
    group.throughput(Throughput::Elements(UNITS as u64));
    let (weights, mut ids) = (&scores.weights, Vec::new());
    group.bench_function("top_k", |b| b.iter(|| select::top_k(weights, CHOSEN, &mut ids)));
    group.bench_function("threshold", |b| b.iter(|| select::threshold(weights, CHOSEN)));
    let target = 0.9 * GROUP as f64;
    group.bench_function("top_p", |b| {
        b.iter(|| select::top_p(weights, target, LEAST, UNITS, &mut ids));
    });
}

fn fold(c: &mut Criterion, scores: &Scores) {
    let mut group = c.benchmark_group("select");
    group.throughput(Throughput::Elements((GROUP * UNITS) as u64));
    group.bench_function("lse2", |b| {
        b.iter(|| {
            let mut lse = [f32::NEG_INFINITY; GROUP];
            select::lse2(&scores.est, UNITS, 1.0, &mut lse);
            lse
        });
    });
    let mut out = vec![0f32; UNITS];
    group.bench_function("fold_mass", |b| {
        b.iter(|| select::fold_mass(&scores.est, UNITS, 1.0, &scores.lse, &mut out));
    });
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let scores = scores();
    choose(&mut c, &scores);
    fold(&mut c, &scores);
    c.final_summary();
}
