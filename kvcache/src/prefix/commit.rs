//! Writing blocks to disk, from wherever their bytes are.

use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::behind::{UnderWay, Write};
use super::host::Body;
use super::lent::Pages;
use crate::arena::Cell;
use crate::codec::{Canonical, PageSource};
use crate::disk::{Commit, Disk, NewRecord};
use crate::miss::MissReason;

/// A cache's pages that are written at once, at most, as a share of its memory.
const HELD_SHARE: u64 = 8;

/// Where the bytes of a write are.
enum Source<'a> {
    Own(Canonical<'a>),
    Lent(Pages),
}

impl<'a> Source<'a> {
    /// Holds them; not if they cannot be had now.
    fn new(write: &'a Write) -> Result<Source<'a>, MissReason> {
        let layout = write.space.plan.layout();
        Ok(match &write.body {
            Body::Own(cell) => {
                Source::Own(Canonical::of_cell(layout, cell, write.tiles.as_deref()))
            }
            Body::Lent(lent) => {
                let cells = lent.pages(0..layout.pages())?;
                Source::Lent(Pages { cells, k: layout.k_bytes() })
            }
        })
    }
}

impl PageSource for Source<'_> {
    fn page(&self, index: usize) -> (&[u8], &[u8]) {
        match self {
            Source::Own(block) => block.page(index),
            Source::Lent(pages) => pages.page(index),
        }
    }

    fn hashes(&self) -> Option<&[u64]> {
        match self {
            Source::Own(block) => block.hashes(),
            Source::Lent(_) => None,
        }
    }

    fn cell(&self, index: usize) -> Option<&Arc<Cell>> {
        match self {
            Source::Own(block) => block.cell(index),
            Source::Lent(pages) => pages.cell(index),
        }
    }
}

/// How many writes go together: pages that may leave memory should not all be held there. `held` is
/// what earlier ones hold; the `first` goes in any case.
fn together(writes: &[Write], held: &mut u64, first: bool) -> usize {
    let fits = |w: &&Write| match w.body.lent().map(|lent| lent.cache()) {
        Some(cache) if cache.tier.is_some() => {
            *held += w.bytes() as u64;
            *held <= cache.budget.limit() / HELD_SHARE
        }
        _ => true,
    };
    writes.iter().take_while(fits).count().max(usize::from(first))
}

/// Writes what is under way, and what comes to the queue meanwhile: the disk is kept busy.
pub(super) fn commit(shared: &Shared, disk: &Disk, under_way: &mut UnderWay) {
    let mut done = 0;
    while done < under_way.writes().len() {
        let (started, first) = (Instant::now(), done);
        let (mut commit, mut held) = (disk.begin(), 0);
        loop {
            let rest = &under_way.writes()[done..];
            let now = together(rest, &mut held, done == first);
            add(shared, &mut commit, &rest[..now]);
            done += now;
            if done < under_way.writes().len() || !more(&mut commit, under_way) {
                break;
            }
        }
        shared.counters.committed(&commit.finish(), started.elapsed());
    }
}

/// Takes more from the queue, waiting for it as long as the disk is busy.
fn more(commit: &mut Commit, under_way: &mut UnderWay) -> bool {
    loop {
        if under_way.pull() {
            return true;
        }
        if under_way.is_full() || !commit.advance() {
            return false;
        }
    }
}

fn add(shared: &Shared, commit: &mut Commit, writes: &[Write]) {
    let held = |w| {
        let source = Source::new(w);
        // Its pages are below, and there is no room to bring them to.
        if source.is_err() {
            shared.counters.throttled();
        }
        source.ok().map(|source| (w, source))
    };
    let sources: Vec<(&Write, Source)> = writes.iter().filter_map(held).collect();
    let mut records = Vec::with_capacity(sources.len());
    for (w, pages) in &sources {
        records.push(NewRecord {
            key: w.key,
            model: w.space.parts.model,
            tenant: w.space.tag,
            seal: w.space.seal.as_ref(),
            tokens: w.tokens.as_deref(),
            num_tokens: w.space.plan.layout().block_tokens,
            plan: &w.space.plan,
            pages,
            live: None,
        });
    }
    commit.add(&records);
}
