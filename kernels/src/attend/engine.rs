//! Runs the plan: each segment is a run of tiles of one unit, a block of query rows of a KV head.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::merge::Merged;
use super::pick::Pick;
use super::sink::Sink;
use super::source::Source;
use super::walk::{SCRATCH, Scratch};
use super::{Out, Params, Queries};
use crate::arch::{self, Loops, TILE};
use crate::plan::{self, Plan, Segment};
use crate::{Executor, Isa, KvPool};

/// Query rows of a block at most: enough to reuse a tile in L1 many times, few enough for their
/// state to stay in L2.
const BLOCK_ROWS: usize = 64;
/// Ranges of the plan at most: a few per core of a large machine.
const RANGES_MAX: usize = 64;
/// What a range costs at least: so many tiles of four rows.
const COST_MIN: u64 = 8;
/// Units whose tiles a task counts.
const COUNTED: usize = 64;

/// Query rows that go through keys together.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) sequence: usize,
    /// KV head.
    pub(super) head: usize,
    /// Query heads of its group.
    pub(super) heads: Range<usize>,
    pub(super) list: usize,
    /// Query tokens, as rows of the query tensor.
    pub(super) tokens: Range<usize>,
    pub(super) first_tile: usize,
}

impl Unit {
    /// Query rows.
    pub(super) fn rows(&self) -> usize {
        self.tokens.len() * self.heads.len()
    }
}

/// One call: what is read, and the units it is cut into.
pub(super) struct Job<'a> {
    pub(super) queries: &'a Queries<'a>,
    pub(super) pool: &'a KvPool<'a>,
    pub(super) source: &'a Source<'a>,
    pub(super) pick: &'a Pick<'a>,
    pub(super) params: &'a Params<'a>,
    pub(super) loops: Loops,
    pub(super) units: Vec<Unit>,
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

/// Pieces of at most `most` rows that begin at multiples of `step` rows, or of as many of those as
/// fit.
fn pieces(all: Range<usize>, most: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    let whole = if step <= most { most / step * step } else { step };
    let end = all.end;
    all.step_by(whole).flat_map(move |from| {
        let to = from.saturating_add(whole).min(end);
        (from..to).step_by(most).map(move |at| at..(at + most).min(to))
    })
}

impl<'a> Job<'a> {
    /// Attention of checked input at a level.
    pub(super) fn new(
        isa: Isa,
        queries: &'a Queries,
        pool: &'a KvPool,
        source: &'a Source,
        pick: &'a Pick,
        params: &'a Params,
    ) -> Job<'a> {
        let loops = arch::table(isa, pool.dtype(), params.precise);
        let mut job = Job { queries, pool, source, pick, params, loops, units: Vec::new() };
        job.cut();
        job
    }

    /// Does all of it.
    pub(super) fn run(mut self, exec: &Executor, out: &mut Out) {
        let plan = self.plan(exec);
        let width = self.pool.layout().dim_v + 1;
        let (first_rows, rows) = self.partial_rows(&plan);
        let mut partials = vec![0f32; rows * width];
        let store = Partials { ptr: partials.as_mut_ptr(), width, first_rows };
        let sink = Sink::new(out);
        exec.run(plan.workers.len() - 1, |w| {
            SCRATCH.with_borrow_mut(|scratch| {
                for i in plan.workers[w] as usize..plan.workers[w + 1] as usize {
                    let then = plan.segments.get(i + 1);
                    self.segment(&plan.segments[i], then, &store, &sink, scratch);
                }
            });
        });
        self.merge(&plan, &partials, &store, &sink);
    }

    /// Cuts the query rows into units.
    fn cut(&mut self) {
        let sequences = self.queries.indptr.len() - 1;
        let kv_heads = self.source.kv_heads(self.pool, sequences);
        let group = self.queries.q.shape()[1] / kv_heads.max(1);
        for sequence in 0..sequences {
            let all =
                self.queries.indptr[sequence] as usize..self.queries.indptr[sequence + 1] as usize;
            let (most, heads, step) = self.pick.unit_shape(BLOCK_ROWS, all.len(), group.max(1));
            for head in 0..kv_heads {
                let list = self.source.list(sequence, head, kv_heads);
                let group = head * group..(head + 1) * group;
                for first in group.clone().step_by(heads) {
                    let heads = first..(first + heads).min(group.end);
                    for tokens in pieces(all.clone(), most, step) {
                        let heads = heads.clone();
                        self.units.push(Unit {
                            sequence,
                            head,
                            heads,
                            list,
                            tokens,
                            first_tile: 0,
                        });
                    }
                }
            }
        }
    }

    /// Counts the tiles of every unit and shares them out.
    fn plan(&mut self, exec: &Executor) -> Plan {
        let found: Vec<AtomicU64> = self.units.iter().map(|_| AtomicU64::new(0)).collect();
        exec.run(self.units.len().div_ceil(COUNTED), |task| {
            let units = task * COUNTED..((task + 1) * COUNTED).min(self.units.len());
            SCRATCH.with_borrow_mut(|scratch| {
                for u in units {
                    let tiles = self.tiles(&self.units[u], scratch);
                    let both = (tiles.start as u64) << 32 | tiles.len() as u64;
                    found[u].store(both, Ordering::Relaxed);
                }
            });
        });
        let (mut tiles, mut cost) = (Vec::new(), Vec::new());
        for (unit, found) in self.units.iter_mut().zip(&found) {
            let found = found.load(Ordering::Relaxed);
            unit.first_tile = (found >> 32) as usize;
            tiles.push(found as u32);
            cost.push(unit.rows().div_ceil(4) as u32);
        }
        plan::stream_k(&tiles, &cost, COST_MIN, RANGES_MAX)
    }

    /// Tiles that any row of a unit sees a token of.
    fn tiles(&self, unit: &Unit, scratch: &mut Scratch) -> Range<usize> {
        self.pick.open(unit, self.source, &mut scratch.opened);
        let reach = &scratch.opened.reach;
        let seen = unit.tokens.clone().map(|t| self.visible(unit.list, t, reach));
        let (start, end) = seen.fold((usize::MAX, 0), |(a, b), r| (a.min(r.start), b.max(r.end)));
        let first = start.min(end) / TILE;
        first..end.div_ceil(TILE)
    }

    /// First row of each partial result in the buffer, and the number of rows in all.
    fn partial_rows(&self, plan: &Plan) -> (Vec<usize>, usize) {
        let (mut first, mut at) = (Vec::new(), 0);
        for (u, unit) in self.units.iter().enumerate() {
            for _ in 0..plan_partials(plan, u) {
                first.push(at);
                at += unit.rows();
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
        let width = self.pool.layout().dim_v + 1;
        self.pick.open(unit, self.source, &mut scratch.opened);
        self.attend(unit, tiles.clone(), then, scratch);
        let mut results = std::mem::take(&mut scratch.results);
        results.resize(unit.rows() * width, 0.0);
        for (r, result) in results.chunks_mut(width).enumerate() {
            self.finish(scratch, r, result);
        }
        self.mend(unit, tiles, &mut results, scratch);
        for (r, result) in results.chunks_mut(width).enumerate() {
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
    /// computed again, those that see the same tokens at a time, over exactly the tokens they see.
    fn mend(&self, unit: &Unit, tiles: Range<usize>, results: &mut [f32], scratch: &mut Scratch) {
        let sharing = scratch.opened.sharing();
        let masked = self.params.causal || self.params.window > 0;
        if sharing.is_none() && !(masked && unit.tokens.len() > 1) {
            return;
        }
        let width = self.pool.layout().dim_v + 1;
        let heads = sharing.unwrap_or(unit.heads.len());
        let parts = unit.heads.len() / heads;
        for (i, rows) in results.chunks_mut(width * heads).enumerate() {
            if rows.iter().any(|x| x.is_nan()) {
                let token = unit.tokens.start + i / parts;
                let first = unit.heads.start + i % parts * heads;
                let part =
                    Unit { tokens: token..token + 1, heads: first..first + heads, ..unit.clone() };
                self.attend(&part, tiles.clone(), None, scratch);
                for (g, result) in rows.chunks_mut(width).enumerate() {
                    self.finish(scratch, g, result);
                }
            }
        }
    }

    /// Writes a whole row, with the sink logit of its head joined in.
    fn write(&self, unit: &Unit, row: usize, result: &mut [f32], sink: &Sink) {
        let dim_v = self.pool.layout().dim_v;
        let (o, lse) = result.split_at_mut(dim_v);
        let head = unit.heads.start + row % unit.heads.len();
        let token = unit.tokens.start + row / unit.heads.len();
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
            for row in 0..unit.rows() {
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
