//! Deterministic data, caches of one shape, and dense attention in f64.

use half::bf16;
use kvist::{AttendOptions, Cache, DType, Geometry, Select, Sequence, Tensor3, Tensor3Mut};

pub(crate) const HEADS: usize = 2;
pub(crate) const GROUP: usize = 3;
pub(crate) const DIM: usize = 32;
pub(crate) const ROW: usize = HEADS * DIM;

/// Deterministic numbers, roughly normal.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn normal(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum();
        (sum - 2.0) * 1.7
    }

    /// Uniform in `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn rows(&mut self, n: usize, scale: f32) -> Vec<bf16> {
        (0..n).map(|_| bf16::from_f32(scale * self.normal())).collect()
    }
}

pub(crate) fn cache(select: Select, bytes: u64) -> Cache {
    Cache::builder(Geometry::new(2, HEADS * GROUP, HEADS, DIM, DType::Bf16))
        .host_bytes(bytes)
        .select(select)
        .threads(2)
        .build()
        .unwrap()
}

pub(crate) fn rows(data: &[bf16]) -> Tensor3<'_> {
    Tensor3::contiguous(data, [data.len() / ROW, HEADS, DIM]).unwrap()
}

/// Attends with one query and returns (out, info).
pub(crate) fn attend(
    s: &Sequence,
    layer: usize,
    q: &[f32],
    options: &AttendOptions,
) -> (Vec<f32>, kvist::AttendInfo) {
    let n = q.len() / (HEADS * GROUP * DIM);
    let mut out = vec![f32::NAN; q.len()];
    let shape = [n, HEADS * GROUP, DIM];
    let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    let info =
        s.attend(layer, &Tensor3::contiguous(q, shape).unwrap(), options, &mut view).unwrap();
    (out, info)
}

/// Softmax masses of one query head over the first `len` tokens, in f64.
pub(crate) fn masses(k: &[bf16], len: usize, head: usize, q: &[f32]) -> Vec<f64> {
    let scale = 1.0 / (DIM as f32).sqrt();
    let logit = |t: usize| -> f64 {
        let row = &k[t * ROW + head / GROUP * DIM..][..DIM];
        let dot: f64 = row
            .iter()
            .zip(&q[head * DIM..])
            .map(|(a, &b)| f64::from(a.to_f32()) * f64::from(b))
            .sum();
        dot * f64::from(scale)
    };
    let logits: Vec<f64> = (0..len).map(logit).collect();
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|x| x / sum).collect()
}

pub(crate) fn dense(k: &[bf16], v: &[bf16], len: usize, q: &[f32]) -> Vec<f64> {
    let mut out = Vec::new();
    for head in 0..HEADS * GROUP {
        let p = masses(k, len, head, q);
        for c in 0..DIM {
            let value = |t: usize| f64::from(v[t * ROW + head / GROUP * DIM + c].to_f32());
            out.push((0..len).map(|t| p[t] * value(t)).sum());
        }
    }
    out
}

pub(crate) fn close(got: &[f32], want: &[f64]) -> bool {
    got.iter().zip(want).all(|(&a, &b)| (f64::from(a) - b).abs() < 0.02)
}

/// What a KV head's group thinks of the 16-token chunks `chunks` (LeoAM): of its query heads the largest upper
/// bound of the logits, relative to the log-sum-exp of the bounds of the chunks of 1024 tokens that hold
/// them, and of those behind the last whole such chunk.
pub(crate) fn chunk_weights(
    k: &[bf16],
    q: &[f32],
    len: usize,
    head: usize,
    chunks: std::ops::Range<usize>,
) -> Vec<f64> {
    let scale = 1.0 / (DIM as f64).sqrt();
    let upper = |tokens: std::ops::Range<usize>, q: &[f32]| -> f64 {
        let of_channel = |c: usize| {
            let value = |t: usize| f64::from(k[t * ROW + head * DIM + c].to_f32());
            let (max, min) = tokens
                .clone()
                .map(value)
                .fold((f64::MIN, f64::MAX), |(a, b), x| (a.max(x), b.min(x)));
            let q = f64::from(q[c]);
            (q * max).max(q * min)
        };
        (0..DIM).map(of_channel).sum::<f64>() * scale
    };
    let (runs, last) = (chunks.start / 64..len / 1024, len / 1024 * 64);
    let runs = runs.start.min(runs.end)..runs.end.min(chunks.end.div_ceil(64));
    let mut weights = vec![f64::MIN; chunks.len()];
    for h in head * GROUP..(head + 1) * GROUP {
        let q = &q[h * DIM..][..DIM];
        let whole = runs.clone().map(|r| (r * 1024..(r + 1) * 1024, 1024f64));
        let rest = (chunks.start.max(last)..chunks.end).map(|c| (c * 16..(c + 1) * 16, 16f64));
        let parts: Vec<f64> = whole.chain(rest).map(|(t, n)| upper(t, q) + n.ln()).collect();
        let top = parts.iter().copied().fold(f64::MIN, f64::max);
        let lse = top + parts.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
        for (w, c) in weights.iter_mut().zip(chunks.clone()) {
            *w = w.max(upper(c * 16..(c + 1) * 16, q) - lse);
        }
    }
    weights
}
