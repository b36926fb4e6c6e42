//! Keys of all kinds.

use kvist_kernels::cluster::{Clusters, Head, KMeans, Rows, build};
use kvist_kernels::{DType, Element, Executor, Isa};
use proptest::prelude::*;

/// Deterministic numbers.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub(crate) fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.bits() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 1.7
    }
}

/// What keys look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Groups around a common offset, some channels much larger than others.
    Groups,
    /// Small integers: many equal scores.
    Integers,
    /// Zeros and keys that occur many times.
    Repeated,
    /// From the smallest to the largest numbers there are.
    Extreme,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Groups, Kind::Integers, Kind::Repeated, Kind::Extreme];

/// Rows in memory.
pub(crate) struct Keys {
    pub(crate) dtype: DType,
    pub(crate) dim: usize,
    bytes: Vec<u8>,
    /// The same numbers as f32, `[tokens][dim]`.
    pub(crate) values: Vec<f32>,
    ptrs: Vec<*const u8>,
}

fn encode<T: Element>(values: &mut [f32]) -> Vec<u8> {
    let rounded: Vec<T> = values.iter().map(|&x| T::from_f32(x)).collect();
    values.iter_mut().zip(&rounded).for_each(|(v, r)| *v = r.to_f32());
    bytemuck::cast_slice(&rounded).to_vec()
}

impl Keys {
    pub(crate) fn new(dtype: DType, dim: usize, mut values: Vec<f32>) -> Keys {
        let bytes = match dtype {
            DType::F32 => encode::<f32>(&mut values),
            DType::F16 => encode::<half::f16>(&mut values),
            DType::Bf16 => encode::<half::bf16>(&mut values),
        };
        let ptrs = bytes.chunks_exact(dim * dtype.size()).map(<[u8]>::as_ptr).collect();
        Keys { dtype, dim, bytes, values, ptrs }
    }

    pub(crate) fn random(seed: u64, kind: Kind, dtype: DType, n: usize, dim: usize) -> Keys {
        let mut rng = Rng(seed);
        let extremes = match dtype {
            DType::F16 => [1e-7, 1e-4, 1.0, 100.0, 1e4],
            DType::F32 | DType::Bf16 => [1e-44, 1e-20, 1.0, 1e19, 3e37],
        };
        let sizes: Vec<f32> = (0..dim).map(|_| [1.0, 0.1, 8.0][rng.below(3)]).collect();
        let groups: Vec<f32> = (0..9 * dim).map(|i| 3.0 * rng.normal() * sizes[i % dim]).collect();
        let mut values = Vec::with_capacity(n * dim);
        for _ in 0..n {
            let group = rng.below(8);
            for i in 0..dim {
                let at = groups[group * dim + i] + groups[8 * dim + i];
                values.push(match kind {
                    Kind::Groups => at + rng.normal() * sizes[i],
                    Kind::Integers => (rng.below(7) as f32) - 3.0,
                    Kind::Repeated => {
                        if group < 3 {
                            0.0
                        } else {
                            at
                        }
                    }
                    Kind::Extreme => rng.normal() * extremes[group % 5],
                });
            }
        }
        Keys::new(dtype, dim, values)
    }

    /// Puts NaN or infinity into some tokens; which ones.
    pub(crate) fn spoiled(seed: u64, keys: Keys, count: usize) -> (Keys, Vec<u32>) {
        let mut rng = Rng(seed);
        let (n, mut values) = (keys.len(), keys.values);
        let mut spoiled = Vec::new();
        for _ in 0..count.min(n) {
            let (token, channel) = (rng.below(n), rng.below(keys.dim));
            values[token * keys.dim + channel] =
                [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][rng.below(3)];
            spoiled.push(token as u32);
        }
        spoiled.sort_unstable();
        spoiled.dedup();
        (Keys::new(keys.dtype, keys.dim, values), spoiled)
    }

    pub(crate) fn len(&self) -> usize {
        self.ptrs.len()
    }

    pub(crate) fn row(&self, token: usize) -> &[f32] {
        &self.values[token * self.dim..][..self.dim]
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        assert_eq!(self.bytes.len(), self.values.len() * self.dtype.size());
        // SAFETY: the pointers are rows of `bytes`.
        unsafe { Rows::new(self.dtype, self.dim, &self.ptrs) }.expect("a dimension in range")
    }

    pub(crate) fn head(&self) -> Head<'_> {
        Head { keys: self.rows(), values: None }
    }
}

/// The clusters of one head on this thread.
pub(crate) fn build_one(settings: &KMeans, head: &Head, isa: Isa) -> Clusters {
    let all = build(settings, &[*head], isa, &Executor::inline());
    all.expect("settings that make sense").remove(0)
}

pub(crate) fn dtypes() -> impl Strategy<Value = DType> {
    prop::sample::select(DType::ALL.to_vec())
}

pub(crate) fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(KINDS.to_vec())
}

/// Dimensions around the widths of registers.
pub(crate) fn dims() -> impl Strategy<Value = usize> {
    prop_oneof![1..20usize, prop::sample::select(vec![31, 32, 33, 64, 65, 96, 128, 192, 576])]
}

/// Distance of a key from a point, in f64.
pub(crate) fn distance(key: &[f32], point: &[f32]) -> f64 {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    key.iter().zip(point).map(square).sum::<f64>().sqrt()
}

/// That every token is in one cluster or unclustered, and that no cluster is empty (I-14).
pub(crate) fn assert_partition(clusters: &Clusters, tokens: usize) {
    let mut all = [clusters.order(), clusters.unclustered()].concat();
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..tokens as u32), "{all:?}");
    assert_eq!(clusters.tokens(), tokens);
    assert_eq!(clusters.offsets().len(), clusters.len() + 1);
    assert_eq!(clusters.centroids().len(), clusters.len() * clusters.dim());
    assert_eq!(clusters.value_sums().len(), clusters.len() * clusters.value_dim());
    for c in 0..clusters.len() {
        assert!(!clusters.members(c).is_empty());
        assert!(clusters.members(c).is_sorted_by(|a, b| a < b));
    }
}

/// That all is finite and that every radius bounds the distances and so the scores of its members.
pub(crate) fn assert_bounds(clusters: &Clusters, keys: &Keys, q: &[f32]) {
    assert!(clusters.centroids().iter().all(|x| x.is_finite()));
    let norm = distance(q, &vec![0.0; q.len()]);
    let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    for c in 0..clusters.len() {
        let centroid = &clusters.centroids()[c * keys.dim..][..keys.dim];
        let radius = f64::from(clusters.radii()[c]);
        assert!(radius >= 0.0);
        for &token in clusters.members(c) {
            let key = keys.row(token as usize);
            assert!(distance(key, centroid) <= radius, "{} > {radius}", distance(key, centroid));
            let bound = dot(centroid) + norm * radius;
            let slack = 1e-12 * norm * (distance(key, &vec![0.0; key.len()]) + radius);
            assert!(dot(key) <= bound + slack, "{} > {bound}", dot(key));
        }
    }
}
