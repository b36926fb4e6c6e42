//! **kvist** (*KV In Several Tiers*): the key-value cache of long-context language models.
//!
//! A [`Cache`] owns pages of keys and values under a hard byte budget. A [`Sequence`] appends to
//! them and attends: over every token, or over those a selector picks for the query, with a proven
//! bound of what was missed if wanted. Forks share pages; batches read shared pages once.
//!
//! ```
//! use kvist::{AttendOptions, Boxed, Cache, DType, Geometry, Select, Tensor3, Tensor3Mut};
//!
//! # fn main() -> Result<(), kvist::Error> {
//! let cache = Cache::builder(Geometry::new(1, 4, 2, 64, DType::F32))
//!     .host_bytes(16 << 20)
//!     .select(Select::Boxed(Boxed::with_budget(256)))
//!     .build()?;
//! let mut sequence = cache.sequence();
//! let (k, v) = (vec![0.1f32; 1000 * 2 * 64], vec![0.2f32; 1000 * 2 * 64]);
//! let rows = [1000, 2, 64]; // tokens, KV heads, head dim
//! sequence.append(0, &Tensor3::contiguous(&k, rows)?, &Tensor3::contiguous(&v, rows)?)?;
//! let (q, mut out) = (vec![0.3f32; 4 * 64], vec![0f32; 4 * 64]);
//! let info = sequence.attend(
//!     0,
//!     &Tensor3::contiguous(&q, [1, 4, 64])?,
//!     &AttendOptions::default(),
//!     &mut Tensor3Mut::contiguous(&mut out, [1, 4, 64])?,
//! )?;
//! assert!(info.tokens_read.iter().all(|&n| n == 256));
//! # Ok(())
//! # }
//! ```

#[macro_use]
mod bugs;
// Tests inside share helpers with those outside.
#[cfg(test)]
extern crate self as kvist;

mod arena;
mod attend;
mod boxes;
mod budget;
mod cache;
mod coarse;
mod codec;
#[cfg(feature = "cuda")]
mod device;
mod disk;
mod error;
pub mod format;
mod free;
#[cfg(feature = "testing")]
pub mod fuzz;
mod geometry;
mod index;
pub mod inspect;
mod journal;
mod layer;
mod lend;
mod live;
mod memory;
pub mod migrate;
mod miss;
mod pages;
mod parallel;
pub mod prefill;
mod prefix;
mod seal;
mod selector;
mod sequence;
mod session;
mod stats;
mod summaries;
mod sync;
mod table;
mod ticket;
pub mod vfs;
mod view;

pub use attend::{AttendInfo, AttendOptions, BytesRead, Drafts, Scores};
pub use cache::{Builder, Cache};
pub use codec::{Codec, DiskCodec};
#[cfg(feature = "cuda")]
pub use device::{DeviceDegraded, DeviceOptions, DeviceUse};
pub use disk::{Cause, Degraded, DiskOptions, DiskUse, Erased, OnVersion, Refused};
pub use error::Error;
pub use geometry::{Geometry, parse_bytes};
pub use journal::{Change, Changes, Tier};
pub use kvist_kernels as kernels;
pub use kvist_kernels::attend::{ROOT, Trees};
pub use kvist_kernels::{DType, Executor, Tensor3, Tensor3Mut};
pub use kvist_policies as policies;
pub use kvist_policies::{Boxed, Profile, Quest, Select, selection_presets};
pub use live::Pin;
pub use miss::MissReason;
pub use parallel::ParallelSequence;
pub use prefix::{
    Axis, BlockRows, BlockRowsMut, Destination, Lease, Origin, Pinned, Prefix, PrefixBuilder,
    PrefixStats, PrefixStore, Published, Restored, Space, SpaceOptions, Started, Strides, Tiling,
};
pub use sequence::Sequence;
pub use session::{Saved, SessionInfo};
pub use stats::{SequenceStats, Stats};
pub use ticket::Ticket;
pub use view::{HeadView, View};

/// The code in the guide for serving engines compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../docs/serving.md")]
mod serving {}

/// The code in the guide to the device tier compiles.
#[cfg(all(doctest, feature = "cuda"))]
#[doc = include_str!("../../docs/device.md")]
mod device_guide {}
