//! The destination's side.

use std::sync::Arc;

use super::ledger::Ledger;
use super::offer::{Offer, model, refusal};
use super::wire::{BodyReader, Head, Kind, Wire};
use super::{Ended, Link, MigrationId, Refusal};
use crate::arena::{CELL_OVERHEAD, Cell};
use crate::budget::Charge;
use crate::layer::Layer;
use crate::pages::{CELL_ENTRY, New, PAGE_ENTRY};
use crate::summaries::TILE;
use crate::{Cache, Error, Sequence, Tensor3};

/// With a tier below, pages leave while others come: no more than this share of all frames is reserved.
const FRAMES_SHARE: usize = 8;

/// Where sequences arrive. Cheap to clone; clones share their ledger of who owns what: serve all links on
/// which the same sources may come, or ask, with clones of one destination.
#[derive(Clone, Debug)]
pub struct Destination {
    cache: Cache,
    ledger: Arc<Ledger>,
}

/// A sequence that has moved here.
#[derive(Debug)]
#[non_exhaustive]
pub struct Arrived {
    /// The attempt that brought it.
    pub id: MigrationId,
    /// The sequence. It gives the results that it would have given where it came from.
    pub sequence: Sequence,
}

/// What became of a source's next wish.
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "one at a time, and taken apart at once")]
pub enum Served {
    /// A sequence arrived; it is the destination's from now on.
    Arrived(Arrived),
    /// The source ended a migration; all that came is forgotten.
    Aborted(MigrationId),
    /// This side refused; all that came is forgotten.
    Refused(MigrationId, Refusal),
    /// A source was told who owns a sequence: whether it is the destination.
    Settled(MigrationId, bool),
    /// The source has closed the link.
    Closed,
}

impl Destination {
    /// A destination whose sequences become those of `cache`.
    #[must_use]
    pub fn new(cache: &Cache) -> Destination {
        Destination { cache: cache.clone(), ledger: Arc::default() }
    }

    /// Migrations under way, and those whose source has not yet heard that they are done: such are kept
    /// for it to ask, until it says so or [`Destination::forget`].
    #[must_use]
    pub fn open(&self) -> usize {
        self.ledger.len()
    }

    /// Forgets a migration that has ended well, of which the source will not ask any more: because it is
    /// gone.
    pub fn forget(&self, id: MigrationId) {
        self.ledger.release(id);
    }

    /// Waits for what the source at the other end of a link wants next, and does it: takes a sequence,
    /// or says who owns one. Blocks until that is over; then the link can be served again.
    ///
    /// # Errors
    /// [`Error::Setting`] for a cache without [`Builder::model`](crate::Builder::model);
    /// [`Error::Migrate`] if the link fails or the source breaks the protocol: the link is of no use any
    /// more then. All that came is forgotten.
    pub fn serve<L: Link>(&self, link: &mut L) -> Result<Served, Error> {
        model(&self.cache.shared)?;
        let mut wire = Wire::new(link);
        loop {
            let head = match wire.next() {
                Err(Ended::Closed) => return Ok(Served::Closed),
                head => head?,
            };
            let body = wire.body(&head)?;
            match head.kind {
                Kind::Offer => return self.take(&mut wire, head.id, &Offer::decode(&body)?),
                Kind::Settle => {
                    let own = self.ledger.settle(head.id);
                    wire.tell(if own { Kind::Committed } else { Kind::Void }, head.id)?;
                    return Ok(Served::Settled(head.id, own));
                }
                Kind::Release => self.ledger.release(head.id),
                // Of a migration that was refused meanwhile.
                Kind::Abort => {}
                _ => return Err(Ended::Protocol("nothing was offered").into()),
            }
        }
    }

    /// Its ledger, for tests.
    #[cfg(test)]
    pub(super) fn ledger_for_tests(&self) -> &Ledger {
        &self.ledger
    }

    fn take<L: Link>(
        &self,
        wire: &mut Wire<L>,
        id: MigrationId,
        offer: &Offer,
    ) -> Result<Served, Error> {
        let shared = &self.cache.shared;
        let reserved = offer.suits(shared).and_then(|()| self.ledger.begin(id)).and_then(|()| {
            Incoming::new(self, id, offer.pages).inspect_err(|_| self.ledger.give_up(id))
        });
        let mut incoming = match reserved {
            Ok(incoming) => incoming,
            Err(refusal) => {
                refusal.tell(wire, id, &shared.geometry)?;
                return Ok(Served::Refused(id, refusal));
            }
        };
        wire.tell(Kind::Ready, id)?;
        loop {
            let head = wire.next()?;
            if head.id != id {
                return Err(Ended::Protocol("a message of another migration").into());
            }
            match head.kind {
                Kind::Pages => incoming.pages(wire, &head)?,
                Kind::Cut => incoming.cut(wire, &head)?,
                Kind::Tail => incoming.tail(wire, &head)?,
                Kind::Round | Kind::Commit => {
                    let lens = wire.body_of(&head, 8 * shared.geometry.layers)?;
                    if let Some(refusal) = incoming.failed.take() {
                        drop(incoming);
                        refusal.tell(wire, id, &shared.geometry)?;
                        return Ok(Served::Refused(id, refusal));
                    }
                    if head.kind == Kind::Commit {
                        return incoming.commit(wire, &lens);
                    }
                    wire.tell(Kind::Ready, id)?;
                }
                Kind::Abort => {
                    wire.body(&head)?;
                    return Ok(Served::Aborted(id));
                }
                _ => return Err(Ended::Protocol("not a message to a destination").into()),
            }
        }
    }
}

/// A sequence on its way. Dropping it forgets it, unless it was committed.
struct Incoming<'a> {
    destination: &'a Destination,
    id: MigrationId,
    sequence: Option<Sequence>,
    /// Frames for pages to come.
    frames: Vec<Arc<Cell>>,
    /// For summaries and tables, and how much of it a page takes.
    rest: Charge,
    rest_of_page: u64,
    /// Why it will be refused as soon as the source listens.
    failed: Option<Refusal>,
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        self.destination.ledger.give_up(self.id);
    }
}

impl<'a> Incoming<'a> {
    /// Reserves memory for so many pages of all heads.
    fn new(
        destination: &'a Destination,
        id: MigrationId,
        pages: u64,
    ) -> Result<Incoming<'a>, Refusal> {
        let cache = &destination.cache;
        let (shared, g) = (&cache.shared, cache.geometry());
        let rest_of_page = rest_of_page(cache);
        let all = pages.saturating_mul(g.kv_heads as u64);
        let frame = shared.pages.cell_bytes() as u64 + CELL_OVERHEAD;
        let rest_bytes = pages.saturating_mul(rest_of_page);
        let (free, limit) = (room(cache), shared.budget.limit());
        let needed = all.saturating_mul(frame).saturating_add(rest_bytes);
        if needed > free || rest_bytes > limit {
            return Err(Refusal::NoRoom { needed, free });
        }
        let frames = match shared.tier {
            Some(_) => all.min((shared.pages.cells() / FRAMES_SHARE) as u64),
            None => all,
        };
        let reserve = || {
            let mut rest = Charge::none(shared.budget.clone());
            rest.grow_to(rest_bytes)?;
            Ok((shared.pages.take(frames as usize)?, rest))
        };
        let (frames, rest) = cache.with_room(reserve).map_err(|e| refusal(&e))?;
        let sequence = Some(cache.sequence());
        Ok(Incoming { destination, id, sequence, frames, rest, rest_of_page, failed: None })
    }

    fn sequence(&mut self) -> &mut Sequence {
        self.sequence.as_mut().expect("it is there until it is committed")
    }

    /// Notes why nothing more is taken; the source hears of it when it listens.
    fn note(&mut self, done: Result<(), Error>) {
        if let Err(error) = done {
            tracing::debug!("a sequence cannot be taken: {error}");
            self.failed = Some(refusal(&error));
            self.frames = Vec::new();
            *self.sequence() = self.destination.cache.sequence();
        }
    }

    /// Takes full pages of a layer, which follow those that are there.
    fn pages<L: Link>(&mut self, wire: &mut Wire<L>, head: &Head) -> Result<(), Ended> {
        let mut body = wire.reader(head);
        if self.failed.is_some() {
            return body.skip();
        }
        let (number, from, n) = (body.number()?, body.number()?, body.number()?);
        let geometry = self.destination.cache.geometry().clone();
        let (page, heads) = (geometry.page_tokens, geometry.kv_heads);
        let layer = self.layer_len(number)?;
        if from.checked_mul(page) != Some(layer) || n == 0 {
            return Err(Ended::Protocol("pages that do not follow"));
        }
        if n.checked_mul(heads * geometry.page_bytes()) != Some(body.left()) {
            return Err(Ended::Protocol("pages of another size"));
        }
        let cells = match self.cells(n * heads) {
            Ok(cells) => cells,
            Err(error) => {
                self.note(Err(error));
                return body.skip();
            }
        };
        let cells = read_into(cells, body)?;
        let appended = cells.chunks_exact(heads).try_for_each(|page| self.adopt(number, page));
        self.note(appended);
        Ok(())
    }

    /// Frames for pages, reserved ones first.
    fn cells(&mut self, n: usize) -> Result<Vec<Arc<Cell>>, Error> {
        let reserved = self.frames.len().min(n);
        let mut cells = self.frames.split_off(self.frames.len() - reserved);
        let cache = &self.destination.cache;
        cells.extend(cache.with_room(|| cache.shared.pages.take(n - reserved))?);
        Ok(cells)
    }

    /// Gives back the part of what was reserved that the next page is about to take.
    fn draw(&mut self) {
        let left = self.rest.bytes().saturating_sub(self.rest_of_page);
        self.rest.shrink_to(left);
    }

    fn adopt(&mut self, number: usize, page: &[Arc<Cell>]) -> Result<(), Error> {
        self.draw();
        let cache = &self.destination.cache;
        let sequence = self.sequence.as_mut().expect("it is there until it is committed");
        let (layer, selector) = (&mut sequence.layers[number], &sequence.selector);
        cache.with_room(|| Layer::append(layer, &cache.shared, selector, New::Page(page)))
    }

    /// Forgets pages of a layer.
    fn cut<L: Link>(&mut self, wire: &mut Wire<L>, head: &Head) -> Result<(), Ended> {
        let mut body = wire.reader(head);
        if self.failed.is_some() {
            return body.skip();
        }
        let (number, pages) = (body.number()?, body.number()?);
        body.finish()?;
        let len = pages.saturating_mul(self.destination.cache.geometry().page_tokens);
        if self.layer_len(number)? < len {
            return Err(Ended::Protocol("a cut behind the end"));
        }
        let cut = self.sequence().truncate_layer(number, len);
        self.note(cut);
        Ok(())
    }

    /// Takes the rows of a layer's unfinished page.
    fn tail<L: Link>(&mut self, wire: &mut Wire<L>, head: &Head) -> Result<(), Ended> {
        let mut body = wire.reader(head);
        if self.failed.is_some() {
            return body.skip();
        }
        let (number, tokens) = (body.number()?, body.number()?);
        let g = self.destination.cache.geometry().clone();
        let follows = self.layer_len(number)?.is_multiple_of(g.page_tokens);
        if !follows || tokens == 0 || tokens >= g.page_tokens {
            return Err(Ended::Protocol("rows that do not follow"));
        }
        let bytes = tokens * g.kv_heads * g.token_bytes();
        if body.left() != bytes {
            return Err(Ended::Protocol("rows of another size"));
        }
        // Rows are numbers of up to 8 bytes for whoever reads them.
        let mut rows = vec![0u64; bytes.div_ceil(8)];
        body.fill(&mut bytemuck::cast_slice_mut(&mut rows)[..bytes])?;
        body.finish()?;
        let strides = |dim: usize| [dim as i64, (tokens * (g.dim_k + g.dim_v)) as i64];
        let view = |at: usize, dim: usize| {
            let from = rows.as_ptr().cast::<u8>().wrapping_add(at * g.dtype.size());
            // SAFETY: keys of a head, then its values, head after head: all inside `rows`.
            unsafe { Tensor3::from_raw(from, g.dtype, [tokens, g.kv_heads, dim], strides(dim)) }
        };
        self.draw();
        let (k, v) = (view(0, g.dim_k), view(tokens * g.dim_k, g.dim_v));
        let appended = self.sequence().append(number, &k, &v);
        self.note(appended);
        Ok(())
    }

    fn layer_len(&mut self, number: usize) -> Result<usize, Ended> {
        let layer = self.sequence().layers.get(number);
        layer.map(|layer| layer.len).ok_or(Ended::Protocol("a layer that is not there"))
    }

    /// Takes the sequence over and says so.
    fn commit<L: Link>(mut self, wire: &mut Wire<L>, lens: &[u8]) -> Result<Served, Error> {
        let there = self.sequence().layers.iter().flat_map(|l| (l.len as u64).to_le_bytes());
        if !there.eq(lens.iter().copied()) {
            return Err(Ended::Protocol("not as many tokens as were sent").into());
        }
        let id = self.id;
        if !self.destination.ledger.commit(id) {
            let known = Refusal::Stale { known: id.epoch };
            known.tell(wire, id, self.destination.cache.geometry())?;
            return Ok(Served::Refused(id, known));
        }
        let sequence = self.sequence.take().expect("it is there until it is committed");
        // Who does not hear of it asks.
        if let Err(ended) = wire.tell(Kind::Committed, id) {
            tracing::debug!("a source was not told that its sequence has arrived: {ended}");
        }
        Ok(Served::Arrived(Arrived { id, sequence }))
    }
}

/// Reads pages straight into their frames.
fn read_into<L: Link>(
    mut cells: Vec<Arc<Cell>>,
    mut body: BodyReader<L>,
) -> Result<Vec<Arc<Cell>>, Ended> {
    for cell in &mut cells {
        let Some(bytes) = cell.bytes_mut() else { unreachable!("a fresh cell has one holder") };
        body.fill(bytes)?;
    }
    body.finish()?;
    Ok(cells)
}

/// Bytes that a page of all heads takes besides its frames, about.
fn rest_of_page(cache: &Cache) -> u64 {
    let (shared, g) = (&cache.shared, cache.geometry());
    let cells = g.page_tokens.div_ceil(TILE);
    let summary = |bytes: usize| bytes as u64 + CELL_OVERHEAD + CELL_ENTRY as u64;
    let summaries = shared.selector.store.as_ref().map_or(0, |s| summary(s.arena.cell_bytes()));
    // Tables have an eighth to spare.
    g.kv_heads as u64 * (PAGE_ENTRY as u64 * 9 / 8 + cells as u64 * summaries)
}

/// Bytes that pages could have: of host memory, and of the disk below it, where there is one.
fn room(cache: &Cache) -> u64 {
    let budget = &cache.shared.budget;
    let host = budget.limit().saturating_sub(budget.used());
    match (cache.disk(), &cache.shared.tier) {
        (Some(disk), _) => budget.limit() + disk.budget_bytes.saturating_sub(disk.live_bytes),
        (None, Some(_)) => u64::MAX,
        (None, None) => host,
    }
}
