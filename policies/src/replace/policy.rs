//! Orders of replacement by name.

use super::adaptive::Adaptive;
use super::arc::Arc;
use super::ghosts::Ghosts;
use super::lru::{Lru, Slru};
use super::nodes::Nodes;
use super::queue::Queue;
use super::s3::{MEMORY, S3};
use super::sieve::Sieve;
use super::trust::Trust;
use crate::{Error, settings};

/// An order of replacement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Replace {
    /// The least recently used block leaves: vLLM's order, as the last blocks of a request are touched first.
    Lru,
    /// LRU in two segments, half of the room for blocks that were used again. Source: Karedla et al. (1994).
    Slru,
    /// Source: Megiddo and Modha, "ARC" (FAST 2003).
    Arc,
    /// Source: Zhang et al., "SIEVE is simpler than LRU" (NSDI 2024).
    Sieve,
    /// A small queue of a tenth of the room in front of a main one, with a memory of four times the room.
    /// Source: Yang et al., "FIFO queues are all you need for cache eviction" (SOSP 2023), where it is one time.
    S3Fifo,
    /// S3-FIFO whose small queue has the share that does best on an eighth of the chains, tried all the time.
    #[default]
    Adaptive,
}

/// Names, and what they stand for.
const NAMES: [(&str, Replace); 6] = [
    ("lru", Replace::Lru),
    ("slru", Replace::Slru),
    ("arc", Replace::Arc),
    ("sieve", Replace::Sieve),
    ("s3fifo", Replace::S3Fifo),
    ("adaptive", Replace::Adaptive),
];

impl Replace {
    /// All of them.
    pub const ALL: [Replace; 6] = [
        Replace::Lru,
        Replace::Slru,
        Replace::Arc,
        Replace::Sieve,
        Replace::S3Fifo,
        Replace::Adaptive,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, replace)| *replace == self).map_or("", |(name, _)| name)
    }

    /// By name.
    ///
    /// # Errors
    /// [`Error::UnknownName`] with the nearest name.
    pub fn parse(name: &str) -> Result<Replace, Error> {
        let names = || NAMES.iter().map(|(name, _)| *name);
        let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, replace)| *replace);
        found.ok_or_else(|| Error::UnknownName {
            what: "order of replacement",
            name: name.to_owned(),
            suggestion: settings::nearest(name, names()),
            known: settings::list(names()),
        })
    }

    /// The most that an [`Order`](super::Order) takes for each block there is room for: for the block that is there, at
    /// most 64 bytes; at most 16 for each that left and is remembered; and for what is tried.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        let there = Nodes::BYTES * 9 / 8;
        let remembered = match self {
            Replace::Lru | Replace::Slru | Replace::Sieve => 0.0,
            Replace::Arc => 2.0,
            Replace::S3Fifo => MEMORY,
            Replace::Adaptive => MEMORY + Adaptive::MEMORY,
        };
        (there + ((remembered + Trust::MEMORY) * Ghosts::BYTES as f32) as usize) as u64
    }

    pub(super) fn queue(self) -> Box<dyn Queue + Send + Sync> {
        match self {
            Replace::Lru => Box::new(Lru::new()),
            Replace::Slru => Box::new(Slru::new(0.5)),
            Replace::Arc => Box::new(Arc::new()),
            Replace::Sieve => Box::new(Sieve::new()),
            Replace::S3Fifo => Box::new(S3::new(0.1)),
            Replace::Adaptive => Box::new(S3::new(Adaptive::FIRST)),
        }
    }
}
