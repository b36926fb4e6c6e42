//! Keys and queries to cluster: a real model's, or made up like them.

use half::bf16;

use crate::quality::dump::Dump;
use crate::{Error, Options, Rng};

/// Heads that are taken from a dump: from all depths of the model.
const HEADS: usize = 4;
/// First tokens of a dump that are left out: they are always read, and their keys are unlike all others.
const SINKS: usize = 16;
/// Queries per head.
const QUERIES: usize = 48;
/// Dimension of made-up keys.
const DIM: usize = 128;
/// Made-up words.
const WORDS: usize = 2000;
/// How much of a made-up key is its word, its surroundings, noise, and the offset that all have.
const WORD: f32 = 0.55;
const AROUND: f32 = 0.79;
const NOISE: f32 = 0.28;
const OFFSET: f32 = 0.85;
/// How much of its surroundings the next key keeps. With these numbers the cosine of (centred) neighbours
/// is 0.6, and the offset makes up 0.6 of a key's length: in between what SmolLM2-135M's layers have.
const MEMORY: f32 = 0.98;
/// Noise and length of made-up queries, which look for a word in its surroundings.
const BLUR: f32 = 0.6;
const LENGTH: f32 = 1.5;

/// Keys of some KV heads, and queries that look for something in them.
pub(super) struct Scene {
    pub(super) name: String,
    pub(super) tokens: usize,
    pub(super) dim: usize,
    pub(super) scale: f32,
    pub(super) heads: Vec<Head>,
}

/// One KV head.
pub(super) struct Head {
    /// `[tokens, dim]`
    pub(super) keys: Vec<bf16>,
    /// `[queries, dim]`
    pub(super) queries: Vec<f32>,
}

impl Scene {
    /// From the dump that the options name, at most `tokens` tokens of it; else made up.
    pub(super) fn new(options: &Options, tokens: usize) -> Result<Scene, Error> {
        match &options.dump {
            Some(path) => Ok(Scene::real(&Dump::open(path)?, tokens)),
            None => Ok(Scene::made_up(tokens)),
        }
    }

    fn real(dump: &Dump, tokens: usize) -> Scene {
        let tokens = tokens.min(dump.tokens - dump.queries - SINKS);
        let all = dump.layers.len() * dump.kv_heads;
        let heads = (0..HEADS.min(all)).map(|i| {
            let at = (2 * i + 1) * all / (2 * HEADS.min(all));
            let (layer, head) = (at / dump.kv_heads, at % dump.kv_heads);
            let keys =
                (SINKS..SINKS + tokens).flat_map(|t| dump.key(layer, t, head)).copied().collect();
            let rows = dump.group() * dump.dim_k;
            let step = (dump.queries * dump.group()).div_ceil(QUERIES);
            let queries =
                (0..dump.queries).flat_map(|s| &dump.query(layer, s)[head * rows..][..rows]);
            let queries: Vec<f32> = queries.copied().collect();
            let queries = queries.chunks(dump.dim_k).step_by(step).flatten().copied().collect();
            Head { keys, queries }
        });
        Scene {
            name: dump.model.clone(),
            tokens,
            dim: dump.dim_k,
            scale: dump.scale,
            heads: heads.collect(),
        }
    }

    fn made_up(tokens: usize) -> Scene {
        let head = made_up(tokens, &mut Rng::new(3));
        let scale = 1.0 / (DIM as f32).sqrt();
        Scene { name: "made-up".to_owned(), tokens, dim: DIM, scale, heads: vec![head] }
    }
}

/// Keys of words in slowly changing surroundings, in channels of different sizes.
fn made_up(tokens: usize, rng: &mut Rng) -> Head {
    let sizes: Vec<f32> = (0..DIM).map(|_| (0.7 * rng.normal()).exp2()).collect();
    let square = sizes.iter().map(|s| s * s).sum::<f32>() / DIM as f32;
    let (words, offset) = (rng.normals(WORDS * DIM), rng.normals(DIM));
    let mut around = rng.normals(DIM);
    let (mut meant, mut keys) = (vec![0f32; tokens * DIM], Vec::with_capacity(tokens * DIM));
    for meant in meant.chunks_exact_mut(DIM) {
        // Few words are frequent, many rare.
        let word = (WORDS as f32 * rng.unit().powi(3)) as usize * DIM;
        for i in 0..DIM {
            around[i] = MEMORY * around[i] + (1.0 - MEMORY * MEMORY).sqrt() * rng.normal();
            meant[i] = WORD * words[word + i] + AROUND * around[i];
            let key = (meant[i] + NOISE * rng.normal() + OFFSET * offset[i]) * sizes[i];
            keys.push(bf16::from_f32(key / square.sqrt()));
        }
    }
    let mut queries = Vec::with_capacity(QUERIES * DIM);
    for _ in 0..QUERIES {
        let meant = &meant[rng.below(tokens) * DIM..][..DIM];
        queries.extend(meant.iter().map(|m| (m + BLUR * rng.normal()) * LENGTH));
    }
    Head { keys, queries }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_keys_have_offset_and_neighbours_like_real_ones() {
        let scene = Scene::made_up(4000);
        let keys: Vec<f32> = scene.heads[0].keys.iter().map(|k| k.to_f32()).collect();
        let mut mean = vec![0f32; DIM];
        keys.chunks_exact(DIM)
            .flat_map(|row| row.iter().zip(0..))
            .for_each(|(x, i)| mean[i] += x / 4000.0);
        let centred: Vec<f32> = keys.iter().zip(mean.iter().cycle()).map(|(x, m)| x - m).collect();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let norm = |a: &[f32]| dot(a, a).sqrt();
        let rows = || centred.chunks_exact(DIM);
        let cosine =
            rows().zip(rows().skip(1)).map(|(a, b)| dot(a, b) / norm(a) / norm(b)).sum::<f32>()
                / 3999.0;
        let length = keys.chunks_exact(DIM).map(norm).sum::<f32>() / 4000.0;
        assert!((0.5..0.7).contains(&cosine), "{cosine}");
        assert!((0.5..0.7).contains(&(norm(&mean) / length)), "{}", norm(&mean) / length);
    }
}
