//! A directory by descriptor. Names are single components, links are never followed.

use std::any::Any;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::super::{Access, Dir, Entry, File, Kind, Lock, Stat};
use super::file::{FILE_MODE, OPEN, OsFile, alien, stat};

#[derive(Debug)]
pub(super) struct OsDir {
    fd: OwnedFd,
}

/// A lock lives as long as its descriptor.
#[derive(Debug)]
struct OsLock {
    _fd: OwnedFd,
}

const DIR_MODE: Mode = Mode::RWXU;
const OPEN_DIR: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

impl OsDir {
    /// See [`super::super::Vfs::open_dir`]. A directory made here, or by an earlier run, is durable
    /// in its parent once this returns.
    pub(super) fn open(path: &Path, create: bool) -> io::Result<OsDir> {
        // `components` also strips `/` and `/.` from the end, which would lead through a link.
        let mut parent = path.components();
        let plain = parent.as_path();
        let name = match parent.next_back() {
            Some(Component::Normal(name)) if create => name,
            _ => return Ok(OsDir { fd: fs::openat(CWD, plain, OPEN_DIR, Mode::empty())? }),
        };
        let above = match parent.as_path() {
            empty if empty.as_os_str().is_empty() => Path::new("."),
            path => path,
        };
        let above = match fs::openat(CWD, above, OPEN_DIR - OFlags::NOFOLLOW, Mode::empty()) {
            Ok(above) => above,
            // A parent that may be passed but not read can be neither written nor synced.
            Err(Errno::ACCESS) => return OsDir::open(path, false),
            Err(error) => return Err(error.into()),
        };
        let fd = open_or_make(above.as_fd(), name)?;
        match fs::fsync(&above) {
            // A parent on a read-only or odd file system made no promise to begin with.
            Ok(()) | Err(Errno::INVAL | Errno::ROFS) => Ok(OsDir { fd }),
            Err(error) => Err(error.into()),
        }
    }

    fn kind(&self, name: &str) -> io::Result<FileType> {
        let stat = fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    /// Opens what is or becomes a regular file.
    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        fs::openat(&self.fd, name, flags | OPEN, FILE_MODE).map_err(|error| match error {
            // A link, a socket, a directory opened for writing.
            Errno::LOOP | Errno::NXIO | Errno::ISDIR => alien(),
            error => error.into(),
        })
    }
}

/// Opens the directory `name`, made first if it is missing.
fn open_or_make<P: rustix::path::Arg + Copy>(at: BorrowedFd<'_>, name: P) -> io::Result<OwnedFd> {
    let made = match fs::mkdirat(at, name, DIR_MODE) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        // Read-only file systems and directories refuse even to say that it is there.
        Err(error) => {
            return fs::openat(at, name, OPEN_DIR, Mode::empty()).map_err(|_| error.into());
        }
    };
    if made {
        restore_owner_bits(at, name)?;
    }
    Ok(fs::openat(at, name, OPEN_DIR, Mode::empty())?)
}

/// Undoes what the umask took from a directory just made. It may not even be readable yet, so the
/// handle is an `O_PATH` one, which `fchmod` refuses and `/proc` does not.
fn restore_owner_bits<P: rustix::path::Arg>(at: BorrowedFd<'_>, name: P) -> io::Result<()> {
    use rustix::fd::AsRawFd;
    let fd = fs::openat(at, name, OPEN_DIR | OFlags::PATH, Mode::empty())?;
    if fs::fstat(&fd)?.st_mode & 0o7777 == DIR_MODE.as_raw_mode() {
        return Ok(());
    }
    Ok(fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), DIR_MODE)?)
}

/// Refuses whatever is not a single component.
fn single(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file name"));
    }
    Ok(())
}

impl Dir for OsDir {
    fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for found in fs::Dir::read_from(&self.fd)? {
            let found = found?;
            let Ok(name) = found.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let stat = match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Removed since it was listed.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let (kind, len) = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => (Kind::File, stat.st_size.try_into().unwrap_or(0)),
                FileType::Directory => (Kind::Dir, 0),
                _ => (Kind::Other, 0),
            };
            entries.push(Entry { name: name.to_owned(), kind, len });
        }
        Ok(entries)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        single(name)?;
        // Looked at first because opening a device can have effects; `OsFile` looks again.
        if self.kind(name)? != FileType::RegularFile {
            return Err(alien());
        }
        let fd = self.open_file(name, OFlags::RDONLY)?;
        Ok(Arc::new(OsFile::new(fd, access)?))
    }

    fn create(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        single(name)?;
        let fd = self.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        OsFile::restrict(&fd)?;
        Ok(Arc::new(OsFile::new(fd, access)?))
    }

    fn subdir(&self, name: &str, create: bool) -> io::Result<Arc<dyn Dir>> {
        single(name)?;
        let fd = if create {
            open_or_make(self.fd.as_fd(), name)?
        } else {
            fs::openat(&self.fd, name, OPEN_DIR, Mode::empty())?
        };
        Ok(Arc::new(OsDir { fd }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_into(from, self, to)
    }

    fn rename_into(&self, from: &str, to: &dyn Dir, name: &str) -> io::Result<()> {
        single(from)?;
        single(name)?;
        let to = to.as_any().downcast_ref::<OsDir>();
        let to = to.ok_or_else(|| io::Error::from(io::ErrorKind::CrossesDevices))?;
        Ok(fs::renameat(&self.fd, from, &to.fd, name)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        single(name)?;
        Ok(fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.fd)?)
    }

    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>> {
        single(name)?;
        let fd = self.open_file(name, OFlags::RDWR | OFlags::CREATE)?;
        if !FileType::from_raw_mode(fs::fstat(&fd)?.st_mode).is_file() {
            return Err(alien());
        }
        fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        OsFile::restrict(&fd)?;
        fs::ftruncate(&fd, 0)?;
        rustix::io::pwrite(&fd, std::process::id().to_string().as_bytes(), 0)?;
        Ok(Box::new(OsLock { _fd: fd }))
    }

    fn is_locked(&self, name: &str) -> Option<bool> {
        let stat = match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Some(false),
            Err(_) => return None,
        };
        // `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; the device is not compared, since layered
        // file systems show another one here.
        let (locks, inode) = (std::fs::read("/proc/locks").ok()?, format!(":{}", stat.st_ino));
        let is_it = |line: &str| {
            line.contains("FLOCK") && line.split_whitespace().any(|word| word.ends_with(&inode))
        };
        Some(String::from_utf8_lossy(&locks).lines().any(is_it))
    }

    fn stat(&self) -> io::Result<Stat> {
        stat(&self.fd)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Lock for OsLock {}
