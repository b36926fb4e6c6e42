//! Checking everything, read-only.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::report::{Damage, Note, Report, What};
use super::segment::{self, Checked};
use super::{Listed, StoreView, threads_default};
use crate::Error;
use crate::disk::dir;
use crate::format::SecretFile;

/// What looks damaged in a segment that is being written is looked at again, this often …
pub(super) const AGAIN: usize = 5;
/// … and after this long.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// How to check.
#[derive(Clone, Copy, Default)]
pub struct VerifyOptions<'a> {
    /// Segments checked at once; 0 is as many as there are processors, 2 to 8.
    pub threads: usize,
    /// Whether what a crash may leave counts as damage too: for a store that was closed in order.
    pub strict: bool,
    /// Accepts a directory that other users may write.
    pub allow_shared_dir: bool,
    /// Hears how many bytes were checked, of how many.
    pub progress: Option<&'a (dyn Fn(u64, u64) + Sync)>,
}

impl std::fmt::Debug for VerifyOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut s = f.debug_struct("VerifyOptions");
        s.field("threads", &self.threads).field("strict", &self.strict).finish_non_exhaustive()
    }
}

/// What became of a segment.
enum Outcome {
    Checked(Checked),
    /// Removed since it was listed.
    Gone,
    Unreadable(io::Error),
}

impl StoreView {
    /// Re-checks everything: the directory's own files, of every segment head, index, and each record's
    /// header, directory, sections and padding; and saved sessions: their files, and whether their
    /// records are there.
    ///
    /// # Errors
    /// [`Error::Permission`] if a store would refuse the directory.
    pub fn verify(&self, options: &VerifyOptions) -> Result<Report, Error> {
        if !options.allow_shared_dir {
            dir::check_owner(&*self.dir, &self.path)?;
        }
        let mut report = Report {
            path: self.path.display().to_string(),
            in_use: self.in_use(),
            segments: self.segments.len() as u64,
            ..Report::default()
        };
        self.around(&mut report);
        let (total, done) = (self.segments.iter().map(|s| s.len).sum(), AtomicU64::new(0));
        let heard = |more: u64| {
            let done = done.fetch_add(more, Ordering::Relaxed) + more;
            if let Some(progress) = options.progress {
                progress(done.min(total), total);
            }
        };
        let threads = if options.threads == 0 { threads_default() } else { options.threads };
        let outcomes =
            self.each_segment(&self.segments, threads, |listed| self.look(listed, &heard));
        for (listed, outcome) in self.segments.iter().zip(outcomes) {
            take(&mut report, listed, outcome, options.strict);
        }
        self.verify_sessions(&mut report);
        report.clean = report.damage.is_empty();
        Ok(report)
    }

    /// The files beside the segments.
    fn around(&self, report: &mut Report) {
        let name = SecretFile::NAME;
        let secret = match dir::read_secret(&*self.dir) {
            Ok(Some(Ok(_))) => None,
            Ok(Some(Err(bad))) => Some(bad.to_string()),
            Err(e) => Some(e.to_string()),
            Ok(None) => {
                let text = "not there: blocks are found only with the secret they were stored with";
                report.notes.push(Note::new(name, text));
                None
            }
        };
        if let Some(check) = secret {
            let (what, file) = (What::Secret, name.to_owned());
            let (offset, bytes, key) = (0, SecretFile::BYTES as u64, None);
            let means = what.means();
            report.damage.push(Damage { what, file, offset, bytes, key, check, means });
        }
        for alien in &self.aliens {
            let text = format!("not this store's ({}); left alone", kind(alien));
            report.notes.push(Note::new(&alien.name, text));
        }
        for aside in &self.aside {
            let text = format!("put aside after failed reads, {} bytes; not served", aside.len);
            report.notes.push(Note::new(format!("{}/{}", crate::disk::ASIDE, aside.name()), text));
        }
    }

    /// Checks a segment. One that its owner may be writing is looked at again before it is called
    /// damaged.
    fn look(&self, listed: &Listed, heard: &(dyn Fn(u64) + Sync)) -> Outcome {
        let mut outcome = self.check(listed, heard);
        for _ in 0..AGAIN {
            let suspect = match &outcome {
                Outcome::Checked(checked) => !checked.finished && !checked.damage.is_empty(),
                Outcome::Unreadable(e) => e.kind() == io::ErrorKind::UnexpectedEof,
                Outcome::Gone => false,
            };
            if !suspect || self.in_use() == Some(false) {
                break;
            }
            std::thread::sleep(PAUSE);
            outcome = self.check(listed, &|_| {});
        }
        outcome
    }

    fn check(&self, listed: &Listed, heard: &dyn Fn(u64)) -> Outcome {
        let scanner = match self.scanner(listed) {
            Ok(scanner) => scanner,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Outcome::Gone,
            Err(e) => return Outcome::Unreadable(e),
        };
        let checked = segment::check(&scanner, &self.meta.uuid, heard);
        let stat = scanner.file.stat();
        match (checked, stat) {
            (Ok(mut checked), Ok(stat)) => {
                if !stat.mine {
                    let text = format!("belongs to user {}: a store leaves it alone", stat.uid);
                    checked.notes.push(Note::new(listed.name(), text));
                }
                if stat.mode & 0o077 != 0 {
                    let text = format!("others may use it (mode {:04o})", stat.mode);
                    checked.notes.push(Note::new(listed.name(), text));
                }
                Outcome::Checked(checked)
            }
            (Err(e), _) | (_, Err(e)) => Outcome::Unreadable(e),
        }
    }
}

fn kind(entry: &crate::vfs::Entry) -> &'static str {
    match entry.kind {
        crate::vfs::Kind::File => "file",
        crate::vfs::Kind::Dir => "directory",
        crate::vfs::Kind::Other => "link or special file",
    }
}

/// Adds what was found in a segment.
fn take(report: &mut Report, listed: &Listed, outcome: Outcome, strict: bool) {
    let mut checked = match outcome {
        Outcome::Checked(checked) => checked,
        Outcome::Gone => {
            report.segments -= 1;
            return report.notes.push(Note::new(listed.name(), "removed meanwhile"));
        }
        Outcome::Unreadable(e) => {
            let (what, file, bytes) = (What::Unreadable, listed.name(), listed.len);
            let (check, means) = (e.to_string(), what.means());
            let damage = Damage { what, file, offset: 0, bytes, key: None, check, means };
            return report.damage.push(damage);
        }
    };
    report.bytes += listed.len;
    report.finished += u64::from(checked.finished);
    report.records += checked.records;
    report.sealed += checked.sealed;
    report.tombstones += checked.tombstones;
    if let Some(torn) = checked.torn {
        report.torn += 1;
        if strict {
            checked.damage.push(torn);
        } else {
            let text = format!(
                "ends at byte {} with a record that was never finished ({})",
                torn.offset, torn.check
            );
            report.notes.push(Note::new(listed.name(), text));
        }
    }
    report.damage.append(&mut checked.damage);
    report.notes.append(&mut checked.notes);
}
