use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::format::{AttentionKind, Bad};

fn layouts() -> impl Strategy<Value = BlockLayout> {
    let dtype = prop::sample::select(&BlockDType::ALL[..]);
    let dims = (1..=130u32, 0..=130u32);
    (dtype, 1..=80u32, 1..=4u32, 1..=4u32, dims, 0..3u32).prop_map(
        |(dtype, block_tokens, layers, heads, (dim_k, dim_v), first)| BlockLayout {
            dtype,
            block_tokens,
            layers: first..first + layers,
            kv_heads: first..first + heads,
            dim_k,
            dim_v,
            attention: if dim_v == 0 { AttentionKind::Latent } else { AttentionKind::Full },
        },
    )
}

fn codecs() -> impl Strategy<Value = Codec> {
    prop::sample::select(Codec::all())
}

fn slice(bytes: &[u8], range: Range<u32>) -> &[u8] {
    &bytes[range.start as usize..range.end as usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_block_comes_back_bit_for_bit(
        layout in layouts(),
        codec in codecs(),
        with_tokens: bool,
        seed: u64,
    ) {
        let block = block(&layout, seed);
        let tokens: Vec<u32> = (0..layout.block_tokens).map(|t| t * 3 + 1).collect();
        let tokens = with_tokens.then_some(&tokens[..]);
        let record = record(&layout, &codec, tokens, &block);
        prop_assert!(record.decode(&record.bytes).unwrap() == block);
        let bare = &record.bytes[..record.header.used_bytes()];
        prop_assert!(record.decode_as(bare, &record.header, false).unwrap() == block);
        verify_stored(&record.bytes, &record.header, true).unwrap();
        let (mut rest, mut tiles) = (&block[..], Vec::new());
        while !rest.is_empty() {
            for len in [layout.k_bytes(), layout.page_bytes() - layout.k_bytes()] {
                let (tile, behind) = rest.split_at(len);
                if len > 0 {
                    tiles.extend(twox_hash::XxHash3_64::oneshot(tile).to_le_bytes());
                }
                rest = behind;
            }
        }
        let whole = twox_hash::XxHash3_64::oneshot(&tiles);
        prop_assert_eq!(record.header.decoded_hash, whole);
        if let Some(tokens) = tokens {
            let equal = |t: &[u32]| tokens_equal(&record.bytes, &record.header, t);
            prop_assert_eq!(equal(tokens), Some(true));
            prop_assert_eq!(equal(&tokens[1..]), Some(false));
            prop_assert_eq!(equal(&vec![0; tokens.len()]), Some(false));
        } else {
            prop_assert_eq!(tokens_equal(&record.bytes, &record.header, &[]), None);
        }
    }

    #[test]
    fn a_record_may_arrive_in_pieces(
        layout in layouts(),
        codec in codecs(),
        seed: u64,
        piece in 1usize..5000,
    ) {
        let block = block(&layout, seed);
        let Record { plan, header, bytes } = record(&layout, &codec, None, &block);
        let directory = Directory::parse(&bytes, &header, &plan).unwrap();
        let mut out = vec![1; layout.bytes()];
        let mut sink = CanonicalMut::new(&layout, &mut out);
        let mut stream = Stream::new(directory.clone(), &header, true);
        for piece in bytes.chunks(piece) {
            stream.feed(&plan, piece, &mut sink).unwrap();
        }
        stream.finish().unwrap();
        prop_assert!(out == block);
        let mut sink = CanonicalMut::new(&layout, &mut out);
        let mut stream = Stream::new(directory, &header, true);
        let used = header.used_bytes();
        stream.feed(&plan, &bytes[..used - 1], &mut sink).unwrap();
        prop_assert_eq!(stream.finish(), Err(Bad::Short));
    }

    #[test]
    fn a_page_alone_is_the_slice_of_the_block(
        layout in layouts(),
        codec in codecs(),
        seed: u64,
    ) {
        let block = block(&layout, seed);
        let Record { plan, header, bytes } = record(&layout, &codec, None, &block);
        let prefix = &bytes[..plan.prefix_bytes(0)];
        prop_assert_eq!(Directory::end(prefix, &header), Ok(prefix.len()));
        let directory = Directory::parse(prefix, &header, &plan).unwrap();
        let source = Canonical::new(&layout, &block);
        for page in 0..layout.pages() {
            let (k, v) = source.page(page);
            let (mut k_out, mut v_out) = (vec![1; k.len()], vec![1; v.len()]);
            let stored = slice(&bytes, directory.page_range(page));
            plan.decode_page(&directory, page, stored, (&mut k_out, &mut v_out)).unwrap();
            prop_assert!(k_out == k && v_out == v);
            let mut tile = vec![2; k.len()];
            let section = directory.section(page, Kind::K);
            let stored = slice(&bytes, section.range());
            plan.decode_section(section, directory.seed(), stored, &mut tile).unwrap();
            prop_assert!(tile == k);
            if directory.section(page, Kind::K).stages.is_raw() {
                prop_assert!((section.offset as usize).is_multiple_of(SECTOR) && stored == k);
            } else {
                prop_assert!(section.offset.is_multiple_of(64) && stored.len() < k.len());
            }
        }
    }
}

#[test]
fn pages_may_lie_anywhere() {
    let layout = BlockLayout::new(BlockDType::F16, 8, 2, 3, 20);
    let block = block(&layout, 5);
    let canonical = Canonical::new(&layout, &block);
    let tiles: Vec<(&[u8], &[u8])> = (0..layout.pages()).map(|p| canonical.page(p)).collect();
    let plan = Plan::new(&layout, &Codec::lossless()).unwrap();
    let mut bytes = vec![0; plan.max_encoded(0)];
    let encoded = plan.encode(&key(7), None, &Tiles(&tiles), &mut bytes, false);
    let expected = record(&layout, &Codec::lossless(), None, &block);
    assert_eq!(bytes[HEADER_BYTES..encoded.used], expected.bytes[HEADER_BYTES..]);

    let mut scattered: Vec<_> =
        tiles.iter().map(|(k, v)| (vec![0; k.len()], vec![0; v.len()])).collect();
    let mut room: Vec<_> = scattered.iter_mut().map(|(k, v)| (&mut k[..], &mut v[..])).collect();
    let mut sink = TilesMut(&mut room);
    plan.decode_block(&expected.bytes, &expected.header, &mut sink, true).unwrap();
    assert!(scattered.iter().zip(&tiles).all(|(got, tile)| got.0 == tile.0 && got.1 == tile.1));
}

#[test]
fn floats_shrink_and_noise_is_stored_raw() {
    let layout = BlockLayout::new(BlockDType::Bf16, 64, 2, 2, 64);
    let noise: Vec<u8> = {
        let mut random = Random(1);
        (0..layout.bytes()).map(|_| random.next() as u8).collect()
    };
    let tidy = vec![half::bf16::from_f32(1.5).to_bits().to_le_bytes(); layout.bytes() / 2].concat();
    let is_raw = |block: &[u8], codec: Codec| {
        let r = record(&layout, &codec, None, block);
        assert!(r.decode(&r.bytes).unwrap() == block);
        Directory::parse(&r.bytes, &r.header, &r.plan).unwrap().section(3, Kind::V).stages.is_raw()
    };
    assert!(is_raw(&noise, Codec::lossless()));
    assert!(!is_raw(&tidy, Codec::lossless()));
    assert!(is_raw(&tidy, Codec::raw()));
}

#[test]
fn types_without_exponents_are_stored_raw() {
    for dtype in [BlockDType::Fp8E4m3, BlockDType::Fp8E5m2, BlockDType::I8, BlockDType::U8] {
        let layout = BlockLayout::new(dtype, 16, 1, 1, 32);
        let r = record(&layout, &Codec::lossless(), None, &vec![0; layout.bytes()]);
        let directory = Directory::parse(&r.bytes, &r.header, &r.plan).unwrap();
        assert!(
            directory.section(0, Kind::K).stages.is_raw()
                && directory.section(0, Kind::V).stages.is_raw()
        );
    }
}

#[test]
fn any_plan_of_the_layout_reads_any_codec() {
    let layout = BlockLayout::new(BlockDType::Bf16, 16, 1, 2, 64);
    let block = block(&layout, 9);
    let lossless = record(&layout, &Codec::lossless(), None, &block);
    let raw = Record { plan: Plan::new(&layout, &Codec::raw()).unwrap(), ..lossless };
    assert_eq!(raw.decode(&raw.bytes), Ok(block));
}

#[test]
fn a_section_of_the_wrong_length_is_short() {
    let layout = BlockLayout::new(BlockDType::Bf16, 16, 1, 1, 64);
    let r = record(&layout, &Codec::raw(), None, &block(&layout, 2));
    let directory = Directory::parse(&r.bytes, &r.header, &r.plan).unwrap();
    let stored = slice(&r.bytes, directory.section(0, Kind::K).range());
    assert_eq!(directory.section(0, Kind::K).check(directory.seed(), stored), Ok(()));
    assert_eq!(
        directory.section(0, Kind::K).check(directory.seed(), &stored[1..]),
        Err(Bad::Short)
    );
}
