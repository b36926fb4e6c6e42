//! Many transfers in flight: through io_uring, or through threads where the system denies it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use io_uring::{IoUring, opcode, types};

/// Most transfers in flight at once.
pub(super) const DEPTH: usize = 32;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write,
}

/// A stretch of the file, and the place in memory that belongs to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) memory: usize,
    pub(super) len: usize,
}

/// Moves pieces between a file and memory.
pub(super) struct Queue {
    ring: Option<IoUring>,
}

impl Queue {
    pub(super) fn new() -> Queue {
        Queue { ring: IoUring::new(DEPTH as u32).ok() }
    }

    pub(super) fn name(&self) -> &'static str {
        if self.ring.is_some() { "io_uring" } else { "threads" }
    }

    /// Moves all pieces with up to `flight` of them under way; returns after the last.
    ///
    /// # Panics
    /// If a piece lies outside the memory.
    pub(super) fn run(
        &mut self,
        file: &File,
        way: Way,
        memory: &mut [u8],
        pieces: &[Piece],
        flight: usize,
    ) -> io::Result<()> {
        assert!(pieces.iter().all(|p| p.memory + p.len <= memory.len()), "pieces lie in memory");
        let flight = flight.clamp(1, DEPTH);
        let base = Base(memory.as_mut_ptr());
        match (&mut self.ring, flight) {
            // One at a time needs no queue, and a plain call is the shortest way.
            (_, 1) => pieces.iter().try_for_each(|p| base.transfer(file, way, *p)),
            (Some(ring), _) => through_ring(ring, file, way, base, pieces, flight),
            (None, _) => through_threads(file, way, base, pieces, flight),
        }
    }
}

/// Start of the memory that `Queue::run` borrows mutably until every transfer has ended.
#[derive(Clone, Copy)]
struct Base(*mut u8);

// SAFETY: each piece is handled by one thread only.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

impl Base {
    fn at(self, piece: Piece) -> *mut u8 {
        self.0.wrapping_add(piece.memory)
    }

    fn transfer(self, file: &File, way: Way, piece: Piece) -> io::Result<()> {
        // SAFETY: `run` checked the bounds and holds the memory mutably; nobody else has this piece.
        let memory = unsafe { std::slice::from_raw_parts_mut(self.at(piece), piece.len) };
        match way {
            Way::Read => file.read_exact_at(memory, piece.offset),
            Way::Write => file.write_all_at(memory, piece.offset),
        }
    }
}

fn through_ring(
    ring: &mut IoUring,
    file: &File,
    way: Way,
    base: Base,
    pieces: &[Piece],
    flight: usize,
) -> io::Result<()> {
    let (mut next, mut under_way, mut failed) = (0, 0, None);
    while under_way > 0 || (next < pieces.len() && failed.is_none()) {
        while under_way < flight && next < pieces.len() && failed.is_none() {
            let (piece, fd) = (pieces[next], types::Fd(file.as_raw_fd()));
            let (memory, len) = (base.at(piece), piece.len as u32);
            let entry = match way {
                Way::Read => opcode::Read::new(fd, memory, len).offset(piece.offset).build(),
                Way::Write => opcode::Write::new(fd, memory, len).offset(piece.offset).build(),
            };
            // SAFETY: the memory is in bounds and borrowed by `run` until all have completed.
            let pushed = unsafe { ring.submission().push(&entry.user_data(next as u64)) };
            if pushed.is_err() {
                break;
            }
            (next, under_way) = (next + 1, under_way + 1);
        }
        match ring.submit_and_wait(1) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                // The kernel may still hold the memory: nothing sane can follow.
                panic!("io_uring: {e}");
            }
            _ => {}
        }
        for done in ring.completion() {
            under_way -= 1;
            let wanted = pieces[done.user_data() as usize].len as i32;
            failed = failed.or(match done.result() {
                n if n == wanted => None,
                n if n < 0 => Some(io::Error::from_raw_os_error(-n)),
                _ => Some(io::ErrorKind::UnexpectedEof.into()),
            });
        }
    }
    failed.map_or(Ok(()), Err)
}

fn through_threads(
    file: &File,
    way: Way,
    base: Base,
    pieces: &[Piece],
    flight: usize,
) -> io::Result<()> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Ok(())));
    let work = || {
        while let Some(&piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = base.transfer(file, way, piece)
                && let Ok(mut failed) = failed.lock()
            {
                *failed = Err(e);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..flight.min(pieces.len()) {
            scope.spawn(work);
        }
    });
    failed.into_inner().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_by_ring_and_by_threads() {
        let path = std::env::temp_dir().join(format!("kvist-queue-{}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let piece = |i: usize| Piece { offset: (i * 4096) as u64, memory: i * 4096, len: 4096 };
        let pieces: Vec<Piece> = (0..100).map(piece).collect();
        let mut data: Vec<u8> = (0..409_600u32).map(|i| (i * 7 / 3) as u8).collect();
        for mut queue in [Queue::new(), Queue { ring: None }] {
            for flight in [1, 8, 32] {
                queue.run(&file, Way::Write, &mut data, &pieces, flight).unwrap();
                let mut seen = vec![0; data.len()];
                queue.run(&file, Way::Read, &mut seen, &pieces, flight).unwrap();
                assert_eq!(seen, data);
                file.set_len(0).unwrap();
                assert!(queue.run(&file, Way::Read, &mut seen, &pieces, flight).is_err());
            }
        }
    }
}
