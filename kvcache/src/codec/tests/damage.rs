use proptest::prelude::*;

use super::*;
use crate::format::{Bad, FLAG_SEALED, FLAG_TOMBSTONE};

const CODECS: [fn() -> Codec; 2] = [Codec::raw, Codec::lossless];

/// A small record with token ids, and the block it holds.
fn small(codec: &Codec) -> (Record, Vec<u8>) {
    let layout = BlockLayout::new(BlockDType::Bf16, 3, 2, 1, 16);
    let block = block(&layout, 11);
    (record(&layout, codec, Some(&[1, 2, 3]), &block), block)
}

/// Writes a directory's checksum anew, as somebody would who wants to be believed.
fn resign(record: &mut Record) {
    let end = Directory::end(&record.bytes, &record.header).unwrap();
    let hash = hash::prefix(record.header.key.seed(), &record.bytes[HEADER_BYTES..end]);
    record.header.payload_hash = hash;
}

/// Where the entry of a section stands in [`small`]'s records.
fn entry(index: usize) -> usize {
    HEADER_BYTES + 3 * 4 + 16 + index * 24
}

#[test]
fn every_flipped_bit_is_found() {
    for codec in CODECS {
        let (record, block) = small(&codec());
        let used = record.header.used_bytes();
        for bit in HEADER_BYTES * 8..record.bytes.len() * 8 {
            let mut bytes = record.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(record.decode(&bytes).is_err(), "bit {bit}");
            assert!(verify_stored(&bytes, &record.header, true).is_err(), "bit {bit}");
            // A reader that does not look at padding is told of damage, or gets the right block.
            let lenient = record.decode_as(&bytes[..used], &record.header, false);
            assert!(lenient.is_err() || lenient.unwrap() == block, "bit {bit}");
        }
    }
}

#[test]
fn every_truncation_is_found() {
    for codec in CODECS {
        let (record, _) = small(&codec());
        for len in 0..record.bytes.len() {
            assert!(record.decode(&record.bytes[..len]).is_err(), "{len} bytes");
        }
        for len in 0..record.header.used_bytes() {
            let cut = &record.bytes[..len];
            assert_eq!(record.decode_as(cut, &record.header, false), Err(Bad::Short));
            assert_eq!(verify_stored(cut, &record.header, false), Err(Bad::Short));
        }
    }
}

#[test]
fn a_wrong_key_a_wrong_layout_and_a_sealed_payload_are_refused() {
    let (record, _) = small(&Codec::lossless());
    let with = |change: fn(&mut Header)| {
        let mut header = record.header;
        change(&mut header);
        record.decode_as(&record.bytes, &header, true).unwrap_err()
    };
    assert_eq!(with(|h| h.key = key(8)), Bad::Checksum);
    assert_eq!(with(|h| h.layout = [0; 32]), Bad::Field);
    assert_eq!(with(|h| h.decoded_len += 1), Bad::Field);
    assert_eq!(with(|h| h.decoded_hash ^= 1), Bad::Checksum);
    assert_eq!(with(|h| h.flags |= FLAG_SEALED), Bad::Unsupported);
    assert_eq!(with(|h| h.flags = FLAG_TOMBSTONE), Bad::Field);
    assert_eq!(with(|h| h.stored_len += 1), Bad::Field);
    assert_eq!(with(|h| h.stored_len = 15), Bad::Field);
}

#[test]
fn a_layout_of_the_same_length_is_another_layout() {
    let (mut record, _) = small(&Codec::raw());
    let layout = record.plan.layout().clone();
    for other in [
        BlockLayout { dtype: BlockDType::F16, ..layout.clone() },
        BlockLayout { layers: 0..1, kv_heads: 0..2, ..layout.clone() },
        BlockLayout { dim_k: 8, dim_v: 24, ..layout },
    ] {
        let plan = Plan::new(&other, &Codec::raw()).unwrap();
        assert_eq!(Directory::parse(&record.bytes, &record.header, &plan), Err(Bad::Field));
        // Even a header that claims the layout does not make pages of another number fit.
        record.header.layout = *plan.fingerprint();
        let forged = Directory::parse(&record.bytes, &record.header, &plan);
        assert_eq!(forged.is_ok(), other.dtype == BlockDType::F16);
    }
}

#[test]
fn sections_that_change_places_are_found() {
    let (record, _) = small(&Codec::raw());
    let directory = Directory::parse(&record.bytes, &record.header, &record.plan).unwrap();
    let [a, b] = [0, 1].map(|page| directory.section(page, Kind::K).range());
    let mut bytes = record.bytes.clone();
    for (x, y) in a.zip(b) {
        bytes.swap(x as usize, y as usize);
    }
    assert_eq!(record.decode(&bytes), Err(Bad::Checksum));
}

#[test]
fn equal_sections_in_other_places_have_other_checksums() {
    let layout = BlockLayout::new(BlockDType::U8, 4, 3, 1, 8);
    let r = record(&layout, &Codec::raw(), None, &vec![9; layout.bytes()]);
    let directory = Directory::parse(&r.bytes, &r.header, &r.plan).unwrap();
    let mut hashes: Vec<u64> = directory.sections().iter().map(|s| s.hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 6);
}

/// What `Directory::parse` says once bytes of the directory are changed and its checksum is right.
fn forged(codec: &Codec, change: impl FnOnce(&mut Vec<u8>)) -> Result<Directory, Bad> {
    let (mut record, _) = small(codec);
    change(&mut record.bytes);
    resign(&mut record);
    Directory::parse(&record.bytes, &record.header, &record.plan)
}

#[test]
fn impossible_directories_with_right_checksums_are_refused() {
    let raw = |at: usize, value: u8| forged(&Codec::raw(), |b| b[at] = value).unwrap_err();
    let head = entry(0) - 16;
    assert_eq!(raw(head + 6, 1), Bad::Unsupported, "flags");
    assert_eq!(raw(head + 12, 1), Bad::Field, "reserved");
    assert_eq!(raw(head + 8, 3), Bad::Field, "fewer entries");
    assert_eq!(raw(entry(0), 64), Bad::Field, "raw section not at a sector");
    assert_eq!(raw(entry(1) + 1, 2), Bad::Field, "overlap");
    assert_eq!(raw(entry(3) + 3, 255), Bad::Field, "outside");
    assert_eq!(raw(entry(0) + 4, 95), Bad::Field, "a byte shorter");
    assert_eq!(raw(entry(0) + 4, 0), Bad::Field, "empty");
    assert_eq!(raw(entry(0) + 16, 1), Bad::Field, "layers do not ascend");
    assert_eq!(raw(entry(3) + 16, 2), Bad::Field, "no such layer");
    assert_eq!(raw(entry(0) + 20, 2), Bad::Field, "kinds do not ascend");
    assert_eq!(raw(entry(0) + 20, 4), Bad::Unsupported, "unknown kind");
    assert_eq!(raw(entry(0) + 21, 1), Bad::Unsupported, "unknown transform");
    assert_eq!(raw(entry(0) + 22, 1), Bad::Unsupported, "unknown quantiser");
    assert_eq!(raw(entry(0) + 23, 2), Bad::Unsupported, "unknown coder");
    assert_eq!(raw(entry(0) + 23, 1), Bad::Field, "coded, but not smaller");
    assert_eq!(raw(entry(1) + 20, 8), Bad::Field, "a page without values");
}

/// A record with a side section behind its pages: no stage needs any yet, so readers check it and
/// go on.
#[test]
fn a_side_section_is_checked_and_left_alone() {
    let (mut record, block) = small(&Codec::raw());
    let offset = record.header.used_bytes().next_multiple_of(64);
    let side = b"scales of layer 1, all heads";
    record.bytes.resize(offset + side.len(), 0);
    record.bytes[offset..].copy_from_slice(side);
    let (mut entry_bytes, seed) = (Vec::new(), record.header.key.seed());
    entry_bytes.extend((offset as u32).to_le_bytes());
    entry_bytes.extend((side.len() as u32).to_le_bytes());
    entry_bytes.extend(hash::section(seed, 4, side).to_le_bytes());
    entry_bytes.extend([1, 0, 0xFF, 0xFF, 8, 0, 0, 0]);
    record.bytes[entry(4)..entry(5)].copy_from_slice(&entry_bytes);
    record.bytes[entry(0) - 8] = 5;
    record.header.stored_len = (record.bytes.len() - HEADER_BYTES - 3 * 4) as u32;
    record.bytes.resize(record.header.sectors() as usize * SECTOR, 0);
    resign(&mut record);
    assert_eq!(record.decode(&record.bytes), Ok(block));
    assert_eq!(verify_stored(&record.bytes, &record.header, true), Ok(()));
    record.bytes[offset] ^= 1;
    assert_eq!(record.decode(&record.bytes), Err(Bad::Checksum));
    assert_eq!(verify_stored(&record.bytes, &record.header, true), Err(Bad::Checksum));
}

#[test]
fn the_head_bounds_what_is_read() {
    let (mut record, _) = small(&Codec::raw());
    let head = entry(0) - 16;
    let end = |record: &Record| Directory::end(&record.bytes, &record.header);
    record.bytes[head + 8..head + 12].fill(255);
    assert_eq!(end(&record), Err(Bad::Field));
    record.bytes[head + 4] = 2;
    assert_eq!(end(&record), Err(Bad::Version));
    record.bytes[head] = 0;
    assert_eq!(end(&record), Err(Bad::Magic));
    record.bytes.truncate(head + 15);
    assert_eq!(end(&record), Err(Bad::Short));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(
        lossless: bool,
        noise in prop::collection::vec(any::<u8>(), 0..600),
        at in HEADER_BYTES..2048usize,
        stored_len: u32,
        keep_lengths: bool,
        sign: bool,
    ) {
        let (mut record, block) = small(&CODECS[usize::from(lossless)]());
        let at = at.min(record.bytes.len());
        let n = noise.len().min(record.bytes.len() - at);
        record.bytes[at..at + n].copy_from_slice(&noise[..n]);
        if !keep_lengths {
            record.header.stored_len = stored_len % (256 << 20);
        }
        if sign && Directory::end(&record.bytes, &record.header).is_ok_and(|e| e <= record.bytes.len())
        {
            resign(&mut record);
        }
        let _ = verify_stored(&record.bytes, &record.header, true);
        for strict in [false, true] {
            let decoded = record.decode_as(&record.bytes, &record.header, strict);
            prop_assert!(decoded.is_err() || decoded.unwrap() == block);
        }
    }

    #[test]
    fn random_directories_with_right_checksums_never_panic(
        changes in prop::collection::vec((0..112usize, any::<u8>()), 1..6),
    ) {
        let (mut record, block) = small(&Codec::lossless());
        for (at, value) in changes {
            record.bytes[entry(0) - 16 + at] = value;
        }
        if Directory::end(&record.bytes, &record.header).is_ok_and(|e| e <= record.bytes.len()) {
            resign(&mut record);
        }
        let _ = verify_stored(&record.bytes, &record.header, true);
        let decoded = record.decode_as(&record.bytes, &record.header, true);
        prop_assert!(decoded.is_err() || decoded.unwrap() == block);
    }

    #[test]
    fn random_sections_with_right_checksums_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (mut record, block) = small(&Codec::lossless());
        let directory = Directory::parse(&record.bytes, &record.header, &record.plan).unwrap();
        let ranges: Vec<_> = directory
            .sections()
            .iter()
            .map(|s| s.offset as usize..s.range().end as usize)
            .collect();
        for (i, (place, value)) in changes.into_iter().enumerate() {
            let range = ranges[i % ranges.len()].clone();
            record.bytes[range.start + place.index(range.len())] = value;
        }
        for (i, range) in ranges.into_iter().enumerate() {
            let hash = hash::section(record.header.key.seed(), i as u32, &record.bytes[range]);
            record.bytes[entry(i) + 8..entry(i) + 16].copy_from_slice(&hash.to_le_bytes());
        }
        resign(&mut record);
        let decoded = record.decode_as(&record.bytes, &record.header, true);
        prop_assert!(decoded.is_err() || decoded.unwrap() == block);
    }
}
