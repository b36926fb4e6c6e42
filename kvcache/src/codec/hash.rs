//! The payload's checksums. They find accidents, not forgers: sealing is for those.

use std::hash::Hasher;

use twox_hash::xxhash3_64::{DEFAULT_SECRET_LENGTH, RawHasher, SecretBuffer};
use twox_hash::{XxHash3_64, XxHash3_128};

/// Odd, with bits all over: neighbouring indexes get numbers far apart.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// xxh3-64 of a section's stored bytes, xored with a number made of the key and the section's place
/// in the directory: a section of another block or place fails. Sections are short, and a seeded
/// xxh3 would make a secret of its own for each.
pub(super) fn section(seed: u64, index: u32, stored: &[u8]) -> u64 {
    placed(seed, index, tile(stored))
}

/// [`section`] of bytes whose xxh3-64 is known.
pub(super) fn placed(seed: u64, index: u32, hash: u64) -> u64 {
    let place = (u64::from(index) + 1).wrapping_mul(SPREAD);
    hash ^ mixed(seed ^ place)
}

/// xxh3-64 of a tile.
pub(crate) fn tile(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Every bit depends on every bit (the finalizer of `SplitMix64`).
fn mixed(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// xxh3-128 of token ids and directory, for the header.
pub(super) fn prefix(seed: u64, bytes: &[u8]) -> [u8; 16] {
    XxHash3_128::oneshot_with_seed(seed, bytes).to_le_bytes()
}

/// Checksum of a block: xxh3-64 of the xxh3-64 of its tiles, in the order of sections. Fed tile by tile,
/// each while it is in the CPU's cache.
pub(crate) struct Decoded(RawHasher<&'static [u8; DEFAULT_SECRET_LENGTH]>);

impl Decoded {
    pub(crate) fn new() -> Decoded {
        Decoded(RawHasher::new(SecretBuffer::default()))
    }

    pub(crate) fn update(&mut self, tile: &[u8]) {
        self.add(self::tile(tile));
    }

    /// A tile by its checksum.
    pub(crate) fn add(&mut self, tile: u64) {
        self.0.write(&tile.to_le_bytes());
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0.finish()
    }
}
