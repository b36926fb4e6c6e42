//! Where the tokens of a list lie: turns 64 of them at a time into row pointers.

use std::ops::Range;

use super::Params;
use crate::arch::{TILE, Window, zero_row};
use crate::{KvPool, PageLists, SlotLists};

/// Pages or slots.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    Pages(&'a PageLists<'a>),
    Slots(&'a SlotLists<'a>),
}

/// Row pointers of a tile of up to 64 tokens and of the tile behind it.
#[derive(Debug)]
pub(crate) struct Tiles {
    pub(crate) k: Window,
    pub(crate) v: Window,
    /// Valid tokens of the tile.
    pub(crate) n: usize,
    /// Valid tokens of the tile behind it.
    next: usize,
}

impl Tiles {
    pub(crate) fn new() -> Tiles {
        let none = [zero_row(); 2 * TILE];
        Tiles { k: none, v: none, n: 0, next: 0 }
    }

    /// Moves on by a tile; `fill` gets the rows of the new tile behind it and says how many it set.
    pub(crate) fn advance(&mut self, fill: impl FnOnce(Rows) -> usize) {
        self.k.copy_within(TILE.., 0);
        self.v.copy_within(TILE.., 0);
        self.n = self.next;
        self.next = fill((&mut self.k[TILE..], &mut self.v[TILE..]));
        self.k[TILE + self.next..].fill(zero_row());
        self.v[TILE + self.next..].fill(zero_row());
    }

    /// Keeps the tokens whose bit is set.
    pub(crate) fn keep(&mut self, mut bits: u64) {
        let mut n = 0;
        while bits != 0 {
            let t = bits.trailing_zeros() as usize;
            (self.k[n], self.v[n]) = (self.k[t], self.v[t]);
            n += 1;
            bits &= bits - 1;
        }
        self.k[n..TILE].fill(zero_row());
        self.v[n..TILE].fill(zero_row());
        self.n = n;
    }
}

/// Rows of K and V to point somewhere, [`TILE`] each.
pub(crate) type Rows<'a> = (&'a mut [*const u8], &'a mut [*const u8]);

impl Source<'_> {
    /// Whether there is a list for each KV head.
    pub(crate) fn per_head(&self) -> bool {
        match self {
            Source::Pages(p) => p.per_head,
            Source::Slots(s) => s.per_head,
        }
    }

    /// Number of lists.
    pub(crate) fn lists(&self) -> usize {
        match self {
            Source::Pages(p) => p.lens.len(),
            Source::Slots(s) => s.indptr.len().saturating_sub(1),
        }
    }

    /// The list that a (sequence, KV head) reads.
    pub(crate) fn list(&self, sequence: usize, head: usize, kv_heads: usize) -> usize {
        if self.per_head() { sequence * kv_heads + head } else { sequence }
    }

    /// KV heads the lists cover.
    pub(crate) fn kv_heads(&self, pool: &KvPool, sequences: usize) -> usize {
        match pool.layout().kv_heads {
            1 if self.per_head() => self.lists() / sequences.max(1),
            heads => heads,
        }
    }

    /// Tokens of a list.
    pub(crate) fn len(&self, list: usize) -> usize {
        match self {
            Source::Pages(p) => p.lens[list] as usize,
            Source::Slots(s) => (s.indptr[list + 1] - s.indptr[list]) as usize,
        }
    }

    /// Tokens of a list that a query at `position` sees.
    pub(crate) fn seen(&self, list: usize, position: Option<u32>, params: &Params) -> Range<usize> {
        let position = position.unwrap_or(u32::MAX - 1);
        let end = if params.causal { self.visible(list, position) } else { self.len(list) };
        let start = match params.window {
            0 => 0,
            w => self.window_start(list, position, w).min(end),
        };
        start..end
    }

    /// Position of a token of a list.
    pub(crate) fn position(&self, list: usize, token: usize) -> u32 {
        match self {
            Source::Pages(p) => p.first_pos.map_or(0, |f| f[list]).saturating_add(token as u32),
            Source::Slots(s) => s.positions.map_or(0, |p| p[s.indptr[list] as usize + token]),
        }
    }

    /// Tokens of a list that a query at `position` may see when the mask is causal.
    fn visible(&self, list: usize, position: u32) -> usize {
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
    fn window_start(&self, list: usize, position: u32, window: u32) -> usize {
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

    /// Points rows at as many tokens of the list, from token `from` on.
    pub(crate) fn fill(&self, pool: &KvPool, list: usize, head: usize, from: usize, (k, v): Rows) {
        let head = if pool.layout().kv_heads == 1 { 0 } else { head };
        let n = k.len();
        let page = pool.layout().page_tokens;
        match self {
            Source::Pages(p) => {
                let frames = &p.frames[p.indptr[list] as usize..];
                let (mut i, mut offset, mut t) = (from / page, from % page, 0);
                while t < n {
                    // A run inside one page: one address, then steps of a row.
                    let run = (page - offset).min(n - t);
                    let frame = frames[i] as usize;
                    steps(&mut k[t..t + run], pool.k_row(frame, head, offset), pool.k_step());
                    steps(&mut v[t..t + run], pool.v_row(frame, head, offset), pool.v_step());
                    (i, offset, t) = (i + 1, 0, t + run);
                }
            }
            Source::Slots(s) => {
                let slots = &s.slots[s.indptr[list] as usize + from..];
                let page = page as u32;
                for (t, &slot) in slots[..n].iter().enumerate() {
                    let (frame, offset) = ((slot / page) as usize, (slot % page) as usize);
                    k[t] = pool.k_row(frame, head, offset);
                    v[t] = pool.v_row(frame, head, offset);
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
