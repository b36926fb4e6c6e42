//! Live sequences over two tiers, against sequences that are all in memory.

mod clusters;
mod codecs;
#[expect(dead_code, reason = "shared with the tests outside, which use all of it")]
#[path = "../../../tests/store/common.rs"]
mod common;
mod copies;
mod drafts;
mod faults;
mod hints;
mod memory;
mod model;
mod moves;
mod preempt;
mod profile;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use half::bf16;

use self::common::{DIM, GROUP, HEADS, ROW, Random, rows};
use self::drafts::Draft;
use self::memory::{Faults, Handle, Memory};
use kvist_policies::{
    ArkVale, ClusterKv, InfLlm, InfiniGen, LeoAm, PqCache, RetroInfer, ShadowKv, Streaming,
    Twilight,
};

use crate::{
    AttendInfo, AttendOptions, Boxed, Builder, Cache, DType, Error, Geometry, Quest, Select,
    Sequence, Tensor3, Tensor3Mut,
};

const LAYERS: usize = 2;
const WIDTH: usize = HEADS * GROUP * DIM;

fn builder(select: &Select, bytes: u64, page_tokens: usize) -> Builder {
    let geometry = Geometry::new(LAYERS, HEADS * GROUP, HEADS, DIM, DType::Bf16);
    Cache::builder(Geometry { page_tokens, ..geometry })
        .host_bytes(bytes)
        .select(select.clone())
        .threads(2)
        .whole_pages(true)
        .write_ahead(false)
}

/// A cache over a tier in memory.
fn tiered(select: &Select, bytes: u64, faults: Faults) -> (Cache, Arc<Memory>) {
    let memory = Memory::new(faults, 7);
    let below = Arc::new(Handle(memory.clone()));
    (builder(select, bytes, 64).below(below).build().unwrap(), memory)
}

/// The same with room for everything: the reference.
fn roomy(select: &Select, page_tokens: usize) -> Cache {
    let below = Arc::new(Handle(Memory::new(Faults::default(), 1)));
    builder(select, 64 << 20, page_tokens).below(below).build().unwrap()
}

fn selects() -> Vec<Select> {
    let boxed = Boxed { sinks: 4, recent: 16, ..Boxed::with_budget(256) };
    let proven = Boxed { sinks: 4, recent: 16, ..Boxed::with_max_missed_mass(0.3) };
    let (clusters, estimated) = (ClusterKv::default(), RetroInfer::default());
    vec![
        Select::Full,
        Select::Quest(Quest { budget: 192, unit_tokens: 16 }),
        Select::Boxed(boxed),
        Select::Boxed(proven),
        ArkVale { budget: 256, unit_tokens: 32, sinks: 4, recent: 16, layer_wide: true }.into(),
        Twilight { budget: 256, unit_tokens: 16, top_p: 0.8 }.into(),
        Streaming { sinks: 4, recent: 100 }.into(),
        ClusterKv { budget: 256, sinks: 4, cluster_tokens: 16, window: 32, ..clusters }.into(),
        RetroInfer { budget: Some(256), recent: 16, window: 32, ..estimated }.into(),
        PqCache { budget: Some(256), sinks: 4, parts: 4, bits: 4, ..PqCache::default() }.into(),
        ShadowKv { budget: 256, outliers: 2, ..ShadowKv::default() }.into(),
        InfLlm { budget: 256, unit_tokens: 16, sinks: 4, recent: 64, ..InfLlm::default() }.into(),
        InfiniGen { budget: Some(256), sinks: 4, recent: 16, ..InfiniGen::default() }.into(),
        LeoAm { budget: 256, sinks: 4, recent: 16, ..LeoAm::default() }.into(),
    ]
}

fn append(s: &mut Sequence, k: &[bf16], v: &[bf16]) -> Result<(), Error> {
    (0..LAYERS).try_for_each(|layer| s.append(layer, &rows(k), &rows(v)))
}

fn attend(
    s: &Sequence,
    layer: usize,
    q: &[f32],
    options: &AttendOptions,
) -> Result<(Vec<f32>, AttendInfo), Error> {
    with_output(q, |q, out| s.attend(layer, q, options, out))
}

/// What a call with these queries writes and says.
fn with_output(
    q: &[f32],
    call: impl FnOnce(&Tensor3, &mut Tensor3Mut) -> Result<AttendInfo, Error>,
) -> Result<(Vec<f32>, AttendInfo), Error> {
    let shape = [q.len() / WIDTH, HEADS * GROUP, DIM];
    let mut out = vec![f32::NAN; q.len()];
    let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    let info = call(&Tensor3::contiguous(q, shape).unwrap(), &mut view)?;
    Ok((out, info))
}

fn query(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n * WIDTH).map(|_| 2.0 * random.normal()).collect()
}

/// Keys, values.
fn data(random: &mut Random, tokens: usize) -> (Vec<bf16>, Vec<bf16>) {
    (random.rows(tokens * ROW, 1.0), random.rows(tokens * ROW, 1.0))
}

/// Equal up to the order in which parts are summed.
fn near(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-2 * (1.0 + b.abs()))
}

/// A sequence filled in chunks in both caches.
fn filled(caches: [&Cache; 2], tokens: usize, random: &mut Random) -> [Sequence; 2] {
    let mut pair = caches.map(Cache::sequence);
    let mut left = tokens;
    while left > 0 {
        let n = left.min(100);
        let (k, v) = data(random, n);
        pair.iter_mut().for_each(|s| append(s, &k, &v).unwrap());
        left -= n;
    }
    pair
}

/// Everything is back once the last sequence is gone.
fn nothing_left(cache: &Cache, memory: &Memory) {
    memory.settle();
    let left = || {
        let stats = cache.stats();
        (stats.used_bytes, stats.stored_bytes, memory.live.load(Ordering::Relaxed))
    };
    // A demoting thread may still hold what it works at.
    let end = Instant::now() + Duration::from_secs(10);
    while left() != (0, 0, 0) && Instant::now() < end {
        std::thread::yield_now();
    }
    assert_eq!(left(), (0, 0, 0), "{:?}", cache.stats());
}
