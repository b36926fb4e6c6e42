//! Digests of keys that are scored instead of the keys.
//!
//! A *tile* is 64 consecutive tokens of one layer and KV head, whatever the page size. Its digest
//! lives in one *cell* of fixed size. Three families: boxed codes ([`BoxedSpec`], token level, kvist's
//! own, written once when the tile is complete), unit rows ([`UnitSpec`]: Quest's box, ArkVale's, mean,
//! mean and variance; one row per 16 tokens or so), and keys of a few bits ([`LowBitSpec`]).

mod boxed;
mod low_bit;
mod units;

pub use boxed::{BoxedSpec, build_boxed, build_boxed_at, decode_boxed, is_open};
pub(crate) use boxed::{FIELD_BITS, OPEN, WIDTH_BIAS, WIDTH_SHIFT, unpack};
pub use low_bit::{LowBitSpec, build_low_bit};
pub use units::{UnitKind, UnitSpec, build_units, merge_boxes, update_unit};

/// Tokens of a tile.
pub const TILE: usize = 64;
