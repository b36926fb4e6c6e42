//! A directory for the run, on a disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Error, Options};

const PREFIX: &str = "kvist-bench-store-";

/// A directory that is removed with this value.
pub(crate) struct Place {
    path: PathBuf,
    /// Why nothing here says anything about a disk, if so.
    pub(crate) no_disk: Option<String>,
}

impl Place {
    /// Below `--dir`, else beside the running program (a build's target directory is on a real
    /// disk, the system's temporary directory often is not), else in the temporary directory.
    pub(crate) fn new(options: &Options) -> Result<Place, Error> {
        let name = format!("{PREFIX}{}-{}", std::process::id(), number());
        let beside = std::env::current_exe().ok();
        let beside = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
        let parents: Vec<PathBuf> = match &options.dir {
            Some(dir) => vec![dir.clone()],
            None => beside.into_iter().chain([std::env::temp_dir()]).collect(),
        };
        let mut failed = None;
        for parent in parents {
            remove_abandoned(&parent);
            let path = parent.join(&name);
            match std::fs::create_dir_all(&path) {
                Ok(()) => {
                    let no_disk = no_disk(&path);
                    return Ok(Place { path, no_disk });
                }
                Err(e) => failed = Some(Error::io(format!("making {}", path.display()))(e)),
            }
        }
        Err(failed.unwrap_or_else(|| Error::subject("store", "no directory to work in")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only this run's own files are in it.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Tells the places of one process apart.
fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Removes the places of interrupted runs, whose processes are gone.
fn remove_abandoned(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.split('-').next());
        let owner = owner.and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Whoever owns it may be gone but not its rights; then it stays.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Says so if the file system keeps its files in memory.
fn no_disk(path: &Path) -> Option<String> {
    // From `statfs(2)`; the type's width depends on the machine.
    const IN_MEMORY: [(u32, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];
    let kind = rustix::fs::statfs(path).ok()?.f_type as u32;
    let (_, name) = IN_MEMORY.iter().find(|(number, _)| *number == kind)?;
    Some(format!("{} is on {name}, which is memory (see --dir)", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_made_and_removed_and_memory_is_no_disk() {
        let place = Place::new(&Options::default()).unwrap();
        let path = place.path().to_owned();
        assert!(path.is_dir());
        // No process has this number.
        let abandoned = path.with_file_name(format!("{PREFIX}{}-0", u32::MAX));
        std::fs::create_dir(&abandoned).unwrap();
        drop(place);
        drop(Place::new(&Options::default()).unwrap());
        assert!(!path.exists() && !abandoned.exists());
        if Path::new("/dev/shm").is_dir() {
            assert!(no_disk(Path::new("/dev/shm")).unwrap().contains("tmpfs"));
        }
    }
}
