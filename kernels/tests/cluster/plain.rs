//! The same labels and centroids as a k-means that looks at every centroid, at every level.

use kvist_kernels::cluster::{Count, KMeans, Last, Metric};
use kvist_kernels::{DType, Isa};
use proptest::prelude::*;

use crate::common::{Keys, Kind, build_one, dims, dtypes, kinds};

/// Eight interleaved sums, as the kernels' scores are defined.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut s = [0f64; 8];
    a.iter().zip(b).enumerate().for_each(|(i, (&a, &b))| s[i % 8] += f64::from(a) * f64::from(b));
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

fn target(metric: Metric, centroid: &[f32]) -> (Vec<f32>, f64) {
    let square = dot(centroid, centroid);
    match metric {
        Metric::Euclidean => (centroid.to_vec(), -0.5 * square),
        Metric::Cosine => {
            let by = if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
            (centroid.iter().map(|&c| (f64::from(c) * by) as f32).collect(), 0.0)
        }
    }
}

fn labels(points: &[Vec<f32>], centroids: &[Vec<f32>], metric: Metric) -> Vec<usize> {
    let targets: Vec<_> = centroids.iter().map(|c| target(metric, c)).collect();
    let label = |x: &Vec<f32>| {
        let scores = targets.iter().map(|(w, b)| dot(x, w) + b).enumerate();
        scores.reduce(|a, b| if b.1 > a.1 { b } else { a }).map_or(0, |best| best.0)
    };
    points.iter().map(label).collect()
}

/// f32 sum in order over the number of points.
fn mean(of: &[&Vec<f32>]) -> Vec<f32> {
    let mut sum = vec![0f32; of[0].len()];
    of.iter().for_each(|x| sum.iter_mut().zip(x.iter()).for_each(|(s, x)| *s += x));
    sum.iter().map(|s| s / of.len() as f32).collect()
}

fn members<'a>(points: &'a [Vec<f32>], labels: &[usize], c: usize) -> Vec<&'a Vec<f32>> {
    points.iter().zip(labels).filter(|(_, l)| **l == c).map(|(x, _)| x).collect()
}

/// Points, what was taken off them and the power of two they were divided by.
fn taken(rows: &[&[f32]], centre: bool) -> (Vec<Vec<f32>>, Vec<f32>, f64) {
    let top = rows.iter().flat_map(|r| r.iter()).fold(0f32, |top, x| top.max(x.abs()));
    let exponent = f64::from(top).log2() as i32;
    let scale =
        if top == 0.0 || (-40..=40).contains(&exponent) { 1.0 } else { f64::from(exponent).exp2() };
    let scaled = |x: &f32| (f64::from(*x) * (1.0 / scale)) as f32;
    let mut points: Vec<Vec<f32>> =
        rows.iter().map(|row| row.iter().map(scaled).collect()).collect();
    let mut offset = vec![0f32; rows.first().map_or(0, |r| r.len())];
    if centre && !points.is_empty() {
        for (i, o) in offset.iter_mut().enumerate() {
            let sum = points.iter().fold(0f32, |sum, x| sum + x[i]);
            *o = (f64::from(sum) / points.len() as f64) as f32;
        }
        points.iter_mut().for_each(|x| x.iter_mut().zip(&offset).for_each(|(x, o)| *x -= o));
    }
    (points, offset, scale)
}

/// Labels of all tokens and the centroids, in the keys' scale, of a plain k-means. Segments that do not
/// know of each other are like heads of their own.
fn plain(keys: &Keys, settings: &KMeans) -> (Vec<usize>, Vec<Vec<f32>>) {
    let rows: Vec<&[f32]> = (0..keys.len()).map(|t| keys.row(t)).collect();
    let all = keys.len().max(1);
    let segment = if settings.segment == 0 { all } else { settings.segment };
    let apart = settings.last != Last::Everywhere && !settings.centre;
    let (mut labels, mut centroids) = (Vec::new(), Vec::new());
    for rows in rows.chunks(if apart { segment } else { all }) {
        let (own, mut found) = span(rows, segment, settings);
        labels.extend(own.iter().map(|l| l + centroids.len()));
        centroids.append(&mut found);
    }
    (labels, centroids)
}

fn span(rows: &[&[f32]], segment: usize, settings: &KMeans) -> (Vec<usize>, Vec<Vec<f32>>) {
    let (points, offset, scale) = taken(rows, settings.centre);
    let (mut all, mut found) = (Vec::<Vec<f32>>::new(), Vec::new());
    for points in points.chunks(segment) {
        let count = match settings.count {
            Count::PerTokens(n) => ((points.len() as f64 / n as f64).round() as usize).max(1),
            Count::Exactly(n) => n,
        };
        let count = count.min(points.len());
        let step = points.len() / count;
        let mut centroids: Vec<_> = (0..count).map(|i| points[i * step].clone()).collect();
        let mut own = vec![0; points.len()];
        for _ in 0..settings.iterations {
            own = labels(points, &centroids, settings.metric);
            for (c, centroid) in centroids.iter_mut().enumerate() {
                let members = members(points, &own, c);
                if !members.is_empty() {
                    *centroid = mean(&members);
                }
            }
        }
        if settings.last == Last::Labels {
            own = labels(points, &centroids, settings.metric);
        }
        found.extend(own.iter().map(|l| l + all.len()));
        all.extend(centroids);
    }
    if settings.last == Last::Everywhere {
        found = labels(&points, &all, settings.metric);
    }
    let restore = |(x, o): (&f32, &f32)| ((f64::from(*x) + f64::from(*o)) * scale) as f32;
    let restored = |c: &Vec<f32>| c.iter().zip(&offset).map(restore).collect();
    (found, all.iter().map(restored).collect())
}

/// Mean of a cluster's keys: f64 sum, rounded.
fn key_mean(keys: &Keys, members: &[u32]) -> Vec<f32> {
    let of = |i: usize| members.iter().map(|&t| f64::from(keys.row(t as usize)[i])).sum::<f64>();
    (0..keys.dim).map(|i| (of(i) / members.len() as f64) as f32).collect()
}

fn check(keys: &Keys, settings: &KMeans) {
    let (labels, centroids) = plain(keys, settings);
    let used: Vec<usize> = (0..centroids.len()).filter(|c| labels.contains(c)).collect();
    for isa in Isa::available() {
        let clusters = build_one(settings, &keys.head(), isa);
        assert_eq!(clusters.len(), used.len(), "{isa:?}");
        for (i, &c) in used.iter().enumerate() {
            let want: Vec<u32> =
                (0..keys.len() as u32).filter(|&t| labels[t as usize] == c).collect();
            assert_eq!(clusters.members(i), want, "{isa:?} cluster {i}");
            let centroid = &clusters.centroids()[i * keys.dim..][..keys.dim];
            match settings.last {
                Last::Labels => assert_eq!(centroid, centroids[c]),
                _ => assert_eq!(centroid, key_mean(keys, &want)),
            }
        }
    }
}

fn settings() -> impl Strategy<Value = KMeans> {
    let count =
        prop_oneof![(1..20usize).prop_map(Count::PerTokens), (1..70usize).prop_map(Count::Exactly)];
    let metric = prop::sample::select(vec![Metric::Cosine, Metric::Euclidean]);
    let last = prop::sample::select(vec![Last::Means, Last::Labels, Last::Everywhere]);
    let segment = prop::sample::select(vec![0, 1, 17, 48, 100]);
    (count, segment, metric, any::<bool>(), 1..4usize, last).prop_map(
        |(count, segment, metric, centre, iterations, last)| KMeans {
            count,
            segment,
            metric,
            centre,
            iterations,
            last,
            size_max: 0,
            size_min: 0,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn labels_are_those_of_a_plain_search(
        seed: u64, kind in kinds(), dtype in dtypes(), dim in dims(), n in 0..200usize, settings in settings(),
    ) {
        check(&Keys::random(seed, kind, dtype, n, dim), &settings);
    }
}

#[test]
fn presets_are_what_they_say() {
    let keys = Keys::random(1, Kind::Groups, DType::Bf16, 230, 64);
    check(&keys, &KMeans::cluster_kv());
    check(&keys, &KMeans::retro_infer());
    check(&keys, &KMeans { segment: 50, ..KMeans::retro_infer() });
    check(&keys, &KMeans::lloyd(16, 10));
    check(&keys, &KMeans { size_max: 0, size_min: 0, ..KMeans::default() });
}

#[test]
fn a_sample_of_zeros_misleads_nobody() {
    // Every other key is zero, so that whatever looks at some keys only may see nothing else.
    let mut keys = Keys::random(7, Kind::Groups, DType::F32, 500, 24).values;
    keys.chunks_exact_mut(24).step_by(2).for_each(|key| key.fill(0.0));
    check(
        &Keys::new(DType::F32, 24, keys),
        &KMeans { size_max: 0, size_min: 0, ..KMeans::default() },
    );
}

#[test]
fn many_centroids_are_searched_in_blocks() {
    // More than fit into one block of panels, in f32 and in bytes.
    let keys = Keys::random(2, Kind::Groups, DType::Bf16, 1100, 300);
    check(&keys, &KMeans { iterations: 1, ..KMeans::lloyd(1000, 1) });
}
