//! A prefix store with small blocks whose bytes follow from their number and tenant.

#![allow(dead_code, clippy::allow_attributes, reason = "shared by several tests")]

use std::ops::Range;
use std::sync::Arc;

use kvist::format::{BlockDType, BlockLayout};
use kvist::vfs::Vfs;
use kvist::{
    BlockRows, BlockRowsMut, DiskOptions, MissReason, Prefix, PrefixBuilder, PrefixStore, Refused,
    Restored, Space, SpaceOptions, Strides,
};

pub(crate) const TOKENS: usize = 16;
pub(crate) const MODEL: [u8; 32] = [3; 32];
pub(crate) const SEGMENT: u64 = 64 << 10;

pub(crate) fn layout() -> BlockLayout {
    BlockLayout::new(BlockDType::U8, TOKENS as u32, 2, 2, 16)
}

/// How many times the usual scope is wanted.
pub(crate) fn soak() -> u64 {
    std::env::var("KVIST_SOAK").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

/// The seeds of a test: `KVIST_SEED`, or so many.
pub(crate) fn seeds(usual: u64) -> Range<u64> {
    match std::env::var("KVIST_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..usual * soak(),
    }
}

/// Numbers to choose by.
pub(crate) enum Numbers {
    /// They look random.
    Random(u64),
    /// Those of a string of bytes, then zeros.
    Given(std::vec::IntoIter<u8>),
}

impl Numbers {
    pub(crate) fn new(seed: u64) -> Numbers {
        Numbers::Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66_D154_21C5)
    }

    pub(crate) fn given(bytes: Vec<u8>) -> Numbers {
        Numbers::Given(bytes.into_iter())
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        match self {
            Numbers::Random(n) => {
                *n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
                (*n >> 33) % bound
            }
            Numbers::Given(bytes) => {
                let more = if bound <= 256 { 1 } else { 3 };
                bytes.take(more).fold(0, |n, byte| n << 8 | u64::from(byte)) % bound
            }
        }
    }

    /// Whether there are no more.
    pub(crate) fn are_over(&self) -> bool {
        matches!(self, Numbers::Given(bytes) if bytes.as_slice().is_empty())
    }
}

/// Settings over a simulated disk, without threads.
pub(crate) fn simulated(vfs: impl Vfs, segments: u64) -> PrefixBuilder {
    let options = DiskOptions::new("/store", segments * SEGMENT).segment_bytes(SEGMENT);
    PrefixStore::builder().host_bytes(1 << 20).disk(options).vfs(Arc::new(vfs)).threads(false)
}

pub(crate) fn salt(tenant: u32) -> [u8; 8] {
    [b't', b'e', b'n', b'a', b'n', b't', b'-', b'0' + tenant as u8]
}

pub(crate) fn space(store: &PrefixStore, tenant: u32) -> Space {
    store.space(SpaceOptions::new(MODEL, layout()).salt(&salt(tenant))).unwrap()
}

/// The block's only token stream.
pub(crate) fn tokens(n: u32) -> Vec<u32> {
    (0..TOKENS as u32).map(|i| n * 100 + i).collect()
}

pub(crate) fn bytes_of(tenant: u32, n: u32) -> Vec<u8> {
    let mut bytes = vec![0; layout().bytes()];
    blake3::Hasher::new()
        .update(&[tenant as u8])
        .update(&n.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

pub(crate) fn prefix(space: &Space, n: u32) -> Prefix {
    space.prefix(&tokens(n)).unwrap()
}

/// Puts block `n`, in the order of tokens first.
pub(crate) fn put(space: &Space, tenant: u32, n: u32) -> Result<(), Refused> {
    let (layout, bytes) = (layout(), bytes_of(tenant, n));
    let rows = BlockRows::new(&layout, &bytes, Strides::canonical(&layout)).unwrap();
    space.put(&prefix(space, n), 0, &[rows]).unwrap()[0]
}

/// Gets block `n`; a block that is handed out and is not right panics.
pub(crate) fn get(space: &Space, tenant: u32, n: u32) -> Result<(), MissReason> {
    let layout = layout();
    let mut out = vec![0xEE; layout.bytes()];
    let restored = restore(space, n, &mut out);
    match restored.miss {
        None => {
            assert_eq!(restored.blocks, 1);
            assert!(out == bytes_of(tenant, n), "block {n} of tenant {tenant} came back wrong");
            Ok(())
        }
        Some(reason) => {
            assert_eq!(restored.blocks, 0, "a miss that counts as restored");
            Err(reason)
        }
    }
}

pub(crate) fn restore(space: &Space, n: u32, out: &mut [u8]) -> Restored {
    let layout = layout();
    let mut rows = [BlockRowsMut::new(&layout, out, Strides::canonical(&layout)).unwrap()];
    space.get(&prefix(space, n), 0..1, &mut rows).unwrap()
}

/// Gets one layer of block `n`.
pub(crate) fn get_layer(
    space: &Space,
    tenant: u32,
    n: u32,
    layer: usize,
) -> Result<(), MissReason> {
    let layout = layout();
    let mut out = vec![0xEE; layout.bytes()];
    let mut rows = [BlockRowsMut::new(&layout, &mut out, Strides::canonical(&layout)).unwrap()];
    let restored = space.get_layers(&prefix(space, n), 0..1, layer..layer + 1, &mut rows).unwrap();
    if let Some(reason) = restored.miss {
        return Err(reason);
    }
    let half = layout.bytes() / 2;
    let range = layer * half..(layer + 1) * half;
    assert!(
        out[range.clone()] == bytes_of(tenant, n)[range],
        "layer {layer} of block {n} is wrong"
    );
    let other = (1 - layer) * half..(2 - layer) * half;
    assert!(out[other].iter().all(|b| *b == 0xEE), "the other layer was written to");
    Ok(())
}
