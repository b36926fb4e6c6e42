//! Codecs as data: a name, and the stages that K and V go through.

use crate::Error;

/// What is done to a section's bytes, as three bytes of its directory entry: transform, quantise,
/// entropy. This version has neither transforms nor quantisers, so both are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stages {
    pub(crate) entropy: Entropy,
}

/// The last stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entropy {
    /// As it is in memory.
    Raw,
    /// Exponents in bit planes against a base, escapes apart; lossless, floats only.
    Expw,
}

impl Stages {
    pub(crate) const RAW: Stages = Stages { entropy: Entropy::Raw };
    pub(crate) const EXPW: Stages = Stages { entropy: Entropy::Expw };

    /// Whether the stored bytes are the tile's.
    pub(crate) fn is_raw(self) -> bool {
        self == Stages::RAW
    }

    pub(super) const fn codes(self) -> [u8; 3] {
        match self.entropy {
            Entropy::Raw => [0, 0, 0],
            Entropy::Expw => [0, 0, 1],
        }
    }

    /// `None` for stages of another version: they are refused, never guessed.
    pub(super) fn from_codes(codes: [u8; 3]) -> Option<Stages> {
        [Stages::RAW, Stages::EXPW].into_iter().find(|s| s.codes() == codes)
    }
}

/// How blocks are stored: what keys and values go through on their way to disk or a remote store.
///
/// A reader needs no codec: every section of a record names its stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    name: &'static str,
    about: &'static str,
    id: u16,
    loss_class: u8,
    pub(super) k: Stages,
    pub(super) v: Stages,
}

static CODECS: [Codec; 2] = [
    Codec {
        name: "raw",
        about: "bytes as they are in memory",
        id: 1,
        loss_class: 0,
        k: Stages::RAW,
        v: Stages::RAW,
    },
    Codec {
        name: "lossless",
        about: "bit-exact: exponents of floats in bit planes, everything else raw",
        id: 2,
        loss_class: 0,
        k: Stages::EXPW,
        v: Stages::EXPW,
    },
];

impl Codec {
    /// Bytes as they are in memory.
    #[must_use]
    pub fn raw() -> Codec {
        CODECS[0]
    }

    /// Bit-exact, and smaller for floats.
    #[must_use]
    pub fn lossless() -> Codec {
        CODECS[1]
    }

    /// The codec of that name.
    ///
    /// # Errors
    /// [`Error::UnknownCodec`], with the nearest name if one is near.
    pub fn parse(name: &str) -> Result<Codec, Error> {
        CODECS.into_iter().find(|c| c.name == name).ok_or_else(|| Error::UnknownCodec {
            name: name.to_owned(),
            suggestion: kvist_policies::nearest(name, CODECS.iter().map(|c| c.name)),
            known: CODECS.map(|c| c.name).join(", "),
        })
    }

    /// All of them, for listings.
    #[must_use]
    pub fn all() -> &'static [Codec] {
        &CODECS
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it does, in a line.
    #[must_use]
    pub fn about(&self) -> &'static str {
        self.about
    }

    /// How much it may change: 0 nothing, 3 most. A record carries it; readers that allow less get
    /// a miss.
    #[must_use]
    pub fn loss_class(&self) -> u8 {
        self.loss_class
    }

    /// The number in record headers. It is for listings; decoding depends on the sections' stages.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.id
    }
}

impl Default for Codec {
    fn default() -> Codec {
        Codec::lossless()
    }
}

/// How pages of live sequences are stored below host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskCodec {
    /// All in one way.
    Fixed(Codec),
    /// [`Codec::lossless`] or [`Codec::raw`], whichever is back sooner by what the tier's own reads took:
    /// waiting for the disk and decoding (dynamic compression of LeoAM, arXiv 2506.20187). Lossless until pages
    /// were read back. Both are bit-exact.
    Dynamic,
}

impl DiskCodec {
    const DYNAMIC: &str = "dynamic";

    /// `"dynamic"`, or the codec of that name.
    ///
    /// # Errors
    /// [`Error::UnknownCodec`], with the nearest name if one is near.
    pub fn parse(name: &str) -> Result<DiskCodec, Error> {
        if name == DiskCodec::DYNAMIC {
            return Ok(DiskCodec::Dynamic);
        }
        let names = || CODECS.iter().map(|c| c.name).chain([DiskCodec::DYNAMIC]);
        Codec::parse(name).map(DiskCodec::Fixed).map_err(|_| Error::UnknownCodec {
            name: name.to_owned(),
            suggestion: kvist_policies::nearest(name, names()),
            known: names().collect::<Vec<_>>().join(", "),
        })
    }
}

impl From<Codec> for DiskCodec {
    fn from(codec: Codec) -> DiskCodec {
        DiskCodec::Fixed(codec)
    }
}

impl Default for DiskCodec {
    fn default() -> DiskCodec {
        Codec::default().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_sequences_may_be_stored_as_it_pays() {
        assert_eq!(DiskCodec::parse("dynamic"), Ok(DiskCodec::Dynamic));
        assert_eq!(DiskCodec::parse("raw"), Ok(Codec::raw().into()));
        assert_eq!(DiskCodec::default(), Codec::lossless().into());
        assert_eq!(
            DiskCodec::parse("dinamic").unwrap_err().to_string(),
            "unknown codec \"dinamic\", did you mean \"dynamic\"?; there are: raw, lossless, dynamic"
        );
    }

    #[test]
    fn every_codec_parses_and_a_typing_error_gets_the_nearest_name() {
        for codec in Codec::all() {
            assert_eq!(Codec::parse(codec.name()), Ok(*codec));
        }
        let text = |name: &str| Codec::parse(name).unwrap_err().to_string();
        assert_eq!(
            text("losless"),
            "unknown codec \"losless\", did you mean \"lossless\"?; there are: raw, lossless"
        );
        assert!(!text("zstd").contains("did you mean"));
    }

    #[test]
    fn unknown_stages_are_refused() {
        assert_eq!(Stages::from_codes([0, 0, 1]), Some(Stages::EXPW));
        for codes in [[1, 0, 0], [0, 1, 0], [0, 0, 2], [0, 0, 255], [1, 0, 1]] {
            assert_eq!(Stages::from_codes(codes), None);
        }
    }
}
