//! Looking at a store's directory without opening it: is everything right ([`StoreView::verify`]),
//! what is stored ([`StoreView::inventory`]), and why a block would miss ([`StoreView::why`]). [`Place`]
//! says what a store would find in a directory that may hold none yet.
//!
//! Nothing is written and no lock is taken, so a directory in use can be looked at too. What its owner
//! is writing at that moment looks like what a crash leaves: the torn end of an unfinished segment. It
//! is told apart from damage by what follows it: nothing.
//!
//! Sealed records are read as far as their headers; what is inside needs the key.

mod inventory;
mod json;
mod place;
mod report;
mod segment;
mod sessions;
mod verify;
mod why;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub use inventory::{Group, Inventory, SegmentUse};
pub use place::Place;
pub use report::{Damage, Note, Report, What};
pub use sessions::SessionUse;
pub use verify::VerifyOptions;
pub use why::{Answer, Copy, State, Why};

use crate::Error;
use crate::disk::dir::{self, error_at, is_known};
use crate::disk::scan::Scanner;
use crate::format::{Limits, Meta, parse_name, segment_name};
use crate::vfs::{Access, BufPool, Dir, Entry, Kind, Vfs, or_default};

/// How long one read may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store's directory, to be looked at.
#[derive(Debug)]
pub struct StoreView {
    vfs: Arc<dyn Vfs>,
    dir: Arc<dyn Dir>,
    path: PathBuf,
    meta: Meta,
    /// What else lies there.
    aliens: Vec<Entry>,
    segments: Vec<Listed>,
    aside: Vec<Listed>,
    buffers: BufPool,
}

/// A segment file as it was listed.
#[derive(Clone, Debug)]
struct Listed {
    dir: Arc<dyn Dir>,
    id: u64,
    len: u64,
}

impl Listed {
    fn name(&self) -> String {
        segment_name(self.id)
    }
}

impl StoreView {
    /// Looks at a directory.
    ///
    /// # Errors
    /// [`Error::Disk`] or [`Error::Permission`] if it cannot be read, [`Error::NotAStore`],
    /// [`Error::NoStore`], [`Error::BadMeta`], [`Error::Version`].
    pub fn open(path: impl AsRef<Path>) -> Result<StoreView, Error> {
        StoreView::open_on(or_default(None)?, path)
    }

    /// [`StoreView::open`] on another file system.
    ///
    /// # Errors
    /// As [`StoreView::open`].
    pub fn open_on(vfs: Arc<dyn Vfs>, path: impl AsRef<Path>) -> Result<StoreView, Error> {
        let path = path.as_ref().to_owned();
        let fail = |e: io::Error| error_at(&path, e);
        let dir = vfs.open_dir(&path, false).map_err(fail)?;
        let entries = dir.list().map_err(fail)?;
        if !entries.iter().any(|e| e.name == Meta::NAME && e.kind == Kind::File) {
            return Err(match entries.iter().find(|e| !is_known(e)) {
                Some(foreign) => Error::NotAStore { path, found: foreign.name.clone() },
                None => Error::NoStore { path },
            });
        }
        let meta = dir::read_meta(&*dir, &path)?;
        let aliens = entries.iter().filter(|e| !is_known(e)).cloned().collect();
        let segments = listed(&dir, &entries);
        let aside = match dir.subdir(crate::disk::ASIDE, false) {
            Ok(aside) => listed(&aside, &aside.list().unwrap_or_default()),
            Err(_) => Vec::new(),
        };
        let buffers = BufPool::default();
        Ok(StoreView { vfs, dir, path, meta, aliens, segments, aside, buffers })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether some process has the store open; `None` if the system does not tell.
    #[must_use]
    pub fn in_use(&self) -> Option<bool> {
        self.dir.is_locked(dir::LOCK)
    }

    /// The process that has or had it open, if its lock file says.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        dir::holder(&*self.dir)
    }

    /// Opens a segment for reading.
    fn scanner(&self, listed: &Listed) -> io::Result<Scanner<'_>> {
        let file = listed.dir.open(&listed.name(), Access::Direct)?;
        Ok(Scanner {
            vfs: &self.vfs,
            buffers: &self.buffers,
            len: file.len()?,
            file,
            id: listed.id,
            limits: Limits { record_bytes_max: Limits::RECORD_BYTES_HARD },
            patience: PATIENCE,
        })
    }

    fn check_head(&self, scanner: &Scanner) -> io::Result<()> {
        match scanner.head()? {
            Ok(head) if scanner.owns(&head, &self.meta.uuid) => Ok(()),
            Ok(_) => Err(io::Error::other("head of another directory or place")),
            Err(bad) => Err(io::Error::other(format!("head: {bad}"))),
        }
    }

    /// Does `work` for every segment, `threads` at a time: while one waits for the disk, another
    /// computes checksums. Results come in the order of `segments`.
    fn each_segment<T: Send>(
        &self,
        segments: &[Listed],
        threads: usize,
        work: impl Fn(&Listed) -> T + Sync,
    ) -> Vec<T> {
        let next = AtomicUsize::new(0);
        let run = || {
            let mut done = Vec::new();
            while let index = next.fetch_add(1, Ordering::Relaxed)
                && let Some(listed) = segments.get(index)
            {
                done.push((index, work(listed)));
            }
            done
        };
        let mut done: Vec<(usize, T)> = std::thread::scope(|scope| {
            let others = threads.clamp(1, segments.len().max(1)) - 1;
            let others: Vec<_> = (0..others).map(|_| scope.spawn(run)).collect();
            let own = run();
            let others = others.into_iter().map(|t| t.join());
            own.into_iter().chain(others.flat_map(|t| t.unwrap_or_default())).collect()
        });
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, t)| t).collect()
    }
}

/// Segments of a directory, the oldest first.
fn listed(dir: &Arc<dyn Dir>, entries: &[Entry]) -> Vec<Listed> {
    let files = entries.iter().filter(|e| e.kind == Kind::File);
    let segment =
        |e: &Entry| Some(Listed { dir: dir.clone(), id: parse_name(&e.name)?, len: e.len });
    let mut segments: Vec<Listed> = files.filter_map(segment).collect();
    segments.sort_by_key(|s| s.id);
    segments
}

/// Threads for reading segments where nothing is said.
fn threads_default() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8))
}
