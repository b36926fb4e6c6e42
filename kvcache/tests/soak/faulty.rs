//! The real file system, of which one call in a hundred goes wrong, and on whose clock everything
//! happens a hundred times as fast, so that rests after failures are short.

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use kvist::vfs::{
    Access, Batch, Dir, Engine, Entry, File, Lock, Next, Op, OsVfs, Stat, Transfer, Vfs,
};

/// How much faster the clock goes.
pub(crate) const SPEED: u32 = 100;

/// One transfer, file or sync in so many fails.
const TRANSFERS: u64 = 100;
const FILES: u64 = 100;
const SYNCS: u64 = 100;

#[derive(Debug)]
struct State {
    os: OsVfs,
    dice: AtomicU64,
    struck: AtomicU64,
}

impl State {
    fn roll(&self) -> u64 {
        let n = self.dice.fetch_add(0x9E37_79B9_7F4A_7C15, Relaxed);
        let n = (n ^ n >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (n ^ n >> 27).wrapping_mul(0x94D0_49BB_1331_11EB) >> 16
    }

    fn fails(&self, one_in: u64) -> io::Result<()> {
        if !self.roll().is_multiple_of(one_in) {
            return Ok(());
        }
        self.struck.fetch_add(1, Relaxed);
        Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Faulty(Arc<State>);

impl Faulty {
    pub(crate) fn new(seed: u64) -> Faulty {
        let os = OsVfs::new(Engine::Auto).unwrap();
        Faulty(Arc::new(State { os, dice: seed.into(), struck: 0.into() }))
    }

    /// Calls that went wrong.
    pub(crate) fn struck(&self) -> u64 {
        self.0.struck.load(Relaxed)
    }

    fn plain(op: Op) -> (Transfer, Op) {
        let file = op.file.as_any().downcast_ref::<FaultyFile>().unwrap().inner.clone();
        (op.transfer, Op { file, ..op })
    }

    fn dir(&self, inner: Arc<dyn Dir>) -> Arc<dyn Dir> {
        Arc::new(FaultyDir { inner, vfs: self.clone() })
    }

    fn file(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultyFile { inner, vfs: self.clone() })
    }
}

impl Vfs for Faulty {
    fn open_dir(&self, path: &Path, create: bool) -> io::Result<Arc<dyn Dir>> {
        self.0.os.open_dir(path, create).map(|dir| self.dir(dir))
    }

    fn start(&self, ops: Vec<Op>) -> Box<dyn Batch> {
        let (kinds, ops) = ops.into_iter().map(Faulty::plain).unzip();
        Box::new(FaultyBatch { inner: self.0.os.start(ops), kinds, vfs: self.clone() })
    }

    fn now(&self) -> Duration {
        self.0.os.now() * SPEED
    }

    fn parked_bytes(&self) -> u64 {
        self.0.os.parked_bytes()
    }

    fn name(&self) -> &'static str {
        self.0.os.name()
    }
}

#[derive(Debug)]
struct FaultyBatch {
    inner: Box<dyn Batch>,
    kinds: Vec<Transfer>,
    vfs: Faulty,
}

impl Batch for FaultyBatch {
    fn push(&mut self, op: Op) -> usize {
        let (kind, op) = Faulty::plain(op);
        self.kinds.push(kind);
        self.inner.push(op)
    }

    /// Reads fail or come back with a bit flipped, writes fail though they happened.
    fn next(&mut self, deadline: Option<Duration>) -> Next {
        let mut next = self.inner.next(deadline.map(|d| d / SPEED));
        if let Next::Done(done) = &mut next
            && done.result.is_ok()
            && let Err(e) = self.vfs.0.fails(TRANSFERS)
        {
            let dice = self.vfs.0.roll() as usize;
            if self.kinds[done.index] == Transfer::Read && dice.is_multiple_of(2) {
                let at = dice % done.buf.len().max(1);
                done.buf[at] ^= 1;
            } else {
                done.result = Err(e);
            }
        }
        next
    }

    fn pending(&self) -> usize {
        self.inner.pending()
    }
}

#[derive(Debug)]
struct FaultyDir {
    inner: Arc<dyn Dir>,
    vfs: Faulty,
}

impl Dir for FaultyDir {
    fn list(&self) -> io::Result<Vec<Entry>> {
        self.inner.list()
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.inner.open(name, access).map(|file| self.vfs.file(file))
    }

    fn create(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.vfs.0.fails(FILES)?;
        self.inner.create(name, access).map(|file| self.vfs.file(file))
    }

    fn subdir(&self, name: &str, create: bool) -> io::Result<Arc<dyn Dir>> {
        self.inner.subdir(name, create).map(|dir| self.vfs.dir(dir))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn rename_into(&self, from: &str, to: &dyn Dir, name: &str) -> io::Result<()> {
        let to = to.as_any().downcast_ref::<FaultyDir>().unwrap();
        self.inner.rename_into(from, &*to.inner, name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.vfs.0.fails(FILES)?;
        self.inner.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.vfs.0.fails(SYNCS)?;
        self.inner.sync()
    }

    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>> {
        self.inner.lock(name)
    }

    fn is_locked(&self, name: &str) -> Option<bool> {
        self.inner.is_locked(name)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.inner.stat()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn File>,
    vfs: Faulty,
}

impl File for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(out, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.inner.write_at(data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.vfs.0.fails(SYNCS)?;
        self.inner.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn gathers(&self) -> bool {
        self.inner.gathers()
    }

    fn alignment(&self) -> usize {
        self.inner.alignment()
    }

    fn stat(&self) -> io::Result<Stat> {
        self.inner.stat()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
