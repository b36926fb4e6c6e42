//! Saved sessions: sequences that outlive their process, as records of the disk tier.
//!
//! A saved session is a file that names the records it needs: the stripes of its finished pages as
//! the tier stored them, their summaries in records of their own, and one stream of bytes for what is
//! not finished. So saving again writes what is new, and opening reads summaries and open rows alone:
//! pages come when attention selects them.

mod body;
mod open;
mod save;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::body::Body;
pub(crate) use self::open::shape;
use crate::cache::Shared;
use crate::disk::{ListedSession, NotSaved};
use crate::format::is_session_name;
use crate::live::{Shelf, Tier};
use crate::{Cache, Error, Geometry, MissReason};

/// What saving a session came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saved {
    /// Tokens present in every layer.
    pub tokens: usize,
    /// Bytes of the session on disk.
    pub bytes: u64,
    /// Those of them that were written now.
    pub written: u64,
}

/// A saved session.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its name.
    pub name: String,
    /// Tokens present in every layer.
    pub tokens: usize,
    /// Bytes on disk; its records may be shared with other sessions.
    pub bytes: u64,
    /// When it was saved, in seconds since 1970.
    pub written: u64,
    /// The model it was saved for.
    pub model: Vec<u8>,
    /// Its shape; none if its file cannot be read.
    pub geometry: Option<Geometry>,
    /// Why its file cannot be read, if it cannot. The other fields say nothing then.
    pub missing: Option<MissReason>,
}

impl From<ListedSession> for SessionInfo {
    fn from(listed: ListedSession) -> SessionInfo {
        let ListedSession { name, about, file_bytes } = listed;
        match about {
            Ok(about) => SessionInfo {
                name,
                tokens: about.tokens as usize,
                bytes: about.stored_bytes + file_bytes,
                written: about.written,
                model: about.model,
                geometry: Some(about.geometry),
                missing: None,
            },
            Err(reason) => SessionInfo {
                name,
                tokens: 0,
                bytes: file_bytes,
                written: 0,
                model: Vec::new(),
                geometry: None,
                missing: Some(reason),
            },
        }
    }
}

impl Cache {
    /// The sessions saved in the cache's directory, by name, those of other models included.
    ///
    /// # Errors
    /// [`Error::Setting`] without a disk tier, [`Error::Disk`] if the directory is busy for too long.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        let listed = shelf(&self.shared)?.disk().sessions()?;
        Ok(listed.into_iter().map(SessionInfo::from).collect())
    }

    /// Deletes a saved session; whether there was one. Sequences that were opened from it stay.
    ///
    /// # Errors
    /// [`Error::Setting`] without a disk tier or for an impossible name, [`Error::Save`] if the file
    /// system refuses.
    pub fn delete_session(&self, name: &str) -> Result<bool, Error> {
        let shelf = shelf(&self.shared)?;
        check_name(name)?;
        shelf.disk().delete_session(name).map_err(|e| refused(name, "deleted", e))
    }
}

/// The directory of a cache that has one.
fn shelf(shared: &Shared) -> Result<&Arc<Shelf>, Error> {
    let expected = "a directory (`Builder::disk`), where sessions are saved";
    shared.shelf.as_ref().ok_or_else(|| Error::setting("disk", expected, "none"))
}

fn tier(shared: &Shared) -> Result<&Tier, Error> {
    let expected = "a directory (`Builder::disk`), where sessions are saved";
    shared.tier.as_ref().ok_or_else(|| Error::setting("disk", expected, "none"))
}

fn model(shared: &Shared) -> Result<&[u8], Error> {
    if shared.model.is_empty() {
        let expected = "the identity of the weights (`Builder::model`) that sessions are saved for";
        return Err(Error::setting("model", expected, "none"));
    }
    Ok(&shared.model)
}

fn check_name(name: &str) -> Result<(), Error> {
    let expected = "1 to 64 of A-Z a-z 0-9 . _ -, the first neither . nor -";
    match is_session_name(name) {
        true => Ok(()),
        false => Err(Error::setting("session name", expected, format!("{name:?}"))),
    }
}

/// The error of what was to be `done` and was not.
fn refused(name: &str, done: &str, why: NotSaved) -> Error {
    let (name, kept) = (name.to_owned(), "what was saved before is as it was");
    let reason = match why {
        NotSaved::Refused(refused) => format!("was not {done} ({refused:?}); {kept}"),
        NotSaved::Gone(_) => format!("was not {done}: one of its records is gone; {kept}"),
        NotSaved::Io(e) => format!("was not {done}: {e}; {kept}"),
        NotSaved::Unsure(e) => format!("is {done}, but a crash may undo that: {e}"),
    };
    Error::Save { name, reason }
}
