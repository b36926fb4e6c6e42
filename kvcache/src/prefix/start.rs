//! Starting a sequence with the longest known prefix: on pages that are there, and on copies of the rest.

use std::sync::Arc;

use super::keys::Prefix;
use super::lent;
use super::load::{Bytes, Source, Wave, pages_of};
use super::space::Space;
use crate::arena::Cell;
use crate::miss::MissReason;
use crate::{Cache, Error, Sequence};

/// A sequence that has the longest known prefix of some tokens.
#[must_use]
#[derive(Debug)]
#[non_exhaustive]
pub struct Started {
    /// The sequence; its length says how many of the tokens it has.
    pub sequence: Sequence,
    /// How many of its blocks are pages that others hold too, without a copy.
    pub shared: usize,
    /// How many of its blocks were read from the store's disk tier.
    pub from_disk: usize,
    /// Why it does not have the next block, if there is one.
    pub miss: Option<MissReason>,
}

impl Space {
    /// A sequence of a cache, with the cache's selector, that has the longest known prefix of a token
    /// stream, in full blocks. What sequences of this cache published is shared, not copied: a write
    /// copies. What lies in the store's memory or in other caches is copied into fresh pages; what
    /// lies on disk is read straight into them, checked, and published, so that the next one shares it.
    ///
    /// All tokens may be known: to have one left to compute, leave the last one out.
    ///
    /// # Errors
    /// [`Error::Setting`] if the space's layout is not
    /// [`BlockLayout::of`](crate::format::BlockLayout::of) the cache's geometry or a token id is 2^31
    /// or more, [`Error::Closed`]. That there is no more room in the cache is a
    /// [`MissReason::Busy`].
    pub fn start(&self, cache: &Cache, tokens: &[u32]) -> Result<Started, Error> {
        self.shared.check_open()?;
        self.check_layout(cache)?;
        let prefix = self.prefix(tokens)?;
        let since = self.shared.host.moment();
        let (sequence, shared) = self.share(cache, &prefix);
        let mut started = Started { sequence, shared, from_disk: 0, miss: None };
        let blocks = self.load(&prefix, &mut started);
        let copied = blocks - started.shared;
        self.shared.counters.shared(started.shared);
        self.shared.counters.got(copied, started.from_disk, copied * self.layout().bytes());
        if let Some(reason) = started.miss {
            self.shared.counters.miss(reason);
        }
        let there = prefix.part(0..blocks);
        match started.from_disk {
            0 => self.shared.host.touch(there.keys()),
            _ => {
                let _ = self.lend(&started.sequence, &there, Some(since));
            }
        }
        // Closing has let go of everything: of this too.
        self.shared.check_open().inspect_err(|_| self.shared.host.clear())?;
        Ok(started)
    }

    /// A sequence on pages of this cache, up to the last block among the known ones that it lends.
    fn share(&self, cache: &Cache, prefix: &Prefix) -> (Sequence, usize) {
        let known = &prefix.keys[..self.contains(prefix)];
        let lent = self.shared.host.last_lent(known, &cache.shared);
        // Its key says that everything before is the same too.
        let fork = lent.and_then(|(block, lent)| Some((lent.fork().ok()?, block + 1)));
        fork.unwrap_or_else(|| (cache.sequence(), 0))
    }

    /// Appends the blocks that follow, as far as they can be had; how many there are then.
    fn load(&self, prefix: &Prefix, started: &mut Started) -> usize {
        let cache = started.sequence.cache().clone();
        let mut wave = Wave::to_pages(self, prefix, &cache);
        for block in started.shared..prefix.len() {
            let source = wave.next(block, prefix.len());
            let from_disk = source.as_ref().is_ok_and(|source| source.from_disk);
            let adopted = source.and_then(|source| {
                let pages = self.pages(&cache, source)?;
                started.sequence.adopt(&pages).map_err(lent::reason)
            });
            match adopted {
                Ok(()) => started.from_disk += usize::from(from_disk),
                Err(reason) => {
                    started.miss = Some(reason);
                    return self.even(started, block);
                }
            }
        }
        prefix.len()
    }

    /// A block as fresh pages of a cache.
    fn pages(&self, cache: &Cache, source: Source) -> Result<Vec<Arc<Cell>>, MissReason> {
        let layout = self.layout();
        let bytes = match (source.bytes, source.from_disk) {
            (Bytes::Pages(fresh), true) => return Ok(fresh),
            (bytes, _) => bytes,
        };
        let mut fresh = pages_of(cache, layout.pages(), true).ok_or(MissReason::Busy)?;
        for (page, cell) in fresh.iter_mut().enumerate() {
            let range = page * layout.page_bytes()..(page + 1) * layout.page_bytes();
            let from = match &bytes {
                Bytes::Cell(block) => &block.bytes()[range],
                Bytes::Heap(block) => &block[range],
                Bytes::Pages(pages) => pages[page].bytes(),
            };
            cell.bytes_mut().expect("a fresh cell has one holder").copy_from_slice(from);
        }
        Ok(fresh)
    }

    /// Makes all layers have this many blocks, where a block came to some of them only.
    fn even(&self, started: &mut Started, blocks: usize) -> usize {
        let len = blocks * self.layout().block_tokens as usize;
        if started.sequence.truncate(len).is_ok() {
            return blocks;
        }
        let sequence = started.sequence.cache().sequence();
        (started.sequence, started.shared, started.from_disk) = (sequence, 0, 0);
        0
    }
}
