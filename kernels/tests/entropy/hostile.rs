//! Encoded tiles from elsewhere: damaged, cut short, made up.

use kvist_kernels::entropy::Expw;
use kvist_kernels::{DType, Error, Isa};

use crate::common::{KINDS, Kind, Rng, agree, check, tile};

fn coded(dtype: DType, tokens: usize, dim: usize, kind: Kind) -> (Expw, Vec<u8>) {
    let plan = Expw::new(dtype, tokens, dim).expect("a shape within the limits");
    let coded = check(&plan, &tile(&plan, kind, 4)).expect("a tile that shrinks");
    (plan, coded)
}

#[test]
fn a_tile_cut_short_or_too_long_is_an_error() {
    for dtype in DType::ALL {
        for (tokens, dim) in [(9, 40), (16, 64)] {
            let (plan, coded) = coded(dtype, tokens, dim, Kind::Specials);
            for len in 0..coded.len() {
                // In a buffer of its own, so that a checker of memory would see reads beyond it.
                let short: Vec<u8> = coded.iter().copied().take(len).collect();
                assert_eq!(agree(&plan, &short), None, "{len} of {}", coded.len());
            }
            let mut long = coded.clone();
            for extra in [1, 7, 64, 5000] {
                long.resize(coded.len() + extra, 0);
                assert_eq!(agree(&plan, &long), None);
            }
        }
    }
}

#[test]
fn any_flipped_bit_gives_an_error_or_some_tile() {
    for dtype in DType::ALL {
        for (tokens, dim) in [(5, 19), (8, 40), (9, 32), (16, 64)] {
            let (plan, mut coded) = coded(dtype, tokens, dim, Kind::Specials);
            let right = agree(&plan, &coded);
            for bit in 0..8 * coded.len() {
                coded[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(agree(&plan, &coded), right, "bit {bit} of {plan:?} does not matter");
                coded[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let (plan, coded) = coded(DType::Bf16, 16, 64, Kind::Specials);
    let mut tile = vec![0; plan.decoded_len()];
    let mut message = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bad = coded.clone();
        change(&mut bad);
        let error = plan.decode(Isa::level(), &bad, &mut tile).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }));
        error.to_string()
    };
    assert_eq!(message(&|c| c.truncate(3)), "corrupt tile: length");
    assert_eq!(message(&|c| c[1] = 9), "corrupt tile: bases");
    assert_eq!(message(&|c| c[2 + 8 * 8 + 7] = 0xff), "corrupt tile: counts");
}

/// Cheap iterations over small tiles: parts of true tiles put together anew, random bytes and random
/// headers. Whatever comes, all levels agree.
#[test]
fn made_up_tiles_never_reach_outside() {
    let mut rng = Rng(99);
    let shapes = [(1, 1), (1, 64), (2, 64), (3, 43), (16, 24), (5, 64), (2, 130)];
    let mut decoded = 0;
    for round in 0..if cfg!(miri) { 50 } else { 100_000 } {
        let (tokens, dim) = shapes[rng.below(shapes.len())];
        let plan = Expw::new(DType::ALL[rng.below(3)], tokens, dim).unwrap();
        let mut bytes = seed(&plan, &mut rng, round);
        for _ in 0..rng.below(4) {
            mutate(&mut bytes, &mut rng);
        }
        decoded += usize::from(agree(&plan, &bytes).is_some());
    }
    assert!(decoded > 1000 || cfg!(miri), "only {decoded} made-up tiles decode");
}

fn seed(plan: &Expw, rng: &mut Rng, round: u64) -> Vec<u8> {
    let mut out = vec![0u8; plan.max_encoded()];
    let kind = KINDS[rng.below(KINDS.len())];
    let len = plan.encode(Isa::level(), &tile(plan, kind, round), &mut out);
    match len {
        Some(len) if rng.below(8) > 0 => out.truncate(len),
        _ => {
            out.truncate(rng.below(plan.decoded_len() + 64));
            out.iter_mut().for_each(|b| *b = rng.bits() as u8);
            // Headers that pass the first checks more often.
            out.iter_mut().skip(1).take(5).for_each(|b| *b &= 7);
        }
    }
    out
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.below(bytes.len());
    match rng.below(5) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.bits() as u8,
        2 => {
            let n = rng.below(16).min(bytes.len() - at);
            bytes[at..at + n].fill(0xff);
        }
        3 => {
            let to = rng.below(bytes.len());
            let n = rng.below(32).min(bytes.len() - at.max(to));
            bytes.copy_within(at..at + n, to);
        }
        _ => {
            // The length stays plausible: escapes are what is left over.
            let n = rng.below(9);
            bytes.splice(at..at, (0..n).map(|_| rng.bits() as u8));
        }
    }
}
