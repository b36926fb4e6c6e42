//! Compiled kernels on disk, shared by processes: one file a kernel, whole or absent.

use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::image::FILE_MAX;
use super::{Image, Key};

/// Most bytes of a cache; the files that were read longest ago go first.
pub const CAP_BYTES: u64 = 256 << 20;
/// A file with a temporary name that is this old belongs to a process that is gone.
const STALE: Duration = Duration::from_secs(3600);
const TEMPORARY: &str = ".kvist-";

/// A folder of compiled kernels.
///
/// What is read is verified; what is damaged is built again, never loaded. Folders that others may
/// write to are not used: what they put there would run in this process's name. A folder that cannot
/// be used costs a compilation in each process and one warning, never an error.
#[derive(Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
    cap_bytes: u64,
    warned: AtomicBool,
}

impl Cache {
    /// In this folder, which is made when it is first written to; `None` keeps nothing.
    #[must_use]
    pub fn new(folder: Option<PathBuf>, cap_bytes: u64) -> Cache {
        Cache { folder, cap_bytes, warned: AtomicBool::new(false) }
    }

    /// `kvist/cubin` in `KVIST_CACHE_DIR`, else in `XDG_CACHE_HOME`, else in `~/.cache`. An empty
    /// `KVIST_CACHE_DIR` turns it off.
    #[must_use]
    pub fn from_env() -> Cache {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        Cache::new(folder(variable, std::env::home_dir()), CAP_BYTES)
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The image under this key, if it is there and whole.
    #[must_use]
    pub fn read(&self, key: &Key) -> Option<Image> {
        let folder = self.folder.as_deref()?;
        match check(folder) {
            Ok(()) => read_file(&folder.join(key.file_name()), key),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                self.warn(folder, &e);
                None
            }
        }
    }

    /// Keeps an image, and removes what was not read for longest if there is too much.
    pub fn write(&self, key: &Key, image: &Image) {
        let Some(folder) = self.folder.as_deref() else { return };
        let written = write_file(folder, key, image).and_then(|()| trim(folder, self.cap_bytes));
        if let Err(e) = written {
            self.warn(folder, &e);
        }
    }

    fn warn(&self, folder: &Path, error: &io::Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                folder = %folder.display(),
                %error,
                "GPU kernels are not kept: each process compiles them anew; name a folder that is \
                 yours alone in KVIST_CACHE_DIR"
            );
        }
    }
}

fn folder(variable: impl Fn(&str) -> Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let base = match variable("KVIST_CACHE_DIR") {
        Some(own) if own.as_os_str().is_empty() => return None,
        Some(own) => own,
        // The standard says: a relative path is to be ignored.
        None => variable("XDG_CACHE_HOME")
            .filter(|p| p.is_absolute())
            .or_else(|| Some(home.filter(|p| p.is_absolute())?.join(".cache")))?,
    };
    Some(base.join("kvist").join("cubin"))
}

/// Whether the folder is there and only its owner, this user or root, can write to it.
fn check(folder: &Path) -> io::Result<()> {
    let of = fs::metadata(folder)?;
    // SAFETY: has no preconditions and cannot fail.
    let user = unsafe { libc::geteuid() };
    if !of.is_dir() {
        return Err(io::Error::other("not a folder"));
    }
    if (of.uid() != user && of.uid() != 0) || of.mode() & 0o022 != 0 {
        let (uid, mode) = (of.uid(), of.mode() & 0o7777);
        let text = format!("others may write to it (owner {uid}, mode {mode:o}, user {user})");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(())
}

/// The image of one file, wherever it is; `None` if there is none or it is damaged.
pub(super) fn read_file(path: &Path, key: &Key) -> Option<Image> {
    // What is not a plain file must neither be followed nor waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let of = file.metadata().ok()?;
    if !of.is_file() || of.len() > FILE_MAX {
        return None;
    }
    let mut bytes = Vec::new();
    (&file).take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    match Image::decode(key, &bytes) {
        Ok(image) => {
            // Many file systems keep no times of reading by themselves. Where it is refused, the age
            // is that of the file.
            let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
            Some(image)
        }
        Err(damage) => {
            tracing::warn!(file = %path.display(), ?damage, "a compiled kernel is damaged: not used");
            None
        }
    }
}

fn write_file(folder: &Path, key: &Key, image: &Image) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    check(folder)?;
    let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
    file.write_all(&image.encode(key))?;
    file.as_file().sync_all()?;
    file.persist(folder.join(key.file_name())).map(drop).map_err(|e| e.error)
}

/// Removes files until no more than `cap` bytes are left, and what dead processes left. What another
/// process removed meanwhile is gone, too.
fn trim(folder: &Path, cap: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let (entry, now) = (entry?, SystemTime::now());
        let Ok(of) = entry.metadata() else { continue };
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(TEMPORARY) {
            let age = of.modified().ok().and_then(|t| now.duration_since(t).ok());
            if age.is_some_and(|age| age > STALE) {
                let _ = fs::remove_file(entry.path());
            }
        } else if name.ends_with(".cubin") && of.is_file() {
            files.push((of.accessed().unwrap_or(SystemTime::UNIX_EPOCH), of.len(), entry.path()));
        }
    }
    let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
    files.sort_unstable();
    for (_, len, path) in files {
        if total <= cap {
            break;
        }
        let _ = fs::remove_file(path);
        total -= len;
    }
    Ok(())
}

/// Writes an image into a folder that a package is made from.
pub(super) fn write_prebuilt(folder: &Path, key: &Key, image: &Image) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = File::create(folder.join(key.file_name()))?;
    file.write_all(&image.encode(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(own: Option<&str>, xdg: Option<&str>, home: Option<&str>) -> Option<PathBuf> {
        let variable = |name: &str| match name {
            "KVIST_CACHE_DIR" => own.map(PathBuf::from),
            "XDG_CACHE_HOME" => xdg.map(PathBuf::from),
            _ => None,
        };
        folder(variable, home.map(PathBuf::from))
    }

    #[test]
    fn the_folder_is_the_first_that_is_named() {
        let at = |path: &str| Some(PathBuf::from(path));
        assert_eq!(found(Some("/a"), Some("/b"), Some("/c")), at("/a/kvist/cubin"));
        assert_eq!(found(None, Some("/b"), Some("/c")), at("/b/kvist/cubin"));
        assert_eq!(found(None, Some("relative"), Some("/c")), at("/c/.cache/kvist/cubin"));
        assert_eq!(found(None, None, Some("/c")), at("/c/.cache/kvist/cubin"));
        assert_eq!(found(None, None, None), None);
        assert_eq!(found(Some(""), Some("/b"), Some("/c")), None);
    }
}
