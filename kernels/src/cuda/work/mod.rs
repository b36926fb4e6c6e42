//! How the work of a device attention is cut, and which specialisation of the kernel does it.

mod boxed;
mod cluster;
mod codec;
mod columns;
mod plan;
mod prefill;
mod score;
mod tokens;
mod tree;

use std::ops::Range;

use bytemuck::Zeroable;

use super::Macros;
use super::params::{AttendParams, MergeUnitsParams, Segment, Unit, type_code};
use crate::attend::{Listed, Out, Params, Queries};
use crate::plan::stream_k;
use crate::{DType, Error};

pub use boxed::BoxedScoreSpec;
pub use cluster::{KMeansSpec, metric_code, pieces};
pub use codec::{AttendCodesSpec, ExpwSpec, expw_status};
pub use columns::{ColumnsSpec, columns};
pub use plan::PlanRoom;
pub use prefill::{PrefillSpec, describe_prefill};
pub use score::ScoreSpec;
pub use tokens::TokensSpec;
pub use tree::{TreeSpec, TreeWork, describe_tree};

/// Tokens of a tile.
pub const TILE: usize = 64;
/// Tiles of a range at least: under 128 tokens, a merge costs more than the split gains (FlashInfer).
pub const TILES_MIN: u32 = 2;
/// Warps of a block.
const WARPS: usize = 4;

/// Bytes of 16 rows in a ring: a chunk of padding keeps rows out of each other's banks.
const fn side_bytes(row_bytes: usize) -> usize {
    let chunks = row_bytes / 16;
    16 * 16 * if chunks.is_multiple_of(8) { chunks } else { chunks + 1 }
}

/// A specialisation of `attend_pages.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttendSpec {
    /// Dimensions of K and V.
    pub dim: usize,
    /// Element type of K and V.
    pub dtype: DType,
    /// Slots instead of pages.
    pub slots: bool,
    /// Units of up to 64 rows instead of 16.
    pub wide: bool,
}

impl AttendSpec {
    /// Dimensions there are kernels for.
    pub const DIMS: [usize; 5] = [64, 80, 96, 128, 256];

    /// Checks that the kernel can be built.
    ///
    /// # Errors
    /// [`Error::Range`] if there is no kernel of this dimension and type.
    pub fn check(&self) -> Result<(), Error> {
        let most = if self.dtype == DType::F32 { 128 } else { 256 };
        if Self::DIMS.contains(&self.dim) && self.dim <= most {
            return Ok(());
        }
        let expected = format!("one of {:?} up to {most} in {}", Self::DIMS, self.dtype);
        Err(Error::range("dim on the device", expected, self.dim))
    }

    /// All that there are kernels for.
    pub fn all() -> impl Iterator<Item = AttendSpec> {
        let shapes = [(false, false), (false, true), (true, false), (true, true)];
        DType::ALL.into_iter().flat_map(move |dtype| {
            let of = move |dim| shapes.map(|(slots, wide)| AttendSpec { dim, dtype, slots, wide });
            Self::DIMS.into_iter().flat_map(of).filter(|spec| spec.check().is_ok())
        })
    }

    /// Rows of a unit at most.
    #[must_use]
    pub const fn rows(&self) -> usize {
        if self.wide { 64 } else { 16 }
    }

    const fn row_bytes(&self) -> usize {
        self.dim * self.dtype.size()
    }

    const fn stages(&self) -> usize {
        if self.row_bytes() <= 256 { 3 } else { 2 }
    }

    /// Macros to compile `attend_pages.cu` with.
    #[must_use]
    pub fn macros(&self) -> Macros {
        vec![
            ("KV_D", self.dim as u32),
            ("KV_TY", type_code(self.dtype)),
            ("KV_SLOTS", u32::from(self.slots)),
            ("KV_WIDE", u32::from(self.wide)),
            ("KV_STAGES", self.stages() as u32),
        ]
    }

    /// Dynamic shared memory of a block, in bytes: the rings, and queries that registers have no room for.
    #[must_use]
    pub const fn shared_bytes(&self) -> usize {
        let side = side_bytes(self.row_bytes());
        let queries = if matches!(self.dtype, DType::F32) || self.dim > 128 { side } else { 0 };
        WARPS * (self.stages() * 2 * side + queries)
    }
}

/// The cut of one call: units of query rows, and their tiles by worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Blocks of query rows.
    pub units: Vec<Unit>,
    /// All segments, by worker.
    pub segments: Vec<Segment>,
    /// Worker `w` does `segments[workers[w]..workers[w + 1]]`.
    pub workers: Vec<u32>,
    /// Number of partial results.
    pub partials: usize,
}

/// The tokens of its list that any of the unit's rows sees, as a range.
fn seen_by(
    queries: &Queries,
    listed: &Listed,
    params: &Params,
    unit: &Unit,
    group: u32,
) -> Range<usize> {
    let (_, source) = listed.source();
    let row = |packed: u32| (unit.first_row + packed / group) as usize;
    let (mut start, mut end) = (usize::MAX, 0);
    for token in row(unit.packed)..=row(unit.packed + unit.rows - 1) {
        let position = queries.positions.map(|p| p[token]);
        let seen = source.seen(unit.list as usize, position, params);
        (start, end) = (start.min(seen.start), end.max(seen.end));
    }
    start.min(end)..end
}

impl Work {
    /// Cuts a call for `workers` blocks that run at once, in units of `rows` rows.
    ///
    /// # Errors
    /// [`Error`] if queries and lists do not fit, or units have no rows.
    pub fn new(
        queries: &Queries,
        listed: &Listed,
        params: &Params,
        rows: usize,
        workers: usize,
    ) -> Result<Work, Error> {
        let kv_heads = listed.check(queries, params)?;
        check_rows(rows)?;
        let (_, source) = listed.source();
        let group = queries.q.shape()[1] / kv_heads;
        let list = |sequence, head| source.list(sequence, head, kv_heads);
        let units = Work::units(queries.indptr, (kv_heads, group), rows, list);
        let tiles = |unit: &Unit| {
            let seen = seen_by(queries, listed, params, unit, group as u32);
            (seen.start / TILE) as u32..seen.end.div_ceil(TILE) as u32
        };
        Ok(Work::cut(units, tiles, workers))
    }

    /// The units of a call, uncut: up to `rows` of the rows that a sequence has for a KV head. Sequence `b` owns
    /// query rows `q_indptr[b]..q_indptr[b + 1]`; `list` names the list of a sequence and KV head.
    ///
    /// # Panics
    /// If `rows` is 0.
    pub fn units(
        q_indptr: &[u32],
        (kv_heads, group): (usize, usize),
        rows: usize,
        list: impl Fn(usize, usize) -> usize,
    ) -> Vec<Unit> {
        let mut units = Vec::new();
        for (sequence, q) in q_indptr.windows(2).enumerate() {
            let all = (q[1] - q[0]) as usize * group;
            for head in 0..kv_heads {
                units.extend((0..all).step_by(rows).map(|packed| Unit {
                    list: list(sequence, head) as u32,
                    head: head as u32,
                    first_row: q[0],
                    packed: packed as u32,
                    rows: rows.min(all - packed) as u32,
                    ..Unit::zeroed()
                }));
            }
        }
        units
    }

    /// Cuts units for `workers` blocks that run at once; `tiles` says what of its list a unit reads.
    pub fn cut(units: Vec<Unit>, tiles: impl Fn(&Unit) -> Range<u32>, workers: usize) -> Work {
        let tiles = units.iter().map(tiles).collect();
        Work::cut_at(units, tiles, workers)
    }

    /// The same with the tiles of each unit.
    fn cut_at(mut units: Vec<Unit>, tiles: Vec<Range<u32>>, workers: usize) -> Work {
        let counts: Vec<u32> = tiles.iter().map(|t| t.end - t.start).collect();
        let plan = stream_k(&counts, &vec![1; counts.len()], u64::from(TILES_MIN), workers);
        for (unit, parts) in units.iter_mut().zip(plan.reduce.windows(2)) {
            (unit.partial, unit.reduce) = (parts[0], parts[1] - parts[0]);
        }
        let segment = |s: &crate::plan::Segment| Segment {
            unit: s.list,
            begin: tiles[s.list as usize].start + s.begin,
            end: tiles[s.list as usize].start + s.end,
            partial: s.partial.map_or(-1, |p| p as i32),
        };
        Work {
            units,
            segments: plan.segments.iter().map(segment).collect(),
            workers: plan.workers,
            partials: plan.reduce.last().map_or(0, |&n| n as usize),
        }
    }
}

/// The kernel for a call, and what it is told of tensors and rules. Addresses of lists, work and partial
/// results are left at 0, for the caller to fill in.
///
/// # Errors
/// [`Error`] if shapes do not fit, there is no kernel for the dimensions, pages are no multiple of 16 tokens,
/// or a row does not start at 16 bytes.
pub fn describe(
    queries: &Queries,
    listed: &Listed,
    params: &Params,
    out: &Out,
) -> Result<(AttendSpec, AttendParams), Error> {
    let kv_heads = listed.check_for(queries, params, out)?;
    let pool = listed.source().0;
    let layout = pool.layout();
    if layout.dim_v != layout.dim_k {
        return Err(Error::shape("dim_v on the device", layout.dim_k, layout.dim_v));
    }
    let group = queries.q.shape()[1] / kv_heads;
    let most = queries.indptr.windows(2).map(|w| (w[1] - w[0]) as usize * group).max();
    let spec = AttendSpec {
        dim: layout.dim_k,
        dtype: pool.dtype(),
        slots: matches!(listed, Listed::Slots(..)),
        wide: most > Some(16),
    };
    spec.check()?;
    let inputs = inputs(queries, listed, params, kv_heads)?;
    let (o, v) = (out.o.as_view(), layout.v_strides);
    aligned("out", o.row_ptr(0, 0), o.dtype(), &o.strides())?;
    aligned("v", pool.v_row(0, 0, 0), pool.dtype(), &v)?;
    let params = AttendParams {
        v: pool.v_row(0, 0, 0) as u64,
        o: o.row_ptr(0, 0) as u64,
        o_row: o.strides()[0],
        o_head: o.strides()[1],
        v_frame: v[0],
        v_head: if layout.kv_heads == 1 { 0 } else { v[1] },
        v_token: v[2],
        types: inputs.types | type_code(o.dtype()) << 8,
        ..inputs
    };
    Ok((spec, params))
}

/// What a kernel is told of queries, keys and rules, which were checked to fit each other.
fn inputs(
    queries: &Queries,
    listed: &Listed,
    params: &Params,
    kv_heads: usize,
) -> Result<AttendParams, Error> {
    let pool = listed.source().0;
    let layout = pool.layout();
    let page = layout.page_tokens;
    if matches!(listed, Listed::Pages(..)) && !page.is_multiple_of(16) {
        return Err(Error::range("page_tokens on the device", "a multiple of 16", page));
    }
    let (q, k) = (&queries.q, layout.k_strides);
    aligned("q", q.row_ptr(0, 0), q.dtype(), &q.strides())?;
    aligned("k", pool.k_row(0, 0, 0), pool.dtype(), &k)?;
    Ok(AttendParams {
        q: q.row_ptr(0, 0) as u64,
        k: pool.k_row(0, 0, 0) as u64,
        q_row: q.strides()[0],
        q_head: q.strides()[1],
        k_frame: k[0],
        // A pool of one head serves them all.
        k_head: if layout.kv_heads == 1 { 0 } else { k[1] },
        k_token: k[2],
        scale: params.scale,
        soft_cap: params.soft_cap,
        window: params.window,
        causal: u32::from(params.causal),
        page_tokens: page as u32,
        group: (q.shape()[1] / kv_heads) as u32,
        q_heads: q.shape()[1] as u32,
        types: type_code(q.dtype()),
        ..AttendParams::zeroed()
    })
}

/// Checks that units have rows.
fn check_rows(rows: usize) -> Result<(), Error> {
    if rows == 0 {
        return Err(Error::range("rows of a unit", "at least 1", rows));
    }
    Ok(())
}

/// Checks that rows start at multiples of 16 bytes.
fn aligned(what: &'static str, ptr: *const u8, dtype: DType, strides: &[i64]) -> Result<(), Error> {
    let elements = 16 / dtype.size() as i64;
    if (ptr as usize).is_multiple_of(16) && strides.iter().all(|s| s % elements == 0) {
        return Ok(());
    }
    let found = format!("address {ptr:p}, strides {strides:?} of {dtype}");
    Err(Error::shape(what, "rows that start at multiples of 16 bytes", found))
}

/// What the merge behind an attention is told, from what the attention was told.
#[must_use]
pub fn merge_of(spec: &AttendSpec, p: &AttendParams, work: &Work) -> MergeUnitsParams {
    MergeUnitsParams {
        part_o: p.part_o,
        part_lse2: p.part_lse2,
        units: p.units,
        sinks: p.sinks,
        o: p.o,
        lse2: p.lse2,
        o_row: p.o_row,
        o_head: p.o_head,
        units_n: work.units.len() as u32,
        unit_rows: spec.rows() as u32,
        dim: spec.dim as u32,
        group: p.group,
        q_heads: p.q_heads,
        o_type: p.types >> 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_leaves_room_for_the_next() {
        // What a block can have on an H200, and on an A100; two of d = 128 share an SM of the former.
        let spec = |dim, dtype| AttendSpec { dim, dtype, slots: false, wide: false };
        assert_eq!(spec(128, DType::Bf16).shared_bytes(), 96 << 10);
        assert!(2 * (spec(128, DType::Bf16).shared_bytes() + 1024) <= 228 << 10);
        for dtype in DType::ALL {
            for dim in AttendSpec::DIMS {
                let spec = spec(dim, dtype);
                assert!(spec.check().is_err() || spec.shared_bytes() <= 163 << 10, "{spec:?}");
            }
        }
        let clusters = KMeansSpec::all().map(|s| s.shared_bytes());
        let columns = ColumnsSpec::all().map(|s| s.shared_bytes());
        assert!(clusters.chain(columns).all(|bytes| bytes <= 163 << 10));
        let two = |s: AttendCodesSpec| 2 * (s.shared_bytes() + 1024) <= 228 << 10;
        assert!(AttendCodesSpec::all().all(two));
    }
}
