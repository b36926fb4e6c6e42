//! Reads past the page cache: bare `pread` beside both engines of the file system.
//!
//! `cargo bench -p kvist-bench --bench vfs -- [DIRECTORY [GIBIBYTES]]` writes a file of 4 GiB there
//! (default: the target directory), reads at random offsets and removes it. The ways take turns,
//! because a disk's speed drifts more within a run than they differ. `fio` over the same sizes and
//! depths is the peer, run by hand beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvist::vfs::{Access, Batch, Buf, Dir, Engine, File, Next, Op, OsVfs, Vfs, write_all_at};
use kvist_bench::Rng;

const NAME: &str = "kvist-bench-vfs";
/// Turns that each engine gets, and how long one takes.
const TURNS: usize = 15;
const TURN: Duration = Duration::from_millis(250);
/// Warm reads fit any cache.
const WARM: u64 = 16 << 20;

/// A file, and where to read next.
struct Place {
    file: Arc<dyn File>,
    len: u64,
    rng: Rng,
}

impl Place {
    fn offset(&mut self, size: usize) -> u64 {
        self.rng.below((self.len / size as u64) as usize) as u64 * size as u64
    }

    fn op(&mut self, buf: Buf) -> Op {
        let offset = self.offset(buf.len());
        Op::read(Arc::clone(&self.file), offset, buf)
    }
}

fn memory(len: usize) -> Buf {
    Buf::alloc(len).expect("memory for a buffer")
}

fn wait(batch: &mut dyn Batch) -> Buf {
    match batch.next(None) {
        Next::Done(done) => {
            assert_eq!(done.result.expect("a good read"), done.buf.len());
            done.buf
        }
        other => panic!("{other:?}"),
    }
}

/// Microseconds of one read; without `vfs` by bare `pread`.
fn once(vfs: Option<&dyn Vfs>, mut op: Op) -> (f64, Buf) {
    let start = Instant::now();
    let buf = match vfs {
        None => {
            let n = op.file.read_at(&mut op.buf, op.offset).expect("a good read");
            assert_eq!(n, op.buf.len());
            op.buf
        }
        Some(vfs) => wait(&mut *vfs.start(vec![op])),
    };
    (start.elapsed().as_secs_f64() * 1e6, buf)
}

/// Bytes per second of a turn with `depth` reads in flight.
fn deep(place: &mut Place, vfs: &dyn Vfs, size: usize, depth: usize) -> f64 {
    let start = Instant::now();
    let mut batch = vfs.start((0..depth).map(|_| place.op(memory(size))).collect());
    let mut done = 0;
    while start.elapsed() < TURN {
        let buf = wait(&mut *batch);
        batch.push(place.op(buf));
        done += size;
    }
    let speed = done as f64 / start.elapsed().as_secs_f64();
    while batch.pending() > 0 {
        wait(&mut *batch);
    }
    speed
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q) as usize]
}

fn serial_table(place: &mut Place, engines: &[Arc<dyn Vfs>], what: &str, size: usize) {
    let ways: Vec<Option<&dyn Vfs>> =
        std::iter::once(None).chain(engines.iter().map(|vfs| Some(&**vfs))).collect();
    let mut times = vec![Vec::new(); ways.len()];
    let mut buf = memory(size);
    let end = Instant::now() + TURN * TURNS as u32;
    while Instant::now() < end {
        // The order shifts, so that no way always follows the same one.
        let first = times[0].len();
        for way in (first..first + ways.len()).map(|i| i % ways.len()) {
            let (time, back) = once(ways[way], place.op(buf));
            times[way].push(time);
            buf = back;
        }
    }
    for (way, times) in ways.iter().zip(&mut times) {
        let name = way.map_or("pread", Vfs::name);
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        println!(
            "{what} {:>5} KiB  one at a time  {name:<9} p10 {:8.1}  p50 {:8.1}  mean {mean:8.1}  p99 {:8.1} us",
            size >> 10,
            quantile(times, 0.1),
            quantile(times, 0.5),
            quantile(times, 0.99),
        );
    }
}

fn deep_table(place: &mut Place, engines: &[Arc<dyn Vfs>], size: usize, depth: usize) {
    let mut speeds = vec![Vec::new(); engines.len()];
    for _ in 0..TURNS {
        for (vfs, speeds) in engines.iter().zip(&mut speeds) {
            speeds.push(deep(place, &**vfs, size, depth));
        }
    }
    for (vfs, speeds) in engines.iter().zip(&mut speeds) {
        println!(
            "direct {:>5} KiB  depth {depth:<8} {:<9} median {:7.0}  best {:7.0} MB/s",
            size >> 10,
            vfs.name(),
            quantile(speeds, 0.5) / 1e6,
            quantile(speeds, 1.0) / 1e6,
        );
    }
}

fn fill(dir: &dyn Dir, len: u64) -> std::io::Result<()> {
    let file = dir.create(NAME, Access::Direct)?;
    let mut rng = Rng::new(1);
    let mut part = memory(8 << 20);
    for offset in (0..len).step_by(part.len()) {
        part.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.bits().to_le_bytes()));
        write_all_at(&*file, &part, offset)?;
    }
    file.sync_data()
}

fn measure(dir: &dyn Dir, engines: &[Arc<dyn Vfs>], len: u64) -> std::io::Result<()> {
    let place = |access, len| -> std::io::Result<Place> {
        Ok(Place { file: dir.open(NAME, access)?, len, rng: Rng::new(2) })
    };
    let mut cold = place(Access::Direct, len)?;
    println!("alignment of direct reads: {}", cold.file.alignment());
    for size in [64 << 10, 2 << 20] {
        serial_table(&mut cold, engines, "direct", size);
    }
    let mut warm = place(Access::Buffered, WARM)?;
    for size in [4 << 10, 64 << 10] {
        serial_table(&mut warm, engines, "warm  ", size);
    }
    for depth in [8, 32] {
        for size in [16 << 10, 32 << 10, 64 << 10] {
            deep_table(&mut cold, engines, size, depth);
        }
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    // Cargo adds flags of its own.
    let words: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let path = words.first().map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), Into::into);
    let gib: u64 = words.get(1).and_then(|word| word.parse().ok()).unwrap_or(4);
    let mut engines: Vec<Arc<dyn Vfs>> = Vec::new();
    for engine in [Engine::Uring, Engine::Threads] {
        match OsVfs::new(engine) {
            Ok(vfs) => engines.push(Arc::new(vfs)),
            Err(error) => eprintln!("no {engine:?} here: {error}"),
        }
    }
    let dir = engines[0].open_dir(Path::new(&path), true)?;
    let measured = fill(&*dir, gib << 30).and_then(|()| measure(&*dir, &engines, gib << 30));
    dir.remove(NAME)?;
    measured
}
