//! The operating system's file system, through both engines.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod batches;
mod children;
mod files;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kvist::vfs::{Buf, Dir, Engine, File, Insert, Op, OsVfs, Outcome, Transfer, Vfs, Whole};

/// An empty directory that goes away with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        Scratch::below(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    fn below(parent: &Path) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("kvist-vfs-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn dir(&self, vfs: &Arc<dyn Vfs>) -> Arc<dyn Dir> {
        vfs.open_dir(&self.0, false).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One file system for each engine that this machine has.
fn engines() -> Vec<Arc<dyn Vfs>> {
    let mut all: Vec<Arc<dyn Vfs>> = Vec::new();
    for engine in [Engine::Threads, Engine::Uring] {
        match OsVfs::new(engine) {
            Ok(vfs) => all.push(Arc::new(vfs)),
            Err(error) => eprintln!("skipped: no {engine:?} here ({error})"),
        }
    }
    all
}

/// A generator good enough to scatter offsets (xorshift64*).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed | 1);
    (0..len).map(|_| rng.below(256) as u8).collect()
}

fn read(file: &Arc<dyn File>, offset: usize, len: usize) -> Op {
    transfer(file, Transfer::Read, offset, Buf::alloc(len).unwrap(), 0)
}

fn write(file: &Arc<dyn File>, offset: usize, data: &[u8]) -> Op {
    let mut buf = Buf::alloc(data.len()).unwrap();
    buf.copy_from_slice(data);
    transfer(file, Transfer::Write, offset, buf, 0)
}

fn transfer(file: &Arc<dyn File>, transfer: Transfer, at: usize, buf: Buf, skip: usize) -> Op {
    Op { transfer, skip, ..Op::read(Arc::clone(file), at as u64, buf) }
}

/// Runs operations to their ends, all of which must be good; the buffers in order.
fn run(vfs: &Arc<dyn Vfs>, ops: Vec<Op>) -> Vec<Buf> {
    let mut bufs: Vec<Option<Buf>> = ops.iter().map(|_| None).collect();
    let mut whole = Whole::start(vfs, ops);
    while whole.pending() > 0 {
        match whole.next(None) {
            Outcome::Done { index, result, buf, .. } => {
                result.unwrap();
                assert!(bufs[index].replace(buf).is_none(), "handed back twice");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(whole.next(None), Outcome::Empty));
    bufs.into_iter().map(Option::unwrap).collect()
}

/// Waits for what must come soon.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "still not: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
