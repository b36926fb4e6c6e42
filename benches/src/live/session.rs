//! A saved session is opened again: the first token after reading what it needs, and after reading
//! everything.

use std::path::Path;
use std::time::Instant;

use kvist::{DiskOptions, Sequence};

use super::NAME;
use super::scene::{Queries, Scene, Statistics};
use crate::data::SHAPES;
use crate::store::Place;
use crate::{Error, Line, Options, Params, Sample, Sink};

const SESSION: &str = "bench";
const CONTEXT: usize = 100_000;
const REPEATS: usize = 5;

pub(super) fn run(
    options: &Options,
    place: &Place,
    statistics: &Statistics,
    sink: &mut Sink,
) -> Result<(), Error> {
    for shape in options.shapes(&SHAPES[..1])? {
        for &context in options.context.as_deref().unwrap_or(&[CONTEXT]) {
            let scene = Scene::new(shape, context, statistics);
            let dir = place.path().join("sessions");
            let saved = save(&scene, &dir)?;
            rows(&scene, &dir, saved, options, sink)?;
            std::fs::remove_dir_all(&dir)
                .map_err(Error::io(format!("removing {}", dir.display())))?;
        }
    }
    Ok(())
}

fn disk(scene: &Scene, dir: &Path) -> DiskOptions {
    DiskOptions::new(dir, 2 * scene.bytes() + (1 << 30))
}

/// Saves the sequence; bytes on disk, and seconds.
fn save(scene: &Scene, dir: &Path) -> Result<(u64, f64), Error> {
    let host = scene.bytes() / 4 + scene.beside();
    let cache = scene.cache(host)?.disk(disk(scene, dir)).build()?;
    let mut sequence = cache.sequence();
    scene.fill(&mut sequence)?;
    let start = Instant::now();
    let saved = sequence.save(SESSION)?;
    Ok((saved.bytes, start.elapsed().as_secs_f64()))
}

/// Seconds from opening to the first token, and bytes read; nothing of the session is in memory.
fn first_token(
    scene: &Scene,
    dir: &Path,
    load: impl Fn(&Sequence) -> Result<(), Error>,
) -> Result<(f64, u64), Error> {
    let host = scene.bytes() + scene.bytes() / 16 + scene.beside();
    let cache = scene.cache(host)?.disk(disk(scene, dir)).build()?;
    let before = cache.disk().map_or(0, |disk| disk.read_bytes);
    let start = Instant::now();
    let sequence = cache.open_session(SESSION)?;
    load(&sequence)?;
    Queries::new(scene.shape, 0.0).step(&sequence)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok((seconds, cache.disk().map_or(0, |disk| disk.read_bytes) - before))
}

fn rows(
    scene: &Scene,
    dir: &Path,
    (bytes, save_seconds): (u64, f64),
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let (mut soon, mut late) = (Vec::new(), Vec::new());
    let (mut few, mut all) = (0, 0);
    for _ in 0..options.repeats.unwrap_or(REPEATS) {
        let (seconds, read) = first_token(scene, dir, |_| Ok(()))?;
        soon.push(seconds);
        few = few.max(read);
        let restore = |s: &Sequence| s.restore().map(drop).map_err(Error::from);
        let (seconds, read) = first_token(scene, dir, restore)?;
        late.push(seconds);
        all = all.max(read);
    }
    let (soon, late) = (Sample::of(soon), Sample::of(late));
    let params = scene.shape.params().with("context", scene.context).with("op", "first-token");
    let line = |load, sample: &Sample, read: u64| {
        let columns = Params::new()
            .with("read_mb", read as f64 * 1e-6)
            .with("of_session", read as f64 / bytes as f64)
            .with("session_mb", bytes as f64 * 1e-6)
            .with("save_s", save_seconds);
        Line::new(NAME, params.clone().with("load", load), sample.median * 1e3, "ms")
            .repeated(sample.repeats, sample.spread)
            .best(sample.best * 1e3)
            .columns(columns)
    };
    sink.push(line("all", &late, all));
    sink.push(line("selected", &soon, few).peer("everything first", late.median * 1e3));
    Ok(())
}
