//! Digests of keys that are scored instead of the keys.
//!
//! A *tile* is 64 consecutive tokens of one layer and KV head, whatever the page size. Its digest
//! lives in one *cell* of fixed size, written once when the tile is complete. Two families:
//! boxed codes ([`BoxedSpec`], token level, kvist's own) and unit rows ([`UnitSpec`]: Quest's box,
//! mean, mean and variance; one row per 16 tokens or so).

mod boxed;
mod units;

pub use boxed::{BoxedSpec, build_boxed, build_boxed_at, decode_boxed, is_open};
pub(crate) use boxed::{FIELD_BITS, OPEN, WIDTH_BIAS, WIDTH_SHIFT, unpack};
pub use units::{UnitKind, UnitSpec, build_units, update_unit};

/// Tokens of a tile.
pub const TILE: usize = 64;
