//! Saved sessions: which there are, whether their files are right, and whether their records are there.

use std::io;

use serde::Serialize;

use super::StoreView;
use super::json::hex;
use super::report::{Damage, Note, Report, What};
use super::verify::{AGAIN, PAUSE};
use crate::disk::SESSIONS;
use crate::disk::dir::{TEMPORARY, read_secret};
use crate::format::{
    BlockKey, KeySecret, SESSION_HEAD, SessionFront, SessionParts, decode_front,
    parse_session_file, session_body,
};
use crate::vfs::{Access, Dir, Kind, read_exact_at};

/// A saved session.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SessionUse {
    /// Its name.
    pub name: String,
    /// The model it was saved for: as text where it is that, else in hexadecimal digits.
    pub model: String,
    /// Tokens present in every layer.
    pub tokens: u64,
    /// Bytes of its records, which other sessions may share.
    pub stored_bytes: u64,
    /// Bytes of its file.
    pub file_bytes: u64,
    /// When it was saved, in seconds since 1970.
    pub written: u64,
    /// Records that it needs.
    pub records: u64,
    /// Those of them that are not there: it cannot be opened then.
    pub missing_records: u64,
    /// Why its file is not right, if it is not.
    pub unreadable: Option<String>,
}

/// A session's file as it was read.
pub(super) struct Read {
    name: String,
    bytes: u64,
    front: Result<SessionFront, String>,
}

/// What lies where sessions are.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) files: Vec<Read>,
    aliens: Vec<String>,
    unfinished: Vec<String>,
    /// Why there is none, if it could not be read.
    unreadable: Option<io::Error>,
}

impl Read {
    pub(super) fn describe(&self, is_there: impl Fn(&BlockKey) -> bool) -> SessionUse {
        let (name, file_bytes) = (self.name.clone(), self.bytes);
        match &self.front {
            Ok(SessionFront { about, keys }) => SessionUse {
                name,
                model: shown(&about.model),
                tokens: about.tokens,
                stored_bytes: about.stored_bytes,
                file_bytes,
                written: about.written,
                records: keys.len() as u64,
                missing_records: keys.iter().filter(|key| !is_there(key)).count() as u64,
                unreadable: None,
            },
            Err(e) => SessionUse {
                name,
                file_bytes,
                unreadable: Some(e.clone()),
                ..SessionUse::default()
            },
        }
    }
}

fn shown(model: &[u8]) -> String {
    match std::str::from_utf8(model) {
        Ok(text) if text.chars().all(|c| !c.is_control()) => text.to_owned(),
        _ => hex(model),
    }
}

impl StoreView {
    /// Reads the files of all sessions. Hashes are checked if the secret is there.
    pub(super) fn list_sessions(&self) -> Listing {
        let mut listing = Listing::default();
        let listed = self.dir.subdir(SESSIONS, false).and_then(|dir| Ok((dir.list()?, dir)));
        let (mut entries, dir) = match listed {
            Ok(listed) => listed,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return listing,
            Err(e) => return Listing { unreadable: Some(e), ..listing },
        };
        let secret = read_secret(&*self.dir).ok().flatten().and_then(Result::ok);
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let name = parse_session_file(&entry.name).filter(|_| entry.kind == Kind::File);
            let unfinished = entry.name.strip_suffix(TEMPORARY).and_then(parse_session_file);
            match (name, unfinished) {
                (Some(name), _) => match self.read_session(&*dir, &entry.name, name, &secret) {
                    // Deleted since it was listed.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    front => {
                        let front = front.unwrap_or_else(|e| Err(e.to_string()));
                        let (name, bytes) = (name.to_owned(), entry.len);
                        listing.files.push(Read { name, bytes, front });
                    }
                },
                (None, Some(_)) => listing.unfinished.push(entry.name),
                (None, None) => listing.aliens.push(entry.name),
            }
        }
        listing
    }

    fn read_session(
        &self,
        dir: &dyn Dir,
        file: &str,
        name: &str,
        secret: &Option<KeySecret>,
    ) -> io::Result<Result<SessionFront, String>> {
        let file = dir.open(file, Access::Buffered)?;
        let len = file.len()?;
        let mut raw = vec![0; SESSION_HEAD.min(len as usize)];
        read_exact_at(&*file, &mut raw, 0)?;
        let parts = match SessionParts::of(&raw, len) {
            Ok(parts) => parts,
            Err(bad) => return Ok(Err(format!("head: {bad}"))),
        };
        // Not longer than it says, and that is limited.
        raw.resize(len as usize, 0);
        read_exact_at(&*file, &mut raw, 0)?;
        let front = decode_front(&raw, &parts, name, &self.meta.uuid, secret.as_ref());
        let front = front.map_err(|bad| format!("first part: {bad}"));
        Ok(front.and_then(|front| match secret {
            Some(secret) => session_body(&raw, &parts, secret)
                .map(|_| front)
                .map_err(|bad| format!("content: {bad}")),
            None => Ok(front),
        }))
    }

    /// Adds what is wrong with sessions. What their owner may be changing is looked at again before it
    /// is called damaged.
    pub(super) fn verify_sessions(&self, report: &mut Report) {
        let mut found = self.check_sessions(report);
        for _ in 0..AGAIN {
            if found.is_empty() || self.in_use() == Some(false) {
                break;
            }
            std::thread::sleep(PAUSE);
            found = self.check_sessions(&mut Report::default());
        }
        report.damage.append(&mut found);
    }

    /// Notes go to the report; what is damaged is returned.
    fn check_sessions(&self, report: &mut Report) -> Vec<Damage> {
        let listing = self.list_sessions();
        let path = |name: &str| format!("{SESSIONS}/{name}");
        if let Some(e) = listing.unreadable {
            return vec![damage(path(""), 0, e.to_string())];
        }
        for alien in &listing.aliens {
            report.notes.push(Note::new(path(alien), "not this store's; left alone"));
        }
        for name in &listing.unfinished {
            report.notes.push(Note::new(path(name), "was never finished; not served"));
        }
        report.sessions = listing.files.len() as u64;
        let there = if listing.files.is_empty() { None } else { Some(self.index()) };
        let check = |read: &Read| {
            let session = read.describe(|key| there.as_ref().is_none_or(|there| there.has(key)));
            let (missing, all) = (session.missing_records, session.records);
            let check = match session.unreadable {
                None if missing == 0 => return None,
                None => format!("{missing} of its {all} records are not there"),
                Some(check) => check,
            };
            let file = path(&crate::format::session_file(&session.name));
            Some(damage(file, session.file_bytes, check))
        };
        listing.files.iter().filter_map(check).collect()
    }
}

fn damage(file: String, bytes: u64, check: String) -> Damage {
    let what = What::Session;
    Damage { what, file, offset: 0, bytes, key: None, check, means: what.means() }
}
