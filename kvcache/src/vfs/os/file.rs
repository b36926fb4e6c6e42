//! A regular file by descriptor.

use std::any::Any;
use std::io::{self, IoSlice, IoSliceMut};
use std::slice;

use rustix::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use rustix::fs::{self, AtFlags, FallocateFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::super::op::Stretch;
use super::super::{Access, File, MEMORY_ALIGN, Op, Stat, Transfer};

/// For direct files whose file system does not tell.
const DEFAULT_ALIGN: usize = 4096;

#[derive(Debug)]
pub(super) struct OsFile {
    fd: OwnedFd,
    alignment: usize,
    /// Whether memory need not be aligned more strictly than offsets.
    gathers: bool,
}

/// What a file wants of direct transfers.
struct Alignment {
    offset: usize,
    memory: usize,
}

/// Exact permissions of files.
pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// How every file is opened. `NONBLOCK` keeps a FIFO from hanging the open; [`OsFile::new`] takes it
/// off again. `DIRECT` is set later: an open that fails for it may already have made the file.
pub(super) const OPEN: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

impl OsFile {
    /// Takes over a descriptor opened with [`OPEN`]; anything but a regular file is refused.
    pub(super) fn new(fd: OwnedFd, access: Access) -> io::Result<OsFile> {
        if !FileType::from_raw_mode(fs::fstat(&fd)?.st_mode).is_file() {
            return Err(alien());
        }
        let direct = access == Access::Direct && set_direct(&fd)?;
        if !direct {
            fs::fcntl_setfl(&fd, OFlags::empty())?;
        }
        let wanted = if direct { direct_alignment(&fd) } else { None };
        if direct && wanted.is_none() {
            fs::fcntl_setfl(&fd, OFlags::empty())?;
        }
        let Alignment { offset, memory } = wanted.unwrap_or(Alignment { offset: 1, memory: 1 });
        Ok(OsFile { fd, alignment: offset, gathers: memory <= offset })
    }

    /// Gives a file just made its exact permissions, whatever the umask took away.
    pub(super) fn restrict(fd: &OwnedFd) -> io::Result<()> {
        if fs::fstat(fd)?.st_mode & 0o7777 != FILE_MODE.as_raw_mode() {
            fs::fchmod(fd, FILE_MODE)?;
        }
        Ok(())
    }

    /// For operations that hold this file until they are done.
    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Any descriptor, as it is: pipes make reads that wait.
    #[cfg(test)]
    pub(super) fn unchecked(fd: OwnedFd) -> OsFile {
        OsFile { fd, alignment: 1, gathers: true }
    }
}

/// What stands in a file's place is none.
pub(super) fn alien() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}

/// Whether the file system has direct transfers for this file.
fn set_direct(fd: &OwnedFd) -> io::Result<bool> {
    match fs::fcntl_setfl(fd, OFlags::DIRECT) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What direct offsets must be a multiple of; `None` if direct transfers do not work, or want memory
/// aligned to more than [`MEMORY_ALIGN`].
fn direct_alignment(fd: &OwnedFd) -> Option<Alignment> {
    let told = fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .ok()
        .filter(|x| x.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    let Some(told) = told else {
        return Some(Alignment { offset: DEFAULT_ALIGN, memory: MEMORY_ALIGN });
    };
    let (memory, offset) = (told.stx_dio_mem_align as usize, told.stx_dio_offset_align as usize);
    let offset = offset.max(512);
    (memory <= MEMORY_ALIGN && offset.is_power_of_two()).then_some(Alignment { offset, memory })
}

pub(super) fn stat(fd: impl AsFd) -> io::Result<Stat> {
    let stat = fs::fstat(fd)?;
    let mine = stat.st_uid == rustix::process::geteuid().as_raw();
    Ok(Stat { uid: stat.st_uid, mode: stat.st_mode & 0o7777, mine })
}

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(fs::fstat(&self.fd)?.st_size.try_into().unwrap_or(0))
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pread(&self.fd, out, offset)?)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwrite(&self.fd, data, offset)?)
    }

    fn gathers(&self) -> bool {
        self.gathers
    }

    fn transfer(&self, op: &mut Op) -> io::Result<usize> {
        let stretches = op.stretches();
        Ok(match op.transfer {
            Transfer::Read => {
                // SAFETY: the operation owns these bytes, they do not overlap, and none is lent.
                let slice = |s: &Stretch| unsafe { slice::from_raw_parts_mut(s.start, s.len) };
                let mut slices: Vec<_> =
                    stretches.iter().map(|s| IoSliceMut::new(slice(s))).collect();
                rustix::io::preadv(&self.fd, &mut slices, op.offset)?
            }
            Transfer::Write => {
                // SAFETY: the operation owns these bytes or shares them with readers.
                let slice = |s: &Stretch| unsafe { slice::from_raw_parts(s.start, s.len) };
                let slices: Vec<_> = stretches.iter().map(|s| IoSlice::new(slice(s))).collect();
                rustix::io::pwritev(&self.fd, &slices, op.offset)?
            }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(fs::fdatasync(&self.fd)?)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match fs::fallocate(&self.fd, FallocateFlags::KEEP_SIZE, 0, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
            result => Ok(result?),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(fs::ftruncate(&self.fd, len)?)
    }

    fn alignment(&self) -> usize {
        self.alignment
    }

    fn stat(&self) -> io::Result<Stat> {
        stat(&self.fd)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
