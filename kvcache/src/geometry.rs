//! The model's shape: all a store needs to know of it.

use kvist_kernels::{DIM_MAX, DType};

use crate::Error;

/// Layers, heads, dimensions and element type of a model's keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Attention layers.
    pub layers: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements of a key row.
    pub dim_k: usize,
    /// Elements of a value row.
    pub dim_v: usize,
    /// Element type of keys and values.
    pub dtype: DType,
    /// Tokens of a page: a multiple of 16.
    pub page_tokens: usize,
}

/// Sizes above this are typing errors, and their products might overflow.
const COUNT_MAX: usize = 1 << 20;

impl Geometry {
    /// Keys and values of the same dimension in pages of 64 tokens.
    #[must_use]
    pub fn new(
        layers: usize,
        q_heads: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: DType,
    ) -> Geometry {
        let (dim_k, dim_v) = (head_dim, head_dim);
        Geometry { layers, q_heads, kv_heads, dim_k, dim_v, dtype, page_tokens: 64 }
    }

    /// Query heads that share a KV head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// Bytes of a page: K and V of `page_tokens` tokens of one layer and KV head.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_tokens * (self.dim_k + self.dim_v) * self.dtype.size()
    }

    /// Bytes of a token's K and V in one layer and KV head.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        (self.dim_k + self.dim_v) * self.dtype.size()
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let counts =
            [("layers", self.layers), ("q_heads", self.q_heads), ("kv_heads", self.kv_heads)];
        for (setting, n) in counts {
            if n == 0 || n > COUNT_MAX {
                return Err(Error::setting(setting, format!("1..={COUNT_MAX}"), n));
            }
        }
        if !self.q_heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a multiple of kv_heads = {}", self.kv_heads);
            return Err(Error::setting("q_heads", expected, self.q_heads));
        }
        for (setting, dim) in [("dim_k", self.dim_k), ("dim_v", self.dim_v)] {
            if dim == 0 || dim > DIM_MAX {
                return Err(Error::setting(setting, format!("1..={DIM_MAX}"), dim));
            }
        }
        if self.page_tokens == 0 || !self.page_tokens.is_multiple_of(16) || self.page_tokens > 4096
        {
            return Err(Error::setting(
                "page_tokens",
                "a multiple of 16 up to 4096",
                self.page_tokens,
            ));
        }
        Ok(())
    }
}

/// Bytes from a size in words: digits and a unit, `"512MiB"`, `"2 GiB"`, `"1.5GB"`, `"4096"`.
/// Binary units (KiB, MiB, GiB, TiB) are powers of 1024, decimal ones (KB, MB, GB, TB) of 1000.
///
/// # Errors
/// [`Error::Setting`] if the text is not such a size or exceeds 2^63.
pub fn parse_bytes(text: &str) -> Result<u64, Error> {
    let bad = || Error::setting("size", "digits and a unit such as \"2GiB\"", format!("{text:?}"));
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let scale: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err(bad()),
    };
    let bytes = number.parse::<f64>().map_err(|_| bad())? * scale;
    if bytes.is_finite() && bytes < 9.2e18 { Ok(bytes as u64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_words() {
        assert_eq!(parse_bytes("2GiB").unwrap(), 2 << 30);
        assert_eq!(parse_bytes(" 1.5 MiB ").unwrap(), 3 << 19);
        assert_eq!(parse_bytes("4096").unwrap(), 4096);
        assert_eq!(parse_bytes("3GB").unwrap(), 3_000_000_000);
        for bad in ["", "GiB", "2 gigs", "-1", "1e30TiB", "2..5GiB", "99999999999TiB"] {
            let text = parse_bytes(bad).unwrap_err().to_string();
            assert!(text.contains("2GiB"), "{text}");
        }
    }

    #[test]
    fn impossible_models_are_named() {
        let good = Geometry::new(2, 8, 4, 64, DType::Bf16);
        good.validate().unwrap();
        let text = |g: Geometry| g.validate().unwrap_err().to_string();
        assert_eq!(
            text(Geometry { q_heads: 7, ..good.clone() }),
            "q_heads must be a multiple of kv_heads = 4, found 7"
        );
        assert_eq!(
            text(Geometry { dim_k: 577, ..good.clone() }),
            "dim_k must be 1..=576, found 577"
        );
        assert!(text(Geometry { layers: 0, ..good.clone() }).contains("layers"));
        assert!(text(Geometry { page_tokens: 24, ..good }).contains("multiple of 16"));
    }
}
