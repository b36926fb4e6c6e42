//! Saved sessions: named lists of records that stay. Each is a small file beside the segments, put in
//! place by a rename, so that a crash leaves the one before or the one after.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::budget::DiskCharge;
use super::dir::TEMPORARY;
use super::open::place;
use super::read::{reason, reason_of_error};
use super::write::{Refused, is_full};
use super::{Disk, State};
use crate::Error;
use crate::format::{
    BlockKey, SESSION_HEAD, SessionAbout, SessionFront, SessionParts, decode_front, encode_session,
    parse_session_file, session_body, session_file,
};
use crate::miss::MissReason;
use crate::vfs::{Access, Dir, Entry, Kind, read_exact_at};

/// Where the files of sessions are.
pub(crate) const SESSIONS: &str = "sessions";

/// The sessions of a directory. One caller at a time has them.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// Opened once its name is durable.
    dir: Option<Arc<dyn Dir>>,
    named: BTreeMap<String, Named>,
    /// Files that were being written when a process ended.
    unfinished: BTreeMap<String, DiskCharge>,
}

/// A session.
#[derive(Debug)]
struct Named {
    about: Result<SessionAbout, MissReason>,
    /// Records that are held for it.
    held: Vec<BlockKey>,
    /// Some were not there when it was found.
    lacks: bool,
    file: DiskCharge,
}

/// A session as it is listed.
#[derive(Clone, Debug)]
pub(crate) struct ListedSession {
    pub(crate) name: String,
    pub(crate) about: Result<SessionAbout, MissReason>,
    pub(crate) file_bytes: u64,
}

/// Why a session was not saved or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotSaved {
    Refused(Refused),
    /// The record at this place of its list is not there.
    Gone(usize),
    /// The file system refused; the session is as it was.
    Io(String),
    /// It is done, but a crash may undo it.
    Unsure(String),
}

/// Holds those of the records that are there.
fn hold_all(state: &mut State, keys: &[BlockKey]) -> Vec<BlockKey> {
    keys.iter().filter(|key| state.hold(key).is_some()).copied().collect()
}

impl Disk {
    /// Finds the sessions of a former run and keeps their records; whether all of them could be read.
    pub(super) fn find_sessions(&self) -> bool {
        let Some(mut sessions) = self.sessions.take(self.options.deadline) else { return false };
        let dir = match self.old_sessions_dir() {
            Ok(dir) => dir,
            Err(e) => {
                let none = e.kind() == io::ErrorKind::NotFound;
                if !none {
                    tracing::warn!("sessions cannot be listed: {e}");
                }
                return none;
            }
        };
        let entries = match dir.list() {
            Ok(entries) => entries,
            Err(e) => {
                tracing::warn!("sessions cannot be listed: {e}");
                return false;
            }
        };
        for entry in entries {
            if !self.find_session(&mut sessions, &*dir, &entry) {
                self.state.lock().counts.alien_files += 1;
            }
        }
        sessions.dir = Some(dir);
        let all_read = sessions.named.values().all(|named| named.about.is_ok());
        if sessions.named.values().any(|named| named.lacks) || !all_read {
            self.state.lock().keep_doubtful();
        }
        all_read
    }

    /// The directory of sessions of a former run. What it did last may be in the page cache only: what
    /// is seen now must not change any more.
    fn old_sessions_dir(&self) -> io::Result<Arc<dyn Dir>> {
        let dir = self.dir.subdir(SESSIONS, false)?;
        self.dir.sync()?;
        dir.sync()?;
        Ok(dir)
    }

    /// Whether the entry is one of ours.
    fn find_session(&self, sessions: &mut Sessions, dir: &dyn Dir, entry: &Entry) -> bool {
        if entry.kind != Kind::File {
            return false;
        }
        let unfinished = entry.name.strip_suffix(TEMPORARY).and_then(parse_session_file);
        if let Some(name) = unfinished {
            sessions.unfinished.insert(name.to_owned(), self.budget.found(entry.len));
            return true;
        }
        let Some(name) = parse_session_file(&entry.name) else { return false };
        let file = self.budget.found(entry.len);
        let front = self.read_session_file(dir, name, true).map(|(front, _)| front);
        let (about, keys) = match front {
            Ok(SessionFront { about, keys }) => (Ok(about), keys),
            Err(reason) => {
                tracing::warn!("session {name} cannot be opened: {reason}");
                (Err(reason), Vec::new())
            }
        };
        let keys = if bug!("session_not_held") { Vec::new() } else { keys };
        let held = hold_all(&mut self.state.lock(), &keys);
        let lacks = held.len() < keys.len();
        sessions.named.insert(name.to_owned(), Named { about, held, lacks, file });
        true
    }

    /// Reads a session's file: with `front_only` its first part, else also its content.
    fn read_session_file(
        &self,
        dir: &dyn Dir,
        name: &str,
        front_only: bool,
    ) -> Result<(SessionFront, Vec<u8>), MissReason> {
        let failed = |e: io::Error| reason_of_error(&e);
        let file = dir.open(&session_file(name), Access::Buffered).map_err(failed)?;
        let len = file.len().map_err(failed)?;
        let read = |from: usize, len: usize| -> Result<Vec<u8>, MissReason> {
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(len).map_err(|_| MissReason::Busy)?;
            bytes.resize(len, 0);
            read_exact_at(&*file, &mut bytes, from as u64).map_err(failed)?;
            self.count_read(len as u64);
            Ok(bytes)
        };
        let mut raw = read(0, SESSION_HEAD.min(len as usize))?;
        let parts = SessionParts::of(&raw, len).map_err(reason)?;
        let end = if front_only { parts.front_bytes() } else { len as usize };
        raw.extend(read(SESSION_HEAD, end - SESSION_HEAD)?);
        let front = decode_front(&raw, &parts, name, &self.uuid, Some(&self.secret));
        let front = front.map_err(reason)?;
        if front_only {
            return Ok((front, Vec::new()));
        }
        let body = session_body(&raw, &parts, &self.secret).map_err(reason)?;
        Ok((front, body.to_vec()))
    }

    /// The sessions there are, by name.
    ///
    /// # Errors
    /// [`Error::Disk`] if somebody else keeps them too long.
    pub(crate) fn sessions(&self) -> Result<Vec<ListedSession>, Error> {
        let busy = || Error::Disk {
            path: self.options.path.clone(),
            reason: "its sessions are in use for too long".to_owned(),
        };
        let sessions = self.sessions.take(self.options.deadline).ok_or_else(busy)?;
        let listed = |(name, named): (&String, &Named)| ListedSession {
            name: name.clone(),
            about: named.about.clone(),
            file_bytes: named.file.bytes(),
        };
        Ok(sessions.named.iter().map(listed).collect())
    }

    /// Reads a session. Its records are held for the caller, each once, in order.
    ///
    /// # Errors
    /// Why it cannot be had. A record that is missing is [`MissReason::Gone`] with its place.
    pub(crate) fn open_session(&self, name: &str) -> Result<(SessionFront, Vec<u8>), MissReason> {
        let sessions = self.sessions.take(self.options.deadline).ok_or(MissReason::Timeout)?;
        let named = sessions.named.get(name).ok_or(MissReason::Absent)?;
        named.about.as_ref().map_err(|reason| *reason)?;
        let dir = sessions.dir.as_ref().ok_or(MissReason::Absent)?;
        let read = self.read_session_file(&**dir, name, false)?;
        let mut state = self.state.lock();
        let held = hold_all(&mut state, &read.0.keys);
        drop(state);
        if held.len() < read.0.keys.len() {
            self.release_all(&held);
            return Err(MissReason::Gone);
        }
        Ok(read)
    }

    /// Saves a session in place of an earlier one of that name. Its records must be held by the
    /// caller and durable. Returns the bytes of its file.
    ///
    /// # Errors
    /// [`NotSaved`].
    pub(crate) fn save_session(
        &self,
        name: &str,
        front: &SessionFront,
        body: &[u8],
    ) -> Result<u64, NotSaved> {
        let patience = self.options.deadline;
        let mut sessions =
            self.sessions.take(patience).ok_or(NotSaved::Refused(Refused::Timeout))?;
        if self.state.lock().closed {
            return Err(NotSaved::Refused(Refused::Closed));
        }
        let bytes = encode_session(front, body, name, &self.uuid, &self.secret);
        let file = self.room_for_file(bytes.len() as u64).map_err(NotSaved::Refused)?;
        let held = hold_all(&mut self.state.lock(), &front.keys);
        if held.len() < front.keys.len() {
            let at = front.keys.iter().position(|key| !held.contains(key)).unwrap_or(0);
            self.release_all(&held);
            return Err(NotSaved::Gone(at));
        }
        let placed = self.sessions_dir(&mut sessions).and_then(|dir| {
            place(&*dir, &session_file(name), &bytes)?;
            Ok(dir)
        });
        let dir = placed.map_err(|e| {
            self.release_all(&held);
            let unfinished = format!("{}{TEMPORARY}", session_file(name));
            let dir = sessions.dir.as_ref();
            if let Some(Err(left)) = dir.map(|dir| dir.remove(&unfinished)) {
                tracing::debug!("{unfinished} may stay: {left}");
            }
            if is_full(&e) { NotSaved::Refused(Refused::Full) } else { NotSaved::Io(e.to_string()) }
        })?;
        sessions.unfinished.remove(name);
        let mut named = Named { about: Ok(front.about.clone()), held, lacks: false, file };
        let before = sessions.named.remove(name);
        let synced = if bug!("session_dir_not_synced") { Ok(()) } else { dir.sync() };
        let result = match (synced, before) {
            (Ok(()), before) => {
                before.into_iter().for_each(|before| self.release_all(&before.held));
                Ok(bytes.len() as u64)
            }
            (Err(e), before) => {
                // A crash may bring the one before back: its records stay, too.
                before.into_iter().for_each(|before| named.held.extend(before.held));
                Err(NotSaved::Unsure(e.to_string()))
            }
        };
        sessions.named.insert(name.to_owned(), named);
        result
    }

    /// Deletes a session; whether there was one. Records that nobody else needs go with it.
    ///
    /// # Errors
    /// [`NotSaved`].
    pub(crate) fn delete_session(&self, name: &str) -> Result<bool, NotSaved> {
        let patience = self.options.deadline;
        let mut sessions =
            self.sessions.take(patience).ok_or(NotSaved::Refused(Refused::Timeout))?;
        if self.state.lock().closed {
            return Err(NotSaved::Refused(Refused::Closed));
        }
        if !sessions.named.contains_key(name) {
            return Ok(false);
        }
        let dir = self.sessions_dir(&mut sessions).map_err(|e| NotSaved::Io(e.to_string()))?;
        match dir.remove(&session_file(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(NotSaved::Io(e.to_string()));
            }
            _ => {}
        }
        let gone = sessions.named.remove(name);
        if let Err(e) = dir.sync() {
            // Its records stay until the next start, which finds it or does not.
            return Err(NotSaved::Unsure(e.to_string()));
        }
        gone.into_iter().for_each(|gone| self.release_all(&gone.held));
        Ok(true)
    }

    /// The directory of sessions, made if missing.
    fn sessions_dir(&self, sessions: &mut Sessions) -> io::Result<Arc<dyn Dir>> {
        if let Some(dir) = &sessions.dir {
            return Ok(dir.clone());
        }
        let dir = self.dir.subdir(SESSIONS, true)?;
        self.dir.sync()?;
        sessions.dir = Some(dir.clone());
        Ok(dir)
    }

    /// Charges a file beside the segments, after evicting what must leave for it. Room to move
    /// records to is left.
    fn room_for_file(&self, bytes: u64) -> Result<DiskCharge, Refused> {
        loop {
            if let Some(charge) = self.budget.charge(bytes, self.options.segment_bytes) {
                return Ok(charge);
            }
            if !self.evict_oldest() {
                return Err(Refused::Full);
            }
        }
    }
}
