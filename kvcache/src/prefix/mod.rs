//! The prefix store: blocks of KV by the content that made them, kept for whoever asks again.
//!
//! A [`Space`] is the blocks of one model, layout, tenant and adapter. An engine *puts* the blocks
//! of a token stream, asks how many leading ones are there (`contains`), and *gets* them into its
//! own memory, whatever its strides. A block handed out is bit-identical to the block put in under
//! the same key, or it is a miss with a reason; it is never wrong.
//!
//! With a [`Cache`](crate::Cache), live sequences are [published](Space::publish) where they are, and
//! others [start](Space::start) on their pages, without a copy.
//!
//! ```
//! use kvist::format::{BlockDType, BlockLayout};
//! use kvist::{BlockRows, BlockRowsMut, PrefixStore, SpaceOptions, Strides};
//!
//! # fn main() -> Result<(), kvist::Error> {
//! let store = PrefixStore::builder().host_bytes(64 << 20).build()?;
//! // 2 layers, 4 KV heads of dimension 64, 16 tokens a block.
//! let layout = BlockLayout::new(BlockDType::Bf16, 16, 2, 4, 64);
//! let space = store.space(SpaceOptions::new([1; 32], layout.clone()))?;
//! let tokens: Vec<u32> = (0..40).collect();
//! let prefix = space.prefix(&tokens)?; // two full blocks
//! let (block, nhd) = (vec![7u8; layout.bytes()], Strides::nhd(&layout));
//! let rows = BlockRows::new(&layout, &block, nhd)?;
//! space.put(&prefix, 0, &[rows, rows])?;
//! assert_eq!(space.contains(&prefix), 2);
//! let mut out = vec![0u8; layout.bytes()];
//! let mut rows = [BlockRowsMut::new(&layout, &mut out, nhd)?];
//! assert_eq!(space.get(&prefix, 0..1, &mut rows)?.blocks, 1);
//! assert_eq!(out, block);
//! # Ok(())
//! # }
//! ```

mod background;
mod behind;
mod blocks;
mod builder;
mod commit;
mod counters;
mod hints;
mod host;
mod keys;
mod lent;
mod load;
mod options;
mod publish;
mod rows;
mod space;
mod start;
mod strides;
mod tiles;
mod tiling;
mod used;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use background::{Destination, Origin};
pub use builder::PrefixBuilder;
pub use counters::PrefixStats;
pub use hints::Pinned;
pub use keys::Prefix;
pub use options::SpaceOptions;
pub use publish::Published;
pub use rows::{BlockRows, BlockRowsMut};
pub use space::{Lease, Restored, Space};
pub use start::Started;
pub use strides::Strides;
pub use tiling::{Axis, Tiling};

use kvist_policies::replace::{Admission, Watermarks};

use crate::Error;
use crate::disk::{Disk, Erased, Refused};
use crate::format::KeySecret;
use crate::journal::{Change, Changes, Journal, Tier};
use crate::seal::MasterKey;
use crate::sync::Mutex;
use crate::sync::thread::JoinHandle;
use behind::Queue;
use counters::Counters;
use host::Host;

/// How long closing waits for what is still to be written.
const DRAIN: Duration = Duration::from_secs(5);

/// A content-addressed store of KV blocks in host memory and on disk.
///
/// Cheap to clone; clones are the same store. When the last clone goes it is closed, as by
/// [`PrefixStore::close`], also for spaces that are still there.
#[derive(Clone)]
pub struct PrefixStore {
    pub(crate) shared: Arc<Shared>,
    /// Joined when the last clone goes.
    threads: Arc<Threads>,
}

impl fmt::Debug for PrefixStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrefixStore").field("disk", &self.shared.disk.is_some()).finish()
    }
}

/// What all handles of a store share.
#[derive(Debug)]
pub(crate) struct Shared {
    host: Host,
    disk: Option<Arc<Disk>>,
    secret: KeySecret,
    master: Option<MasterKey>,
    queue: Queue,
    /// Which blocks are written to disk; all if there is none.
    admission: Option<Mutex<Admission>>,
    watermarks: Option<Watermarks>,
    /// Whether room is being made in the background.
    shedding: AtomicBool,
    counters: Counters,
    journal: Arc<Journal>,
    numbers: Mutex<Numbers>,
    multi_tenant: bool,
    verify_tokens: bool,
    verify_leases: bool,
    pid: u32,
    closed: AtomicBool,
}

/// Small numbers that stand for long names.
#[derive(Debug, Default)]
struct Numbers {
    kinds: HashMap<([u8; 32], [u8; 32]), u32>,
    tenants: HashMap<[u8; 16], u32>,
}

/// The background threads of a store.
struct Threads {
    shared: Arc<Shared>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.close();
    }
}

impl Threads {
    fn close(&self) {
        // A child of `fork` has no such threads, and none of this is its own.
        if self.shared.pid != std::process::id() || self.shared.closed.swap(true, Ordering::AcqRel)
        {
            return;
        }
        if self.handles.lock().is_empty() {
            while self.shared.write_some() {}
        }
        self.shared.queue.flush(DRAIN);
        self.shared.queue.close();
        let handles = std::mem::take(&mut *self.handles.lock());
        for handle in handles {
            if handle.join().is_err() {
                tracing::error!("a background thread panicked");
            }
        }
        if let Some(disk) = &self.shared.disk {
            disk.finish_segments();
            disk.close();
        }
        self.shared.host.clear();
    }
}

impl Shared {
    fn check_open(&self) -> Result<(), Error> {
        if self.pid != std::process::id() {
            return Err(Error::Forked);
        }
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    fn kind(&self, model: [u8; 32], layout: [u8; 32]) -> u32 {
        let mut numbers = self.numbers.lock();
        let next = numbers.kinds.len() as u32;
        *numbers.kinds.entry((model, layout)).or_insert(next)
    }

    /// The number of a tenant, and what it is called on disk.
    fn tenant_of(&self, salt: &[u8]) -> (u32, [u8; 16]) {
        let mut tag = [0; 16];
        tag.copy_from_slice(&self.secret.tenant(salt)[..16]);
        let mut numbers = self.numbers.lock();
        let next = numbers.tenants.len() as u32;
        (*numbers.tenants.entry(tag).or_insert(next), tag)
    }
}

impl PrefixStore {
    /// Settings for a store.
    #[must_use]
    pub fn builder() -> PrefixBuilder {
        PrefixBuilder::default()
    }

    /// Erases a tenant in every tier: a barrier, after which nothing that was put before is served,
    /// here or after a restart. On disk the segments that held its bytes are rewritten without them;
    /// without sealing, flash and snapshots of the file system may keep old copies.
    ///
    /// # Errors
    /// [`Error::Erase`] if it could not be made durable; in memory the tenant is gone even then.
    pub fn erase_tenant(&self, salt: &[u8]) -> Result<Erased, Error> {
        self.shared.check_open()?;
        let shared = &self.shared;
        let (number, tag) = shared.tenant_of(salt);
        // What is being read from disk meanwhile does not come to memory.
        let _closed = shared.host.close_landing();
        shared.forget(|_, tenant| tenant == number);
        let below = shared.disk.as_ref().map(|disk| disk.erase_tenant(tag));
        // Last from the tier that answers first, so that a block leaves once.
        let records = shared.host.erase(number, || shared.queue.pending());
        match below {
            None => Ok(Erased { records, ..Erased::default() }),
            Some(erased) => erased.map_err(|refused: Refused| Error::Erase { refused }),
        }
    }

    /// The secret that keys this store's hashes.
    #[must_use]
    pub fn key_secret(&self) -> &KeySecret {
        &self.shared.secret
    }

    /// Whether the store can be used by this process.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`PrefixStore::close`], [`Error::Forked`] in a child of `fork`.
    pub fn check(&self) -> Result<(), Error> {
        self.shared.check_open()
    }

    /// Writes what waits to be written (for at most 5 s), unlocks the directory and gives the memory
    /// back, whoever still holds clones and spaces: they refuse everything from now on. Leases stay
    /// valid. Closing twice is fine.
    pub fn close(&self) {
        self.threads.close();
    }

    /// Waits until everything put so far is durable or was refused. `false` if that took longer, or the
    /// store is closed.
    #[must_use]
    pub fn flush(&self, patience: Duration) -> bool {
        self.check().is_ok() && self.shared.queue.flush(patience)
    }

    /// Which blocks came to which tier and left it since the last call, whoever put them: an index kept
    /// elsewhere follows. The first call, and one that comes too late, lists all that is there.
    pub fn changes(&self) -> Changes {
        if self.check().is_err() {
            return Changes::default();
        }
        if let Some(changes) = self.shared.journal.take() {
            return Changes { reset: false, changes };
        }
        let of = |tier| move |key| Change { key, tier, arrived: true };
        let disk = self.shared.disk.as_ref().map(|disk| disk.keys()).unwrap_or_default();
        let host = self.shared.host.keys().into_iter().map(of(Tier::Host));
        Changes { reset: true, changes: host.chain(disk.into_iter().map(of(Tier::Disk))).collect() }
    }

    /// Does what waits in the background, on this thread: for stores without threads.
    pub fn run_pending(&self) {
        while self.shared.write_some() || self.shared.fetch_some() {}
    }

    /// Bytes held and work done so far; nothing in a child of `fork`.
    #[must_use]
    pub fn stats(&self) -> PrefixStats {
        let shared = &self.shared;
        if self.check() == Err(Error::Forked) {
            return PrefixStats::default();
        }
        let (host_blocks, lent_blocks, host_evicted) = shared.host.counts();
        let mut stats = PrefixStats {
            host_budget_bytes: shared.host.budget().limit(),
            host_used_bytes: shared.host.budget().used(),
            host_blocks,
            lent_blocks,
            host_evicted,
            queued_bytes: shared.queue.bytes() as u64,
            authenticated: shared.master.is_some(),
            disk: shared.disk.as_ref().map(|d| d.usage()),
            ..PrefixStats::default()
        };
        shared.counters.fill(&mut stats);
        stats
    }
}
