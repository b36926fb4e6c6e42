//! Publishing a live sequence: its full blocks can be found by content, and stay where they are.

use std::sync::{Arc, Weak};

use super::host::Moment;
use super::keys::Prefix;
use super::lent::{Donor, Lent};
use super::space::Space;
use crate::disk::Refused;
use crate::format::BlockLayout;
use crate::lend::Lender;
use crate::{Cache, Error, Sequence};

/// What became of the full blocks of a sequence that was published.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// Full blocks of the tokens that the sequence has.
    pub blocks: usize,
    /// Those that are findable now and were not before.
    pub new: usize,
    /// Those that were findable already.
    pub present: usize,
    /// Why the others are not, if there are others: they are the last ones.
    pub refused: Option<Refused>,
}

impl Space {
    /// Makes the full blocks of a sequence findable by content, without copying them: the store keeps a
    /// fork of it, cut to its full blocks, and lends its pages. `tokens` are the ids of the sequence's
    /// tokens from its start; where there are more or fewer than it has, what both have is published.
    /// The sequence may go on, be cut or dropped: what was published never changes.
    ///
    /// Published pages are charged to the cache, and the store's budget to their entries only. When the
    /// cache needs their memory, they are given back, the least recently used first; not those that live
    /// sequences hold too, which would free nothing. With a disk tier, the store writes new blocks
    /// behind, straight from the pages; blocks that are given back before that are not written.
    ///
    /// The cache does not wipe pages, whatever [`PrefixBuilder::zero_on_free`] says of the store's own
    /// memory. [`PrefixStore::erase_tenant`] and [`Space::evict`] forget published blocks as they do
    /// others; sequences that were started from them keep theirs.
    ///
    /// [`PrefixBuilder::zero_on_free`]: crate::PrefixBuilder::zero_on_free
    /// [`PrefixStore::erase_tenant`]: crate::PrefixStore::erase_tenant
    ///
    /// ```
    /// use kvist::format::BlockLayout;
    /// use kvist::{Cache, DType, Geometry, PrefixStore, SpaceOptions, Tensor3};
    ///
    /// # fn main() -> Result<(), kvist::Error> {
    /// let geometry = Geometry::new(1, 4, 2, 64, DType::F32);
    /// let cache = Cache::builder(geometry.clone()).host_bytes(16 << 20).build()?;
    /// let store = PrefixStore::builder().host_bytes(16 << 20).build()?;
    /// let space = store.space(SpaceOptions::new([1; 32], BlockLayout::of(&geometry)))?;
    ///
    /// // A request: 150 tokens, two full blocks of 64.
    /// let tokens: Vec<u32> = (0..150).collect();
    /// let rows = vec![0.5f32; 150 * 2 * 64];
    /// let rows = Tensor3::contiguous(&rows, [150, 2, 64])?;
    /// let mut sequence = cache.sequence();
    /// sequence.append(0, &rows, &rows)?;
    /// assert_eq!(space.publish(&sequence, &tokens)?.new, 2);
    /// drop(sequence);
    ///
    /// // Another one that begins with the same 130 tokens: it computes from token 128 on.
    /// let started = space.start(&cache, &tokens[..130])?;
    /// assert_eq!((started.sequence.len(), started.shared), (128, 2));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] if the space's layout is not [`BlockLayout::of`] the cache's geometry or a
    /// token id is 2^31 or more, [`Error::Closed`].
    pub fn publish(&self, sequence: &Sequence, tokens: &[u32]) -> Result<Published, Error> {
        self.shared.check_open()?;
        self.check_layout(sequence.cache())?;
        let prefix = self.prefix(&tokens[..tokens.len().min(sequence.len())])?;
        let published = self.lend(sequence, &prefix, None);
        // Closing has let go of everything: of this too.
        self.shared.check_open().inspect_err(|_| self.shared.host.clear())?;
        Ok(published)
    }

    /// Whether blocks of this space are pages of the cache.
    pub(super) fn check_layout(&self, cache: &Cache) -> Result<(), Error> {
        let expected = BlockLayout::of(cache.geometry());
        match *self.layout() == expected {
            true => Ok(()),
            false => {
                let expected = format!("that of the cache, {expected:?}");
                Err(Error::setting("layout of the space", expected, format!("{:?}", self.layout())))
            }
        }
    }

    /// Lends the blocks of a sequence that has all of a prefix. With `since`, only what may still be
    /// there after what was evicted and erased from then on.
    pub(super) fn lend(
        &self,
        sequence: &Sequence,
        prefix: &Prefix,
        since: Option<Moment>,
    ) -> Published {
        let mut published = Published { blocks: prefix.len(), ..Published::default() };
        let (host, cache) = (&self.shared.host, &sequence.cache().shared);
        let lent_here = host.survey(&prefix.keys, self.inner.tenant, cache);
        // Those that were lent before are lent anew: one donor has all, and earlier ones can go.
        let any = lent_here.contains(&None);
        let wanted = |block: &usize| any && lent_here[*block] != Some(false);
        let wanted: Vec<usize> = (0..prefix.len()).filter(wanted).collect();
        // Blocks before the first that is refused.
        let mut done = prefix.len();
        let mut lend = |(block, lent): (usize, Option<Arc<Lent>>)| {
            let result = match lent {
                Some(lent) => self.lend_one(prefix, block, lent, since),
                None if lent_here[block].is_some() => Ok(false),
                None => Err(Refused::Throttled),
            };
            match result {
                Ok(new) => published.new += usize::from(new),
                Err(Refused::AlreadyPresent) => {}
                Err(refused) => (published.refused, done) = (Some(refused), block),
            }
            published.refused.is_none()
        };
        let lent = self.donate(sequence, prefix, &wanted);
        let _ = wanted.into_iter().zip(lent).all(&mut lend);
        published.present = done - published.new;
        host.touch(&prefix.keys[..done]);
        self.shared.counters.published(published.new);
        published
    }

    /// A fork's blocks, in the order of `blocks`; none of them if there is no memory for its tables.
    fn donate(
        &self,
        sequence: &Sequence,
        prefix: &Prefix,
        blocks: &[usize],
    ) -> Vec<Option<Arc<Lent>>> {
        if blocks.is_empty() {
            return Vec::new();
        }
        let cache = sequence.cache();
        let lender: Weak<dyn Lender> = Arc::downgrade(&self.shared) as Weak<dyn Lender>;
        cache.shared.lenders.add(lender);
        let mut fork = sequence.fork();
        // Without the open page: or the sequence would have to copy it when it goes on.
        match fork.truncate(prefix.len() * cache.geometry().page_tokens) {
            Ok(()) => Donor::lend(fork, blocks).into_iter().map(Some).collect(),
            Err(_) => vec![None; blocks.len()],
        }
    }

    /// Adds a block; whether it was nowhere before.
    fn lend_one(
        &self,
        prefix: &Prefix,
        block: usize,
        lent: Arc<Lent>,
        since: Option<Moment>,
    ) -> Result<bool, Refused> {
        let (shared, inner, key) = (&self.shared, &self.inner, &prefix.keys[block]);
        if shared.host.replace(key, &lent) {
            return Ok(false);
        }
        let below = self.is_on_disk(key);
        let room = shared.host.room_for(lent).ok_or(Refused::Throttled)?;
        let behind = |body| match below {
            true => Ok(()),
            false => shared.behind(inner, *key, prefix.tokens(block), (body, None), false),
        };
        shared.host.publish(&self.entry(prefix, block), room, since, behind)?;
        Ok(!below)
    }
}
