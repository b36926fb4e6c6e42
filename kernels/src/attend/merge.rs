//! Joins partial results over disjoint token sets by their log-sum-exp.

use super::{Out, sink::Sink};
use crate::{Error, Tensor3};

/// Merges partial results `(o [rows, heads, dim], lse2 [rows, heads])` over disjoint sets of
/// tokens: `o = sum_i 2^(lse_i - M) o_i / sum_i 2^(lse_i - M)`, `M = max_i lse_i`, in the order
/// given. A part with lse = -inf counts for nothing; no parts or only such give (0, -inf).
///
/// Source: RelayAttention (arXiv 2402.14808), FlashInfer (arXiv 2501.01005).
///
/// # Errors
/// [`Error::Shape`] if parts and output differ in shape.
pub fn merge(parts: &[(Tensor3, &[f32])], out: &mut Out) -> Result<(), Error> {
    let [rows, heads, dim] = out.o.shape();
    for (o, lse) in parts {
        if o.shape() != [rows, heads, dim] {
            let (want, found) = (format!("{:?}", out.o.shape()), format!("{:?}", o.shape()));
            return Err(Error::shape("partial output", want, found));
        }
        if lse.len() != rows * heads {
            return Err(Error::shape("partial lse2", rows * heads, lse.len()));
        }
    }
    if let Some(lse) = &out.lse2
        && lse.len() != rows * heads
    {
        return Err(Error::shape("lse2", rows * heads, lse.len()));
    }
    let sink = Sink::new(out);
    let (mut sum, mut part) = (vec![0f32; dim], vec![0f32; dim]);
    for row in 0..rows {
        for head in 0..heads {
            let at = row * heads + head;
            let mut state = Merged::new(&mut sum, parts.iter().map(|(_, lse)| lse[at]));
            for (o, lse) in parts {
                if state.takes(lse[at]) {
                    o.read_f32(row, head, &mut part);
                    state.add(&part, lse[at]);
                }
            }
            let lse = state.finish();
            // SAFETY: each row and head is visited once, by this thread alone.
            unsafe { sink.write(row, head, &sum, lse) }
        }
    }
    Ok(())
}

/// The sum of weighted parts of one row.
pub(super) struct Merged<'a> {
    sum: &'a mut [f32],
    highest: f32,
    weight: f32,
}

impl<'a> Merged<'a> {
    /// Starts a sum; `lses` are those of all parts to come.
    pub(super) fn new(sum: &'a mut [f32], lses: impl Iterator<Item = f32>) -> Merged<'a> {
        sum.fill(0.0);
        // A NaN part must reach the result, so it may not be dropped by max.
        let highest = lses.fold(f32::NEG_INFINITY, |m, x| if x > m || x.is_nan() { x } else { m });
        Merged { sum, highest, weight: 0.0 }
    }

    /// Whether a part has any weight.
    pub(super) fn takes(&self, lse: f32) -> bool {
        lse != f32::NEG_INFINITY
    }

    pub(super) fn add(&mut self, part: &[f32], lse: f32) {
        let w = (lse - self.highest).exp2();
        self.weight += w;
        self.sum.iter_mut().zip(part).for_each(|(s, &x)| *s += w * x);
    }

    /// Normalises the sum and returns the log-sum-exp.
    pub(super) fn finish(self) -> f32 {
        if self.weight == 0.0 {
            return f32::NEG_INFINITY;
        }
        self.sum.iter_mut().for_each(|s| *s /= self.weight);
        self.highest + self.weight.log2()
    }
}
