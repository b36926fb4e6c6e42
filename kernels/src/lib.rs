//! Pure compute over borrowed, paged key-value memory: attention over page and slot lists with
//! (output, log-sum-exp) out, merging of partial results, page and token scoring, selection rules
//! and page summaries. CPU kernels per instruction set, each with a plain reference beside it.
//!
//! One idea carries the crate: *a tile is up to 64 row pointers*. Pages, slots, strided engine
//! tensors and summaries all become lists of row pointers, so that one set of inner loops serves
//! them all. Nothing here allocates tiers, does I/O (but for the cache of compiled GPU kernels) or
//! knows a policy.

mod arch;
pub mod attend;
pub mod cluster;
pub mod convert;
pub mod copy;
#[cfg(all(feature = "cuda", unix))]
pub mod cuda;
mod dtype;
pub mod entropy;
mod error;
mod exec;
mod isa;
mod lists;
pub mod plan;
pub mod quant;
pub mod reference;
pub mod rope;
pub mod rows;
pub mod score;
pub mod select;
pub mod summary;
mod view;
pub mod write;

pub use dtype::{DType, Element};
pub use error::Error;
pub use exec::Executor;
pub use isa::Isa;
pub use lists::{PageLists, SlotLists};
pub use view::{DIM_MAX, KvLayout, KvPool, Tensor3, Tensor3Mut};
