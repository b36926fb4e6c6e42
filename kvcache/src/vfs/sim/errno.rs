//! The errors of a POSIX file system, as the operating system at hand numbers them.

use std::io;

/// An error number by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errno {
    Access,
    Again,
    BadFile,
    Exists,
    Inval,
    Interrupted,
    Io,
    IsDir,
    FileTooBig,
    ManyFiles,
    NameTooLong,
    NoEntry,
    NoMemory,
    NoSpace,
    NotDir,
    Quota,
    ReadOnly,
    Stale,
}

/// The error a call returns.
#[cfg(unix)]
pub(super) fn error(errno: Errno) -> io::Error {
    use rustix::io::Errno as E;
    let number = match errno {
        Errno::Access => E::ACCESS,
        Errno::Again => E::AGAIN,
        Errno::BadFile => E::BADF,
        Errno::Exists => E::EXIST,
        Errno::Inval => E::INVAL,
        Errno::Interrupted => E::INTR,
        Errno::Io => E::IO,
        Errno::IsDir => E::ISDIR,
        Errno::FileTooBig => E::FBIG,
        Errno::ManyFiles => E::MFILE,
        Errno::NameTooLong => E::NAMETOOLONG,
        Errno::NoEntry => E::NOENT,
        Errno::NoMemory => E::NOMEM,
        Errno::NoSpace => E::NOSPC,
        Errno::NotDir => E::NOTDIR,
        Errno::Quota => E::DQUOT,
        Errno::ReadOnly => E::ROFS,
        Errno::Stale => E::STALE,
    };
    io::Error::from_raw_os_error(number.raw_os_error())
}

/// The error a call returns.
#[cfg(not(unix))]
pub(super) fn error(errno: Errno) -> io::Error {
    use io::ErrorKind as K;
    let kind = match errno {
        Errno::Access => K::PermissionDenied,
        Errno::Again => K::WouldBlock,
        Errno::Exists => K::AlreadyExists,
        Errno::Inval => K::InvalidInput,
        Errno::Interrupted => K::Interrupted,
        Errno::IsDir => K::IsADirectory,
        Errno::FileTooBig => K::FileTooLarge,
        Errno::NameTooLong => K::InvalidFilename,
        Errno::NoEntry => K::NotFound,
        Errno::NoMemory => K::OutOfMemory,
        Errno::NoSpace => K::StorageFull,
        Errno::NotDir => K::NotADirectory,
        Errno::Quota => K::QuotaExceeded,
        Errno::ReadOnly => K::ReadOnlyFilesystem,
        Errno::Stale => K::StaleNetworkFileHandle,
        Errno::BadFile | Errno::Io | Errno::ManyFiles => K::Other,
    };
    io::Error::new(kind, format!("simulated {errno:?}"))
}
