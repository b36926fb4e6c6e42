//! Codes of eight and four bits: within half a scale of what they stand for, whatever is in the rows.

use half::{bf16, f16};
use kvist_kernels::quant::{Bits, Quant};
use kvist_kernels::{Element, Tensor3, Tensor3Mut, reference};
use proptest::prelude::*;

const BITS: [Bits; 2] = [Bits::Eight, Bits::Four];

fn encode<T: Element>(quant: &Quant, rows: &[T]) -> (Vec<u8>, Vec<f16>) {
    let n = rows.len() / quant.dim();
    let view = Tensor3::contiguous(rows, [n, 1, quant.dim()]).expect("whole rows");
    let (mut codes, mut scales) =
        (vec![0; n * quant.code_bytes()], vec![f16::ZERO; n * quant.scales()]);
    quant.encode(&view, &mut codes, &mut scales).expect("shapes fit");
    (codes, scales)
}

fn decode<T: Element>(quant: &Quant, codes: &[u8], scales: &[f16]) -> Vec<T> {
    let n = codes.len() / quant.code_bytes();
    let mut rows = vec![T::from_f32(7.0); n * quant.dim()];
    let mut view = Tensor3Mut::contiguous(&mut rows, [n, 1, quant.dim()]).expect("whole rows");
    quant.decode(codes, scales, &mut view).expect("shapes fit");
    rows
}

/// Largest relative error of a rounding to the type.
fn rounding<T: Element>() -> f64 {
    [0.0, 2f64.powi(-11), 2f64.powi(-8)][T::DTYPE as usize]
}

/// Finite rows: every number within half a scale, the scale no larger than it has to be, zeros exact.
fn check<T: Element>(quant: &Quant, rows: &[T]) {
    let (codes, scales) = encode(quant, rows);
    let back: Vec<T> = decode(quant, &codes, &scales);
    for (i, row) in rows.chunks(quant.dim()).enumerate() {
        let codes = &codes[i * quant.code_bytes()..][..quant.code_bytes()];
        let scales = &scales[i * quant.scales()..][..quant.scales()];
        let exact = reference::dequantised(quant, codes, scales);
        for (g, x) in row.chunks(quant.group()).enumerate() {
            let x: Vec<f64> = x.iter().map(|x| f64::from(x.to_f32())).collect();
            let scale = f64::from(scales[g * quant.per_group()].to_f32());
            let (least, most) = x
                .iter()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
            let (span, steps) = match quant.bits() {
                Bits::Eight => (most.max(-least), 127.0),
                Bits::Four => (most - f64::from(scales[g * 2 + 1].to_f32()), 15.0),
            };
            assert!(scale * steps >= span * (1.0 - 1e-6), "{scale} {span}");
            assert!(scale * steps <= span * (1.0 + 1e-3) + steps * 6e-8, "{scale} {span}");
            for (j, &x) in x.iter().enumerate() {
                let at = g * quant.group() + j;
                let got = f64::from(back[i * quant.dim() + at].to_f32());
                assert!((exact[at] - x).abs() <= scale / 2.0 * (1.0 + 1e-5), "{x} {}", exact[at]);
                let size = exact[at].abs() + if T::DTYPE.size() == 2 { 1e-7 } else { 0.0 };
                assert!(
                    (got - exact[at]).abs() <= size * (rounding::<T>() + 1e-7),
                    "{got} {}",
                    exact[at]
                );
            }
        }
    }
}

fn all<T: Element>(dim: usize, numbers: &[f32]) {
    let rows: Vec<T> = numbers.iter().map(|&x| T::from_f32(x)).collect();
    for bits in BITS {
        for group in Quant::GROUPS {
            check(&Quant::new(bits, dim, group).expect("in range"), &rows);
        }
    }
}

proptest! {
    #[test]
    fn numbers_come_back_within_half_a_scale(
        dim in 1usize..200,
        rows in 1usize..4,
        size in prop_oneof![Just(1f32), Just(1e-6), Just(100.0), Just(3e-8)],
        shift in prop_oneof![Just(0f32), Just(5.0), Just(-300.0)],
        seed in any::<u32>(),
    ) {
        let number = |i: usize| {
            let bits = (i as u32 ^ seed).wrapping_mul(0x9e37_79b9).rotate_left(11).wrapping_mul(2_654_435_761);
            size * (bits as f32 / 2f32.powi(31) - 1.0) + shift
        };
        let numbers: Vec<f32> = (0..rows * dim).map(number).collect();
        all::<f32>(dim, &numbers);
        all::<f16>(dim, &numbers);
        all::<bf16>(dim, &numbers);
    }
}

#[test]
fn constants_and_zeros_are_kept() {
    for x in [0.0, -0.0, 1.5, -2.0, 6e-8] {
        all::<f32>(33, &[x; 33]);
        let quant = Quant::new(Bits::Four, 33, 16).expect("in range");
        let (codes, scales) = encode(&quant, &[x; 33]);
        assert!(
            decode::<f32>(&quant, &codes, &scales).iter().all(|&y| y == f16::from_f32(x).to_f32())
        );
    }
}

#[test]
fn what_is_not_finite_spoils_its_group_only() {
    for bits in BITS {
        for wild in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let quant = Quant::new(bits, 40, 16).expect("in range");
            let mut row: Vec<f32> = (0..40).map(|i| i as f32 / 7.0).collect();
            let clean = encode(&quant, &row);
            row[20] = wild;
            let (codes, scales) = encode(&quant, &row);
            let (back, want) =
                (decode::<f32>(&quant, &codes, &scales), decode::<f32>(&quant, &clean.0, &clean.1));
            for i in 0..40 {
                let own = (16..32).contains(&i);
                assert!(if own { back[i].is_nan() } else { back[i] == want[i] }, "{i} {}", back[i]);
            }
        }
    }
}

#[test]
fn what_scales_cannot_reach_is_cut_off() {
    let eight = Quant::new(Bits::Eight, 2, 16).expect("in range");
    let (codes, scales) = encode(&eight, &[1e30f32, -1e30]);
    assert_eq!(decode::<f32>(&eight, &codes, &scales), [127.0 * 65504.0, -127.0 * 65504.0]);
    // The largest f16 comes back as itself, not as an infinity.
    let (codes, scales) = encode(&eight, &[f16::MAX, f16::MIN]);
    assert_eq!(decode::<f16>(&eight, &codes, &scales), [f16::MAX, f16::MIN]);
    let four = Quant::new(Bits::Four, 2, 16).expect("in range");
    let (codes, scales) = encode(&four, &[-1e30f32, 1e30]);
    assert_eq!(decode::<f32>(&four, &codes, &scales), [-65504.0, 14.0 * 65504.0]);
    let (codes, scales) = encode(&four, &[1e30f32, 1e30]);
    assert_eq!(decode::<f32>(&four, &codes, &scales), [16.0 * 65504.0; 2]);
}

#[test]
fn rows_lie_as_documented() {
    let quant = Quant::new(Bits::Four, 5, 16).expect("in range");
    assert_eq!((quant.code_bytes(), quant.scales()), (3, 2));
    let (codes, scales) = encode(&quant, &[0.0f32, 15.0, 1.0, 2.0, 3.0]);
    assert_eq!((codes, scales), (vec![0xf0, 0x21, 0x03], vec![f16::ONE, f16::ZERO]));
    let quant = Quant::new(Bits::Eight, 3, 16).expect("in range");
    assert_eq!((quant.code_bytes(), quant.scales()), (3, 1));
    let (codes, scales) = encode(&quant, &[127.0f32, -127.0, 2.5]);
    assert_eq!((codes, scales), (vec![127, 129, 2], vec![f16::ONE]));
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let text = |r: Result<Quant, kvist_kernels::Error>| r.expect_err("out of range").to_string();
    assert_eq!(text(Quant::new(Bits::Eight, 0, 16)), "dim: expected 1..=576, found 0");
    let expected = "group: expected one of [16, 32, 64, 128], found 8";
    assert_eq!(text(Quant::new(Bits::Four, 8, 8)), expected);
    let quant = Quant::new(Bits::Four, 8, 16).expect("in range");
    let rows = [1f32; 16];
    let view = Tensor3::contiguous(&rows, [1, 2, 8]).expect("whole rows");
    let (mut codes, mut scales) = ([9u8; 8], [f16::ZERO; 3]);
    let error = quant.encode(&view, &mut codes, &mut scales).expect_err("too few scales");
    let expected = "dim, bytes of codes, scales: expected (8, 8, 4), found (8, 8, 3)";
    assert_eq!((error.to_string().as_str(), codes), (expected, [9; 8]));
}
