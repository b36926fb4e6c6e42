//! Getting blocks in order: those in memory are held, those on disk are read ahead together.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::host::{Body, Held, Moment, Vacant};
use super::keys::Prefix;
use super::rows::BlockRowsMut;
use super::space::Space;
use crate::arena::Cell;
use crate::codec::PageSink;
use crate::disk::{BlockDone, BlockReads, Disk, Expect, Want};
use crate::format::BlockLayout;
use crate::miss::MissReason;
use crate::vfs::Buf;
use crate::{Cache, Error};

/// Bytes of blocks that are asked for together.
const WAVE: usize = 64 << 20;

/// A block that can be had.
pub(super) struct Source {
    pub(super) bytes: Bytes,
    /// Read just now.
    pub(super) from_disk: bool,
}

/// Where a block's bytes are, in canonical order.
pub(super) enum Bytes {
    /// In memory, in one piece.
    Cell(Arc<Cell>),
    Heap(Vec<u8>),
    /// The pages that were wanted, each in a cell.
    Pages(Vec<Arc<Cell>>),
}

impl Source {
    fn new(bytes: Bytes, from_disk: bool) -> Source {
        Source { bytes, from_disk }
    }

    /// Copies the pages that were wanted to the caller's rows.
    pub(super) fn write(&self, layout: &BlockLayout, pages: Range<usize>, out: &mut BlockRowsMut) {
        match &self.bytes {
            Bytes::Cell(cell) => out.write(layout, pages, cell.bytes()),
            Bytes::Heap(bytes) => out.write(layout, pages, bytes),
            Bytes::Pages(cells) => {
                let mut scratch = Vec::new();
                for (page, cell) in pages.zip(cells) {
                    out.write_page(layout, page, cell.bytes(), &mut scratch);
                }
            }
        }
    }
}

/// What a block in memory is held for.
enum Near {
    Block(Held),
    Read(Bytes),
}

/// Where a block is decoded to.
enum Target<'a> {
    Room(Vacant<'a>),
    Heap(Vec<u8>),
    /// Pages of a cache.
    Pages(Vec<Arc<Cell>>),
}

/// A block's room on its way through a read.
pub(super) struct Landing<'a> {
    target: Target<'a>,
    /// When it was asked for.
    since: Moment,
    layout: &'a BlockLayout,
}

impl PageSink for Landing<'_> {
    fn page(&mut self, index: usize) -> (&mut [u8], &mut [u8]) {
        let (page, k) = (self.layout.page_bytes(), self.layout.k_bytes());
        let bytes = match &mut self.target {
            Target::Room(room) => room.bytes(),
            Target::Heap(bytes) => bytes,
            Target::Pages(cells) => {
                let page = cells[index].bytes_mut();
                return page.expect("a fresh cell has one holder").split_at_mut(k);
            }
        };
        bytes[index * page..(index + 1) * page].split_at_mut(k)
    }

    fn lend(&mut self, bytes: Range<usize>) -> Option<Buf> {
        let Target::Room(room) = &mut self.target else { return None };
        let cell = room.own().filter(|cell| bytes.end <= cell.len())?;
        let start = cell.ptr().wrapping_add(bytes.start);
        // SAFETY: inside the cell, which the buffer keeps. Nobody else has seen it, and `page` needs the
        // only handle.
        Some(unsafe { Buf::from_raw(start, bytes.len(), Box::new(Arc::clone(cell))) })
    }
}

/// Blocks of a prefix, in order, with the next ones on their way.
pub(super) struct Wave<'a> {
    space: &'a Space,
    prefix: &'a Prefix,
    pages: Range<usize>,
    /// Blocks from disk come to pages of this cache, if there is one.
    cache: Option<&'a Cache>,
    reads: Option<BlockReads<'a, Landing<'a>>>,
    /// Block of each read of `reads`.
    blocks: Vec<usize>,
    ready: HashMap<usize, Result<Near, MissReason>>,
}

impl<'a> Wave<'a> {
    pub(super) fn new(space: &'a Space, prefix: &'a Prefix, pages: Range<usize>) -> Wave<'a> {
        let (blocks, ready) = (Vec::new(), HashMap::new());
        Wave { space, prefix, pages, cache: None, reads: None, blocks, ready }
    }

    /// Whole blocks, those from disk to fresh pages of a cache of the same layout.
    pub(super) fn to_pages(space: &'a Space, prefix: &'a Prefix, cache: &'a Cache) -> Wave<'a> {
        let wave = Wave::new(space, prefix, 0..space.layout().pages());
        Wave { cache: Some(cache), ..wave }
    }

    pub(super) fn pages(&self) -> Range<usize> {
        self.pages.clone()
    }

    /// The next block, with those up to `end` read ahead.
    pub(super) fn next(&mut self, block: usize, end: usize) -> Result<Source, MissReason> {
        // Mostly everything is in memory, and this is all.
        if self.blocks.is_empty() && self.ready.is_empty() {
            match self.space.held(&self.prefix.keys()[block]) {
                Err(MissReason::Absent) => {}
                Err(reason) => return Err(reason),
                Ok(held) => {
                    self.ready.insert(block, Ok(Near::Block(held)));
                }
            }
        }
        loop {
            match self.ready.remove(&block) {
                None => {}
                Some(Err(reason)) => return Err(reason),
                Some(Ok(Near::Read(bytes))) => return Ok(Source::new(bytes, true)),
                Some(Ok(Near::Block(held))) => {
                    if let Some(bytes) = self.bytes_of(held, block)? {
                        return Ok(Source::new(bytes, false));
                    }
                    self.start(block, end);
                    continue;
                }
            }
            if !self.blocks.contains(&block) {
                self.start(block, end);
                continue;
            }
            let deadline = self.disk().map(Disk::deadline).unwrap_or_default();
            let done = self.reads.as_mut().and_then(|reads| reads.next(deadline));
            match done {
                Some(done) => self.landed(done),
                // Every read ended, and this block was not among them.
                None => return Err(MissReason::Io),
            }
        }
    }

    /// The bytes of a block in memory; none if its pages are gone for good, and it with them.
    fn bytes_of(&self, held: Held, block: usize) -> Result<Option<Bytes>, MissReason> {
        let lent = match held.body {
            Body::Own(cell) => return Ok(Some(Bytes::Cell(cell))),
            Body::Lent(lent) => lent,
        };
        match lent.pages(self.pages()) {
            Ok(cells) => Ok(Some(Bytes::Pages(cells))),
            Err(reason @ (MissReason::Busy | MissReason::Timeout)) => Err(reason),
            Err(reason) => {
                tracing::debug!("a lent block is given up: {reason}");
                self.space.shared.host.give_up(&self.prefix.keys()[block], &lent);
                Ok(None)
            }
        }
    }

    fn disk(&self) -> Option<&'a Disk> {
        self.space.shared.disk.as_deref()
    }

    fn all_pages(&self) -> bool {
        self.pages.len() == self.space.layout().pages()
    }

    /// Holds blocks in memory and starts reading those on disk, up to the first that is in neither.
    fn start(&mut self, from: usize, end: usize) {
        let space = self.space;
        let (inner, layout) = (&*space.inner, space.inner.plan.layout());
        let most = (WAVE / layout.bytes()).max(1);
        let mut wants = Vec::new();
        self.blocks.clear();
        for block in from..end.min(from + most) {
            let key = &self.prefix.keys()[block];
            match space.held(key) {
                Ok(held) => {
                    self.ready.insert(block, Ok(Near::Block(held)));
                    continue;
                }
                Err(MissReason::Absent) => {}
                Err(reason) => {
                    self.ready.insert(block, Err(reason));
                    break;
                }
            }
            let below = self.disk().ok_or(MissReason::Absent);
            if let Err(reason) = below.and_then(|disk| disk.look(key, &inner.tag)) {
                self.ready.insert(block, Err(reason));
                break;
            }
            let Some(sink) = self.landing(wants.is_empty()) else {
                // What was asked for goes first, and leaves room.
                if wants.is_empty() {
                    self.ready.insert(block, Err(MissReason::Busy));
                }
                break;
            };
            let (tokens, pages) = (self.prefix.tokens(block), self.pages());
            wants.push(Want { key: *key, tokens, pages, sink });
            self.blocks.push(block);
        }
        let expect = Expect {
            model: inner.parts.model,
            tenant: inner.tag,
            plan: &inner.plan,
            seal: inner.seal.as_ref(),
            loss_max: inner.loss_max,
        };
        self.reads = self.disk().filter(|_| !wants.is_empty()).map(|disk| disk.read(expect, wants));
    }

    /// Room for a block: in the cache that wants it; else in memory if all of it is read and there is
    /// room, else on the heap. A cache makes room only for the `first`.
    fn landing(&self, first: bool) -> Option<Landing<'a>> {
        let space = self.space;
        let layout = space.inner.plan.layout();
        let room = || match self.all_pages() {
            true => space.shared.host.room(&space.inner.arena),
            false => None,
        };
        let target = match self.cache {
            Some(cache) => Target::Pages(pages_of(cache, layout.pages(), first)?),
            None => room().map_or_else(|| Target::Heap(vec![0; layout.bytes()]), Target::Room),
        };
        let since = space.shared.host.moment();
        Some(Landing { target, since, layout })
    }

    fn landed(&mut self, done: BlockDone<Landing<'a>>) {
        let BlockDone { index, result, hash, sink } = done;
        let (block, space) = (self.blocks[index], self.space);
        let near = result.map(|()| match sink.target {
            Target::Heap(bytes) => Near::Read(Bytes::Heap(bytes)),
            Target::Pages(cells) => Near::Read(Bytes::Pages(cells)),
            Target::Room(mut room) => {
                room.set_checksum(hash);
                let held =
                    space.shared.host.land(&space.entry(self.prefix, block), room, sink.since);
                match held.body {
                    Body::Own(cell) => Near::Read(Bytes::Cell(cell)),
                    // Published meanwhile.
                    Body::Lent(_) => Near::Block(held),
                }
            }
        });
        self.ready.insert(block, near);
    }
}

/// Fresh cells of a cache, making room for them or not.
pub(super) fn pages_of(cache: &Cache, n: usize, make_room: bool) -> Option<Vec<Arc<Cell>>> {
    let take = || cache.shared.pages.take(n);
    match make_room {
        true => cache.with_room(take).ok(),
        false => match take() {
            Err(Error::OverBudget { needed, free, .. }) if cache.drop_copies(needed - free) => {
                take().ok()
            }
            taken => taken.ok(),
        },
    }
}
