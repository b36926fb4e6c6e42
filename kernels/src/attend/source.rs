//! Where the tokens of a list lie: turns 64 of them at a time into row pointers.

use std::ops::Range;

use crate::arch::TILE;
use crate::{KvPool, PageLists, SlotLists};

/// Pages or slots.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    Pages(&'a PageLists<'a>),
    Slots(&'a SlotLists<'a>),
}

/// Row pointers of up to 64 tokens.
#[derive(Debug)]
pub(super) struct Tile {
    pub(super) k: [*const u8; TILE],
    pub(super) v: [*const u8; TILE],
    /// Valid tokens.
    pub(super) n: usize,
}

impl Tile {
    pub(super) fn new() -> Tile {
        Tile { k: [std::ptr::null(); TILE], v: [std::ptr::null(); TILE], n: 0 }
    }
}

impl Tile {
    /// Keeps the tokens of `span` only.
    pub(super) fn keep(&mut self, span: Range<usize>) {
        self.n = span.len();
        if span.start > 0 {
            self.k.copy_within(span.clone(), 0);
            self.v.copy_within(span, 0);
        }
    }
}

impl Source<'_> {
    /// The list that a (sequence, KV head) reads.
    pub(super) fn list(&self, sequence: usize, head: usize, kv_heads: usize) -> usize {
        let per_head = match self {
            Source::Pages(p) => p.per_head,
            Source::Slots(s) => s.per_head,
        };
        if per_head { sequence * kv_heads + head } else { sequence }
    }

    /// KV heads the lists cover.
    pub(super) fn kv_heads(&self, pool: &KvPool, sequences: usize) -> usize {
        match (self, pool.layout().kv_heads) {
            (Source::Pages(p), 1) if p.per_head => p.lens.len() / sequences.max(1),
            (Source::Slots(s), 1) if s.per_head => (s.indptr.len() - 1) / sequences.max(1),
            (_, heads) => heads,
        }
    }

    /// Tokens of a list.
    pub(super) fn len(&self, list: usize) -> usize {
        match self {
            Source::Pages(p) => p.lens[list] as usize,
            Source::Slots(s) => (s.indptr[list + 1] - s.indptr[list]) as usize,
        }
    }

    /// Tokens of a list that a query at `position` may see when the mask is causal.
    pub(super) fn visible(&self, list: usize, position: u32) -> usize {
        let len = self.len(list);
        match self {
            Source::Pages(p) => {
                let first = p.first_pos.map_or(0, |f| f[list]);
                len.min((u64::from(position) + 1).saturating_sub(u64::from(first)) as usize)
            }
            Source::Slots(s) => s.positions.map_or(len, |pos| {
                let from = s.indptr[list] as usize;
                pos[from..from + len].partition_point(|&p| p <= position)
            }),
        }
    }

    /// First token of a list that a query at `position` sees through a window.
    pub(super) fn window_start(&self, list: usize, position: u32, window: u32) -> usize {
        let oldest = (u64::from(position) + 1).saturating_sub(u64::from(window)) as u32;
        match self {
            Source::Pages(p) => {
                let first = p.first_pos.map_or(0, |f| f[list]);
                (oldest.saturating_sub(first) as usize).min(self.len(list))
            }
            Source::Slots(s) => s.positions.map_or(0, |pos| {
                let (from, to) = (s.indptr[list] as usize, s.indptr[list + 1] as usize);
                pos[from..to].partition_point(|&p| p < oldest)
            }),
        }
    }

    /// Points `tile` at tokens `64 * index ..` of the list.
    pub(super) fn fill(
        &self,
        pool: &KvPool,
        list: usize,
        head: usize,
        index: usize,
        tile: &mut Tile,
    ) {
        let head = if pool.layout().kv_heads == 1 { 0 } else { head };
        let from = index * TILE;
        tile.n = (self.len(list) - from).min(TILE);
        let page = pool.layout().page_tokens;
        match self {
            Source::Pages(p) => {
                let frames = &p.frames[p.indptr[list] as usize..];
                let (mut i, mut offset, mut t) = (from / page, from % page, 0);
                while t < tile.n {
                    // A run inside one page: one address, then steps of a row.
                    let run = (page - offset).min(tile.n - t);
                    let frame = frames[i] as usize;
                    steps(&mut tile.k[t..t + run], pool.k_row(frame, head, offset), pool.k_step());
                    steps(&mut tile.v[t..t + run], pool.v_row(frame, head, offset), pool.v_step());
                    (i, offset, t) = (i + 1, 0, t + run);
                }
            }
            Source::Slots(s) => {
                let slots = &s.slots[s.indptr[list] as usize + from..];
                for (t, &slot) in slots[..tile.n].iter().enumerate() {
                    let (frame, offset) = (slot as usize / page, slot as usize % page);
                    tile.k[t] = pool.k_row(frame, head, offset);
                    tile.v[t] = pool.v_row(frame, head, offset);
                }
            }
        }
    }
}

fn steps(rows: &mut [*const u8], first: *const u8, step: isize) {
    let mut at = first;
    for row in rows {
        *row = at;
        at = at.wrapping_offset(step);
    }
}
