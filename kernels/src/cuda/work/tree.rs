//! Attention of draft trees among themselves on the device.

use super::prefill::{row_tiles, tall_bytes};
use super::{AttendSpec, WARPS, Work, check_rows, describe};
use crate::attend::{Listed, Out, Params, Queries, Trees};
use crate::cuda::Macros;
use crate::cuda::params::{TreeParams, Unit, type_code};
use crate::{DType, Error};

/// A specialisation of `attend_tree.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TreeSpec {
    /// Dimensions of K and V.
    pub dim: usize,
    /// Element type of K and V.
    pub dtype: DType,
}

impl TreeSpec {
    const STAGES: usize = 1;

    /// All that there are kernels for.
    pub fn all() -> impl Iterator<Item = TreeSpec> {
        let each = AttendSpec::all().filter(|spec| spec.wide && spec.slots);
        each.map(|AttendSpec { dim, dtype, .. }| TreeSpec { dim, dtype })
    }

    /// Rows of a unit at most.
    #[must_use]
    pub const fn rows(&self) -> usize {
        WARPS * row_tiles(self.dim, self.dtype) * 16
    }

    /// Macros to compile `attend_tree.cu` with.
    #[must_use]
    pub fn macros(&self) -> Macros {
        vec![
            ("KV_D", self.dim as u32),
            ("KV_TY", type_code(self.dtype)),
            ("KV_SLOTS", 1),
            ("KV_STAGES", Self::STAGES as u32),
        ]
    }

    /// Dynamic shared memory of a block, in bytes: nodes and queries.
    #[must_use]
    pub const fn shared_bytes(&self) -> usize {
        tall_bytes(self.dim, self.dtype, Self::STAGES)
    }
}

/// What a launch over trees walks: one block for each unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeWork {
    /// Blocks of query rows.
    pub units: Vec<Unit>,
    /// Offsets of the lists of nodes.
    pub indptr: Vec<u32>,
    /// Nodes as slots, each list in the order of its tree.
    pub slots: Vec<u32>,
    /// Of each query row, a bit for each node of its tree that it sees.
    pub ancestors: Vec<u64>,
}

impl TreeWork {
    /// Lists nodes, and what each sees: with [`Params::window`] only so many nodes up from its own.
    ///
    /// # Errors
    /// [`Error`] if queries, trees and nodes do not fit, a tree has more than 64 nodes, or units have no rows.
    pub fn new(
        queries: &Queries,
        trees: &Trees,
        nodes: &Listed,
        params: &Params,
        rows: usize,
    ) -> Result<TreeWork, Error> {
        let kv_heads = trees.check(queries, nodes, params)?;
        check_rows(rows)?;
        let ancestors = trees.bits(params.window)?;
        let group = queries.q.shape()[1] / kv_heads;
        let (pool, source) = nodes.source();
        let list = |sequence, head| source.list(sequence, head, kv_heads);
        let units = Work::units(queries.indptr, (kv_heads, group), rows, list);
        let page = pool.layout().page_tokens as u32;
        let (mut indptr, mut slots) = (vec![0], Vec::new());
        for list in 0..source.lists() {
            match nodes {
                Listed::Pages(_, p) => {
                    let frames = &p.frames[p.indptr[list] as usize..];
                    let slot = |i: u32| frames[(i / page) as usize] * page + i % page;
                    slots.extend((0..p.lens[list]).map(slot));
                }
                Listed::Slots(_, s) => {
                    let own = s.indptr[list] as usize..s.indptr[list + 1] as usize;
                    slots.extend_from_slice(&s.slots[own]);
                }
            }
            indptr.push(slots.len() as u32);
        }
        Ok(TreeWork { units, indptr, slots, ancestors })
    }
}

/// The kernel for the trees of a call, and what it is told of tensors and rules. Its result is that of the
/// nodes alone, without sinks: to be merged with the context's. Addresses of lists and work are left at 0, for
/// the caller to fill in.
///
/// # Errors
/// Those of [`describe`]; [`Error`] too if queries, trees and nodes do not fit.
pub fn describe_tree(
    queries: &Queries,
    trees: &Trees,
    nodes: &Listed,
    params: &Params,
    out: &Out,
) -> Result<(TreeSpec, TreeParams), Error> {
    trees.check(queries, nodes, params)?;
    let (spec, call) = describe(queries, nodes, &Trees::params(params), out)?;
    let AttendSpec { dim, dtype, .. } = spec;
    Ok((TreeSpec { dim, dtype }, TreeParams { call, ancestors: 0 }))
}
