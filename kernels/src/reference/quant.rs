//! Quantised and re-rotated rows in f64.

use half::f16;

use crate::quant::{Bits, Quant};
use crate::rope::Rope;

/// The numbers that a row's codes and scales stand for.
///
/// # Panics
/// If they are not a row's.
#[must_use]
pub fn dequantised(quant: &Quant, codes: &[u8], scales: &[f16]) -> Vec<f64> {
    let number = |i: usize| {
        let scales = &scales[i / quant.group() * quant.per_group()..];
        let scale = f64::from(scales[0].to_f32());
        match quant.bits() {
            Bits::Eight => scale * f64::from(codes[i] as i8),
            Bits::Four => {
                f64::from(scales[1].to_f32()) + scale * f64::from(codes[i / 2] >> (i % 2 * 4) & 15)
            }
        }
    };
    (0..quant.dim()).map(number).collect()
}

/// A row moved by `difference` positions.
///
/// # Panics
/// If it is shorter than what is turned.
#[must_use]
pub fn rotated(rope: &Rope, difference: i32, row: &[f64]) -> Vec<f64> {
    let mut out = row.to_vec();
    for (i, &f) in rope.frequencies.iter().enumerate() {
        let ([a, b], angle) = (rope.pair(i), f64::from(difference) * f64::from(f));
        out[a] = row[a] * angle.cos() - row[b] * angle.sin();
        out[b] = row[b] * angle.cos() + row[a] * angle.sin();
    }
    out
}
