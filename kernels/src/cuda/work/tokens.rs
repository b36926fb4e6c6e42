//! Which specialisation weighs tokens, and what it is told.

use bytemuck::Zeroable;

use super::{AttendSpec, ScoreSpec, WARPS, inputs, side_bytes};
use crate::attend::{Listed, Params, Queries};
use crate::cuda::Macros;
use crate::cuda::params::{AttendParams, TokensParams, type_code};
use crate::{DType, Error};

/// A specialisation of `tokens.cu`. Its units of work hold whole groups: [`ScoreSpec::rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokensSpec {
    /// Dimensions of K, as [`AttendSpec::check`] has them.
    pub dim: usize,
    /// Element type of K.
    pub dtype: DType,
    /// Slots instead of pages.
    pub slots: bool,
}

impl TokensSpec {
    /// All that there are kernels for.
    pub fn all() -> impl Iterator<Item = TokensSpec> {
        AttendSpec::all().filter(|spec| !spec.wide).map(|spec| TokensSpec {
            dim: spec.dim,
            dtype: spec.dtype,
            slots: spec.slots,
        })
    }

    const fn row_bytes(&self) -> usize {
        self.dim * self.dtype.size()
    }

    const fn stages(&self) -> usize {
        if self.row_bytes() <= 256 { 4 } else { 3 }
    }

    /// Macros to compile `tokens.cu` with.
    #[must_use]
    pub fn macros(&self) -> Macros {
        vec![
            ("KV_D", self.dim as u32),
            ("KV_TY", type_code(self.dtype)),
            ("KV_SLOTS", u32::from(self.slots)),
            ("KV_WIDE", 0),
            ("KV_STAGES", self.stages() as u32),
        ]
    }

    /// Dynamic shared memory of a block of `score_tokens`, in bytes: the rings, queries that registers have no
    /// room for, and sums of the warps.
    #[must_use]
    pub const fn shared_bytes(&self) -> usize {
        let side = side_bytes(self.row_bytes());
        let queries = if matches!(self.dtype, DType::F32) || self.dim > 128 { side } else { 0 };
        WARPS * (self.stages() * side + queries + 16 * 8)
    }

    /// Dynamic shared memory of a block of `vote_tokens`, in bytes.
    pub const VOTE_SHARED_BYTES: usize = 64;

    /// The kernel for a call, and what it is told of tensors and rules. Addresses of lists, work and results
    /// are left at 0, for the caller to fill in.
    ///
    /// # Errors
    /// [`Error`] if shapes do not fit, there is no kernel for the dimensions or the group, a mask is asked for,
    /// pages are no multiple of 16 tokens, or a row does not start at 16 bytes.
    pub fn describe(
        queries: &Queries,
        listed: &Listed,
        params: &Params,
    ) -> Result<(TokensSpec, TokensParams), Error> {
        let kv_heads = listed.check(queries, params)?;
        if params.causal || params.window > 0 {
            return Err(Error::shape("votes of tokens on the device", "no mask", "a mask"));
        }
        let group = queries.q.shape()[1] / kv_heads;
        if ScoreSpec::rows(group) == 0 {
            return Err(Error::range("query heads of a KV head on the device", "1..=16", group));
        }
        let (pool, slots) = (listed.source().0, matches!(listed, Listed::Slots(..)));
        let spec = TokensSpec { dim: pool.layout().dim_k, dtype: pool.dtype(), slots };
        AttendSpec { dim: spec.dim, dtype: spec.dtype, slots, wide: false }.check()?;
        let of: AttendParams = inputs(queries, listed, params, kv_heads)?;
        Ok((spec, TokensParams { of, kv_heads: kv_heads as u32, ..TokensParams::zeroed() }))
    }
}
