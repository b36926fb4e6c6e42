//! The door to the file system: everything the disk tier reads or writes goes through [`Vfs`].
//!
//! A `Vfs` is *thin*: it does one call and says what came of it, short transfers and interruptions
//! included. Repeating, continuing, deadlines, checksums and retirement live above it, so that the
//! simulated file system (`sim`, feature `testing`) exercises the very code that production runs.
//!
//! Large transfers are asynchronous: [`Vfs::start`] submits operations that own their memory
//! ([`Buf`]), [`Batch::next`] hands them back one by one. A buffer that the kernel may still touch is
//! never freed: dropping a batch parks what is in flight until the kernel lets go of it.

mod buf;
mod op;
#[cfg(target_os = "linux")]
mod os;
mod pool;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
mod whole;

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use buf::Buf;
pub use op::{Done, INSERTS_MAX, Insert, Op, Transfer};
#[cfg(target_os = "linux")]
pub use os::{Engine, OsVfs};
pub use pool::BufPool;
pub use whole::{Outcome, Whole, read_exact, read_exact_at, write_all, write_all_at};

/// What a file system can do. All methods may be called from any thread.
pub trait Vfs: Debug + Send + Sync + 'static {
    /// Opens a directory by path; with `create`, makes it (mode 0700, whatever the umask) if it is
    /// missing, and makes its name durable. The last component must not be a symbolic link.
    fn open_dir(&self, path: &Path, create: bool) -> io::Result<Arc<dyn Dir>>;

    /// Submits operations. They may complete in any order.
    fn start(&self, ops: Vec<Op>) -> Box<dyn Batch>;

    /// Monotonic time since some fixed moment.
    fn now(&self) -> Duration;

    /// Bytes of buffers whose batch was dropped while the kernel still held them.
    fn parked_bytes(&self) -> u64;

    /// The engine, for people: `io_uring`, `threads`, `sim`.
    fn name(&self) -> &'static str;
}

/// An open directory. Names are single components; paths are never joined again.
pub trait Dir: Debug + Send + Sync {
    /// Everything in it, in no order, without `.` and `..`. Names that are not UTF-8 are alien and
    /// left out.
    fn list(&self) -> io::Result<Vec<Entry>>;

    /// Opens an existing regular file for reading (never through a symbolic link; anything but a
    /// regular file is [`io::ErrorKind::InvalidInput`]).
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>>;

    /// Makes a new file for reading and writing (`O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC`, mode
    /// 0600 whatever the umask).
    fn create(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>>;

    /// Opens a directory below, made with mode 0700 if `create` and missing.
    fn subdir(&self, name: &str, create: bool) -> io::Result<Arc<dyn Dir>>;

    /// Renames within this directory, replacing `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Moves a file into another directory of the same `Vfs`.
    fn rename_into(&self, from: &str, to: &dyn Dir, name: &str) -> io::Result<()>;

    /// Unlinks a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes created, renamed and removed names durable (`fsync` of the directory).
    fn sync(&self) -> io::Result<()>;

    /// Takes an exclusive lock on the file `name`, made if missing, without waiting: a taken one is
    /// [`io::ErrorKind::WouldBlock`]. The file then holds this process's id in decimal. The lock ends
    /// with the value.
    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>>;

    /// Whether some process holds the lock on `name` now; `None` if the system does not tell. Takes
    /// nothing, so that nobody who wants the lock meanwhile is turned away.
    fn is_locked(&self, _name: &str) -> Option<bool> {
        None
    }

    /// Owner and mode.
    fn stat(&self) -> io::Result<Stat>;

    /// For the `Vfs` that made it.
    fn as_any(&self) -> &dyn Any;
}

/// An open file.
pub trait File: Debug + Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether it is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// One `pread`, which may be short; 0 is the end. For a direct file, `offset`, `out` and its
    /// length must be multiples of [`File::alignment`] (memory: of [`MEMORY_ALIGN`]).
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;

    /// One `pwrite`, which may be short. Aligned as for reads.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize>;

    /// Whether operations may have inserts: stretches of memory whose places and lengths are multiples
    /// of [`File::alignment`].
    fn gathers(&self) -> bool {
        false
    }

    /// One `preadv` or `pwritev` of an operation of this file, which may be short.
    #[doc(hidden)]
    fn transfer(&self, op: &mut Op) -> io::Result<usize> {
        match op.transfer {
            Transfer::Read => self.read_at(&mut op.buf[op.skip..], op.offset),
            Transfer::Write => self.write_at(&op.buf[op.skip..], op.offset),
        }
    }

    /// `fdatasync`: data, and the length needed to read it.
    fn sync_data(&self) -> io::Result<()>;

    /// Asks for room up to `len` bytes without changing the length
    /// (`fallocate(FALLOC_FL_KEEP_SIZE)`); [`io::ErrorKind::Unsupported`] where there is no such call.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Cuts or extends the file; room asked for beyond `len` goes back to the file system.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// What offsets and lengths of transfers must be a multiple of: 1 for a buffered file.
    fn alignment(&self) -> usize;

    /// Owner and mode.
    fn stat(&self) -> io::Result<Stat>;

    /// For the `Vfs` that made it.
    fn as_any(&self) -> &dyn Any;
}

/// Memory of direct transfers must start at a multiple of this.
pub const MEMORY_ALIGN: usize = 4096;

/// A held lock; dropping it releases it.
pub trait Lock: Debug + Send + Sync {}

/// How a file's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Past the page cache (`O_DIRECT`), where the file system has it; else as `Buffered`.
    Direct,
    /// Through the page cache.
    Buffered,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// What it is; symbolic links are not followed.
    pub kind: Kind,
    /// Length of a regular file.
    pub len: u64,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Symbolic link, FIFO, socket, device.
    Other,
}

/// Owner and permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// User id of the owner.
    pub uid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Whether this process's user owns it.
    pub mine: bool,
}

/// What [`Batch::next`] found.
#[derive(Debug)]
pub enum Next {
    /// An operation finished.
    Done(Done),
    /// None finished before the deadline; they go on.
    TimedOut,
    /// All operations have been handed back.
    Empty,
}

/// Operations in flight. Dropping a batch parks the buffers that are still in use.
pub trait Batch: Debug + Send {
    /// Adds an operation and returns its index, the next after those given so far; used to continue
    /// a short transfer. It is submitted at the latest by the following [`Batch::next`].
    fn push(&mut self, op: Op) -> usize;

    /// Waits for an operation until `deadline` on [`Vfs::now`]'s clock; `None` waits for ever, a past
    /// deadline only looks.
    fn next(&mut self, deadline: Option<Duration>) -> Next;

    /// Operations not yet handed back.
    fn pending(&self) -> usize;
}

/// The given file system, or the operating system's.
pub(crate) fn or_default(vfs: Option<Arc<dyn Vfs>>) -> Result<Arc<dyn Vfs>, crate::Error> {
    if let Some(vfs) = vfs {
        return Ok(vfs);
    }
    let what = "starting the disk tier's engine";
    let refused = |e: io::Error| crate::Error::System { what, reason: e.to_string() };
    Ok(Arc::new(OsVfs::new(Engine::Auto).map_err(refused)?))
}
