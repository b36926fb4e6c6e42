//! Two caches that are told the same: one with a GPU, one without.

use half::bf16;
use kvist::{
    AttendInfo, AttendOptions, Builder, Cache, DType, Geometry, Sequence, Tensor3, Tensor3Mut,
};

pub(crate) const DIM: usize = 64;
const LAYERS: usize = 2;
const KV_HEADS: usize = 2;
const Q_HEADS: usize = 4;
/// Both round queries or weights to bf16, each in its own way.
const TOLERANCE: f64 = 1e-2;

/// Deterministic numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Roughly normal.
    fn rows(&mut self, n: usize) -> Vec<bf16> {
        let mut one = || {
            let sum: f32 = (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum();
            bf16::from_f32((sum - 2.0) * 1.7)
        };
        (0..n).map(|_| one()).collect()
    }
}

impl Random {
    /// Keys and values.
    pub(crate) fn tokens(&mut self, tokens: usize) -> [Rows; 2] {
        let shape = [tokens, KV_HEADS, DIM];
        [(); 2].map(|()| Rows { data: self.rows(shape.iter().product()), shape })
    }

    pub(crate) fn queries(&mut self, queries: usize) -> Rows {
        let shape = [queries, Q_HEADS, DIM];
        Rows { data: self.rows(shape.iter().product()), shape }
    }
}

/// A tensor.
pub(crate) struct Rows {
    data: Vec<bf16>,
    shape: [usize; 3],
}

impl Rows {
    pub(crate) fn view(&self) -> Tensor3<'_> {
        Tensor3::contiguous(&self.data, self.shape).unwrap()
    }
}

/// Checks that outputs are the same, as far as roundings go.
pub(crate) fn same_rows(got: &[f32], want: &[f32]) {
    for (got, want) in got.chunks(DIM).zip(want.chunks(DIM)) {
        let norm = want.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let pairs = got.iter().zip(want);
        let off = pairs.map(|(&a, &b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        assert!(off <= TOLERANCE * norm.max(1e-3), "{off} of {norm}");
    }
}

pub(crate) fn geometry() -> Geometry {
    let geometry = Geometry::new(LAYERS, Q_HEADS, KV_HEADS, DIM, DType::Bf16);
    Geometry { page_tokens: 16, ..geometry }
}

/// Sequences of both.
pub(crate) struct Pair {
    pub(crate) gpu: Cache,
    cpu: Cache,
    pub(crate) sequences: Vec<(Sequence, Sequence)>,
    pub(crate) random: Random,
    pub(crate) attended: usize,
}

impl Pair {
    /// `gpu` and `cpu` are the same but for the device.
    pub(crate) fn new(gpu: Builder, cpu: Builder, seed: u64) -> Pair {
        Pair::of(&gpu.build().unwrap(), &cpu.build().unwrap(), seed)
    }

    pub(crate) fn of(gpu: &Cache, cpu: &Cache, seed: u64) -> Pair {
        let (gpu, cpu) = (gpu.clone(), cpu.clone());
        let sequences = vec![(gpu.sequence(), cpu.sequence())];
        Pair { gpu, cpu, sequences, random: Random(seed), attended: 0 }
    }

    /// One more, empty.
    pub(crate) fn add(&mut self) {
        let fresh = (self.gpu.sequence(), self.cpu.sequence());
        self.sequences.push(fresh);
    }

    /// Appends the same tokens to both and to all layers.
    pub(crate) fn append(&mut self, sequence: usize, tokens: usize) {
        for layer in 0..LAYERS {
            let [k, v] = self.random.tokens(tokens);
            let (a, b) = &mut self.sequences[sequence];
            a.append(layer, &k.view(), &v.view()).unwrap();
            b.append(layer, &k.view(), &v.view()).unwrap();
        }
    }

    /// Attends with the same queries, and compares.
    pub(crate) fn attend(&mut self, sequence: usize, queries: usize, options: &AttendOptions) {
        for layer in 0..LAYERS {
            let q = self.random.queries(queries);
            let (a, b) = &self.sequences[sequence];
            let (got, info) = one(a, layer, &q.view(), options);
            let (want, expected) = one(b, layer, &q.view(), options);
            same_rows(&got, &want);
            for (got, want) in info.lse2.iter().zip(&expected.lse2) {
                assert!((got - want).abs() < 1e-2, "log-sum-exp {got}, {want}");
            }
            assert_eq!(info.tokens_read, expected.tokens_read);
            if options.selected {
                assert_eq!((info.selected, info.bytes), (expected.selected, expected.bytes));
            }
            self.attended += 1;
        }
    }

    /// What both choose and find for the same queries, layer by layer.
    pub(crate) fn choices(&mut self, sequence: usize) -> Vec<(AttendInfo, AttendInfo)> {
        let options = AttendOptions { selected: true, ..AttendOptions::default() };
        let of = |layer| {
            let q = self.random.queries(1);
            let (a, b) = &self.sequences[sequence];
            let [a, b] = [a, b].map(|of| one(of, layer, &q.view(), &options).1);
            (a, b)
        };
        (0..LAYERS).map(of).collect()
    }

    /// Things that sequences do, at random.
    pub(crate) fn wander(&mut self, steps: usize) {
        self.append(0, 110);
        for _ in 0..steps {
            let n = self.sequences.len();
            let of = self.random.below(n);
            let len = self.sequences[of].0.len();
            match self.random.below(14) {
                0 if n < 4 => {
                    let (a, b) = &self.sequences[of];
                    let fork = (a.fork(), b.fork());
                    self.sequences.push(fork);
                }
                1 if n > 1 => drop(self.sequences.swap_remove(of)),
                2 if len > 2 => {
                    let to = len - 1 - self.random.below(len.min(30) - 1);
                    let (a, b) = &mut self.sequences[of];
                    a.truncate(to).unwrap();
                    b.truncate(to).unwrap();
                }
                3 if n < 4 => {
                    self.add();
                    let tokens = 1 + self.random.below(50);
                    self.append(self.sequences.len() - 1, tokens);
                }
                4 => {
                    let tokens = 2 + self.random.below(20);
                    self.append(of, tokens);
                    self.attend(of, tokens, &AttendOptions::default());
                }
                5 => {
                    let options = AttendOptions { window: 20, ..AttendOptions::default() };
                    self.attend(of, 1, &options);
                }
                6 => {
                    let sinks = [0.5, -1.0, f32::NEG_INFINITY, 2.0];
                    let options = AttendOptions { sinks: Some(&sinks), ..AttendOptions::default() };
                    self.attend(of, 1, &options);
                }
                7 | 8 => self.batch(),
                _ => {
                    self.append(of, 1);
                    self.attend(of, 1, &AttendOptions::default());
                }
            }
        }
    }

    /// All sequences in one call, some of them with several queries or none: forks share pages, which are
    /// read once.
    pub(crate) fn batch(&mut self) {
        self.batch_of(3);
    }

    /// The same with fewer than `most` queries each.
    pub(crate) fn batch_of(&mut self, most: usize) {
        let one = |s: &(Sequence, Sequence)| self.random.below(most.min(s.0.len() + 1));
        let queries: Vec<usize> = self.sequences.iter().map(one).collect();
        let q = self.random.queries(queries.iter().sum());
        for layer in 0..LAYERS {
            let of = |cache: &Cache, sequences: &[&Sequence]| {
                let shape = q.view().shape();
                let mut out = vec![f32::NAN; shape.iter().product()];
                let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
                let options = AttendOptions::default();
                cache
                    .attend_batch(layer, &q.view(), sequences, &queries, &options, &mut view)
                    .unwrap();
                out
            };
            let a: Vec<&Sequence> = self.sequences.iter().map(|(a, _)| a).collect();
            let b: Vec<&Sequence> = self.sequences.iter().map(|(_, b)| b).collect();
            same_rows(&of(&self.gpu, &a), &of(&self.cpu, &b));
        }
    }
}

fn one(
    sequence: &Sequence,
    layer: usize,
    q: &Tensor3,
    options: &AttendOptions,
) -> (Vec<f32>, AttendInfo) {
    let mut out = vec![f32::NAN; q.shape().iter().product()];
    let mut view = Tensor3Mut::contiguous(&mut out, q.shape()).unwrap();
    let info = sequence.attend(layer, q, options, &mut view).unwrap();
    (out, info)
}
