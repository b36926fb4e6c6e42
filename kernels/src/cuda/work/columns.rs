//! Column sums of attention probabilities: specialisations, and the cut into blocks.

use bytemuck::Zeroable;

use super::{AttendSpec, inputs, side_bytes};
use crate::attend::{Listed, Params, Queries};
use crate::cuda::Macros;
use crate::cuda::params::{ColumnsParams, ColumnsTile, Fold, type_code};
use crate::{DType, Error};

/// A specialisation of `columns.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ColumnsSpec {
    /// Dimensions of K.
    pub dim: usize,
    /// Element type of K.
    pub dtype: DType,
}

impl ColumnsSpec {
    /// Tokens of a block.
    pub const TOKENS: u32 = 256;

    /// All that there are kernels for.
    pub fn all() -> impl Iterator<Item = ColumnsSpec> {
        let narrow = AttendSpec::all().filter(|spec| !spec.slots && !spec.wide);
        narrow.map(|AttendSpec { dim, dtype, .. }| ColumnsSpec { dim, dtype })
    }

    /// Macros to compile `columns.cu` with.
    #[must_use]
    pub fn macros(&self) -> Macros {
        vec![
            ("KV_D", self.dim as u32),
            ("KV_TY", type_code(self.dtype)),
            ("KV_SLOTS", 0),
            ("KV_WIDE", 0),
            ("KV_STAGES", 2),
        ]
    }

    /// Dynamic shared memory of a block, in bytes: its keys, and two times 16 query rows.
    #[must_use]
    pub const fn shared_bytes(&self) -> usize {
        (Self::TOKENS as usize / 16 + 2) * side_bytes(self.dim * self.dtype.size())
    }
}

/// The kernel for a call, what it is told of tensors and rules, and its tiles. Sums are rows of `out_row`:
/// `[sequences][KV heads]` with [`Fold::Sum`], `[sequences][query heads]` with [`Fold::None`], a number per token
/// of the list. Addresses of lists, log-sum-exps, tiles and sums are left at 0, for the caller to fill in.
///
/// # Errors
/// [`Error`] if shapes do not fit, there is no kernel for the dimensions, slots are listed in place of pages,
/// another fold is wanted, pages are no multiple of 16 tokens, or a row does not start at 16 bytes.
pub fn columns(
    queries: &Queries,
    listed: &Listed,
    params: &Params,
    fold: Fold,
) -> Result<(ColumnsSpec, ColumnsParams, Vec<ColumnsTile>), Error> {
    if !matches!(fold, Fold::None | Fold::Sum) {
        return Err(Error::range("fold of columns", "None or Sum", format!("{fold:?}")));
    }
    let kv_heads = listed.check(queries, params)?;
    if matches!(listed, Listed::Slots(..)) {
        return Err(Error::shape("keys of columns", "pages", "slots"));
    }
    let attend = inputs(queries, listed, params, kv_heads)?;
    let rows_of_head = if fold == Fold::None { attend.group } else { 1 };
    let (pool, source) = listed.source();
    let (dim, dtype) = (pool.layout().dim_k, pool.dtype());
    AttendSpec { dim, dtype, slots: false, wide: false }.check()?;
    let mut tiles = Vec::new();
    for (sequence, q) in queries.indptr.windows(2).enumerate() {
        for head in 0..kv_heads {
            let list = source.list(sequence, head, kv_heads);
            let (mut lo, mut hi) = (usize::MAX, 0);
            for row in q[0]..q[1] {
                let position = queries.positions.map(|p| p[row as usize]);
                let seen = source.seen(list, position, params);
                if !seen.is_empty() {
                    (lo, hi) = (lo.min(seen.start), hi.max(seen.end));
                }
            }
            let out = (sequence * kv_heads + head) as u32 * rows_of_head;
            let tile = |base: usize| ColumnsTile {
                list: list as u32,
                head: head as u32,
                first_row: q[0],
                rows: q[1] - q[0],
                base: base as u32,
                out,
                lo: lo.min(hi) as u32,
                hi: hi as u32,
            };
            tiles.extend((0..source.len(list)).step_by(ColumnsSpec::TOKENS as usize).map(tile));
        }
    }
    let params = ColumnsParams { attend, fold: fold as u32, ..ColumnsParams::zeroed() };
    Ok((ColumnsSpec { dim, dtype }, params, tiles))
}
