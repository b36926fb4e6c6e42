//! For tests: transfers that wait until they are told to go on.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fd::OwnedFd;

use super::super::{Buf, File, Op, Stat, Vfs};
use super::file::OsFile;
use super::{Engine, OsVfs};

/// A pipe: reads from it wait in the kernel, as on a disk that hangs.
pub(super) fn pipe() -> (Arc<dyn File>, OwnedFd) {
    let (read, write) = io::pipe().unwrap();
    (Arc::new(OsFile::unchecked(read.into())), write.into())
}

/// A file whose reads wait in this process until the gate opens.
#[derive(Debug, Default)]
pub(super) struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
}

impl Gate {
    pub(super) fn open(&self) {
        *self.open.lock() = true;
        self.changed.notify_all();
    }

    /// Reads that have begun and not ended.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

impl File for Gate {
    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn read_at(&self, out: &mut [u8], _: u64) -> io::Result<usize> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock();
        while !*open {
            self.changed.wait(&mut open);
        }
        out.fill(7);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Ok(out.len())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn alignment(&self) -> usize {
        1
    }

    fn stat(&self) -> io::Result<Stat> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Counts the buffers that are gone.
struct Counted(#[expect(dead_code, reason = "held, not read")] Mutex<Buf>, Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// A read of `len` bytes into memory that reports its end.
pub(super) fn read(file: &Arc<dyn File>, len: usize, gone: &Arc<AtomicUsize>) -> Op {
    let mut memory = Buf::alloc(len).unwrap();
    let ptr = memory.as_mut_ptr();
    let owner = Box::new(Counted(Mutex::new(memory), Arc::clone(gone)));
    // SAFETY: the owner keeps the memory and lends it to nobody else.
    let buf = unsafe { Buf::from_raw(ptr, len, owner) };
    Op::read(Arc::clone(file), 0, buf)
}

pub(super) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "still not: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_dropped_file_system_gives_up_and_frees_nothing_that_is_in_use() {
    let gate = Arc::new(Gate::default());
    let file: Arc<dyn File> = gate.clone();
    let gone = Arc::default();
    let mut vfs = OsVfs::new(Engine::Threads).unwrap();
    vfs.drain = Duration::from_millis(30);
    let batch = vfs.start((0..6).map(|_| read(&file, 100, &gone)).collect());
    eventually("four workers wait", || gate.waiting() == 4);
    drop(batch);
    assert_eq!((gone.load(Ordering::SeqCst), vfs.parked_bytes()), (2, 400));
    let start = Instant::now();
    drop(vfs);
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert_eq!(gone.load(Ordering::SeqCst), 2);
    gate.open();
    eventually("freed after all", || gone.load(Ordering::SeqCst) == 6);
}
