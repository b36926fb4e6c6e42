//! Round trips, damage, hostile bytes and golden files, over whole records.

mod damage;
mod golden;
mod round_trip;

use super::*;
use crate::format::{BlockDType, BlockKey, BlockLayout, FLAG_TOKENS, HEADER_BYTES, Header, SECTOR};

/// Pseudo-random numbers, the same on every machine.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// A block whose values are as a cache's are: a few exponents, any sign and mantissa; in every
/// eighth row anything at all, NaN and infinities included.
pub(super) fn block(layout: &BlockLayout, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut out = Vec::with_capacity(layout.bytes());
    while out.len() < layout.bytes() {
        let wild = random.next().is_multiple_of(8);
        for _ in 0..64 {
            let bits = random.next();
            let value = (bits % 4096) as f32 / 1024.0 - 2.0;
            match layout.dtype {
                BlockDType::F32 if !wild => out.extend(value.to_le_bytes()),
                BlockDType::F16 if !wild => out.extend(half::f16::from_f32(value).to_le_bytes()),
                BlockDType::Bf16 if !wild => out.extend(half::bf16::from_f32(value).to_le_bytes()),
                _ => out.extend(&bits.to_le_bytes()[..layout.dtype.size()]),
            }
        }
    }
    out.truncate(layout.bytes());
    out
}

/// An encoded block with its header, as the disk tier writes it.
pub(super) struct Record {
    pub(super) plan: Plan,
    pub(super) header: Header,
    pub(super) bytes: Vec<u8>,
}

pub(super) fn key(n: u8) -> BlockKey {
    BlockKey([n; 32])
}

pub(super) fn record(
    layout: &BlockLayout,
    codec: &Codec,
    tokens: Option<&[u32]>,
    block: &[u8],
) -> Record {
    let plan = Plan::new(layout, codec).unwrap();
    let most = plan.max_encoded(tokens.map_or(0, <[u32]>::len));
    let mut bytes = vec![0xAA; most];
    let source = Canonical::new(layout, block);
    let encoded = plan.encode(&key(7), tokens, &source, &mut bytes, false);
    let header = Header {
        flags: if tokens.is_some() { FLAG_TOKENS } else { 0 },
        loss_class: codec.loss_class(),
        sequence: 1,
        stored_len: encoded.stored_len,
        decoded_len: layout.bytes() as u32,
        key: key(7),
        model: [1; 32],
        layout: layout.fingerprint(),
        payload_hash: encoded.payload_hash,
        decoded_hash: encoded.decoded_hash,
        segment: 3,
        position: 8,
        codec: plan.codec().id(),
        codec_version: CODEC_VERSION,
        tokens: layout.block_tokens,
        tenant: [0; 16],
        written: 1_700_000_000,
    };
    assert_eq!(encoded.used, header.sectors() as usize * SECTOR);
    bytes.truncate(encoded.used);
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    Record { plan, header, bytes }
}

impl Record {
    /// Decodes strictly.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, crate::format::Bad> {
        self.decode_as(bytes, &self.header, true)
    }

    pub(super) fn decode_as(
        &self,
        bytes: &[u8],
        header: &Header,
        strict: bool,
    ) -> Result<Vec<u8>, crate::format::Bad> {
        let mut out = vec![0x55; self.plan.layout().bytes()];
        let mut sink = CanonicalMut::new(self.plan.layout(), &mut out);
        self.plan.decode_block(bytes, header, &mut sink, strict)?;
        Ok(out)
    }
}
