//! What a value is split into, and which code an exponent gets.

use crate::DType;

/// Distances `base - exponent` that each level has a code for, in the order of the codes 0, 1, 2.
/// Code 3 passes the value on to the next level, the last time to the escapes.
///
/// Exponents of numbers around zero fall off fast above their mode and halve below it. So the base is
/// close to the largest common exponent, and the one distance above it comes second.
pub(crate) const LEVELS: [[i8; 3]; 3] = [[0, 1, 2], [3, -1, 4], [5, 6, 7]];

/// Bases tried: the second largest exponent of a channel and the ones below it. On the models
/// measured, three would be as good as ten.
pub(crate) const CANDIDATES: usize = 4;

/// Cost of an escape in units of two bits: three codes and a byte.
const ESCAPE_COST: u8 = 7;

/// Index into the tables: distances from -1 on, and all others together.
#[inline(always)]
pub(crate) fn index(distance: u8) -> usize {
    usize::from(distance.wrapping_add(1).min(15))
}

/// The codes of each level by [`index`].
pub(crate) const CODES: [[u8; 16]; 3] = {
    let mut codes = [[3; 16]; 3];
    let mut i = 0;
    while i < 9 {
        codes[i / 3][(LEVELS[i / 3][i % 3] + 1) as usize] = (i % 3) as u8;
        i += 1;
    }
    codes
};

/// Costs in units of two bits for base `top - candidate`, by [`index`] of the distance from the top.
pub(crate) const COSTS: [[u8; 16]; CANDIDATES] = {
    let mut costs = [[ESCAPE_COST; 16]; CANDIDATES];
    let mut i = 0;
    while i < 9 * CANDIDATES {
        let (candidate, rank) = (i / 9, i % 9);
        let distance = LEVELS[rank / 3][rank % 3] as usize;
        costs[candidate][distance.wrapping_add(candidate + 1)] = (rank / 3 + 1) as u8;
        i += 1;
    }
    costs
};

/// What a distance costs less than an escape.
pub(crate) fn saved(distance: u8) -> u32 {
    u32::from(ESCAPE_COST - COSTS[0][index(distance)])
}

/// The largest exponent, that of infinity.
pub(crate) const fn exponent_max(dtype: DType) -> u8 {
    match dtype {
        DType::F16 => 31,
        DType::F32 | DType::Bf16 => 255,
    }
}

/// Bits of the rest, sign and mantissa, that go into bit planes.
pub(crate) const fn rest_planes(dtype: DType) -> usize {
    match dtype {
        DType::F16 => 3,
        DType::F32 | DType::Bf16 => 0,
    }
}

/// Whole bytes of the rest.
pub(crate) const fn rest_bytes(dtype: DType) -> usize {
    match dtype {
        DType::F16 | DType::Bf16 => 1,
        DType::F32 => 3,
    }
}

/// Exponent of one element, and the rest. The upper half of an f32 is treated like a bf16: its sign is
/// the lowest bit of its byte, so that exponent and byte make the word by one rotation.
pub(crate) fn split(dtype: DType, element: &[u8]) -> (u8, u32) {
    let half = |b: &[u8]| u16::from_ne_bytes([b[0], b[1]]);
    let turned = |bits: u16| (bits.rotate_left(1) >> 8, u32::from(bits.rotate_left(1) & 0xff));
    let (exponent, rest) = match dtype {
        DType::Bf16 => turned(half(element)),
        DType::F16 => {
            let bits = half(element);
            (bits >> 10 & 31, u32::from(bits >> 15 << 10 | bits & 0x3ff))
        }
        DType::F32 => {
            let bits = u32::from_ne_bytes([element[0], element[1], element[2], element[3]]);
            let (exponent, rest) = turned((bits >> 16) as u16);
            (exponent, rest << 16 | bits & 0xffff)
        }
    };
    (exponent as u8, rest)
}

/// Inverse of [`split`]; of an f16's exponent only five bits count.
pub(crate) fn join(dtype: DType, exponent: u8, rest: u32, element: &mut [u8]) {
    let exponent = u16::from(exponent);
    let turned = |rest: u32| (exponent << 8 | rest as u16).rotate_right(1);
    match dtype {
        DType::Bf16 => element.copy_from_slice(&turned(rest).to_ne_bytes()),
        DType::F16 => {
            let rest = rest as u16;
            let bits = rest >> 10 << 15 | (exponent & 31) << 10 | rest & 0x3ff;
            element.copy_from_slice(&bits.to_ne_bytes());
        }
        DType::F32 => {
            let bits = u32::from(turned(rest >> 16)) << 16 | rest & 0xffff;
            element.copy_from_slice(&bits.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_distance_has_one_code_or_none() {
        for distance in 0..=255u8 {
            let level = CODES.iter().position(|codes| codes[index(distance)] < 3);
            assert_eq!(level.is_some(), (-1..=7).contains(&(distance as i8)), "{distance}");
            if let Some(level) = level {
                let code = CODES[level][index(distance)];
                assert_eq!(LEVELS[level][usize::from(code)] as u8, distance);
                assert_eq!(usize::from(COSTS[0][index(distance)]), level + 1);
            }
            for (candidate, costs) in COSTS.iter().enumerate() {
                let from_top = distance.wrapping_add(candidate as u8);
                let expected = level.map_or(ESCAPE_COST, |level| level as u8 + 1);
                // Above the top only the one distance of the top itself is known.
                if (-1..=15).contains(&(from_top as i8)) {
                    assert_eq!(costs[index(from_top)], expected, "{distance} {candidate}");
                }
            }
        }
    }

    #[test]
    fn parts_join_to_the_same_bits() {
        for bits in 0..=u16::MAX {
            for dtype in [DType::Bf16, DType::F16] {
                let (e, rest) = split(dtype, &bits.to_ne_bytes());
                assert!(rest < 1 << (8 * rest_bytes(dtype) + rest_planes(dtype)));
                assert!(e <= exponent_max(dtype));
                let mut back = [0u8; 2];
                join(dtype, e, rest, &mut back);
                assert_eq!(u16::from_ne_bytes(back), bits);
            }
            let wide = u32::from(bits) << 16 | u32::from(!bits);
            let (e, rest) = split(DType::F32, &wide.to_ne_bytes());
            assert_eq!(u32::from(e), wide >> 23 & 255);
            let mut back = [0u8; 4];
            join(DType::F32, e, rest, &mut back);
            assert_eq!(u32::from_ne_bytes(back), wide);
        }
    }
}
