//! The lossless codec on tiles of real or made-up K and V: ratio against the entropy of the very data,
//! speed of one core against memcpy, lz4 and zstd.

mod peer;
mod tiles;

use kvist_kernels::entropy::Expw;
use kvist_kernels::{DType, Isa};

use crate::timing::time;
use crate::{Arena, Error, Line, Options, Params, Sample, Sink, interleave, repeat};
use peer::Peer;
use tiles::{Source, Tiles};

/// Tokens of a tile: a page, and a unit.
const TOKENS: [usize; 2] = [64, 16];
/// Bytes of tiles that speeds are measured over: far more than the caches hold, and less than half of
/// the second-level cache.
const SPANS: [(&str, usize); 2] = [("64 MiB", 64 << 20), ("256 KiB", 256 << 10)];
/// Bytes that one measurement processes at least.
const PASS: usize = 16 << 20;

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let source = Source::open(options)?;
    if options.dump.is_none() {
        sink.note("no --dump: normal numbers, of another size in each channel");
    }
    for &dtype in options.dtype.as_deref().unwrap_or(&[DType::Bf16, DType::F16, DType::F32]) {
        if source.rounded_to.is_some_and(|from| from != dtype) {
            sink.note(&format!("the dump is not f32: {dtype} tiles hold rounded numbers"));
        }
        for tokens in TOKENS {
            // Units of the other types would say nothing new.
            if tokens == TOKENS[0] || dtype == DType::Bf16 {
                shape(&source, dtype, tokens, options, sink)?;
            }
        }
    }
    Ok(())
}

/// All rows of one shape of tile.
fn shape(
    source: &Source,
    dtype: DType,
    tokens: usize,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let mut peers = if options.no_peers { vec![] } else { peer::all()? };
    for kv in &source.kv {
        let plan = Expw::new(dtype, tokens, kv.dim)?;
        let all = Tiles::new(kv, &plan, usize::MAX)?;
        let params = params(source, &plan).with("kv", kv.name).with("what", "ratio");
        let bound = dtype.size() as f64 * 8.0 / tiles::bound_bits(kv, dtype);
        let value = ratio(&plan, &all);
        let line = Line::new("codec", params, value, "x").floor(bound);
        rows_with_peers(line, &mut peers, sink, |peer| {
            Ok(all.bytes().len() as f64 / peer.encode(&all)? as f64)
        })?;
    }
    let plan = Expw::new(dtype, tokens, source.kv[0].dim)?;
    for (name, bytes) in SPANS {
        // Keys alone would flatter: their exponents are narrower than those of values.
        let tiles = Tiles::mixed(&source.kv, &plan, bytes)?;
        for isa in levels() {
            let of = params(source, &plan).with("isa", isa.name()).with("tiles", name);
            let peers = if isa == Isa::level() && bytes > PASS { &mut peers[..] } else { &mut [] };
            speeds(&plan, isa, &tiles, &of, peers, options, sink)?;
        }
    }
    Ok(())
}

/// The level in use and, in order to compare, those below it that have loops of their own.
fn levels() -> Vec<Isa> {
    let mut levels = vec![Isa::level()];
    levels.extend([Isa::Avx2, Isa::Generic].into_iter().filter(|&isa| isa < Isa::level()));
    levels
}

fn params(source: &Source, plan: &Expw) -> Params {
    let params = Params::new().with("data", source.name.clone()).with("dtype", plan.dtype().name());
    params.with("tile", format!("{}x{}", plan.tokens(), plan.dim()))
}

/// The line alone, or once per peer with that peer's value.
fn rows_with_peers(
    line: Line,
    peers: &mut [Peer],
    sink: &mut Sink,
    mut value: impl FnMut(&mut Peer) -> Result<f64, Error>,
) -> Result<(), Error> {
    if peers.is_empty() {
        sink.push(line.clone());
    }
    for peer in peers {
        let value = value(peer)?;
        sink.push(line.clone().peer(peer.name(), value));
    }
    Ok(())
}

/// Bytes before over bytes after; a tile that does not shrink counts as it is.
fn ratio(plan: &Expw, tiles: &Tiles) -> f64 {
    let mut out = vec![0u8; plan.max_encoded()];
    let len = |tile: &[u8]| plan.encode(Isa::level(), tile, &mut out).unwrap_or(tile.len());
    tiles.bytes().len() as f64 / tiles.each().map(len).sum::<usize>() as f64
}

/// Encoded tiles, one behind the other.
struct Coded {
    arena: Arena,
    ends: Vec<usize>,
}

impl Coded {
    fn new(plan: &Expw, tiles: &Tiles) -> Result<Coded, Error> {
        let mut coded = Coded { arena: Arena::new(tiles.bytes().len())?, ends: vec![0] };
        let mut out = vec![0u8; plan.max_encoded()];
        for tile in tiles.each() {
            // A raw tile would be a copy: not what is measured.
            if let Some(len) = plan.encode(Isa::level(), tile, &mut out) {
                let from = coded.ends[coded.ends.len() - 1];
                coded.arena.bytes_mut()[from..from + len].copy_from_slice(&out[..len]);
                coded.ends.push(from + len);
            }
        }
        Ok(coded)
    }

    fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.ends.windows(2).map(|w| &self.arena.bytes()[w[0]..w[1]])
    }
}

/// Encode and decode rows, in bytes of tiles per second on one core.
fn speeds(
    plan: &Expw,
    isa: Isa,
    tiles: &Tiles,
    of: &Params,
    peers: &mut [Peer],
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let tile = plan.decoded_len();
    let passes = (PASS / tiles.bytes().len()).max(1);
    let coded = Coded::new(plan, tiles)?;
    let (mut raw, mut out) = (Arena::new(tiles.bytes().len())?, vec![0u8; plan.max_encoded()]);
    let mut copied = Arena::new(tiles.bytes().len())?;
    let mut copy = || {
        time(|| {
            for _ in 0..passes {
                for (to, from) in copied.bytes_mut().chunks_exact_mut(tile).zip(tiles.each()) {
                    to.copy_from_slice(std::hint::black_box(from));
                }
            }
        })
    };
    let rate = |seconds: f64, n: usize| (passes * n * tile) as f64 / seconds / 1e9;
    let line = |what: &str, (floor, work): (Sample, Sample), n: usize| {
        Line::new("codec", of.clone().with("what", what), rate(work.median, n), "GB/s")
            .floor(rate(floor.median, tiles.count()))
            .repeated(work.repeats, work.spread)
            .best(rate(work.best, n))
    };
    let samples = interleave(options.repeats(), &mut copy, || {
        for _ in 0..passes {
            for tile in tiles.each() {
                std::hint::black_box(plan.encode(isa, tile, &mut out));
            }
        }
    });
    let encode = line("encode", samples, tiles.count());
    rows_with_peers(encode, peers, sink, |peer| {
        let sample = repeat(options.repeats(), || drop(peer.encode(tiles)));
        Ok(rate(sample.median, tiles.count()))
    })?;
    let mut fine = true;
    let samples = interleave(options.repeats(), &mut copy, || {
        for _ in 0..passes {
            for (to, from) in raw.bytes_mut().chunks_exact_mut(tile).zip(coded.each()) {
                fine &= plan.decode(isa, from, to).is_ok();
            }
        }
    });
    assert!(fine, "a tile that was just encoded does not decode");
    let decode = line("decode", samples, coded.ends.len() - 1);
    rows_with_peers(decode, peers, sink, |peer| {
        let coded = peer.coded(tiles)?;
        let sample = repeat(options.repeats(), || peer.decode(&coded, tiles, raw.bytes_mut()));
        Ok(rate(sample.median, tiles.count()))
    })
}
