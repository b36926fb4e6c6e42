//! A sequence that moves while it goes on: for how long it stands still, and how fast it moves.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use kvist::migrate::{
    Destination, Finished, Link, MigrateOptions, MigrationId, Outgoing, Served, Stream, local,
};
use kvist::{Cache, Sequence};

use super::scene::{Scene, Statistics};
use crate::data::SHAPES;
use crate::floor::{best_copy, copy_seconds};
use crate::{Arena, Error, Line, Options, Params, Sample, Shape, Sink};

const NAME: &str = "migrate";
/// From the shortest to the longest whose pause must be the same (`kvist`'s target G1).
const CONTEXTS: [usize; 4] = [1024, 8192, 32_768, 131_072];
/// Tokens that the sequence grows by while a round is on its way.
const GROWTH: usize = 64;
const REPEATS: usize = 3;
/// Bytes over which plain copies are measured, and those of a piece.
const PLAIN: usize = 256 << 20;
const PIECE: usize = 1 << 20;

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let statistics = Statistics::new(options, sink)?;
    let plain = [("in process", memory_rate()?), ("unix socket", socket_rate()?)];
    for shape in options.shapes(&SHAPES[..1])? {
        for &context in options.context.as_deref().unwrap_or(&CONTEXTS) {
            let scene = Scene::new(shape, context, &statistics);
            let host = scene.bytes() + scene.bytes() / 16 + scene.beside();
            let (from, to) = (scene.cache(host)?.build()?, scene.cache(host)?.build()?);
            let mut s = from.sequence();
            scene.fill(&mut s)?;
            for (way, rate) in plain {
                let repeats = options.repeats.unwrap_or(REPEATS);
                let runs = (0..repeats).map(|n| {
                    let id = MigrationId { sequence: [0; 16], epoch: n as u64 + 1 };
                    let growth = Scene::new(shape, GROWTH, &statistics);
                    match way {
                        "in process" => {
                            let (source, far) = local();
                            migrate(&s, &to, id, &growth, source, far)
                        }
                        _ => {
                            let (source, far) = UnixStream::pair().map_err(socket_error)?;
                            let far = Stream::new(far.try_clone().map_err(socket_error)?, far);
                            migrate(&s, &to, id, &growth, Stream::new(&source, &source), far)
                        }
                    }
                });
                let runs: Vec<Migrated> = runs.collect::<Result<_, _>>()?;
                lines(shape, context, way, rate, &runs).into_iter().for_each(|l| sink.push(l));
            }
        }
    }
    Ok(())
}

fn socket_error(e: std::io::Error) -> Error {
    Error::io("a socket")(e)
}

/// What a migration took.
struct Migrated {
    pause: f64,
    all: f64,
    /// Blocks that were left when it stopped.
    left: usize,
    moved: kvist::migrate::Moved,
}

fn migrate<L: Link + Send, D: Link + Send>(
    s: &Sequence,
    to: &Cache,
    id: MigrationId,
    growth: &Scene,
    source: L,
    mut far: D,
) -> Result<Migrated, Error> {
    let mut s = s.fork();
    let destination = Destination::new(to);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let served = destination.serve(&mut far);
            (served, Instant::now())
        });
        let start = Instant::now();
        let mut moving = Outgoing::offer(&s, id, source, MigrateOptions::default())?;
        while !moving.is_close(&s) {
            let snapshot = s.fork();
            std::thread::scope(|scope| {
                let round = scope.spawn(|| moving.round(snapshot));
                growth.fill(&mut s)?;
                round.join().map_err(|_| Error::subject("kvist", "a round panicked"))??;
                Ok::<(), Error>(())
            })?;
        }
        let (left, stopped) = (moving.left(&s), Instant::now());
        let moved = match moving.finish(s) {
            Finished::Moved(moved) => moved,
            Finished::Kept(_, error) | Finished::Unsure(_, error) => return Err(error.into()),
        };
        let (served, arrived) =
            serving.join().map_err(|_| Error::subject("kvist", "the destination panicked"))?;
        let Served::Arrived(_) = served? else {
            return Err(Error::subject("kvist", "the sequence did not arrive"));
        };
        let (pause, all) = (arrived - stopped, arrived - start);
        Ok(Migrated { pause: pause.as_secs_f64(), all: all.as_secs_f64(), left, moved })
    })
}

/// The pause beside the time that its bytes take in a plain copy, and the rate beside a plain copy's.
fn lines(
    shape: Shape,
    context: usize,
    way: &'static str,
    rate: f64,
    runs: &[Migrated],
) -> Vec<Line> {
    let params = |op| shape.params().with("context", context).with("over", way).with("op", op);
    let of = |f: fn(&Migrated) -> f64| Sample::of(runs.iter().map(f).collect());
    let median = |f: fn(&Migrated) -> f64| of(f).median;
    let (pause, all) = (of(|m| m.pause), of(|m| m.all));
    let stopped = median(|m| m.moved.stopped.bytes as f64);
    let bytes = stopped + median(|m| m.moved.before.bytes as f64);
    let columns = Params::new()
        .with("blocks_left", median(|m| m.left as f64))
        .with("stopped_mb", stopped * 1e-6)
        .with("rounds", median(|m| m.moved.rounds as f64));
    vec![
        Line::new(NAME, params("pause"), pause.median * 1e3, "ms")
            .floor(stopped / rate * 1e3)
            .repeated(pause.repeats, pause.spread)
            .best(pause.best * 1e3)
            .columns(columns),
        Line::new(NAME, params("move"), bytes / all.median * 1e-9, "GB/s")
            .floor(rate * 1e-9)
            .repeated(all.repeats, all.spread)
            .best(bytes / all.best * 1e-9)
            .columns(Params::new().with("mb", bytes * 1e-6).with("ms", all.median * 1e3)),
    ]
}

/// Bytes a second of the best plain copy of memory.
fn memory_rate() -> Result<f64, Error> {
    let from = Arena::random(PLAIN, kvist_kernels::DType::Bf16, 5)?;
    let mut to = Arena::new(PLAIN)?;
    let how = best_copy(from.bytes(), to.bytes_mut(), PIECE);
    let seconds = (0..5).map(|_| copy_seconds(how, from.bytes(), to.bytes_mut(), PIECE));
    Ok(PLAIN as f64 / seconds.fold(f64::INFINITY, f64::min))
}

/// Bytes a second through a Unix socket, from one thread to another.
fn socket_rate() -> Result<f64, Error> {
    let from = Arena::random(PLAIN, kvist_kernels::DType::Bf16, 6)?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let (mut near, mut far) = UnixStream::pair().map_err(socket_error)?;
        let start = Instant::now();
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let mut piece = vec![0u8; PIECE];
                (0..PLAIN / PIECE).try_for_each(|_| far.read_exact(&mut piece))
            });
            let pieces = &mut from.bytes().chunks(PIECE);
            pieces.try_for_each(|piece| near.write_all(piece)).map_err(socket_error)?;
            let read = reading.join().map_err(|_| Error::subject("socket", "a read panicked"))?;
            read.map_err(socket_error)
        })?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(PLAIN as f64 / best)
}
