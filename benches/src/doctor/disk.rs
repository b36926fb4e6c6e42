//! What the disk gives and takes, through the store's own engine, in a file without a name.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvist::vfs::{Buf, BufPool, File, Op, Outcome, Vfs, Whole};
use kvist_kernels::DType;

use super::links::Link;
use super::scratch;
use crate::floor::{DiskFile, ReadPlan, WriteSync};
use crate::{Arena, Rng, Sample};

/// Bytes of one write, writes in flight, and bytes between two syncs: as a store's.
const WRITE: usize = 2 << 20;
const GROUP: usize = 8 * WRITE;
/// Bytes of one read of a block.
const PIECE: usize = 512 << 10;
/// Blocks of a batch, and most bytes of it.
const BATCH: usize = 32;
const BATCH_BYTES: usize = 32 << 20;
/// Bytes of the read that shows the delay alone.
const SMALL: usize = 4096;
/// A disk that has not answered after this time is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Bytes of a block.
    pub(super) block: usize,
    /// Most bytes of the file; at least one group is written.
    pub(super) most: u64,
    /// Seconds that all of it should take.
    pub(super) seconds: f64,
}

/// What was measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) links: Vec<Link>,
    /// What offsets of direct transfers must be a multiple of; `None` where they go through the page
    /// cache.
    pub(super) direct: Option<usize>,
}

struct Disk<'a> {
    vfs: &'a Arc<dyn Vfs>,
    file: Arc<dyn File>,
    align: usize,
    /// Bytes that the file holds.
    written: usize,
    memory: BufPool,
    rng: Rng,
}

/// Measures writing and reading in a directory, which must exist.
pub(super) fn measure(vfs: &Arc<dyn Vfs>, dir: &Path, plan: Plan) -> io::Result<Measured> {
    let file = scratch::file(vfs, dir)?;
    let (direct, align) = (Some(file.alignment()).filter(|&a| a > 1), file.alignment());
    let mut disk =
        Disk { vfs, file, align, written: 0, memory: BufPool::default(), rng: Rng::new(3) };
    let slice = plan.seconds / 10.0;
    let data = Arena::random(GROUP, DType::Bf16, 5).map_err(io::Error::other)?;
    let write = disk.write(&data, plan.most, 2.0 * slice)?;
    let block = disk.block(plan.block);
    let batch = (BATCH_BYTES / block).clamp(1, BATCH).min(disk.written / block);
    let delay = disk.read(SMALL.next_multiple_of(align), 1, slice / 2.0)?;
    let single = disk.read(block, 1, slice)?;
    let batched = disk.read(block, batch, slice)?;
    let limits =
        limits(dir, disk.written, block, slice, [single.median, batched.median / batch as f64]);
    let [write_limit, single_limit, batched_limit] = limits.map_or([None; 3], |l| l.map(Some));
    let cold = if direct.is_some() { "" } else { ", through the page cache" };
    let kib = block >> 10;
    let link = |name, what, bytes, sample, limit, limit_is| {
        Link::new(name, format!("{what}{cold}"), bytes, sample, limit, limit_is)
    };
    let links = vec![
        link(
            "disk_write",
            "disk write and sync, 16 MiB".to_owned(),
            GROUP,
            write,
            write_limit,
            "bare writes and syncs",
        ),
        link("disk_latency", "disk read of 4 KiB".to_owned(), SMALL, delay, None, ""),
        link(
            "disk_read",
            format!("disk read of {kib} KiB, one by one"),
            block,
            single,
            single_limit,
            "bare reads, as many in flight",
        ),
        link(
            "disk_read_batched",
            format!("disk read of {kib} KiB, {batch} at a time"),
            block * batch,
            batched,
            batched_limit,
            "bare reads, 32 in flight",
        ),
    ];
    Ok(Measured { links, direct })
}

impl Disk<'_> {
    /// A block's bytes as they are read here: whole units of the disk, and several blocks in the file.
    fn block(&self, wanted: usize) -> usize {
        let unit = self.align.max(SMALL);
        wanted.min(self.written / 4 / unit * unit).next_multiple_of(unit)
    }

    /// Writes group after group; the time of each, its sync included.
    fn write(&mut self, data: &Arena, most: u64, seconds: f64) -> io::Result<Sample> {
        match self.file.allocate(most) {
            Err(e) if e.kind() != io::ErrorKind::Unsupported => return Err(e),
            _ => {}
        }
        let mut bufs = Vec::new();
        for part in data.bytes()[..GROUP].chunks(WRITE) {
            let mut buf = self.alloc(WRITE)?;
            buf.copy_from_slice(part);
            bufs.push(buf);
        }
        let (since, mut times) = (Instant::now(), Vec::new());
        while times.is_empty()
            || (since.elapsed().as_secs_f64() < seconds && self.written + GROUP <= most as usize)
        {
            let start = Instant::now();
            let at = self.written as u64;
            let op = |(i, buf)| Op::write(self.file.clone(), at + (i * WRITE) as u64, buf);
            bufs = self.run(bufs.drain(..).enumerate().map(op).collect())?;
            self.file.sync_data()?;
            self.written += GROUP;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(Sample::of(times))
    }

    /// Reads so many blocks at a time from all over the file; the time of each call.
    fn read(&mut self, block: usize, batch: usize, seconds: f64) -> io::Result<Sample> {
        let mut order: Vec<u32> = Vec::new();
        let mut bufs: Vec<Buf> = Vec::new();
        for _ in 0..batch * block.div_ceil(PIECE) {
            let mut buf = self.alloc(block.min(PIECE))?;
            // The first touch of memory is the system's work, not the disk's.
            buf.fill(1);
            bufs.push(buf);
        }
        let (since, mut times) = (Instant::now(), Vec::new());
        while times.len() < 2 || since.elapsed().as_secs_f64() < seconds {
            if order.len() < batch {
                order = self.rng.permutation(self.written / block);
            }
            let places = order.drain(order.len() - batch..).flat_map(|i| {
                let first = i as usize * block;
                (first..first + block)
                    .step_by(PIECE)
                    .map(move |at| (at, PIECE.min(first + block - at)))
            });
            let op = |((at, len), mut buf): ((usize, usize), Buf)| {
                buf.set_len(len);
                Op::read(self.file.clone(), at as u64, buf)
            };
            let ops = places.zip(bufs.drain(..)).map(op).collect();
            let start = Instant::now();
            bufs = self.run(ops)?;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(Sample::of(times))
    }

    /// Memory as the store has it: parts of huge pages.
    fn alloc(&self, len: usize) -> io::Result<Buf> {
        self.memory.take(len).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Carries out operations and gives their memory back.
    fn run(&self, ops: Vec<Op>) -> io::Result<Vec<Buf>> {
        let deadline = self.vfs.now() + PATIENCE;
        let mut whole = Whole::start(self.vfs, ops);
        let mut bufs = Vec::new();
        loop {
            match whole.next(Some(deadline)) {
                Outcome::Done { result, buf, .. } => {
                    result?;
                    bufs.push(buf);
                }
                Outcome::Empty => return Ok(bufs),
                Outcome::TimedOut => {
                    let text = format!("no answer after {} s", PATIENCE.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
            }
        }
    }
}

/// Bytes in a second that the bare disk gives: written, read one by one, read in batches. `each` are the
/// seconds that a block took here. `None` where there are no direct transfers.
fn limits(dir: &Path, len: usize, block: usize, slice: f64, each: [f64; 2]) -> Option<[f64; 3]> {
    let mut data = Arena::random(len, DType::Bf16, 9).ok()?;
    let mut file = DiskFile::create(dir, &mut data.bytes_mut()[..len]).ok()?;
    let seconds = file.append(dir, &mut data.bytes_mut()[..len], WriteSync::Every(GROUP)).ok()?;
    let written = len as f64 / seconds;
    let order = Rng::new(11).permutation(len / block);
    let mut read = |plan: ReadPlan, each: f64| {
        let some = (slice / 2.0 / each) as usize;
        let order = &order[..some.clamp(1, order.len())];
        let seconds = file.read(data.bytes_mut(), plan, order).ok()?;
        Some((order.len() * block) as f64 / seconds)
    };
    let cut = ReadPlan { block, piece: PIECE.min(block), flight: BATCH, call: 1 };
    let single = read(cut, each[0])?;
    let batched = read(ReadPlan { call: usize::MAX, ..cut }, each[1])?;
    Some([written, single, batched])
}

#[cfg(test)]
mod tests {
    use kvist::vfs::sim::{Call, Fault, SimVfs, Trigger};
    use kvist::vfs::{Engine, OsVfs};

    use super::super::scratch::Folder;
    use super::*;

    const PLAN: Plan = Plan { block: 100_000, most: 40 << 20, seconds: 0.0 };

    #[test]
    fn links_of_the_disk_have_speeds_and_nothing_stays() {
        let folder = Folder::new("disk");
        for engine in [Engine::Auto, Engine::Threads] {
            let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new(engine).unwrap());
            let found = measure(&vfs, &folder.0, PLAN).unwrap();
            let names: Vec<&str> = found.links.iter().map(|l| l.name).collect();
            assert_eq!(names, ["disk_write", "disk_latency", "disk_read", "disk_read_batched"]);
            assert!(found.links.iter().all(|l| l.bytes_per_s > 0.0 && l.repeats > 0));
            assert_eq!(found.links[2].call_bytes, 102_400, "whole units");
            assert_eq!(found.links[3].call_bytes, 32 * 102_400);
            assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
        }
    }

    fn sim() -> (SimVfs, Arc<dyn Vfs>) {
        let sim = SimVfs::new(1);
        let vfs: Arc<dyn Vfs> = Arc::new(sim.clone());
        vfs.open_dir(Path::new("/d"), true).unwrap();
        (sim, vfs)
    }

    /// Nothing is left behind, and the error is the disk's.
    fn failed(sim: &SimVfs, vfs: &Arc<dyn Vfs>) -> io::Error {
        let failed = measure(vfs, Path::new("/d"), PLAN).unwrap_err();
        sim.heal();
        assert!(vfs.open_dir(Path::new("/d"), false).unwrap().list().unwrap().is_empty());
        assert_eq!((sim.disk_used(), vfs.parked_bytes()), (0, 0));
        failed
    }

    #[test]
    fn a_full_or_failing_disk_is_an_error_and_leaves_nothing() {
        let (sim, vfs) = sim();
        sim.disk_limit(Some(1 << 20));
        assert_eq!(failed(&sim, &vfs).kind(), io::ErrorKind::StorageFull);
        sim.disk_limit(None);
        for (fault, call) in [
            (Fault::CreateQuota, Call::Create),
            (Fault::WriteNoSpace, Call::Write),
            (Fault::WriteIo, Call::Write),
            (Fault::SyncIo, Call::SyncData),
            (Fault::ReadIo, Call::Read),
            (Fault::ReadOnly, Call::Create),
        ] {
            sim.inject(fault, Trigger::from(1).on(call));
            failed(&sim, &vfs);
        }
    }

    #[test]
    fn a_file_system_without_direct_transfers_is_told_apart() {
        let (sim, vfs) = sim();
        sim.alignment(1);
        let found = measure(&vfs, Path::new("/d"), PLAN).unwrap();
        assert_eq!(found.direct, None);
        assert!(found.links[2].what.ends_with("through the page cache"));
        assert!(found.links.iter().all(|l| l.limit.is_none()), "no such directory outside");
        sim.alignment(4096);
        let found = measure(&vfs, Path::new("/d"), PLAN).unwrap();
        assert_eq!(found.direct, Some(4096));
    }
}
