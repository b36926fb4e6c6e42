//! Settings of a prefix store.

use std::sync::Arc;
use std::time::Duration;

use kvist_policies::replace::{Admission, Admit, Replace, Watermarks};

use super::behind::Queue;
use super::counters::Counters;
use super::host::Host;
use super::{Numbers, PrefixStore, Shared, Threads};
use crate::Error;
use crate::arena::Care;
use crate::disk::{Disk, DiskOptions};
use crate::format::KeySecret;
use crate::journal::Journal;
use crate::sync::{Mutex, thread};
use crate::vfs::{self, Vfs};

/// Host tier where nothing is said.
const HOST_BYTES_DEFAULT: u64 = 1 << 30;
/// Bytes that may wait to be written, where the host tier is large enough.
const QUEUE_BYTES: u64 = 256 << 20;

/// Settings of a [`PrefixStore`], each with a default.
#[derive(Clone, Debug)]
pub struct PrefixBuilder {
    host_bytes: u64,
    replace: Replace,
    watermarks: Option<Watermarks>,
    disk: Option<DiskOptions>,
    admit: Option<Admit>,
    secret: Option<KeySecret>,
    vfs: Option<Arc<dyn Vfs>>,
    queue_bytes: Option<u64>,
    patience: Duration,
    multi_tenant: bool,
    verify_tokens: bool,
    verify_leases: bool,
    zero_on_free: Option<bool>,
    prefault: bool,
    threads: bool,
}

impl Default for PrefixBuilder {
    fn default() -> PrefixBuilder {
        PrefixBuilder {
            host_bytes: HOST_BYTES_DEFAULT,
            replace: Replace::default(),
            watermarks: None,
            disk: None,
            admit: None,
            secret: None,
            vfs: None,
            queue_bytes: None,
            patience: Duration::ZERO,
            multi_tenant: false,
            verify_tokens: true,
            verify_leases: false,
            zero_on_free: None,
            prefault: false,
            threads: true,
        }
    }
}

impl PrefixBuilder {
    /// Bytes of host memory for blocks and their index: a hard limit. Beside its own, a block takes at most 128
    /// bytes, and those of its place in the order of replacement ([`Replace::block_bytes`]). Default 1 GiB.
    #[must_use]
    pub fn host_bytes(mut self, bytes: u64) -> PrefixBuilder {
        self.host_bytes = bytes;
        self
    }

    /// Which blocks leave memory when it is full. Default [`Replace::Adaptive`]. What a cache lends
    /// ([`Space::publish`](super::Space::publish)) leaves after all others, the least recently used first.
    #[must_use]
    pub fn replace(mut self, replace: Replace) -> PrefixBuilder {
        self.replace = replace;
        self
    }

    /// Makes room in the background before it is needed, so that puts do not wait until memory is wiped
    /// ([`PrefixBuilder::zero_on_free`]) and given back. Default: room is made when it is needed, and all memory is used.
    #[must_use]
    pub fn watermarks(mut self, marks: Watermarks) -> PrefixBuilder {
        self.watermarks = Some(marks);
        self
    }

    /// Keeps blocks on disk too. Default: in memory only.
    #[must_use]
    pub fn disk(mut self, options: DiskOptions) -> PrefixBuilder {
        self.disk = Some(options);
        self
    }

    /// Which blocks are written to disk: those that come again, or whose use is foretold
    /// ([`Space::wanted`](super::Space::wanted)), no faster than said; a tick is a tenth of a second. A block comes when it
    /// is put, and again when it is read from memory or put anew. Spares flash where most blocks are used once; what
    /// was not let in is gone after a restart. Default: all.
    #[must_use]
    pub fn admit(mut self, rule: Admit) -> PrefixBuilder {
        self.admit = Some(rule);
        self
    }

    /// A secret shared by several stores, so that they compute the same keys. Default: that of the
    /// directory, or a random one.
    #[must_use]
    pub fn key_secret(mut self, secret: KeySecret) -> PrefixBuilder {
        self.secret = Some(secret);
        self
    }

    /// The file system that the disk tier uses. Default: the operating system's.
    #[must_use]
    pub fn vfs(mut self, vfs: Arc<dyn Vfs>) -> PrefixBuilder {
        self.vfs = Some(vfs);
        self
    }

    /// Bytes of blocks that may wait to be written; they are part of the host budget. Default a
    /// quarter of it, at most 256 MiB. Blocks that a cache lends are part of its budget, and do not
    /// count here.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: u64) -> PrefixBuilder {
        self.queue_bytes = Some(bytes);
        self
    }

    /// How long a put waits for room in that queue before its block stays in memory only. Default: it
    /// does not wait.
    #[must_use]
    pub fn backpressure(mut self, patience: Duration) -> PrefixBuilder {
        self.patience = patience;
        self
    }

    /// Refuses spaces without a salt, and wipes memory when a block leaves. Default off.
    #[must_use]
    pub fn multi_tenant(mut self, on: bool) -> PrefixBuilder {
        self.multi_tenant = on;
        self
    }

    /// Stores token ids beside blocks and compares them. Default on; 4 bytes a token.
    #[must_use]
    pub fn verify_tokens(mut self, on: bool) -> PrefixBuilder {
        self.verify_tokens = on;
        self
    }

    /// Checks a block in memory each time it is read, not only when it comes from disk. Default off.
    /// Blocks that a cache lends have no checksum before they are written.
    #[must_use]
    pub fn verify_host(mut self, on: bool) -> PrefixBuilder {
        self.verify_leases = on;
        self
    }

    /// Wipes memory when a block leaves; pages that a cache lends are the cache's, and are not wiped.
    /// Default: as `multi_tenant`.
    #[must_use]
    pub fn zero_on_free(mut self, on: bool) -> PrefixBuilder {
        self.zero_on_free = Some(on);
        self
    }

    /// Touches the memory of the whole host budget when the first space is made, for blocks of its
    /// size, and keeps it: no put or read waits for the system to hand out a page. Default off: memory
    /// is touched when it is first used, and goes back when no block uses it.
    #[must_use]
    pub fn prefault(mut self, on: bool) -> PrefixBuilder {
        self.prefault = on;
        self
    }

    /// Without threads, blocks are written and fetched by [`PrefixStore::run_pending`] only. Default
    /// on.
    #[must_use]
    pub fn threads(mut self, on: bool) -> PrefixBuilder {
        self.threads = on;
        self
    }

    /// Makes the store, opening the directory if it has one.
    ///
    /// # Errors
    /// [`Error::Setting`] for impossible settings; what opening the directory says:
    /// [`Error::InUse`], [`Error::Permission`], [`Error::Version`], [`Error::NotAStore`],
    /// [`Error::BadMeta`], [`Error::Disk`].
    pub fn build(mut self) -> Result<PrefixStore, Error> {
        if self.host_bytes == 0 {
            return Err(Error::setting("host_bytes", "above 0", 0));
        }
        self.watermarks.as_ref().map(Watermarks::check).transpose()?;
        let admission = self.admit.map(Admission::new).transpose()?;
        if let (Some(disk), Some(secret)) = (&mut self.disk, &self.secret) {
            disk.secret = Some(secret.clone());
        }
        let master = self.disk.as_ref().and_then(|d| d.master.clone());
        let given = self.disk.as_ref().map_or(&self.secret, |d| &d.secret).clone();
        let disk = self.open_disk()?;
        disk.iter().filter(|_| self.prefault).for_each(|disk| disk.prefault());
        let secret = match (&disk, given) {
            (Some(disk), _) => disk.secret().clone(),
            (None, Some(secret)) => secret,
            (None, None) => KeySecret::random()?,
        };
        let journal = Arc::<Journal>::default();
        disk.iter().for_each(|disk| disk.tell(journal.clone()));
        let queue_bytes = self.queue_bytes.unwrap_or(QUEUE_BYTES.min(self.host_bytes / 4));
        let wipes = self.zero_on_free.unwrap_or(self.multi_tenant);
        let shared = Arc::new(Shared {
            host: Host::new(
                self.host_bytes,
                self.replace,
                Care { wipes, stays: self.prefault },
                journal.clone(),
            ),
            disk,
            secret,
            master,
            queue: Queue::new(queue_bytes as usize, self.patience),
            admission: admission.map(Mutex::new),
            watermarks: self.watermarks,
            shedding: false.into(),
            counters: Counters::default(),
            journal,
            numbers: Mutex::new(Numbers::default()),
            multi_tenant: self.multi_tenant,
            verify_tokens: self.verify_tokens,
            verify_leases: self.verify_leases,
            pid: std::process::id(),
            closed: false.into(),
        });
        let handles = if self.threads { start(&shared)? } else { vec![] };
        let threads = Threads { shared: shared.clone(), handles: Mutex::new(handles) };
        Ok(PrefixStore { shared, threads: Arc::new(threads) })
    }

    /// The disk tier; `None` if there is none, or it may not be used and is not required.
    fn open_disk(&self) -> Result<Option<Arc<Disk>>, Error> {
        let Some(options) = self.disk.clone() else { return Ok(None) };
        let required = options.required;
        let vfs = vfs::or_default(self.vfs.clone())?;
        match Disk::open(vfs, options) {
            Err(e @ Error::Permission { .. }) if !required => {
                tracing::warn!("running without the disk tier: {e}");
                Ok(None)
            }
            disk => disk.map(|disk| Some(Arc::new(disk))),
        }
    }
}

fn start(shared: &Arc<Shared>) -> Result<Vec<thread::JoinHandle<()>>, Error> {
    type Work = fn(&Shared);
    let write: (&str, Work) = ("kvist-write", Shared::write_all);
    let fetch: (&str, Work) = ("kvist-fetch", Shared::fetch_all);
    // Without a disk nothing is written.
    let threads = [shared.disk.is_some().then_some(write), Some(fetch)];
    let spawn = |(name, work): (&str, Work)| {
        let shared = shared.clone();
        let thread = thread::Builder::new().name(name.to_owned());
        let refused =
            |e: std::io::Error| Error::System { what: "starting a thread", reason: e.to_string() };
        thread.spawn(move || work(&shared)).map_err(refused)
    };
    threads.into_iter().flatten().map(spawn).collect()
}
