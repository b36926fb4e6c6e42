//! Records of every released version stay readable, and are written the same, byte for byte.
//!
//! `KVIST_WRITE_GOLDEN=1 cargo test -p kvist golden` writes the files anew: for a new version only.

use std::path::PathBuf;

use super::*;

fn check(codec: &Codec) {
    let layout = BlockLayout::new(BlockDType::Bf16, 16, 2, 1, 24);
    let tokens: Vec<u32> = (100..116).collect();
    let block = block(&layout, 42);
    let record = record(&layout, codec, Some(&tokens), &block);
    let name = format!("tests/data/codec/{}-v1.bin", codec.name());
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("KVIST_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &record.bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert!(golden == record.bytes, "{} is written differently now", path.display());
    let header = Header::decode(&golden, &crate::format::Limits::default()).unwrap();
    assert_eq!(record.decode_as(&golden, &header, true), Ok(block));
    assert_eq!(tokens_equal(&golden, &header, &tokens), Some(true));
}

#[test]
fn golden_raw() {
    check(&Codec::raw());
}

#[test]
fn golden_lossless() {
    check(&Codec::lossless());
}
