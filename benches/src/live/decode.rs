//! A sequence with four times the host memory that its pages may have.

use std::time::Instant;

use kvist::{DiskOptions, Sequence};

use super::NAME;
use super::scene::{Queries, Scene, Statistics};
use crate::data::SHAPES;
use crate::floor::{DiskFile, ReadPlan};
use crate::store::Place;
use crate::{Arena, Error, Line, Options, Params, Rng, Sample, Sink};

/// Tokens before the ones that are timed.
const WARM: usize = 8;
/// Tokens that are timed, if nothing else is said.
const STEPS: usize = 64;
/// How much of a query the next token's keeps: neighbours in a text ask for much the same, and the
/// worst that could be.
const MEMORY: [(&str, f32); 2] = [("steady", 0.95), ("unrelated", 0.0)];
/// Outputs differ by rounding: which pages are near decides in which order they are read.
const TOLERANCE: f32 = 0.02;
/// Bytes over which the disk is measured.
const DISK: usize = 256 << 20;

pub(super) fn run(
    options: &Options,
    place: &Place,
    statistics: &Statistics,
    sink: &mut Sink,
) -> Result<(), Error> {
    for shape in options.shapes(&SHAPES[..1])? {
        for &context in options.context.as_deref().unwrap_or(&[32_768]) {
            let scene = Scene::new(shape, context, statistics);
            let disk = |name| {
                let dir = place.path().join(name);
                DiskOptions::new(dir, 2 * scene.bytes() + (1 << 30))
            };
            // It also has a disk, or it would not select whole pages; nothing is ever there.
            let room = scene.bytes() + scene.bytes() / 16 + scene.beside();
            let near = scene.cache(room)?.disk(disk("near")).write_ahead(false).build()?;
            let far = scene.cache(scene.bytes() / 4 + scene.beside())?.disk(disk("far")).build()?;
            let (mut all, mut part) = (near.sequence(), far.sequence());
            scene.fill(&mut all)?;
            scene.fill(&mut part)?;
            part.offload()?;
            for (name, memory) in MEMORY {
                rows(&scene, (name, memory), (&all, &part), place, options, sink)?;
            }
        }
    }
    Ok(())
}

/// Seconds of each token, and the outputs.
fn decode(
    scene: &Scene,
    memory: f32,
    steps: usize,
    s: &Sequence,
) -> Result<(Sample, Moved), Error> {
    let mut queries = Queries::new(scene.shape, memory);
    let mut moved = Moved::default();
    for _ in 0..WARM {
        queries.step(s)?;
    }
    let before = (s.cache().stats(), s.cache().disk());
    let mut times = Vec::with_capacity(steps);
    for _ in 0..steps {
        let start = Instant::now();
        let (_, out) = queries.step(s)?;
        times.push(start.elapsed().as_secs_f64());
        moved.outputs.push(out);
    }
    let (stats, disk) = (s.cache().stats(), s.cache().disk());
    moved.hits = stats.page_hits - before.0.page_hits;
    moved.misses = stats.page_misses - before.0.page_misses;
    moved.sent = stats.prefetched - before.0.prefetched;
    moved.used = stats.prefetch_used - before.0.prefetch_used;
    let brought = stats.below_read_bytes - before.0.below_read_bytes;
    let brought = brought / s.cache().geometry().page_bytes() as u64;
    moved.needed = (brought + moved.used).saturating_sub(moved.sent);
    if let (Some(then), Some(now)) = (before.1, disk) {
        moved.read = now.read_bytes - then.read_bytes;
        let pages = s.stats().stored_bytes / s.cache().geometry().page_bytes() as u64;
        moved.page = now.live_bytes as f64 / pages.max(1) as f64;
    }
    Ok((Sample::of(times), moved))
}

/// What was read for some tokens.
#[derive(Default)]
struct Moved {
    outputs: Vec<Vec<f32>>,
    hits: u64,
    misses: u64,
    /// Pages sent for ahead, those of them that were used, and all that were read and used.
    sent: u64,
    used: u64,
    needed: u64,
    /// Bytes read from disk.
    read: u64,
    /// Bytes of a page there.
    page: f64,
}

fn rows(
    scene: &Scene,
    (name, memory): (&'static str, f32),
    (all, part): (&Sequence, &Sequence),
    place: &Place,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let steps = options.repeats.unwrap_or(STEPS);
    let (near, near_moved) = decode(scene, memory, steps, all)?;
    let (far, moved) = decode(scene, memory, steps, part)?;
    let (again, _) = decode(scene, memory, steps, all)?;
    same(&near_moved.outputs, &moved.outputs)?;
    let near = if again.median < near.median { again } else { near };
    let bandwidth = bandwidth(place, moved.page)?;
    let bytes = |pages: u64| pages as f64 * moved.page / steps as f64;
    let (missed, read) = (bytes(moved.misses), moved.read as f64 / steps as f64);
    let params = scene.shape.params().with("context", scene.context).with("queries", name);
    let line = |tier, sample: &Sample, columns| {
        Line::new(
            NAME,
            params.clone().with("op", "decode").with("tier", tier),
            1.0 / sample.median,
            "tokens/s",
        )
        .repeated(sample.repeats, sample.spread)
        .best(1.0 / sample.best)
        .columns(columns)
    };
    sink.push(line("host", &near, Params::new()));
    let columns = Params::new()
        .with("missed_mb", missed * 1e-6)
        .with("ahead_mb", bytes(moved.sent) * 1e-6)
        .with("used_mb", bytes(moved.used) * 1e-6)
        .with("read_mb", read * 1e-6)
        .with("read/missed", read / missed)
        .with("read/used", read / bytes(moved.needed))
        .with("hits", moved.hits as f64 / (moved.hits + moved.misses).max(1) as f64)
        .with("disk_gb/s", bandwidth * 1e-9);
    let floor = bandwidth / missed;
    sink.push(
        line("host+disk", &far, columns).floor(floor).peer("all in memory", 1.0 / near.median),
    );
    Ok(())
}

/// Whether the same pages were selected, wherever they were.
fn same(near: &[Vec<f32>], far: &[Vec<f32>]) -> Result<(), Error> {
    let worst = near.iter().flatten().zip(far.iter().flatten()).map(|(a, b)| (a - b).abs());
    let worst = worst.fold(0f32, f32::max);
    match worst <= TOLERANCE {
        true => Ok(()),
        false => Err(Error::subject("kvist", format!("outputs differ by {worst}"))),
    }
}

/// Bytes a second of batched reads of single pages, at random places.
fn bandwidth(place: &Place, page: f64) -> Result<f64, Error> {
    let block = (page as usize).next_multiple_of(4096);
    let bytes = DISK / block * block;
    let mut data = Arena::random(bytes, kvist_kernels::DType::Bf16, 9)?;
    let mut disk = DiskFile::create(place.path(), data.bytes_mut())?;
    let order = Rng::new(3).permutation(bytes / block);
    let mut best = f64::INFINITY;
    for plan in ReadPlan::batched(block, usize::MAX) {
        for _ in 0..3 {
            best = best.min(disk.read(data.bytes_mut(), plan, &order)?);
        }
    }
    Ok(bytes as f64 / best)
}
