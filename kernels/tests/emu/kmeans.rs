//! Clusters of keys: labels against f64, means bit for bit, and whole runs against the CPU's.

use bytemuck::Zeroable;
use half::{bf16, f16};
use kvist_kernels::cluster::{self, Count, Head, KMeans, Last, Metric, Rows};
use kvist_kernels::cuda::params::{KMeansParams, KMeansTask, SKIP};
use kvist_kernels::cuda::work::{KMeansSpec, metric_code, pieces};
use kvist_kernels::{Element, Executor, Isa};

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::toolchain;

const HEADS: usize = 2;

/// Keys of two KV heads in permuted pages, and what is to be done with them.
struct Keys<T> {
    k: Vec<T>,
    frames: Vec<u32>,
    page: usize,
    dim: usize,
    /// Elements between rows.
    pitch: usize,
    tasks: Vec<KMeansTask>,
}

impl<T: Element> Keys<T> {
    /// `tokens` keys of each head, of a few kinds, some not finite; NaN where no task looks.
    fn new(dim: usize, page: usize, tokens: usize, tasks: &[[u32; 4]], seed: u64) -> Keys<T> {
        let mut random = Random(seed);
        let pages = tokens.div_ceil(page);
        let pitch = dim + 16;
        let mut frames: Vec<u32> = (0..pages as u32 + 1).collect();
        (1..frames.len()).rev().for_each(|i| frames.swap(i, random.below(i + 1)));
        let (mut labels, mut centroids) = (0, 0);
        let task = |&[head, first, points, clusters]: &[u32; 4]| {
            let task = KMeansTask {
                list: 0,
                head,
                first,
                points,
                label: labels,
                centroid: centroids,
                clusters,
                zero: 0,
            };
            (labels, centroids) = (labels + points, centroids + clusters);
            task
        };
        let tasks: Vec<KMeansTask> = tasks.iter().map(task).collect();
        let nan = T::from_f32(f32::NAN);
        let k = vec![nan; frames.len() * HEADS * page * pitch];
        let mut keys = Keys { k, frames, page, dim, pitch, tasks };
        let kinds: Vec<f32> = (0..9 * dim).map(|_| 2.0 * random.normal()).collect();
        for (head, token) in (0..HEADS).flat_map(|h| (0..tokens).map(move |t| (h, t))) {
            let kind = &kinds[random.below(9) * dim..][..dim];
            let at = keys.at(head, token);
            let row = keys.k[at..][..dim].iter_mut();
            row.zip(kind).for_each(|(x, k)| *x = T::from_f32(k + random.normal()));
            if token % 29 == 5 {
                let wild = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][token % 3];
                keys.k[at + token % dim] = T::from_f32(wild);
            }
        }
        keys
    }

    fn at(&self, head: usize, token: usize) -> usize {
        let frame = self.frames[token / self.page] as usize;
        ((frame * HEADS + head) * self.page + token % self.page) * self.pitch
    }

    fn row(&self, task: &KMeansTask, point: usize) -> Vec<f32> {
        let at = self.at(task.head as usize, task.first as usize + point);
        self.k[at..][..self.dim].iter().map(|x| x.to_f32()).collect()
    }

    fn count(&self, of: impl Fn(&KMeansTask) -> u32) -> usize {
        self.tasks.iter().map(|t| of(t) as usize).sum()
    }

    /// Centroids that the CPU begins with: finite keys at even distances.
    fn start(&self) -> Vec<f32> {
        let of = |task: &KMeansTask| {
            let rows = (0..task.points as usize).map(|i| self.row(task, i));
            let rows: Vec<Vec<f32>> = rows.filter(|r| r.iter().all(|x| x.is_finite())).collect();
            let step = rows.len() / task.clusters as usize;
            let of = |c| rows.get(c * step).cloned().unwrap_or(vec![0.0; self.dim]);
            (0..task.clusters as usize).flat_map(of).collect::<Vec<f32>>()
        };
        self.tasks.iter().flat_map(of).collect()
    }
}

/// What lies on the device between launches.
struct State {
    centroids: Vec<f32>,
    middle: Option<Vec<f32>>,
    labels: Vec<u32>,
    counts: Vec<u32>,
}

impl State {
    fn new<T: Element>(keys: &Keys<T>, centroids: Vec<f32>, middle: Option<Vec<f32>>) -> State {
        let labels = vec![7; keys.count(|t| t.points)];
        State { centroids, middle, labels, counts: vec![7; keys.count(|t| t.clusters)] }
    }

    /// Labels by the centroids.
    fn assign<T: Element>(
        &mut self,
        (kernels, keys): (&Kernels, &Keys<T>),
        metric: Metric,
        (schedule, left_out): (Schedule, u32),
    ) -> Report {
        let spec = KMeansSpec { dim: keys.dim, dtype: T::DTYPE };
        let clusters: Vec<u32> = keys.tasks.iter().map(|t| t.clusters).collect();
        let points: Vec<u32> = keys.tasks.iter().map(|t| t.points).collect();
        let few = pieces(&clusters, KMeansSpec::CLUSTERS);
        let many = pieces(&points, KMeansSpec::POINTS);
        let mut targets = vec![T::from_f32(f32::NAN); self.centroids.len() * spec.numbers()];
        let mut bias = vec![f32::NAN; self.counts.len()];
        let params = KMeansParams {
            middle: self.middle.as_ref().map_or(0, |m| m.as_ptr() as u64),
            targets: targets.as_ptr() as u64,
            bias: bias.as_ptr() as u64,
            metric: metric_code(metric),
            ..self.params(keys, &few)
        };
        let none = [0f32];
        let mut memory = vec![
            Memory::read(&keys.tasks),
            Memory::read(&few),
            Memory::read(self.middle.as_deref().unwrap_or(&none)),
            Memory::read(&self.centroids),
            Memory::write(&mut targets),
            Memory::write(&mut bias),
        ];
        let grid = Grid { blocks: few.len(), shared_bytes: 0, schedule, left_out: 0 };
        kernels.run("kmeans_targets", &params, grid, &memory).expect_clean(&spec);
        memory.drain(1..4);
        memory.extend([
            Memory::read(&many),
            Memory::read(&keys.k),
            Memory::read(&keys.frames),
            Memory::write(&mut self.labels),
        ]);
        let params = KMeansParams { pieces: many.as_ptr() as u64, ..params };
        let shared_bytes = spec.shared_bytes();
        let grid = Grid { blocks: many.len(), shared_bytes, schedule, left_out };
        kernels.run("kmeans_assign", &params, grid, &memory)
    }

    /// Centroids by the labels.
    fn update<T: Element>(&mut self, kernels: &Kernels, keys: &Keys<T>, schedule: Schedule) {
        let clusters: Vec<u32> = keys.tasks.iter().map(|t| t.clusters).collect();
        let few = pieces(&clusters, KMeansSpec::CLUSTERS);
        let params = self.params(keys, &few);
        let memory = [
            Memory::read(&keys.k),
            Memory::read(&keys.frames),
            Memory::read(&keys.tasks),
            Memory::read(&few),
            Memory::read(&self.labels),
            Memory::write(&mut self.centroids),
            Memory::write(&mut self.counts),
        ];
        let grid = Grid { blocks: few.len(), shared_bytes: 0, schedule, left_out: 0 };
        kernels.run("kmeans_update", &params, grid, &memory).expect_clean(&schedule);
    }

    fn params<T: Element>(&self, keys: &Keys<T>, pieces: &[[u32; 2]]) -> KMeansParams {
        KMeansParams {
            k: keys.k.as_ptr() as u64,
            items: keys.frames.as_ptr() as u64,
            tasks: keys.tasks.as_ptr() as u64,
            pieces: pieces.as_ptr() as u64,
            centroids: self.centroids.as_ptr() as u64,
            labels: self.labels.as_ptr() as u64,
            counts: self.counts.as_ptr() as u64,
            k_frame: (HEADS * keys.page * keys.pitch) as i64,
            k_head: (keys.page * keys.pitch) as i64,
            k_token: keys.pitch as i64,
            page_tokens: keys.page as u32,
            ..KMeansParams::zeroed()
        }
    }
}

fn kernels<T: Element>(dim: usize) -> Kernels {
    let spec = KMeansSpec { dim, dtype: T::DTYPE };
    Kernels::sized("kmeans.cu", &spec.macros(), spec.shared_bytes())
}

/// Every label is the best in f64, or as good but for what rounding can do.
fn check_labels<T: Element>(keys: &Keys<T>, state: &State, metric: Metric) {
    let (dim, dot) =
        (keys.dim, |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>());
    let norm = |a: &[f64]| dot(a, a).sqrt();
    // Of 16 bits, those that two numbers have; of f32, what a sum of `dim` terms loses.
    let lost = if T::DTYPE.size() == 4 { 2f64.powi(-20) } else { 2f64.powi(-15) };
    let (mut apart, mut wild) = (0, 0);
    for (number, task) in keys.tasks.iter().enumerate() {
        let middle: Vec<f64> = match &state.middle {
            Some(m) => m[number * dim..][..dim].iter().map(|&m| f64::from(m)).collect(),
            None => vec![0.0; dim],
        };
        let target = |c: usize| {
            let c = &state.centroids[(task.centroid as usize + c) * dim..][..dim];
            let c: Vec<f64> = c.iter().map(|&c| f64::from(c)).collect();
            match metric {
                Metric::Euclidean => (c.clone(), -dot(&c, &c) / 2.0),
                Metric::Cosine => {
                    let c: Vec<f64> = c.iter().zip(&middle).map(|(c, m)| c - m).collect();
                    let by = if norm(&c) > 0.0 { 1.0 / norm(&c) } else { 0.0 };
                    let w: Vec<f64> = c.iter().map(|c| c * by).collect();
                    let b = -dot(&w, &middle);
                    (w, b)
                }
            }
        };
        let targets: Vec<(Vec<f64>, f64)> = (0..task.clusters as usize).map(target).collect();
        for point in 0..task.points as usize {
            let x: Vec<f64> = keys.row(task, point).into_iter().map(f64::from).collect();
            let label = state.labels[task.label as usize + point];
            if x.iter().any(|x| !x.is_finite()) {
                assert_eq!(label, SKIP, "point {point} of task {number}");
                wild += 1;
                continue;
            }
            let score = |(w, b): &(Vec<f64>, f64)| dot(&x, w) + b;
            // Ends between which the computed score lies.
            let ends = |t: &(Vec<f64>, f64)| {
                let error = lost * (norm(&x) * norm(&t.0) + t.1.abs());
                (score(t) - error, score(t) + error)
            };
            let least = targets.iter().map(|t| ends(t).0).fold(f64::NEG_INFINITY, f64::max);
            let got = ends(&targets[label as usize]).1;
            assert!(got >= least, "point {point} of task {number}: {got}, {least}");
            let near = targets.iter().filter(|t| ends(t).1 >= least).count();
            apart += usize::from(near == 1);
        }
    }
    // Most have a margin (those of twins have none), so that most labels were the only right ones.
    assert!(apart * 2 > state.labels.len() - wild, "{apart} of {}", state.labels.len());
}

/// Means are sums in f32 in the order of the tokens; centroids without members stay.
fn check_means<T: Element>(keys: &Keys<T>, before: &[f32], state: &State) {
    let dim = keys.dim;
    for task in &keys.tasks {
        for c in 0..task.clusters as usize {
            let at = task.centroid as usize + c;
            let (mut sum, mut n) = (vec![0f32; dim], 0u32);
            for point in 0..task.points as usize {
                if state.labels[task.label as usize + point] == c as u32 {
                    let row = keys.row(task, point);
                    sum.iter_mut().zip(&row).for_each(|(s, x)| *s += x);
                    n += 1;
                }
            }
            assert_eq!(state.counts[at], n, "members of {c}");
            let means: Vec<f32> = sum.iter().map(|s| s / n as f32).collect();
            let want = if n > 0 { &means[..] } else { &before[at * dim..][..dim] };
            assert!(state.centroids[at * dim..][..dim] == *want, "mean of {c}");
        }
    }
}

/// One step in every metric, under all schedules.
fn check<T: Element>(dim: usize, page: usize, tokens: usize, tasks: &[[u32; 4]]) {
    let kernels = kernels::<T>(dim);
    let keys = Keys::<T>::new(dim, page, tokens, tasks, dim as u64);
    let mut random = Random(3);
    let middle: Vec<f32> = (0..tasks.len() * dim).map(|_| random.normal()).collect();
    let all = [(Metric::Cosine, None), (Metric::Cosine, Some(middle)), (Metric::Euclidean, None)];
    for (metric, middle) in all {
        let mut start = keys.start();
        // Twins, of which the first counts, though a later lane has it; a zero; and one that nobody is near to.
        let clusters = keys.tasks[0].clusters as usize;
        let (one, twin) = if clusters > 8 { (3, 8) } else { (0, clusters - 1) };
        start.copy_within(one * dim..(one + 1) * dim, twin * dim);
        start[dim..2 * dim].fill(0.0);
        start[2 * dim..3 * dim].fill(-900.0);
        let mut first: Option<Vec<u32>> = None;
        for schedule in SCHEDULES {
            let mut state = State::new(&keys, start.clone(), middle.clone());
            state.assign((&kernels, &keys), metric, (schedule, 0)).expect_clean(&schedule);
            let labels = first.get_or_insert_with(|| {
                check_labels(&keys, &state, metric);
                state.labels.clone()
            });
            assert!(*labels == state.labels, "{schedule:?}");
            assert!(!state.labels[..keys.tasks[0].points as usize].contains(&(twin as u32)));
            state.update(&kernels, &keys, schedule);
            check_means(&keys, &start, &state);
        }
    }
}

/// Types and dimensions; tasks that end anywhere, of one point, and in the middle of a list.
pub(crate) fn grid() {
    check::<bf16>(128, 64, 150, &[[0, 0, 150, 35], [1, 3, 60, 7], [1, 63, 1, 1]]);
    check::<f16>(80, 16, 200, &[[1, 20, 129, 33], [0, 199, 1, 1], [0, 0, 17, 5]]);
    check::<f32>(64, 24, 70, &[[1, 1, 69, 9], [0, 7, 33, 5]]);
    check::<bf16>(256, 64, 40, &[[0, 2, 37, 6]]);
}

/// One type, for the sanitizers.
pub(crate) fn small() {
    check::<f16>(64, 16, 40, &[[1, 3, 37, 5], [0, 0, 1, 1]]);
}

/// Whole runs have the CPU's members, and its centroids but for their rounding.
pub(crate) fn lloyd() {
    for (metric, centre) in
        [(Metric::Cosine, false), (Metric::Cosine, true), (Metric::Euclidean, false)]
    {
        let (dim, tokens, count, iterations) = (64, 160, 12, 3);
        let keys = Keys::<bf16>::new(dim, 32, tokens, &[[1, 0, tokens as u32, count]], 9);
        let kernels = kernels::<bf16>(dim);
        let rows: Vec<f32> = (0..tokens).flat_map(|i| keys.row(&keys.tasks[0], i)).collect();
        let finite: Vec<&[f32]> =
            rows.chunks(dim).filter(|r| r.iter().all(|x| x.is_finite())).collect();
        let mean = |c: usize| {
            (finite.iter().map(|r| f64::from(r[c])).sum::<f64>() / finite.len() as f64) as f32
        };
        let middle = centre.then(|| (0..dim).map(mean).collect());
        let mut state = State::new(&keys, keys.start(), middle);
        for i in 0..iterations {
            let schedule = SCHEDULES[i % 4];
            state.assign((&kernels, &keys), metric, (schedule, 0)).expect_clean(&metric);
            state.update(&kernels, &keys, schedule);
        }
        let settings = KMeans {
            count: Count::Exactly(count as usize),
            metric,
            centre,
            iterations,
            last: Last::Means,
            ..KMeans::lloyd(1, 1)
        };
        let mut ptrs = Vec::new();
        let head = Head { keys: Rows::contiguous(&rows, dim, &mut ptrs).unwrap(), values: None };
        let all = cluster::build(&settings, &[head], Isa::level(), &Executor::inline()).unwrap();
        let cpu = &all[0];
        let wild = (0..tokens as u32).filter(|&i| state.labels[i as usize] == SKIP);
        assert_eq!(cpu.unclustered(), wild.collect::<Vec<u32>>());
        let full = (0..count).filter(|&c| state.counts[c as usize] > 0);
        for (i, c) in full.clone().enumerate() {
            let members = (0..tokens as u32).filter(|&p| state.labels[p as usize] == c);
            assert_eq!(cpu.members(i), members.collect::<Vec<u32>>(), "{metric:?}, {centre}, {c}");
            let (a, b) =
                (&cpu.centroids()[i * dim..][..dim], &state.centroids[c as usize * dim..][..dim]);
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs().max(1.0)));
        }
        assert_eq!(cpu.len(), full.count());
    }
}

/// The wait and the barrier left out are reported, under every schedule.
pub(crate) fn planted() {
    // The first is that of queries, which are not loaded here.
    assert_eq!(toolchain::guards("kmeans.cu"), [1, 2, 3]);
    let kernels = kernels::<bf16>(64);
    let keys = Keys::<bf16>::new(64, 64, 130, &[[0, 0, 130, 70]], 1);
    for guard in [2, 3] {
        for schedule in SCHEDULES {
            let mut state = State::new(&keys, keys.start(), None);
            let report = state.assign((&kernels, &keys), Metric::Cosine, (schedule, guard));
            assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}");
        }
    }
}
