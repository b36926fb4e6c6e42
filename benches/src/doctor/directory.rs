//! The directory that a store would have: may it be used, and what is there already?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvist::Error as StoreError;
use kvist::inspect::{Inventory, Place};
use kvist::vfs::Vfs;
use serde::Serialize;

use super::Options;
use super::finding::Findings;
use super::volume::Volume;
use crate::text::bytes;

/// What was found of a directory.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Directory {
    /// It.
    pub path: PathBuf,
    /// Whether it is there.
    pub exists: bool,
    /// Owner, if that can be told.
    pub owner: Option<u32>,
    /// Mode in octal digits.
    pub mode: Option<String>,
    /// Whether some process has a store open there; `None` if the system does not tell.
    pub in_use: Option<bool>,
    /// The process that has or had it open.
    pub holder: Option<u32>,
    /// What lies there and belongs to no store.
    pub foreign: Vec<String>,
    /// What offsets of transfers past the page cache must be a multiple of; `None` where there are
    /// none.
    pub direct_alignment: Option<usize>,
    /// The file system.
    pub volume: Option<Volume>,
    /// The store that is there already; `None` if there is none, and with `quick`.
    pub store: Option<Contents>,
}

/// What a store holds, from the headers of its records.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Contents {
    /// Fingerprints of the models.
    pub models: Vec<String>,
    /// Different layouts.
    pub layouts: usize,
    /// Tenants.
    pub tenants: usize,
    /// Whether some records are sealed.
    pub sealed: bool,
    /// Records that can be found.
    pub records: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Bytes of files.
    pub file_bytes: u64,
    /// Bytes before compression over bytes after, of what is stored losslessly compressed.
    pub lossless_ratio: Option<f64>,
    /// Segments.
    pub segments: usize,
    /// Those without an index: in use, or cut short.
    pub unfinished: usize,
    /// Those that cannot be read, and why.
    pub unreadable: Vec<String>,
    /// Saved sessions.
    pub sessions: usize,
}

impl Directory {
    /// Looks at it and judges it. The second value is where a scratch file can be made: the directory,
    /// or, if it is not there, the one that it would be made in.
    pub(super) fn look(
        vfs: &Arc<dyn Vfs>,
        path: &Path,
        options: &Options,
        out: &mut Findings,
    ) -> (Directory, Option<PathBuf>) {
        let place = Place::look_on(vfs.clone(), path, options.allow_shared_dir);
        let mut found = Directory {
            path: path.to_owned(),
            exists: place.exists,
            owner: place.stat.map(|s| s.uid),
            mode: place.stat.map(|s| format!("{:04o}", s.mode)),
            in_use: place.in_use,
            holder: place.holder,
            foreign: place.foreign.clone(),
            ..Directory::default()
        };
        let ground = found.ground(&place, options.parents_made, out);
        if let Some(e) = &place.refusal {
            let advice = advice(e, path, found.holder);
            out.error("directory", refusal(e, path), &advice);
        } else if place.exists {
            out.ok("directory", format!("{} can be used", path.display()));
        }
        if let Some(bad) = &place.secret {
            let text = format!("cache.key is damaged ({bad}): no stored block will be found");
            out.error(
                "directory",
                text,
                "give the secret with which they were stored, or remove the directory",
            );
        }
        if place.refusal.is_none() && !found.foreign.is_empty() {
            let text = format!(
                "{} things there are not the store's: {}",
                found.foreign.len(),
                some(&found.foreign)
            );
            out.warn(
                "directory",
                text,
                "move them away; a store leaves them alone and does not count them",
            );
        }
        if let Some(store) = place.store.filter(|_| !options.quick) {
            let contents = Contents::of(&store.inventory());
            contents.judge(path, out);
            found.store = Some(contents);
        }
        (found, ground)
    }

    /// The directory itself, or the nearest one in which it would be made.
    fn ground(&self, place: &Place, parents_made: bool, out: &mut Findings) -> Option<PathBuf> {
        if self.exists {
            return Some(self.path.clone());
        }
        if place.refusal.is_some() {
            return None;
        }
        let path = std::path::absolute(&self.path).ok()?;
        let most = if parents_made { usize::MAX } else { 1 };
        let Some(above) = path.ancestors().skip(1).take(most).find(|p| p.is_dir()) else {
            let above = path.parent().unwrap_or(&path).display();
            let text = format!("{} cannot be made: {above} is no directory", path.display());
            out.error("directory", text, &format!("mkdir -p {above}"));
            return None;
        };
        let maker = if parents_made { "the engine" } else { "a store" };
        out.ok("directory", format!("{} is not there yet; {maker} makes it", path.display()));
        above.canonicalize().ok()
    }
}

impl Contents {
    fn of(i: &Inventory) -> Contents {
        let set = |of: fn(&kvist::inspect::Group) -> &str| -> BTreeSet<String> {
            i.groups.iter().map(|g| of(g).to_owned()).collect()
        };
        let coded = || i.groups.iter().filter(|g| g.codec == kvist::Codec::lossless().name());
        let sum = |of: fn(&kvist::inspect::Group) -> u64| coded().map(of).sum::<u64>() as f64;
        let (decoded, stored) = (sum(|g| g.decoded_bytes), sum(|g| g.stored_bytes));
        Contents {
            models: set(|g| &g.model).into_iter().collect(),
            layouts: set(|g| &g.layout).len(),
            tenants: set(|g| &g.tenant).len(),
            sealed: i.groups.iter().any(|g| g.sealed),
            records: i.records,
            tokens: i.tokens,
            file_bytes: i.file_bytes,
            lossless_ratio: (stored > 0.0).then(|| decoded / stored),
            segments: i.segments.len(),
            unfinished: i.segments.iter().filter(|s| !s.finished && s.unreadable.is_none()).count(),
            unreadable: i
                .segments
                .iter()
                .filter_map(|s| Some(format!("{}: {}", s.file, s.unreadable.as_ref()?)))
                .collect(),
            sessions: i.sessions.len(),
        }
    }

    fn judge(&self, path: &Path, out: &mut Findings) {
        let text = format!(
            "holds {} records, {} tokens in {}{}",
            self.records,
            self.tokens,
            bytes(self.file_bytes),
            if self.sealed { ", sealed" } else { "" }
        );
        out.ok("directory", text);
        if self.models.len() > 1 {
            let names: Vec<String> =
                self.models.iter().map(|m| m.chars().take(12).collect()).collect();
            let text = format!(
                "holds blocks of {} models ({}), which share its room",
                names.len(),
                some(&names)
            );
            let advice = "if one of them is gone for good, a directory for each model wastes no room; \
                          `kvist inspect` says how much each takes";
            out.warn("directory", text, advice);
        }
        if !self.unreadable.is_empty() {
            let text = format!(
                "{} segments cannot be read, their blocks are misses: {}",
                self.unreadable.len(),
                some(&self.unreadable)
            );
            let advice = format!("`kvist verify {}` checks every byte", path.display());
            out.warn("directory", text, &advice);
        }
    }
}

/// The first few of a list.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 3 { format!("{shown}, …") } else { shown }
}

fn refusal(e: &StoreError, path: &Path) -> String {
    let link = path.symlink_metadata().is_ok_and(|m| m.is_symlink());
    match e {
        StoreError::Permission { .. } | StoreError::Disk { .. } if link => {
            format!("{} is a symbolic link, which a store does not follow", path.display())
        }
        _ => e.to_string(),
    }
}

fn advice(e: &StoreError, path: &Path, holder: Option<u32>) -> String {
    let shown = path.display();
    match e {
        StoreError::InUse { .. } => {
            let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
            let who = holder.and_then(|pid| Some(format!(" ({pid} is {})", name(pid)?.trim())));
            let who = who.unwrap_or_default();
            format!("stop that process{who}, or give this one a directory of its own")
        }
        StoreError::NotAStore { .. } => {
            "name an empty directory, or one that is not there yet".to_owned()
        }
        StoreError::Version { .. } => {
            "use the version of kvist that wrote it, or another directory".to_owned()
        }
        StoreError::BadMeta { .. } => "restore kvist.meta, or use another directory".to_owned(),
        _ => match path.symlink_metadata() {
            Ok(m) if m.is_symlink() => match path.canonicalize() {
                Ok(real) => format!("name {}", real.display()),
                Err(_) => "name a directory".to_owned(),
            },
            Ok(m) if !m.is_dir() => "name a directory".to_owned(),
            _ => format!("chown and chmod 0700 {shown} for the user that runs the engine"),
        },
    }
}
