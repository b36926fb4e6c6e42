//! What a store's directory is made of, looked at without changing anything.

use std::io;
use std::path::Path;

use super::clean::ASIDE;
use super::sessions::SESSIONS;
use crate::Error;
use crate::format::{Bad, KeySecret, Meta, MetaError, SecretFile, parse_name};
use crate::vfs::{Access, Dir, Entry, Kind, read_exact_at};

/// The file whose lock says that the directory is in use.
pub(crate) const LOCK: &str = "LOCK";
/// Ending of files that are being written and then renamed.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Whether a directory with this entry may be one whose making was cut short.
fn may_be_new(entry: &Entry) -> bool {
    let ours = [LOCK, SecretFile::NAME].contains(&entry.name.as_str());
    let temporary = entry.name.strip_suffix(TEMPORARY);
    let temporary = temporary.is_some_and(|n| [Meta::NAME, SecretFile::NAME].contains(&n));
    entry.kind == Kind::File && (ours || temporary)
}

/// Whether an entry of a store belongs to it.
pub(crate) fn is_known(entry: &Entry) -> bool {
    let segment = entry.kind == Kind::File && parse_name(&entry.name).is_some();
    let below = entry.kind == Kind::Dir && [ASIDE, SESSIONS].contains(&entry.name.as_str());
    let meta = entry.kind == Kind::File && entry.name == Meta::NAME;
    segment || below || meta || may_be_new(entry)
}

/// All that a store asks of a directory before it writes there. The description of the store that is
/// there already; `None` if one can be made.
pub(crate) fn check(dir: &dyn Dir, path: &Path, allow_shared: bool) -> Result<Option<Meta>, Error> {
    if !allow_shared {
        check_owner(dir, path)?;
    }
    let entries = dir.list().map_err(|e| error_at(path, e))?;
    if entries.iter().any(|e| e.name == Meta::NAME) {
        return read_meta(dir, path).map(Some);
    }
    match entries.iter().find(|e| !may_be_new(e)) {
        None => Ok(None),
        Some(foreign) => {
            Err(Error::NotAStore { path: path.to_owned(), found: foreign.name.clone() })
        }
    }
}

/// Refuses a directory that others own or may write to.
pub(crate) fn check_owner(dir: &dyn Dir, path: &Path) -> Result<(), Error> {
    let stat = dir.stat().map_err(|e| error_at(path, e))?;
    let refuse = |reason: String| Error::Permission { path: path.to_owned(), reason };
    if !stat.mine {
        return Err(refuse(format!("it belongs to user {}", stat.uid)));
    }
    if stat.mode & 0o022 != 0 {
        return Err(refuse(format!("others may write to it (mode {:04o})", stat.mode & 0o7777)));
    }
    Ok(())
}

fn read_small(dir: &dyn Dir, name: &str, most: usize) -> io::Result<Vec<u8>> {
    let file = dir.open(name, Access::Buffered)?;
    let len = file.len()?.min(most as u64 + 1) as usize;
    let mut bytes = vec![0; len];
    read_exact_at(&*file, &mut bytes, 0)?;
    Ok(bytes)
}

/// `kvist.meta`.
pub(crate) fn read_meta(dir: &dyn Dir, path: &Path) -> Result<Meta, Error> {
    let bytes = read_small(dir, Meta::NAME, Meta::BYTES_MAX).map_err(|e| error_at(path, e))?;
    let meta = match bytes.len() > Meta::BYTES_MAX {
        true => Err(MetaError::Bad),
        false => Meta::decode(&bytes),
    };
    let path = path.to_owned();
    meta.map_err(|e| match e {
        MetaError::Bad => Error::BadMeta { path },
        MetaError::Version(found) => Error::Version { path, found, supported: Meta::MAJOR },
    })
}

/// The stored secret; `None` if there is none.
pub(crate) fn read_secret(dir: &dyn Dir) -> io::Result<Option<Result<KeySecret, Bad>>> {
    let bytes = match read_small(dir, SecretFile::NAME, SecretFile::BYTES) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => zeroize::Zeroizing::new(bytes?),
    };
    Ok(Some(SecretFile::decode(&bytes)))
}

/// Who holds the lock, as far as the file says.
pub(crate) fn holder(dir: &dyn Dir) -> Option<u32> {
    let text = read_small(dir, LOCK, 32).ok()?;
    std::str::from_utf8(&text).ok()?.trim().parse().ok()
}

/// An error of the file system about this directory.
pub(crate) fn error_at(path: &Path, e: io::Error) -> Error {
    use io::ErrorKind::{NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    let (path, reason) = (path.to_owned(), e.to_string());
    match e.kind() {
        PermissionDenied | ReadOnlyFilesystem | NotADirectory => Error::Permission { path, reason },
        _ => Error::Disk { path, reason },
    }
}
