//! Tiles of several characters, and the checks that every one of them has to pass.

use half::{bf16, f16};
use kvist_kernels::entropy::Expw;
use kvist_kernels::{DType, Isa};

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Close to normal, with an own size for each channel.
    pub(crate) fn normal(&mut self, channel: usize) -> f32 {
        let sum: f32 = (0..6).map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32).sum();
        (sum - 3.0) * 2f32.powi((channel * 7 % 11) as i32 - 5)
    }
}

/// What is in a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    /// Any bits: hardly ever shrinks.
    Noise,
    Constant,
    /// Every second row is zero.
    HalfEmpty,
    /// Normal, but every sixteenth row is noise: runs of escapes.
    WildRows,
    /// Normal with a few special values.
    Specials,
}

pub(crate) const KINDS: [Kind; 6] =
    [Kind::Normal, Kind::Noise, Kind::Constant, Kind::HalfEmpty, Kind::WildRows, Kind::Specials];

const SPECIALS: [u32; 8] = [
    0,
    0x8000_0000, // -0
    0x7f80_0000, // infinity
    0xff80_0000,
    0x7fc1_2345, // NaNs with payloads
    0xffa5_4321,
    0x0001_0000, // subnormal
    0x7f7f_ffff, // largest
];

pub(crate) fn narrow(dtype: DType, x: f32) -> Vec<u8> {
    match dtype {
        DType::F32 => x.to_ne_bytes().to_vec(),
        DType::F16 => f16::from_f32(x).to_ne_bytes().to_vec(),
        DType::Bf16 => bf16::from_f32(x).to_ne_bytes().to_vec(),
    }
}

pub(crate) fn tile(plan: &Expw, kind: Kind, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    let mut tile = Vec::with_capacity(plan.decoded_len());
    for token in 0..plan.tokens() {
        for channel in 0..plan.dim() {
            let x = rng.normal(channel);
            let noise = rng.bits();
            let x = match kind {
                Kind::Normal => x,
                Kind::Constant => 1.5,
                Kind::HalfEmpty if token % 2 == 1 => 0.0,
                Kind::Specials if noise.is_multiple_of(37) => {
                    f32::from_bits(SPECIALS[noise as usize / 37 % 8])
                }
                Kind::Noise => f32::from_bits(noise as u32),
                Kind::WildRows if token % 16 == 3 => f32::from_bits(noise as u32),
                _ => x,
            };
            tile.extend(narrow(plan.dtype(), x));
        }
    }
    tile
}

/// Encodes at every level, compares, decodes at every level. Returns the encoded tile.
pub(crate) fn check(plan: &Expw, tile: &[u8]) -> Option<Vec<u8>> {
    let encode = |isa| {
        let mut out = vec![0xa5u8; plan.max_encoded() + 3];
        let len = plan.encode(isa, tile, &mut out);
        assert_eq!(out[plan.max_encoded()..], [0xa5; 3], "written beyond the buffer");
        len.map(|len| out[..len].to_vec())
    };
    let oracle = encode(Isa::Generic);
    for isa in Isa::available() {
        assert!(encode(isa) == oracle, "{plan:?} at {}", isa.name());
    }
    let coded = oracle?;
    assert!(coded.len() < plan.decoded_len());
    for isa in Isa::available() {
        let mut back = vec![0x5au8; plan.decoded_len()];
        plan.decode(isa, &coded, &mut back).expect("what was just encoded");
        assert!(back == tile, "{plan:?} decoded at {}", isa.name());
    }
    Some(coded)
}

/// Decodes at every level: all must say the same, and tiles must be equal.
pub(crate) fn agree(plan: &Expw, coded: &[u8]) -> Option<Vec<u8>> {
    let decode = |isa| {
        let mut tile = vec![0u8; plan.decoded_len()];
        plan.decode(isa, coded, &mut tile).ok().map(|()| tile)
    };
    let oracle = decode(Isa::Generic);
    for isa in Isa::available() {
        assert!(decode(isa) == oracle, "{plan:?} at {}", isa.name());
    }
    oracle
}
