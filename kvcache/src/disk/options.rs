//! Settings of the Disk tier.

use std::path::PathBuf;
use std::time::Duration;

use crate::Error;
use crate::format::{KeySecret, Limits};
use crate::seal::MasterKey;

/// So many poisoned segments …
pub(super) const FAILURES: usize = 3;
/// … within this time make the tier rest …
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// … for this long at first …
pub(super) const REST_FIRST: Duration = Duration::from_secs(30);
/// … and at most this long.
pub(super) const REST_LONGEST: Duration = Duration::from_secs(600);

/// Segments are this large where the budget allows.
const SEGMENT_BYTES: u64 = 256 << 20;
/// Smallest budget: a segment in use, one to move into, and one more.
pub(super) const SEGMENTS_LEAST: u64 = 3;

/// What to do with a directory of a version that this one cannot read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnVersion {
    /// Refuse to open it.
    #[default]
    Refuse,
    /// Leave its files alone and start empty beside them.
    Reset,
}

/// Where and how the Disk tier keeps its records.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) deadline: Duration,
    pub(crate) limits: Limits,
    pub(crate) secret: Option<KeySecret>,
    pub(crate) master: Option<MasterKey>,
    pub(crate) on_version: OnVersion,
    pub(crate) allow_shared_dir: bool,
    pub(crate) required: bool,
}

impl DiskOptions {
    /// A directory, made if missing, and the most bytes of files in it.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, bytes: u64) -> DiskOptions {
        DiskOptions {
            path: path.into(),
            bytes,
            segment_bytes: (bytes / 16).clamp(1 << 20, SEGMENT_BYTES) & !4095,
            deadline: Duration::from_secs(10),
            limits: Limits::default(),
            secret: None,
            master: None,
            on_version: OnVersion::Refuse,
            allow_shared_dir: false,
            required: true,
        }
    }

    /// Size of a segment file. Default a sixteenth of the budget, 1 MiB to 256 MiB.
    #[must_use]
    pub fn segment_bytes(mut self, bytes: u64) -> DiskOptions {
        self.segment_bytes = bytes;
        self
    }

    /// How long an operation may take before it is a miss. Default 10 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> DiskOptions {
        self.deadline = deadline;
        self
    }

    /// Largest record, stored and decoded. Default 64 MiB, at most 256 MiB.
    #[must_use]
    pub fn record_bytes_max(mut self, bytes: u32) -> DiskOptions {
        self.limits.record_bytes_max = bytes;
        self
    }

    /// A secret shared by several hosts, so that they compute the same keys. Default: random, kept
    /// in the directory.
    #[must_use]
    pub fn key_secret(mut self, secret: KeySecret) -> DiskOptions {
        self.secret = Some(secret);
        self
    }

    /// Encrypts and authenticates records (AES-256-GCM) with keys derived from these 32 bytes, which
    /// are never written. Needs the feature `seal`.
    #[must_use]
    pub fn seal(mut self, master: [u8; 32]) -> DiskOptions {
        self.master = Some(MasterKey::new(master));
        self
    }

    /// What to do with a directory of another version. Default: refuse.
    #[must_use]
    pub fn on_version(mut self, on_version: OnVersion) -> DiskOptions {
        self.on_version = on_version;
        self
    }

    /// Accepts a directory that other users may write. Default: refused.
    #[must_use]
    pub fn allow_shared_dir(mut self, allow: bool) -> DiskOptions {
        self.allow_shared_dir = allow;
        self
    }

    /// Whether a directory that cannot be opened for lack of permission is an error (default), or
    /// only means running without the tier, which statistics then show.
    #[must_use]
    pub fn required(mut self, required: bool) -> DiskOptions {
        self.required = required;
        self
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.master.is_some()
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        use std::os::unix::ffi::OsStrExt;
        let path = self.path.as_os_str().as_bytes();
        if path.is_empty() || path.contains(&0) {
            return Err(Error::setting("disk path", "a path without NUL", format!("{path:?}")));
        }
        let segment = self.segment_bytes;
        if !segment.is_multiple_of(4096) || !(64 << 10..=1 << 40).contains(&segment) {
            let expected = "a multiple of 4096 from 64 KiB to 1 TiB";
            return Err(Error::setting("segment_bytes", expected, segment));
        }
        let least = segment * SEGMENTS_LEAST;
        if self.bytes < least {
            let expected = format!("at least {least} bytes ({SEGMENTS_LEAST} segments)");
            return Err(Error::setting("disk bytes", expected, self.bytes));
        }
        let record = self.limits.record_bytes_max;
        if record == 0 || record > Limits::RECORD_BYTES_HARD {
            let expected = format!("1..={}", Limits::RECORD_BYTES_HARD);
            return Err(Error::setting("record_bytes_max", expected, record));
        }
        if self.master.is_some() && !cfg!(feature = "seal") {
            return Err(Error::setting("seal", "a build with the feature `seal`", "one without"));
        }
        Ok(())
    }
}
