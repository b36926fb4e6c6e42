//! The real file system: directories and files by descriptor ([`dir`], [`file`]), and two engines
//! for batches: [`uring`], which needs no thread, and [`threads`], a small pool of `pread`s and
//! `pwrite`s. It does one call at a time and repeats nothing.

mod dir;
mod file;
mod parked;
mod ring;
mod threads;
mod uring;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::dir::OsDir;
use self::parked::Parked;
use self::threads::Pool;
use self::uring::Uring;
use super::{Batch, Dir, Op, Vfs};

/// How long a dropped [`OsVfs`] waits for the kernel to let go of parked buffers.
const DRAIN: Duration = Duration::from_secs(5);

/// Who carries out batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// `Uring` if a trial read through it works, else `Threads`.
    #[default]
    Auto,
    /// `io_uring`: no thread of ours on the way.
    Uring,
    /// Four threads that call `pread` and `pwrite`.
    Threads,
}

/// The operating system's file system (Linux).
///
/// Dropping it waits at most 5 s for parked buffers; what the kernel holds even then is never freed
/// before the kernel lets go. Its open directories, files and batches may outlive it.
#[derive(Debug)]
pub struct OsVfs {
    base: Instant,
    parked: Arc<Parked>,
    engine: Running,
    drain: Duration,
}

#[derive(Debug)]
enum Running {
    Uring(Arc<Uring>),
    Threads(Arc<Pool>),
}

impl OsVfs {
    /// # Errors
    /// [`Engine::Uring`] where the kernel, or a sandbox, refuses it.
    pub fn new(engine: Engine) -> io::Result<OsVfs> {
        let base = Instant::now();
        let parked = Arc::new(Parked::default());
        let uring = || Uring::new(base, &parked).map(Running::Uring);
        let threads = || Running::Threads(Pool::new(base, &parked));
        let engine = match engine {
            Engine::Auto => uring().unwrap_or_else(|_| threads()),
            Engine::Uring => uring()?,
            Engine::Threads => threads(),
        };
        Ok(OsVfs { base, parked, engine, drain: DRAIN })
    }
}

impl Vfs for OsVfs {
    fn open_dir(&self, path: &Path, create: bool) -> io::Result<Arc<dyn Dir>> {
        Ok(Arc::new(OsDir::open(path, create)?))
    }

    fn start(&self, ops: Vec<Op>) -> Box<dyn Batch> {
        match &self.engine {
            Running::Uring(uring) => Box::new(Uring::start(uring, ops)),
            Running::Threads(pool) => Box::new(Pool::start(pool, ops)),
        }
    }

    fn now(&self) -> Duration {
        self.base.elapsed()
    }

    fn parked_bytes(&self) -> u64 {
        self.parked.bytes()
    }

    fn name(&self) -> &'static str {
        match &self.engine {
            Running::Uring(_) => "io_uring",
            Running::Threads(_) => "threads",
        }
    }
}

impl Drop for OsVfs {
    fn drop(&mut self) {
        match &self.engine {
            Running::Uring(uring) => uring.watch(),
            Running::Threads(pool) => pool.close(),
        }
        self.parked.wait_until_none(self.drain);
    }
}

/// The moment of `deadline` on the clock that started at `base`; `None` if it is too far away to
/// matter.
fn moment(base: Instant, deadline: Option<Duration>) -> Option<Instant> {
    base.checked_add(deadline?)
}

#[cfg(test)]
mod stuck;
