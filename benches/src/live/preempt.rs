//! A sequence that gives way and comes back: what is moved, how long that takes, and what another one
//! feels of it.

use std::time::{Duration, Instant};

use kvist::{Cache, DiskOptions, Sequence};

use super::scene::{Queries, Scene, Statistics};
use crate::data::SHAPES;
use crate::floor::{DiskFile, ReadPlan};
use crate::store::Place;
use crate::{Arena, Error, Line, Options, Params, Sample, Sink};

const NAME: &str = "preempt";
/// Tokens between two preemptions.
const TURN: usize = 1024;
/// Tokens of the sequence that runs meanwhile.
const OTHER: usize = 8192;
/// Steps of it that are timed alone.
const STEPS: usize = 64;
/// Times that the sequence comes back.
const REPEATS: usize = 5;
/// Bytes over which the disk is measured, and those of a read.
const DISK: usize = 256 << 20;
const READ: usize = 1 << 20;
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let place = Place::new(options)?;
    if let Some(why) = &place.no_disk {
        sink.note(&format!("left out: {why}"));
        return Ok(());
    }
    let statistics = Statistics::new(options, sink)?;
    for shape in options.shapes(&SHAPES[..1])? {
        for &context in options.context.as_deref().unwrap_or(&[32_768]) {
            let scene = Scene::new(shape, context, &statistics);
            let other = Scene::new(shape, OTHER, &statistics);
            let bytes = 2 * (scene.bytes() + other.bytes());
            let disk = DiskOptions::new(place.path().join("preempt"), bytes + (1 << 30));
            let host = bytes + scene.beside() + other.beside();
            let cache = scene.cache(host)?.prefetch(false).disk(disk).build()?;
            let params = shape.params().with("context", context);
            let (mut s, mut running) = (cache.sequence(), cache.sequence());
            scene.fill(&mut s)?;
            other.fill(&mut running)?;
            sink.push(swap_out(&s, params.clone().with("op", "first out"))?);
            s.restore()?;
            Scene::new(shape, TURN, &statistics).fill(&mut s)?;
            sink.push(swap_out(&s, params.clone().with("op", "second out"))?);
            let repeats = options.repeats.unwrap_or(REPEATS);
            for line in swap_in(&s, &running, &scene, &params, repeats, read_rate(&place)?)? {
                sink.push(line);
            }
        }
    }
    Ok(())
}

fn used(cache: &Cache) -> Result<kvist::DiskUse, Error> {
    cache.disk().ok_or_else(|| Error::subject("kvist", "the cache has lost its disk"))
}

/// Milliseconds of a preemption, and what it wrote.
fn swap_out(s: &Sequence, params: Params) -> Result<Line, Error> {
    let before = used(s.cache())?;
    let start = Instant::now();
    let pages = s.offload()?;
    let seconds = start.elapsed().as_secs_f64();
    let after = used(s.cache())?;
    let written = (after.written_bytes - before.written_bytes) as f64;
    let large = (after.large_run_bytes - before.large_run_bytes) as f64;
    let columns = Params::new()
        .with("pages", pages)
        .with("written_mb", written * 1e-6)
        .with("runs", (after.write_runs - before.write_runs) as usize)
        .with("in_1mib_runs", large / written.max(1.0));
    Ok(Line::new(NAME, params, seconds * 1e3, "ms").columns(columns))
}

/// Gigabytes a second of stored bytes that come back, and a step of another sequence meanwhile.
fn swap_in(
    s: &Sequence,
    running: &Sequence,
    scene: &Scene,
    params: &Params,
    repeats: usize,
    rate: f64,
) -> Result<Vec<Line>, Error> {
    let mut queries = Queries::new(scene.shape, 0.95);
    let mut step = || -> Result<f64, Error> {
        let start = Instant::now();
        queries.step(running)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let alone = Sample::of((0..STEPS).map(|_| step()).collect::<Result<_, _>>()?);
    let (mut times, mut meanwhile, mut read) = (Vec::new(), Vec::new(), 0);
    // Every second one comes back beside steps of the other: they share the cores.
    for turn in 0..2 * repeats {
        s.offload()?;
        let before = used(s.cache())?.read_bytes;
        let start = Instant::now();
        let (pages, ticket) = s.restore_behind();
        while turn % 2 == 1 && !ticket.is_done() {
            meanwhile.push(step()?);
        }
        let came = ticket.wait(PATIENCE);
        if came != Some(pages) {
            return Err(Error::subject("kvist", format!("{came:?} of {pages} pages came back")));
        }
        if turn % 2 == 0 {
            times.push(start.elapsed().as_secs_f64());
            read = used(s.cache())?.read_bytes - before;
        }
    }
    let (back, read) = (Sample::of(times), read as f64);
    let line = |op| params.clone().with("op", op);
    let columns = Params::new().with("read_mb", read * 1e-6).with("ms", back.median * 1e3);
    let mut lines = vec![
        Line::new(NAME, line("in"), read / back.median * 1e-9, "GB/s")
            .floor(rate * 1e-9)
            .repeated(back.repeats, back.spread)
            .best(read / back.best * 1e-9)
            .columns(columns),
    ];
    if !meanwhile.is_empty() {
        let meanwhile = Sample::of(meanwhile);
        lines.push(
            Line::new(NAME, line("step meanwhile"), meanwhile.median * 1e3, "ms")
                .peer("step alone", alone.median * 1e3)
                .repeated(meanwhile.repeats, meanwhile.spread)
                .best(meanwhile.best * 1e3),
        );
    }
    Ok(lines)
}

/// Bytes a second that the disk gives to large reads in order.
fn read_rate(place: &Place) -> Result<f64, Error> {
    let mut data = Arena::random(DISK, kvist_kernels::DType::Bf16, 9)?;
    let mut disk = DiskFile::create(place.path(), data.bytes_mut())?;
    let order: Vec<u32> = (0..(DISK / READ) as u32).collect();
    let mut best = f64::INFINITY;
    for plan in ReadPlan::batched(READ, usize::MAX) {
        for _ in 0..3 {
            best = best.min(disk.read(data.bytes_mut(), plan, &order)?);
        }
    }
    Ok(DISK as f64 / best)
}
