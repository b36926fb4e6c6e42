//! What goes in comes out, at every level.

use half::bf16;
use kvist_kernels::entropy::{Expw, TOKENS_MAX};
use kvist_kernels::{DIM_MAX, DType, Error, Isa};
use proptest::prelude::*;

use crate::common::{KINDS, Kind, Rng, agree, check, tile};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn tiles_of_any_shape_come_back(
        (dtype, kind) in (0..3usize, 0..KINDS.len()),
        tokens in prop_oneof![1..=4usize, 1..=80usize, Just(16), Just(64)],
        dim in prop_oneof![1..=9usize, 1..=200usize, Just(64), Just(128), Just(576)],
        seed: u64,
    ) {
        let plan = Expw::new(DType::ALL[dtype], tokens, dim).unwrap();
        check(&plan, &tile(&plan, KINDS[kind], seed));
    }
}

#[test]
fn shapes_at_the_edges_come_back() {
    let shapes = [
        (1, 1),
        (1, 63),
        (1, 64),
        (1, 65),
        (2, 32),
        (64, 1),
        (63, 1),
        (65, 1),
        (3, 43),
        (64, 64),
        (16, 64),
        (64, 128),
        (1, DIM_MAX),
        (7, DIM_MAX),
        (37, 63),
        (37, 65),
        (5, 127),
        (113, 129),
    ];
    for (dtype, kind) in DType::ALL.into_iter().flat_map(|d| KINDS.map(|k| (d, k))) {
        for (tokens, dim) in shapes {
            let plan = Expw::new(dtype, tokens, dim).unwrap();
            check(&plan, &tile(&plan, kind, 7));
        }
    }
}

#[test]
fn tiles_with_wide_counts_come_back() {
    for dtype in DType::ALL {
        // 16-bit counts end between these two.
        for (tokens, dim) in [(4095, 16), (TOKENS_MAX, 16), (TOKENS_MAX, 17), (900, 73)] {
            let plan = Expw::new(dtype, tokens, dim).unwrap();
            assert!(check(&plan, &tile(&plan, Kind::WildRows, 3)).is_some());
        }
    }
}

#[test]
fn the_largest_tile_comes_back() {
    let plan = Expw::new(DType::Bf16, TOKENS_MAX, DIM_MAX).unwrap();
    assert!(check(&plan, &tile(&plan, Kind::Normal, 11)).is_some());
}

/// One channel per exponent, one row per sign and mantissa.
#[test]
fn every_pattern_of_16_bits_comes_back() {
    for (dtype, exponents, mantissa) in [(DType::Bf16, 256u32, 7), (DType::F16, 32, 10)] {
        let rows = 1u32 << (mantissa + 1);
        let plan = Expw::new(dtype, rows as usize, exponents as usize).unwrap();
        let mut bytes = Vec::new();
        for row in 0..rows {
            for e in 0..exponents {
                let sign = (row >> mantissa) << 15;
                let bits = sign | e << mantissa | row & ((1 << mantissa) - 1);
                bytes.extend((bits as u16).to_ne_bytes());
            }
        }
        let coded = check(&plan, &bytes).unwrap();
        // Every exponent is its channel's base: two bits and the rest.
        assert!(coded.len() * 8 < plan.values() * (if mantissa == 7 { 11 } else { 14 }));
    }
}

/// Every pattern once among ordinary values, most of them as escapes.
#[test]
fn every_pattern_of_16_bits_escapes() {
    const EACH: u32 = 64;
    for dtype in [DType::Bf16, DType::F16] {
        let plan = Expw::new(dtype, 64, 64).unwrap();
        let mut bytes = tile(&plan, Kind::Normal, 5);
        let (ordinary, mut rng) = (bytes.clone(), Rng(1));
        for first in (0..=u32::from(u16::MAX)).step_by(EACH as usize) {
            bytes.copy_from_slice(&ordinary);
            for bits in first..first + EACH {
                let at = 64 * (bits - first) as usize + rng.below(64);
                // An odd multiplier: neighbours in the tile have different exponents.
                let bits = (bits as u16).wrapping_mul(0x9e37);
                bytes[2 * at..2 * at + 2].copy_from_slice(&bits.to_ne_bytes());
            }
            let mut out = vec![0u8; plan.max_encoded()];
            let mut oracle = Vec::new();
            for isa in Isa::available() {
                let len = plan.encode(isa, &bytes, &mut out).unwrap();
                if oracle.is_empty() {
                    oracle.extend_from_slice(&out[..len]);
                }
                assert!(out[..len] == oracle);
            }
            assert!(agree(&plan, &oracle).unwrap() == bytes);
        }
    }
}

#[test]
fn noise_does_not_shrink() {
    for dtype in DType::ALL {
        let plan = Expw::new(dtype, 64, 64).unwrap();
        assert_eq!(check(&plan, &tile(&plan, Kind::Noise, 2)), None, "{dtype}");
        // Neither does a tile that is all header.
        let plan = Expw::new(dtype, 1, 1).unwrap();
        assert_eq!(check(&plan, &tile(&plan, Kind::Normal, 2)), None, "{dtype}");
    }
}

#[test]
fn ordinary_tiles_shrink_as_much_as_promised() {
    let ratio = |dtype, kind| {
        let plan = Expw::new(dtype, 64, 128).unwrap();
        plan.decoded_len() as f64 / check(&plan, &tile(&plan, kind, 3)).unwrap().len() as f64
    };
    assert!(ratio(DType::Bf16, Kind::Normal) > 1.46);
    assert!(ratio(DType::F16, Kind::Normal) > 1.16);
    assert!(ratio(DType::F32, Kind::Normal) > 1.19);
    assert!(ratio(DType::Bf16, Kind::Constant) > 1.59);
}

/// One infinity in every channel does not move the bases.
#[test]
fn one_outlier_per_channel_costs_its_escape_only() {
    let plan = Expw::new(DType::Bf16, 64, 64).unwrap();
    let mut bytes = tile(&plan, Kind::Normal, 9);
    let plain = check(&plan, &bytes).unwrap().len();
    for channel in 0..64 {
        let at = 2 * (channel * 64 + channel);
        bytes[at..at + 2].copy_from_slice(&bf16::INFINITY.to_bits().to_ne_bytes());
    }
    let with = check(&plan, &bytes).unwrap().len();
    assert!(with <= plain + 64 * 2, "{plain} became {with}");
}

/// The bytes of a tile worked out by hand: the layout of `docs/formats.md`.
#[test]
fn the_layout_is_the_documented_one() {
    let plan = Expw::new(DType::Bf16, 4, 8).unwrap();
    // Exponent 127 everywhere (1.0), but in channel 1: 126 throughout; in row 2, channels 2 to 5:
    // distances 3, -1, 6, and an escape (infinity); row 3, channel 0: 1 with a sign and a mantissa.
    let mut values = [bf16::from_f32(1.0).to_bits(); 32];
    for row in values.chunks_mut(8) {
        row[1] = bf16::from_f32(0.5).to_bits();
    }
    values[18] = bf16::from_f32(0.125).to_bits();
    values[19] = bf16::from_f32(2.0).to_bits();
    values[20] = bf16::from_f32(1.0 / 64.0).to_bits();
    values[21] = bf16::INFINITY.to_bits();
    values[24] = bf16::from_f32(-0.75).to_bits();
    let tile: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
    let mut expected = vec![126, 1]; // smallest base, width
    expected.push(0b1111_1101); // bases above the smallest
    expected.extend([4, 0, 2, 0, 1, 0]); // values passed on to levels 2 and 3 and to the escapes
    expected.extend([0, 0, 0b0011_1100, 0b0000_0001]); // level 1, low bits
    expected.extend([0, 0, 0b0011_1100, 0]); // level 1, high bits
    expected.extend([0b1110, 0b1100]); // level 2: codes 0, 1, 3, 3
    expected.extend([0b11, 0b10]); // level 3: codes 1, 3
    expected.push(128); // the escape: 127 - 255
    let mut rests = [0u8; 32];
    rests[24] = 0x40 << 1 | 1; // mantissa, then sign
    expected.extend(rests);
    assert_eq!(check(&plan, &tile), Some(expected));
}

#[test]
fn shapes_outside_the_limits_are_errors() {
    for (tokens, dim) in [(0, 64), (TOKENS_MAX + 1, 64), (64, 0), (64, DIM_MAX + 1)] {
        assert!(matches!(Expw::new(DType::Bf16, tokens, dim), Err(Error::Range { .. })));
    }
    let plan = Expw::new(DType::Bf16, 64, 64).unwrap();
    let error = plan.decode(Isa::Generic, &[], &mut [0; 8191]).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
}
