//! The source's side.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::offer::Offer;
use super::settle::Unsure;
use super::wire::{Kind, Wire};
use super::{Ended, Link, MigrationId, Refusal};
use crate::layer::Layer;
use crate::{Error, Sequence};

/// Pages go in messages of about this many bytes.
const MESSAGE_BYTES: usize = 1 << 20;
/// Pages that are brought near for a message are this share of all frames at most.
const FRAMES_SHARE: usize = 8;

/// When a sequence is stopped to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrateOptions {
    /// Rounds at most; the rest goes while the sequence stands still. Default 3 (Llumnix).
    pub rounds: usize,
    /// So many blocks (of `page_tokens` tokens) or fewer that are left are sent while it stands still.
    /// Default 16 (Llumnix).
    pub blocks: usize,
}

impl Default for MigrateOptions {
    fn default() -> MigrateOptions {
        MigrateOptions { rounds: 3, blocks: 16 }
    }
}

/// What a round sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Round {
    /// Pages, counted once for all KV heads of a layer.
    pub pages: u64,
    /// Bytes of messages.
    pub bytes: u64,
}

/// What a migration sent in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moved {
    /// Rounds before the sequence stopped.
    pub rounds: usize,
    /// Sent in these rounds.
    pub before: Round,
    /// Sent while the sequence stood still.
    pub stopped: Round,
}

/// What became of a sequence that was to move.
#[derive(Debug)]
#[must_use]
pub enum Finished {
    /// The destination owns it; the source has let go of it.
    Moved(Moved),
    /// The source owns it as before; the destination does not, and never will under this epoch.
    Kept(Sequence, Error),
    /// The link broke before the answer came: only the destination knows.
    Unsure(Unsure, Error),
}

/// A migration, seen from its source. Dropping it ends it: the sequence stays.
pub struct Outgoing<L: Link> {
    /// None once the migration is over.
    wire: Option<Wire<L>>,
    id: MigrationId,
    options: MigrateOptions,
    /// What the last round was made of. Its pages stay as they are while it lives.
    sent: Option<Sequence>,
    /// Pages of each layer that the destination has.
    pages: Vec<usize>,
    moved: Moved,
}

impl<L: Link> Outgoing<L> {
    /// Offers a sequence to who listens at the other end of a link. Returns when memory for it, as long
    /// as it is now, is reserved there.
    ///
    /// # Errors
    /// [`Error::Setting`] for a cache without [`Builder::model`](crate::Builder::model),
    /// [`Error::Migrate`] if the destination refuses or the link fails. Nothing is changed.
    pub fn offer(
        sequence: &Sequence,
        id: MigrationId,
        link: L,
        options: MigrateOptions,
    ) -> Result<Outgoing<L>, Error> {
        let offer = Offer::of(sequence)?;
        let mut wire = Wire::new(link);
        wire.say(Kind::Offer, id, |out| {
            offer.encode(out);
            Ok::<(), Ended>(())
        })?;
        let pages = vec![0; sequence.layers.len()];
        let moved = Moved::default();
        let mut out = Outgoing { wire: Some(wire), id, options, sent: None, pages, moved };
        out.await_ready(sequence)?;
        Ok(out)
    }

    /// Blocks that the destination does not have yet, those excepted that are not finished.
    #[must_use]
    pub fn left(&self, sequence: &Sequence) -> usize {
        let left = |(number, layer): (usize, &Arc<Layer>)| {
            full_pages(sequence, layer) - self.common(number, sequence)
        };
        sequence.layers.iter().enumerate().map(left).max().unwrap_or(0)
    }

    /// Whether it is time to stop the sequence.
    #[must_use]
    pub fn is_close(&self, sequence: &Sequence) -> bool {
        self.moved.rounds >= self.options.rounds || self.left(sequence) <= self.options.blocks
    }

    /// Sends the finished pages that the destination does not have yet, and waits until it has them.
    /// `snapshot` is a [fork](Sequence::fork) of the sequence, taken between two steps.
    ///
    /// # Errors
    /// [`Error::Migrate`] if the destination refuses or the link fails, [`Error::Missing`] and
    /// [`Error::OverBudget`] if a page cannot be read. The migration is over then; the sequence is not
    /// concerned.
    pub fn round(&mut self, snapshot: Sequence) -> Result<Round, Error> {
        let sent = self.try_round(&snapshot).inspect_err(|_| self.abandon())?;
        self.moved.rounds += 1;
        self.moved.before.pages += sent.pages;
        self.moved.before.bytes += sent.bytes;
        self.sent = Some(snapshot);
        Ok(sent)
    }

    fn try_round(&mut self, snapshot: &Sequence) -> Result<Round, Error> {
        let sent = self.copy(snapshot)?;
        let id = self.id;
        self.wire()?.tell(Kind::Round, id)?;
        self.await_ready(snapshot)?;
        Ok(sent)
    }

    /// Sends what is left of the sequence and hands it over. Takes as long as the pages that are
    /// [left](Outgoing::left) do.
    pub fn finish(mut self, sequence: Sequence) -> Finished {
        match self.send_rest(&sequence) {
            Ok(sent) => self.moved.stopped = sent,
            Err(error) => {
                self.abandon();
                return Finished::Kept(sequence, error);
            }
        }
        let Some(mut wire) = self.wire.take() else {
            return Finished::Kept(sequence, Ended::Over.into());
        };
        // From here on the destination may own it.
        match commit(&mut wire, self.id, &sequence) {
            Ok(None) => {
                // That it owns it is settled, whether or not it hears of that.
                let _ = wire.tell(Kind::Release, self.id);
                Finished::Moved(self.moved)
            }
            Ok(Some(refusal)) => Finished::Kept(sequence, Ended::Refused(refusal).into()),
            Err(ended) => Finished::Unsure(Unsure::new(sequence, self.id), ended.into()),
        }
    }

    /// Ends the migration: the sequence stays. The link can be used again, if it still works.
    ///
    /// # Errors
    /// [`Error::Migrate`] if the destination cannot be told.
    pub fn abort(mut self) -> Result<L, Error> {
        let mut wire = self.wire.take().ok_or(Ended::Over)?;
        wire.tell(Kind::Abort, self.id)?;
        Ok(wire.into_link())
    }

    fn send_rest(&mut self, sequence: &Sequence) -> Result<Round, Error> {
        let mut sent = self.copy(sequence)?;
        let g = sequence.cache.geometry().clone();
        let id = self.id;
        for (number, layer) in sequence.layers.iter().enumerate() {
            let (page, tokens) = (layer.len / g.page_tokens, layer.len % g.page_tokens);
            if tokens == 0 {
                continue;
            }
            let bytes = self.wire()?.say(Kind::Tail, id, |out| {
                put(out, &[number, tokens]);
                layer.heads.iter().for_each(|head| head.page_rows(page, tokens, &g, out));
                Ok::<(), Ended>(())
            })?;
            sent.pages += 1;
            sent.bytes += bytes as u64;
        }
        Ok(sent)
    }

    /// Sends the full pages that the destination does not have, after taking back those that are not
    /// the sequence's any more.
    fn copy(&mut self, sequence: &Sequence) -> Result<Round, Error> {
        let shared = &sequence.cache.shared;
        let stripe = shared.geometry.kv_heads * shared.geometry.page_bytes();
        let frames = shared.pages.cells() / FRAMES_SHARE / shared.geometry.kv_heads;
        let most = (MESSAGE_BYTES / stripe).min(frames).max(1);
        let (id, mut sent) = (self.id, Round::default());
        for (number, layer) in sequence.layers.iter().enumerate() {
            let (common, full) = (self.common(number, sequence), full_pages(sequence, layer));
            if common < self.pages[number] {
                self.wire()?.say(Kind::Cut, id, |out| {
                    put(out, &[number, common]);
                    Ok::<(), Ended>(())
                })?;
            }
            for from in (common..full).step_by(most) {
                let pages = from..(from + most).min(full);
                sent.pages += pages.len() as u64;
                sent.bytes += self.send_pages(sequence, number, pages)? as u64;
            }
            self.pages[number] = full;
        }
        Ok(sent)
    }

    fn send_pages(
        &mut self,
        sequence: &Sequence,
        number: usize,
        pages: Range<usize>,
    ) -> Result<usize, Error> {
        let (shared, layer) = (&sequence.cache.shared, &sequence.layers[number]);
        let (id, n, bytes) = (self.id, pages.len(), shared.geometry.page_bytes());
        self.wire()?.say(Kind::Pages, id, |out| {
            put(out, &[number, pages.start, n]);
            // Copied before they are sent: nobody waits for frames because a link is slow.
            let (_lease, frames) =
                sequence.cache.with_frames(|| layer.bring(shared, pages.clone()))?;
            for page in 0..n {
                for frames in &frames {
                    let from = shared.pages.at(frames[page]);
                    // SAFETY: a full page of the sequence, leased or open; nobody writes to it while
                    // the sequence is borrowed.
                    out.extend_from_slice(unsafe { std::slice::from_raw_parts(from, bytes) });
                }
            }
            Ok::<(), Error>(())
        })
    }

    /// Full pages of a layer that the destination has as they are.
    fn common(&self, number: usize, sequence: &Sequence) -> usize {
        let Some(sent) = &self.sent else { return 0 };
        let (new, old) = (&sequence.layers[number], &sent.layers[number]);
        let most = self.pages[number].min(full_pages(sequence, new));
        // Histories that part do not meet again.
        let same = |pages: usize| pages == 0 || new.same_page(old, pages - 1);
        if same(most) {
            return most;
        }
        let (mut low, mut high) = (0, most);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            *(if same(middle) { &mut low } else { &mut high }) = middle;
        }
        low
    }

    fn await_ready(&mut self, sequence: &Sequence) -> Result<(), Error> {
        let id = self.id;
        match answer(self.wire()?, id, sequence)? {
            (Kind::Ready, None) => Ok(()),
            (_, Some(refusal)) => {
                // It has let go of everything.
                self.wire = None;
                Err(Ended::Refused(refusal).into())
            }
            _ => Err(Ended::Protocol("not an answer to a round").into()),
        }
    }

    fn wire(&mut self) -> Result<&mut Wire<L>, Ended> {
        self.wire.as_mut().ok_or(Ended::Over)
    }

    /// Tells the destination that nothing will come of it, if it can be told.
    fn abandon(&mut self) {
        self.sent = None;
        self.pages.fill(0);
        if let Some(mut wire) = self.wire.take() {
            let _ = wire.tell(Kind::Abort, self.id);
        }
    }
}

impl<L: Link> fmt::Debug for Outgoing<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<L: Link> Drop for Outgoing<L> {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// Hands the sequence over; a refusal, if it was.
fn commit<L: Link>(
    wire: &mut Wire<L>,
    id: MigrationId,
    sequence: &Sequence,
) -> Result<Option<Refusal>, Ended> {
    wire.say(Kind::Commit, id, |out| {
        sequence.layers.iter().for_each(|l| out.extend((l.len as u64).to_le_bytes()));
        Ok::<(), Ended>(())
    })?;
    match answer(wire, id, sequence)? {
        (Kind::Committed, None) => Ok(None),
        (_, Some(refusal)) => Ok(Some(refusal)),
        _ => Err(Ended::Protocol("not an answer to a commit")),
    }
}

/// The destination's next answer, and its reason if it refuses.
fn answer<L: Link>(
    wire: &mut Wire<L>,
    id: MigrationId,
    sequence: &Sequence,
) -> Result<(Kind, Option<Refusal>), Ended> {
    let head = wire.next()?;
    let body = wire.body(&head)?;
    if head.id != id {
        return Err(Ended::Protocol("an answer to another migration"));
    }
    let refused = head.kind == Kind::Refused;
    let decode = || Refusal::decode(&body, sequence.cache.geometry());
    Ok((head.kind, refused.then(decode).transpose()?))
}

fn full_pages(sequence: &Sequence, layer: &Layer) -> usize {
    layer.len / sequence.cache.geometry().page_tokens
}

/// Numbers of a body, which are small: the geometry is checked.
fn put(out: &mut Vec<u8>, numbers: &[usize]) {
    numbers.iter().for_each(|&n| out.extend((n as u32).to_le_bytes()));
}
