//! Attention of many rows on the device: its specialisations, and how calls over listed blocks are cut.

use super::{AttendSpec, TILE, WARPS, Work, check_rows, describe, merge_of, seen_by, side_bytes};
use crate::attend::{BlockLists, Listed, Out, Params, Queries};
use crate::cuda::Macros;
use crate::cuda::params::{AttendParams, MergeUnitsParams, Picked, PrefillParams, Unit, type_code};
use crate::{DType, Error, KvPool, PageLists};

/// Tokens that a warp fetches at once.
const GROUP: usize = 16;

/// Times 16 rows of a warp: two where registers have room for them.
pub(super) const fn row_tiles(dim: usize, dtype: DType) -> usize {
    if matches!(dtype, DType::F32) || dim > 128 { 1 } else { 2 }
}

/// Rings of so many stages, and queries behind them.
pub(super) const fn tall_bytes(dim: usize, dtype: DType, stages: usize) -> usize {
    WARPS * side_bytes(dim * dtype.size()) * (2 * stages + row_tiles(dim, dtype))
}

/// A specialisation of `attend_prefill.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefillSpec {
    /// Dimensions of K and V.
    pub dim: usize,
    /// Element type of K and V.
    pub dtype: DType,
    /// Listed blocks instead of all tokens.
    pub blocks: bool,
    /// Hopper's `wgmma` instead of `mma.sync`: compute capability 9.0, and [`PrefillSpec::has_wgmma`].
    pub wgmma: bool,
}

impl PrefillSpec {
    const STAGES: usize = 2;

    /// All that there are kernels for, without those of `wgmma`.
    pub fn all() -> impl Iterator<Item = PrefillSpec> {
        let wide = AttendSpec::all().filter(|spec| spec.wide);
        wide.map(|AttendSpec { dim, dtype, slots, .. }| PrefillSpec {
            dim,
            dtype,
            blocks: slots,
            wgmma: false,
        })
    }

    /// Those of `wgmma`.
    pub fn hopper() -> impl Iterator<Item = PrefillSpec> {
        Self::all().filter(Self::has_wgmma).map(|spec| PrefillSpec { wgmma: true, ..spec })
    }

    /// Whether there is a kernel with `wgmma` for this dimension and type.
    #[must_use]
    pub fn has_wgmma(&self) -> bool {
        self.dtype != DType::F32 && [64, 128].contains(&self.dim)
    }

    /// Threads of a block.
    #[must_use]
    pub const fn threads(&self) -> u32 {
        if self.wgmma { 256 } else { 128 }
    }

    /// Rows of a unit at most.
    #[must_use]
    pub const fn rows(&self) -> usize {
        WARPS * row_tiles(self.dim, self.dtype) * 16
    }

    /// Macros to compile `attend_prefill.cu` with.
    #[must_use]
    pub fn macros(&self) -> Macros {
        vec![
            ("KV_D", self.dim as u32),
            ("KV_TY", type_code(self.dtype)),
            ("KV_BLOCKS", u32::from(self.blocks)),
            ("KV_SLOTS", 0),
            ("KV_STAGES", Self::STAGES as u32),
            ("KV_WGMMA", u32::from(self.wgmma)),
        ]
    }

    /// Dynamic shared memory of a block, in bytes: rings, queries, and where listed tokens lie.
    #[must_use]
    pub const fn shared_bytes(&self) -> usize {
        let bases = if self.blocks { Self::STAGES * WARPS * 4 } else { 0 };
        tall_bytes(self.dim, self.dtype, Self::STAGES) + bases
    }

    /// What the merge behind the attention is told.
    #[must_use]
    pub fn merge_of(&self, p: &PrefillParams, work: &Work) -> MergeUnitsParams {
        let spec = AttendSpec { dim: self.dim, dtype: self.dtype, slots: false, wide: true };
        MergeUnitsParams { unit_rows: self.rows() as u32, ..merge_of(&spec, &p.call, work) }
    }
}

/// The kernel for a call over pages, or over listed blocks of them, and what it is told of tensors and rules.
/// Addresses of lists, work and partial results are left at 0, for the caller to fill in.
///
/// # Errors
/// Those of [`describe`]; [`Error`] too if block lists do not fit, or have columns.
pub fn describe_prefill(
    queries: &Queries,
    (pool, lists): (&KvPool, &PageLists),
    blocks: Option<&BlockLists>,
    params: &Params,
    out: &Out,
) -> Result<(PrefillSpec, PrefillParams), Error> {
    let (spec, call) = describe(queries, &Listed::Pages(pool, lists), params, out)?;
    let AttendSpec { dim, dtype, .. } = spec;
    let spec = PrefillSpec { dim, dtype, blocks: blocks.is_some(), wgmma: false };
    let Some(blocks) = blocks else {
        let p = PrefillParams { call, blocks: 0, picked: 0, key_block: 0, lists_per_head: 1 };
        return Ok((spec, p));
    };
    if let Some(columns) = blocks.columns {
        return Err(Error::shape("columns on the device", "none", columns.tokens.len()));
    }
    blocks.check(queries, pool, lists, (call.q_heads / call.group) as usize)?;
    let (group, lists_per_head) =
        if blocks.per_query_head { (1, call.group) } else { (call.group, 1) };
    let call = AttendParams { group, ..call };
    let key_block = blocks.key_block as u32;
    Ok((spec, PrefillParams { call, blocks: 0, picked: 0, key_block, lists_per_head }))
}

impl Work {
    /// Cuts a call over listed blocks for `workers` blocks that run at once, in units of up to `rows` rows that
    /// share a list; and what of the lists each unit reads.
    ///
    /// # Errors
    /// [`Error`] if queries and lists do not fit, or units have no rows.
    pub fn of_blocks(
        queries: &Queries,
        (pool, lists): (&KvPool, &PageLists),
        blocks: &BlockLists,
        params: &Params,
        rows: usize,
        workers: usize,
    ) -> Result<(Work, Vec<Picked>), Error> {
        let listed = Listed::Pages(pool, lists);
        let kv_heads = listed.check(queries, params)?;
        check_rows(rows)?;
        blocks.check(queries, pool, lists, kv_heads)?;
        let q_heads = queries.q.shape()[1];
        let heads = if blocks.per_query_head { q_heads } else { kv_heads };
        let (group, lists_per_head) = (q_heads / heads, heads / kv_heads);
        let (_, source) = listed.source();
        let (mut units, mut picked, mut list) = (Vec::new(), Vec::new(), 0);
        for (sequence, q) in queries.indptr.windows(2).enumerate() {
            let all = (q[1] - q[0]) as usize * group;
            for head in 0..heads {
                for begin in (0..all).step_by(blocks.query_block * group) {
                    let own = blocks.indptr[list] as usize..blocks.indptr[list + 1] as usize;
                    list += 1;
                    let end = all.min(begin + blocks.query_block * group);
                    for packed in (begin..end).step_by(rows) {
                        let unit = Unit {
                            list: source.list(sequence, head / lists_per_head, kv_heads) as u32,
                            head: head as u32,
                            first_row: q[0],
                            packed: packed as u32,
                            rows: rows.min(end - packed) as u32,
                            ..bytemuck::Zeroable::zeroed()
                        };
                        let seen = seen_by(queries, &listed, params, &unit, group as u32);
                        let ids = &blocks.blocks[own.clone()];
                        let token = |block: u32| block as usize * blocks.key_block;
                        let first = ids.partition_point(|&id| token(id + 1) <= seen.start);
                        let end = ids.partition_point(|&id| token(id) < seen.end);
                        let n = end.saturating_sub(first) as u32;
                        picked.push(Picked { first: (own.start + first) as u32, n });
                        units.push(unit);
                    }
                }
            }
        }
        let tiles = |p: &Picked| (p.n as usize * (blocks.key_block / GROUP)).div_ceil(TILE / GROUP);
        let tiles = picked.iter().map(|p| 0..tiles(p) as u32).collect();
        Ok((Work::cut_at(units, tiles, workers), picked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_into_shared_memory() {
        // Two of d = 128 share an SM of an H200; one of everything fits into an A100's.
        let spec = PrefillSpec { dim: 128, dtype: DType::Bf16, blocks: true, wgmma: false };
        assert_eq!((spec.rows(), spec.shared_bytes()), (128, (96 << 10) + 32));
        assert!(2 * (spec.shared_bytes() + 1024) <= 228 << 10);
        assert!(PrefillSpec::all().all(|spec| spec.shared_bytes() <= 163 << 10));
        assert_eq!(PrefillSpec::all().count(), 2 * (5 + 5 + 4));
    }
}
