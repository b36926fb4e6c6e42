//! From scores to the units that attention reads: the fold of a query group into one weight per
//! unit, and the choice by count ([`top_k`]) or by mass ([`top_p`]).
//!
//! Plain functions over numbers; which scores, keeps and budgets go in is a policy's decision.

mod fold;
mod forced;
mod radix;
mod top;

pub(crate) use fold::{EXP2, fold_offset, piece_lse2};
pub use fold::{
    fold_mass, fold_mass_max, fold_mass_strided, fold_max, fold_mean, log2_add, lse2, lse2_strided,
};
pub use forced::{top_k_forced, top_p_forced};
pub use top::{at_least, threshold, top_k, top_p};
