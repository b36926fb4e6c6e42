//! What a cache holds and has done, as one snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

/// A cache's bytes and counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The host tier's byte budget.
    pub budget_bytes: u64,
    /// Bytes charged to it: pages, summaries and overhead.
    pub used_bytes: u64,
    /// Bytes of pages in host memory, those of clusters included; a page shared by forks counts once.
    pub page_bytes: u64,
    /// The part of these that are pages of clusters.
    pub cluster_bytes: u64,
    /// Bytes of summaries in use.
    pub summary_bytes: u64,
    /// Bytes of tables and handles.
    pub overhead_bytes: u64,
    /// Tokens appended, per layer.
    pub tokens_appended: u64,
    /// Queries attended, per layer.
    pub queries: u64,
    /// Tokens that dense attention would have read for them, per KV head.
    pub tokens_dense: u64,
    /// Tokens that were read for them, per KV head.
    pub tokens_read: u64,
    /// Bytes of summaries, keys and values read for them.
    pub bytes_read: u64,
    /// Bytes of pages stored in the tier below, whether or not they are in host memory too.
    pub stored_bytes: u64,
    /// Pages that attention found in host memory, of a sequence that is not there as a whole.
    pub page_hits: u64,
    /// Pages that it did not find there.
    pub page_misses: u64,
    /// Pages of clusters (up to 16 tokens of one) that attention found in host memory, of a sequence that is
    /// not there as a whole.
    pub cluster_hits: u64,
    /// Pages of clusters that it did not find there.
    pub cluster_misses: u64,
    /// Reads of pages that failed.
    pub pages_failed: u64,
    /// Bytes of pages brought back from the tier below.
    pub below_read_bytes: u64,
    /// Bytes of pages written to it.
    pub below_written_bytes: u64,
    /// Pages sent for before anybody asked for them.
    pub prefetched: u64,
    /// Those of them that were used.
    pub prefetch_used: u64,
    /// Those that left unused.
    pub prefetch_wasted: u64,
}

/// One sequence's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SequenceStats {
    /// Tokens present in every layer.
    pub tokens: usize,
    /// Bytes of its pages in host memory, shared ones included.
    pub page_bytes: u64,
    /// Bytes of its pages that are only in the tier below.
    pub demoted_bytes: u64,
    /// Bytes of its pages stored there, whether or not they are in host memory too.
    pub stored_bytes: u64,
    /// Bytes of its summaries, shared ones included.
    pub summary_bytes: u64,
    /// Bytes of its tables and handles.
    pub overhead_bytes: u64,
}

/// Counters of a cache.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    appended: AtomicU64,
    queries: AtomicU64,
    dense: AtomicU64,
    read: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn appended(&self, tokens: usize) {
        self.appended.fetch_add(tokens as u64, Ordering::Relaxed);
        metrics::counter!("kvist_tokens_appended").increment(tokens as u64);
    }

    pub(crate) fn attended(&self, queries: usize, dense: u64, read: u64, bytes: u64) {
        self.queries.fetch_add(queries as u64, Ordering::Relaxed);
        self.dense.fetch_add(dense, Ordering::Relaxed);
        self.read.fetch_add(read, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        metrics::counter!("kvist_queries").increment(queries as u64);
        metrics::counter!("kvist_tokens_read").increment(read);
        metrics::counter!("kvist_bytes_read").increment(bytes);
    }

    pub(crate) fn fill(&self, stats: &mut Stats) {
        stats.tokens_appended = self.appended.load(Ordering::Relaxed);
        stats.queries = self.queries.load(Ordering::Relaxed);
        stats.tokens_dense = self.dense.load(Ordering::Relaxed);
        stats.tokens_read = self.read.load(Ordering::Relaxed);
        stats.bytes_read = self.bytes.load(Ordering::Relaxed);
    }
}
