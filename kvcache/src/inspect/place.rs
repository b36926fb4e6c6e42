//! What a store would find in a directory, before one is opened there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StoreView;
use crate::Error;
use crate::disk::dir::{self, error_at, is_known};
use crate::vfs::{Dir, Entry, Stat, Vfs, or_default};

/// A directory in which a store could be opened, looked at without changing or locking anything.
#[derive(Debug)]
#[non_exhaustive]
pub struct Place {
    /// The directory.
    pub path: PathBuf,
    /// Whether it is there; a store makes it if its parent is.
    pub exists: bool,
    /// Owner and mode, if that can be told.
    pub stat: Option<Stat>,
    /// Why a store could not be opened there now: the error that opening it would give.
    pub refusal: Option<Error>,
    /// Whether some process has a store open there; `None` if the system does not tell.
    pub in_use: Option<bool>,
    /// The process that has or had it open, if its lock file says.
    pub holder: Option<u32>,
    /// What lies there and belongs to no store, by name. A store leaves it alone.
    pub foreign: Vec<String>,
    /// What is wrong with the stored secret that keys are computed with: with another one, no stored
    /// block is found.
    pub secret: Option<String>,
    /// The store that is there already, if it can be looked at.
    pub store: Option<StoreView>,
}

impl Place {
    /// Looks at a directory. With `allow_shared`, others may write to it.
    ///
    /// # Errors
    /// [`Error::System`] if the disk tier's engine does not start. What is wrong with the directory is
    /// not an error but a [`Place::refusal`].
    pub fn look(path: impl AsRef<Path>, allow_shared: bool) -> Result<Place, Error> {
        Ok(Place::look_on(or_default(None)?, path, allow_shared))
    }

    /// [`Place::look`] on another file system.
    #[must_use]
    pub fn look_on(vfs: Arc<dyn Vfs>, path: impl AsRef<Path>, allow_shared: bool) -> Place {
        let path = path.as_ref();
        let mut place = Place {
            path: path.to_owned(),
            exists: false,
            stat: None,
            refusal: None,
            in_use: None,
            holder: None,
            foreign: Vec::new(),
            secret: None,
            store: None,
        };
        match vfs.open_dir(path, false) {
            Ok(dir) => {
                place.exists = true;
                place.look_into(&*dir, allow_shared);
                place.store = StoreView::open_on(vfs, path).ok();
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => place.refusal = Some(error_at(path, e)),
        }
        place
    }

    fn look_into(&mut self, dir: &dyn Dir, allow_shared: bool) {
        self.stat = dir.stat().ok();
        self.in_use = dir.is_locked(dir::LOCK);
        self.holder = dir::holder(dir);
        let alien = |e: &Entry| !is_known(e);
        let entries = dir.list().unwrap_or_default();
        self.foreign = entries.into_iter().filter(alien).map(|e| e.name).collect();
        self.foreign.sort_unstable();
        self.secret = match dir::read_secret(dir) {
            Ok(None | Some(Ok(_))) => None,
            Ok(Some(Err(bad))) => Some(bad.to_string()),
            Err(e) => Some(e.to_string()),
        };
        self.refusal = match dir::check(dir, &self.path, allow_shared) {
            Err(e) => Some(e),
            Ok(_) if self.in_use == Some(true) => {
                Some(Error::InUse { path: self.path.clone(), pid: self.holder })
            }
            Ok(_) => None,
        };
    }
}
