//! Getting blocks in order: those in memory are held, those on disk are read ahead together.

use std::collections::HashMap;
use std::ops::Range;

use super::host::{Held, Moment, Vacant};
use super::rows::BlockRowsMut;
use super::space::{Prefix, Space};
use crate::codec::PageSink;
use crate::disk::{BlockDone, BlockReads, Disk, Expect, Want};
use crate::format::BlockLayout;
use crate::miss::MissReason;

/// Bytes of blocks that are asked for together.
const WAVE: usize = 64 << 20;

/// Where a block's bytes are, in canonical order.
pub(super) enum Source {
    Host(Held),
    /// Read just now; held in memory if there was room.
    Disk(Fetched),
}

/// A block read from disk.
pub(super) enum Fetched {
    Held(Held),
    Heap(Vec<u8>),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Source::Host(held) | Source::Disk(Fetched::Held(held)) => held.cell.bytes(),
            Source::Disk(Fetched::Heap(bytes)) => bytes,
        }
    }

    /// Copies pages to the caller's rows.
    pub(super) fn write(&self, layout: &BlockLayout, pages: Range<usize>, out: &mut BlockRowsMut) {
        out.write(layout, pages, self.bytes());
    }
}

/// Where a block is decoded to.
enum Target<'a> {
    Room(Vacant<'a>),
    Heap(Vec<u8>),
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
        };
        bytes[index * page..(index + 1) * page].split_at_mut(k)
    }
}

/// Blocks of a prefix, in order, with the next ones on their way.
pub(super) struct Wave<'a> {
    space: &'a Space,
    prefix: &'a Prefix,
    pages: Range<usize>,
    reads: Option<BlockReads<'a, Landing<'a>>>,
    /// Block of each read of `reads`.
    blocks: Vec<usize>,
    ready: HashMap<usize, Result<Source, MissReason>>,
}

impl<'a> Wave<'a> {
    pub(super) fn new(space: &'a Space, prefix: &'a Prefix, pages: Range<usize>) -> Wave<'a> {
        Wave { space, prefix, pages, reads: None, blocks: Vec::new(), ready: HashMap::new() }
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
                held => return held.map(Source::Host),
            }
        }
        loop {
            if let Some(result) = self.ready.remove(&block) {
                return result;
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
                    self.ready.insert(block, Ok(Source::Host(held)));
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
            let tokens = self.prefix.tokens(block);
            let (pages, sink) = (self.pages(), self.landing());
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

    /// Room for a block: in memory if all of it is read and there is room, else on the heap.
    fn landing(&self) -> Landing<'a> {
        let space = self.space;
        let layout = space.inner.plan.layout();
        let room = match self.all_pages() {
            true => space.shared.host.room(&space.inner.arena),
            false => None,
        };
        let target = room.map_or_else(|| Target::Heap(vec![0; layout.bytes()]), Target::Room);
        let since = space.shared.host.moment();
        Landing { target, since, layout }
    }

    fn landed(&mut self, done: BlockDone<Landing<'a>>) {
        let BlockDone { index, result, hash, sink } = done;
        let (block, space) = (self.blocks[index], self.space);
        let source = result.map(|()| {
            Source::Disk(match sink.target {
                Target::Heap(bytes) => Fetched::Heap(bytes),
                Target::Room(room) => {
                    let key = self.prefix.keys()[block];
                    let meaning = space.inner.meaning(hash);
                    Fetched::Held(space.shared.host.land(key, room, meaning, sink.since))
                }
            })
        });
        self.ready.insert(block, source);
    }
}
