//! A dump of real queries, keys and values, as `kvist dump` writes it (see `docs/formats.md`).
//! The file is not trusted: every length is checked before it is used.

use std::path::Path;

use half::{bf16, f16};
use serde::Deserialize;

use crate::Error;

const MAGIC: &[u8; 12] = b"KVISTDUMP 1\n";

#[derive(Deserialize)]
struct Header {
    model: String,
    layers: Vec<usize>,
    q_heads: usize,
    kv_heads: usize,
    dim_k: usize,
    dim_v: usize,
    tokens: usize,
    queries: usize,
    scale: f32,
    #[serde(default)]
    soft_cap: f32,
    arrays: Arrays,
}

#[derive(Deserialize)]
struct Arrays {
    k: Array,
    v: Array,
    q: Array,
}

#[derive(Deserialize)]
struct Array {
    dtype: String,
    offset: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Header, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("does not begin with \"KVISTDUMP 1\"")?;
        let (len, rest) = rest.split_first_chunk::<8>().ok_or("ends inside its header")?;
        let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| "header too long")?;
        let json = rest.get(..len).ok_or("ends inside its header")?;
        let h: Header = serde_json::from_slice(json).map_err(|e| format!("header: {e}"))?;
        if h.q_heads == 0 || h.kv_heads == 0 || !h.q_heads.is_multiple_of(h.kv_heads) {
            return Err(format!("{} query heads over {} KV heads", h.q_heads, h.kv_heads));
        }
        if h.queries == 0 || h.queries > h.tokens {
            return Err(format!("{} queries of {} tokens", h.queries, h.tokens));
        }
        Ok(h)
    }
}

fn product(shape: [usize; 4]) -> Result<usize, &'static str> {
    shape.into_iter().try_fold(1usize, |n, x| n.checked_mul(x)).ok_or("shape overflows")
}

/// Keys or values of all layers as the dump has them, `[layers, tokens, kv_heads, dim]`.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) layers: usize,
    pub(crate) tokens: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
    /// Element type in the dump: `f32` if nothing was rounded yet.
    pub(crate) dtype: String,
    pub(crate) values: Vec<f32>,
}

/// The model's name, its keys and its values, not rounded.
pub(crate) fn rows(path: &Path) -> Result<(String, [Rows; 2]), Error> {
    let bytes = std::fs::read(path).map_err(Error::io(format!("reading {}", path.display())))?;
    let parse = || -> Result<_, String> {
        let h = Header::read(&bytes)?;
        let rows = |array: &Array, dim: usize, name: &str| -> Result<Rows, String> {
            let (layers, tokens, kv_heads) = (h.layers.len(), h.tokens, h.kv_heads);
            let values = array.read(&bytes, product([layers, tokens, kv_heads, dim])?, name)?;
            Ok(Rows { layers, tokens, kv_heads, dim, dtype: array.dtype.clone(), values })
        };
        let both = [rows(&h.arrays.k, h.dim_k, "k")?, rows(&h.arrays.v, h.dim_v, "v")?];
        Ok((h.model, both))
    };
    parse().map_err(|problem| Error::Dump { path: path.display().to_string(), problem })
}

/// Keys of the first KV head of the middle layer, `tokens` rows at most, and their length.
///
/// # Errors
/// [`Error::Io`] and [`Error::Dump`].
pub fn values(path: &Path, tokens: usize) -> Result<(Vec<f32>, usize), Error> {
    let (_, [k, _]) = rows(path)?;
    let row = k.kv_heads * k.dim;
    let layer = k.values.chunks(k.tokens * row).nth(k.layers / 2).unwrap_or(&[]);
    let rows = layer.chunks(row).take(tokens).flat_map(|row| &row[..k.dim]);
    Ok((rows.copied().collect(), k.dim))
}

/// Queries, keys and values of some layers; query `n` is at position `tokens - queries + n`.
#[derive(Debug)]
pub(crate) struct Dump {
    pub(crate) model: String,
    pub(crate) layers: Vec<usize>,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim_k: usize,
    pub(crate) dim_v: usize,
    pub(crate) tokens: usize,
    pub(crate) queries: usize,
    pub(crate) scale: f32,
    pub(crate) soft_cap: f32,
    /// `[layers, tokens, kv_heads, dim_k]`, rounded to bf16.
    pub(crate) k: Vec<bf16>,
    /// `[layers, tokens, kv_heads, dim_v]`, rounded to bf16.
    pub(crate) v: Vec<bf16>,
    /// `[layers, queries, q_heads, dim_k]`
    pub(crate) q: Vec<f32>,
}

impl Dump {
    pub(crate) fn open(path: &Path) -> Result<Dump, Error> {
        let bytes =
            std::fs::read(path).map_err(Error::io(format!("reading {}", path.display())))?;
        Dump::parse(&bytes)
            .map_err(|problem| Error::Dump { path: path.display().to_string(), problem })
    }

    fn parse(bytes: &[u8]) -> Result<Dump, String> {
        let h = Header::read(bytes)?;
        let layers = h.layers.len();
        let k = product([layers, h.tokens, h.kv_heads, h.dim_k])?;
        let v = product([layers, h.tokens, h.kv_heads, h.dim_v])?;
        let q = product([layers, h.queries, h.q_heads, h.dim_k])?;
        let rounded = |x: Vec<f32>| x.into_iter().map(bf16::from_f32).collect();
        Ok(Dump {
            k: rounded(h.arrays.k.read(bytes, k, "k")?),
            v: rounded(h.arrays.v.read(bytes, v, "v")?),
            q: h.arrays.q.read(bytes, q, "q")?,
            model: h.model,
            layers: h.layers,
            q_heads: h.q_heads,
            kv_heads: h.kv_heads,
            dim_k: h.dim_k,
            dim_v: h.dim_v,
            tokens: h.tokens,
            queries: h.queries,
            scale: h.scale,
            soft_cap: h.soft_cap,
        })
    }

    pub(crate) fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// Key of a token.
    pub(crate) fn key(&self, layer: usize, token: usize, head: usize) -> &[bf16] {
        let at = ((layer * self.tokens + token) * self.kv_heads + head) * self.dim_k;
        &self.k[at..at + self.dim_k]
    }

    /// Value of a token.
    pub(crate) fn value(&self, layer: usize, token: usize, head: usize) -> &[bf16] {
        let at = ((layer * self.tokens + token) * self.kv_heads + head) * self.dim_v;
        &self.v[at..at + self.dim_v]
    }

    /// All query heads of a step, `[q_heads, dim_k]`.
    pub(crate) fn query(&self, layer: usize, step: usize) -> &[f32] {
        let width = self.q_heads * self.dim_k;
        let at = (layer * self.queries + step) * width;
        &self.q[at..at + width]
    }
}

impl Array {
    fn read(&self, bytes: &[u8], len: usize, name: &str) -> Result<Vec<f32>, String> {
        let size = match self.dtype.as_str() {
            "f32" => 4,
            "f16" | "bf16" => 2,
            other => return Err(format!("{name} has dtype {other:?}, expected f32, f16 or bf16")),
        };
        let end = len.checked_mul(size).and_then(|n| n.checked_add(self.offset));
        let raw = end.and_then(|end| bytes.get(self.offset..end));
        let raw = raw.ok_or_else(|| format!("ends inside {name}"))?;
        let pairs = || raw.as_chunks::<2>().0.iter().map(|c| u16::from_le_bytes(*c));
        Ok(match self.dtype.as_str() {
            "f32" => raw.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect(),
            "f16" => pairs().map(|x| f16::from_bits(x).to_f32()).collect(),
            _ => pairs().map(|x| bf16::from_bits(x).to_f32()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_named() {
        let problem = |bytes: &[u8]| Dump::parse(bytes).unwrap_err();
        assert!(problem(b"something else").contains("KVISTDUMP 1"));
        assert_eq!(problem(b"KVISTDUMP 1\n\xff"), "ends inside its header");
        let mut long = b"KVISTDUMP 1\n".to_vec();
        long.extend(u64::MAX.to_le_bytes());
        assert_eq!(problem(&long), "ends inside its header");
        let json = br#"{"model":"m","layers":[0],"q_heads":2,"kv_heads":1,"dim_k":4,"dim_v":4,
            "tokens":8,"queries":1,"scale":0.5,"arrays":{"k":{"dtype":"f32","offset":0},
            "v":{"dtype":"f32","offset":0},"q":{"dtype":"i8","offset":0}}}"#;
        let mut short = b"KVISTDUMP 1\n".to_vec();
        short.extend((json.len() as u64).to_le_bytes());
        short.extend(json);
        assert!(problem(&short).contains("q has dtype \"i8\""));
    }
}
