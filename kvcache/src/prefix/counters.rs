//! What a prefix store has done, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use kvist_policies::gain::Rate;

use crate::disk::{DiskUse, Refused};
use crate::miss::MissReason;
use crate::sync::Mutex;

/// A prefix store's bytes and counters.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct PrefixStats {
    /// The host tier's budget in bytes.
    pub host_budget_bytes: u64,
    /// Bytes charged to it.
    pub host_used_bytes: u64,
    /// Blocks in memory.
    pub host_blocks: u64,
    /// Of these, blocks that lie in pages of a cache, which pays for them (see
    /// [`Space::publish`](crate::Space::publish)).
    pub lent_blocks: u64,
    /// Blocks that left memory for others.
    pub host_evicted: u64,
    /// Bytes of blocks that wait to be written to disk.
    pub queued_bytes: u64,
    /// Blocks stored, and their bytes.
    pub puts: u64,
    /// Bytes of the blocks stored.
    pub put_bytes: u64,
    /// Blocks published: found in a sequence, and new.
    pub published: u64,
    /// Blocks that sequences were started with without a copy.
    pub shared: u64,
    /// Blocks restored.
    pub gets: u64,
    /// Of these, from disk.
    pub gets_from_disk: u64,
    /// Bytes of the blocks restored.
    pub get_bytes: u64,
    /// Blocks not written to disk because the queue was full or the tier rested.
    pub throttled: u64,
    /// Times that a block was not let in to the disk tier (see [`PrefixBuilder::admit`](crate::PrefixBuilder::admit)).
    pub not_admitted: u64,
    /// Blocks whose writing failed.
    pub write_errors: u64,
    /// Seconds spent writing.
    pub write_seconds: f64,
    /// Why blocks could not be had, `(name, count)`, those that happened.
    pub misses: Vec<(&'static str, u64)>,
    /// Whether what lies on disk is sealed, so that whoever can write to the directory cannot forge it.
    pub authenticated: bool,
    /// The disk tier, if there is one.
    pub disk: Option<DiskUse>,
}

/// Counters of a store.
#[derive(Debug, Default)]
pub(super) struct Counters {
    puts: AtomicU64,
    put_bytes: AtomicU64,
    published: AtomicU64,
    shared: AtomicU64,
    gets: AtomicU64,
    gets_from_disk: AtomicU64,
    get_bytes: AtomicU64,
    throttled: AtomicU64,
    not_admitted: AtomicU64,
    write_errors: AtomicU64,
    write_nanos: AtomicU64,
    misses: [AtomicU64; MissReason::ALL.len()],
    disk_rate: Mutex<Rate>,
}

impl Counters {
    pub(super) fn put(&self, bytes: usize) {
        self.puts.fetch_add(1, Relaxed);
        self.put_bytes.fetch_add(bytes as u64, Relaxed);
        metrics::counter!("kvist_prefix_puts").increment(1);
    }

    pub(super) fn published(&self, blocks: usize) {
        self.published.fetch_add(blocks as u64, Relaxed);
        metrics::counter!("kvist_prefix_published").increment(blocks as u64);
    }

    pub(super) fn shared(&self, blocks: usize) {
        self.shared.fetch_add(blocks as u64, Relaxed);
        metrics::counter!("kvist_prefix_shared").increment(blocks as u64);
    }

    pub(super) fn got(&self, blocks: usize, from_disk: usize, bytes: usize) {
        self.gets.fetch_add(blocks as u64, Relaxed);
        self.gets_from_disk.fetch_add(from_disk as u64, Relaxed);
        self.get_bytes.fetch_add(bytes as u64, Relaxed);
        metrics::counter!("kvist_prefix_gets").increment(blocks as u64);
        metrics::counter!("kvist_prefix_gets_from_disk").increment(from_disk as u64);
    }

    pub(super) fn miss(&self, reason: MissReason) {
        self.misses[reason as usize].fetch_add(1, Relaxed);
        metrics::counter!("kvist_prefix_misses", "reason" => reason.name()).increment(1);
    }

    pub(super) fn throttled(&self) {
        self.throttled.fetch_add(1, Relaxed);
        metrics::counter!("kvist_prefix_throttled").increment(1);
    }

    pub(super) fn not_admitted(&self) {
        self.not_admitted.fetch_add(1, Relaxed);
        metrics::counter!("kvist_prefix_not_admitted").increment(1);
    }

    /// Bytes that came from disk, and how long that took.
    pub(super) fn read(&self, bytes: usize, took: Duration) {
        self.disk_rate.lock().learn(bytes as u64, took.as_secs_f64());
    }

    /// How long bytes take from disk; none is known before the first read.
    pub(super) fn read_seconds(&self, bytes: usize) -> Option<f64> {
        self.disk_rate.lock().seconds(bytes as u64)
    }

    pub(super) fn committed(&self, results: &[Result<(), Refused>], took: Duration) {
        self.write_nanos.fetch_add(took.as_nanos() as u64, Relaxed);
        for result in results {
            match result {
                Ok(()) | Err(Refused::AlreadyPresent) => {}
                Err(Refused::Throttled | Refused::Full) => self.throttled(),
                Err(_) => {
                    self.write_errors.fetch_add(1, Relaxed);
                    metrics::counter!("kvist_prefix_write_errors").increment(1);
                }
            }
        }
    }

    pub(super) fn fill(&self, stats: &mut PrefixStats) {
        stats.puts = self.puts.load(Relaxed);
        stats.put_bytes = self.put_bytes.load(Relaxed);
        stats.published = self.published.load(Relaxed);
        stats.shared = self.shared.load(Relaxed);
        stats.gets = self.gets.load(Relaxed);
        stats.gets_from_disk = self.gets_from_disk.load(Relaxed);
        stats.get_bytes = self.get_bytes.load(Relaxed);
        stats.throttled = self.throttled.load(Relaxed);
        stats.not_admitted = self.not_admitted.load(Relaxed);
        stats.write_errors = self.write_errors.load(Relaxed);
        stats.write_seconds = self.write_nanos.load(Relaxed) as f64 / 1e9;
        let misses = MissReason::ALL.iter().zip(&self.misses);
        stats.misses = misses
            .map(|(reason, count)| (reason.name(), count.load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
    }
}
