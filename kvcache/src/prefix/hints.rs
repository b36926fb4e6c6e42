//! What a server knows of the future of blocks: hints, pins, shares of tenants; and which blocks are let in to the disk.

use std::ops::Range;
use std::time::{Duration, Instant};

use kvist_policies::replace::{Order, SOURCES, Share};

use super::background::PREFETCHES_MAX;
use super::host::Held;
use super::keys::Prefix;
use super::space::Space;
use super::{PrefixStore, Shared};
use crate::Error;
use crate::format::BlockKey;

/// Bytes a second that the disk is believed to give before it was read from.
const DISK_RATE: f64 = 500e6;
/// Seconds by which blocks are brought into memory before they should have to be, at least.
const EARLY: f64 = 0.05;
/// How much later than foretold a use may come, as a share of the time until then and in seconds.
const LATE: (f64, f64) = (0.25, 1.0);

/// Blocks that stay in memory as long as this value.
#[derive(Debug)]
pub struct Pinned(Vec<Held>);

impl Pinned {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn check_source(source: u8) -> Result<(), Error> {
    match usize::from(source) < SOURCES {
        true => Ok(()),
        false => Err(Error::setting("source of a hint", format!("below {SOURCES}"), source)),
    }
}

impl PrefixStore {
    /// Gives a tenant a share of the host tier, before its first block comes: what others cannot take from it, and what
    /// it cannot have more than. The share is one of blocks, which the tenants should have of like size.
    ///
    /// # Errors
    /// [`Error::Select`] for an impossible share, or if the floors of all tenants together are more than there is;
    /// [`Error::Closed`].
    pub fn set_share(&self, salt: &[u8], share: Share) -> Result<(), Error> {
        self.check()?;
        self.shared.host.set_share(self.shared.tenant_of(salt).0, share)
    }

    /// Shares of the hints of a source that came true so far: of closed sessions, of wanted blocks.
    ///
    /// # Errors
    /// [`Error::Setting`] for a source that is none, [`Error::Closed`].
    pub fn hint_precision(&self, source: u8) -> Result<[f32; 2], Error> {
        self.check()?;
        check_source(source)?;
        Ok(self.shared.host.blocks.lock().ordered(&[]).0.precision(source))
    }
}

impl Space {
    /// Says that the session whose prefix this is does not go on: its blocks leave memory before others, save those that
    /// many requests used. `source` is a number below [`SOURCES`] for who says so: hints of a source count as long as
    /// they come true.
    ///
    /// # Errors
    /// [`Error::Setting`] for a source that is none or a prefix of another space, [`Error::Closed`].
    pub fn session_closed(&self, prefix: &Prefix, source: u8) -> Result<(), Error> {
        self.hint(prefix, source, |order, blocks| order.session_closed(blocks, source))
    }

    /// Says that blocks will be used again `within` some time: a turn is open, a tool runs, a user types. They stay in
    /// memory that long where others can leave, and are let in to the disk tier.
    ///
    /// # Errors
    /// As [`Space::session_closed`].
    pub fn wanted(&self, prefix: &Prefix, within: Duration, source: u8) -> Result<(), Error> {
        self.wanted_for(prefix, within.as_secs_f64(), source)
    }

    fn wanted_for(&self, prefix: &Prefix, seconds: f64, source: u8) -> Result<(), Error> {
        let until = self.shared.host.tick(seconds);
        self.hint(prefix, source, |order, blocks| order.wanted(blocks, until, source))?;
        self.offer(prefix, 0..prefix.len(), true);
        Ok(())
    }

    /// Says that blocks will be used `after` some time. [`Space::wanted`] until a little later; and those that are
    /// on disk are brought into memory just before, by what the disk took so far.
    ///
    /// # Errors
    /// As [`Space::session_closed`].
    pub fn next_use(&self, prefix: &Prefix, after: Duration, source: u8) -> Result<(), Error> {
        let (share, least) = LATE;
        self.wanted_for(prefix, after.as_secs_f64() * (1.0 + share) + least, source)?;
        let below = |key: &&BlockKey| self.shared.host.get(key).is_none() && self.is_on_disk(key);
        let bytes = prefix.keys.iter().filter(below).count() * self.layout().bytes();
        let takes = self.shared.counters.read_seconds(bytes).unwrap_or(bytes as f64 / DISK_RATE);
        // What leaves memory meanwhile comes back, too.
        let early = Duration::try_from_secs_f64(takes + EARLY).unwrap_or(Duration::MAX);
        let Some(at) = Instant::now().checked_add(after.saturating_sub(early)) else {
            return Ok(());
        };
        let (space, prefix) = (self.clone(), prefix.clone());
        let fetch = move || {
            space.bring(&prefix, || false);
        };
        self.shared.fetch_later(at, PREFETCHES_MAX, Box::new(fetch));
        Ok(())
    }

    /// Keeps the leading blocks that are in memory there, whatever happens.
    ///
    /// # Errors
    /// [`Error::Setting`] for a prefix of another space, [`Error::Closed`].
    pub fn pin(&self, prefix: &Prefix) -> Result<Pinned, Error> {
        self.check()?;
        self.owns(prefix)?;
        let held = prefix.keys.iter().map_while(|key| self.held(key).ok());
        Ok(Pinned(held.collect()))
    }

    fn hint(
        &self,
        prefix: &Prefix,
        source: u8,
        tell: impl FnOnce(&mut Order, &[u32]),
    ) -> Result<(), Error> {
        self.check()?;
        self.owns(prefix)?;
        check_source(source)?;
        let mut blocks = self.shared.host.blocks.lock();
        let (order, slots) = blocks.ordered(&prefix.keys);
        tell(order, &slots);
        Ok(())
    }

    /// Offers blocks in memory to the disk, where not all are let in at once.
    pub(super) fn offer(&self, prefix: &Prefix, blocks: Range<usize>, wanted: bool) {
        let (shared, inner) = (&self.shared, &self.inner);
        if shared.admission.is_none() || shared.disk.is_none() {
            return;
        }
        let above = |block: &usize| !self.is_on_disk(&prefix.keys[*block]);
        let above: Vec<usize> = blocks.filter(above).collect();
        if above.is_empty() {
            return;
        }
        let pending = shared.queue.pending();
        for block in above {
            let key = prefix.keys[block];
            let held = self.held(&key).ok().filter(|_| !pending.contains(&key));
            let Some(Held { body, .. }) = held else { continue };
            // It stays in memory whatever comes of it.
            let _ = shared.behind(inner, key, prefix.tokens(block), (body, None), wanted);
        }
    }
}

impl Shared {
    /// Whether a block is let in to the disk now.
    pub(super) fn admits(&self, key: &BlockKey, bytes: usize, wanted: bool) -> bool {
        let Some(admission) = &self.admission else { return true };
        let now = self.host.tick(0.0);
        let admitted = admission.lock().offer(key.seed(), bytes as u64, wanted, now);
        if !admitted {
            self.counters.not_admitted();
        }
        admitted
    }
}
