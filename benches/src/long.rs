//! Long contexts: rows of a real model, stretched, or random ones.
//!
//! A stretched context begins and ends as the dump does. Between lie runs of its tokens, drawn at random, the same
//! for all heads, so that products of queries and keys are spread as they are in the model, and
//! neighbours are alike as they are there; a little noise makes every row another. Wider heads are put together from
//! several of the model, with a scale that keeps the spread of the logits.

use std::path::Path;

use half::{bf16, f16};
use kvist_kernels::DType;

use crate::quality::dump::Dump;
use crate::{Error, Rng, Shape};

/// Tokens made at once.
pub(crate) const CHUNK: usize = 4096;
/// Tokens drawn together, at most.
const RUN: usize = 256;
/// Width of the noise, in deviations of a channel.
const NOISE: f32 = 0.2;
/// Queries of random rows.
const STEPS: usize = 16;

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    K,
    V,
}

/// Where rows come from.
pub(crate) struct Long {
    shape: Shape,
    real: Option<Real>,
}

struct Real {
    dump: Dump,
    /// Tokens of the dump, by position.
    tokens: Vec<u32>,
    /// Deviation of every channel of keys and of values, `[layers, kv_heads, dim]`.
    deviations: [Vec<f32>; 2],
}

impl Long {
    /// Rows of a dump for `context` tokens, or random ones.
    pub(crate) fn new(shape: Shape, context: usize, dump: Option<&Path>) -> Result<Long, Error> {
        let Some(path) = dump else { return Ok(Long { shape, real: None }) };
        let dump = Dump::open(path)?;
        let bad = |problem| Err(Error::Dump { path: path.display().to_string(), problem });
        let (dim, wanted) = (dump.dim_k, shape.head_dim);
        if dump.dim_v != dim || !wanted.is_multiple_of(dim) {
            return bad(format!(
                "heads of {dim} and {}, expected a divisor of {wanted}",
                dump.dim_v
            ));
        }
        let known = dump.tokens - dump.queries;
        if known < 2 * RUN {
            return bad(format!("{known} tokens in front of its queries, expected {}", 2 * RUN));
        }
        let tokens = drawn(known, context);
        let deviations = [Kind::K, Kind::V].map(|kind| deviations(&dump, kind));
        Ok(Long { shape, real: Some(Real { dump, tokens, deviations }) })
    }

    /// What it is made of, in words.
    pub(crate) fn about(&self) -> String {
        match &self.real {
            Some(real) => format!("keys, values and queries of {}, stretched", real.dump.model),
            None => "normal numbers (give --dump for a model's keys and queries)".to_owned(),
        }
    }

    /// Rows of the [`CHUNK`] tokens of a layer from a multiple of it on, or of what is left of `context`,
    /// `[tokens, kv_heads, head_dim]`.
    pub(crate) fn rows(&self, kind: Kind, layer: usize, from: usize, context: usize) -> Vec<f32> {
        let Shape { kv_heads, head_dim, .. } = self.shape;
        let tokens = (context - from).min(CHUNK);
        let mut rng = Rng::new(((layer * 2 + kind as usize) << 40 | from) as u64 + 21);
        let Some(real) = &self.real else { return rng.normals(tokens * kv_heads * head_dim) };
        let dim = real.dump.dim_k;
        let mut out = Vec::with_capacity(tokens * kv_heads * head_dim);
        for &token in &real.tokens[from..from + tokens] {
            for part in 0..kv_heads * head_dim / dim {
                let (layer, head) = self.stands_for(real, layer, part);
                let row = match kind {
                    Kind::K => real.dump.key(layer, token as usize, head),
                    Kind::V => real.dump.value(layer, token as usize, head),
                };
                let widths = &real.deviations[kind as usize];
                let widths = &widths[(layer * real.dump.kv_heads + head) * dim..][..dim];
                let noisy = row.iter().zip(widths);
                out.extend(noisy.map(|(x, w)| x.to_f32() + NOISE * w * (2.0 * rng.unit() - 1.0)));
            }
        }
        out
    }

    /// How many queries there are, one after the other.
    pub(crate) fn steps(&self) -> usize {
        self.real.as_ref().map_or(STEPS, |real| real.dump.queries)
    }

    /// All heads of a query, `[q_heads, head_dim]`.
    pub(crate) fn query(&self, layer: usize, step: usize) -> Vec<f32> {
        let Shape { q_heads, head_dim, .. } = self.shape;
        let mut rng = Rng::new((layer * STEPS + step) as u64 + 22);
        let Some(real) = &self.real else { return rng.normals(q_heads * head_dim) };
        let (dim, group, of_dump) = (real.dump.dim_k, self.shape.group(), real.dump.group());
        let parts = head_dim / dim;
        let mut out = Vec::with_capacity(q_heads * head_dim);
        for q_head in 0..q_heads {
            let (head, member) = (q_head / group, q_head % group);
            for part in 0..parts {
                let (layer, head) = self.stands_for(real, layer, head * parts + part);
                // Members that the dump's groups lack are new pairs of those they have.
                let member = (member + part * (member / of_dump)) % of_dump;
                let all = real.dump.query(layer, step);
                out.extend_from_slice(&all[(head * of_dump + member) * dim..][..dim]);
            }
        }
        out
    }

    /// Softmax masses of a query's tokens by KV head, mean over the heads of its group, in this order of keys.
    pub(crate) fn masses(
        &self,
        layer: usize,
        step: usize,
        context: usize,
        dtype: DType,
    ) -> Vec<Vec<f64>> {
        let Shape { q_heads, kv_heads, head_dim } = self.shape;
        let q = self.query(layer, step);
        let scale = 1.0 / (head_dim as f64).sqrt();
        let mut logits = vec![Vec::with_capacity(context); q_heads];
        for from in (0..context).step_by(CHUNK) {
            let mut k = self.rows(Kind::K, layer, from, context);
            k.iter_mut().for_each(|x| *x = rounded(dtype, *x));
            for row in k.chunks_exact(kv_heads * head_dim) {
                for (head, (logits, q)) in
                    logits.iter_mut().zip(q.chunks_exact(head_dim)).enumerate()
                {
                    let key = &row[head / self.shape.group() * head_dim..][..head_dim];
                    logits.push(f64::from(dot(q, key)) * scale);
                }
            }
        }
        let of_group = |logits: &[Vec<f64>]| {
            let mut sum = vec![0f64; context];
            for row in logits {
                let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let all = row.iter().map(|x| (x - top).exp()).sum::<f64>() * logits.len() as f64;
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += (x - top).exp() / all);
            }
            sum
        };
        logits.chunks(self.shape.group()).map(of_group).collect()
    }

    /// Layer and KV head of the dump that a part of a layer's row comes from.
    fn stands_for(&self, real: &Real, layer: usize, part: usize) -> (usize, usize) {
        let parts = self.shape.kv_heads * self.shape.head_dim / real.dump.dim_k;
        let number = layer * parts + part;
        (number / real.dump.kv_heads % real.dump.layers.len(), number % real.dump.kv_heads)
    }
}

/// A number as it is stored.
fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

/// Product of rows, in lanes that the compiler can keep in a register.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a * b);
    }
    let rest = a.chunks_exact(16).remainder().iter().zip(b.chunks_exact(16).remainder());
    lanes.iter().sum::<f32>() + rest.map(|(a, b)| a * b).sum::<f32>()
}

/// Tokens of a dump for every position: its first, runs of any, its last.
fn drawn(known: usize, context: usize) -> Vec<u32> {
    let mut rng = Rng::new(20);
    let mut tokens: Vec<u32> = (0..RUN.min(context) as u32).collect();
    while tokens.len() < context.saturating_sub(RUN) {
        let n = (1 + rng.below(RUN)).min(context - RUN - tokens.len());
        let from = rng.below(known - n) as u32;
        tokens.extend(from..from + n as u32);
    }
    let left = context - tokens.len();
    tokens.extend((known - left) as u32..known as u32);
    tokens
}

fn deviations(dump: &Dump, kind: Kind) -> Vec<f32> {
    let mut all = Vec::with_capacity(dump.layers.len() * dump.kv_heads * dump.dim_k);
    for layer in 0..dump.layers.len() {
        for head in 0..dump.kv_heads {
            let mut sums = vec![[0f64; 2]; dump.dim_k];
            for token in 0..dump.tokens {
                let row = match kind {
                    Kind::K => dump.key(layer, token, head),
                    Kind::V => dump.value(layer, token, head),
                };
                for ([sum, squares], x) in sums.iter_mut().zip(row) {
                    *sum += x.to_f64();
                    *squares += x.to_f64() * x.to_f64();
                }
            }
            let n = dump.tokens as f64;
            let deviation = |[sum, squares]: &[f64; 2]| (squares / n - (sum / n).powi(2)).max(0.0);
            all.extend(sums.iter().map(|sums| deviation(sums).sqrt() as f32));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_has_a_token() {
        for context in [1, 255, 256, 300, 512, 513, 5000] {
            let tokens = drawn(1000, context);
            assert_eq!(tokens.len(), context);
            assert!(tokens.iter().all(|&t| t < 1000));
            assert_eq!(tokens[0], 0);
            assert!(context <= RUN || tokens[context - 1] == 999);
        }
    }
}
