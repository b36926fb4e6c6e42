//! What a hit spares, and what it costs.

/// A model and a machine, as far as they say what blocks are worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Parameters, in thousands of millions.
    pub params: f64,
    /// Layers.
    pub layers: f64,
    /// Query heads times their dimension.
    pub width: f64,
    /// Bytes of keys and values of a token.
    pub token_bytes: f64,
    /// Arithmetic of prefill, in 10^12 operations a second.
    pub tflops: f64,
}

impl Default for Cost {
    /// Llama 3.1 8B in bf16, at the rate that a single H100 reaches in prefill.
    fn default() -> Cost {
        Cost { params: 8.0, layers: 32.0, width: 4096.0, token_bytes: 131_072.0, tflops: 400.0 }
    }
}

impl Cost {
    /// Seconds to compute block `index` of a prompt: two operations for each parameter and token, and four for each
    /// layer, channel and pair of tokens, of which half are seen in the block itself.
    #[must_use]
    pub fn compute(&self, index: usize, block_tokens: usize) -> f64 {
        let tokens = block_tokens as f64;
        let before = (index as f64 + 0.5) * tokens;
        let linear = 2.0 * self.params * 1e9 * tokens;
        let attention = 4.0 * self.layers * self.width * tokens * before;
        (linear + attention) / (self.tflops * 1e12)
    }

    /// Bytes of a block.
    #[must_use]
    pub fn bytes(&self, block_tokens: usize) -> f64 {
        self.token_bytes * block_tokens as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_as_much_as_the_rest_at_30_thousand_tokens() {
        let cost = Cost::default();
        let of = |index| cost.compute(index, 512) / cost.compute(0, 512);
        assert!((of(60) - (1.0 + 0.01678 * 60.5) / (1.0 + 0.01678 * 0.5)).abs() < 1e-3);
        assert_eq!(cost.bytes(512), 67_108_864.0);
    }
}
