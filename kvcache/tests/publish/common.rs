//! Sequences whose rows follow from their tokens, as a model's do: a row depends on every token up to
//! its own. Pages that were shared wrongly are seen by their bytes.

use std::sync::Arc;

use half::{bf16, f16};
use kvist::format::BlockLayout;
use kvist::vfs::sim::SimVfs;
use kvist::{
    AttendInfo, AttendOptions, BlockRows, BlockRowsMut, Boxed, Builder, Cache, DType, DiskOptions,
    Error, Geometry, MissReason, PrefixBuilder, PrefixStore, Quest, Restored, Select, Sequence,
    Space, SpaceOptions, Strides, Tensor3, Tensor3Mut,
};

pub(crate) const LAYERS: usize = 2;
pub(crate) const HEADS: usize = 2;
const GROUP: usize = 2;
const DIM_K: usize = 16;
const DIM_V: usize = 24;
pub(crate) const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

pub(crate) fn geometry(dtype: DType, page_tokens: usize) -> Geometry {
    let of = Geometry::new(LAYERS, HEADS * GROUP, HEADS, DIM_K, dtype);
    Geometry { dim_v: DIM_V, page_tokens, ..of }
}

/// The usual one.
pub(crate) fn usual() -> Geometry {
    geometry(DType::Bf16, 64)
}

/// Bytes of a block of the usual geometry.
pub(crate) fn block() -> u64 {
    BlockLayout::of(&usual()).bytes() as u64
}

pub(crate) fn selects() -> [Select; 3] {
    let boxed = Boxed { sinks: 4, recent: 16, ..Boxed::with_budget(96) };
    [Select::Full, Select::Quest(Quest { budget: 96, unit_tokens: 16 }), Select::Boxed(boxed)]
}

pub(crate) fn builder(geometry: &Geometry, bytes: u64) -> Builder {
    Cache::builder(geometry.clone()).host_bytes(bytes).threads(2)
}

pub(crate) fn cache(bytes: u64) -> Cache {
    builder(&usual(), bytes).build().unwrap()
}

fn disk(name: &str) -> DiskOptions {
    DiskOptions::new(name, 8 << 20).segment_bytes(256 << 10)
}

/// A cache whose pages may go to a simulated disk.
pub(crate) fn tiered(geometry: &Geometry, bytes: u64, sim: &SimVfs) -> Builder {
    builder(geometry, bytes).disk(disk("/pages")).vfs(Arc::new(sim.process()))
}

/// A store in memory.
pub(crate) fn store() -> PrefixStore {
    PrefixStore::builder().host_bytes(16 << 20).build().unwrap()
}

/// A store over a simulated disk, without threads.
pub(crate) fn stored(sim: &SimVfs) -> PrefixBuilder {
    let vfs = Arc::new(sim.process());
    PrefixStore::builder().host_bytes(16 << 20).disk(disk("/blocks")).vfs(vfs).threads(false)
}

pub(crate) fn space_of(store: &PrefixStore, geometry: &Geometry) -> Space {
    store.space(SpaceOptions::new([7; 32], BlockLayout::of(geometry)).salt(b"one")).unwrap()
}

pub(crate) fn space(store: &PrefixStore) -> Space {
    space_of(store, &usual())
}

/// Tokens of a stream; streams of the same family begin with the same `common` ones.
pub(crate) fn tokens(family: u32, common: usize, own: u32, len: usize) -> Vec<u32> {
    let token = |i: usize| family * 1000 + if i < common { 0 } else { own + 1 } + i as u32 * 7;
    (0..len).map(token).collect()
}

/// The first tokens of a stream, and `more` others.
pub(crate) fn branch(stream: &[u32], at: usize, more: usize) -> Vec<u32> {
    let other = (0..more as u32).map(|i| 900_000 + i);
    stream[..at].iter().copied().chain(other).collect()
}

fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A number for each token that speaks of all up to it.
fn states(tokens: &[u32]) -> Vec<u64> {
    let step = |state: &mut u64, &token: &u32| {
        *state = mix(*state ^ u64::from(token));
        Some(*state)
    };
    tokens.iter().scan(0, step).collect()
}

/// A row of keys (`kind` 0) or values (1), in f32.
fn row(state: u64, layer: usize, head: usize, kind: usize) -> Vec<f32> {
    let seed = state ^ (((layer * 4 + head * 2 + kind) as u64 + 1) << 40);
    let dim = [DIM_K, DIM_V][kind];
    let element = |i: usize| {
        let bits = mix(seed.wrapping_add(i as u64));
        // Roughly normal.
        let sum: u32 = (0..4).map(|n| (bits >> (16 * n)) as u32 & 0xFFFF).sum();
        (sum as f32 / 65536.0 - 2.0) * 1.7
    };
    (0..dim).map(element).collect()
}

fn encode(row: &[f32], dtype: DType) -> Vec<u8> {
    let bytes = |&x: &f32| match dtype {
        DType::F32 => x.to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        DType::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
    };
    row.iter().flat_map(bytes).collect()
}

/// Appends what follows from `tokens`, from where the sequence ends, `step` at once.
pub(crate) fn append(
    sequence: &mut Sequence,
    tokens: &[u32],
    step: usize,
) -> Result<(), kvist::Error> {
    let states = states(tokens);
    while sequence.len() < tokens.len() {
        let from = sequence.len();
        let to = (from + step).min(tokens.len());
        for layer in 0..LAYERS {
            let of = |kind: usize| -> Vec<f32> {
                let heads = |&s: &u64| (0..HEADS).flat_map(move |h| row(s, layer, h, kind));
                states[from..to].iter().flat_map(heads).collect()
            };
            append_rows(sequence, layer, [of(0), of(1)], to - from)?;
        }
    }
    Ok(())
}

fn append_rows(
    sequence: &mut Sequence,
    layer: usize,
    [k, v]: [Vec<f32>; 2],
    n: usize,
) -> Result<(), kvist::Error> {
    let (of_k, of_v) = ([n, HEADS, DIM_K], [n, HEADS, DIM_V]);
    macro_rules! append {
        ($convert:expr) => {{
            let (k, v): (Vec<_>, Vec<_>) =
                (k.into_iter().map($convert).collect(), v.into_iter().map($convert).collect());
            let (k, v) = (Tensor3::contiguous(&k, of_k)?, Tensor3::contiguous(&v, of_v)?);
            sequence.append(layer, &k, &v)
        }};
    }
    match sequence.cache().geometry().dtype {
        DType::F32 => append!(|x| x),
        DType::F16 => append!(f16::from_f32),
        DType::Bf16 => append!(bf16::from_f32),
    }
}

/// A new sequence of these tokens.
pub(crate) fn filled(cache: &Cache, tokens: &[u32]) -> Sequence {
    let mut sequence = cache.sequence();
    append(&mut sequence, tokens, 100).unwrap();
    sequence
}

/// What block `n` of these tokens must be, in canonical order.
pub(crate) fn block_of(geometry: &Geometry, tokens: &[u32], n: usize) -> Vec<u8> {
    let page = geometry.page_tokens;
    let states = states(tokens);
    let mut bytes = Vec::new();
    for layer in 0..LAYERS {
        for head in 0..HEADS {
            for kind in 0..2 {
                for &state in &states[n * page..(n + 1) * page] {
                    bytes.extend(encode(&row(state, layer, head, kind), geometry.dtype));
                }
            }
        }
    }
    bytes
}

/// Puts blocks of these tokens the plain way.
pub(crate) fn put(
    space: &Space,
    geometry: &Geometry,
    tokens: &[u32],
    blocks: std::ops::Range<usize>,
) {
    let (layout, prefix) = (space.layout(), space.prefix(tokens).unwrap());
    for block in blocks {
        let bytes = block_of(geometry, tokens, block);
        let rows = BlockRows::new(layout, &bytes, Strides::canonical(layout)).unwrap();
        space.put(&prefix, block, &[rows]).unwrap()[0].unwrap();
    }
}

/// Gets all blocks of these tokens the plain way; a block that is handed out and is not right panics.
pub(crate) fn get(space: &Space, geometry: &Geometry, tokens: &[u32]) -> Restored {
    let layout = space.layout();
    let prefix = space.prefix(tokens).unwrap();
    let mut memory = vec![vec![0xEE; layout.bytes()]; prefix.len()];
    let of = |bytes| BlockRowsMut::new(layout, bytes, Strides::nhd(layout)).unwrap();
    let mut rows: Vec<BlockRowsMut> = memory.iter_mut().map(|m| of(&mut m[..])).collect();
    let restored = space.get(&prefix, 0..prefix.len(), &mut rows).unwrap();
    drop(rows);
    for (n, bytes) in memory.iter().enumerate().take(restored.blocks) {
        assert!(*bytes == as_nhd(layout, &block_of(geometry, tokens, n)), "block {n} is wrong");
    }
    restored
}

fn as_nhd(layout: &BlockLayout, canonical: &[u8]) -> Vec<u8> {
    let mut out = vec![0; canonical.len()];
    let row = |dim: u32| dim as usize * layout.dtype.size();
    let (k, v) = Strides::nhd(layout);
    let (from_k, from_v) = Strides::canonical(layout);
    for (to, from, row) in [(k, from_k, row(layout.dim_k)), (v, from_v, row(layout.dim_v))] {
        for layer in 0..LAYERS {
            for token in 0..layout.block_tokens as usize {
                for head in 0..HEADS {
                    let at =
                        |s: Strides| s.offset + layer * s.layer + token * s.token + head * s.head;
                    out[at(to)..at(to) + row].copy_from_slice(&canonical[at(from)..at(from) + row]);
                }
            }
        }
    }
    out
}

/// Asserts that the rows of a sequence are those of these tokens.
pub(crate) fn check(sequence: &Sequence, tokens: &[u32]) {
    assert_eq!(sequence.len(), tokens.len());
    check_or(sequence, tokens).unwrap();
}

/// Asserts that the rows of a sequence are those of these tokens, as far as they can be read.
pub(crate) fn check_or(sequence: &Sequence, tokens: &[u32]) -> Result<(), Error> {
    let states = states(tokens);
    let dtype = sequence.cache().geometry().dtype;
    for layer in 0..LAYERS {
        let (mut k, mut v) =
            (vec![0f32; tokens.len() * HEADS * DIM_K], vec![0f32; tokens.len() * HEADS * DIM_V]);
        sequence.read(layer, 0, &mut k, &mut v)?;
        for (kind, got) in [k, v].into_iter().enumerate() {
            let heads = |&s: &u64| (0..HEADS).flat_map(move |h| row(s, layer, h, kind));
            let want: Vec<f32> = states.iter().flat_map(heads).collect();
            assert!(encode(&got, dtype) == encode(&want, dtype), "layer {layer} is wrong");
        }
    }
    Ok(())
}

fn attend(sequence: &Sequence, layer: usize, seed: u64) -> (Vec<u32>, AttendInfo) {
    let q: Vec<f32> = (0..HEADS * GROUP).flat_map(|h| row(mix(seed), h, 0, 0)).collect();
    let mut out = vec![f32::NAN; HEADS * GROUP * DIM_V];
    let options = AttendOptions { selected: true, bound: true, ..AttendOptions::default() };
    let q = Tensor3::contiguous(&q, [1, HEADS * GROUP, DIM_K]).unwrap();
    let mut view = Tensor3Mut::contiguous(&mut out, [1, HEADS * GROUP, DIM_V]).unwrap();
    let info = sequence.attend(layer, &q, &options, &mut view).unwrap();
    (out.iter().map(|x| x.to_bits()).collect(), info)
}

/// Asserts that two sequences answer alike, bit for bit.
pub(crate) fn alike(a: &Sequence, b: &Sequence) {
    assert_eq!(a.len(), b.len());
    for layer in 0..LAYERS {
        for seed in 0..3 {
            assert_eq!(attend(a, layer, seed), attend(b, layer, seed), "layer {layer}");
        }
    }
}

/// Asserts that two sequences answer alike, whatever is in memory of them.
pub(crate) fn near(a: &Sequence, b: &Sequence) {
    let close = |a: u32, b: u32| (f32::from_bits(a) - f32::from_bits(b)).abs() < 1e-2;
    for layer in 0..LAYERS {
        let (a, b) = (attend(a, layer, 0).0, attend(b, layer, 0).0);
        assert!(a.iter().zip(&b).all(|(&a, &b)| close(a, b)), "layer {layer}");
    }
}

/// Why the next block is missing, for tests that read better with it.
pub(crate) const ABSENT: Option<MissReason> = Some(MissReason::Absent);
