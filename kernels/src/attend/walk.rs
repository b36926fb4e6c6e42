//! Takes the query rows of a unit through tiles of keys.

use std::cell::RefCell;
use std::ops::Range;

use super::engine::{Job, Unit};
use super::pick::{Opened, span};
use super::reach::Reach;
use super::source::{Rows, Tiles};
use crate::arch::{self, BLOCK, Step, TILE};
use crate::plan::Segment;
use crate::rows::QueryRows;

/// Buffers of a thread, reused between calls.
pub(super) struct Scratch {
    pub(super) opened: Opened,
    tiles: Tiles,
    q: Vec<f32>,
    query: Option<QueryRows>,
    s: Vec<f32>,
    o: Vec<f32>,
    m: Vec<f32>,
    l: Vec<f32>,
    alpha: Vec<f32>,
    masks: Vec<u64>,
    pub(super) results: Vec<f32>,
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

impl Scratch {
    fn new() -> Scratch {
        Scratch {
            opened: Opened::new(),
            tiles: Tiles::new(),
            q: Vec::new(),
            query: None,
            s: Vec::new(),
            o: Vec::new(),
            m: Vec::new(),
            l: Vec::new(),
            alpha: Vec::new(),
            masks: Vec::new(),
            results: Vec::new(),
        }
    }

    /// Empty state for `rows` query rows, padded to whole blocks.
    fn reset(&mut self, rows: usize, o_stride: usize) {
        let rows = rows.next_multiple_of(BLOCK);
        // Overwritten before they are read: only the length matters.
        if self.s.len() < rows * TILE {
            self.s.resize(rows * TILE, 0.0);
            self.alpha.resize(rows, 0.0);
        }
        let fill = |buffer: &mut Vec<f32>, len: usize, x: f32| {
            buffer.clear();
            buffer.resize(len, x);
        };
        fill(&mut self.o, rows * o_stride, 0.0);
        fill(&mut self.m, rows, f32::NEG_INFINITY);
        fill(&mut self.l, rows, 0.0);
    }
}

/// The part of a range that lies in a tile, as bits.
fn inside(range: &Range<usize>, tile: usize) -> u64 {
    let clamp = |t: usize| t.saturating_sub(tile * TILE).min(TILE);
    span(clamp(range.start)..clamp(range.end))
}

impl Job<'_> {
    /// The tokens that are read and that a query token sees, as a range of what is read.
    pub(super) fn visible(&self, list: usize, token: usize, reach: &Reach) -> Range<usize> {
        let position = self.queries.positions.map(|p| p[token]);
        let seen = self.source.seen(list, position, self.params);
        reach.rank(seen.start)..reach.rank(seen.end)
    }

    /// Points rows at tile `index` of what the opened unit reads; returns how many.
    fn fill(&self, unit: &Unit, reach: &Reach, index: usize, (k, v): Rows) -> usize {
        let mut n = 0;
        for piece in reach.pieces(index) {
            let at = n..n + piece.len;
            n = at.end;
            let rows = (&mut k[at.clone()], &mut v[at]);
            self.source.fill(self.pool, unit.list, unit.head, piece.token, rows);
        }
        n
    }

    /// Points rows at the first tokens of the segment that comes next, if they are easily found.
    fn fill_next(&self, then: Option<&Segment>, (k, v): Rows) -> usize {
        let Some(next) = then.filter(|s| s.begin < s.end && self.pick.is_all()) else { return 0 };
        let unit = &self.units[next.list as usize];
        let from = (unit.first_tile + next.begin as usize) * TILE;
        let n = (self.source.len(unit.list) - from).min(TILE);
        self.source.fill(self.pool, unit.list, unit.head, from, (&mut k[..n], &mut v[..n]));
        n
    }

    /// Runs the rows of a unit over tiles of what is open, leaving the state in `scratch`. The first
    /// rows of the segment that comes `then` are asked for meanwhile.
    pub(super) fn attend(
        &self,
        unit: &Unit,
        tiles: Range<usize>,
        then: Option<&Segment>,
        scratch: &mut Scratch,
    ) {
        self.load_queries(unit, scratch);
        let rows = unit.rows();
        let o_stride = self.pool.layout().dim_v.next_multiple_of(32);
        scratch.reset(rows, o_stride);
        let Scratch { opened, tiles: window, .. } = scratch;
        let seen: Vec<Range<usize>> =
            unit.tokens.clone().map(|t| self.visible(unit.list, t, &opened.reach)).collect();
        // Rows that see the same tokens: each tile is cut to those. Others: each row is masked.
        let alike = seen.len() == 1 && opened.sharing().is_none_or(|n| unit.heads.len() <= n);
        window.advance(|rows| self.fill(unit, &opened.reach, tiles.start, rows));
        for index in tiles.clone() {
            let Scratch { opened, tiles: window, .. } = scratch;
            window.advance(|rows| match index + 1 < tiles.end {
                true => self.fill(unit, &opened.reach, index + 1, rows),
                false => self.fill_next(then, rows),
            });
            let all = span(0..window.n);
            self.pick.look(index, opened);
            let masked = if alike {
                let wanted = opened.wanted(unit.tokens.start, unit.heads.start);
                let bits = all & wanted & inside(&seen[0], index);
                if bits != all {
                    window.keep(bits);
                }
                false
            } else {
                self.fill_masks(unit, &seen, index, all, scratch)
            };
            if scratch.tiles.n > 0 {
                self.tile(rows, o_stride, masked, scratch);
            }
        }
    }

    /// Fills one mask per row; false if every row sees the whole tile.
    fn fill_masks(
        &self,
        unit: &Unit,
        seen: &[Range<usize>],
        index: usize,
        all: u64,
        scratch: &mut Scratch,
    ) -> bool {
        let Scratch { opened, masks, .. } = scratch;
        let (first, last) = (index * TILE, index * TILE + all.count_ones() as usize);
        if opened.sharing().is_none() && seen.iter().all(|r| r.start <= first && r.end >= last) {
            return false;
        }
        masks.clear();
        let mut common = all;
        for seen in seen {
            let seen = inside(seen, index);
            for _ in unit.heads.clone() {
                let bits = seen & opened.wanted_by(masks.len());
                common &= bits;
                masks.push(bits);
            }
        }
        common != all
    }

    /// Scores, softmax step and weighted sum of one tile.
    fn tile(&self, rows: usize, o_stride: usize, masked: bool, x: &mut Scratch) {
        let layout = self.pool.layout();
        let Some((q, q_stride)) = x.query.as_ref().map(QueryRows::data) else { return };
        let mut step = Step {
            q,
            q_stride,
            rows,
            dim_k: layout.dim_k,
            dim_v: layout.dim_v,
            k: &x.tiles.k,
            v: &x.tiles.v,
            n: x.tiles.n,
            scale: self.params.scale,
            cap: self.params.soft_cap,
            masks: masked.then_some(&x.masks),
            m: &mut x.m,
            l: &mut x.l,
            o: &mut x.o,
            o_stride,
            s: &mut x.s,
            alpha: &mut x.alpha,
        };
        // SAFETY: the view vouches for every row of a checked list; `reset` sized the buffers, and
        // the table only offers levels this CPU has.
        unsafe { (self.loops.attend)(&mut step) }
    }

    fn load_queries(&self, unit: &Unit, scratch: &mut Scratch) {
        let dim = self.pool.layout().dim_k;
        scratch.q.clear();
        for token in unit.tokens.clone() {
            for head in unit.heads.clone() {
                let at = scratch.q.len();
                scratch.q.resize(at + dim, 0.0);
                self.queries.q.read_f32(token, head, &mut scratch.q[at..]);
            }
        }
        let rows = scratch.q.chunks(dim);
        match &mut scratch.query {
            Some(q) if q.fits(&self.loops, dim) => q.refill(rows),
            other => other.insert(QueryRows::empty(self.loops, dim)).refill(rows),
        }
    }

    /// Normalised output and lse of one row of the state; `result` is `[dim_v + 1]`.
    pub(super) fn finish(&self, x: &Scratch, row: usize, result: &mut [f32]) {
        let dim_v = self.pool.layout().dim_v;
        let o_stride = dim_v.next_multiple_of(32);
        let (l, m) = (x.l[row], x.m[row]);
        let (o, lse) = result.split_at_mut(dim_v);
        if l == 0.0 {
            o.fill(0.0);
            lse[0] = f32::NEG_INFINITY;
            return;
        }
        arch::finish_row(self.loops.pairs, &x.o[row * o_stride..(row + 1) * o_stride], o);
        o.iter_mut().for_each(|v| *v /= l);
        lse[0] = m + l.log2();
    }
}
