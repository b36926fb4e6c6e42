//! How a block becomes a record's payload and back: a codec's stages, the payload's directory, and
//! its sections, one per layer, KV head and kind (`docs/formats.md`, "Payload").
//!
//! One idea carries the module: *a section says what it is*. Its directory entry names its stages,
//! so any reader decodes any section, and a page that does not shrink is stored raw between coded
//! ones. Every section has its own checksum, and the header's covers the directory: whoever has
//! checked the directory may take any section alone, and pays only for the bytes it took.
//!
//! Nothing here does I/O or allocates on the way in; on the way out only the directory is a list.

mod check;
mod decode;
mod directory;
mod encode;
mod hash;
mod pages;
mod plan;
mod profile;
#[cfg(feature = "testing")]
mod sign;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use check::{Flaw, Part, check_stored};
pub(crate) use decode::{tokens_equal, unsealed, verify_stored};
pub(crate) use directory::{Directory, VERSION as CODEC_VERSION};
pub(crate) use hash::{Decoded, tile as tile_hash};
use kvist_kernels::entropy::Expw;
#[cfg(any(test, feature = "testing"))]
pub(crate) use pages::CanonicalMut;
pub(crate) use pages::{Canonical, PageSink, PageSource};
#[cfg(test)]
pub(crate) use pages::{Tiles, TilesMut};
pub(crate) use plan::Plan;
pub(crate) use profile::Stages;
pub use profile::{Codec, DiskCodec};
#[cfg(feature = "testing")]
pub(crate) use sign::sign;
pub(crate) use stream::Stream;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A page's K tile.
    K,
    /// A page's V tile.
    V,
    /// What other sections of the layer or head need for decoding; no stage of this version needs any.
    Side,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Kind::K => 1,
            Kind::V => 2,
            Kind::Side => 8,
        }
    }

    fn from_code(code: u8) -> Option<Kind> {
        [Kind::K, Kind::V, Kind::Side].into_iter().find(|k| k.code() == code)
    }
}
