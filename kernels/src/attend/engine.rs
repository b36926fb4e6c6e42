//! Runs the plan: each segment is a run of tiles of one (sequence, KV head, block of query rows).

use std::cell::RefCell;
use std::ops::Range;

use super::merge::Merged;
use super::sink::Sink;
use super::source::{Rows, Source, Tiles};
use super::{Out, Params, Queries};
use crate::arch::{self, BLOCK, Loops, Step, TILE};
use crate::plan::{self, Plan, Segment};
use crate::rows::QueryRows;
use crate::{Error, Executor, Isa, KvPool};

/// Query rows of a block at most: enough to reuse a tile in L1 many times, few enough for their
/// state to stay in L2.
const BLOCK_ROWS: usize = 64;
/// Ranges of the plan at most: a few per core of a large machine.
const RANGES_MAX: usize = 64;

/// One (sequence, KV head, block of query tokens).
#[derive(Clone, Debug)]
struct Unit {
    head: usize,
    list: usize,
    /// Query tokens, as rows of the query tensor.
    tokens: Range<usize>,
    first_tile: usize,
}

struct Job<'a> {
    queries: &'a Queries<'a>,
    pool: &'a KvPool<'a>,
    source: &'a Source<'a>,
    params: &'a Params<'a>,
    loops: Loops,
    group: usize,
    units: Vec<Unit>,
}

/// Buffers of a thread, reused between calls.
struct Scratch {
    tiles: Tiles,
    q: Vec<f32>,
    query: Option<QueryRows>,
    s: Vec<f32>,
    o: Vec<f32>,
    m: Vec<f32>,
    l: Vec<f32>,
    alpha: Vec<f32>,
    masks: Vec<u64>,
    results: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

impl Scratch {
    fn new() -> Scratch {
        Scratch {
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

pub(super) fn run(
    isa: Isa,
    queries: &Queries,
    pool: &KvPool,
    source: &Source,
    params: &Params,
    exec: &Executor,
    out: &mut Out,
) -> Result<(), Error> {
    let sequences = queries.indptr.len() - 1;
    let kv_heads = source.kv_heads(pool, sequences);
    let group = queries.q.shape()[1] / kv_heads.max(1);
    let loops = arch::table(isa, pool.dtype(), params.precise);
    let mut job = Job { queries, pool, source, params, loops, group, units: Vec::new() };
    let plan = job.plan(sequences, kv_heads);
    let width = pool.layout().dim_v + 1;
    let (first_rows, rows) = job.partial_rows(&plan);
    let mut partials = vec![0f32; rows * width];
    let store = Partials { ptr: partials.as_mut_ptr(), width, first_rows };
    let sink = Sink::new(out);
    exec.run(plan.workers.len() - 1, |w| {
        SCRATCH.with_borrow_mut(|scratch| {
            for i in plan.workers[w] as usize..plan.workers[w + 1] as usize {
                job.segment(&plan.segments[i], plan.segments.get(i + 1), &store, &sink, scratch);
            }
        });
    });
    job.merge(&plan, &partials, &store, &sink);
    Ok(())
}

fn plan_partials(plan: &Plan, unit: usize) -> usize {
    (plan.reduce[unit + 1] - plan.reduce[unit]) as usize
}

/// Partial results of all segments; each segment writes its own rows.
struct Partials {
    ptr: *mut f32,
    /// Floats of a row: the output, then its lse.
    width: usize,
    /// First row of each partial result.
    first_rows: Vec<usize>,
}

// SAFETY: segments write disjoint rows (one partial number each) and nobody reads until all end.
unsafe impl Sync for Partials {}

impl Job<'_> {
    fn rows(&self, unit: usize) -> usize {
        self.units[unit].tokens.len() * self.group
    }

    fn position(&self, token: usize) -> u32 {
        self.queries.positions.map_or(u32::MAX - 1, |p| p[token])
    }

    /// Tokens of the unit's list that a query token sees, as a range of list indices.
    fn visible(&self, list: usize, token: usize) -> Range<usize> {
        let position = self.position(token);
        let end = if self.params.causal {
            self.source.visible(list, position)
        } else {
            self.source.len(list)
        };
        let start = match self.params.window {
            0 => 0,
            w => self.source.window_start(list, position, w).min(end),
        };
        start..end
    }

    fn plan(&mut self, sequences: usize, kv_heads: usize) -> Plan {
        let block = (BLOCK_ROWS / self.group.max(1)).max(1);
        let (mut tiles, mut cost) = (Vec::new(), Vec::new());
        for sequence in 0..sequences {
            let all =
                self.queries.indptr[sequence] as usize..self.queries.indptr[sequence + 1] as usize;
            for head in 0..kv_heads {
                let list = self.source.list(sequence, head, kv_heads);
                for from in all.clone().step_by(block) {
                    let tokens = from..(from + block).min(all.end);
                    let seen = tokens.clone().map(|t| self.visible(list, t));
                    let (start, end) =
                        seen.fold((usize::MAX, 0), |(a, b), r| (a.min(r.start), b.max(r.end)));
                    let first_tile = start.min(end) / TILE;
                    tiles.push((end.div_ceil(TILE) - first_tile) as u32);
                    cost.push((tokens.len() * self.group).div_ceil(4) as u32);
                    self.units.push(Unit { head, list, tokens, first_tile });
                }
            }
        }
        plan::stream_k(&tiles, &cost, RANGES_MAX)
    }

    /// First row of each partial result in the buffer, and the number of rows in all.
    fn partial_rows(&self, plan: &Plan) -> (Vec<usize>, usize) {
        let (mut first, mut at) = (Vec::new(), 0);
        for unit in 0..self.units.len() {
            for _ in 0..plan_partials(plan, unit) {
                first.push(at);
                at += self.rows(unit);
            }
        }
        (first, at)
    }

    fn segment(
        &self,
        segment: &Segment,
        then: Option<&Segment>,
        partials: &Partials,
        sink: &Sink,
        scratch: &mut Scratch,
    ) {
        let unit = &self.units[segment.list as usize];
        let tiles =
            unit.first_tile + segment.begin as usize..unit.first_tile + segment.end as usize;
        let dim_v = self.pool.layout().dim_v;
        let rows = self.rows(segment.list as usize);
        self.attend(unit, unit.tokens.clone(), tiles.clone(), then, scratch);
        let mut results = std::mem::take(&mut scratch.results);
        results.resize(rows * (dim_v + 1), 0.0);
        for (r, result) in results.chunks_mut(dim_v + 1).enumerate() {
            self.finish(scratch, r, result);
        }
        if unit.tokens.len() > 1 && (self.params.causal || self.params.window > 0) {
            self.mend(unit, tiles, &mut results, scratch);
        }
        for (r, result) in results.chunks_mut(dim_v + 1).enumerate() {
            match segment.partial {
                None => self.write(unit, r, result, sink),
                Some(p) => {
                    let at = partials.first_rows[p as usize] + r;
                    // SAFETY: row `at` belongs to this segment alone, see `Partials`.
                    let to = unsafe {
                        let first = partials.ptr.add(at * partials.width);
                        std::slice::from_raw_parts_mut(first, partials.width)
                    };
                    to.copy_from_slice(result);
                }
            }
        }
        scratch.results = results;
    }

    /// A masked token has weight 0, but 0 times a NaN value is NaN: rows that came out NaN are
    /// computed again, one query token at a time, over exactly the tokens they see.
    fn mend(&self, unit: &Unit, tiles: Range<usize>, results: &mut [f32], scratch: &mut Scratch) {
        let width = self.pool.layout().dim_v + 1;
        let of_token = width * self.group;
        for (i, rows) in results.chunks_mut(of_token).enumerate() {
            if rows.iter().any(|x| x.is_nan()) {
                let token = unit.tokens.start + i;
                self.attend(unit, token..token + 1, tiles.clone(), None, scratch);
                for (g, result) in rows.chunks_mut(width).enumerate() {
                    self.finish(scratch, g, result);
                }
            }
        }
    }

    /// Runs query tokens over tiles of the unit's list, leaving the state in `scratch`. The first
    /// rows of the segment that comes `then` are asked for meanwhile.
    fn attend(
        &self,
        unit: &Unit,
        tokens: Range<usize>,
        tiles: Range<usize>,
        then: Option<&Segment>,
        scratch: &mut Scratch,
    ) {
        self.load_queries(unit, tokens.clone(), scratch);
        let rows = tokens.len() * self.group;
        let layout = self.pool.layout();
        let o_stride = layout.dim_v.next_multiple_of(32);
        scratch.reset(rows, o_stride);
        let seen: Vec<Range<usize>> = tokens.map(|t| self.visible(unit.list, t)).collect();
        let one = if seen.len() == 1 { Some(seen[0].clone()) } else { None };
        let fill = |index: usize, rows: Rows| {
            let (unit, index) = match then {
                _ if index < tiles.end => (unit, index),
                Some(s) if s.begin < s.end => {
                    let unit = &self.units[s.list as usize];
                    (unit, unit.first_tile + s.begin as usize)
                }
                _ => return 0,
            };
            self.source.fill(self.pool, unit.list, unit.head, index, rows)
        };
        scratch.tiles.advance(|rows| fill(tiles.start, rows));
        for index in tiles.clone() {
            scratch.tiles.advance(|rows| fill(index + 1, rows));
            let all = index * TILE..index * TILE + scratch.tiles.n;
            // One query token: cut the tile to what it sees. Several: mask each row.
            let cut = one.clone().unwrap_or(all.clone());
            let (a, b) = (cut.start.max(all.start), cut.end.min(all.end));
            if a < b {
                if b - a < all.len() {
                    scratch.tiles.keep(a - all.start..b - all.start);
                }
                let masked = one.is_none() && self.fill_masks(&seen, &all, scratch);
                self.tile(rows, o_stride, masked, scratch);
            }
        }
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

    /// Fills one mask per row; false if every row sees the whole tile.
    fn fill_masks(&self, seen: &[Range<usize>], all: &Range<usize>, scratch: &mut Scratch) -> bool {
        if seen.iter().all(|r| r.start <= all.start && r.end >= all.end) {
            return false;
        }
        scratch.masks.clear();
        for r in seen {
            let clamped = |t: usize| t.clamp(all.start, all.end) - all.start;
            let below = |n: usize| if n >= 64 { u64::MAX } else { (1u64 << n) - 1 };
            let mask = below(clamped(r.end)) & !below(clamped(r.start));
            scratch.masks.extend(std::iter::repeat_n(mask, self.group));
        }
        true
    }

    fn load_queries(&self, unit: &Unit, tokens: Range<usize>, scratch: &mut Scratch) {
        let dim = self.pool.layout().dim_k;
        let heads = unit.head * self.group..(unit.head + 1) * self.group;
        scratch.q.clear();
        for token in tokens {
            for head in heads.clone() {
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
    fn finish(&self, x: &Scratch, row: usize, result: &mut [f32]) {
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

    /// Writes a whole row, with the sink logit of its head joined in.
    fn write(&self, unit: &Unit, row: usize, result: &mut [f32], sink: &Sink) {
        let dim_v = self.pool.layout().dim_v;
        let (o, lse) = result.split_at_mut(dim_v);
        let head = unit.head * self.group + row % self.group;
        let token = unit.tokens.start + row / self.group;
        if let Some(sinks) = self.params.sinks {
            let logit = sinks[head] * std::f32::consts::LOG2_E;
            let highest = lse[0].max(logit);
            let (part, extra) = ((lse[0] - highest).exp2(), (logit - highest).exp2());
            if part + extra > 0.0 {
                o.iter_mut().for_each(|v| *v *= part / (part + extra));
                lse[0] = highest + (part + extra).log2();
            }
        }
        // SAFETY: a (token, head) belongs to one unit, which one worker writes or merges.
        unsafe { sink.write(token, head, o, lse[0]) }
    }

    /// Joins the partial results of units that were cut, in tile order.
    fn merge(&self, plan: &Plan, data: &[f32], partials: &Partials, sink: &Sink) {
        let dim_v = self.pool.layout().dim_v;
        let mut result = vec![0f32; dim_v + 1];
        for (u, unit) in self.units.iter().enumerate() {
            let parts = plan.reduce[u] as usize..plan.reduce[u + 1] as usize;
            if parts.is_empty() {
                continue;
            }
            for row in 0..self.rows(u) {
                let part = |p: usize| {
                    let at = (partials.first_rows[p] + row) * partials.width;
                    data[at..at + partials.width].split_at(dim_v)
                };
                let (o, lse) = result.split_at_mut(dim_v);
                let mut sum = Merged::new(o, parts.clone().map(|p| part(p).1[0]));
                for p in parts.clone() {
                    let (o, lse) = part(p);
                    if sum.takes(lse[0]) {
                        sum.add(o, lse[0]);
                    }
                }
                lse[0] = sum.finish();
                self.write(unit, row, &mut result, sink);
            }
        }
    }
}
