//! What the disk gives and takes: one file of its own, read and written past the page cache.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{FallocateFlags, OFlags};

use super::queue::{DEPTH, Piece, Queue, Way};
use crate::Error;

/// Bytes of one sequential write.
const WRITE: usize = 2 << 20;
/// Sequential writes in flight.
const WRITES: usize = 8;

/// When a write becomes durable (`fdatasync`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteSync {
    /// Never: the device took it, and that is all.
    Never,
    /// Once, after the last byte.
    End,
    /// After each so many bytes.
    Every(usize),
}

/// How blocks are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadPlan {
    /// Bytes of a block.
    pub block: usize,
    /// Bytes of one read; divides the block.
    pub piece: usize,
    /// Reads in flight.
    pub flight: usize,
    /// Blocks of a call; the next call waits for all of them.
    pub call: usize,
}

impl ReadPlan {
    /// Ways to read blocks of this size one at a time: whole, or cut into pieces in flight.
    #[must_use]
    pub fn serial(block: usize) -> Vec<ReadPlan> {
        let cut = [64 << 10, 256 << 10, 1 << 20].into_iter().filter(|&piece| piece < block);
        let cut = cut.map(|piece| ReadPlan { block, piece, flight: DEPTH, call: 1 });
        cut.chain([ReadPlan { block, piece: block, flight: 1, call: 1 }]).collect()
    }

    /// Ways to read blocks of this size, so many in a call.
    #[must_use]
    pub fn batched(block: usize, call: usize) -> Vec<ReadPlan> {
        let pieces = [64 << 10, 256 << 10, 2 << 20].map(|piece| block.min(piece));
        let plan = |piece| ReadPlan { block, piece, flight: DEPTH, call };
        let mut plans: Vec<ReadPlan> = pieces.into_iter().map(plan).collect();
        plans.dedup();
        plans
    }
}

/// A file whose every byte has been written, opened with `O_DIRECT`.
pub struct DiskFile {
    file: File,
    queue: Queue,
}

impl DiskFile {
    /// Makes the file in this directory and fills it with `bytes`, which must be aligned to 4 KiB.
    /// It has no name and vanishes with this value.
    ///
    /// # Errors
    /// [`Error::Io`], for example where the file system has no direct access.
    pub fn create(dir: &Path, bytes: &mut [u8]) -> Result<DiskFile, Error> {
        let mut file = DiskFile { file: unnamed(dir)?, queue: Queue::new() };
        file.write(bytes, WriteSync::End)?;
        Ok(file)
    }

    /// What keeps transfers in flight: `io_uring` or `threads`.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.queue.name()
    }

    /// Seconds to write all of `bytes` in order, 2 MiB at a time, several in flight, over what the
    /// file held before. The bytes are not changed.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&mut self, bytes: &mut [u8], sync: WriteSync) -> Result<f64, Error> {
        let group = match sync {
            WriteSync::Every(group) => group,
            WriteSync::Never | WriteSync::End => bytes.len(),
        };
        let all = pieces(0, bytes.len(), WRITE);
        let start = Instant::now();
        for part in all.chunks(group.div_ceil(WRITE).max(1)) {
            let moved = self.queue.run(&self.file, Way::Write, bytes, part, WRITES);
            moved.map_err(Error::io("writing to the disk"))?;
            if sync != WriteSync::Never {
                self.file.sync_data().map_err(Error::io("syncing to the disk"))?;
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// [`DiskFile::write`] into a new file of this directory whose room is allocated already: what
    /// whoever appends can hope for. Overwriting is faster, as the file system has nothing to note.
    ///
    /// # Errors
    /// As [`DiskFile::write`].
    pub fn append(&mut self, dir: &Path, bytes: &mut [u8], sync: WriteSync) -> Result<f64, Error> {
        let fresh = unnamed(dir)?;
        // Where there is no such call, the writes allocate.
        let _ = rustix::fs::fallocate(&fresh, FallocateFlags::empty(), 0, bytes.len() as u64);
        let kept = std::mem::replace(&mut self.file, fresh);
        let seconds = self.write(bytes, sync);
        self.file = kept;
        seconds
    }

    /// Seconds to read the blocks named by `order` into their places in `into`.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&mut self, into: &mut [u8], plan: ReadPlan, order: &[u32]) -> Result<f64, Error> {
        let cut = |&i: &u32| pieces(i as usize * plan.block, plan.block, plan.piece);
        let calls = order.chunks(plan.call);
        let calls: Vec<Vec<Piece>> = calls.map(|c| c.iter().flat_map(cut).collect()).collect();
        let start = Instant::now();
        for call in &calls {
            let moved = self.queue.run(&self.file, Way::Read, into, call, plan.flight);
            moved.map_err(Error::io("reading from the disk"))?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// A new file that vanishes when it is closed.
fn unnamed(dir: &Path) -> Result<File, Error> {
    let path = dir.join("limit");
    let mut options = File::options();
    let options = options.read(true).write(true).create_new(true);
    let file = options
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(&path)
        .map_err(Error::io(format!("opening {} with O_DIRECT", path.display())))?;
    std::fs::remove_file(&path).map_err(Error::io(format!("removing {}", path.display())))?;
    Ok(file)
}

/// A stretch of the file, whose place in memory has the same offset, cut into pieces.
fn pieces(from: usize, len: usize, piece: usize) -> Vec<Piece> {
    let end = from + len;
    let at = (from..end).step_by(piece);
    at.map(|at| Piece { offset: at as u64, memory: at, len: piece.min(end - at) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arena;

    #[test]
    fn pieces_cover_a_stretch() {
        let cut = pieces(100, 250, 100);
        let ends: Vec<(u64, usize)> = cut.iter().map(|p| (p.offset, p.len)).collect();
        assert_eq!(ends, [(100, 100), (200, 100), (300, 50)]);
    }

    #[test]
    fn plans_read_whole_blocks_and_pieces() {
        assert_eq!(ReadPlan::serial(64 << 10).len(), 1);
        assert!(ReadPlan::serial(8 << 20).len() > 2);
        assert_eq!(ReadPlan::batched(64 << 10, 32).len(), 1);
        for plan in [2 << 20, 8 << 20].into_iter().flat_map(|b| ReadPlan::batched(b, 32)) {
            assert!(plan.block.is_multiple_of(plan.piece) && plan.call == 32);
        }
    }

    #[test]
    fn a_file_gives_back_what_it_took() {
        let dir = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let mut data = Arena::random(4 << 20, kvist_kernels::DType::Bf16, 3).unwrap();
        // A file system without direct access has no such limit.
        let Ok(mut file) = DiskFile::create(&dir, data.bytes_mut()) else { return };
        for sync in [WriteSync::Never, WriteSync::Every(2 << 20), WriteSync::End] {
            assert!(file.write(data.bytes_mut(), sync).unwrap() > 0.0);
        }
        for plan in [ReadPlan::serial(1 << 20), ReadPlan::batched(1 << 20, 3)].concat() {
            let mut seen = Arena::new(4 << 20).unwrap();
            assert!(file.read(seen.bytes_mut(), plan, &[3, 1, 0, 2]).unwrap() > 0.0);
            assert!(seen.bytes() == data.bytes(), "{plan:?}");
        }
    }
}
