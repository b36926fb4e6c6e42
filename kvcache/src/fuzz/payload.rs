//! Blocks: hostile payloads, any content through every codec, hostile coded tiles.

use kvist_kernels::entropy::Expw;
use kvist_kernels::{DType, Isa};

use super::{Input, sign};
use crate::codec::{
    CODEC_VERSION, Canonical, CanonicalMut, Codec, Plan, tokens_equal, verify_stored,
};
use crate::format::{
    AttentionKind, BlockDType, BlockKey, BlockLayout, FLAG_TOKENS, HEADER_BYTES, Header, SECTOR,
};

/// Small blocks: floats, bytes, latent rows, keys and values of different lengths.
fn layout(number: u8) -> BlockLayout {
    match number % 4 {
        0 => BlockLayout::new(BlockDType::Bf16, 3, 2, 1, 16),
        1 => BlockLayout { dim_v: 5, ..BlockLayout::new(BlockDType::F32, 2, 1, 2, 9) },
        2 => BlockLayout::new(BlockDType::U8, 4, 1, 3, 8),
        _ => BlockLayout {
            dim_v: 0,
            attention: AttentionKind::Latent,
            ..BlockLayout::new(BlockDType::F16, 4, 2, 1, 24)
        },
    }
}

fn header(plan: &Plan, tokens: u32) -> Header {
    Header {
        flags: if tokens > 0 { FLAG_TOKENS } else { 0 },
        loss_class: 0,
        sequence: 1,
        stored_len: 0,
        decoded_len: plan.layout().bytes() as u32,
        key: BlockKey([7; 32]),
        model: [1; 32],
        layout: *plan.fingerprint(),
        payload_hash: [0; 16],
        decoded_hash: 0,
        segment: 1,
        position: 8,
        codec: plan.codec().id(),
        codec_version: CODEC_VERSION,
        tokens,
        tenant: [0; 16],
        written: 0,
    }
}

fn plan(number: u8, codec: &Codec) -> Plan {
    Plan::new(&layout(number), codec).expect("a layout that is possible")
}

/// A record's bytes behind its header, whatever they are.
pub fn payload(data: &[u8]) {
    let mut input = Input(data);
    let (flags, number) = (input.byte(), input.byte());
    let plan = plan(number, &Codec::lossless());
    let mut header = header(&plan, u32::from(flags >> 1 & 3));
    let tail = input.0;
    header.stored_len = tail.len().saturating_sub(header.token_bytes()) as u32;
    let mut record = header.encode().to_vec();
    record.extend(tail);
    record.resize(record.len().max(header.sectors() as usize * SECTOR), 0);
    if flags & 1 == 1 {
        sign::record(&mut record);
        header.payload_hash.copy_from_slice(&record[128..144]);
    }
    let mut out = vec![0; plan.layout().bytes()];
    let stored = verify_stored(&record, &header, true);
    let mut decode = |header: &Header| {
        plan.decode_block(&record, header, &mut CanonicalMut::new(plan.layout(), &mut out), true)
    };
    let decoded = decode(&header);
    assert!(decoded.is_err() || stored.is_ok(), "served, though {stored:?}");
    let _ = tokens_equal(&record, &header, &[1, 2]);
}

/// A block with any content, through every codec and back.
pub fn block(data: &[u8]) {
    let mut input = Input(data);
    let (number, tokens) = (input.byte(), u32::from(input.byte() % 4));
    for codec in [Codec::raw(), Codec::lossless()] {
        let plan = plan(number, &codec);
        let content = plan.layout().bytes();
        let block: Vec<u8> =
            input.0.iter().copied().chain([0].into_iter().cycle()).take(content).collect();
        let ids: Vec<u32> = (0..tokens).collect();
        let mut record = vec![0xAA; plan.max_encoded(ids.len())];
        let source = Canonical::new(plan.layout(), &block);
        let stored = (tokens > 0).then_some(&ids[..]);
        let encoded = plan.encode(&BlockKey([7; 32]), stored, &source, &mut record, false);
        let mut header = header(&plan, tokens);
        (header.stored_len, header.payload_hash) = (encoded.stored_len, encoded.payload_hash);
        header.decoded_hash = encoded.decoded_hash;
        record.truncate(encoded.used);
        record[..HEADER_BYTES].copy_from_slice(&header.encode());
        assert_eq!(verify_stored(&record, &header, true), Ok(()));
        let mut out = vec![0x55; content];
        let mut sink = CanonicalMut::new(plan.layout(), &mut out);
        assert_eq!(plan.decode_block(&record, &header, &mut sink, true), Ok(()));
        assert!(out == block, "{codec:?} does not give back what it was given");
    }
}

/// Coded tiles: hostile ones decode the same at every level, others to what they were.
pub fn expw(data: &[u8]) {
    let mut input = Input(data);
    let dtype = [DType::F32, DType::F16, DType::Bf16][usize::from(input.byte() % 3)];
    let (tokens, dim) = (1 + usize::from(input.byte() % 80), 1 + usize::from(input.byte() % 80));
    let expw = Expw::new(dtype, tokens, dim).expect("a tile that is possible");
    let len = expw.decoded_len();
    let mut first: Option<(bool, Vec<u8>)> = None;
    for isa in Isa::available() {
        let mut tile = vec![0; len];
        let right = expw.decode(isa, input.0, &mut tile).is_ok();
        if !right {
            tile.clear();
        }
        let (was, bytes) = first.get_or_insert((right, tile.clone()));
        assert!(*was == right && *bytes == tile, "{} decodes otherwise", isa.name());
    }
    let tile: Vec<u8> = input.0.iter().copied().chain([0].into_iter().cycle()).take(len).collect();
    let mut coded = vec![0; expw.max_encoded()];
    let Some(used) = expw.encode(Isa::level(), &tile, &mut coded) else { return };
    let mut out = vec![0; len];
    assert_eq!(expw.decode(Isa::level(), &coded[..used], &mut out), Ok(()));
    assert!(out == tile, "a tile that does not come back");
}
